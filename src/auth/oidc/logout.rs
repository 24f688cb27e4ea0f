//! Logout tokens: the provider tells that a session ended there (OpenID Connect Back-Channel Logout
//! 1.0 §2.4 to §2.6).

use serde_json::Value;

use super::jwt::{JwtError, LEEWAY};
use super::{OidcClient, OidcError};
use crate::types::Timestamp;

/// The member of `events` that makes a token a logout token.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Why a logout was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    /// The token is not right: what of it.
    #[error("the logout token is not acceptable: {0}")]
    Refused(#[from] JwtError),
    /// The provider's keys cannot be had.
    #[error(transparent)]
    Provider(#[from] OidcError),
}

/// What a verified logout token says; `subject`, `sid` or both are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLogoutToken {
    /// Whose sessions.
    pub subject: Option<String>,
    /// Which session.
    pub sid: Option<String>,
    /// The token's id: it counts once.
    pub id: String,
    /// When the token ends.
    pub expires_at: Timestamp,
}

impl VerifiedLogoutToken {
    /// Until when the token could come again: our clock may be ahead of the provider's.
    pub fn remember_until(&self) -> Timestamp {
        self.expires_at.plus(LEEWAY)
    }
}

impl OidcClient {
    /// Verifies a logout token.
    ///
    /// # Errors
    /// When it is not acceptable, or the provider's keys cannot be had.
    pub async fn verify_logout_token(
        &self,
        token: &str,
    ) -> Result<VerifiedLogoutToken, LogoutError> {
        let client_id = self.0.settings.client_id.clone();
        let claims = self.verify_jwt(token, "logout+jwt", &client_id).await??;
        let refused = |what| Err(LogoutError::Refused(JwtError::Refused(what)));
        if claims.contains_key("nonce") {
            return refused("nonce");
        }
        let event = claims.get("events").and_then(|events| events.get(EVENT));
        if !event.is_some_and(Value::is_object) {
            return refused("events");
        }
        let text = |name: &'static str| match claims.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if (1..=255).contains(&text.len()) => Ok(Some(text.clone())),
            Some(_) => Err(LogoutError::Refused(JwtError::Refused(name))),
        };
        let (subject, sid) = (text("sub")?, text("sid")?);
        if subject.is_none() && sid.is_none() {
            return refused("sub");
        }
        let Some(id) = text("jti")? else {
            return refused("jti");
        };
        let exp = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0);
        Ok(VerifiedLogoutToken {
            subject,
            sid,
            id,
            expires_at: Timestamp::from_millis((exp * 1000.0) as i64),
        })
    }
}
