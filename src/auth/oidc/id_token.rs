//! Verifies an ID token in full (OpenID Connect Core 1.0 §3.1.3.7), and what the library leaves open:
//! `azp`, `nbf`, `iat` in the future, times that are not numbers, leeway.

use data_encoding::BASE64URL_NOPAD;
use openidconnect::core::{
    CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm,
};
use openidconnect::{
    AccessToken, AccessTokenHash, ClaimsVerificationError, ClientId, IssuerUrl, Nonce,
    SignatureVerificationError,
};
use serde_json::{Map, Value};

use super::jwt::{LEEWAY, MAX_BYTES, check_times};
use crate::types::{Role, Timestamp};

/// Most tenants that a claim may name.
const MAX_TENANTS: usize = 100;

/// Why an ID token is not acceptable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    /// None of the provider's keys is named.
    #[error("the ID token is signed with an unknown key")]
    UnknownKey,
    /// Anything else.
    #[error("the ID token is not acceptable: {0}")]
    Refused(&'static str),
}

/// What an ID token must say.
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    /// What the sign-in began with; `None` at a refresh, where a token needs none (§12.2).
    pub nonce: Option<&'a str>,
    pub allowed_algs: &'a [String],
    pub access_token: &'a AccessToken,
    pub now: Timestamp,
}

/// What a verified ID token says.
pub struct VerifiedIdToken {
    pub subject: String,
    pub claims: Map<String, Value>,
}

/// Verifies everything.
pub fn verify(
    token: &CoreIdToken,
    keys: &CoreJsonWebKeySet,
    expected: &Expected<'_>,
) -> Result<VerifiedIdToken, IdTokenError> {
    let refused = |what| Err(IdTokenError::Refused(what));
    let compact = token.to_string();
    if compact.len() > MAX_BYTES {
        return refused("it is too long");
    }
    let Some(claims) = payload(&compact) else {
        return refused("it is not a JWT");
    };
    // Before anything else of the token is used.
    if let Some(nonce) = expected.nonce
        && claims.get("nonce").and_then(Value::as_str) != Some(nonce)
    {
        return refused("nonce");
    }
    let verifier = verifier(keys, expected)?;
    let nonce_is_checked = |_: Option<&Nonce>| Ok(());
    let verified = token
        .claims(&verifier, nonce_is_checked)
        .map_err(|error| match error {
            ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey,
            ) => IdTokenError::UnknownKey,
            ClaimsVerificationError::Expired(_) => IdTokenError::Refused("exp"),
            ClaimsVerificationError::InvalidAudience(_) => IdTokenError::Refused("aud"),
            ClaimsVerificationError::InvalidIssuer(_) => IdTokenError::Refused("iss"),
            ClaimsVerificationError::SignatureVerification(_) => IdTokenError::Refused("signature"),
            _ => IdTokenError::Refused("its claims"),
        })?;
    check_claims(&claims, expected)?;
    if let Some(hash) = verified.access_token_hash() {
        let ours = token
            .signing_alg()
            .ok()
            .zip(token.signing_key(&verifier).ok())
            .and_then(|(alg, key)| {
                AccessTokenHash::from_token(expected.access_token, alg, key).ok()
            });
        if ours.as_ref() != Some(hash) {
            return refused("at_hash");
        }
    }
    let subject = verified.subject().as_str().to_owned();
    if subject.is_empty() || subject.len() > 255 {
        return refused("sub");
    }
    Ok(VerifiedIdToken { subject, claims })
}

fn verifier<'a>(
    keys: &CoreJsonWebKeySet,
    expected: &Expected<'_>,
) -> Result<CoreIdTokenVerifier<'a>, IdTokenError> {
    let algorithms: Vec<CoreJwsSigningAlgorithm> = expected
        .allowed_algs
        .iter()
        .filter_map(|alg| serde_json::from_value(Value::from(alg.as_str())).ok())
        .collect();
    let issuer =
        IssuerUrl::new(expected.issuer.to_owned()).map_err(|_| IdTokenError::Refused("iss"))?;
    let client_id = ClientId::new(expected.client_id.to_owned());
    let now = expected.now.as_secs();
    let leeway = i64::try_from(LEEWAY.as_secs()).unwrap_or(0);
    Ok(
        CoreIdTokenVerifier::new_public_client(client_id, issuer, keys.clone())
            .set_allowed_algs(algorithms)
            .set_time_fn(move || {
                chrono::DateTime::from_timestamp(now - leeway, 0).unwrap_or_default()
            }),
    )
}

