//! Tenants: what owns devices.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, Signed, Trail, name, present};
use super::openapi::{Doc, schema};
use crate::auth::live::Right;
use crate::store::{StoreError, Tenant};
use crate::types::{TenantId, Timestamp};

/// Tenants that one person may own.
const MAX_OWNED: u32 = 20;

/// A tenant and the caller's role in it.
#[derive(Serialize, ToSchema)]
pub struct TenantInfo {
    #[schema(value_type = String)]
    id: TenantId,
    name: String,
    /// `viewer`, `operator`, `admin` or `owner`.
    role: &'static str,
    /// Whether the provider's claim rules who is in it.
    managed_by_provider: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

fn describe(tenant: Tenant, role: &'static str) -> TenantInfo {
    TenantInfo {
        id: tenant.id,
        name: tenant.name,
        role,
        managed_by_provider: tenant.claimed,
        created_at: tenant.created_at,
    }
}

/// All tenants of the caller.
#[derive(Serialize, ToSchema)]
pub struct TenantList {
    items: Vec<TenantInfo>,
    next_cursor: Option<String>,
}

/// Lists the caller's tenants.
pub async fn list_tenants(
    State(app): State<AppState>,
    Caller(principal): Caller,
) -> Result<Json<TenantList>, Error> {
    let mut items = Vec::new();
    for membership in principal.memberships.iter() {
        // One that was removed a moment ago is left out.
        if let Some(tenant) = app.0.store.find_tenant(&membership.id).await? {
            items.push(describe(tenant, membership.role.as_str()));
        }
    }
    Ok(Json(TenantList {
        items,
        next_cursor: None,
    }))
}

/// A tenant to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// The name: 1 to 100 characters.
    name: Option<String>,
}

/// Makes a tenant that the caller owns.
pub async fn create_tenant(
    State(app): State<AppState>,
    Signed(person): Signed,
    trail: Trail,
    JsonBody(body): JsonBody<NewTenant>,
) -> Result<(StatusCode, Json<TenantInfo>), Error> {
    let new = name("name", &body.name.unwrap_or_default())?;
    if app
        .0
        .config
        .oidc
        .as_ref()
        .is_some_and(|oidc| oidc.tenant_claim.is_some())
    {
        let detail = "tenants come from the sign-in service here (oidc.tenant_claim)";
        return Err(Error::new(
            StatusCode::CONFLICT,
            "managed_by_provider",
            detail,
        ));
    }
    let (id, now) = (TenantId::random(), app.0.clock.now());
    let mut entry = trail.of("tenant.created", &id);
    entry.tenant = Some(id.clone());
    let created = app
        .0
        .store
        .audited(entry)
        .create_tenant(&id, &new, &person.user.id, MAX_OWNED, now)
        .await
        .map_err(|error| match error {
            StoreError::Conflict(_) => Error::new(
                StatusCode::CONFLICT,
                "too_many_tenants",
                format!("you own {MAX_OWNED} tenants: remove one first"),
            ),
            error => error.into(),
        })?;
    Ok((StatusCode::CREATED, Json(describe(created, "owner"))))
}

/// Shows a tenant.
pub async fn get_tenant(
    State(app): State<AppState>,
    Caller(principal): Caller,
) -> Result<Json<TenantInfo>, Error> {
    let found = app.0.store.find_tenant(&principal.tenant.id).await?;
    let tenant = found.ok_or_else(Error::not_found)?;
    Ok(Json(describe(tenant, principal.tenant.role.as_str())))
}

/// What is to change (JSON Merge Patch, RFC 7396).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantPatch {
    /// The new name: 1 to 100 characters.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    name: Option<Option<String>>,
}

/// Changes a tenant.
pub async fn update_tenant(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
    JsonBody(patch): JsonBody<TenantPatch>,
) -> Result<Json<TenantInfo>, Error> {
    let id = &principal.tenant.id;
    let found = match patch.name {
        None => app.0.store.find_tenant(id).await?,
        Some(new) => {
            let new = name("name", &new.unwrap_or_default())?;
            let entry = trail.with("tenant.renamed", id, json!({ "name": new }));
            app.0.store.audited(entry).rename_tenant(id, &new).await?
        }
    };
    let tenant = found.ok_or_else(Error::not_found)?;
    Ok(Json(describe(tenant, principal.tenant.role.as_str())))
}

/// Removes a tenant with its devices, codes, programs and invitations.
pub async fn delete_tenant(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id = &principal.tenant.id;
    let store = app.0.store.audited(trail.of("tenant.removed", id));
    let removed = store.delete_tenant(id, app.0.clock.now()).await?;
    let removed = removed.ok_or_else(Error::not_found)?;
    // Before the tunnels are cut: whoever uses one is told why it ends.
    for user in removed.members {
        app.0.live.end(Right::Member(user, id.clone()));
    }
    for client in removed.service_clients {
        app.0.live.end(Right::ServiceClient(client));
    }
    for device in removed.devices {
        app.0.forwarder.forget(&device);
        app.0.live.end(Right::Device(device));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Describes [`list_tenants`].
pub fn list_doc() -> Doc {
    Doc::new("tenants", "List your tenants").returns(200, "All of them", schema::<TenantList>())
}

/// Describes [`create_tenant`].
pub fn create_doc() -> Doc {
    Doc::new("tenants", "Make a tenant that you own")
        .takes(schema::<NewTenant>())
        .returns(201, "The tenant", schema::<TenantInfo>())
        .answer(409, "You own 20 tenants, or tenants come from the provider")
}

/// Describes [`get_tenant`].
pub fn get_doc() -> Doc {
    Doc::new("tenants", "One of your tenants").returns(200, "The tenant", schema::<TenantInfo>())
}

/// Describes [`update_tenant`].
pub fn update_doc() -> Doc {
    Doc::new("tenants", "Change a tenant (JSON Merge Patch)")
        .takes(schema::<TenantPatch>())
        .returns(200, "The tenant as it is now", schema::<TenantInfo>())
}

/// Describes [`delete_tenant`].
pub fn delete_doc() -> Doc {
    Doc::new("tenants", "Remove a tenant with everything in it").answer(204, "Removed")
}
