//! Who is asking, and what a route asks of them.

use std::time::Duration;

use http::{HeaderMap, header};

use super::cookies::Cookies;
use crate::store::{LoginRecord, Membership, Store, StoreError, User};
use crate::types::{Clock, LoginId, Role, TenantId, Timestamp};

/// Names the tenant that a request is about.
pub const TENANT_HEADER: &str = "edgecloud-tenant";
/// The idle limit is moved when a login was not used for this share of it, so that most requests
/// write nothing.
const TOUCH_SHARE: u32 = 20;

/// What a route asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Public,
    /// A live login.
    Login,
    /// A live login with at least this role in the tenant.
    Role(Role),
}

/// Somebody who has shown who they are.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The login that the request came with.
    pub login: LoginId,
    /// When the login ends in any case.
    pub login_expires_at: Timestamp,
    /// The person.
    pub user: User,
    /// The tenant that the request is about, with the person's role there.
    pub tenant: Membership,
    /// All tenants of the person.
    pub memberships: Vec<Membership>,
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
    /// The login cannot be looked up.
    #[error("the login cannot be looked up")]
    Store(#[from] StoreError),
}

/// Finds out who is asking. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    /// The cookies of people.
    pub cookies: Cookies,
    store: Store,
    clock: Clock,
    idle_timeout: Duration,
}

impl Authenticator {
    /// Looks logins up in `store`; each use moves a login's end by `idle_timeout`.
    pub fn new(cookies: Cookies, store: Store, clock: Clock, idle_timeout: Duration) -> Self {
        Self {
            cookies,
            store,
            clock,
            idle_timeout,
        }
    }

    /// Identifies the caller of a request on the cloud's host. With `Authorization` the cookie is
    /// ignored.
    ///
    /// # Errors
    /// When there is no live login, a foreign tenant is named, or the store does not answer.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        // Bearer tokens of service clients come with issue 3; until then none is valid.
        if headers.contains_key(header::AUTHORIZATION) {
            return Err(Denied::Unauthenticated);
        }
        let hash = self
            .cookies
            .read_login(headers)
            .ok_or(Denied::Unauthenticated)?;
        let found = self.store.find_login(hash, self.clock.now()).await?;
        let login = found.ok_or(Denied::Unauthenticated)?;
        self.touch(&login).await;
        principal(login, headers)
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

    async fn touch(&self, login: &LoginRecord) {
        let until = self.clock.now().plus(self.idle_timeout);
        let unused = until.since(login.idle_expires_at);
        if unused < self.idle_timeout / TOUCH_SHARE {
            return;
        }
        if let Err(error) = self.store.touch_login(&login.id, until).await {
            tracing::warn!(%error, "the use of a login was not noted");
        }
    }
}

fn principal(login: LoginRecord, headers: &HeaderMap) -> Result<Principal, Denied> {
    let mut named = headers.get_all(TENANT_HEADER).iter();
    let tenant: Option<TenantId> = match (named.next(), named.next()) {
        (None, _) => Some(login.active_tenant.clone()),
        (Some(name), None) => name.to_str().ok().and_then(|name| name.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    let membership = tenant.and_then(|tenant| login.memberships.iter().find(|of| of.id == tenant));
    Ok(Principal {
        tenant: membership.cloned().ok_or(Denied::TenantForbidden)?,
        login: login.id,
        login_expires_at: login.expires_at,
        user: login.user,
        memberships: login.memberships,
    })
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
            memberships,
            idle_expires_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(0),
        }
    }

    fn role(login: &LoginRecord, named: &[&str]) -> Option<Role> {
        let mut headers = HeaderMap::new();
        for name in named {
            headers.append(TENANT_HEADER, name.parse().expect("a header"));
        }
        let found = principal(login.clone(), &headers).ok()?;
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
