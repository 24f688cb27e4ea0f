//! The few pages that the server writes itself: what a browser sees when there is no console yet.

use axum::response::{IntoResponse, Response};
use cookie::Cookie;
use data_encoding::BASE64;
use http::{HeaderValue, StatusCode, header};

use crate::device_token::sha256;

/// Asks for the same address again, from this origin.
const ASK_AGAIN: &str = "location.replace(location.href)";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;\
color:#1c2530;background:#f5f7f9}h1{font-size:1.35rem}a{color:#0b62c4}p.quiet{color:#5c6b7a;font-size:.9rem}\
@media(prefers-color-scheme:dark){body{color:#e6ebf0;background:#12181f}a{color:#79b8ff}p.quiet{color:#93a1b0}}";

fn html(status: StatusCode, body: String, policy: &str) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, html);
    // The policies are made of constants and hashes.
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&sha256(text.as_bytes())))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            char => escaped.push(char),
        }
    }
    escaped
}

/// A page that says what happened and where to go; `link` is an address of ours and its text.
pub fn notice(status: StatusCode, title: &str, text: &str, link: (&str, &str)) -> Response {
    let body = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title} · edgecloud</title>\
<style>{STYLE}</style></head><body><h1>{title}</h1><p>{text}</p><p><a href=\"{href}\">{label}</a></p></body></html>",
        title = escape(title),
        text = escape(text),
        href = escape(link.0),
        label = escape(link.1),
    );
    let style = hash(STYLE);
    let policy = format!(
        "default-src 'none'; style-src {style}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    html(status, body, &policy)
}

/// A page that asks for its own address again: then the request comes from our own origin, and the
/// browser sends the Strict cookie along.
pub fn ask_again() -> Response {
    let body = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>edgecloud</title>\
<script>{ASK_AGAIN}</script></head><body></body></html>"
    );
    let script = hash(ASK_AGAIN);
    let policy = format!(
        "default-src 'none'; script-src {script}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    html(StatusCode::OK, body, &policy)
}

/// 303 to an address; one that cannot stand in a header leads to the root.
pub fn see_other(location: &str) -> Response {
    let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Adds a cookie to an answer.
pub fn set_cookie(response: &mut Response, cookie: &Cookie<'_>) {
    // Our cookies are made of ids, base64 and hex.
    if let Ok(value) = HeaderValue::from_str(&cookie.to_string()) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ol_19_what_a_page_repeats_is_text() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
        let page = notice(StatusCode::BAD_REQUEST, "a", "b", ("/", "c"));
        let policy = page.headers()["content-security-policy"]
            .to_str()
            .expect("text");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    }
}
