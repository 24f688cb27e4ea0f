//! Host and port of what the agent may reach.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

use crate::config::checks::is_loopback_host;

/// A text that is not host and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT")]
pub struct InvalidAddress;

/// A host and a port, with the host in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: Host<String>,
    /// Never 0.
    pub port: u16,
}

impl Address {
    /// Where a URL leads; `None` for URLs without host or port.
    pub fn of_url(url: &Url) -> Option<Self> {
        let host = url.host()?.to_owned();
        let port = url.port_or_known_default().filter(|port| *port != 0)?;
        Some(Self { host, port })
    }

    /// Whether both lead to the same listener as far as their texts tell: the names and addresses
    /// of this machine count as one.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let same_host =
            self.host == other.host || [self, other].iter().all(|end| is_loopback_host(&end.host));
        same_host && self.port == other.port
    }

    /// What name lookups and `connect` take: an IPv6 address without brackets.
    pub fn dial_host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidAddress)?;
        // u16 would take a sign.
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidAddress);
        }
        let port = port.parse().map_err(|_| InvalidAddress)?;
        let host = Host::parse(host).map_err(|_| InvalidAddress)?;
        (port != 0)
            .then_some(Self { host, port })
            .ok_or(InvalidAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("a valid address")
    }

    #[test]
    fn names_and_addresses_parse_to_their_canonical_form() {
        assert_eq!(address("Box.Example:22").to_string(), "box.example:22");
        assert_eq!(address("192.168.1.5:502").to_string(), "192.168.1.5:502");
        assert_eq!(address("[0:0::1]:80").to_string(), "[::1]:80");
        assert_eq!(address("[::1]:80").dial_host(), "::1");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            ":",
            "box",
            "box:",
            ":80",
            "box:0",
            "box:+80",
            "box:65536",
            "::1:80",
            "[::1:80",
            "box:80/path",
            "user@box:80",
            "bo x:80",
            "http://box:80",
        ] {
            assert_eq!(text.parse::<Address>(), Err(InvalidAddress), "{text:?}");
        }
    }

    #[test]
    fn the_names_of_this_machine_are_one_place() {
        assert!(address("localhost:80").is_same_place(&address("127.0.0.1:80")));
        assert!(address("[::1]:80").is_same_place(&address("box.localhost:80")));
        assert!(!address("localhost:80").is_same_place(&address("localhost:81")));
        assert!(!address("localhost:80").is_same_place(&address("192.168.1.5:80")));
        assert!(!address("a.example:80").is_same_place(&address("b.example:80")));
    }
}
