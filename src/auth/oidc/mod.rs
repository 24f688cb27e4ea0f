//! OpenID Connect as a relying party: the authorization code flow with PKCE.
//!
//! The provider's metadata and keys are fetched when they are first needed and cached. A provider
//! that is away stops no process: sign-ins fail until it is back.

mod access_token;
mod callback;
mod id_token;
mod jwt;
mod logout;
mod metadata;
mod renewal;
mod service_token;
#[cfg(all(test, feature = "dev-issuer"))]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;
mod tokens;

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::{Request, header};
use openidconnect::core::CoreTokenResponse;
use openidconnect::{OAuth2TokenResponse, TokenResponse};
use secrecy::SecretString;
use serde_json::{Map, Value};
use url::Url;

pub use access_token::VerifiedAccessToken;
pub use callback::{CallbackError, CallbackParams};
use id_token::{IdTokenError, VerifiedIdToken};
use jwt::JwtError;
pub use logout::{LogoutError, VerifiedLogoutToken};
use metadata::{Provider, ProviderCache};
pub use renewal::{Grant, Renewed};
pub use service_token::{ServiceCredentials, ServiceToken};
use tokens::Asker;

use super::http::{HttpClient, HttpError};
use super::pending::PendingLogin;
use crate::device_token::sha256;
use crate::types::{Clock, Role, random_bytes};

/// Our registration at the provider.
#[derive(Debug, Clone)]
pub struct OidcSettings {
    /// The provider, exactly as it names itself.
    pub issuer: String,
    /// Our client there.
    pub client_id: String,
    /// Without it we are a public client: PKCE only.
    pub client_secret: Option<SecretString>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// More parameters of the authorization request.
    pub authorize_params: Vec<(String, String)>,
    /// Signature algorithms of ID tokens.
    pub allowed_algs: Vec<String>,
    /// The claim that names a person's tenants.
    pub tenant_claim: Option<String>,
    /// What access tokens of service clients must be meant for; without it none is accepted.
    pub api_audience: Option<String>,
}

/// Why a sign-in failed. Tells what the provider did, never what was secret about it.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The provider cannot be reached or does not work; later may be better.
    #[error("the provider is not available: {0}")]
    Unavailable(String),
    /// The provider is not what the configuration says, or cannot do what is needed.
    #[error("the provider cannot be used: {0}")]
    Unusable(String),
    /// The answer is not acceptable.
    #[error("the sign-in was refused: {0}")]
    Refused(String),
}

