//! Access tokens of service clients, as they come in `Authorization` (RFC 6750 §2.1).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use moka::sync::Cache;

use super::oidc::{OidcClient, OidcError, VerifiedAccessToken};
use crate::device_token::sha256;
use crate::types::Clock;

/// Verified tokens that are remembered at once.
const MAX_KNOWN: u64 = 10_000;
/// How long a signature is believed: a key that the provider has withdrawn is of no use after that.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// Verifies access tokens, and remembers those that were good. Cheap to clone.
#[derive(Clone)]
pub struct BearerTokens {
    oidc: OidcClient,
    clock: Clock,
    known: Cache<[u8; 32], Arc<VerifiedAccessToken>>,
}

impl BearerTokens {
    /// Verifies by the keys of a provider.
    pub fn new(oidc: OidcClient, clock: Clock) -> Self {
        let known = Cache::builder()
            .max_capacity(MAX_KNOWN)
            .time_to_live(BELIEVED_FOR)
            .build();
        Self { oidc, clock, known }
    }

    /// Who issues the tokens.
    pub fn issuer(&self) -> &str {
        self.oidc.issuer()
    }

    /// The one access token of a request, verified; `None` when there is none, or it is not good.
    ///
    /// # Errors
    /// When the provider's keys cannot be had.
    pub async fn read(
        &self,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<VerifiedAccessToken>>, OidcError> {
        let Some(token) = bearer(headers) else {
            return Ok(None);
        };
        let hash = sha256(token.as_bytes());
        let now = self.clock.now();
        if let Some(known) = self.known.get(&hash)
            && known.expires_at > now
        {
            return Ok(Some(known));
        }
        let verified = self.oidc.verify_access_token(token).await?.map(Arc::new);
        if let Some(verified) = &verified {
            self.known.insert(hash, Arc::clone(verified));
        }
        Ok(verified)
    }
}

/// The token of the one `Authorization` field, if it looks like a JWT: for anything else the provider
/// is not asked.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (field, None) = (fields.next()?.to_str().ok()?, fields.next()) else {
        return None;
    };
    let (scheme, token) = field.split_once(' ')?;
    let is_jwt = token.bytes().filter(|byte| *byte == b'.').count() == 2;
    (scheme.eq_ignore_ascii_case("bearer") && is_jwt).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_field_with_a_jwt_is_looked_at() {
        let read = |fields: &[&str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(header::AUTHORIZATION, field.parse().expect("a header"));
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read(&["Bearer a.b.c"]).as_deref(), Some("a.b.c"));
        assert_eq!(read(&["bearer a.b.c"]).as_deref(), Some("a.b.c"));
        for other in [
            &["Basic a.b.c"][..],
            &["Bearer"],
            &["Bearer edt_abc"],
            &["Bearer a.b.c.d.e"],
            &["Bearer a.b.c", "Bearer a.b.c"],
            &[],
        ] {
            assert_eq!(read(other), None, "{other:?}");
        }
    }

    crate::fuzzing::fuzz_target!(bearer_token, |bytes| {
        let fields = crate::fuzzing::fields(bytes);
        if let Some(token) = bearer(&fields) {
            assert_eq!(token.split('.').count(), 3);
        }
    });
}
