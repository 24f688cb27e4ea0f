//! The way to a device by a path on the cloud's host, and the one-time link to the device's own host.

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use data_encoding::BASE64URL_NOPAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::form_urlencoded;
use utoipa::ToSchema;

use super::AppState;
use super::device_hosts::OPEN_PATH;
use super::error::Error;
use super::extract::{Caller, JsonBody, Signed, Trail};
use super::gate::Arrived;
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

/// Forwards a request under `/api/devices/{id}/http` to the device.
pub async fn forward(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Extension(client): Extension<Client>,
    Extension(request_id): Extension<RequestId>,
    Extension(Arrived(arrived)): Extension<Arrived>,
    request: Request,
) -> Response {
    let Some((device, prefix, target)) = split_target(&request) else {
        return Error::not_found().into_response();
    };
    if request.headers().contains_key("service-worker") {
        let detail = "a device has no service workers on the cloud's host; open its own";
        return Error::new(StatusCode::FORBIDDEN, "service_worker", detail).into_response();
    }
    let public_url = &app.0.public_url;
    let caller = forward::Caller {
        device,
        user: principal.id().to_owned(),
        rights: principal.rights(),
        checked: arrived,
        tenant: principal.tenant.id,
        request_id,
        client,
        door: Door {
            scheme: public_url.scheme,
            authority: public_url.authority(),
            prefix,
        },
        auth_time: arrived.elapsed(),
    };
    send(&app, caller, &target, request).await
}

/// The device, the path before the device's own, and the rest byte by byte.
fn split_target(request: &Request) -> Option<(DeviceId, String, String)> {
    const BEFORE: &str = "/api/devices/";
    let whole = request.uri().path_and_query()?.as_str();
    let rest = whole.strip_prefix(BEFORE)?;
    let (id, rest) = rest.split_once('/')?;
    let target = rest.strip_prefix("http")?;
    let device: DeviceId = id.parse().ok()?;
    let prefix = format!("{BEFORE}{id}/http");
    let target = match target.as_bytes().first() {
        Some(b'/') => target.to_owned(),
        Some(b'?') | None => format!("/{target}"),
        Some(_) => return None,
    };
    Some((device, prefix, target))
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

/// Describes [`forward`].
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
    use axum::body::Body;

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
            let request = Request::get(uri).body(Body::empty()).expect("a request");
            let (found, prefix, target) = split_target(&request).expect("a target");
            assert_eq!((found, target.as_str()), (id.clone(), expected));
            assert_eq!(prefix, format!("/api/devices/{id}/http"));
        }
        let encoded = id.as_str().replace('_', "%5f");
        for bad in [
            format!("/api/devices/{encoded}/http/"),
            format!("/api/devices/{id}/httpx"),
        ] {
            let request = Request::get(bad).body(Body::empty()).expect("a request");
            assert!(split_target(&request).is_none());
        }
    }

    crate::fuzzing::fuzz_target!(forward_targets, |bytes| {
        let Ok(uri) = http::Uri::try_from(bytes) else {
            return;
        };
        let request = Request::get(uri).body(Body::empty()).expect("a request");
        if let Some((device, prefix, target)) = split_target(&request) {
            let whole = request.uri().path_and_query().expect("a path").as_str();
            assert_eq!(prefix, format!("/api/devices/{device}/http"));
            assert!(target.starts_with('/'), "{target}");
            assert!(whole == format!("{prefix}{target}") || target[1..] == whole[prefix.len()..]);
        }
    });
}
