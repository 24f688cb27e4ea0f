//! The console's files over HTTP, and everything that is nowhere.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};

use super::error::Error;

/// What the console's pages may do: load from here, talk to here.
#[cfg(feature = "console")]
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Shows a file of the console, or 404.
#[cfg(feature = "console")]
pub async fn show(request: Request) -> Response {
    use http::{HeaderValue, Method, StatusCode, header};

    let Some(asset) = crate::console::asset(request.uri().path()) else {
        return Error::not_found().into_response();
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Error::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "GET or HEAD",
        )
        .header(header::ALLOW, "GET, HEAD")
        .into_response();
    }
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let known = known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == asset.etag));
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => asset.bytes.into_owned().into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(asset.content_type),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // A hash in base64 and quotes.
    if let Ok(etag) = HeaderValue::from_str(&asset.etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// Without the console there is nothing outside `/api`.
#[cfg(not(feature = "console"))]
pub async fn show(_: Request) -> Response {
    Error::not_found().into_response()
}
