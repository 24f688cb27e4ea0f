//! The credential of the internal API: `Authorization: Edgecloud-HMAC v1,<unix time>,<nonce>,<hex>`.
//!
//! The HMAC-SHA256 covers everything that decides what a request does, the node that it is meant for
//! included, so that a captured request is of no use elsewhere, later, or, where it changes
//! something, twice.

use std::time::Duration;

use data_encoding::HEXLOWER;
use http::Method;
use moka::sync::Cache;

use crate::keys::KeyRing;
use crate::types::{Clock, NodeId, random_bytes};

/// How far the clocks of two processes may be apart, and how long a request is good.
const VALID_FOR: Duration = Duration::from_secs(30);
/// Nonces that are remembered at once; at the limit the oldest is forgotten.
const MAX_NONCES: u64 = 1_000_000;
const SCHEME: &str = "Edgecloud-HMAC v1,";
const PURPOSE: &str = "internal-api";

/// What the credential of a request covers.
#[derive(Debug, Clone, Copy)]
pub struct Covered<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's path.
    pub path: &'a str,
    /// The node that the request is meant for.
    pub node: &'a NodeId,
    /// The tenant that the caller acts for; empty where none is named.
    pub tenant: &'a str,
    /// The epoch that the caller means; empty where none is named.
    pub epoch: &'a str,
}

impl Covered<'_> {
    fn message(&self, time: &str, nonce: &str) -> Vec<u8> {
        [
            self.method.as_str(),
            self.path,
            time,
            nonce,
            self.node.as_str(),
            self.tenant,
            self.epoch,
        ]
        .join("\n")
        .into_bytes()
    }
}

/// Makes the value of the `Authorization` header.
pub fn sign(keys: &KeyRing, clock: &Clock, covered: Covered<'_>) -> String {
    let time = clock.now().as_secs().to_string();
    let nonce = HEXLOWER.encode(&random_bytes::<16>());
    let mac = keys.sign(PURPOSE, &covered.message(&time, &nonce)).mac;
    format!("{SCHEME}{time},{nonce},{}", HEXLOWER.encode(&mac))
}

/// Checks credentials; remembers the nonces of calls that change something.
pub struct Verifier {
    keys: KeyRing,
    clock: Clock,
    nonces: Cache<String, ()>,
}

impl Verifier {
    /// A verifier for the secrets in `keys`.
    pub fn new(keys: KeyRing, clock: Clock) -> Self {
        let nonces = Cache::builder()
            .max_capacity(MAX_NONCES)
            .time_to_live(VALID_FOR * 2)
            .build();
        Self {
            keys,
            clock,
            nonces,
        }
    }

    /// Whether the `Authorization` value is right for the request, and new if it changes something.
    pub fn verify(&self, authorization: &str, covered: Covered<'_>) -> bool {
        let Some((time, nonce, mac)) = parse(authorization) else {
            return false;
        };
        let Ok(at) = time.parse::<i64>() else {
            return false;
        };
        let now = self.clock.now().as_secs();
        if now.abs_diff(at) > VALID_FOR.as_secs() {
            return false;
        }
        let message = covered.message(time, nonce);
        let known = self.keys.macs(PURPOSE, &message);
        let right = known
            .iter()
            .any(|key| self.keys.verify(PURPOSE, &key.key_id, &message, &mac));
        right && (covered.method == Method::GET || self.is_new(nonce))
    }

    fn is_new(&self, nonce: &str) -> bool {
        self.nonces.entry(nonce.to_owned()).or_insert(()).is_fresh()
    }
}

fn parse(authorization: &str) -> Option<(&str, &str, Vec<u8>)> {
    let mut parts = authorization.strip_prefix(SCHEME)?.splitn(3, ',');
    let (time, nonce, mac) = (parts.next()?, parts.next()?, parts.next()?);
    if nonce.len() != 32 || mac.len() != 64 {
        return None;
    }
    Some((time, nonce, HEXLOWER.decode(mac.as_bytes()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;
    use secrecy::SecretString;

    fn keys(fill: &str) -> KeyRing {
        KeyRing::from_secrets(&[SecretString::from(fill.repeat(32))]).expect("long enough")
    }

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_millis(1_700_000_000_000))
    }

    #[test]
    fn only_the_very_request_is_good_and_only_once_and_only_for_a_while() {
        let (clock, node) = (clock(), NodeId::random());
        let verifier = Verifier::new(keys("k"), clock.clone());
        let covered = Covered {
            method: &Method::DELETE,
            path: "/internal/v1/sessions/x",
            node: &node,
            tenant: "t",
            epoch: "3",
        };
        let good = sign(&keys("k"), &clock, covered);
        let other_node = NodeId::random();
        assert!(!verifier.verify(
            &good,
            Covered {
                method: &Method::POST,
                ..covered
            }
        ));
        assert!(!verifier.verify(
            &good,
            Covered {
                path: "/",
                ..covered
            }
        ));
        assert!(!verifier.verify(
            &good,
            Covered {
                node: &other_node,
                ..covered
            }
        ));
        assert!(!verifier.verify(
            &good,
            Covered {
                tenant: "u",
                ..covered
            }
        ));
        assert!(!verifier.verify(
            &good,
            Covered {
                epoch: "4",
                ..covered
            }
        ));
        assert!(!verifier.verify(&sign(&keys("x"), &clock, covered), covered));
        assert!(verifier.verify(&good, covered));
        assert!(!verifier.verify(&good, covered), "a replay");
        let late = sign(&keys("k"), &clock, covered);
        clock.advance(Duration::from_secs(31));
        assert!(!verifier.verify(&late, covered));
        for junk in [
            "",
            "Bearer x",
            "Edgecloud-HMAC v1,",
            "Edgecloud-HMAC v1,1,2,3",
        ] {
            assert!(!verifier.verify(junk, covered));
        }
    }

    #[test]
    fn a_call_that_changes_nothing_may_be_repeated() {
        let (clock, node) = (clock(), NodeId::random());
        let verifier = Verifier::new(keys("k"), clock.clone());
        let covered = Covered {
            method: &Method::GET,
            path: "/x",
            node: &node,
            tenant: "",
            epoch: "",
        };
        let good = sign(&keys("k"), &clock, covered);
        assert!(verifier.verify(&good, covered) && verifier.verify(&good, covered));
    }

    crate::fuzzing::fuzz_target!(internal_credential, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        if let Some((time, nonce, mac)) = parse(text) {
            let again = format!("{SCHEME}{time},{nonce},{}", HEXLOWER.encode(&mac));
            assert_eq!(again, text, "there is one way to write it");
        }
        let node = NodeId::random();
        let covered = Covered {
            method: &Method::POST,
            path: "/internal/v1/sessions/x/stream",
            node: &node,
            tenant: "t",
            epoch: "3",
        };
        let verifier = Verifier::new(keys("k"), clock());
        assert!(!verifier.verify(text, covered), "nobody can guess it");
    });
}
