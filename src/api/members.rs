//! Who is in a tenant, and as what.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, PageQuery, Query, Trail, role};
use super::openapi::{Doc, schema};
use crate::auth::access::Principal;
use crate::auth::live::Right;
use crate::store::{Member, MemberChange};
use crate::types::{Role, TenantId, UserId};

/// A person in a tenant.
#[derive(Serialize, ToSchema)]
pub struct MemberInfo {
    #[schema(value_type = String)]
    user_id: UserId,
    email: Option<String>,
    name: Option<String>,
    /// `viewer`, `operator`, `admin` or `owner`.
    role: &'static str,
    /// What put the person there: `personal`, `claim` or `invitation`.
    source: String,
}

impl From<Member> for MemberInfo {
    fn from(member: Member) -> Self {
        Self {
            user_id: member.user.id,
            email: member.user.email,
            name: member.user.name,
            role: member.role.as_str(),
            source: member.source,
        }
    }
}

/// Part of a tenant's members.
#[derive(Serialize, ToSchema)]
pub struct MemberPage {
    items: Vec<MemberInfo>,
    next_cursor: Option<String>,
}

/// Lists a tenant's members.
pub async fn list_members(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<MemberPage>, Error> {
    let store = &app.0.store;
    let found = store
        .list_members(&principal.tenant.id, query.page()?)
        .await?;
    Ok(Json(MemberPage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// What a member is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberRole {
    /// `viewer`, `operator`, `admin` or `owner`.
    role: String,
}

fn user_of(path: &(TenantId, String)) -> Result<UserId, Error> {
    path.1.parse().map_err(|_| Error::not_found())
}

fn told(app: &AppState, tenant: &TenantId, change: MemberChange) -> Result<Member, Error> {
    let conflict = |code, detail| Err(Error::new(StatusCode::CONFLICT, code, detail));
    match change {
        MemberChange::Done(member) => {
            let right = Right::Member(member.user.id.clone(), tenant.clone());
            app.0.live.end(right);
            Ok(member)
        }
        MemberChange::Unchanged(member) => Ok(member),
        MemberChange::NotFound => Err(Error::not_found()),
        MemberChange::LastOwner => conflict(
            "last_owner",
            "a tenant keeps at least one owner: make somebody else an owner first",
        ),
        MemberChange::Claimed => conflict(
            "managed_by_provider",
            "this place comes from the sign-in service (oidc.tenant_claim); change it there",
        ),
    }
}

/// Gives a member another role.
pub async fn set_member(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(path): Path<(TenantId, String)>,
    trail: Trail,
    JsonBody(body): JsonBody<MemberRole>,
) -> Result<Json<MemberInfo>, Error> {
    let (user, new): (UserId, Role) = (user_of(&path)?, role(&body.role)?);
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let entry = trail.with(
        "member.role_changed",
        &user,
        json!({ "role": new.as_str() }),
    );
    let store = app.0.store.audited(entry);
    let change = store.set_member_role(tenant, &user, new, now).await?;
    Ok(Json(told(&app, tenant, change)?.into()))
}

/// Whether a caller may take somebody out: owners anybody, everybody themselves.
fn may_remove(principal: &Principal, user: &UserId) -> bool {
    principal.tenant.role == Role::Owner
        || principal
            .person()
            .is_some_and(|person| person.user.id == *user)
}

/// Takes a member out.
pub async fn delete_member(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(path): Path<(TenantId, String)>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let user = user_of(&path)?;
    if !may_remove(&principal, &user) {
        return Err(Error::role_insufficient(Role::Owner));
    }
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let store = app.0.store.audited(trail.of("member.removed", &user));
    let change = store.delete_member(tenant, &user, now).await?;
    told(&app, tenant, change)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Describes [`list_members`].
pub fn list_doc() -> Doc {
    Doc::new("tenants", "List a tenant's members")
        .paged()
        .returns(200, "Part of the list", schema::<MemberPage>())
}

/// Describes [`set_member`].
pub fn set_doc() -> Doc {
    Doc::new("tenants", "Give a member another role")
        .takes(schema::<MemberRole>())
        .returns(200, "The member as it is now", schema::<MemberInfo>())
        .answer(409, "last_owner or managed_by_provider")
}

/// Describes [`delete_member`].
pub fn delete_doc() -> Doc {
    Doc::new(
        "tenants",
        "Take a member out (an owner), or leave (anybody): what rests on it ends",
    )
    .answer(204, "Removed")
    .answer(409, "last_owner or managed_by_provider")
}
