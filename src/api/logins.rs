//! Who is signed in, where, and for which tenant.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, Signed, Trail};
use super::openapi::{Doc, schema};
use crate::auth::access::{Actor, Denied, Principal};
use crate::auth::live::Right;
use crate::store::Membership;
use crate::types::{LoginId, ServiceClientId, TenantId, Timestamp};

/// The person, as shown to themselves.
#[derive(Serialize, ToSchema)]
pub struct MeUser {
    #[schema(value_type = String)]
    id: crate::types::UserId,
    email: Option<String>,
    name: Option<String>,
}

/// The login, as shown to its person.
#[derive(Serialize, ToSchema)]
pub struct MeLogin {
    #[schema(value_type = String)]
    id: LoginId,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// A tenant and the caller's role in it.
#[derive(Serialize, ToSchema)]
pub struct MeTenant {
    #[schema(value_type = String)]
    id: TenantId,
    name: String,
    role: &'static str,
}

impl From<Membership> for MeTenant {
    fn from(membership: Membership) -> Self {
        Self {
            id: membership.id,
            name: membership.name,
            role: membership.role.as_str(),
        }
    }
}

/// A program that asks.
#[derive(Serialize, ToSchema)]
pub struct MeServiceClient {
    #[schema(value_type = String)]
    id: ServiceClientId,
    client_id: String,
    name: String,
}

/// Who is signed in.
#[derive(Serialize, ToSchema)]
pub struct Me {
    /// The person; `null` for a service client.
    user: Option<MeUser>,
    /// The person's login; `null` for a service client.
    login: Option<MeLogin>,
    /// The service client, where one asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_client: Option<MeServiceClient>,
    /// The tenant that this request is about.
    tenant: MeTenant,
    /// All tenants of the person.
    tenants: Vec<MeTenant>,
}

/// Tells who is signed in.
pub async fn me(Caller(principal): Caller) -> Json<Me> {
    Json(describe(principal))
}

fn describe(principal: Principal) -> Me {
    let tenants = principal.memberships.iter().cloned();
    let mut me = Me {
        user: None,
        login: None,
        service_client: None,
        tenants: tenants.map(Into::into).collect(),
        tenant: principal.tenant.into(),
    };
    match principal.actor {
        Actor::Person(person) => {
            me.user = Some(MeUser {
                id: person.user.id,
                email: person.user.email,
                name: person.user.name,
            });
            me.login = Some(MeLogin {
                id: person.login,
                expires_at: person.login_expires_at,
            });
        }
        Actor::ServiceClient(client) => {
            me.service_client = Some(MeServiceClient {
                id: client.id,
                client_id: client.client_id,
                name: client.name,
            });
        }
    }
    me
}

/// A signed-in browser of the caller.
#[derive(Serialize, ToSchema)]
pub struct LoginInfo {
    #[schema(value_type = String)]
    id: LoginId,
    /// Whether this is the login of this request.
    current: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When the login ends if it is not used.
    #[schema(value_type = String, format = DateTime)]
    idle_expires_at: Timestamp,
    /// When the login ends in any case.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// What the browser called itself at the sign-in.
    user_agent: Option<String>,
    /// Where the browser was at the sign-in.
    remote_addr: Option<String>,
}

/// All logins of the caller; there are 50 at most.
#[derive(Serialize, ToSchema)]
pub struct LoginList {
    items: Vec<LoginInfo>,
    next_cursor: Option<String>,
}

/// Lists the caller's logins.
pub async fn list_logins(
    State(app): State<AppState>,
    Signed(person): Signed,
) -> Result<Json<LoginList>, Error> {
    let found = app
        .0
        .store
        .list_logins(&person.user.id, app.0.clock.now())
        .await?;
    let items = found.into_iter().map(|login| LoginInfo {
        current: login.id == person.login,
        id: login.id,
        created_at: login.created_at,
        idle_expires_at: login.idle_expires_at,
        expires_at: login.expires_at,
        user_agent: login.user_agent,
        remote_addr: login.remote_addr,
    });
    Ok(Json(LoginList {
        items: items.collect(),
        next_cursor: None,
    }))
}

/// Ends one of the caller's logins.
pub async fn end_login(
    State(app): State<AppState>,
    Signed(person): Signed,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id: LoginId = id.parse().map_err(|_| Error::not_found())?;
    let now = app.0.clock.now();
    if !app
        .0
        .store
        .audited(trail.of("login.ended", &id))
        .end_login_of(&person.user.id, &id, now)
        .await?
    {
        return Err(Error::not_found());
    }
    app.0.live.end(Right::Login(id));
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all logins of the caller but this one.
pub async fn end_other_logins(
    State(app): State<AppState>,
    Signed(person): Signed,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let (user, now) = (&person.user.id, app.0.clock.now());
    for ended in app
        .0
        .store
        .audited(trail.of("login.others_ended", &person.login))
        .end_other_logins(user, &person.login, now)
        .await?
    {
        app.0.live.end(Right::Login(ended));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The tenant to be active.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActiveTenant {
    /// One of the caller's tenants.
    #[serde(alias = "id")]
    tenant_id: String,
}

/// Makes another of the caller's tenants the one that requests are about.
pub async fn set_active_tenant(
    State(app): State<AppState>,
    Caller(mut principal): Caller,
    Signed(person): Signed,
    JsonBody(body): JsonBody<ActiveTenant>,
) -> Result<Json<Me>, Error> {
    let tenant: Option<TenantId> = body.tenant_id.parse().ok();
    let chosen = principal
        .memberships
        .iter()
        .find(|of| Some(&of.id) == tenant.as_ref());
    let chosen = chosen.cloned().ok_or(Denied::TenantForbidden)?;
    if !app
        .0
        .store
        .set_active_tenant(&person.login, &chosen.id)
        .await?
    {
        return Err(Denied::TenantForbidden.into());
    }
    principal.tenant = chosen;
    Ok(Json(describe(principal)))
}

/// Describes [`me`].
pub fn me_doc() -> Doc {
    Doc::new("auth", "Who is signed in").returns(200, "The caller", schema::<Me>())
}

/// Describes [`list_logins`].
pub fn list_doc() -> Doc {
    Doc::new("auth", "List your signed-in browsers, newest first").returns(
        200,
        "All of them",
        schema::<LoginList>(),
    )
}

/// Describes [`end_login`].
pub fn end_doc() -> Doc {
    Doc::new(
        "auth",
        "End one of your logins and everything open on its behalf",
    )
    .answer(204, "Ended")
}

/// Describes [`end_other_logins`].
pub fn end_others_doc() -> Doc {
    Doc::new("auth", "End all of your logins but this one").answer(204, "Ended")
}

/// Describes [`set_active_tenant`].
pub fn set_tenant_doc() -> Doc {
    Doc::new("auth", "Choose the tenant that requests are about")
        .takes(schema::<ActiveTenant>())
        .returns(200, "The caller, now", schema::<Me>())
        .answer(403, "Not one of your tenants")
}
