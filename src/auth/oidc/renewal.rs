//! Refresh tokens: the provider is asked again about somebody who has signed in (RFC 6749 §6, OpenID
//! Connect Core 1.0 §12).

use std::time::Duration;

use openidconnect::OAuth2TokenResponse;
use openidconnect::core::CoreTokenResponse;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::id_token::VerifiedIdToken;
use super::{OidcClient, OidcError, SignedIn};
use crate::types::Timestamp;

/// Shortest time between two refreshes of a login, whatever the provider's tokens say.
const MIN_LIFE: Duration = Duration::from_secs(60);
/// Longest.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// When to ask again what the provider could not say at a refresh.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What the provider gives to be asked again.
#[derive(Debug)]
pub struct Grant {
    /// Often good for one use only.
    pub refresh_token: SecretString,
    /// When what the provider said about the person is out of date.
    pub refresh_at: Timestamp,
}

/// What a refresh brought.
#[derive(Debug)]
pub struct Renewed {
    /// What to use next time.
    pub grant: Grant,
    /// The person as the provider knows them now; `None` when it could not say.
    pub person: Option<SignedIn>,
}

impl Grant {
    /// The grant in an answer of the token endpoint, if it has one.
    pub(super) fn of(
        tokens: &CoreTokenResponse,
        verified: Option<&VerifiedIdToken>,
        now: Timestamp,
    ) -> Option<Self> {
        let refresh_token = SecretString::from(tokens.refresh_token()?.secret().as_str());
        Some(Self {
            refresh_token,
            refresh_at: refresh_at(tokens, verified, now),
        })
    }
}

/// The end of the ID token's life, else of the access token's, within bounds.
fn refresh_at(
    tokens: &CoreTokenResponse,
    verified: Option<&VerifiedIdToken>,
    now: Timestamp,
) -> Timestamp {
    let exp = verified
        .and_then(|token| token.claims.get("exp"))
        .and_then(Value::as_f64);
    let life = match exp {
        Some(exp) => Duration::try_from_secs_f64(exp - now.as_secs() as f64).unwrap_or_default(),
        None => tokens.expires_in().unwrap_or(MAX_LIFE),
    };
    now.plus(life.clamp(MIN_LIFE, MAX_LIFE))
}

impl OidcClient {
    /// Asks the provider again about `subject`. [`OidcError::Refused`] is definite: the provider does
    /// not know the person's session any more.
    ///
    /// # Errors
    /// When the provider refuses or cannot be used.
    pub async fn renew(
        &self,
        refresh_token: &SecretString,
        subject: &str,
    ) -> Result<Renewed, OidcError> {
        let provider = self.0.provider.get(&self.0.http).await?;
        let now = self.0.clock.now();
        let tokens = self
            .asker()
            .refresh(&provider, &self.0.http, refresh_token)
            .await?;
        // From here on the old token may be void: whatever else fails, the new one is kept.
        let verified = match self.verify_id_token(&provider, &tokens, None).await {
            Err(refused @ OidcError::Refused(_)) => return Err(refused),
            verified => verified.ok().flatten(),
        };
        let refresh_at = refresh_at(&tokens, verified.as_ref(), now);
        let person = self
            .describe(&provider, verified, &tokens, Some(subject))
            .await;
        let (person, refresh_at) = match person {
            Ok(person) => (Some(person), refresh_at),
            Err(refused @ OidcError::Refused(_)) => return Err(refused),
            Err(_) => (None, now.plus(ASK_AGAIN)),
        };
        let same = || SecretString::from(refresh_token.expose_secret());
        let refresh_token = match tokens.refresh_token() {
            Some(token) => SecretString::from(token.secret().as_str()),
            None => same(),
        };
        let grant = Grant {
            refresh_token,
            refresh_at,
        };
        Ok(Renewed { grant, person })
    }
}
