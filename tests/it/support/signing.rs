//! Keys of a provider, as JSON Web Keys and as what signs.

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use ring::{digest, hmac as ring_hmac};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::hostile::Signature;
use super::process::run_program;

/// The base64url of a SHA-256.
pub fn sha256(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    BASE64URL_NOPAD.encode(hash.as_ref())
}

/// HMAC-SHA256.
pub fn hmac(secret: &[u8], text: &str) -> Vec<u8> {
    let key = ring_hmac::Key::new(ring_hmac::HMAC_SHA256, secret);
    ring_hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// The algorithm of a kind of signature, as a JWT's header names it.
pub fn alg_of(signature: &Signature) -> &'static str {
    match signature {
        Signature::Rs256 => "RS256",
        Signature::Hs256(_) => "HS256",
        _ => "ES256",
    }
}

/// A fresh key that signs ES256.
pub struct Signer {
    id: String,
    pair: EcdsaKeyPair,
    /// Whether the provider publishes it.
    pub is_published: bool,
}

impl Signer {
    /// A new key.
    pub fn new(id: &str) -> Self {
        let (alg, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(alg, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(alg, document.as_ref(), &random).expect("a key");
        Self {
            id: id.to_owned(),
            pair,
            is_published: true,
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key as an uncompressed point.
    pub fn public_point(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    /// The public key.
    pub fn jwk(&self) -> Value {
        let point = self.public_point();
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id,
            "x": encode(&point[1..33]), "y": encode(&point[33..]),
        })
    }

    /// Signs.
    pub fn sign(&self, text: &str) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes());
        signature.expect("a signature").as_ref().to_vec()
    }
}

/// An RSA key, which takes long enough to make that all providers share one.
#[derive(Clone)]
pub struct RsaKey(&'static RsaKeyPair);

impl RsaKey {
    /// The key of all tests, made by Node.js, since ring makes none.
    pub async fn of_the_tests() -> Self {
        static PAIR: OnceCell<RsaKeyPair> = OnceCell::const_new();
        const MAKE: &str = "const {privateKey} = require('crypto').generateKeyPairSync('rsa', {modulusLength: 2048});\
            process.stdout.write(privateKey.export({type: 'pkcs8', format: 'der'}).toString('hex'))";
        let made = PAIR.get_or_init(async || {
            let home = TempDir::new().expect("make a directory");
            let made = run_program("node", home.path(), &["-e", MAKE], &[]).await;
            let hex = made.expect_code(0).stdout;
            let der = HEXLOWER.decode(hex.as_bytes()).expect("hex");
            RsaKeyPair::from_pkcs8(&der).expect("an RSA key")
        });
        Self(made.await)
    }

    /// Its name.
    pub fn id(&self) -> &'static str {
        "rsa"
    }

    fn components(&self) -> PublicKeyComponents<Vec<u8>> {
        PublicKeyComponents::from(self.0.public())
    }

    /// The public key.
    pub fn jwk(&self) -> Value {
        let PublicKeyComponents { n, e } = self.components();
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        json!({"kty": "RSA", "use": "sig", "kid": self.id(), "n": encode(&n), "e": encode(&e)})
    }

    /// The public key in the forms in which somebody may hold it.
    pub fn public_forms(&self) -> Vec<Vec<u8>> {
        let der = self.0.public().as_ref().to_vec();
        let pem = format!(
            "-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n",
            BASE64.encode(&der)
        );
        vec![der, pem.into_bytes(), self.components().n]
    }

    /// Signs RS256.
    pub fn sign(&self, text: &str) -> Vec<u8> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                text.as_bytes(),
                &mut signature,
            )
            .expect("a signature");
        signature
    }
}
