//! The server's half of a WebSocket handshake (RFC 6455 §4.2).

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The `Sec-WebSocket-Accept` for a right handshake (RFC 6455 §4.2.1), `None` for a wrong one.
pub fn websocket_accept<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let right = request.method() == Method::GET
        && lists(headers, &header::CONNECTION, "upgrade")
        && lists(headers, &header::UPGRADE, "websocket")
        && lists(headers, &header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    let accept = right.then(|| derive_accept_key(key.as_bytes()))?;
    HeaderValue::from_str(&accept).ok()
}

/// Whether the client offers a subprotocol.
pub fn offers_subprotocol(headers: &HeaderMap, name: &str) -> bool {
    words(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|word| word == name)
}

/// The head of the answer that switches protocols.
pub fn switch_to_websocket<B: Default>(
    accept: HeaderValue,
    subprotocol: Option<&'static str>,
) -> Response<B> {
    let mut answer = Response::new(B::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = subprotocol {
        let name = HeaderValue::from_static(name);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    answer
}

fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(token))
}

fn words<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}
