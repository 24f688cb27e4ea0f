//! How a stream begins: with `CONNECT`, which asks the agent for raw TCP (RFC 9110 §9.3.6), or with
//! anything else, which is the origin's business. Pure.

use super::address::Address;

const METHOD: &[u8] = b"CONNECT ";
const END: &[u8] = b"\r\n\r\n";

/// What the first bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A request to the agent.
    Connect,
    /// A request to the origin.
    Origin,
}

/// Tells how a stream begins; `None` while it could be either.
pub fn opening(bytes: &[u8]) -> Option<Opening> {
    let known = bytes.len().min(METHOD.len());
    if bytes[..known] != METHOD[..known] {
        return Some(Opening::Origin);
    }
    (known == METHOD.len()).then_some(Opening::Connect)
}

/// The length of a request head, once all of it is there.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(END.len()).position(|window| window == END)?;
    Some(at + END.len())
}

/// Where a whole `CONNECT` head wants to go; `None` when it is not a right one.
pub fn target(head: &[u8]) -> Option<Address> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let right = method == "CONNECT" && version == "HTTP/1.1" && words.next().is_none();
    right.then(|| target.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stream_shows_what_it_is_as_soon_as_it_can() {
        assert_eq!(opening(b""), None);
        assert_eq!(opening(b"CONNECT"), None);
        assert_eq!(opening(b"CONNECT "), Some(Opening::Connect));
        assert_eq!(opening(b"COPY /"), Some(Opening::Origin));
        assert_eq!(opening(b"G"), Some(Opening::Origin));
        assert_eq!(opening(b"connect "), Some(Opening::Origin));
    }

    #[test]
    fn the_target_is_host_and_port_of_the_request_line() {
        let parse = |head: &str| target(head.as_bytes()).map(|address| address.to_string());
        assert_eq!(
            parse("CONNECT box:22 HTTP/1.1\r\nHost: other:23\r\n\r\n").as_deref(),
            Some("box:22")
        );
        assert_eq!(
            parse("CONNECT [::1]:22 HTTP/1.1\r\n\r\n").as_deref(),
            Some("[::1]:22")
        );
        for wrong in [
            "CONNECT box HTTP/1.1\r\n\r\n",
            "CONNECT box:22\r\n\r\n",
            "CONNECT box:22 HTTP/1.1 \r\n\r\n",
            "CONNECT  box:22 HTTP/1.1\r\n\r\n",
            "CONNECT box:22 HTTP/2\r\n\r\n",
            "CONNECT http://box:22/ HTTP/1.1\r\n\r\n",
            "CONNECT box:22\nHTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_head_ends_at_the_first_empty_line() {
        assert_eq!(head_len(b"CONNECT a:1 HTTP/1.1\r\n\r"), None);
        assert_eq!(head_len(b"x\r\n\r\nrest\r\n\r\n"), Some(5));
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            opening(&bytes);
            head_len(&bytes);
            target(&bytes);
            let head = [METHOD, &bytes].concat();
            target(&head);
        }
    }

    crate::fuzzing::fuzz_target!(connect_head, |bytes| {
        let length = head_len(bytes);
        assert!(length.is_none_or(|length| bytes[..length].ends_with(END)));
        if let Some(address) = target(bytes) {
            assert_eq!(opening(bytes), Some(Opening::Connect));
            let again = address.to_string().parse::<Address>();
            assert_eq!(
                again.expect("its own form").to_string(),
                address.to_string()
            );
        }
    });
}
