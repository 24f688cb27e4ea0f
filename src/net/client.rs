//! Who made a request, behind the proxies that are trusted to say so.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use super::Peer;
use super::fields::{X_FORWARDED_FOR, X_FORWARDED_PROTO};

/// Hops that are followed back; more than any chain of trusted proxies has.
const MAX_HOPS: usize = 16;

/// The other end of a request, as far as it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The nearest address that is not a trusted proxy's.
    pub addr: IpAddr,
    /// The addresses from the client to the last proxy, as trusted proxies tell them.
    pub chain: Vec<IpAddr>,
    /// Whether the client used https.
    pub https: bool,
}

/// The proxies whose `X-Forwarded-*` are believed.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Takes networks and single addresses; what is neither is left out, since the configuration
    /// refuses it.
    pub fn new(networks: &[String]) -> Self {
        let parse = |text: &String| {
            text.parse::<IpNet>()
                .ok()
                .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        };
        Self(networks.iter().filter_map(parse).collect())
    }

    fn trusts(&self, addr: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&addr))
    }

    /// Finds the client of a request that came from `peer`.
    pub fn client(&self, peer: Option<Peer>, headers: &HeaderMap) -> Client {
        let Peer { addr, tls } = peer.unwrap_or(Peer {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            tls: false,
        });
        let mut client = Client {
            addr: addr.ip().to_canonical(),
            chain: vec![addr.ip().to_canonical()],
            https: tls,
        };
        if !self.trusts(client.addr) {
            return client;
        }
        let told = headers
            .get_all(&X_FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|hop| {
                hop.trim()
                    .parse::<IpAddr>()
                    .ok()
                    .map(|ip| ip.to_canonical())
            });
        let told: Vec<Option<IpAddr>> = told.collect();
        for hop in told.into_iter().rev().take(MAX_HOPS) {
            // What stands before something unreadable was written by somebody unknown.
            let Some(hop) = hop else { break };
            client.addr = hop;
            client.chain.insert(0, hop);
            if !self.trusts(hop) {
                break;
            }
        }
        let proto = headers
            .get(&X_FORWARDED_PROTO)
            .and_then(|value| value.to_str().ok());
        if let Some(proto) = proto {
            client.https = proto.trim().eq_ignore_ascii_case("https");
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> Client {
        let trusted: Vec<String> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(&X_FORWARDED_FOR, value.parse().expect("a header"));
        }
        headers.insert(&X_FORWARDED_PROTO, "https".parse().expect("a header"));
        let peer = Peer {
            addr: SocketAddr::new(peer.parse().expect("an address"), 1),
            tls: false,
        };
        TrustedProxies::new(&trusted).client(Some(peer), &headers)
    }

    #[test]
    fn rl_01_a_client_cannot_choose_its_address() {
        let found = client(&[], "192.0.2.9", &["203.0.113.1"]);
        assert_eq!(found.addr.to_string(), "192.0.2.9");
        assert!(!found.https);
    }

    #[test]
    fn trusted_proxies_are_followed_back_to_the_first_address_that_is_not_one() {
        let found = client(
            &["10.0.0.0/8", "192.0.2.1"],
            "192.0.2.1",
            &["198.51.100.7, 203.0.113.1", "10.1.1.1"],
        );
        assert_eq!(found.addr.to_string(), "203.0.113.1");
        let chain: Vec<String> = found.chain.iter().map(IpAddr::to_string).collect();
        assert_eq!(chain, ["203.0.113.1", "10.1.1.1", "192.0.2.1"]);
        assert!(found.https);
    }

    #[test]
    fn nothing_before_an_unreadable_hop_counts() {
        let found = client(&["10.0.0.0/8"], "10.0.0.1", &["203.0.113.1, unknown"]);
        assert_eq!(found.addr.to_string(), "10.0.0.1");
    }

    crate::fuzzing::fuzz_target!(client_address, |bytes| {
        let peer = IpAddr::from([10, 0, 0, 1]);
        let peer_of = Peer {
            addr: SocketAddr::new(peer, 1),
            tls: false,
        };
        let fields = crate::fuzzing::fields(bytes);
        let alone = TrustedProxies::default().client(Some(peer_of), &fields);
        assert_eq!((alone.addr, alone.https), (peer, false));
        let proxies = TrustedProxies::new(&["10.0.0.0/8".to_owned()]);
        let told = proxies.client(Some(peer_of), &fields);
        assert_eq!(
            (told.chain.first(), told.chain.last()),
            (Some(&told.addr), Some(&peer))
        );
        assert!(told.chain.len() <= 1 + MAX_HOPS);
    });
}
