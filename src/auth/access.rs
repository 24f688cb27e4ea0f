//! Who is asking, and what a route asks of them.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, header};
use moka::sync::Cache;

use super::bearer::BearerTokens;
use super::cookies::Cookies;
use super::live::Right;
use super::oidc::OidcError;
use super::refresh::Refresher;
use crate::store::{
    AuditActor, LoginRecord, Membership, ServiceClient, Store, StoreError, User, Version,
};
use crate::types::{Clock, LoginId, Role, TenantId, Timestamp};

/// Names the tenant that a request is about.
pub static TENANT_HEADER: HeaderName = HeaderName::from_static("edgecloud-tenant");
/// The idle limit is moved when a login was not used for this share of it, so that most requests
/// write nothing.
const TOUCH_SHARE: u32 = 20;

/// Logins that are remembered at once.
const MAX_KNOWN_LOGINS: u64 = 20_000;

/// What a route asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Public,
    /// A live login or a service client.
    Authenticated,
    /// A live login: what people do, and programs do not.
    Person,
    /// At least this role in the tenant that the request is about.
    Role(Role),
    /// At least this role in the tenant that the path names.
    PathTenant(Role),
}

/// A person with a live login.
#[derive(Debug, Clone)]
pub struct Person {
    /// The login that the request came with.
    pub login: LoginId,
    /// When the login ends in any case.
    pub login_expires_at: Timestamp,
    /// The person.
    pub user: User,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Actor {
    /// A person, by a login.
    Person(Person),
    /// A program, by an access token.
    ServiceClient(ServiceClient),
}

/// Somebody who has shown who they are.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Who asks.
    pub actor: Actor,
    /// The tenant that the request is about, with the caller's role there.
    pub tenant: Membership,
    /// All tenants of the caller.
    pub memberships: Arc<[Membership]>,
}

impl Principal {
    /// The person, unless a program asks.
    pub fn person(&self) -> Option<&Person> {
        match &self.actor {
            Actor::Person(person) => Some(person),
            Actor::ServiceClient(_) => None,
        }
    }

    /// The caller's id.
    pub fn id(&self) -> &str {
        match &self.actor {
            Actor::Person(person) => person.user.id.as_str(),
            Actor::ServiceClient(client) => client.id.as_str(),
        }
    }

    /// The caller, for the audit.
    pub fn audit_actor(&self) -> AuditActor {
        match &self.actor {
            Actor::Person(person) => AuditActor::User(person.user.id.clone()),
            Actor::ServiceClient(client) => AuditActor::ServiceClient(client.id.clone()),
        }
    }

    /// What something that the caller opens rests on.
    pub fn rights(&self) -> Vec<Right> {
        match &self.actor {
            Actor::Person(person) => vec![
                Right::Login(person.login.clone()),
                Right::Member(person.user.id.clone(), self.tenant.id.clone()),
            ],
            Actor::ServiceClient(client) => vec![Right::ServiceClient(client.id.clone())],
        }
    }
}

/// Why a request comes from nobody in particular.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// There is no live login behind it.
    #[error("no valid credentials")]
    Unauthenticated,
    /// The named tenant does not exist or is not one of the caller's.
    #[error("not a member of the tenant")]
    TenantForbidden,
    /// An access token cannot be verified, since the provider's keys cannot be had.
    #[error("the access token cannot be verified")]
    Provider(#[from] OidcError),
    /// The login cannot be looked up.
    #[error("the login cannot be looked up")]
    Store(#[from] StoreError),
}

/// Finds out who is asking. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    /// The cookies of people.
    pub cookies: Cookies,
    bearer: BearerTokens,
    refresher: Refresher,
    store: Store,
    clock: Clock,
    idle_timeout: Duration,
    known: Cache<[u8; 32], KnownLogin>,
}

/// A login as it was at a version of the database.
#[derive(Clone)]
struct KnownLogin {
    version: Version,
    login: Arc<LoginRecord>,
}