fn check_claims(claims: &Map<String, Value>, expected: &Expected<'_>) -> Result<(), IdTokenError> {
    let refused = |what| Err(IdTokenError::Refused(what));
    check_times(claims, expected.now).map_err(IdTokenError::Refused)?;
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => one == expected.client_id,
        Some(Value::Array(all)) => all.len() == 1 && all[0].as_str() == Some(expected.client_id),
        _ => false,
    };
    if !audience {
        return refused("aud");
    }
    match claims.get("azp") {
        Some(azp) if azp.as_str() != Some(expected.client_id) => refused("azp"),
        _ => Ok(()),
    }
}

fn payload(compact: &str) -> Option<Map<String, Value>> {
    let payload = compact.split('.').nth(1)?;
    serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()
}

/// Reads a tenant claim: a text or a list of texts, each `NAME` or `NAME:ROLE`; without a role that of
/// a viewer.
pub fn claimed_tenants(claim: Option<&Value>) -> Vec<(String, Role)> {
    let texts: Vec<&str> = match claim {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut tenants: Vec<(String, Role)> = Vec::new();
    for text in texts.into_iter().take(MAX_TENANTS) {
        let (name, role) = match text.rsplit_once(':') {
            Some((name, role)) => match role.parse() {
                Ok(role) => (name, role),
                Err(_) => (text, Role::Viewer),
            },
            None => (text, Role::Viewer),
        };
        let known = name.is_empty() || name.len() > 100 || tenants.iter().any(|(of, _)| of == name);
        if !known {
            tenants.push((name.to_owned(), role));
        }
    }
    tenants
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tenant_claim_names_tenants_and_roles() {
        let read = |claim: Value| claimed_tenants(Some(&claim));
        assert_eq!(read(json!("acme")), [("acme".to_owned(), Role::Viewer)]);
        assert_eq!(
            read(json!(["acme:admin", "lab", "acme:owner", "a:b", 7, ""])),
            [
                ("acme".to_owned(), Role::Admin),
                ("lab".to_owned(), Role::Viewer),
                ("a:b".to_owned(), Role::Viewer)
            ]
        );
        assert_eq!(read(json!({"acme": "admin"})), []);
        assert_eq!(claimed_tenants(None), []);
    }

    #[test]
    fn ol_14_times_must_be_numbers() {
        let access_token = AccessToken::new("t".into());
        let expected = Expected {
            issuer: "https://id.example",
            client_id: "c",
            nonce: Some("n"),
            allowed_algs: &[],
            access_token: &access_token,
            now: Timestamp::from_millis(1_000_000_000),
        };
        let good = json!({"aud": "c", "exp": 1_000_100, "iat": 1_000_000});
        let check = |change: Value| {
            let mut claims = good.as_object().expect("an object").clone();
            for (name, value) in change.as_object().expect("an object") {
                claims.insert(name.clone(), value.clone());
            }
            check_claims(&claims, &expected)
        };
        assert_eq!(check(json!({})), Ok(()));
        assert_eq!(
            check(json!({"nbf": 1_000_060, "iat": 1_000_060, "azp": "c"})),
            Ok(())
        );
        assert_eq!(check(json!({"aud": ["c"]})), Ok(()));
        for (name, bad) in [
            ("exp", json!({"exp": "1000100"})),
            ("exp", json!({"exp": null})),
            ("exp", json!({"exp": 999_940})),
            ("iat", json!({"iat": "never"})),
            ("iat", json!({"iat": 1_000_061})),
            ("nbf", json!({"nbf": 1_000_061})),
            ("aud", json!({"aud": ["c", "d"]})),
            ("aud", json!({"aud": "d"})),
            ("azp", json!({"azp": "d"})),
        ] {
            assert_eq!(
                check(bad.clone()),
                Err(IdTokenError::Refused(name)),
                "{bad}"
            );
        }
    }
}
