//! The way to a device by a path on the cloud's host, and the one-time link to the device's own host.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderName, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::form_urlencoded;
use utoipa::ToSchema;

use super::AppState;
use super::device_hosts::OPEN_PATH;
use super::error::Error;
use super::extract::{Caller, JsonBody, Signed, Trail};
use super::gate::Gate;
use super::openapi::{Doc, schema};
use super::service::FromDevice;
use crate::auth::return_to::sanitize_return_to;
use crate::device_token::sha256;
use crate::forward::{self, Door, ForwardError};
use crate::net::Client;
use crate::store::StoreError;
use crate::types::{DeviceId, RequestId, TenantId, Timestamp, random_bytes};

/// How long a one-time link is valid.
const TICKET_FOR: Duration = Duration::from_secs(60);

/// Sent by a browser that fetches a service worker's script.
static SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");
/// The row of the route table under which requests are forwarded.
pub const ROUTE: &str = "/api/devices/{id}/http/{*path}";

/// What the router finds under [`ROUTE`] though [`Way::of`] does not: no device's id.
pub async fn no_way() -> Error {
    Error::not_found()
}

/// Forwards a request under `/api/devices/{id}/http` to the device, when the caller may.
pub async fn answer(gate: &Gate, way: Way, request: Request) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let principal = match gate.admit(&parts, Some(ROUTE)).await {
        Ok(Some(principal)) => principal,
        // The table has no public row that forwards.
        Ok(None) => return Error::unauthenticated().into_response(),
        Err(refusal) => return *refusal,
    };
    let app = &gate.app;
    let (Some(client), Some(request_id)) = (
        parts.extensions.get::<Client>().cloned(),
        parts.extensions.get::<RequestId>().cloned(),
    ) else {
        return Error::internal().into_response();
    };
    if parts.headers.contains_key(&SERVICE_WORKER) {
        let detail = "a device has no service workers on the cloud's host; open its own";
        return Error::new(StatusCode::FORBIDDEN, "service_worker", detail).into_response();
    }
    let public_url = &app.0.public_url;
    let caller = forward::Caller {
        device: way.device,
        user: principal.id().to_owned(),
        rights: principal.rights(),
        checked: arrived,
        tenant: principal.tenant.id,
        request_id,
        client,
        door: Door {
            scheme: public_url.scheme,
            authority: public_url.authority().clone(),
            prefix: way.prefix,
        },
        auth_time: arrived.elapsed(),
    };
    let request = Request::from_parts(parts, body);
    send(app, caller, &way.target, request).await
}

/// Where a path under `/api/devices/{id}/http` leads.
pub struct Way {
    device: DeviceId,
    /// The path before the device's own.
    prefix: String,
    /// The device's own path and query, byte by byte.
    target: String,
}

impl Way {
    /// The way that a request's target is, if it is one.
    pub fn of(uri: &Uri) -> Option<Self> {
        const BEFORE: &str = "/api/devices/";
        let whole = uri.path_and_query()?.as_str();
        let (id, rest) = whole.strip_prefix(BEFORE)?.split_once('/')?;
        let target = rest.strip_prefix("http")?;
        let device: DeviceId = id.parse().ok()?;
        let prefix = whole[..whole.len() - target.len()].to_owned();
        let target = match target.as_bytes().first() {
            Some(b'/') => target.to_owned(),
            Some(b'?') | None => format!("/{target}"),
            Some(_) => return None,
        };
        Some(Self {
            device,
            prefix,
            target,
        })
    }
}

/// Forwards a checked request and turns failures into problems.
pub async fn send(
    app: &AppState,
    caller: forward::Caller,
    target: &str,
    request: Request,
) -> Response {
    let (tenant, device) = (caller.tenant.clone(), caller.device.clone());
    let started = Instant::now();
    match app.0.forwarder.forward(caller, target, request).await {
        Ok(mut response) => {
            response.extensions_mut().insert(FromDevice);
            response
        }
        Err(error) => {
            tracing::debug!(%error, %device, waited = ?started.elapsed(), "not forwarded");
            explain(app, &tenant, &device, error).await.into_response()
        }
    }
}

/// Adds why a device cannot be reached; one that does not exist is 404.
pub async fn explain(
    app: &AppState,
    tenant: &TenantId,
    device: &DeviceId,
    error: ForwardError,
) -> Error {
    let node_lost = matches!(error, ForwardError::NodeLost);
    if !matches!(error, ForwardError::Offline | ForwardError::NodeLost) {
        return error.into();
    }
    match app.0.store.find_device(tenant, device).await {
        Ok(Some(device)) => {
            let reason = match device.offline_reason() {
                Some(reason) => reason,
                // Its session has ended here, but not yet in the directory.
                None if node_lost => "node_lost",
                None => "disconnected",
            };
            let last_seen = device.last_seen.map(|time| time.to_string());
            Error::from(error)
                .with("reason", reason)
                .with("last_seen", last_seen)
        }
        Ok(None) => Error::not_found(),
        Err(error) => error.into(),
    }
}