impl Authenticator {
    /// Looks logins up in `store`; each use moves a login's end by `idle_timeout`.
    pub fn new(
        cookies: Cookies,
        (bearer, refresher): (BearerTokens, Refresher),
        store: Store,
        clock: Clock,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            cookies,
            bearer,
            refresher,
            store,
            clock,
            idle_timeout,
            known: Cache::new(MAX_KNOWN_LOGINS),
        }
    }

    /// Identifies the caller of a request on the cloud's host. With `Authorization` the cookie is
    /// ignored.
    ///
    /// # Errors
    /// When there is no live login or access token, a foreign tenant is named, or the store does not
    /// answer.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        if headers.contains_key(header::AUTHORIZATION) {
            return Box::pin(self.service_client(headers)).await;
        }
        let hash = self
            .cookies
            .read_login(headers)
            .ok_or(Denied::Unauthenticated)?;
        let login = self.login(hash).await?;
        self.touch(&login).await;
        principal(&login, headers)
    }

    /// The registered program that an access token was given to.
    async fn service_client(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        let token = self.bearer.read(headers).await?;
        let token = token.ok_or(Denied::Unauthenticated)?;
        let issuer = self.bearer.issuer();
        let found = self
            .store
            .find_service_client_by_client_id(&token.client_id, issuer, &token.subject)
            .await?;
        let client = found.ok_or(Denied::Unauthenticated)?;
        if named_tenant(headers, &client.tenant)? != client.tenant {
            return Err(Denied::TenantForbidden);
        }
        let membership = Membership {
            id: client.tenant.clone(),
            name: client.tenant_name.clone(),
            role: client.role,
        };
        Ok(Principal {
            tenant: membership.clone(),
            memberships: Arc::from([membership]),
            actor: Actor::ServiceClient(client),
        })
    }

    /// The live login with a secret. What was read before is good for as long as nothing has changed in
    /// the database, in whichever process.
    async fn login(&self, hash: [u8; 32]) -> Result<Arc<LoginRecord>, Denied> {
        let now = self.clock.now();
        // Before the login is read: a change in between makes it old, never the other way round.
        let version = self.store.version();
        if let Some(known) = self.known.get(&hash)
            && Some(known.version) == version
            && known.login.idle_expires_at > now
            && known.login.expires_at > now
        {
            return Ok(known.login);
        }
        let found = Box::pin(self.store.find_login(hash, now)).await?;
        let login = Arc::new(found.ok_or(Denied::Unauthenticated)?);
        if let Some(version) = version {
            let login = Arc::clone(&login);
            self.known.insert(hash, KnownLogin { version, login });
        }
        Ok(login)
    }

    /// The live login with a public name, as a device's host knows it.
    ///
    /// # Errors
    /// When there is none, or the store does not answer.
    pub async fn find_login(&self, id: &LoginId) -> Result<LoginRecord, Denied> {
        let found = self.store.find_login_by_id(id, self.clock.now()).await?;
        let login = found.ok_or(Denied::Unauthenticated)?;
        self.touch(&login).await;
        Ok(login)
    }

    /// A login is in use: its idle limit moves, and the provider is asked again where that is due.
    async fn touch(&self, login: &LoginRecord) {
        self.refresher.notice(login);
        let until = self.clock.now().plus(self.idle_timeout);
        let unused = until.since(login.idle_expires_at);
        if unused < self.idle_timeout / TOUCH_SHARE {
            return;
        }
        let touched = Box::pin(self.store.touch_login(&login.id, until)).await;
        if let Err(error) = touched {
            tracing::warn!(%error, "the use of a login was not noted");
        }
    }
}

fn principal(login: &LoginRecord, headers: &HeaderMap) -> Result<Principal, Denied> {
    let tenant = named_tenant(headers, &login.active_tenant)?;
    let membership = login.memberships.iter().find(|of| of.id == tenant);
    Ok(Principal {
        tenant: membership.cloned().ok_or(Denied::TenantForbidden)?,
        actor: Actor::Person(Person {
            login: login.id.clone(),
            login_expires_at: login.expires_at,
            user: login.user.clone(),
        }),
        memberships: Arc::clone(&login.memberships),
    })
}

/// The tenant that a request names, else the one that the caller is in.
fn named_tenant(headers: &HeaderMap, own: &TenantId) -> Result<TenantId, Denied> {
    let mut named = headers.get_all(&TENANT_HEADER).iter();
    let tenant: Option<TenantId> = match (named.next(), named.next()) {
        (None, _) => Some(own.clone()),
        (Some(name), None) => name.to_str().ok().and_then(|name| name.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    tenant.ok_or(Denied::TenantForbidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UserId;

    fn login() -> LoginRecord {
        let membership = |role| Membership {
            id: TenantId::random(),
            name: "t".into(),
            role,
        };
        let memberships = vec![membership(Role::Owner), membership(Role::Viewer)];
        LoginRecord {
            id: LoginId::random(),
            user: User {
                id: UserId::random(),
                email: None,
                name: None,
            },
            active_tenant: memberships[0].id.clone(),
            memberships: memberships.into(),
            idle_expires_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(0),
            refresh_at: None,
        }
    }

    fn role(login: &LoginRecord, named: &[&str]) -> Option<Role> {
        let mut headers = HeaderMap::new();
        for name in named {
            headers.append(&TENANT_HEADER, name.parse().expect("a header"));
        }
        let found = principal(login, &headers).ok()?;
        Some(found.tenant.role)
    }

    #[test]
    fn tn_03_a_tenant_is_the_active_one_or_a_checked_one() {
        let login = login();
        let second = login.memberships[1].id.to_string();
        assert_eq!(role(&login, &[]), Some(Role::Owner));
        assert_eq!(role(&login, &[&second]), Some(Role::Viewer));
        let foreign = TenantId::random().to_string();
        for bad in [
            &[foreign.as_str()][..],
            &["nonsense"],
            &[""],
            &[&second, &second],
        ] {
            assert_eq!(role(&login, bad), None, "{bad:?}");
        }
    }
}
