//! Where a message's body ends and what may follow it.

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Frame;

use super::headers::{HOP_BY_HOP, SPEAKS_FOR_HOST, is_ours};

/// Whether a device's response has no transfer coding but chunked, once: another one would be lost with
/// the field, which is for one hop only.
pub fn is_framed_clearly(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next();
    first.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// What of a message's trailers goes on, in either direction. A receiver may take them for fields of the
/// head (RFC 9110 §6.5.1), so none may say what the head may not say.
pub fn pass_trailers(frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
    let trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(data) => return Some(data),
    };
    let mut passed = HeaderMap::with_capacity(trailers.len());
    for (name, value) in &trailers {
        if !is_no_trailer(name.as_str()) {
            passed.append(name, value.clone());
        }
    }
    (!passed.is_empty()).then(|| Frame::trailers(passed))
}

fn is_no_trailer(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
        || SPEAKS_FOR_HOST.contains(&name)
        || is_ours(name)
        || name.starts_with("access-control-")
        || ["content-", "proxy-", "sec-"]
            .iter()
            .any(|group| name.starts_with(group))
        || matches!(
            name,
            "authorization" | "cache-control" | "location" | "set-cookie" | "trailer" | "via"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        map
    }

    #[test]
    fn only_chunked_once_is_clear() {
        let coding = "transfer-encoding";
        for (given, clear) in [
            (vec![], true),
            (vec![(coding, "Chunked")], true),
            (vec![(coding, "chunked, chunked")], false),
            (vec![(coding, "gzip, chunked")], false),
            (vec![(coding, "chunked"), (coding, "chunked")], false),
        ] {
            assert_eq!(is_framed_clearly(&fields(&given)), clear, "{given:?}");
        }
    }

    #[test]
    fn fw_10_trailers_hold_nothing_that_a_head_may_not() {
        let data = pass_trailers(Frame::data(Bytes::from("x"))).expect("data passes");
        assert!(data.is_data());
        let given = fields(&[
            ("x-sum", "1"),
            ("server-timing", "a"),
            ("edgecloud-user", "x"),
            ("x_forwarded_for", "x"),
            ("cookie", "x"),
            ("content-length", "1"),
            ("te", "x"),
        ]);
        let passed = pass_trailers(Frame::trailers(given)).expect("some pass");
        let passed = passed.into_trailers().expect("trailers");
        assert_eq!(passed, fields(&[("x-sum", "1"), ("server-timing", "a")]));
        let ours = Frame::trailers(fields(&[("edgecloud-user", "x")]));
        assert!(pass_trailers(ours).is_none());
    }
}
