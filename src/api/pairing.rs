//! Pairing codes and their exchange for a device and its token.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, PageQuery, Query, Trail, name};
use super::openapi::{Doc, schema};
use crate::auth::pairing_code::Code;
use crate::device_token::DeviceToken;
use crate::fail_point;
use crate::net::Client;
use crate::store::{CodeStatus, Exchange, NewDevice, NewPairingCode, PairingCode, StoreError};
use crate::types::{DeviceId, PairingCodeId, Timestamp};

/// Open codes of one tenant at once.
const MAX_OPEN_CODES: u32 = 20;
/// How long a code is valid when the request does not say, in seconds.
const DEFAULT_TTL_SECS: u64 = 600;
const TTL_SECS: std::ops::RangeInclusive<u64> = 60..=86_400;
/// Longest fact that a device tells about itself, in characters.
const MAX_FACT: usize = 255;

/// A code to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCode {
    /// The name for the device.
    name: Option<String>,
    /// How long the code is valid, in seconds: 60 to 86,400, else 600.
    ttl_secs: Option<u64>,
}

/// A code that was made; the only time that it is shown.
#[derive(Serialize, ToSchema)]
pub struct CodeCreated {
    #[schema(value_type = String)]
    id: PairingCodeId,
    /// The code.
    code: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Makes a code.
pub async fn create_code(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
    JsonBody(body): JsonBody<NewCode>,
) -> Result<(StatusCode, Json<CodeCreated>), Error> {
    let device_name = body.name.map(|text| name("name", &text)).transpose()?;
    let ttl = body.ttl_secs.unwrap_or(DEFAULT_TTL_SECS);
    if !TTL_SECS.contains(&ttl) {
        return Err(Error::invalid_field(
            "ttl_secs",
            "a whole number from 60 to 86400",
        ));
    }
    let now = app.0.clock.now();
    let code = Code::random();
    let signature = code.sign(app.0.auth.cookies.keys());
    let new = NewPairingCode {
        id: PairingCodeId::random(),
        mac: signature.mac,
        key_id: signature.key_id,
        name: device_name,
        created_by: principal.id().to_owned(),
        expires_at: now.plus(Duration::from_secs(ttl)),
    };
    let created = app
        .0
        .store
        .audited(trail.of("pairing_code.created", &new.id))
        .create_pairing_code(&principal.tenant.id, new, MAX_OPEN_CODES, now)
        .await
        .map_err(|error| match error {
            StoreError::Conflict(_) => Error::new(
                StatusCode::CONFLICT,
                "too_many_codes",
                "the tenant has 20 open codes: use or revoke one first",
            ),
            error => error.into(),
        })?;
    let body = CodeCreated {
        id: created.id,
        code: code.shown(),
        expires_at: created.expires_at,
    };
    Ok((StatusCode::CREATED, Json(body)))
}

/// What paired with a code.
#[derive(Serialize, ToSchema)]
pub struct CodeDevice {
    #[schema(value_type = String)]
    id: DeviceId,
    name: String,
    hostname: Option<String>,
    os: Option<String>,
    arch: Option<String>,
    /// Where it paired from.
    remote_addr: String,
}

/// A code, without the code.
#[derive(Serialize, ToSchema)]
pub struct CodeInfo {
    #[schema(value_type = String)]
    id: PairingCodeId,
    /// The name for the device.
    name: Option<String>,
    /// `open`, `used`, `expired` or `revoked`.
    #[schema(value_type = String)]
    status: CodeStatus,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    used_at: Option<Timestamp>,
    /// A person or a service client.
    created_by: String,
    /// What paired, unless it was removed since.
    device: Option<CodeDevice>,
}

impl From<PairingCode> for CodeInfo {
    fn from(code: PairingCode) -> Self {
        Self {
            id: code.id,
            name: code.name,
            status: code.status,
            created_at: code.created_at,
            expires_at: code.expires_at,
            used_at: code.used_at,
            created_by: code.created_by,
            device: code.device.map(|device| CodeDevice {
                id: device.id,
                name: device.name,
                hostname: device.hostname,
                os: device.os,
                arch: device.arch,
                remote_addr: device.remote_addr,
            }),
        }
    }
}

/// Part of the list of codes.
#[derive(Serialize, ToSchema)]
pub struct CodePage {
    items: Vec<CodeInfo>,
    next_cursor: Option<String>,
}

/// Lists the tenant's codes.
pub async fn list_codes(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<CodePage>, Error> {
    let page = query.page()?;
    let now = app.0.clock.now();
    let found = app
        .0
        .store
        .list_pairing_codes(&principal.tenant.id, page, now)
        .await?;
    Ok(Json(CodePage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

fn code_id(text: &str) -> Result<PairingCodeId, Error> {
    text.parse().map_err(|_| Error::not_found())
}

/// Shows one code, and what paired with it.
pub async fn get_code(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<CodeInfo>, Error> {
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let found = app
        .0
        .store
        .find_pairing_code(tenant, &code_id(&id)?, now)
        .await?;
    found
        .map(|code| Json(code.into()))
        .ok_or_else(Error::not_found)
}

/// Takes a code back.
pub async fn delete_code(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    match app
        .0
        .store
        .audited(trail.of("pairing_code.revoked", &id))
        .revoke_pairing_code(tenant, &code_id(&id)?, now)
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

/// What a device tells about itself.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// The name for the list, in the place of the code's.
    name: Option<String>,
    /// Its own host name.
    hostname: Option<String>,
    /// Its operating system.
    os: Option<String>,
    /// Its processor architecture.
    arch: Option<String>,
    /// What it runs.
    agent_version: Option<String>,
}

/// A code to be exchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeExchange {
    /// The code; case, dashes and spaces do not matter.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "super::extract::secret")]
    code: SecretString,
    /// What the device tells about itself.
    #[serde(default)]
    device: DeviceFacts,
}

/// A device's identity; the only time that the token is shown.
#[derive(Serialize, ToSchema)]
pub struct CodeExchanged {
    #[schema(value_type = String)]
    device_id: DeviceId,
    /// The device's token.
    token: String,
    /// Where the device connects to.
    tunnel_url: String,
}

/// Exchanges a code for a device and its token.
pub async fn exchange_code(
    State(app): State<AppState>,
    Extension(client): Extension<Client>,
    trail: Trail,
    JsonBody(body): JsonBody<CodeExchange>,
) -> Result<Response, Error> {
    let app = &app.0;
    let device = new_device(body.device, &client)?;
    // Before the code is used: a device that learns no address could not use its token.
    let Some(tunnel_url) = app.store.tunnel_url().await? else {
        let detail = "no proxy is running that a device could connect to; the code is still good";
        return Err(
            Error::new(StatusCode::SERVICE_UNAVAILABLE, "no_tunnel", detail)
                .header(http::header::RETRY_AFTER, "5"),
        );
    };
    let attempt = app.pairing_failures.attempt(client.addr);
    let attempt = attempt.map_err(Error::rate_limited)?;
    let code = Code::parse(body.code.expose_secret());
    let token = DeviceToken::random();
    let exchange = Exchange {
        macs: Code::macs(code.as_ref(), app.auth.cookies.keys()),
        device,
        token_hash: token.hash(),
    };
    let exchanged = app
        .store
        .exchange_pairing_code(exchange, app.clock.now())
        .await;
    if !matches!(exchanged, Ok(None)) {
        attempt.succeeded();
    }
    let Some(paired) = exchanged? else {
        let refused = trail.failed("pairing_code.refused");
        app.store.append_audit(refused).await?;
        let detail = "the code is wrong, used, expired or revoked: ask for a new one";
        return Err(Error::new(
            StatusCode::NOT_FOUND,
            "pairing_code_invalid",
            detail,
        ));
    };
    fail_point::reach("exchange.after_commit");
    tracing::info!(device = %paired.device, tenant = %paired.tenant, code = %paired.code, from = %client.addr, "paired");
    let exchanged = CodeExchanged {
        device_id: paired.device,
        token: token.expose().to_owned(),
        tunnel_url,
    };
    Ok(Json(exchanged).into_response())
}

fn new_device(facts: DeviceFacts, client: &Client) -> Result<NewDevice, Error> {
    let fact = |field: &str, text: Option<String>| {
        let text = text
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty());
        let valid = text.as_deref().is_none_or(|text| {
            text.chars().count() <= MAX_FACT && !text.chars().any(char::is_control)
        });
        let allowed = "at most 255 characters, none of them a control character";
        valid
            .then_some(text)
            .ok_or_else(|| Error::invalid_field(field, allowed))
    };
    Ok(NewDevice {
        id: DeviceId::random(),
        name: facts
            .name
            .map(|text| name("device.name", &text))
            .transpose()?,
        hostname: fact("device.hostname", facts.hostname)?,
        os: fact("device.os", facts.os)?,
        arch: fact("device.arch", facts.arch)?,
        agent_version: fact("device.agent_version", facts.agent_version)?,
        remote_addr: client.addr.to_string(),
    })
}

/// Describes [`list_codes`].
pub fn list_doc() -> Doc {
    Doc::new("pairing", "List pairing codes, oldest first")
        .paged()
        .returns(200, "Part of the list", schema::<CodePage>())
}

/// Describes [`create_code`].
pub fn create_doc() -> Doc {
    Doc::new("pairing", "Make a pairing code")
        .takes(schema::<NewCode>())
        .returns(201, "The code, shown this once", schema::<CodeCreated>())
        .answer(409, "The tenant has 20 open codes")
}

/// Describes [`get_code`].
pub fn get_doc() -> Doc {
    Doc::new("pairing", "What became of a pairing code").returns(
        200,
        "The code's state",
        schema::<CodeInfo>(),
    )
}

/// Describes [`delete_code`].
pub fn delete_doc() -> Doc {
    Doc::new("pairing", "Revoke a pairing code").answer(204, "Revoked")
}

/// Describes [`exchange_code`].
pub fn exchange_doc() -> Doc {
    Doc::new("pairing", "Exchange a pairing code for a device's identity")
        .takes(schema::<CodeExchange>())
        .returns(
            200,
            "The device's identity, shown this once",
            schema::<CodeExchanged>(),
        )
        .answer(
            404,
            "The code is malformed, unknown, used, expired or revoked",
        )
        .answer(429, "Too many wrong codes")
        .answer(503, "No proxy is running; the code is still good")
}
