//! An OpenID provider that answers as a test tells it to, one sign-in at a time, and counts what it is
//! asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use url::{Url, form_urlencoded};

use super::http::random_token;
use super::signing::{RsaKey, Signer, alg_of, sha256};

/// Our client at the provider, unless the test registers another.
const CLIENT_ID: &str = "edgecloud";

/// What the provider can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Its discovery document.
    Discovery,
    /// Its keys.
    Keys,
    /// Tokens for a code.
    Token,
    /// Who the person is.
    Userinfo,
}

/// How an ID token is signed.
#[derive(Debug, Clone, Default)]
pub enum Signature {
    /// ES256 with the provider's current key.
    #[default]
    Es256,
    /// RS256 with the provider's RSA key.
    Rs256,
    /// ES256 with a key that the provider does not publish.
    Stranger,
    /// HS256 with these bytes as the secret.
    Hs256(Vec<u8>),
    /// None, as after a signature was cut off.
    Stripped,
}

/// What the token endpoint answers.
#[derive(Debug, Clone, Default)]
pub enum TokenAnswer {
    /// Tokens, if code and verifier are right.
    #[default]
    Tokens,
    /// An error of OAuth 2.0.
    Error(&'static str),
    /// Redirects elsewhere with this status.
    Redirect(u16, String),
    /// So many bytes of JSON that does not end.
    Huge(usize),
    /// Never anything.
    Silence,
    /// A page for people.
    Page,
    /// Tokens without an ID token.
    NoIdToken,
}

/// How one sign-in goes. The default is as it should be, of a new person each time.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Put over the right claims; `null` removes.
    pub claims: Value,
    /// Claims as text, for what is not JSON to everybody, like `1e400`.
    pub raw_claims: Vec<(&'static str, &'static str)>,
    /// Put over the right header of the ID token; `null` removes.
    pub header: Value,
    /// How the ID token is signed.
    pub signature: Signature,
    /// What the token endpoint answers.
    pub answer: TokenAnswer,
    /// Put over what userinfo says, which is `sub` alone.
    pub userinfo: Value,
}

impl Script {
    /// A sign-in of one person.
    pub fn of(subject: &str) -> Self {
        Self::claims(json!({ "sub": subject }))
    }

    /// A sign-in with other claims.
    pub fn claims(claims: Value) -> Self {
        Self {
            claims,
            ..Self::default()
        }
    }
}

/// One request to the token endpoint.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// Path and query.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its form.
    pub form: HashMap<String, String>,
}

struct Grant {
    nonce: String,
    challenge: String,
    redirect_uri: String,
    client_id: String,
    script: Script,
}

#[derive(Default)]
struct Memory {
    metadata: Value,
    codes: HashMap<String, Grant>,
    userinfo: HashMap<String, Value>,
    token_requests: Vec<TokenRequest>,
}

struct Shared {
    url: String,
    rsa: RsaKey,
    stranger: Signer,
    signer: Mutex<Signer>,
    memory: Mutex<Memory>,
    hits: [AtomicUsize; 4],
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signer(&self) -> MutexGuard<'_, Signer> {
        self.signer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, endpoint: Endpoint) {
        self.hits[endpoint as usize].fetch_add(1, Ordering::SeqCst);
    }
}

