//! The handshake of a tunnel: WebSocket over HTTP/1.1 (RFC 6455 §4.1), with the device's token.
//!
//! hyper speaks the HTTP here: its head has a limit, and a proxy that does not answer with the
//! subprotocol is one without a control stream rather than an error.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::link::{Exchange, Link, LinkError, Links, host_header, retry_after, shown};
use super::state::State;
use crate::tunnel::{Metered, SUBPROTOCOL};
use crate::types::{Clock, random_bytes};

/// How long it may take from the name lookup to the upgrade.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Name and version of this program.
const AGENT: &str = concat!("edgecloud-agent/", env!("CARGO_PKG_VERSION"));

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The token is not, or no longer, valid.
    #[error("the cloud refuses the device's token")]
    Unauthorized,
    /// The cloud has no room, or no database, at the moment.
    #[error("the cloud asks to come back later (status {status})")]
    Later {
        /// What it answered.
        status: u16,
        /// How long to wait.
        after: Duration,
    },
    /// Any other answer.
    #[error("{0} answers with status {1} in the place of a tunnel")]
    Unexpected(String, u16),
    /// It switched protocols, but not as a WebSocket must.
    #[error("{0} does not speak WebSocket as it must")]
    NotWebSocket(String),
    /// There is no connection to trust, or none at all.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No answer in time.
    #[error("{0} does not answer in time")]
    Timeout(String),
}

/// A WebSocket to the tunnel listener, ready for the tunnel.
pub struct Connected {
    /// The connection below the WebSocket.
    pub link: Link,
    /// What was read from it already.
    pub ahead: Bytes,
    /// Whether the other end agreed on [`SUBPROTOCOL`].
    pub subprotocol: bool,
}

/// Connects to the tunnel listener as the device.
///
/// # Errors
/// When there is no tunnel, and what to do about it.
pub async fn connect(
    links: &Links,
    state: &State,
    clock: &Clock,
) -> Result<Connected, ConnectError> {
    timeout(HANDSHAKE_TIMEOUT, handshake(links, state, clock))
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout(shown(&state.tunnel_url))))
}

async fn handshake(links: &Links, state: &State, clock: &Clock) -> Result<Connected, ConnectError> {
    let url = &state.tunnel_url;
    let key = BASE64.encode(&random_bytes::<16>());
    let (answer, connection) = links.exchange(url, request(state, &key)).await?;
    let status = answer.status();
    match status {
        StatusCode::SWITCHING_PROTOCOLS => {}
        StatusCode::UNAUTHORIZED => return Err(ConnectError::Unauthorized),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let status = status.as_u16();
            return Err(match retry_after(answer.headers(), clock.now()) {
                Some(after) => ConnectError::Later { status, after },
                None => ConnectError::Unexpected(shown(url), status),
            });
        }
        _ => return Err(ConnectError::Unexpected(shown(url), status.as_u16())),
    }
    let not_websocket = || ConnectError::NotWebSocket(shown(url));
    let subprotocol = check_upgrade(answer.headers(), &key).ok_or_else(not_websocket)?;
    let (link, ahead) = upgrade(answer, connection)
        .await
        .ok_or_else(not_websocket)?;
    Ok(Connected {
        link: link.into_inner(),
        ahead,
        subprotocol,
    })
}

fn request(state: &State, key: &str) -> Request<Full<Bytes>> {
    let token = format!("Bearer {}", state.token.expose_secret());
    let mut token = HeaderValue::try_from(token).expect("a checked token is visible ASCII");
    token.set_sensitive(true);
    Request::builder()
        .uri("/tunnel")
        .header(header::HOST, host_header(&state.tunnel_url))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header(header::AUTHORIZATION, token)
        .header("edgecloud-agent", AGENT)
        .body(Full::default())
        .expect("a URL's host and base64 are valid in a request head")
}

/// Checks a 101 (RFC 6455 §4.1); tells whether the subprotocol was agreed on.
fn check_upgrade(headers: &HeaderMap, key: &str) -> Option<bool> {
    let is = |name, expected: &str| {
        let value: Option<&HeaderValue> = headers.get(name);
        value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(expected.as_bytes()))
    };
    let accepted = headers.get(header::SEC_WEBSOCKET_ACCEPT);
    let right = is(header::UPGRADE, "websocket")
        && is(header::CONNECTION, "upgrade")
        && accepted.is_some_and(|value| value == &derive_accept_key(key.as_bytes()))
        && !headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    match headers.get(header::SEC_WEBSOCKET_PROTOCOL) {
        _ if !right => None,
        None => Some(false),
        Some(protocol) => (protocol == SUBPROTOCOL).then_some(true),
    }
}

/// Takes the connection back from hyper, with the bytes that came after the head.
async fn upgrade(
    answer: Response<Incoming>,
    connection: Exchange,
) -> Option<(Metered<Link>, Bytes)> {
    let (upgraded, ()) = tokio::join!(hyper::upgrade::on(answer), connection);
    let parts = upgraded.ok()?.downcast::<TokioIo<Metered<Link>>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// The connection below a WebSocket without a subprotocol, from a checked 101 for `key` on; `None` when
/// it is not a right one.
pub async fn upgraded_websocket(
    answer: Response<Incoming>,
    connection: Exchange,
    key: &str,
) -> Option<(Metered<Link>, Bytes)> {
    check_upgrade(answer.headers(), key).filter(|subprotocol| !subprotocol)?;
    upgrade(answer, connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let all = pairs.iter().map(|(name, value)| {
            let name = name.parse().expect("a name");
            (name, HeaderValue::from_static(value))
        });
        all.collect::<HeaderMap<_>>()
    }

    #[test]
    fn a_right_upgrade_is_taken_with_and_without_the_subprotocol() {
        let mut right = headers(&[
            ("upgrade", "WebSocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", ACCEPT),
        ]);
        assert_eq!(check_upgrade(&right, KEY), Some(false));
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        right.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        assert_eq!(check_upgrade(&right, KEY), Some(true));
    }

    #[test]
    fn a_wrong_upgrade_is_refused() {
        let right = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-accept", ACCEPT),
        ];
        for missing in 0..right.len() {
            let mut some = right.to_vec();
            some.remove(missing);
            assert_eq!(check_upgrade(&headers(&some), KEY), None);
        }
        for extra in [
            ("sec-websocket-protocol", "chat"),
            ("sec-websocket-extensions", "permessage-deflate"),
        ] {
            let mut more = right.to_vec();
            more.push(extra);
            assert_eq!(check_upgrade(&headers(&more), KEY), None);
        }
        assert_eq!(check_upgrade(&headers(&right), "another key"), None);
    }

    crate::fuzzing::fuzz_target!(tunnel_upgrade, |bytes| {
        let fields = crate::fuzzing::fields(bytes);
        if check_upgrade(&fields, "dGhlIHNhbXBsZSBub25jZQ==").is_some() {
            assert!(fields.contains_key(header::SEC_WEBSOCKET_ACCEPT));
        }
    });
}
