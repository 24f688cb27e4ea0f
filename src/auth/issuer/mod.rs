//! The development issuer: a real OpenID provider on loopback, with two people and no passwords.
//!
//! Metadata, authorization with PKCE, tokens signed with ES256, keys, userinfo, end of session, and
//! access tokens for programs (client credentials). It is used like any other provider and remembers nothing about browsers: every sign-in asks anew.

mod keys;
mod pages;
mod tokens;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Json};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::{Host, Url, form_urlencoded};

use crate::keys::KeyError;
use crate::net::{HttpLimits, Listener, serve_http};
use crate::types::{Clock, base32_lower, random_bytes};
use keys::SigningKey;
use pages::{error_page, sign_in_page, signed_out_page};

/// Our client at this provider: public, PKCE only.
pub const CLIENT_ID: &str = "edgecloud-dev";
/// What the client ids of programs begin with; there is one for each further text.
pub const PROGRAM_PREFIX: &str = "edgecloud-dev-";
/// The secret of every program: who reaches this provider may be anybody anyway.
pub const PROGRAM_SECRET: &str = "edgecloud-dev-secret";
/// What access tokens of programs are meant for.
pub const API_AUDIENCE: &str = "edgecloud-dev-api";
/// The people who can sign in.
pub const USERS: [&str; 2] = ["alice", "bob"];
/// How long a code is good.
const CODE_FOR: Duration = Duration::from_secs(60);
/// How long tokens are good.
const TOKEN_FOR: Duration = Duration::from_secs(3600);
/// Codes, and access tokens, that are kept at once; at the limit the oldest go.
const MAX_KEPT: usize = 1_000;

const LIMITS: HttpLimits = HttpLimits {
    head_bytes: 16 * 1024,
    headers: 64,
    header_read_timeout: Duration::from_secs(10),
    connections: 256,
};

/// Why the issuer does not start.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Everybody who reaches it can sign in as anybody.
    #[error("the development issuer listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The address is taken.
    #[error("cannot listen on {0} for the development issuer (dev.issuer_listen): {1}")]
    Bind(SocketAddr, io::Error),
    /// The signing key cannot be used.
    #[error("the development issuer has no key: {0}")]
    Key(#[from] KeyError),
}

/// A development issuer that listens but does not answer yet.
pub struct DevIssuer {
    listener: Listener,
    issuer: Arc<Issuer>,
}

struct Issuer {
    url: String,
    key: SigningKey,
    clock: Clock,
    codes: Mutex<Kept<Grant>>,
    access_tokens: Mutex<Kept<&'static str>>,
}

#[derive(Clone)]
struct Grant {
    user: &'static str,
    redirect_uri: String,
    nonce: Option<String>,
    challenge: String,
}

/// What is kept under random names for a while.
struct Kept<T>(HashMap<String, (T, Instant)>);

impl<T> Kept<T> {
    fn put(&mut self, value: T, keep_for: Duration) -> String {
        let now = Instant::now();
        self.0.retain(|_, (_, until)| *until > now);
        if self.0.len() >= MAX_KEPT
            && let Some(oldest) = self.0.iter().min_by_key(|(_, (_, until))| *until)
        {
            let oldest = oldest.0.clone();
            self.0.remove(&oldest);
        }
        let name = base32_lower(&random_bytes::<32>());
        self.0.insert(name.clone(), (value, now + keep_for));
        name
    }

