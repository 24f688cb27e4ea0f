//! The pairing code: eight characters of 32 (40 bits), stored as an HMAC only.

use secrecy::{ExposeSecret, SecretString};

use crate::keys::{KeyRing, Signature};
use crate::types::random_bytes;

/// 32 characters without look-alikes: no 0, 1, I, O.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
const LENGTH: usize = 8;
const PURPOSE: &str = "pairing-code";
/// Longest text that is looked at as a code, in bytes.
const MAX_TEXT: usize = 64;

/// A code by which one device joins a tenant.
#[derive(Debug)]
pub struct Code(SecretString);

impl Code {
    /// Makes a new code.
    pub fn random() -> Self {
        let chars = random_bytes::<LENGTH>().map(|byte| ALPHABET[usize::from(byte % 32)]);
        Self(String::from_utf8_lossy(&chars).into_owned().into())
    }

    /// Reads what a person typed: case, dashes and spaces do not matter.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let code: String = text
            .chars()
            .filter(|char| !matches!(char, '-' | ' '))
            .map(|char| char.to_ascii_uppercase())
            .collect();
        let valid = code.len() == LENGTH && code.bytes().all(|byte| ALPHABET.contains(&byte));
        valid.then(|| Self(code.into()))
    }

    /// The code as it is shown: `ABCD-EFGH`.
    pub fn shown(&self) -> String {
        let (first, second) = self.0.expose_secret().split_at(LENGTH / 2);
        format!("{first}-{second}")
    }

    /// What is stored in the place of the code.
    pub fn sign(&self, keys: &KeyRing) -> Signature {
        keys.sign(PURPOSE, self.0.expose_secret().as_bytes())
    }

    /// What may be stored in the place of the code: one value per key. A text that is no code gets
    /// values too, so that looking it up is the same work.
    pub fn macs(code: Option<&Self>, keys: &KeyRing) -> Vec<[u8; 32]> {
        let text = code.map_or("not a code", |code| code.0.expose_secret());
        let macs = keys.macs(PURPOSE, text.as_bytes());
        macs.into_iter().map(|signature| signature.mac).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn keys() -> KeyRing {
        KeyRing::from_secrets(&[SecretString::from("k".repeat(32))]).expect("long enough")
    }

    #[test]
    fn pa_01_codes_are_distinct_and_use_the_whole_alphabet() {
        let codes: HashSet<String> = (0..10_000).map(|_| Code::random().shown()).collect();
        assert_eq!(codes.len(), 10_000);
        let used: HashSet<char> = codes.iter().flat_map(|code| code.chars()).collect();
        assert_eq!(used.len(), ALPHABET.len() + 1, "and the dash");
    }

    #[test]
    fn case_dashes_and_spaces_do_not_matter() {
        let keys = keys();
        let code = Code::random();
        let shown = code.shown();
        for text in [
            shown.clone(),
            shown.to_lowercase(),
            shown.replace('-', ""),
            shown.replace('-', " "),
        ] {
            let read = Code::parse(&text).expect("the same code");
            assert_eq!(read.sign(&keys), code.sign(&keys));
        }
    }

    #[test]
    fn what_is_no_code_is_looked_up_all_the_same() {
        for text in [
            "",
            "ABCD",
            "ABCD-EFG0",
            "ABCD-EFGHJ",
            "ÄBCD-EFGH",
            &"-".repeat(100),
        ] {
            assert!(Code::parse(text).is_none(), "{text:?}");
        }
        assert_eq!(Code::macs(None, &keys()).len(), 1);
        assert!(!format!("{:?}", Code::random()).contains('-'));
    }

    crate::fuzzing::fuzz_target!(pairing_code, |bytes| {
        if let Some(code) = Code::parse(&String::from_utf8_lossy(bytes)) {
            let again = Code::parse(&code.shown()).expect("its own form");
            assert_eq!(again.shown(), code.shown());
        }
    });
}
