//! Which header fields cross, in both directions, and what is set on the way.
//!
//! Hop-by-hop fields go first (RFC 9110 §7.6.1), ours are set last: naming one of ours in
//! `Connection` must not remove it.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Caller, Door};
use crate::auth::cookies::Cookies;
use crate::net::fields::{
    SEC_FETCH_DEST, SEC_FETCH_MODE, SEC_FETCH_SITE, X_FORWARDED_FOR, X_FORWARDED_PROTO,
};

/// Passed on as `Authorization` on the cloud's host, where `Authorization` is the cloud's own.
pub static DEVICE_AUTHORIZATION: HeaderName =
    HeaderName::from_static("edgecloud-device-authorization");
/// How the agent says that it could not reach the origin.
pub static AGENT_ERROR: HeaderName = HeaderName::from_static("edgecloud-agent-error");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
static EDGECLOUD_USER: HeaderName = HeaderName::from_static("edgecloud-user");
static EDGECLOUD_TENANT: HeaderName = HeaderName::from_static("edgecloud-tenant");
static EDGECLOUD_REQUEST_ID: HeaderName = HeaderName::from_static("edgecloud-request-id");
/// What a device may run in the cloud's origin: nothing (an opaque origin).
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");

/// Fields that are for one hop only.
pub const HOP_BY_HOP: &[&str] = &[
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Fields of a response that speak for a whole host or its neighbours, or to caches between us and the
/// caller.
pub const SPEAKS_FOR_HOST: &[&str] = &[
    "alt-svc",
    "cdn-cache-control",
    "clear-site-data",
    "nel",
    "report-to",
    "reporting-endpoints",
    "strict-transport-security",
    "surrogate-control",
];

/// The names that a `Connection` field lists.
fn listed(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether `Connection` and `Upgrade` ask for a WebSocket (RFC 6455 §4.1).
pub fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let first = upgrades.next().and_then(|value| value.to_str().ok());
    let only = upgrades.next().is_none();
    let websocket = first.is_some_and(|value| value.trim().eq_ignore_ascii_case("websocket"));
    only && websocket && listed(headers).iter().any(|name| name == "upgrade")
}

/// Whether the client can take trailers (RFC 9110 §10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| {
            part.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .eq_ignore_ascii_case("trailers")
        })
}

/// What of a client's request goes to the device.
pub fn to_device(
    incoming: &HeaderMap,
    caller: &Caller,
    origin_host: &str,
    via: &HeaderValue,
    websocket: bool,
) -> HeaderMap {
    let listed = listed(incoming);
    let mut headers = HeaderMap::with_capacity(incoming.len() + 12);
    for (name, value) in incoming {
        if !stays_here(name, &listed, &caller.door) {
            headers.append(name, value.clone());
        }
    }
    pass_credentials(&mut headers, incoming, &caller.door);
    if takes_trailers(incoming) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.append(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    if websocket {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    set(&mut headers, &header::HOST, origin_host);
    rewrite_source(&mut headers, &header::ORIGIN, &caller.door, origin_host);
    rewrite_source(&mut headers, &header::REFERER, &caller.door, origin_host);
    headers.append(header::VIA, via.clone());
    set_origin_of_request(&mut headers, caller);
    headers
}

fn stays_here(name: &HeaderName, listed: &[String], door: &Door) -> bool {
    let name = name.as_str();
    HOP_BY_HOP.contains(&name)
        || listed.iter().any(|hop| hop == name)
        || is_ours(name)
        || (name == "authorization" && !door.is_device_host())
}

/// Fields of a request that the cloud alone sets, in any spelling that a server may take for theirs.
pub fn is_ours(name: &str) -> bool {
    name.contains('_')
        || name.starts_with("edgecloud-")
        || name.starts_with("x-forwarded-")
        || matches!(name, "forwarded" | "host" | "cookie" | "x-real-ip")
}

/// Whether a browser sent a request, as all current ones say (Fetch Metadata).
pub fn is_from_browser(headers: &HeaderMap) -> bool {
    [&SEC_FETCH_SITE, &SEC_FETCH_MODE, &SEC_FETCH_DEST]
        .iter()
        .any(|name| headers.contains_key(*name))
}

/// The device's own cookies and credentials; never the cloud's. On the cloud's host a device has no
/// cookies in a browser: what is there belongs to the cloud's neighbours.
fn pass_credentials(headers: &mut HeaderMap, incoming: &HeaderMap, door: &Door) {
    let mut cookies: Vec<&[u8]> = Vec::new();
    if door.is_device_host() || !is_from_browser(incoming) {
        let values = incoming.get_all(header::COOKIE).iter();
        let pairs = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        cookies.extend(pairs.map(<[u8]>::trim_ascii).filter(|pair| {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
            !pair.is_empty() && !Cookies::is_ours(&String::from_utf8_lossy(name))
        }));
    }
    if !cookies.is_empty()
        && let Ok(value) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice()))
    {
        headers.insert(header::COOKIE, value);
    }
    if !door.is_device_host()
        && let Some(value) = incoming.get(&DEVICE_AUTHORIZATION)
    {
        headers.insert(header::AUTHORIZATION, value.clone());
    }
}

