//! From a connection's request to the router and back: host, request id, security headers.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use metrics::Counter;
use tower::ServiceExt;

use super::error::Error;
use super::gate::{Gate, check};
use super::{AppState, device_hosts, forwarding, is_loopback_host, pages, routes, system};
use crate::net::{HttpLimits, Listener, serve_http};
use crate::types::RequestId;

/// What a page of ours may do unless it says otherwise: nothing.
const NO_CONTENT_POLICY: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Two years, with sub-domains.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains");

/// Marks an answer that is the device's.
#[derive(Debug, Clone, Copy)]
pub struct FromDevice;

/// Serves the API on a listener until the process ends.
pub async fn serve(app: AppState, listener: Listener) {
    let limits = &app.0.config.limits;
    let limits = HttpLimits {
        head_bytes: limits.request_head_bytes,
        headers: MAX_HEADERS,
        header_read_timeout: limits.header_read_timeout,
        connections: limits.connections,
    };
    let lifecycle = app.0.lifecycle.clone();
    let entrance = Arc::new(Entrance::new(app));
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let entrance = Arc::clone(&entrance);
        // Boxed, since the future is large and would be moved on its way, with each request.
        Box::pin(async move { Ok::<_, Infallible>(entrance.answer(request.map(Body::new)).await) })
    });
    serve_http(listener, service, limits, lifecycle.stop, lifecycle.abort).await;
}

/// Most header fields of a request: as many as hyper reads without an allocation.
const MAX_HEADERS: usize = 100;

struct Entrance {
    app: AppState,
    gate: Gate,
    router: Router,
}

impl Entrance {
    fn new(app: AppState) -> Self {
        let (rules, router) = routes::build();
        let gate = Gate {
            app: app.clone(),
            rules: Arc::new(rules),
        };
        let router = router
            .layer(middleware::from_fn_with_state(gate.clone(), check))
            .with_state(app.clone());
        Self { app, gate, router }
    }

    async fn answer(&self, mut request: Request<Body>) -> Response {
        let id = RequestId::random();
        request.extensions_mut().insert(id.clone());
        let client = self
            .app
            .0
            .trusted_proxies
            .client(request.extensions().get().copied(), request.headers());
        request.extensions_mut().insert(client);
        let (method, is_https) = (request.method().clone(), self.app.0.public_url.is_https());
        let path = request.uri().path().to_owned();
        let mut response = contained(&id, self.dispatch(request)).await;
        let status = response.status();
        tracing::debug!(%id, %method, path, status = status.as_u16(), "answered");
        count(status);
        Error::write_out(&mut response, &id);
        finish(&mut response, &id, is_https);
        response
    }

    /// The futures of single ways are large and live in boxes: this one is moved with each request.
    async fn dispatch(&self, request: Request<Body>) -> Response {
        if matches!(request.uri().path(), "/healthz" | "/readyz")
            && matches!(*request.method(), Method::GET | Method::HEAD)
        {
            return Box::pin(system::health(&self.app, request.uri().path())).await;
        }
        if *request.method() == Method::CONNECT {
            return Box::pin(self.refuse_connect(request.headers())).await;
        }
        let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
        let chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if codings.next().is_some_and(|coding| !chunked(coding)) || codings.next().is_some() {
            let detail = "the only transfer coding here is chunked, once";
            return Error::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", detail)
                .header(header::CONNECTION, "close")
                .into_response();
        }
        let Some(host) = host_of(&request) else {
            return Error::bad_request("a Host field is needed").into_response();
        };
        if let Some(device) = device_hosts::device_of(&self.app, host) {
            return Box::pin(device_hosts::answer(&self.app, device, request)).await;
        }
        if !self.is_our_host(host, &request) {
            return misdirected(&self.app, &request);
        }
        // What carries all bytes of the product does without the router, which takes as much processor
        // time as a request's two heads.
        if let Some(way) = forwarding::Way::of(request.uri()) {
            return Box::pin(forwarding::answer(&self.gate, way, request)).await;
        }
        self.router.clone().oneshot(request).await.into_response()
    }

    /// CONNECT names no path: there is nothing to find and nothing that takes it.
    async fn refuse_connect(&self, headers: &HeaderMap) -> Response {
        match self.app.0.auth.authenticate(headers).await {
            Ok(_) => Error::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "CONNECT is not allowed",
            )
            .header(
                header::ALLOW,
                "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            )
            .into_response(),
            Err(denied) => Error::from(denied).into_response(),
        }
    }

