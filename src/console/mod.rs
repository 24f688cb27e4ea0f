//! The web console's files, embedded in the binary: which path has which bytes.
//!
//! Knows nothing of HTTP: routes, the security headers and conditional requests are the `api` module's.

use std::borrow::Cow;

use data_encoding::BASE64URL_NOPAD;
use rust_embed::RustEmbed;

/// The page that answers at `/`.
const INDEX: &str = "index.html";

#[derive(RustEmbed)]
#[folder = "src/console/web/"]
struct Web;

/// One file of the console.
#[derive(Debug, Clone)]
pub struct Asset {
    /// The file's contents.
    pub bytes: Cow<'static, [u8]>,
    /// The value for `Content-Type`.
    pub content_type: &'static str,
    /// A strong entity tag with its quotes (RFC 9110 §8.8.3), made from the contents.
    pub etag: String,
}

/// Returns the file at an exact path such as `/` or `/app.js`.
pub fn asset(path: &str) -> Option<Asset> {
    let name = match path.strip_prefix('/')? {
        "" => INDEX,
        // One file has one path.
        INDEX => return None,
        name => name,
    };
    let file = Web::get(name)?;
    Some(Asset {
        etag: format!(
            "\"{}\"",
            BASE64URL_NOPAD.encode(&file.metadata.sha256_hash())
        ),
        content_type: content_type(name),
        bytes: file.data,
    })
}

/// Lists the paths that [`asset`] knows.
pub fn paths() -> impl Iterator<Item = String> {
    Web::iter().map(|name| match name.as_ref() {
        INDEX => "/".to_owned(),
        name => format!("/{name}"),
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> String {
        let asset = asset(path).unwrap_or_else(|| panic!("{path} exists"));
        String::from_utf8(asset.bytes.into_owned()).expect("the console's files are UTF-8")
    }

    /// What stands between each `start` and the next `end`.
    fn between<'a>(text: &'a str, start: &str, end: char) -> Vec<&'a str> {
        text.split(start)
            .skip(1)
            .map(|rest| rest.split(end).next().unwrap_or(rest))
            .collect()
    }

    fn scripts() -> impl Iterator<Item = (String, String)> {
        paths()
            .filter(|path| path.ends_with(".js"))
            .map(|path| (path.clone(), text(&path)))
    }

    #[test]
    fn every_path_has_a_known_type_and_its_own_tag() {
        let mut tags = std::collections::HashSet::new();
        for path in paths() {
            let asset = asset(&path).expect("a listed path exists");
            assert_ne!(asset.content_type, "application/octet-stream", "{path}");
            assert!(asset.etag.starts_with('"') && asset.etag.ends_with('"'));
            assert!(tags.insert(asset.etag), "{path} has a tag of its own");
        }
        assert!(tags.len() >= 3);
    }

    #[test]
    fn only_exact_paths_exist() {
        assert!(asset("/").is_some());
        for path in [
            "",
            "app.js",
            "/index.html",
            "//app.js",
            "/app.js/",
            "/APP.JS",
            "/../mod.rs",
            "/./app.js",
            "/%61pp.js",
        ] {
            assert!(asset(path).is_none(), "{path:?}");
        }
    }

    #[test]
    fn whatever_the_page_refers_to_exists() {
        let page = text("/");
        let mut references = between(&page, "src=\"", '"');
        references.extend(between(&page, "href=\"", '"'));
        assert!(references.len() >= 3);
        for path in references {
            assert!(asset(path).is_some(), "{path}");
        }
    }

    #[test]
    fn whatever_a_script_imports_exists() {
        let mut imports = 0;
        for (script, text) in scripts() {
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let path = between(line, " from '", '\'');
                let [path] = path[..] else {
                    panic!("{script}: an import on one line: {line}");
                };
                assert!(asset(path).is_some(), "{script} imports {path}");
                imports += 1;
            }
        }
        assert!(imports > 3);
    }

    #[test]
    fn nothing_is_inline_as_the_content_security_policy_demands() {
        let page = text("/");
        assert!(!page.contains("<style") && !page.contains(" style="));
        assert!(!page.contains("javascript:"));
        for tag in between(&page, "<", '>') {
            assert!(!tag.contains(" on"), "no inline listener: {tag}");
        }
        for script in page.split("<script").skip(1) {
            let (tag, rest) = script.split_once('>').expect("the tag ends");
            assert!(tag.contains(" src=\"/"), "a script has an address");
            assert!(rest.starts_with("</script>"), "a script has no body");
        }
        assert!(!text("/style.css").contains("url("));
    }

    #[test]
    fn no_script_turns_text_into_markup_or_code() {
        for (path, text) in scripts() {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "localStorage",
                "sessionStorage",
            ] {
                assert!(!text.contains(word), "{path} uses {word}");
            }
        }
    }
}
