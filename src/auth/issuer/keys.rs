//! The development issuer's signing key: ES256, kept in the data directory.

use std::io;
use std::path::Path;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::device_token::sha256;
use crate::keys::{KeyError, read_or_create_secret};
use crate::types::base32_lower;

/// An ECDSA key on P-256.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
}

impl SigningKey {
    /// Reads the key, or makes it.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let damaged = || {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is not an ES256 key");
            KeyError::File(path.to_owned(), error)
        };
        let random = SystemRandom::new();
        let text = read_or_create_secret(path, || {
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                .expect("the operating system's random source works");
            BASE64.encode(key.as_ref())
        })?;
        let pkcs8 = BASE64
            .decode(text.expose_secret().as_bytes())
            .map_err(|_| damaged())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random)
            .map_err(|_| damaged())?;
        let mut id = base32_lower(&sha256(pair.public_key().as_ref()));
        id.truncate(16);
        Ok(Self { pair, id })
    }

    /// The public half as a JSON Web Key (RFC 7517, RFC 7518 §6.2).
    pub fn jwk(&self) -> Value {
        // 0x04, then the two coordinates of 32 bytes each (SEC 1 §2.3.3).
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": BASE64URL_NOPAD.encode(&point[1..33]),
            "y": BASE64URL_NOPAD.encode(&point[33..65]),
        })
    }

    /// A signed JSON Web Token (RFC 7519) of a kind, with these claims.
    pub fn sign(&self, typ: &str, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "typ": typ, "kid": self.id });
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("signing fails only without randomness");
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}