    /// The host of public_url, on any port; in a cloud on loopback all names of this machine. The
    /// sign-in leads from other names of this machine to the right one.
    fn is_our_host(&self, host: &str, request: &Request<Body>) -> bool {
        let public_url = &self.app.0.public_url;
        let name = host_name(host);
        if request.uri().path() == "/api/auth/login" {
            let default_port = if public_url.is_https() { ":443" } else { ":80" };
            let host = host.strip_suffix(default_port).unwrap_or(host);
            return host.eq_ignore_ascii_case(public_url.authority());
        }
        name.eq_ignore_ascii_case(&public_url.host)
            || (public_url.is_loopback() && is_loopback_host(name))
    }
}

/// A panic costs its own request and nothing else, and says nothing to the caller.
async fn contained(id: &RequestId, answer: impl Future<Output = Response>) -> Response {
    // Nothing that a handler may have left half done outlives it but what is behind a lock, and locks
    // are taken for whole changes only.
    let answered = AssertUnwindSafe(answer).catch_unwind().await;
    answered.unwrap_or_else(|_| {
        tracing::error!(%id, "a handler panicked");
        Error::internal().into_response()
    })
}

/// The sign-in goes on where its cookies belong; anything else is not for us.
fn misdirected(app: &AppState, request: &Request<Body>) -> Response {
    if request.uri().path() == "/api/auth/login" && *request.method() == Method::GET {
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        return pages::see_other(&format!("{}{target}", app.0.public_url.origin()));
    }
    let detail = format!(
        "this host is not served here; use {}",
        app.0.public_url.origin()
    );
    Error::new(
        StatusCode::MISDIRECTED_REQUEST,
        "misdirected_request",
        detail,
    )
    .into_response()
}

/// The host that a request is for (RFC 9112 §3.2): of an absolute target, else the one `Host` field.
fn host_of(request: &Request<Body>) -> Option<&str> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    let mut fields = request.headers().get_all(header::HOST).iter();
    let host = fields.next()?.to_str().ok()?;
    (fields.next().is_none() && !host.is_empty()).then_some(host)
}

/// A host without its port.
pub fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

/// Counts an answer by the class of its status.
fn count(status: StatusCode) {
    static ANSWERED: LazyLock<[Counter; 5]> = LazyLock::new(|| {
        ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .map(|class| metrics::counter!("edgecloud_http_requests_total", "status" => class))
    });
    let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
    ANSWERED[class].increment(1);
}

/// Adds what every answer carries; what a handler has set stays.
fn finish(response: &mut Response, id: &RequestId, is_https: bool) {
    let from_device = response.extensions_mut().remove::<FromDevice>().is_some();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    if is_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
    }
    if from_device {
        return;
    }
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, NO_CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_with_and_without_its_port() {
        for (authority, name) in [
            ("localhost:3721", "localhost"),
            ("cloud.example", "cloud.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_name(authority), name);
        }
    }

    #[tokio::test]
    async fn se_03_a_panic_is_an_answer_that_says_nothing() {
        fn panics() -> Response {
            panic!("canary of a secret");
        }
        let id = RequestId::random();
        let mut response = contained(&id, async { panics() }).await;
        Error::write_out(&mut response, &id);
        finish(&mut response, &id, true);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("content-security-policy"));
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        let body = String::from_utf8(body.expect("a body").to_vec()).expect("text");
        assert!(body.contains(id.as_str()), "{body}");
        assert!(
            !body.contains("canary") && !body.contains("panic"),
            "{body}"
        );
        let next = contained(&id, async { StatusCode::OK.into_response() });
        assert_eq!(next.await.status(), StatusCode::OK);
    }

    #[test]
    fn ch_09_every_answer_carries_the_security_headers() {
        let mut response = Error::not_found().into_response();
        finish(&mut response, &RequestId::random(), true);
        for name in [
            "x-request-id",
            "strict-transport-security",
            "content-security-policy",
            "x-content-type-options",
            "referrer-policy",
            "cache-control",
            "cross-origin-opener-policy",
        ] {
            assert!(response.headers().contains_key(name), "{name}");
        }
    }
}
