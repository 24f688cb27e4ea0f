//! Programs that may call the API, by their OAuth client id at the provider.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, PageQuery, Query, Trail, name, present, role};
use super::openapi::{Doc, schema};
use crate::auth::live::Right;
use crate::store::{NewServiceClient, ServiceClient, StoreError};
use crate::types::{Role, ServiceClientId, Timestamp};

/// Programs of one tenant.
const MAX_CLIENTS: u32 = 100;
/// Longest client id, in bytes.
const MAX_CLIENT_ID: usize = 255;

/// A program.
#[derive(Serialize, ToSchema)]
pub struct ServiceClientInfo {
    #[schema(value_type = String)]
    id: ServiceClientId,
    /// The OAuth client id at the provider.
    client_id: String,
    name: String,
    /// `viewer`, `operator`, `admin` or `owner`.
    role: &'static str,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<ServiceClient> for ServiceClientInfo {
    fn from(client: ServiceClient) -> Self {
        Self {
            id: client.id,
            client_id: client.client_id,
            name: client.name,
            role: client.role.as_str(),
            created_at: client.created_at,
        }
    }
}

/// Part of a tenant's programs.
#[derive(Serialize, ToSchema)]
pub struct ServiceClientPage {
    items: Vec<ServiceClientInfo>,
    next_cursor: Option<String>,
}

/// Lists the tenant's programs.
pub async fn list_service_clients(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<ServiceClientPage>, Error> {
    let store = &app.0.store;
    let found = store
        .list_service_clients(&principal.tenant.id, query.page()?)
        .await?;
    Ok(Json(ServiceClientPage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// A program to be registered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceClientRequest {
    /// The OAuth client id at the provider: 1 to 255 printable ASCII characters.
    client_id: String,
    /// The name; the client id when missing.
    name: Option<String>,
    /// `viewer`, `operator`, `admin` or `owner`; not more than the caller.
    role: String,
}

/// Registers a program.
pub async fn create_service_client(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
    JsonBody(body): JsonBody<ServiceClientRequest>,
) -> Result<(StatusCode, Json<ServiceClientInfo>), Error> {
    let client_id = body.client_id;
    let valid = (1..=MAX_CLIENT_ID).contains(&client_id.len())
        && client_id.bytes().all(|byte| byte.is_ascii_graphic());
    if !valid {
        let allowed = "1 to 255 printable ASCII characters without spaces";
        return Err(Error::invalid_field("client_id", allowed));
    }
    let name = match body.name {
        Some(text) => name("name", &text)?,
        None => client_id.chars().take(100).collect(),
    };
    let role: Role = role(&body.role)?;
    if role > principal.tenant.role {
        return Err(Error::role_insufficient(role));
    }
    let new = NewServiceClient {
        id: ServiceClientId::random(),
        client_id,
        name,
        role,
    };
    let detail = json!({ "client_id": new.client_id, "role": role.as_str() });
    let entry = trail.with("service_client.created", &new.id, detail);
    let store = app.0.store.audited(entry);
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let created = store.create_service_client(tenant, new, MAX_CLIENTS, now);
    let created = created.await.map_err(|error| match error {
        StoreError::Conflict("too many service clients") => Error::new(
            StatusCode::CONFLICT,
            "too_many_service_clients",
            format!("the tenant has {MAX_CLIENTS} service clients: remove one first"),
        ),
        StoreError::Conflict(_) => Error::new(
            StatusCode::CONFLICT,
            "client_id_taken",
            "this client id is registered already",
        ),
        error => error.into(),
    })?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

fn parse_id(text: &str) -> Result<ServiceClientId, Error> {
    text.parse().map_err(|_| Error::not_found())
}

/// Shows a program.
pub async fn get_service_client(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<ServiceClientInfo>, Error> {
    let store = &app.0.store;
    let found = store
        .find_service_client(&principal.tenant.id, &parse_id(&id)?)
        .await?;
    let client = found.ok_or_else(Error::not_found)?;
    Ok(Json(client.into()))
}

/// What is to change (JSON Merge Patch, RFC 7396).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceClientPatch {
    /// The new name: 1 to 100 characters.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    name: Option<Option<String>>,
    /// `viewer`, `operator`, `admin` or `owner`; not more than the caller.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    role: Option<Option<String>>,
}

/// Changes a program's name or role.
pub async fn update_service_client(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
    JsonBody(patch): JsonBody<ServiceClientPatch>,
) -> Result<Json<ServiceClientInfo>, Error> {
    let id = parse_id(&id)?;
    let name = patch
        .name
        .map(|text| name("name", &text.unwrap_or_default()))
        .transpose()?;
    let new_role: Option<Role> = patch
        .role
        .map(|text| role(&text.unwrap_or_default()))
        .transpose()?;
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let found = app.0.store.find_service_client(tenant, &id).await?;
    let present_role = found.ok_or_else(Error::not_found)?.role;
    let highest = present_role.max(new_role.unwrap_or(present_role));
    if highest > principal.tenant.role {
        return Err(Error::role_insufficient(highest));
    }
    let detail = json!({ "name": name, "role": new_role.map(Role::as_str) });
    let store = app
        .0
        .store
        .audited(trail.with("service_client.changed", &id, detail));
    let changed = store
        .update_service_client(tenant, &id, (name, new_role), now)
        .await?;
    let changed = changed.ok_or_else(Error::not_found)?;
    if changed.role != present_role {
        app.0.live.end(Right::ServiceClient(id));
    }
    Ok(Json(changed.into()))
}

/// Ends a program's registration and everything that it has open.
pub async fn delete_service_client(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id = parse_id(&id)?;
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let store = app.0.store.audited(trail.of("service_client.removed", &id));
    if !store.delete_service_client(tenant, &id, now).await? {
        return Err(Error::not_found());
    }
    app.0.live.end(Right::ServiceClient(id));
    Ok(StatusCode::NO_CONTENT)
}

/// Describes [`list_service_clients`].
pub fn list_doc() -> Doc {
    Doc::new("service clients", "List service clients, oldest first")
        .paged()
        .returns(200, "Part of the list", schema::<ServiceClientPage>())
}

/// Describes [`create_service_client`].
pub fn create_doc() -> Doc {
    Doc::new(
        "service clients",
        "Let a program call the API with access tokens of the provider",
    )
    .takes(schema::<ServiceClientRequest>())
    .returns(201, "The service client", schema::<ServiceClientInfo>())
    .answer(409, "The client id is registered, or the tenant has 100")
}

/// Describes [`get_service_client`].
pub fn get_doc() -> Doc {
    Doc::new("service clients", "One service client").returns(
        200,
        "The service client",
        schema::<ServiceClientInfo>(),
    )
}

/// Describes [`update_service_client`].
pub fn update_doc() -> Doc {
    Doc::new(
        "service clients",
        "Change a service client (JSON Merge Patch)",
    )
    .takes(schema::<ServiceClientPatch>())
    .returns(200, "As it is now", schema::<ServiceClientInfo>())
}

/// Describes [`delete_service_client`].
pub fn delete_doc() -> Doc {
    Doc::new(
        "service clients",
        "Remove a service client and cut what it has open",
    )
    .answer(204, "Removed")
}