/// Where on the device's host to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// A path on the device's host; `/` when missing.
    path: Option<String>,
}

/// A link that works once.
#[derive(Serialize, ToSchema)]
pub struct OpenLink {
    /// The link: opens the device's own host and signs this browser in there.
    url: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Makes a one-time link to the device's own host.
pub async fn open_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Signed(person): Signed,
    Path(id): Path<String>,
    trail: Trail,
    JsonBody(body): JsonBody<OpenRequest>,
) -> Result<(StatusCode, Json<OpenLink>), Error> {
    let device: DeviceId = id.parse().map_err(|_| Error::not_found())?;
    let path = body.path.unwrap_or_else(|| "/".to_owned());
    if sanitize_return_to(&path) != path {
        let allowed = "a path of at most 1 KiB that begins with a single /";
        return Err(Error::invalid_field("path", allowed));
    }
    let Some(domain) = &app.0.config.server.device_domain else {
        let detail = "set server.device_domain (another registrable domain than server.public_url's), \
                      with a wildcard DNS record and certificate for it";
        return Err(Error::new(
            StatusCode::CONFLICT,
            "device_domain_missing",
            detail,
        ));
    };
    let ticket = random_bytes::<32>();
    let expires_at = app.0.clock.now().plus(TICKET_FOR);
    app.0
        .store
        .audited(trail.of("device.open_link_created", &device))
        .create_ticket(
            sha256(&ticket),
            &principal.tenant.id,
            &device,
            &person.login,
            expires_at,
        )
        .await
        .map_err(|error| match error {
            StoreError::Conflict(_) => Error::not_found(),
            error => error.into(),
        })?;
    let public_url = &app.0.public_url;
    let host = public_url.authority_of(&format!("{}.{domain}", device.host_label()));
    let path: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
    let url = format!(
        "{}://{host}{OPEN_PATH}?ticket={}&path={path}",
        public_url.scheme,
        BASE64URL_NOPAD.encode(&ticket)
    );
    Ok((StatusCode::CREATED, Json(OpenLink { url, expires_at })))
}

/// Describes [`answer`].
pub fn forward_doc() -> Doc {
    Doc::new(
        "forwarding",
        "Forward a request to the device, streamed both ways; any method but CONNECT and TRACE",
    )
    .answer(200, "Whatever the device answers")
    .answer(429, "tenant_busy: the tenant has too many open requests")
    .answer(502, "origin_refused, origin_invalid or tunnel_lost")
    .answer(
        503,
        "device_offline (with reason and last_seen) or device_busy",
    )
    .answer(504, "origin_timeout")
}

/// Describes [`open_device`].
pub fn open_doc() -> Doc {
    Doc::new(
        "forwarding",
        "Make a one-time link to the device's own host",
    )
    .takes(schema::<OpenRequest>())
    .returns(201, "The link, valid for 60 seconds", schema::<OpenLink>())
    .answer(409, "No device_domain is configured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_taken_byte_by_byte() {
        let id = DeviceId::random();
        for (rest, expected) in [
            ("", "/"),
            ("?a=1", "/?a=1"),
            ("/", "/"),
            ("//x/../y/%2e%2F?q=%20&r", "//x/../y/%2e%2F?q=%20&r"),
            ("/http/http", "/http/http"),
        ] {
            let uri = format!("/api/devices/{id}/http{rest}");
            let way = Way::of(&uri.parse().expect("a URI")).expect("a way");
            assert_eq!((&way.device, way.target.as_str()), (&id, expected));
            assert_eq!(way.prefix, format!("/api/devices/{id}/http"));
        }
        let encoded = id.as_str().replace('_', "%5f");
        for bad in [
            format!("/api/devices/{encoded}/http/"),
            format!("/api/devices/{id}/httpx"),
        ] {
            assert!(Way::of(&bad.parse().expect("a URI")).is_none());
        }
    }

    crate::fuzzing::fuzz_target!(forward_targets, |bytes| {
        let Ok(uri) = http::Uri::try_from(bytes) else {
            return;
        };
        if let Some(way) = Way::of(&uri) {
            let whole = uri.path_and_query().expect("a path").as_str();
            let (prefix, target) = (way.prefix, way.target);
            assert_eq!(prefix, format!("/api/devices/{}/http", way.device));
            assert!(target.starts_with('/'), "{target}");
            assert!(whole == format!("{prefix}{target}") || target[1..] == whole[prefix.len()..]);
        }
    });
}
