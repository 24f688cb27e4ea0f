//! The back end's own access token (RFC 6749 §4.4), for calls to the provider's API: fetched when it is
//! first needed, kept, and renewed before it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openidconnect::OAuth2TokenResponse;
use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::tokens::Asker;
use super::{OidcClient, OidcError};

/// A token whose provider does not say how long it lives is used this long.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);
/// How long before its end a token is renewed, at most; a short-lived one at two thirds of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// How long to leave the provider alone after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Our registration at the provider as a service client.
#[derive(Debug, Clone)]
pub struct ServiceCredentials {
    /// Our client id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: SecretString,
    /// What is asked for.
    pub scopes: Vec<String>,
}

/// The back end's own access token. Cheap to clone.
#[derive(Clone)]
pub struct ServiceToken(Arc<Inner>);

struct Inner {
    oidc: OidcClient,
    credentials: ServiceCredentials,
    kept: Mutex<Kept>,
    degraded: AtomicBool,
}

#[derive(Default)]
struct Kept {
    token: Option<(SecretString, Instant)>,
    failed: Option<(String, Instant)>,
}

impl ServiceToken {
    /// Asks nothing yet.
    pub fn new(oidc: OidcClient, credentials: ServiceCredentials) -> Self {
        Self(Arc::new(Inner {
            oidc,
            credentials,
            kept: Mutex::default(),
            degraded: AtomicBool::new(false),
        }))
    }

    /// Whether there was no token to be had when it was last asked for.
    pub fn is_degraded(&self) -> bool {
        self.0.degraded.load(Ordering::Relaxed)
    }

    /// A token with some of its life left. Callers at the same moment share one request.
    ///
    /// # Errors
    /// When the provider gives none.
    pub async fn get(&self) -> Result<SecretString, OidcError> {
        let inner = &*self.0;
        let mut kept = inner.kept.lock().await;
        if let Some((token, renew_at)) = &kept.token
            && Instant::now() < *renew_at
        {
            return Ok(token.clone());
        }
        if let Some((message, at)) = &kept.failed
            && at.elapsed() < RETRY_AFTER
        {
            return Err(OidcError::Unavailable(message.clone()));
        }
        let fetched = inner.fetch().await;
        inner.degraded.store(fetched.is_err(), Ordering::Relaxed);
        match fetched {
            Ok((token, life)) => {
                let renew_at = Instant::now() + life.saturating_sub(RENEW_BEFORE.min(life / 3));
                *kept = Kept {
                    token: Some((token.clone(), renew_at)),
                    failed: None,
                };
                Ok(token)
            }
            Err(error) => {
                kept.failed = Some((error.to_string(), Instant::now()));
                Err(error)
            }
        }
    }
}

impl Inner {
    async fn fetch(&self) -> Result<(SecretString, Duration), OidcError> {
        let oidc = &*self.oidc.0;
        let provider = oidc.provider.get(&oidc.http).await?;
        let asker = Asker {
            issuer: &oidc.settings.issuer,
            client_id: &self.credentials.client_id,
            client_secret: Some(&self.credentials.client_secret),
        };
        let tokens = asker
            .client_credentials(&provider, &oidc.http, &self.credentials.scopes)
            .await?;
        let token = SecretString::from(tokens.access_token().secret().as_str());
        Ok((token, tokens.expires_in().unwrap_or(DEFAULT_LIFE)))
    }
}