/// The running provider; gone when dropped.
pub struct HostileProvider {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl HostileProvider {
    /// Starts it on any free port.
    pub async fn spawn() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts it at an address.
    pub async fn at(addr: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(addr).await.expect("bind");
        let addr = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            url: format!("http://{addr}"),
            rsa: RsaKey::of_the_tests().await,
            stranger: Signer::new("stranger"),
            signer: Mutex::new(Signer::new("first")),
            memory: Mutex::default(),
            hits: Default::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .route("/userinfo", get(userinfo))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // It serves as long as it is not dropped.
            let _ = axum::serve(listener, router).await;
        });
        Self {
            shared,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// How it names itself.
    pub fn issuer(&self) -> &str {
        &self.shared.url
    }

    /// Puts changes over its metadata; `null` removes.
    pub fn say_of_itself(&self, changes: Value) {
        self.shared.memory().metadata = changes;
    }

    /// How often it was asked.
    pub fn hits(&self, endpoint: Endpoint) -> usize {
        self.shared.hits[endpoint as usize].load(Ordering::SeqCst)
    }

    /// Signs with a new key from now on, and publishes that one if `published`.
    pub fn change_key(&self, id: &str, published: bool) {
        let mut signer = Signer::new(id);
        signer.is_published = published;
        *self.shared.signer() = signer;
    }

    /// The public halves of its keys, in the forms that could be taken for a secret.
    pub fn public_keys(&self) -> Vec<Vec<u8>> {
        let mut forms = self.shared.rsa.public_forms();
        forms.push(self.shared.signer().public_point());
        forms
    }

    /// The key that signs as [`Signature::Stranger`], as a JSON Web Key.
    pub fn strangers_key(&self) -> Value {
        self.shared.stranger.jwk()
    }

    /// The last request to the token endpoint.
    pub fn last_token_request(&self) -> TokenRequest {
        let memory = self.shared.memory();
        let last = memory.token_requests.last();
        last.expect("it was asked for tokens").clone()
    }

    /// A token of any kind: header, claims and signature as the script says, and nothing else in it.
    pub fn token(&self, script: &Script) -> String {
        id_token(&self.shared, script, &script.claims)
    }

    /// Grants what a browser asks for at `authorize`; returns path and query of the callback.
    pub fn grant(&self, authorize: &Url, script: Script) -> String {
        let asked: HashMap<_, _> = authorize.query_pairs().into_owned().collect();
        let code = random_token();
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("code", &code)
            .append_pair("state", &asked["state"])
            .append_pair("iss", self.issuer())
            .finish();
        let grant = Grant {
            nonce: asked["nonce"].clone(),
            challenge: asked["code_challenge"].clone(),
            redirect_uri: asked["redirect_uri"].clone(),
            client_id: asked["client_id"].clone(),
            script,
        };
        self.shared.memory().codes.insert(code, grant);
        format!("/api/auth/callback?{query}")
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    shared.count(Endpoint::Discovery);
    let url = &shared.url;
    let mut metadata = json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "userinfo_endpoint": format!("{url}/userinfo"),
        "jwks_uri": format!("{url}/keys"),
        "end_session_endpoint": format!("{url}/end?keep=1"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256", "RS256"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    });
    put_over(&mut metadata, &shared.memory().metadata);
    axum::Json(metadata).into_response()
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    shared.count(Endpoint::Keys);
    let mut keys = vec![shared.rsa.jwk()];
    let signer = shared.signer();
    if signer.is_published {
        keys.push(signer.jwk());
    }
    axum::Json(json!({ "keys": keys })).into_response()
}

async fn token(
    State(shared): State<Arc<Shared>>,
    uri: http::Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    shared.count(Endpoint::Token);
    let form: HashMap<_, _> = form_urlencoded::parse(body.as_bytes())
        .into_owned()
        .collect();
    shared.memory().token_requests.push(TokenRequest {
        target: uri.to_string(),
        headers,
        form: form.clone(),
    });
    let grant = form
        .get("code")
        .and_then(|code| shared.memory().codes.remove(code));
    let Some(grant) = grant else {
        return refusal("invalid_grant");
    };
    let proven = form
        .get("code_verifier")
        .is_some_and(|verifier| sha256(verifier) == grant.challenge);
    if !proven || form.get("redirect_uri") != Some(&grant.redirect_uri) {
        return refusal("invalid_grant");
    }
    match &grant.script.answer {
        TokenAnswer::Tokens => tokens(&shared, &grant, true),
        TokenAnswer::NoIdToken => tokens(&shared, &grant, false),
        TokenAnswer::Error(error) => refusal(error),
        TokenAnswer::Redirect(status, to) => {
            let mut answer = Redirect::temporary(to).into_response();
            *answer.status_mut() = StatusCode::from_u16(*status).expect("a status");
            answer
        }
        TokenAnswer::Huge(bytes) => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (json, vec![b'['; *bytes]).into_response()
        }
        TokenAnswer::Silence => std::future::pending().await,
        TokenAnswer::Page => Html("<h1>Hello</h1>").into_response(),
    }
}

fn refusal(error: &str) -> Response {
    let told = json!({ "error": error, "error_description": "<script>canary</script>" });
    (StatusCode::BAD_REQUEST, axum::Json(told)).into_response()
}

fn tokens(shared: &Shared, grant: &Grant, with_id_token: bool) -> Response {
    let now = Timestamp::now().as_second();
    let mut claims = json!({
        "iss": shared.url, "sub": random_token(), "aud": CLIENT_ID, "iat": now, "exp": now + 300,
        "nonce": grant.nonce,
    });
    claims["aud"] = json!(grant.client_id);
    put_over(&mut claims, &grant.script.claims);
    let access_token = format!("canary-{}", random_token());
    let mut info = json!({ "sub": claims["sub"] });
    put_over(&mut info, &grant.script.userinfo);
    let mut memory = shared.memory();
    memory.userinfo.insert(access_token.clone(), info);
    let mut told = json!({"access_token": access_token, "token_type": "Bearer", "expires_in": 300});
    if with_id_token {
        told["id_token"] = json!(id_token(shared, &grant.script, &claims));
    }
    axum::Json(told).into_response()
}

fn id_token(shared: &Shared, script: &Script, claims: &Value) -> String {
    let signer = shared.signer();
    let key_id = match &script.signature {
        Signature::Rs256 => shared.rsa.id(),
        _ => signer.id(),
    };
    let mut head = json!({ "alg": alg_of(&script.signature), "kid": key_id });
    put_over(&mut head, &script.header);
    let mut claims = claims.clone();
    let mut raw = String::new();
    for (name, text) in &script.raw_claims {
        put_over(&mut claims, &json!({ *name: null }));
        raw.push_str(&format!(",\"{name}\":{text}"));
    }
    let claims = claims.to_string();
    let claims = format!("{}{raw}}}", claims.trim_end_matches('}'));
    let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let signed = format!("{}.{}", encode(&head.to_string()), encode(&claims));
    let signature = match &script.signature {
        Signature::Es256 => signer.sign(&signed),
        Signature::Stranger => shared.stranger.sign(&signed),
        Signature::Rs256 => shared.rsa.sign(&signed),
        Signature::Hs256(secret) => super::signing::hmac(secret, &signed),
        Signature::Stripped => Vec::new(),
    };
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

async fn userinfo(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    shared.count(Endpoint::Userinfo);
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    match shared.memory().userinfo.get(token) {
        Some(info) => axum::Json(info.clone()).into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}

fn put_over(base: &mut Value, changes: &Value) {
    let base = base.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => base.remove(name),
            value => base.insert(name.clone(), value.clone()),
        };
    }
}
