//! The token endpoint (RFC 6749 §3.2): codes, refresh tokens and our own credentials for tokens.

use futures_util::future::BoxFuture;
use openidconnect::core::{CoreClient, CoreErrorResponseType, CoreTokenResponse};
use openidconnect::{
    AuthType, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet, IssuerUrl,
    PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, Scope, StandardErrorResponse,
    TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};

use super::metadata::Provider;
use super::{HttpClient, HttpError, OidcError};

type TokenClient = CoreClient<
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
    EndpointNotSet,
>;

/// Who asks.
pub struct Asker<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    /// Without it a public client: the client id goes into the body and nothing else.
    pub client_secret: Option<&'a SecretString>,
}

impl Asker<'_> {
    fn client(&self, provider: &Provider) -> Result<TokenClient, OidcError> {
        let metadata = &provider.metadata;
        let issuer = IssuerUrl::new(self.issuer.to_owned())
            .map_err(|_| OidcError::Unusable("oidc.issuer is not a URL".to_owned()))?;
        let auth_type = match metadata.accepts_basic() {
            true => AuthType::BasicAuth,
            false => AuthType::RequestBody,
        };
        let client_id = ClientId::new(self.client_id.to_owned());
        let client = CoreClient::new(client_id, issuer, provider.keys.clone())
            .set_token_uri(TokenUrl::from_url(metadata.token_endpoint.clone()))
            .set_auth_type(auth_type);
        Ok(match self.client_secret {
            Some(secret) => {
                client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()))
            }
            None => client,
        })
    }

    /// A code for tokens.
    pub async fn exchange_code(
        &self,
        provider: &Provider,
        http: &HttpClient,
        redirect_uri: &str,
        (code, verifier): (&str, &str),
    ) -> Result<CoreTokenResponse, OidcError> {
        let redirect_uri = RedirectUrl::new(redirect_uri.to_owned())
            .map_err(|_| OidcError::Unusable("our own address is not a URL".to_owned()))?;
        self.client(provider)?
            .set_redirect_uri(redirect_uri)
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.to_owned()))
            .request_async(&caller(http))
            .await
            .map_err(error)
    }

    /// A refresh token for new tokens. [`OidcError::Refused`] is definite: the token is of no use any
    /// more.
    pub async fn refresh(
        &self,
        provider: &Provider,
        http: &HttpClient,
        refresh_token: &SecretString,
    ) -> Result<CoreTokenResponse, OidcError> {
        let token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let answer = self
            .client(provider)?
            .exchange_refresh_token(&token)
            .request_async(&caller(http))
            .await;
        answer.map_err(|failure| match failure {
            RequestTokenError::ServerResponse(answer) => match answer.error() {
                CoreErrorResponseType::InvalidGrant => {
                    OidcError::Refused("the refresh token is not valid any more".to_owned())
                }
                // Of our client or its registration, not of the person.
                other => OidcError::Unavailable(format!("the token endpoint answered {other}")),
            },
            RequestTokenError::Request(error) => error.into(),
            _ => OidcError::Unavailable("the token endpoint's answer is not valid".to_owned()),
        })
    }

    /// Our own credentials for an access token (RFC 6749 §4.4).
    pub async fn client_credentials(
        &self,
        provider: &Provider,
        http: &HttpClient,
        scopes: &[String],
    ) -> Result<CoreTokenResponse, OidcError> {
        self.client(provider)?
            .exchange_client_credentials()
            .add_scopes(scopes.iter().cloned().map(Scope::new))
            .request_async(&caller(http))
            .await
            .map_err(error)
    }
}

type Answer = http::Response<Vec<u8>>;

/// Owned, since a borrow in here would make the future of a handler not provably Send.
fn caller(
    http: &HttpClient,
) -> impl Fn(http::Request<Vec<u8>>) -> BoxFuture<'static, Result<Answer, HttpError>> + use<> {
    let http = http.clone();
    move |request| {
        let http = http.clone();
        Box::pin(async move { http.call(request).await })
    }
}

fn error(
    failure: RequestTokenError<HttpError, StandardErrorResponse<CoreErrorResponseType>>,
) -> OidcError {
    match failure {
        // Only the code: a description could hold what was sent.
        RequestTokenError::ServerResponse(answer) => {
            OidcError::Refused(format!("the token endpoint answered {}", answer.error()))
        }
        RequestTokenError::Request(error) => error.into(),
        _ => OidcError::Refused("the token endpoint's answer is not valid".to_owned()),
    }
}
