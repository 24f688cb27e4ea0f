//! Access tokens by client_credentials (RFC 6749 §4.4), kept until shortly before their end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use url::{Url, form_urlencoded};

use super::config::AccessConfig;
use crate::agent::{Exchange, LinkError, Links, host_header, shown};

/// How long one call to the provider may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// A token whose provider does not say how long it lives is used this long, in seconds.
const DEFAULT_LIFE: u64 = 60;
/// How long before its end a token is no longer used.
const RENEW_BEFORE: Duration = Duration::from_secs(30);

/// Why there is no access token. No message holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no connection to trust, or none at all.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No whole answer in time.
    #[error("the provider {0} does not answer in time")]
    Timeout(String),
    /// It is no OpenID provider, or not the one that was asked for.
    #[error("{0} is not the OpenID provider --issuer: {1}")]
    NotTheProvider(String, &'static str),
    /// It gives this program no token.
    #[error("the provider {0} refuses the service client: {1}")]
    Refused(String, String),
}

/// Gets tokens and keeps the last one.
pub struct AccessTokens {
    access: AccessConfig,
    links: Links,
    kept: Mutex<Option<(Arc<SecretString>, Instant)>>,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Token {
    #[serde(deserialize_with = "secret")]
    access_token: SecretString,
    token_type: String,
    expires_in: Option<u64>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    error_description: Option<String>,
}

impl AccessTokens {
    /// Asks nothing yet.
    pub fn new(access: AccessConfig, links: Links) -> Self {
        Self {
            access,
            links,
            kept: Mutex::new(None),
        }
    }

    /// A token with some of its life left. Callers at the same moment share one request.
    ///
    /// # Errors
    /// When the provider gives none.
    pub async fn get(&self) -> Result<Arc<SecretString>, TokenError> {
        let mut kept = self.kept.lock().await;
        if let Some((token, until)) = &*kept
            && Instant::now() < *until
        {
            return Ok(Arc::clone(token));
        }
        let asked = Instant::now();
        let late = |_| TokenError::Timeout(shown(&self.access.issuer));
        let token = timeout(CALL_TIMEOUT, self.fetch()).await.map_err(late)??;
        let life = Duration::from_secs(token.expires_in.unwrap_or(DEFAULT_LIFE));
        let until = asked + life.saturating_sub(RENEW_BEFORE.min(life / 3));
        let token = Arc::new(token.access_token);
        *kept = Some((Arc::clone(&token), until));
        Ok(token)
    }

    /// The kept token is good for nothing.
    pub async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    async fn fetch(&self) -> Result<Token, TokenError> {
        let AccessConfig { issuer, .. } = &self.access;
        let wrong = |what| TokenError::NotTheProvider(shown(issuer), what);
        let base = issuer.as_str().trim_end_matches('/');
        let discovery: Url = format!("{base}/.well-known/openid-configuration")
            .parse()
            .map_err(|_| wrong("its URL cannot be extended"))?;
        let request = request(Method::GET, &discovery).body(Full::default());
        let (status, body) = self.call(&discovery, request).await?;
        if status != 200 {
            return Err(wrong("there is no discovery document"));
        }
        let metadata: Metadata = serde_json::from_slice(&body)
            .map_err(|_| wrong("its discovery document cannot be read"))?;
        if metadata.issuer.trim_end_matches('/') != base {
            return Err(wrong("its discovery document names another issuer"));
        }
        let endpoint = Url::parse(&metadata.token_endpoint)
            .map_err(|_| wrong("its token endpoint is not a URL"))?;
        if issuer.scheme() == "https" && endpoint.scheme() != "https" {
            return Err(wrong("its token endpoint is not https"));
        }
        self.ask(&endpoint).await
    }

    async fn ask(&self, endpoint: &Url) -> Result<Token, TokenError> {
        let AccessConfig { issuer, params, .. } = &self.access;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .extend_pairs(params)
            .finish();
        let request = request(Method::POST, endpoint)
            .header(header::AUTHORIZATION, self.basic())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form));
        let (status, body) = self.call(endpoint, request).await?;
        let refused = |why: String| TokenError::Refused(shown(issuer), why);
        if status != 200 {
            let why = match serde_json::from_slice::<Refusal>(&body) {
                Ok(refusal) => match refusal.error_description {
                    Some(description) => format!("{} ({description})", refusal.error),
                    None => refusal.error,
                },
                Err(_) => format!("status {status}"),
            };
            // Nothing of a terminal's escape codes comes from the provider.
            return Err(refused(why.chars().filter(|c| !c.is_control()).collect()));
        }
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| refused("its answer holds no access token".to_owned()))?;
        match token.token_type.eq_ignore_ascii_case("bearer") {
            true => Ok(token),
            false => Err(refused("its token is no bearer token".to_owned())),
        }
    }

    /// `client_secret_basic`: id and secret are form-encoded first (RFC 6749 §2.3.1).
    fn basic(&self) -> HeaderValue {
        let encode =
            |text: &str| -> String { form_urlencoded::byte_serialize(text.as_bytes()).collect() };
        let id = encode(&self.access.client_id);
        let secret = encode(self.access.client_secret.expose_secret());
        let credentials = BASE64.encode(format!("{id}:{secret}").as_bytes());
        let mut value =
            HeaderValue::try_from(format!("Basic {credentials}")).expect("base64 is visible ASCII");
        value.set_sensitive(true);
        value
    }

    async fn call(
        &self,
        url: &Url,
        request: Result<Request<Full<Bytes>>, http::Error>,
    ) -> Result<(u16, Bytes), TokenError> {
        let invalid = |_| TokenError::NotTheProvider(shown(url), "its URL is not valid");
        let request = request.map_err(invalid)?;
        let (answer, connection): (Response<Incoming>, Exchange) =
            self.links.exchange(url, request).await?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
        let (body, ()) = tokio::join!(body, connection);
        let cut_off = |_| {
            let what = "the answer is cut off or larger than 1 MiB".to_owned();
            LinkError::NoAnswer(shown(url), what)
        };
        Ok((status, body.map_err(cut_off)?.to_bytes()))
    }
}

fn request(method: Method, url: &Url) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(header::HOST, host_header(url))
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
}