/// `Origin` and `Referer` that name our host name the origin's instead.
fn rewrite_source(headers: &mut HeaderMap, name: &HeaderName, door: &Door, origin_host: &str) {
    let Some(text) = headers.get(name).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let Some(rest) = after_host(text, &door.origin()) else {
        return;
    };
    let path = match rest.strip_prefix(&door.prefix) {
        Some(path) if path.is_empty() || path.starts_with(['/', '?']) => path,
        // Another page of the cloud's host is not the device's business.
        _ if rest.is_empty() => "",
        _ => "/",
    };
    let rewritten = format!("http://{origin_host}{path}");
    set_owned(headers, name, rewritten);
}

fn set_origin_of_request(headers: &mut HeaderMap, caller: &Caller) {
    let Door {
        scheme,
        authority,
        prefix,
        ..
    } = &caller.door;
    let (mut addresses, mut forwarded) = (String::new(), String::with_capacity(128));
    for addr in &caller.client.chain {
        let separator = if forwarded.is_empty() { "" } else { ", " };
        let before = addresses.len() + separator.len();
        let _ = write!(addresses, "{separator}{addr}");
        // RFC 7239 §6: an IPv6 address stands in brackets and quotes.
        let (open, close) = match addr.is_ipv6() {
            true => ("\"[", "]\""),
            false => ("", ""),
        };
        let written = [separator, "for=", open, &addresses[before..], close];
        forwarded.extend(written);
    }
    forwarded.extend([";host=\"", authority, "\";proto=", scheme]);
    set_owned(headers, &X_FORWARDED_FOR, addresses);
    set_owned(headers, &header::FORWARDED, forwarded);
    headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    set(headers, &X_FORWARDED_HOST, authority);
    if !prefix.is_empty() {
        set(headers, &X_FORWARDED_PREFIX, prefix);
    }
    set(headers, &EDGECLOUD_USER, &caller.user);
    set(headers, &EDGECLOUD_TENANT, caller.tenant.as_str());
    set(headers, &EDGECLOUD_REQUEST_ID, caller.request_id.as_str());
}

/// A request's properties that decide about the response's fields.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Whether a browser asked.
    pub browser: bool,
    /// Whether the response can have no body although it may speak of one: it answers HEAD.
    pub head: bool,
}

