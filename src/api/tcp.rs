//! Raw TCP to a port on the device's side, over a WebSocket.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, Query, Trail};
use super::forwarding::explain;
use super::gate::Arrived;
use super::openapi::Doc;
use crate::forward::{self, Door, ForwardError};
use crate::net::{Client, offers_subprotocol, switch_to_websocket, websocket_accept};
use crate::store::AuditOutcome;
use crate::types::{DeviceId, RequestId};

/// Where the connection goes unless the query says otherwise: the device itself.
const DEVICE_ITSELF: &str = "localhost";
/// The subprotocol that programs offer for plain bytes; one that is offered must be answered.
const SUBPROTOCOL: &str = "binary";

/// Where on the device's side.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpQuery {
    /// A host in the device's network that its agent allows.
    host: Option<String>,
}

/// Opens a TCP connection on the device's side and joins it with the caller's WebSocket.
pub async fn open_tcp(
    State(app): State<AppState>,
    Caller(principal): Caller,
    (Extension(client), Extension(request_id), Extension(Arrived(arrived))): (
        Extension<Client>,
        Extension<RequestId>,
        Extension<Arrived>,
    ),
    (Path((id, port)), Query(query)): (Path<(String, String)>, Query<TcpQuery>),
    trail: Trail,
    mut request: Request,
) -> Result<Response, Error> {
    let device: DeviceId = id.parse().map_err(|_| Error::not_found())?;
    let authority = authority(query.host.as_deref(), &port)?;
    let Some(accept) = websocket_accept(&request) else {
        return Ok(upgrade_required());
    };
    let caller = forward::Caller {
        device: device.clone(),
        user: principal.id().to_owned(),
        rights: principal.rights(),
        checked: arrived,
        tenant: principal.tenant.id.clone(),
        request_id,
        client,
        door: Door {
            scheme: app.0.public_url.scheme,
            authority: app.0.public_url.authority().clone(),
            prefix: String::new(),
        },
        auth_time: arrived.elapsed(),
    };
    let opened = app.0.forwarder.connect_tcp(&caller, &authority).await;
    let mut entry = trail.with("tcp.opened", &device, json!({"address": authority}));
    if let Err(error) = &opened {
        entry.outcome = match error {
            ForwardError::AddressNotAllowed => AuditOutcome::Denied,
            _ => AuditOutcome::Failure,
        };
    }
    // Before the first byte: nobody gets through unrecorded.
    app.0.store.append_audit(entry).await?;
    match opened {
        Ok(connection) => {
            let subprotocol =
                offers_subprotocol(request.headers(), SUBPROTOCOL).then_some(SUBPROTOCOL);
            let upgrade = hyper::upgrade::on(&mut request);
            app.0.forwarder.join_tcp(upgrade, connection);
            Ok(switch_to_websocket(accept, subprotocol))
        }
        Err(error) => Err(explain(&app, &principal.tenant.id, &device, error).await),
    }
}

/// `HOST:PORT` as the device sees it.
fn authority(host: Option<&str>, port: &str) -> Result<String, Error> {
    let port = Some(port)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse::<u16>().ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::invalid_field("port", "a whole number from 1 to 65535"))?;
    let host = host.unwrap_or(DEVICE_ITSELF);
    let host = url::Host::parse(host).map_err(|_| {
        let allowed = "a host name or an IP address, one of IPv6 in brackets";
        Error::invalid_field("host", allowed)
    })?;
    Ok(format!("{host}:{port}"))
}

fn upgrade_required() -> Response {
    let detail = "this is a WebSocket of binary messages: GET with Upgrade: websocket, version 13";
    let mut answer =
        Error::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let version = HeaderValue::from_static("13");
    headers.insert(header::SEC_WEBSOCKET_VERSION, version);
    answer
}

/// Describes [`open_tcp`].
pub fn open_doc() -> Doc {
    Doc::new(
        "forwarding",
        "Open a TCP connection to a port on the device's side (?host= for another host than the device \
         itself), as a WebSocket of binary messages; an empty message ends its direction",
    )
    .answer(101, "The connection is open; what was opened is in the audit")
    .answer(403, "address_not_allowed: the agent does not allow the address")
    .answer(426, "The request is no WebSocket handshake")
    .answer(429, "tenant_busy: the tenant has too many open requests")
    .answer(502, "origin_refused, tunnel_lost or tcp_unsupported")
    .answer(
        503,
        "device_offline (with reason and last_seen) or device_busy",
    )
    .answer(504, "origin_timeout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_of_the_device_unless_a_host_is_named() {
        assert_eq!(authority(None, "22").expect("good"), "localhost:22");
        let plc = authority(Some("192.168.1.5"), "502").expect("good");
        assert_eq!(plc, "192.168.1.5:502");
        assert_eq!(authority(Some("[::1]"), "1").expect("good"), "[::1]:1");
        for bad in ["0", "65536", "+22", "-1", "ssh", "", "22 ", "0x16"] {
            assert_eq!(
                authority(None, bad).expect_err("bad").status(),
                422,
                "{bad}"
            );
        }
        for bad in ["", "a b", "a:1", "a/b", "a@b", "::1", "a\r\nb"] {
            assert!(authority(Some(bad), "22").is_err(), "{bad}");
        }
    }
}
