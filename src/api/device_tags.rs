//! A device's labels, and a new token for it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::devices::{DeviceInfo, describe};
use super::error::Error;
use super::extract::{Caller, JsonBody, Trail};
use super::openapi::{Doc, schema};
use crate::device_token::DeviceToken;
use crate::store::StoreError;
use crate::types::{DeviceId, Timestamp};

/// Labels of one device.
const MAX_TAGS: usize = 50;
/// Longest value of a label, in characters.
const MAX_VALUE: usize = 255;
/// How long the token before is good while the device does not use the new one.
const OLD_TOKEN_FOR: Duration = Duration::from_secs(600);

/// A label's value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagValue {
    /// At most 255 characters; empty when missing.
    #[serde(default)]
    value: String,
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (1..=63).contains(&key.len()) && key.bytes().all(allowed)
}

/// Sets a label.
pub async fn set_tag(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path((id, key)): Path<(String, String)>,
    trail: Trail,
    JsonBody(body): JsonBody<TagValue>,
) -> Result<Json<DeviceInfo>, Error> {
    if !is_key(&key) {
        let allowed = "1 to 63 letters, digits and . _ - /";
        return Err(Error::invalid_field("key", allowed));
    }
    let value = body.value.as_str();
    if value.chars().count() > MAX_VALUE || value.chars().any(char::is_control) {
        let allowed = "at most 255 characters, none of them a control character";
        return Err(Error::invalid_field("value", allowed));
    }
    let id: DeviceId = id.parse().map_err(|_| Error::not_found())?;
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let detail = serde_json::json!({ "key": key });
    let store = app
        .0
        .store
        .audited(trail.with("device.tag_set", &id, detail));
    let set = store.set_device_tag(tenant, &id, (&key, value), MAX_TAGS, now);
    let device = set.await.map_err(|error| match error {
        StoreError::Conflict(_) => Error::new(
            StatusCode::CONFLICT,
            "too_many_tags",
            format!("the device has {MAX_TAGS} tags: remove one first"),
        ),
        error => error.into(),
    })?;
    let device = device.ok_or_else(Error::not_found)?;
    let summary = app.current_summary(&device).await;
    Ok(Json(describe(device, summary.as_ref())))
}

/// Removes a label.
pub async fn delete_tag(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path((id, key)): Path<(String, String)>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id: DeviceId = id.parse().map_err(|_| Error::not_found())?;
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let detail = serde_json::json!({ "key": key });
    let store = app
        .0
        .store
        .audited(trail.with("device.tag_removed", &id, detail));
    match store.delete_device_tag(tenant, &id, &key, now).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

/// A further token; the only time that it is shown.
#[derive(Serialize, ToSchema)]
pub struct TokenRotated {
    #[schema(value_type = String)]
    device_id: DeviceId,
    /// The new token.
    token: String,
    /// Until when the token before is good, unless the device connects with the new one before.
    #[schema(value_type = String, format = DateTime)]
    previous_valid_until: Timestamp,
}

/// Gives a device a new token without cutting its session.
pub async fn rotate_token(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<Json<TokenRotated>, Error> {
    let id: DeviceId = id.parse().map_err(|_| Error::not_found())?;
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let token = DeviceToken::random();
    let store = app.0.store.audited(trail.of("device.token_rotated", &id));
    let rotated = store
        .rotate_device_token(tenant, &id, token.hash(), now.plus(OLD_TOKEN_FOR), now)
        .await?;
    Ok(Json(TokenRotated {
        previous_valid_until: rotated.ok_or_else(Error::not_found)?,
        token: token.expose().to_owned(),
        device_id: id,
    }))
}

/// Describes [`set_tag`].
pub fn set_doc() -> Doc {
    Doc::new("devices", "Set a tag")
        .takes(schema::<TagValue>())
        .returns(200, "The device as it is now", schema::<DeviceInfo>())
        .answer(409, "The device has 50 tags")
}

/// Describes [`delete_tag`].
pub fn delete_doc() -> Doc {
    Doc::new("devices", "Remove a tag").answer(204, "Removed")
}

/// Describes [`rotate_token`].
pub fn rotate_doc() -> Doc {
    Doc::new(
        "devices",
        "Make a new token for a device; the present one stays good until the new one is used, for 10 minutes at most",
    )
    .returns(200, "The token, shown this once", schema::<TokenRotated>())
}