impl From<HttpError> for OidcError {
    fn from(error: HttpError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Who signed in, as the provider says.
#[derive(Debug)]
pub struct SignedIn {
    /// The provider.
    pub issuer: String,
    /// The person there.
    pub subject: String,
    /// For display only.
    pub email: Option<String>,
    /// For display only.
    pub name: Option<String>,
    /// The provider's name of its own session.
    pub sid: Option<String>,
    /// Tenants and roles by the configured claim.
    pub tenants: Option<Vec<(String, Role)>>,
    /// The refresh token, if the provider gave one.
    pub grant: Option<Grant>,
}

/// The relying party. Cheap to clone.
#[derive(Clone)]
pub struct OidcClient(Arc<Inner>);

struct Inner {
    settings: OidcSettings,
    http: HttpClient,
    clock: Clock,
    provider: ProviderCache,
}

impl OidcClient {
    /// A relying party; asks nothing of the provider yet.
    pub fn new(settings: OidcSettings, http: HttpClient, clock: Clock) -> Self {
        let public = settings.client_secret.is_none();
        let provider = ProviderCache::new(settings.issuer.clone(), public);
        Self(Arc::new(Inner {
            settings,
            http,
            clock,
            provider,
        }))
    }

    /// Whether the provider could not be used when it was last asked.
    pub fn is_degraded(&self) -> bool {
        self.0.provider.is_degraded()
    }

    /// Asks whether the provider can be used now.
    pub async fn probe(&self) {
        if let Err(error) = self.0.provider.probe(&self.0.http).await {
            tracing::warn!(%error, "people cannot sign in");
        }
    }

    /// Begins a sign-in: where to send the browser, and what to remember.
    ///
    /// # Errors
    /// When the provider cannot be used.
    pub async fn begin(
        &self,
        redirect_uri: &str,
        return_to: String,
    ) -> Result<(Url, PendingLogin), OidcError> {
        let provider = self.0.provider.get(&self.0.http).await?;
        let secret = || BASE64URL_NOPAD.encode(&random_bytes::<32>());
        let pending = PendingLogin {
            state: secret(),
            nonce: secret(),
            verifier: secret(),
            return_to,
            created_at: self.0.clock.now(),
        };
        let settings = &self.0.settings;
        let challenge = BASE64URL_NOPAD.encode(&sha256(pending.verifier.as_bytes()));
        let mut url = provider.metadata.authorization_endpoint.clone();
        let mut query = url.query_pairs_mut();
        for (name, value) in &settings.authorize_params {
            query.append_pair(name, value);
        }
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &settings.client_id)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("scope", &settings.scopes.join(" "))
            .append_pair("state", &pending.state)
            .append_pair("nonce", &pending.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        drop(query);
        Ok((url, pending))
    }

    /// Finishes a sign-in. The caller has found `pending` by the answer's state and used the state
    /// up.
    ///
    /// # Errors
    /// When the provider cannot be used or its answer is not acceptable.
    pub async fn finish(
        &self,
        redirect_uri: &str,
        pending: &PendingLogin,
        params: &CallbackParams,
    ) -> Result<SignedIn, OidcError> {
        let provider = self.0.provider.get(&self.0.http).await?;
        self.check_iss(&provider, params)?;
        let code = params.code.as_deref().ok_or_else(|| match &params.error {
            Some(error) => OidcError::Refused(format!("the provider answered {error}")),
            None => OidcError::Refused("the provider sent no code".to_owned()),
        })?;
        let tokens = self
            .asker()
            .exchange_code(
                &provider,
                &self.0.http,
                redirect_uri,
                (code, &pending.verifier),
            )
            .await?;
        if tokens.id_token().is_none() {
            let message = "the provider sent no ID token";
            return Err(OidcError::Refused(message.to_owned()));
        }
        let verified = self
            .verify_id_token(&provider, &tokens, Some(&pending.nonce))
            .await?;
        let grant = Grant::of(&tokens, verified.as_ref(), self.0.clock.now());
        let mut signed_in = self.describe(&provider, verified, &tokens, None).await?;
        signed_in.grant = grant;
        Ok(signed_in)
    }

    /// Our client at the token endpoint.
    fn asker(&self) -> Asker<'_> {
        let settings = &self.0.settings;
        Asker {
            issuer: &settings.issuer,
            client_id: &settings.client_id,
            client_secret: settings.client_secret.as_ref(),
        }
    }

    /// The verified ID token of an answer, `None` when there is none in it.
    async fn verify_id_token(
        &self,
        provider: &Provider,
        tokens: &CoreTokenResponse,
        nonce: Option<&str>,
    ) -> Result<Option<VerifiedIdToken>, OidcError> {
        let Some(id_token) = tokens.id_token() else {
            return Ok(None);
        };
        let expected = id_token::Expected {
            issuer: &self.0.settings.issuer,
            client_id: &self.0.settings.client_id,
            nonce,
            allowed_algs: &self.0.settings.allowed_algs,
            access_token: tokens.access_token(),
            now: self.0.clock.now(),
        };
        let verified = match id_token::verify(id_token, &provider.keys, &expected) {
            Err(IdTokenError::UnknownKey) => {
                let provider = self.0.provider.refetch_keys(&self.0.http).await?;
                id_token::verify(id_token, &provider.keys, &expected)
            }
            verified => verified,
        };
        verified
            .map(Some)
            .map_err(|error| OidcError::Refused(error.to_string()))
    }

    /// The claims of a signed token that is no ID token, by the provider's keys; asks for new keys once
    /// when it names one that is not known.
    async fn verify_jwt(
        &self,
        token: &str,
        typ: &'static str,
        audience: &str,
    ) -> Result<Result<Map<String, Value>, JwtError>, OidcError> {
        let expected = jwt::Expected {
            typ,
            issuer: &self.0.settings.issuer,
            audience,
            allowed_algs: &self.0.settings.allowed_algs,
            now: self.0.clock.now(),
        };
        let provider = self.0.provider.last_seen(&self.0.http).await?;
        match jwt::verify(token, &provider.keys, &expected) {
            Err(JwtError::UnknownKey) => {
                let provider = self.0.provider.refetch_keys(&self.0.http).await?;
                Ok(jwt::verify(token, &provider.keys, &expected))
            }
            verified => Ok(verified),
        }
    }

    /// RFC 9207: the answer must name the provider that was asked, if it names any or always does.
    fn check_iss(&self, provider: &Provider, params: &CallbackParams) -> Result<(), OidcError> {
        match &params.iss {
            Some(iss) if *iss == self.0.settings.issuer => Ok(()),
            None if !provider
                .metadata
                .authorization_response_iss_parameter_supported =>
            {
                Ok(())
            }
            _ => Err(OidcError::Refused(
                "the answer is not from our provider (iss)".to_owned(),
            )),
        }
    }

    /// Who a person is, by the ID token and userinfo; without an ID token by `subject`.
    async fn describe(
        &self,
        provider: &Provider,
        verified: Option<VerifiedIdToken>,
        tokens: &CoreTokenResponse,
        subject: Option<&str>,
    ) -> Result<SignedIn, OidcError> {
        let (said, mut claims) = match verified {
            Some(verified) => (Some(verified.subject), verified.claims),
            None => (None, Map::new()),
        };
        let subject = match (said, subject) {
            (Some(said), Some(subject)) if said != subject => {
                let message = "the ID token speaks of somebody else (sub)";
                return Err(OidcError::Refused(message.to_owned()));
            }
            (Some(said), _) => said,
            (None, subject) => subject.unwrap_or_default().to_owned(),
        };
        if let Some(endpoint) = &provider.metadata.userinfo_endpoint {
            let access_token = tokens.access_token().secret();
            let info = self.userinfo(endpoint, access_token).await?;
            if info.get("sub").and_then(Value::as_str) != Some(&subject) {
                let message = "userinfo speaks of somebody else (sub)";
                return Err(OidcError::Refused(message.to_owned()));
            }
            for (name, value) in info {
                claims.entry(name).or_insert(value);
            }
        }
        let text = |name: &str| {
            claims
                .get(name)
                .and_then(|value| value.as_str())
                .map(|text| truncate(text, 256))
        };
        let claim = self.0.settings.tenant_claim.as_deref();
        Ok(SignedIn {
            issuer: self.0.settings.issuer.clone(),
            subject,
            email: text("email").filter(|email| email.matches('@').count() == 1),
            name: text("name").or_else(|| text("preferred_username")),
            sid: text("sid"),
            tenants: claim.map(|claim| id_token::claimed_tenants(claims.get(claim))),
            grant: None,
        })
    }

    async fn userinfo(
        &self,
        endpoint: &Url,
        access_token: &str,
    ) -> Result<Map<String, Value>, OidcError> {
        let request = Request::get(endpoint.as_str())
            .header(header::AUTHORIZATION, format!("Bearer {access_token}"))
            .header(header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|_| OidcError::Unusable("its access tokens are not valid".to_owned()))?;
        let response = self.0.http.call(request).await?;
        if !response.status().is_success() {
            let message = format!("userinfo answered {}", response.status().as_u16());
            return Err(OidcError::Unavailable(message));
        }
        serde_json::from_slice(response.body())
            .map_err(|_| OidcError::Refused("userinfo is not a JSON object".to_owned()))
    }

    /// Where to send a browser that signs out, if the provider wants to know (RP-Initiated Logout
    /// 1.0); without `id_token_hint`, since no token goes to a browser.
    pub async fn end_session_url(&self, return_to: &str) -> Option<Url> {
        let provider = self.0.provider.last_seen(&self.0.http).await.ok()?;
        let mut url = provider.metadata.end_session_endpoint.clone()?;
        url.query_pairs_mut()
            .append_pair("client_id", &self.0.settings.client_id)
            .append_pair("post_logout_redirect_uri", return_to)
            .append_pair("state", &BASE64URL_NOPAD.encode(&random_bytes::<16>()));
        Some(url)
    }
}

fn truncate(text: &str, chars: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(chars)
        .collect()
}
