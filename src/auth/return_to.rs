//! Where a sign-in leads back to: a path on this host and nothing else.

/// Longest path, in bytes.
const MAX_BYTES: usize = 1024;

/// The path if it can only lead to this host, else `/`.
pub fn sanitize_return_to(path: &str) -> String {
    let safe = path.starts_with('/')
        && path.len() <= MAX_BYTES
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && !leads_elsewhere(path);
    if safe {
        path.to_owned()
    } else {
        "/".to_owned()
    }
}

/// Whether the start reads as `//host`, also when somebody decodes it first.
fn leads_elsewhere(path: &str) -> bool {
    let mut start = path[1..].to_ascii_lowercase();
    start.truncate(3);
    start.starts_with('/') || ["%2f", "%5c", "%09", "%0a", "%0d", "%00"].contains(&start.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use url::Url;

    #[test]
    fn paths_of_this_host_stay() {
        for path in [
            "/",
            "/devices?x=1#y",
            "/a//b",
            "/?next=https://evil.example",
        ] {
            assert_eq!(sanitize_return_to(path), path);
        }
    }

    #[test]
    fn ol_20_everything_else_becomes_the_root() {
        let tricks = [
            "",
            "https://evil",
            "//evil",
            "/\\evil",
            "/%5cevil",
            "/%2f/evil",
            "javascript:alert(1)",
            "/%09//evil",
            "\t//evil",
            "user@host",
            "/a\nb",
            "/\u{e9}",
            "evil/path",
        ];
        for trick in tricks {
            assert_eq!(sanitize_return_to(trick), "/", "{trick:?}");
        }
        assert_eq!(
            sanitize_return_to(&format!("/{}", "a".repeat(MAX_BYTES))),
            "/"
        );
    }

    proptest! {
        #[test]
        fn the_result_is_always_on_this_host(text in "(/|//|\\\\|%2f|%5C|https:|@|[ -~])*") {
            let base = Url::parse("https://cloud.example").expect("a URL");
            let target = base.join(&sanitize_return_to(&text)).expect("a path");
            prop_assert_eq!(target.origin(), base.origin());
        }
    }

    crate::fuzzing::fuzz_target!(return_to, |bytes| {
        let path = sanitize_return_to(&String::from_utf8_lossy(bytes));
        let base = Url::parse("https://cloud.example/login").expect("a URL");
        let there = base.join(&path).expect("a path");
        assert_eq!(there.origin(), base.origin(), "{path}");
    });
}
