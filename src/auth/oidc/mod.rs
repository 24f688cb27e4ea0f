//! OpenID Connect as a relying party: the authorization code flow with PKCE.
//!
//! The provider's metadata and keys are fetched when they are first needed and cached. A provider
//! that is away stops no process: sign-ins fail until it is back.

mod callback;
mod id_token;
mod metadata;
#[cfg(all(test, feature = "dev-issuer"))]
#[expect(
    clippy::disallowed_methods,
    reason = "tests end with their runtime, which owns their tasks"
)]
mod tests;

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::{Request, header};
use openidconnect::core::{CoreClient, CoreTokenResponse};
use openidconnect::{
    AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, IssuerUrl, OAuth2TokenResponse,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, TokenResponse, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

pub use callback::{CallbackError, CallbackParams};
use id_token::{Expected, IdTokenError, VerifiedIdToken};
use metadata::{Provider, ProviderCache};

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

    /// Asks the provider for its metadata if they are missing or old.
    pub async fn refresh_if_due(&self) {
        if let Err(error) = self.0.provider.get(&self.0.http).await {
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
            .exchange(&provider, redirect_uri, code, &pending.verifier)
            .await?;
        let id_token = tokens
            .id_token()
            .ok_or_else(|| OidcError::Refused("the provider sent no ID token".to_owned()))?;
        let expected = Expected {
            issuer: &self.0.settings.issuer,
            client_id: &self.0.settings.client_id,
            nonce: &pending.nonce,
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
        let verified = verified.map_err(|error| OidcError::Refused(error.to_string()))?;
        self.describe(&provider, verified, tokens.access_token().secret())
            .await
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

    async fn exchange(
        &self,
        provider: &Provider,
        redirect_uri: &str,
        code: &str,
        verifier: &str,
    ) -> Result<CoreTokenResponse, OidcError> {
        let settings = &self.0.settings;
        let unusable = |_| OidcError::Unusable("its metadata have no proper URLs".to_owned());
        let metadata = &provider.metadata;
        let auth_type = match metadata.accepts_basic() {
            true => AuthType::BasicAuth,
            false => AuthType::RequestBody,
        };
        let mut client = CoreClient::new(
            ClientId::new(settings.client_id.clone()),
            IssuerUrl::new(settings.issuer.clone()).map_err(unusable)?,
            provider.keys.clone(),
        )
        .set_auth_uri(AuthUrl::from_url(metadata.authorization_endpoint.clone()))
        .set_token_uri(TokenUrl::from_url(metadata.token_endpoint.clone()))
        .set_redirect_uri(RedirectUrl::new(redirect_uri.to_owned()).map_err(unusable)?)
        .set_auth_type(auth_type);
        if let Some(secret) = &settings.client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()));
        }
        // Owned, since a borrow in here would make the future of a handler not provably Send.
        let http = self.0.http.clone();
        let http = move |request| {
            let http = http.clone();
            async move { http.call(request).await }
        };
        client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.to_owned()))
            .request_async(&http)
            .await
            .map_err(|error| match error {
                // The description is the provider's free text; the code alone is safe to repeat.
                RequestTokenError::ServerResponse(answer) => {
                    OidcError::Refused(format!("the token endpoint answered {}", answer.error()))
                }
                RequestTokenError::Request(error) => OidcError::Unavailable(error.to_string()),
                _ => OidcError::Refused("the token endpoint's answer is not valid".to_owned()),
            })
    }

    async fn describe(
        &self,
        provider: &Provider,
        verified: VerifiedIdToken,
        access_token: &str,
    ) -> Result<SignedIn, OidcError> {
        let mut claims = verified.claims;
        if let Some(endpoint) = &provider.metadata.userinfo_endpoint {
            let info = self.userinfo(endpoint, access_token).await?;
            if info.get("sub").and_then(|sub| sub.as_str()) != Some(&verified.subject) {
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
            subject: verified.subject,
            email: text("email").filter(|email| email.matches('@').count() == 1),
            name: text("name").or_else(|| text("preferred_username")),
            sid: text("sid"),
            tenants: claim.map(|claim| id_token::claimed_tenants(claims.get(claim))),
        })
    }

    async fn userinfo(
        &self,
        endpoint: &Url,
        access_token: &str,
    ) -> Result<serde_json::Map<String, serde_json::Value>, OidcError> {
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
        let provider = self.0.provider.get(&self.0.http).await.ok()?;
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
