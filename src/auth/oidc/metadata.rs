//! The provider's metadata and keys, fetched when needed and kept for a while.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, header};
use openidconnect::core::CoreJsonWebKeySet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::{HttpClient, OidcError};

/// How long metadata and keys are good.
const FRESH_FOR: Duration = Duration::from_secs(3600);
/// How long to leave a provider alone that failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How often an unknown key may make us fetch the keys again.
const KEY_COOL_DOWN: Duration = Duration::from_secs(60);

/// OpenID Connect Discovery 1.0 §3, RFC 8414, RFC 9207; what we use of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    issuer: String,
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    jwks_uri: Url,
    pub userinfo_endpoint: Option<Url>,
    pub end_session_endpoint: Option<Url>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

impl Metadata {
    /// `client_secret_basic` is the default where nothing is announced.
    pub fn accepts_basic(&self) -> bool {
        let methods = &self.token_endpoint_auth_methods_supported;
        methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic")
    }

    fn check(&self, issuer: &str, public_client: bool) -> Result<(), OidcError> {
        let unusable = |message: String| Err(OidcError::Unusable(message));
        if self.issuer != issuer {
            return unusable(format!("it calls itself {:?}, not {issuer:?}", self.issuer));
        }
        let s256 = self
            .code_challenge_methods_supported
            .iter()
            .any(|method| method == "S256");
        if public_client && !s256 {
            return unusable(
                "it does not announce PKCE with S256, which a public client needs".to_owned(),
            );
        }
        let endpoints = [
            Some(&self.authorization_endpoint),
            Some(&self.token_endpoint),
            Some(&self.jwks_uri),
            self.userinfo_endpoint.as_ref(),
            self.end_session_endpoint.as_ref(),
        ];
        let plain_is_fine = issuer.starts_with("http:");
        for endpoint in endpoints.into_iter().flatten() {
            let scheme = endpoint.scheme();
            if scheme != "https" && !(plain_is_fine && scheme == "http") {
                return unusable("it names an endpoint that is not https".to_owned());
            }
        }
        Ok(())
    }
}

/// A provider as it was when last asked.
#[derive(Debug, Clone)]
pub struct Provider {
    pub metadata: Metadata,
    pub keys: CoreJsonWebKeySet,
}

#[derive(Default)]
struct State {
    provider: Option<(Arc<Provider>, Instant)>,
    failed: Option<(String, bool, Instant)>,
    keys_refetched: Option<Instant>,
}

/// Fetches the provider at most once at a time.
pub struct ProviderCache {
    issuer: String,
    public_client: bool,
    state: Mutex<State>,
    degraded: std::sync::atomic::AtomicBool,
}

impl ProviderCache {
    pub fn new(issuer: String, public_client: bool) -> Self {
        Self {
            issuer,
            public_client,
            state: Mutex::default(),
            degraded: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub fn is_degraded(&self) -> bool {
        self.degraded.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The provider, at most [`FRESH_FOR`] old.
    pub async fn get(&self, http: &HttpClient) -> Result<Arc<Provider>, OidcError> {
        let mut state = self.state.lock().await;
        if let Some((provider, at)) = &state.provider
            && at.elapsed() < FRESH_FOR
        {
            return Ok(Arc::clone(provider));
        }
        if let Some((message, unusable, at)) = &state.failed
            && at.elapsed() < RETRY_AFTER
        {
            let message = message.clone();
            return Err(match unusable {
                true => OidcError::Unusable(message),
                false => OidcError::Unavailable(message),
            });
        }
        let fetched = self.fetch(http).await;
        self.degraded
            .store(fetched.is_err(), std::sync::atomic::Ordering::Relaxed);
        match fetched {
            Ok(provider) => {
                let provider = Arc::new(provider);
                state.provider = Some((Arc::clone(&provider), Instant::now()));
                state.failed = None;
                Ok(provider)
            }
            Err(error) => {
                let (message, unusable) = match &error {
                    OidcError::Unusable(message) => (message.clone(), true),
                    OidcError::Unavailable(message) | OidcError::Refused(message) => {
                        (message.clone(), false)
                    }
                };
                state.failed = Some((message, unusable, Instant::now()));
                Err(error)
            }
        }
    }

    /// The provider with its keys as they are now; within the cool-down as they were.
    pub async fn refetch_keys(&self, http: &HttpClient) -> Result<Arc<Provider>, OidcError> {
        let provider = self.get(http).await?;
        let mut state = self.state.lock().await;
        if state
            .keys_refetched
            .is_some_and(|at| at.elapsed() < KEY_COOL_DOWN)
        {
            return Ok(state
                .provider
                .as_ref()
                .map_or(provider, |(now, _)| Arc::clone(now)));
        }
        state.keys_refetched = Some(Instant::now());
        let keys = get_json(http, &provider.metadata.jwks_uri).await?;
        let provider = Arc::new(Provider {
            keys,
            metadata: provider.metadata.clone(),
        });
        state.provider = Some((Arc::clone(&provider), Instant::now()));
        Ok(provider)
    }

    async fn fetch(&self, http: &HttpClient) -> Result<Provider, OidcError> {
        let base = self.issuer.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/.well-known/openid-configuration"))
            .map_err(|_| OidcError::Unusable("oidc.issuer is not a URL".to_owned()))?;
        let metadata: Metadata = get_json(http, &url).await?;
        metadata.check(&self.issuer, self.public_client)?;
        let keys = get_json(http, &metadata.jwks_uri).await?;
        Ok(Provider { metadata, keys })
    }
}

async fn get_json<T: DeserializeOwned>(http: &HttpClient, url: &Url) -> Result<T, OidcError> {
    let request = Request::get(url.as_str())
        .header(header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|_| OidcError::Unusable("it names an address that is no URL".to_owned()))?;
    let response = http.call(request).await?;
    if response.status() != http::StatusCode::OK {
        let message = format!("{} answered {}", url.path(), response.status().as_u16());
        return Err(OidcError::Unavailable(message));
    }
    serde_json::from_slice(response.body())
        .map_err(|_| OidcError::Unavailable(format!("the answer of {} is not valid", url.path())))
}
