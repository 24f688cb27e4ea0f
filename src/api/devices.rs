//! Devices and their sessions.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, Query, Trail, name, page, present};
use super::openapi::{Doc, schema};
use crate::auth::live::Right;
use crate::session::{Handle, SessionError, Sessions, Summary};
use crate::store::{ConnectionFilter, Device, DeviceFilter};
use crate::types::{DeviceId, NodeId, TenantId, Timestamp};

/// A device's live tunnel.
#[derive(Serialize, ToSchema)]
pub struct SessionInfo {
    /// The process that holds the tunnel.
    #[schema(value_type = String)]
    node_id: NodeId,
    #[schema(value_type = String, format = DateTime)]
    connected_at: Timestamp,
    /// When the device last answered a heartbeat.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_heartbeat: Option<Timestamp>,
    /// Round-trip time that the last heartbeat measured, in milliseconds.
    rtt_ms: Option<f64>,
    remote_addr: String,
    agent_version: Option<String>,
}

impl From<&Summary> for SessionInfo {
    fn from(summary: &Summary) -> Self {
        Self {
            node_id: summary.node.clone(),
            connected_at: summary.connected_at,
            last_heartbeat: summary.last_heartbeat,
            rtt_ms: summary.rtt_ms,
            remote_addr: summary.remote_addr.clone(),
            agent_version: summary.agent_version.clone(),
        }
    }
}

/// A device's live tunnel, with what its node counts.
#[derive(Serialize, ToSchema)]
pub struct SessionDetail {
    #[serde(flatten)]
    session: SessionInfo,
    /// Streams that are open now.
    open_streams: usize,
    /// Bytes from the device since the tunnel was opened.
    bytes_in: u64,
    /// Bytes to the device since the tunnel was opened.
    bytes_out: u64,
}

impl From<&Summary> for SessionDetail {
    fn from(summary: &Summary) -> Self {
        Self {
            session: summary.into(),
            open_streams: summary.open_streams,
            bytes_in: summary.bytes_in,
            bytes_out: summary.bytes_out,
        }
    }
}

/// A device.
#[derive(Serialize, ToSchema)]
pub struct DeviceInfo {
    #[schema(value_type = String)]
    id: DeviceId,
    name: String,
    /// `online` or `offline`.
    status: &'static str,
    /// Why it is offline: `never_connected`, `disconnected` or `node_lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_seen: Option<Timestamp>,
    session: Option<SessionInfo>,
    tags: BTreeMap<String, String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// Describes a device with what is known of its session.
pub fn describe(device: Device, summary: Option<&Summary>) -> DeviceInfo {
    let reason = device.offline_reason();
    let last_heartbeat = summary.and_then(|summary| summary.last_heartbeat);
    DeviceInfo {
        status: if reason.is_none() {
            "online"
        } else {
            "offline"
        },
        reason,
        last_seen: device.last_seen.max(last_heartbeat),
        session: summary.filter(|_| reason.is_none()).map(Into::into),
        id: device.id,
        name: device.name,
        tags: device.tags,
        created_at: device.created_at,
    }
}

impl AppState {
    /// What the directory, or better this process, knows of a device's session.
    fn known_summary(&self, device: &Device) -> Option<Summary> {
        let row = device.live_session()?;
        Some(self.0.sessions.snapshot(&device.tenant, row))
    }

    /// What the node that holds a device's session knows of it now.
    pub async fn current_summary(&self, device: &Device) -> Option<Summary> {
        let row = device.live_session()?;
        let asked = self.0.sessions.ask(&device.tenant, row).await;
        let asked = asked.ok().flatten();
        asked.or_else(|| self.known_summary(device))
    }

    /// A tenant's device by the id in a path.
    pub async fn device(&self, tenant: &TenantId, id: &str) -> Result<Device, Error> {
        let id: DeviceId = id.parse().map_err(|_| Error::not_found())?;
        let found = self.0.store.find_device(tenant, &id).await?;
        found.ok_or_else(Error::not_found)
    }
}

/// Which devices.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
    status: Option<String>,
    tag: Option<String>,
    name: Option<String>,
}

/// Part of the list of devices.
#[derive(Serialize, ToSchema)]
pub struct DevicePage {
    items: Vec<DeviceInfo>,
    next_cursor: Option<String>,
}

