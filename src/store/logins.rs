//! People, their memberships and their signed-in browsers.

use std::sync::Arc;

use serde::Serialize;

use super::{ProviderTokens, Store, StoreError, on_engine};
use crate::types::{LoginId, Role, TenantId, Timestamp, UserId};

/// Most live logins of one person; a further one ends the oldest.
pub const MAX_LOGINS_PER_USER: u32 = 50;

/// A person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// For display only; never identifies anybody.
    pub email: Option<String>,
    /// For display only.
    pub name: Option<String>,
}

/// A person's place in a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// The tenant.
    pub id: TenantId,
    /// The tenant's name.
    pub name: String,
    /// What the person may do there.
    pub role: Role,
}

/// A signed-in browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRecord {
    /// The login's public name.
    pub id: LoginId,
    /// Who signed in.
    pub user: User,
    /// The tenant that requests without `Edgecloud-Tenant` are about.
    pub active_tenant: TenantId,
    /// All tenants of the person, at least one, in order of joining.
    pub memberships: Arc<[Membership]>,
    /// When the login ends if it is not used.
    pub idle_expires_at: Timestamp,
    /// When the login ends in any case.
    pub expires_at: Timestamp,
    /// When the provider is to be asked about the person again; `None` where it gave no refresh token.
    pub refresh_at: Option<Timestamp>,
}

/// A login to be made from what the provider said.
#[derive(Debug, Clone)]
pub struct NewLogin {
    /// The login's public name.
    pub id: LoginId,
    /// SHA-256 of the secret id that the cookie holds.
    pub secret_hash: [u8; 32],
    /// The provider.
    pub issuer: String,
    /// The person there.
    pub subject: String,
    /// For display.
    pub email: Option<String>,
    /// For display.
    pub name: Option<String>,
    /// The provider's name of its own session.
    pub sid: Option<String>,
    /// The refresh token, if the provider gave one.
    pub provider_tokens: Option<ProviderTokens>,
    /// Tenants and roles by a claim; `None` where tenants are kept here.
    pub tenants: Option<Vec<(String, Role)>>,
    /// What the browser calls itself.
    pub user_agent: Option<String>,
    /// Where the browser is.
    pub remote_addr: Option<String>,
    /// When the login ends if it is not used.
    pub idle_expires_at: Timestamp,
    /// When the login ends in any case.
    pub expires_at: Timestamp,
}

/// A signed-in browser, as its person recognises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginEntry {
    /// The login's public name.
    pub id: LoginId,
    /// When the person signed in.
    pub created_at: Timestamp,
    /// When the login ends if it is not used.
    pub idle_expires_at: Timestamp,
    /// When the login ends in any case.
    pub expires_at: Timestamp,
    /// What the browser calls itself.
    pub user_agent: Option<String>,
    /// Where the browser was at the sign-in.
    pub remote_addr: Option<String>,
}

impl Store {
    /// Signs somebody in, in one transaction: finds or makes the person by (`iss`, `sub`) and the
    /// tenants, and makes the login.
    ///
    /// # Errors
    /// `Conflict` when a claim rules the tenants and names none; the places that it gave before are
    /// gone then.
    pub async fn sign_in(&self, login: NewLogin, now: Timestamp) -> Result<UserId, StoreError> {
        let user = self.write_sign_in(login, now).await?;
        user.ok_or(StoreError::Conflict("no_tenant"))
    }

    /// `None` when nothing but the loss of claimed places was written.
    async fn write_sign_in(
        &self,
        login: NewLogin,
        now: Timestamp,
    ) -> Result<Option<UserId>, StoreError> {
        on_engine!(self, write, logins::sign_in(&login, now))
    }

    /// The live login with this secret.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_login(
        &self,
        secret_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<LoginRecord>, StoreError> {
        on_engine!(self, read, logins::find_by_secret(&secret_hash, now))
    }

    /// The live login with this public name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_login_by_id(
        &self,
        id: &LoginId,
        now: Timestamp,
    ) -> Result<Option<LoginRecord>, StoreError> {
        let id = id.clone();
        on_engine!(self, read, logins::find_by_id(&id, now))
    }

    /// Notes that a login is in use.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn touch_login(
        &self,
        id: &LoginId,
        idle_expires_at: Timestamp,
    ) -> Result<(), StoreError> {
        let id = id.clone();
        on_engine!(self, write, logins::touch(&id, idle_expires_at))
    }

    /// Ends a login on every process; tells whether there was one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_login(&self, id: &LoginId, now: Timestamp) -> Result<bool, StoreError> {
        let id = id.clone();
        on_engine!(self, write, logins::end(&id, now))
    }

    /// A person's live logins, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list_logins(
        &self,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Vec<LoginEntry>, StoreError> {
        let user = user.clone();
        on_engine!(self, read, logins::list(&user, now))
    }

    /// Ends a person's login on every process; tells whether the person had it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_login_of(
        &self,
        user: &UserId,
        id: &LoginId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (user, id) = (user.clone(), id.clone());
        on_engine!(self, write, logins::end_of(&user, &id, now))
    }

    /// Ends a person's logins but one, on every process; tells which.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_other_logins(
        &self,
        user: &UserId,
        kept: &LoginId,
        now: Timestamp,
    ) -> Result<Vec<LoginId>, StoreError> {
        let (user, kept) = (user.clone(), kept.clone());
        on_engine!(self, write, logins::end_others(&user, &kept, now))
    }

    /// Makes a tenant the active one of a login, and of the person's next logins; false when the
    /// person is no member.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn set_active_tenant(
        &self,
        login: &LoginId,
        tenant: &TenantId,
    ) -> Result<bool, StoreError> {
        let (login, tenant) = (login.clone(), tenant.clone());
        on_engine!(self, write, logins::set_active_tenant(&login, &tenant))
    }

    /// Whether the time of a login is over, so that most often nothing has to be written.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_expired_logins(&self, now: Timestamp) -> Result<bool, StoreError> {
        on_engine!(self, read, logins::has_expired(now))
    }

    /// Ends the logins whose time is over, on every process.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_expired_logins(&self, now: Timestamp) -> Result<(), StoreError> {
        on_engine!(self, write, logins::end_expired(now))
    }

    /// Uses up what may come once: the state of a sign-in, by its SHA-256; false when it came before,
    /// here or elsewhere.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn use_once(
        &self,
        hash: [u8; 32],
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        on_engine!(self, write, logins::use_once(&hash, expires_at))
    }
}
