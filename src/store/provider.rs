//! What ties a login to the provider: its refresh token, sealed, and the provider's own session.

use super::{NewLogin, Store, StoreError, on_engine};
use crate::types::{LoginId, Role, TenantId, Timestamp};

/// A login's refresh token, sealed with a key of ours, and when to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderTokens {
    /// The sealed refresh token.
    pub sealed: String,
    /// When what the provider said about the person is to be asked for again.
    pub refresh_at: Timestamp,
}

/// A refresh that this process alone may do, for as long as it holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshLease {
    /// The login.
    pub login: LoginId,
    /// The tenant that it is in.
    pub tenant: TenantId,
    /// Names the holder; new for each refresh.
    pub holder: String,
    /// The sealed refresh token.
    pub sealed: String,
    /// The provider.
    pub issuer: String,
    /// The person there.
    pub subject: String,
}

/// What a refresh brought.
#[derive(Debug, Clone)]
pub struct Refreshed {
    /// The tokens from now on.
    pub tokens: ProviderTokens,
    /// What the provider says about the person now: e-mail, name and claimed tenants; `None` when it
    /// said nothing.
    pub person: Option<RefreshedPerson>,
}

/// How a refresh that the provider answered ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshEnd {
    /// What it brought is kept.
    Kept,
    /// The lease was lost, or the login had ended.
    Late,
    /// A claim rules the tenants and names none: the person's places by claim are gone, and with the
    /// last one all logins.
    NoTenant,
}

/// What a provider says about a person at a refresh.
#[derive(Debug, Clone)]
pub struct RefreshedPerson {
    /// For display.
    pub email: Option<String>,
    /// For display.
    pub name: Option<String>,
    /// Tenants and roles by a claim; `None` where tenants are kept here.
    pub tenants: Option<Vec<(String, Role)>>,
}

/// Which logins a provider's logout token is about.
#[derive(Debug, Clone)]
pub struct ProviderLogout {
    /// The provider.
    pub issuer: String,
    /// The person there.
    pub subject: Option<String>,
    /// The provider's session; with `subject` both must fit.
    pub sid: Option<String>,
    /// SHA-256 over the token's id, which is used up.
    pub token_hash: [u8; 32],
    /// Until when the token's id must be remembered.
    pub token_expires_at: Timestamp,
}

impl Store {
    /// Takes the lease on a login's refresh; `None` when it is not due, or another process has it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn begin_refresh(
        &self,
        login: &LoginId,
        lease_expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Option<RefreshLease>, StoreError> {
        let login = login.clone();
        on_engine!(
            self,
            write,
            provider::begin_refresh(&login, lease_expires_at, now)
        )
    }

    /// Keeps the lease; false when it is lost.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn renew_refresh(
        &self,
        lease: &RefreshLease,
        lease_expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let lease = lease.clone();
        on_engine!(
            self,
            write,
            provider::renew_refresh(&lease, lease_expires_at)
        )
    }

    /// Ends a refresh that succeeded.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn finish_refresh(
        &self,
        lease: &RefreshLease,
        refreshed: Refreshed,
        now: Timestamp,
    ) -> Result<RefreshEnd, StoreError> {
        let lease = lease.clone();
        on_engine!(
            self,
            write,
            provider::finish_refresh(&lease, &refreshed, now)
        )
    }

    /// Gives the lease up after a refresh that brought no answer; it is not tried before `not_before`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn postpone_refresh(
        &self,
        lease: &RefreshLease,
        not_before: Timestamp,
    ) -> Result<(), StoreError> {
        let lease = lease.clone();
        on_engine!(self, write, provider::postpone_refresh(&lease, not_before))
    }

    /// Ends the logins that a logout token is about, on every process; `None` when the token was used
    /// before.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn end_provider_session(
        &self,
        logout: ProviderLogout,
        now: Timestamp,
    ) -> Result<Option<Vec<LoginId>>, StoreError> {
        on_engine!(self, write, provider::end_session(&logout, now))
    }
}

impl NewLogin {
    /// The columns of the refresh token: sealed text and time.
    #[cfg(feature = "sqlite")]
    pub(super) fn provider_columns(&self) -> (Option<&[u8]>, Option<i64>) {
        let tokens = self.provider_tokens.as_ref();
        (
            tokens.map(|tokens| tokens.sealed.as_bytes()),
            tokens.map(|tokens| tokens.refresh_at.as_millis()),
        )
    }
}
