//! Named sets of devices.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, PageQuery, Query, Trail, name, present};
use super::openapi::{Doc, schema};
use crate::store::{Group, StoreError};
use crate::types::{DeviceId, GroupId, Timestamp};

/// Groups of one tenant.
const MAX_GROUPS: u32 = 1_000;

/// A group.
#[derive(Serialize, ToSchema)]
pub struct GroupInfo {
    #[schema(value_type = String)]
    id: GroupId,
    name: String,
    /// Its devices; the first 1,000.
    #[schema(value_type = Vec<String>)]
    devices: Vec<DeviceId>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Group> for GroupInfo {
    fn from(group: Group) -> Self {
        Self {
            id: group.id,
            name: group.name,
            devices: group.devices,
            created_at: group.created_at,
        }
    }
}

/// Part of a tenant's groups.
#[derive(Serialize, ToSchema)]
pub struct GroupPage {
    items: Vec<GroupInfo>,
    next_cursor: Option<String>,
}

/// Lists the tenant's groups.
pub async fn list_groups(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<GroupPage>, Error> {
    let store = &app.0.store;
    let found = store
        .list_groups(&principal.tenant.id, query.page()?)
        .await?;
    Ok(Json(GroupPage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// A group to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// The name: 1 to 100 characters, unique in the tenant.
    name: Option<String>,
}

fn refused(error: StoreError) -> Error {
    match error {
        StoreError::Conflict("too many groups") => Error::new(
            StatusCode::CONFLICT,
            "too_many_groups",
            format!("the tenant has {MAX_GROUPS} groups: remove one first"),
        ),
        StoreError::Conflict(_) => Error::new(
            StatusCode::CONFLICT,
            "name_taken",
            "the tenant has a group of this name",
        ),
        error => error.into(),
    }
}

/// Makes a group.
pub async fn create_group(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
    JsonBody(body): JsonBody<NewGroup>,
) -> Result<(StatusCode, Json<GroupInfo>), Error> {
    let new = name("name", &body.name.unwrap_or_default())?;
    let (id, now) = (GroupId::random(), app.0.clock.now());
    let store = app.0.store.audited(trail.of("group.created", &id));
    let tenant = &principal.tenant.id;
    let created = store.create_group(tenant, (&id, &new), MAX_GROUPS, now);
    let created = created.await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(created.into())))
}

fn parse_id(text: &str) -> Result<GroupId, Error> {
    text.parse().map_err(|_| Error::not_found())
}

/// Shows a group.
pub async fn get_group(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<GroupInfo>, Error> {
    let store = &app.0.store;
    let found = store
        .find_group(&principal.tenant.id, &parse_id(&id)?)
        .await?;
    let group = found.ok_or_else(Error::not_found)?;
    Ok(Json(group.into()))
}

/// What is to change (JSON Merge Patch, RFC 7396).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupPatch {
    /// The new name: 1 to 100 characters, unique in the tenant.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    name: Option<Option<String>>,
}

/// Changes a group.
pub async fn update_group(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
    JsonBody(patch): JsonBody<GroupPatch>,
) -> Result<Json<GroupInfo>, Error> {
    let (tenant, id) = (&principal.tenant.id, parse_id(&id)?);
    let found = match patch.name {
        None => app.0.store.find_group(tenant, &id).await?,
        Some(new) => {
            let new = name("name", &new.unwrap_or_default())?;
            let store = app.0.store.audited(trail.of("group.renamed", &id));
            let renamed = store.rename_group(tenant, &id, &new).await;
            renamed.map_err(refused)?
        }
    };
    let group = found.ok_or_else(Error::not_found)?;
    Ok(Json(group.into()))
}

/// Removes a group, not its devices.
pub async fn delete_group(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id = parse_id(&id)?;
    let store = app.0.store.audited(trail.of("group.removed", &id));
    match store.delete_group(&principal.tenant.id, &id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

fn parse_both((group, device): &(String, String)) -> Result<(GroupId, DeviceId), Error> {
    let device = device.parse().map_err(|_| Error::not_found())?;
    Ok((parse_id(group)?, device))
}

/// Puts a device into a group.
pub async fn add_group_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(path): Path<(String, String)>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let (group, device) = parse_both(&path)?;
    let detail = serde_json::json!({ "device": device });
    let store = app
        .0
        .store
        .audited(trail.with("group.device_added", &group, detail));
    let tenant = &principal.tenant.id;
    match store.add_group_device(tenant, &group, &device).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

/// Takes a device out of a group.
pub async fn delete_group_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(path): Path<(String, String)>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let (group, device) = parse_both(&path)?;
    let detail = serde_json::json!({ "device": device });
    let store = app
        .0
        .store
        .audited(trail.with("group.device_removed", &group, detail));
    let tenant = &principal.tenant.id;
    match store.delete_group_device(tenant, &group, &device).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

/// Describes [`list_groups`].
pub fn list_doc() -> Doc {
    Doc::new("groups", "List groups, oldest first")
        .paged()
        .returns(200, "Part of the list", schema::<GroupPage>())
}

/// Describes [`create_group`].
pub fn create_doc() -> Doc {
    Doc::new("groups", "Make a group")
        .takes(schema::<NewGroup>())
        .returns(201, "The group", schema::<GroupInfo>())
        .answer(409, "name_taken or too_many_groups")
}

/// Describes [`get_group`].
pub fn get_doc() -> Doc {
    Doc::new("groups", "One group and its devices").returns(200, "The group", schema::<GroupInfo>())
}

/// Describes [`update_group`].
pub fn update_doc() -> Doc {
    Doc::new("groups", "Change a group (JSON Merge Patch)")
        .takes(schema::<GroupPatch>())
        .returns(200, "The group as it is now", schema::<GroupInfo>())
        .answer(409, "name_taken")
}

/// Describes [`delete_group`].
pub fn delete_doc() -> Doc {
    Doc::new("groups", "Remove a group, not its devices").answer(204, "Removed")
}

/// Describes [`add_group_device`].
pub fn add_device_doc() -> Doc {
    Doc::new("groups", "Put a device into a group").answer(204, "It is in the group")
}

/// Describes [`delete_group_device`].
pub fn delete_device_doc() -> Doc {
    Doc::new("groups", "Take a device out of a group").answer(204, "It is out")
}
