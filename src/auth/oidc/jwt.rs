//! The checker of signed tokens (JWS compact serialization, RFC 7515; JWT, RFC 7519) that are not ID
//! tokens: access tokens (RFC 9068) and logout tokens (OpenID Connect Back-Channel Logout 1.0).
//!
//! Keys come from the provider's configured key set alone: what a token's header says about keys but
//! for `kid` is not looked at.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use openidconnect::JsonWebKey;
use openidconnect::core::{CoreJsonWebKey, CoreJsonWebKeySet, CoreJwsSigningAlgorithm};
use openidconnect::core::{CoreJsonWebKeyType, CoreJsonWebKeyUse};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::types::Timestamp;

/// How far the provider's clock may be off.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Longest token, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// Why a token is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// None of the provider's keys is named.
    #[error("it is signed with an unknown key")]
    UnknownKey,
    /// Anything else: what is wrong.
    #[error("{0} is not right")]
    Refused(&'static str),
}

/// What a token must be.
pub struct Expected<'a> {
    /// The kind in the header's `typ`, without `application/`.
    pub typ: &'static str,
    /// Who must have issued it.
    pub issuer: &'a str,
    /// Whom it must be meant for.
    pub audience: &'a str,
    /// Signature algorithms that count.
    pub allowed_algs: &'a [String],
    /// The time.
    pub now: Timestamp,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Verifies signature, kind, issuer, audience and times; returns the claims.
///
/// # Errors
/// When anything of it is not right.
pub fn verify(
    compact: &str,
    keys: &CoreJsonWebKeySet,
    expected: &Expected<'_>,
) -> Result<Map<String, Value>, JwtError> {
    let refused = JwtError::Refused;
    if compact.len() > MAX_BYTES {
        return Err(refused("its length"));
    }
    let parts: Vec<&str> = compact.split('.').collect();
    let &[header, payload, signature] = &parts[..] else {
        return Err(refused("its form"));
    };
    let decoded = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    let fields: Header = decoded(header)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or(refused("its header"))?;
    let typ = fields.typ.as_deref().unwrap_or_default();
    if !typ_of(typ).eq_ignore_ascii_case(expected.typ) {
        return Err(refused("typ"));
    }
    if fields.crit.is_some() {
        return Err(refused("crit"));
    }
    if !expected.allowed_algs.contains(&fields.alg) {
        return Err(refused("alg"));
    }
    let alg: CoreJwsSigningAlgorithm =
        serde_json::from_value(Value::from(fields.alg.as_str())).map_err(|_| refused("alg"))?;
    let signature = decoded(signature).ok_or(refused("its signature"))?;
    let signed = &compact[..header.len() + 1 + payload.len()];
    check_signature(
        keys,
        fields.kid.as_deref(),
        &alg,
        signed.as_bytes(),
        &signature,
    )?;
    let claims: Map<String, Value> = decoded(payload)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or(refused("its payload"))?;
    if claims.get("iss").and_then(Value::as_str) != Some(expected.issuer) {
        return Err(refused("iss"));
    }
    if !is_for(claims.get("aud"), expected.audience) {
        return Err(refused("aud"));
    }
    check_times(&claims, expected.now).map_err(refused)?;
    Ok(claims)
}

/// RFC 7515 §4.1.9: `application/` may be left out.
fn typ_of(typ: &str) -> &str {
    const PREFIX: &str = "application/";
    match typ.get(..PREFIX.len()) {
        Some(start) if start.eq_ignore_ascii_case(PREFIX) => &typ[PREFIX.len()..],
        _ => typ,
    }
}

fn check_signature(
    keys: &CoreJsonWebKeySet,
    kid: Option<&str>,
    alg: &CoreJwsSigningAlgorithm,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), JwtError> {
    let named = |key: &&CoreJsonWebKey| {
        let encrypts = key.key_use() == Some(&CoreJsonWebKeyUse::Encryption);
        // A secret shared with somebody is no key of a provider's key set.
        let secret = *key.key_type() == CoreJsonWebKeyType::Symmetric;
        !encrypts
            && !secret
            && kid.is_none_or(|kid| key.key_id().is_some_and(|id| id.as_str() == kid))
    };
    let mut candidates = keys.keys().iter().filter(named).peekable();
    if candidates.peek().is_none() {
        return Err(JwtError::UnknownKey);
    }
    let mut good = candidates.map(|key| key.verify_signature(alg, signed, signature));
    match good.any(|verified| verified.is_ok()) {
        true => Ok(()),
        // Without a name for it, the right key may be one that is not fetched yet.
        false if kid.is_none() => Err(JwtError::UnknownKey),
        false => Err(JwtError::Refused("its signature")),
    }
}

/// Whether an `aud` claim names an audience, alone or among others (RFC 7519 §4.1.3).
fn is_for(aud: Option<&Value>, audience: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|of| of.as_str() == Some(audience)),
        _ => false,
    }
}

/// Whether the times of a token are numbers, there, and right; else which is not.
///
/// # Errors
/// The name of the claim.
pub fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<(), &'static str> {
    let now = now.as_secs() as f64;
    let leeway = LEEWAY.as_secs_f64();
    for (name, required) in [("exp", true), ("iat", true), ("nbf", false)] {
        let time = match claims.get(name) {
            None if !required => continue,
            None => return Err(name),
            Some(value) => value.as_f64().filter(|time| time.is_finite()),
        };
        let good = time.is_some_and(|time| match name {
            "exp" => time > now - leeway,
            _ => time <= now + leeway,
        });
        if !good {
            return Err(name);
        }
    }
    Ok(())
}
