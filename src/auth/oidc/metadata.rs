//! The provider's metadata and keys, fetched when needed and kept for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// How long keys are used to verify while the provider does not answer.
const STALE_FOR: Duration = Duration::from_secs(24 * 3600);
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
    /// With the time since when its keys are known.
    provider: Option<(Arc<Provider>, Instant)>,
    failed: Option<(Failure, Instant)>,
    keys_refetched: Option<Instant>,
}

/// Why the provider could not be used when it was last asked.
#[derive(Clone)]
struct Failure {
    message: String,
    unusable: bool,
}

impl From<Failure> for OidcError {
    fn from(failure: Failure) -> Self {
        match failure.unusable {
            true => Self::Unusable(failure.message),
            false => Self::Unavailable(failure.message),
        }
    }
}

/// Fetches the provider at most once at a time.
pub struct ProviderCache {
    issuer: String,
    public_client: bool,
    state: Mutex<State>,
    degraded: AtomicBool,
}

impl ProviderCache {
    pub fn new(issuer: String, public_client: bool) -> Self {
        Self {
            issuer,
            public_client,
            state: Mutex::default(),
            degraded: AtomicBool::new(false),
        }
    }

    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// The provider, if it could be used when it was last asked, at most [`FRESH_FOR`] ago.
    pub async fn get(&self, http: &HttpClient) -> Result<Arc<Provider>, OidcError> {
        let mut state = self.state.lock().await;
        if let Some((failure, at)) = &state.failed
            && at.elapsed() < RETRY_AFTER
        {
            return Err(failure.clone().into());
        }
        match &state.provider {
            Some((provider, at)) if state.failed.is_none() && at.elapsed() < FRESH_FOR => {
                Ok(Arc::clone(provider))
            }
            _ => self.ask(&mut state, http, None).await,
        }
    }

    /// The provider as it was last seen, also when it does not answer at the moment: good for
    /// [`STALE_FOR`], to verify what it has signed.
    pub async fn last_seen(&self, http: &HttpClient) -> Result<Arc<Provider>, OidcError> {
        let asked = self.get(http).await;
        let error = match asked {
            Ok(provider) => return Ok(provider),
            Err(error) => error,
        };
        match &self.state.lock().await.provider {
            Some((provider, at)) if at.elapsed() < STALE_FOR => Ok(Arc::clone(provider)),
            _ => Err(error),
        }
    }

    /// Asks whether the provider can be used now, whatever is known; fresh keys are kept.
    pub async fn probe(&self, http: &HttpClient) -> Result<(), OidcError> {
        let mut state = self.state.lock().await;
        let fresh = state.provider.as_ref();
        let fresh = fresh.filter(|(_, at)| at.elapsed() < FRESH_FOR);
        let kept = fresh.map(|(provider, at)| (provider.keys.clone(), *at));
        self.ask(&mut state, http, kept).await.map(drop)
    }

    async fn ask(
        &self,
        state: &mut State,
        http: &HttpClient,
        kept: Option<(CoreJsonWebKeySet, Instant)>,
    ) -> Result<Arc<Provider>, OidcError> {
        let fetched = self.fetch(http, kept).await;
        self.degraded.store(fetched.is_err(), Ordering::Relaxed);
        match fetched {
            Ok((provider, keys_at)) => {
                let provider = Arc::new(provider);
                state.provider = Some((Arc::clone(&provider), keys_at));
                state.failed = None;
                Ok(provider)
            }
            Err(error) => {
                let failure = match &error {
                    OidcError::Unusable(message) => (message, true),
                    OidcError::Unavailable(message) | OidcError::Refused(message) => {
                        (message, false)
                    }
                };
                let failure = Failure {
                    message: failure.0.clone(),
                    unusable: failure.1,
                };
                state.failed = Some((failure, Instant::now()));
                Err(error)
            }
        }
    }

    /// The provider with its keys as they are now; within the cool-down as they were.
    pub async fn refetch_keys(&self, http: &HttpClient) -> Result<Arc<Provider>, OidcError> {
        let provider = self.last_seen(http).await?;
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

    /// The provider, and how old its keys are.
    async fn fetch(
        &self,
        http: &HttpClient,
        kept: Option<(CoreJsonWebKeySet, Instant)>,
    ) -> Result<(Provider, Instant), OidcError> {
        let base = self.issuer.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/.well-known/openid-configuration"))
            .map_err(|_| OidcError::Unusable("oidc.issuer is not a URL".to_owned()))?;
        let metadata: Metadata = get_json(http, &url).await?;
        metadata.check(&self.issuer, self.public_client)?;
        let (keys, at) = match kept {
            Some(kept) => kept,
            None => (get_json(http, &metadata.jwks_uri).await?, Instant::now()),
        };
        Ok((Provider { metadata, keys }, at))
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
