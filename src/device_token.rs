//! The device token: `edt_` + 256 random bits + a checksum, in base32. Only its SHA-256 is stored.

use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

use crate::types::{base32_lower, random_bytes};

const PREFIX: &str = "edt_";
const SECRET_CHARS: usize = 52;
const CHECKSUM_CHARS: usize = 6;

/// A device's long-lived secret.
#[derive(Debug, Clone)]
pub struct DeviceToken(SecretString);

impl DeviceToken {
    /// Makes a new token.
    pub fn random() -> Self {
        let secret = base32_lower(&random_bytes::<32>());
        let checksum = checksum(&secret);
        Self(SecretString::from(format!("{PREFIX}{secret}{checksum}")))
    }

    /// Takes a text for a token when its form and checksum are right.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        if rest.len() != SECRET_CHARS + CHECKSUM_CHARS || !rest.is_ascii() {
            return None;
        }
        let (secret, sum) = rest.split_at(SECRET_CHARS);
        (checksum(secret) == sum).then(|| Self(SecretString::from(text)))
    }

    /// What is stored in the place of the token.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.0.expose_secret().as_bytes())
    }

    /// The token itself, to be shown once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn checksum(secret: &str) -> String {
    let mut sum = base32_lower(&sha256(secret.as_bytes()));
    sum.truncate(CHECKSUM_CHARS);
    sum
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tk_01_tokens_have_256_random_bits() {
        let tokens: HashSet<String> = (0..10_000)
            .map(|_| DeviceToken::random().expose().to_owned())
            .collect();
        assert_eq!(tokens.len(), 10_000);
        // 51 characters of five bits and one that holds the last bit.
        for place in PREFIX.len()..PREFIX.len() + SECRET_CHARS {
            let chars: HashSet<u8> = tokens.iter().map(|token| token.as_bytes()[place]).collect();
            let last = place + 1 == PREFIX.len() + SECRET_CHARS;
            assert_eq!(chars.len(), if last { 2 } else { 32 }, "at {place}");
        }
    }

    #[test]
    fn a_token_parses_back_and_a_damaged_one_does_not() {
        let token = DeviceToken::random();
        let text = token.expose().to_owned();
        assert_eq!(
            DeviceToken::parse(&text).map(|parsed| parsed.hash()),
            Some(token.hash())
        );
        for index in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[index] = if damaged[index] == b'a' { b'b' } else { b'a' };
            let damaged = String::from_utf8(damaged).expect("still ASCII");
            assert!(DeviceToken::parse(&damaged).is_none(), "{damaged}");
        }
        assert!(DeviceToken::parse("").is_none());
        assert!(DeviceToken::parse(&"edt_".repeat(100)).is_none());
        assert!(!format!("{token:?}").contains(&text));
    }

    crate::fuzzing::fuzz_target!(device_token, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Some(token) = DeviceToken::parse(&text) {
            assert_eq!(token.hash(), sha256(text.as_bytes()));
        }
    });
}
