//! Access tokens of service clients: JWTs of our provider (RFC 9068), meant for this API.

use serde_json::Value;

use super::jwt::JwtError;
use super::{OidcClient, OidcError};
use crate::types::Timestamp;

/// What a verified access token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedAccessToken {
    /// The program that it was given to.
    pub client_id: String,
    /// On whose behalf: the program itself, or a person.
    pub subject: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl OidcClient {
    /// Who issued the tokens that count.
    pub fn issuer(&self) -> &str {
        &self.0.settings.issuer
    }

    /// Verifies an access token; `None` when it is not acceptable.
    ///
    /// # Errors
    /// When the provider's keys cannot be had.
    pub async fn verify_access_token(
        &self,
        token: &str,
    ) -> Result<Option<VerifiedAccessToken>, OidcError> {
        let Some(audience) = &self.0.settings.api_audience else {
            return Ok(None);
        };
        let verified = self.verify_jwt(token, "at+jwt", audience).await?;
        let read = verified.and_then(|claims| {
            let text = |name: &'static str| {
                let text = claims.get(name).and_then(Value::as_str);
                text.filter(|text| (1..=255).contains(&text.len()))
                    .map(str::to_owned)
                    .ok_or(JwtError::Refused(name))
            };
            let exp = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0);
            Ok(VerifiedAccessToken {
                client_id: text("client_id")?,
                subject: text("sub")?,
                // Times that are no dates were refused; a float converts to the nearest number there is.
                expires_at: Timestamp::from_millis((exp * 1000.0) as i64),
            })
        });
        Ok(read
            .inspect_err(|error| tracing::debug!(%error, "an access token was refused"))
            .ok())
    }
}