/// Lists the tenant's devices.
pub async fn list_devices(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<DevicePage>, Error> {
    let page = page(query.limit.as_deref(), query.cursor)?;
    let status = match query.status.as_deref() {
        None => None,
        Some("online") => Some(ConnectionFilter::Online),
        Some("offline") => Some(ConnectionFilter::Offline),
        Some(_) => return Err(Error::invalid_field("status", "online or offline")),
    };
    let filter = DeviceFilter {
        name: query.name,
        status,
        tag: query.tag,
    };
    let found = app
        .0
        .store
        .list_devices(&principal.tenant.id, filter, page)
        .await?;
    let describe = |device: Device| {
        let summary = app.known_summary(&device);
        describe(device, summary.as_ref())
    };
    Ok(Json(DevicePage {
        items: found.items.into_iter().map(describe).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// Shows one device.
pub async fn get_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<DeviceInfo>, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let summary = app.current_summary(&device).await;
    Ok(Json(describe(device, summary.as_ref())))
}

/// What is to change (JSON Merge Patch, RFC 7396).
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DevicePatch {
    /// The new name: 1 to 100 characters.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    name: Option<Option<String>>,
}

/// Changes a device.
pub async fn update_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
    JsonBody(patch): JsonBody<DevicePatch>,
) -> Result<Json<DeviceInfo>, Error> {
    let mut device = app.device(&principal.tenant.id, &id).await?;
    if let Some(new) = patch.name {
        let new = name("name", &new.unwrap_or_default())?;
        let renamed = app
            .0
            .store
            .audited(trail.of("device.renamed", &device.id))
            .rename_device(&device.tenant, &device.id, &new, app.0.clock.now())
            .await?;
        device = renamed.ok_or_else(Error::not_found)?;
    }
    let summary = app.current_summary(&device).await;
    Ok(Json(describe(device, summary.as_ref())))
}

/// Removes a device: its token is void, its session and everything that is open to it are cut.
pub async fn delete_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let now = app.0.clock.now();
    if !app
        .0
        .store
        .audited(trail.of("device.removed", &device.id))
        .delete_device(&device.tenant, &device.id, now)
        .await?
    {
        return Err(Error::not_found());
    }
    tracing::info!(device = %device.id, by = principal.id(), "device removed");
    app.0.live.end(Right::Device(device.id.clone()));
    app.0.forwarder.forget(&device.id);
    Ok(StatusCode::NO_CONTENT)
}

/// Shows a device's session.
pub async fn get_session(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<SessionDetail>, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let Some(summary) = app.current_summary(&device).await else {
        let detail = "the device has no session: it is offline";
        return Err(Error::new(StatusCode::NOT_FOUND, "no_session", detail));
    };
    Ok(Json((&summary).into()))
}

/// Closes a device's session; its agent will connect again.
pub async fn close_session(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let found = app.0.sessions.find(&device.tenant, &device.id).await;
    let closed = match found {
        Ok(None) => Ok(()),
        Ok(Some(session)) => Handle::close(&*session).await,
        Err(error) => Err(error),
    };
    app.0.forwarder.forget(&device.id);
    let entry = trail.of("device.session_closed", &device.id);
    app.0.store.append_audit(entry).await?;
    match closed {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(SessionError::Directory(error)) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, device = %device.id, "a session could not be closed");
            let detail = "the process that holds the device's tunnel does not answer";
            Err(Error::new(StatusCode::BAD_GATEWAY, "node_lost", detail))
        }
    }
}

/// Describes [`list_devices`].
pub fn list_doc() -> Doc {
    Doc::new("devices", "List devices, oldest first")
        .paged()
        .query("status", "online or offline")
        .query("tag", "key or key=value")
        .query("name", "Part of the name, in any case")
        .returns(200, "Part of the list", schema::<DevicePage>())
}

/// Describes [`get_device`].
pub fn get_doc() -> Doc {
    Doc::new("devices", "One device").returns(200, "The device", schema::<DeviceInfo>())
}

/// Describes [`update_device`].
pub fn update_doc() -> Doc {
    Doc::new("devices", "Change a device (JSON Merge Patch)")
        .takes(schema::<DevicePatch>())
        .returns(200, "The device as it is now", schema::<DeviceInfo>())
}

/// Describes [`delete_device`].
pub fn delete_doc() -> Doc {
    Doc::new("devices", "Remove a device and cut its session").answer(204, "Removed")
}

/// Describes [`get_session`].
pub fn get_session_doc() -> Doc {
    Doc::new("devices", "A device's live session")
        .returns(200, "The session", schema::<SessionDetail>())
        .answer(404, "The device does not exist or is offline")
}

/// Describes [`close_session`].
pub fn close_session_doc() -> Doc {
    Doc::new(
        "devices",
        "Close a device's session; its agent connects again",
    )
    .answer(204, "Closed, or there was none")
    .answer(502, "The process that holds the session does not answer")
}