/// What of a device's response goes to the caller. The length of a body is not taken over: whoever
/// writes the response knows it.
pub fn to_caller(
    incoming: &HeaderMap,
    status: StatusCode,
    asked: Asked,
    door: &Door,
    origin_host: &str,
) -> HeaderMap {
    let listed = listed(incoming);
    let mut headers = HeaderMap::with_capacity(incoming.len() + 4);
    for (name, value) in incoming {
        let text = name.as_str();
        let dropped = HOP_BY_HOP.contains(&text)
            || listed.iter().any(|hop| hop == text)
            || SPEAKS_FOR_HOST.contains(&text)
            || text.starts_with("edgecloud-")
            || *name == header::CONTENT_LENGTH
            || (*name == header::SET_COOKIE && !may_set_cookie(value, door))
            || (!door.is_device_host() && acts_on_host(text, asked));
        if !dropped {
            headers.append(name, value.clone());
        }
    }
    if (asked.head || status == StatusCode::NOT_MODIFIED)
        && let Some(length) = stated_length(incoming)
    {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    rewrite_location(&mut headers, door, origin_host);
    keep_private(&mut headers);
    if !door.is_device_host() {
        // Beside the device's own policies: a browser obeys all of them.
        headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    }
    headers
}

/// Fields that would make a browser act in the name of the cloud's host.
fn acts_on_host(name: &str, asked: Asked) -> bool {
    name.starts_with("access-control-")
        || matches!(name, "refresh" | "service-worker-allowed")
        // A browser would ask for a password under the cloud's name; a program may need to know.
        || (name == "www-authenticate" && asked.browser)
}

/// The length of the body that a response speaks of without having it (RFC 9110 §8.6), if it is one.
fn stated_length(headers: &HeaderMap) -> Option<u64> {
    let mut stated = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = stated.next()?;
    let one =
        stated.all(|value| value == first) && !headers.contains_key(header::TRANSFER_ENCODING);
    let text = first.to_str().ok().filter(|_| one)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// What one person got from a device is nobody else's: caches between us and the caller may not share
/// it (RFC 9111 §5.2.2.7).
fn keep_private(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
        return;
    }
    let told = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|directive| {
            let name = directive.split('=').next().unwrap_or_default().trim();
            let shared = ["public", "private", "s-maxage", "proxy-revalidate", ""];
            !shared
                .iter()
                .any(|shared| name.eq_ignore_ascii_case(shared))
        });
    let told: Vec<&str> = std::iter::once("private").chain(told).collect();
    let told = told.join(", ");
    set_owned(headers, &header::CACHE_CONTROL, told);
}

/// On its own host a device may set host-only cookies under names that are not ours.
fn may_set_cookie(value: &HeaderValue, door: &Door) -> bool {
    let text = String::from_utf8_lossy(value.as_bytes());
    let mut parts = text.split(';');
    let pair = parts.next().unwrap_or_default();
    // Browsers send a cookie without a name as its value alone, which may read like another cookie.
    let name = match pair.split_once('=') {
        Some((name, value)) if name.trim().is_empty() => {
            value.split('=').next().unwrap_or_default()
        }
        Some((name, _)) => name,
        None => pair,
    };
    let has_domain = parts.any(|attribute| {
        let attribute = attribute.split('=').next().unwrap_or_default();
        attribute.trim().eq_ignore_ascii_case("domain")
    });
    door.is_device_host() && !has_domain && !Cookies::is_ours(name)
}

fn rewrite_location(headers: &mut HeaderMap, door: &Door, origin_host: &str) {
    let Some(text) = headers
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
    else {
        return;
    };
    let ours = door.origin();
    let of_origin = ["http:", "https:", ""]
        .iter()
        .find_map(|scheme| after_host(text, &format!("{scheme}//{origin_host}")));
    let (base, path) = match (of_origin, after_host(text, &ours)) {
        (Some(path), _) | (None, Some(path)) => (ours.as_str(), path),
        (None, None) if text.starts_with('/') && !text.starts_with("//") => ("", text),
        (None, None) => return,
    };
    let inside = path
        .strip_prefix(&door.prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
    let prefix = if inside { "" } else { door.prefix.as_str() };
    let rewritten = format!("{base}{prefix}{path}");
    set_owned(headers, &header::LOCATION, rewritten);
}

/// What follows `host` in a URL that begins with exactly that host.
fn after_host<'t>(text: &'t str, host: &str) -> Option<&'t str> {
    let start = text.get(..host.len())?;
    let rest = &text[host.len()..];
    let ends = rest.is_empty() || rest.starts_with(['/', '?', '#']);
    (ends && start.eq_ignore_ascii_case(host)).then_some(rest)
}

/// Sets a field. What was in a header before, an id or an address, is a valid value; anything else
/// stays out.
fn set(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// As [`set`], without a copy of the text.
fn set_owned(headers: &mut HeaderMap, name: &HeaderName, text: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
