//! Rules for single values and for values that must go together.

use url::{Host, Url};

use super::reader::Reader;

/// Why a key must be configured.
pub const KEY_FOR_POSTGRES: &str = "is missing: with PostgreSQL several processes share it, so it cannot be generated; at least 32 bytes, the same everywhere";

const ALGORITHMS: &[&str] = &[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

/// Whether a URL's host is this machine by name or address.
pub fn is_loopback(url: &Url) -> bool {
    url.host().is_some_and(|host| is_loopback_host(&host))
}

/// Whether a host is this machine by name or address.
pub fn is_loopback_host<S: AsRef<str>>(host: &Host<S>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.as_ref();
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(addr) => addr.is_loopback(),
        Host::Ipv6(addr) => addr.is_loopback(),
    }
}

/// Whether a URL is a scheme of `schemes`, a host and perhaps a port, and nothing more.
pub fn is_plain_origin(url: &Url, schemes: &[&str]) -> bool {
    schemes.contains(&url.scheme())
        && url.has_host()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
}

/// Whether a text can be an issuer (OpenID Connect Discovery §3).
pub fn is_issuer(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let scheme = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
        scheme && url.has_host() && url.query().is_none() && url.fragment().is_none()
    })
}

/// An http(s) origin; http on loopback only.
pub fn http_origin(reader: &mut Reader, key: &'static str) -> Option<Url> {
    origin(
        reader,
        key,
        ["http", "https"],
        "a URL without a path, as in https://cloud.example.com (http on loopback only)",
    )
}

/// A ws(s) origin; ws on loopback only.
pub fn websocket_origin(reader: &mut Reader, key: &'static str) -> Option<Url> {
    origin(
        reader,
        key,
        ["ws", "wss"],
        "a URL without a path, as in wss://tunnel.example.com (ws on loopback only)",
    )
}

fn origin(
    reader: &mut Reader,
    key: &'static str,
    schemes: [&str; 2],
    allowed: &str,
) -> Option<Url> {
    let url: Url = reader.optional(key, allowed)?;
    let plain = url.scheme() == schemes[0];
    if !is_plain_origin(&url, &schemes) || (plain && !is_loopback(&url)) {
        reader.refuse(key, &url, allowed);
    }
    Some(url)
}

/// Networks in CIDR notation, or single addresses.
pub fn networks(reader: &mut Reader, key: &'static str) -> Vec<String> {
    let networks = reader.list(key, &[]);
    for network in &networks {
        let (addr, bits) = network.split_once('/').unwrap_or((network, ""));
        let addr = addr.parse::<std::net::IpAddr>();
        let max = if matches!(addr, Ok(std::net::IpAddr::V4(_))) {
            32
        } else {
            128
        };
        let bits = bits.is_empty() && !network.contains('/')
            || bits.parse::<u8>().is_ok_and(|bits| bits <= max);
        if addr.is_err() || !bits {
            reader.refuse(
                key,
                network,
                "networks and addresses, as in 10.0.0.0/8 or 192.0.2.1",
            );
        }
    }
    networks
}

/// Signature algorithms with a public key.
pub fn algorithms(reader: &mut Reader) -> Vec<String> {
    let algorithms = reader.list("oidc.allowed_algs", &["RS256", "ES256"]);
    for algorithm in &algorithms {
        if !ALGORITHMS.contains(&algorithm.as_str()) {
            reader.refuse("oidc.allowed_algs", algorithm, &ALGORITHMS.join(", "));
        }
    }
    if algorithms.is_empty() {
        reader.mistake("oidc.allowed_algs", "must name at least one algorithm");
    }
    algorithms
}

/// The device domain: a domain of another site than the cloud's, since a page on the same site gets
/// the cloud's Strict cookies sent along and can toss cookies at it.
pub fn device_domain(reader: &mut Reader, dev: bool, public_url: Option<&Url>) -> Option<String> {
    let key = "server.device_domain";
    let same_site = reader.value("server.device_domain_same_site", false, "true or false");
    let domain: String = match (reader.has(key), dev) {
        (true, _) => reader.optional(key, "a domain")?,
        (false, true) => reader.value(key, "localhost".to_owned(), "a domain"),
        (false, false) => return None,
    };
    let valid = domain.len() <= 200
        && domain.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
    if !valid {
        reader.refuse(
            key,
            &domain,
            "a domain in lower case, as in devices.example.net",
        );
        return None;
    }
    let host = public_url.and_then(Url::host_str).unwrap_or("localhost");
    // Every name under localhost is a site of its own.
    if domain == "localhost" && is_loopback_name(host) || same_site {
        return Some(domain);
    }
    if site(host) == site(&domain) {
        let message = format!(
            "\"{domain}\" is not allowed: it shares a site with {host}, so pages of devices could act on the cloud's cookies; use another registrable domain, or set server.device_domain_same_site = true to accept that"
        );
        reader.mistake(key, message);
    }
    Some(domain)
}

fn is_loopback_name(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// The last two labels: an approximation of the registrable domain that errs on the strict side.
fn site(host: &str) -> String {
    let mut labels: Vec<&str> = host.rsplitn(3, '.').take(2).collect();
    labels.reverse();
    labels.join(".")
}