    fn take(&mut self, name: &str) -> Option<T> {
        let (value, until) = self.0.remove(name)?;
        (until > Instant::now()).then_some(value)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DevIssuer {
    /// Binds, and reads or makes the signing key in `key_dir`.
    ///
    /// # Errors
    /// When the address is taken or not loopback, or the key cannot be used.
    pub fn bind(addr: SocketAddr, key_dir: &Path, clock: Clock) -> Result<Self, IssuerError> {
        if !addr.ip().is_loopback() {
            return Err(IssuerError::NotLoopback(addr));
        }
        let listener =
            Listener::bind(addr, false, None).map_err(|error| IssuerError::Bind(addr, error))?;
        let issuer = Issuer {
            url: format!("http://{}", listener.addr()),
            key: SigningKey::load_or_create(&key_dir.join("dev-issuer.key"))?,
            clock,
            codes: Mutex::new(Kept(HashMap::new())),
            access_tokens: Mutex::new(Kept(HashMap::new())),
        };
        Ok(Self {
            listener,
            issuer: Arc::new(issuer),
        })
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// The issuer's name.
    pub fn issuer_url(&self) -> &str {
        &self.issuer.url
    }

    /// Answers until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/jwks", get(jwks))
            .route("/authorize", get(authorize_form).post(authorize))
            .route("/token", post(tokens::token))
            .route("/userinfo", get(tokens::userinfo).post(tokens::userinfo))
            .route("/end-session", get(end_session))
            .with_state(self.issuer);
        serve_http(self.listener, router, LIMITS, stop.clone(), stop).await;
    }
}

async fn metadata(State(issuer): State<Arc<Issuer>>) -> Response {
    let at = |path: &str| format!("{}{path}", issuer.url);
    Json(json!({
        "issuer": issuer.url,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "jwks_uri": at("/jwks"),
        "userinfo_endpoint": at("/userinfo"),
        "end_session_endpoint": at("/end-session"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "client_credentials"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "profile", "email"],
        "claims_supported": ["sub", "name", "email", "email_verified"],
        "authorization_response_iss_parameter_supported": true,
    }))
    .into_response()
}

async fn jwks(State(issuer): State<Arc<Issuer>>) -> Response {
    Json(json!({ "keys": [issuer.key.jwk()] })).into_response()
}

/// A checked authorization request.
struct Authorization {
    redirect_uri: Url,
    state: Option<String>,
    nonce: Option<String>,
    challenge: String,
}

/// Why an authorization request is not served.
enum Unserved {
    /// It is not known where to send the browser: a page says what is wrong.
    Page(&'static str),
    /// The client is told.
    Redirect(Box<Url>, Option<String>, &'static str),
}

fn check(query: &str) -> Result<Authorization, Unserved> {
    let mut params: HashMap<String, String> = HashMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
        if params.insert(name, value).is_some() {
            return Err(Unserved::Page("a parameter is there more than once"));
        }
    }
    if params.get("client_id").map(String::as_str) != Some(CLIENT_ID) {
        return Err(Unserved::Page("client_id must be edgecloud-dev"));
    }
    let redirect_uri = params
        .get("redirect_uri")
        .and_then(|uri| Url::parse(uri).ok())
        .filter(|uri| {
            is_loopback(uri)
                && uri.path() == "/api/auth/callback"
                && uri.query().is_none()
                && uri.fragment().is_none()
        })
        .ok_or(Unserved::Page(
            "redirect_uri must be a loopback address with the path /api/auth/callback",
        ))?;
    let state = params.get("state").cloned();
    let param = |name: &str| params.get(name).map(String::as_str);
    let refuse = |error| {
        Err(Unserved::Redirect(
            Box::new(redirect_uri.clone()),
            state.clone(),
            error,
        ))
    };
    if param("response_type") != Some("code") {
        return refuse("unsupported_response_type");
    }
    if !param("scope")
        .unwrap_or_default()
        .split(' ')
        .any(|scope| scope == "openid")
    {
        return refuse("invalid_scope");
    }
    // The SHA-256 of a verifier is 43 characters of base64url (RFC 7636 §4.2).
    let challenge = param("code_challenge").filter(|challenge| challenge.len() == 43);
    let (Some(challenge), Some("S256")) = (challenge, param("code_challenge_method")) else {
        return refuse("invalid_request");
    };
    Ok(Authorization {
        state: state.clone(),
        nonce: params.get("nonce").cloned(),
        challenge: challenge.to_owned(),
        redirect_uri: redirect_uri.clone(),
    })
}

fn is_loopback(url: &Url) -> bool {
    let host = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(addr)) => addr.is_loopback(),
        Some(Host::Ipv6(addr)) => addr.is_loopback(),
        None => false,
    };
    host && matches!(url.scheme(), "http" | "https")
}

impl Issuer {
    fn answer_unserved(&self, unserved: Unserved) -> Response {
        match unserved {
            Unserved::Page(what) => {
                (StatusCode::BAD_REQUEST, Html(error_page(what))).into_response()
            }
            Unserved::Redirect(uri, state, error) => self.send_back(*uri, state, ("error", error)),
        }
    }

    fn send_back(&self, mut uri: Url, state: Option<String>, with: (&str, &str)) -> Response {
        let mut query = uri.query_pairs_mut();
        query.append_pair(with.0, with.1);
        if let Some(state) = &state {
            query.append_pair("state", state);
        }
        query.append_pair("iss", &self.url);
        drop(query);
        (
            [(header::CACHE_CONTROL, "no-store")],
            Redirect::to(uri.as_str()),
        )
            .into_response()
    }
}

async fn authorize_form(State(issuer): State<Arc<Issuer>>, RawQuery(query): RawQuery) -> Response {
    match check(query.as_deref().unwrap_or_default()) {
        Ok(_) => Html(sign_in_page()).into_response(),
        Err(unserved) => issuer.answer_unserved(unserved),
    }
}

#[derive(Deserialize)]
struct Choice {
    user: String,
}

async fn authorize(
    State(issuer): State<Arc<Issuer>>,
    RawQuery(query): RawQuery,
    Form(choice): Form<Choice>,
) -> Response {
    let request = match check(query.as_deref().unwrap_or_default()) {
        Ok(request) => request,
        Err(unserved) => return issuer.answer_unserved(unserved),
    };
    let Some(user) = USERS.into_iter().find(|user| *user == choice.user) else {
        return issuer.answer_unserved(Unserved::Page("user must be alice or bob"));
    };
    let grant = Grant {
        user,
        redirect_uri: request.redirect_uri.to_string(),
        nonce: request.nonce,
        challenge: request.challenge,
    };
    let code = lock(&issuer.codes).put(grant, CODE_FOR);
    issuer.send_back(request.redirect_uri, request.state, ("code", &code))
}

async fn end_session(RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let param = |wanted: &str| {
        form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
    };
    let target = param("post_logout_redirect_uri")
        .and_then(|uri| Url::parse(&uri).ok())
        .filter(|uri| is_loopback(uri) && param("client_id").as_deref() == Some(CLIENT_ID));
    let Some(mut target) = target else {
        return Html(signed_out_page()).into_response();
    };
    if let Some(state) = param("state") {
        target.query_pairs_mut().append_pair("state", &state);
    }
    Redirect::to(target.as_str()).into_response()
}
