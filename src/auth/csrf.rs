//! Requests that another site makes a browser send.

use http::{HeaderMap, HeaderName, Method, header};

use crate::net::fields::{SEC_FETCH_MODE, SEC_FETCH_SITE};

/// Sent by programs that use a cookie but are no browser.
pub static CSRF_HEADER: HeaderName = HeaderName::from_static("edgecloud-csrf");

/// Whether a request with a cookie may have been made by another site: `Sec-Fetch-Site` decides
/// where there is one, else `Origin`, else the header that no other site can send.
pub fn is_forged(method: &Method, headers: &HeaderMap, our_origin: &str) -> bool {
    if method.is_safe() {
        return false;
    }
    match (
        text(headers, &SEC_FETCH_SITE),
        text(headers, &header::ORIGIN),
    ) {
        (Some("same-origin"), Some(origin)) => origin != our_origin,
        (Some(site), _) => site != "same-origin" && site != "none",
        (None, Some(origin)) => origin != our_origin,
        (None, None) => text(headers, &CSRF_HEADER) != Some("1"),
    }
}

/// Whether another site's page reads something with the cookie, otherwise than by a link: what a device
/// does on a GET is not known here.
pub fn is_foreign_read(headers: &HeaderMap) -> bool {
    let foreign = !matches!(
        text(headers, &SEC_FETCH_SITE),
        None | Some("same-origin" | "none")
    );
    foreign && text(headers, &SEC_FETCH_MODE) != Some("navigate")
}

/// Whether a WebSocket handshake with a cookie comes from another origin (RFC 6455 §10.2).
pub fn is_foreign_websocket(headers: &HeaderMap, our_origin: &str) -> bool {
    let elsewhere = !matches!(text(headers, &SEC_FETCH_SITE), None | Some("same-origin"));
    elsewhere || text(headers, &header::ORIGIN) != Some(our_origin)
}

/// Whether a request on a device's host comes from another origin: other devices' hosts are of the
/// same site and get its cookie sent along. Links from elsewhere may lead there.
pub fn is_foreign_to_device(method: &Method, headers: &HeaderMap, our_origin: &str) -> bool {
    let link = *method == Method::GET && text(headers, &SEC_FETCH_MODE) == Some("navigate");
    match text(headers, &SEC_FETCH_SITE) {
        Some("same-origin" | "none") => false,
        Some(_) => !link,
        None => text(headers, &header::ORIGIN).is_some_and(|origin| origin != our_origin),
    }
}

/// A header's value; a doubled or unreadable header counts as something that is never right.
fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    match values.next() {
        None => Some(first.to_str().unwrap_or("unreadable")),
        Some(_) => Some("doubled"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://cloud.example";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header"));
        }
        headers
    }

    fn forged(pairs: &[(&'static str, &str)]) -> bool {
        is_forged(&Method::POST, &headers(pairs), OURS)
    }

    #[test]
    fn ch_01_fetch_metadata_decides_where_there_is_any() {
        for good in [
            &[("sec-fetch-site", "same-origin")][..],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("origin", OURS)],
        ] {
            assert!(!forged(good), "{good:?}");
        }
        for bad in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site"), ("edgecloud-csrf", "1")],
            &[("sec-fetch-site", "cross-site"), ("origin", OURS)],
            &[("sec-fetch-site", "same-origin"), ("origin", "null")],
        ] {
            assert!(forged(bad), "{bad:?}");
        }
        let cross_site = headers(&[("sec-fetch-site", "cross-site")]);
        assert!(!is_forged(&Method::GET, &cross_site, OURS));
    }

    #[test]
    fn ch_02_else_the_origin_must_be_ours() {
        assert!(!forged(&[("origin", OURS)]));
        for bad in [
            &[("origin", "null")][..],
            &[("origin", "https://cloud.example:444")],
            &[("origin", "http://cloud.example")],
            &[("origin", "https://cloud.example.evil")],
            &[("origin", "null"), ("edgecloud-csrf", "1")],
            &[("origin", OURS), ("origin", OURS)],
        ] {
            assert!(forged(bad), "{bad:?}");
        }
    }

    #[test]
    fn ch_03_else_our_header_is_needed() {
        assert!(!forged(&[("edgecloud-csrf", "1")]));
        assert!(forged(&[]));
        assert!(forged(&[("edgecloud-csrf", "0")]));
    }

    #[test]
    fn ch_05_a_websocket_needs_our_origin() {
        assert!(!is_foreign_websocket(&headers(&[("origin", OURS)]), OURS));
        for bad in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://evil.cloud.example")],
            &[("origin", OURS), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(is_foreign_websocket(&headers(bad), OURS), "{bad:?}");
        }
    }

    #[test]
    fn a_neighbours_page_reaches_a_device_by_links_only() {
        let foreign = |method: Method, pairs: &[(&'static str, &str)]| {
            is_foreign_to_device(&method, &headers(pairs), OURS)
        };
        let link = [
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-mode", "navigate"),
        ];
        assert!(!foreign(Method::GET, &link));
        assert!(foreign(Method::POST, &link));
        let fetch = [
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-mode", "no-cors"),
        ];
        assert!(foreign(Method::GET, &fetch));
        assert!(foreign(
            Method::POST,
            &[("origin", "https://other.example")]
        ));
        assert!(!foreign(Method::POST, &[("sec-fetch-site", "same-origin")]));
    }

    crate::fuzzing::fuzz_target!(fetch_metadata, |bytes| {
        const OURS: &str = "https://cloud.example";
        let fields = crate::fuzzing::fields(bytes);
        let site = fields
            .get("sec-fetch-site")
            .map(http::HeaderValue::as_bytes);
        if matches!(site, Some(b"cross-site" | b"same-site")) {
            assert!(is_forged(&Method::POST, &fields, OURS), "{fields:?}");
        }
        is_foreign_read(&fields);
        is_foreign_websocket(&fields, OURS);
        is_foreign_to_device(&Method::POST, &fields, OURS);
    });
}
