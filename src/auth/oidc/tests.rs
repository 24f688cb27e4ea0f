//! The relying party against the development issuer, and against issuers that lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::{get, post};
use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::auth::issuer::{CLIENT_ID, DevIssuer};

const REDIRECT_URI: &str = "http://localhost:3721/api/auth/callback";

fn settings(issuer: &str) -> OidcSettings {
    OidcSettings {
        issuer: issuer.to_owned(),
        client_id: CLIENT_ID.to_owned(),
        client_secret: None,
        scopes: vec!["openid".into(), "profile".into()],
        authorize_params: vec![("ui_locales".into(), "de".into())],
        allowed_algs: vec!["ES256".into(), "RS256".into()],
        tenant_claim: None,
        api_audience: None,
    }
}

fn client(settings: OidcSettings) -> OidcClient {
    OidcClient::new(
        settings,
        HttpClient::new(None).expect("a client"),
        Clock::system(),
    )
}

fn browser() -> HttpClient {
    HttpClient::new(None).expect("a client")
}

fn dev_issuer() -> (String, tempfile::TempDir, DropGuard) {
    let dir = tempfile::tempdir().expect("a directory");
    let addr = "127.0.0.1:0".parse().expect("an address");
    let issuer = DevIssuer::bind(addr, dir.path(), Clock::system()).expect("bind");
    let url = issuer.issuer_url().to_owned();
    let stop = CancellationToken::new();
    tokio::task::spawn(issuer.serve(stop.clone()));
    (url, dir, stop.drop_guard())
}

/// Signs in at the development issuer as a browser would; returns the callback's query.
async fn choose(url: &Url, user: &str) -> String {
    let request = Request::post(url.as_str())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(format!("user={user}").into_bytes())
        .expect("a request");
    let response = browser().call(request).await.expect("an answer");
    assert_eq!(response.status(), 303);
    let location = response.headers()[header::LOCATION].to_str().expect("text");
    let location = Url::parse(location).expect("a URL");
    assert!(location.as_str().starts_with(REDIRECT_URI));
    location.query().expect("a query").to_owned()
}

#[tokio::test]
async fn somebody_signs_in_at_the_development_issuer() {
    let (url, _dir, _stop) = dev_issuer();
    let client = client(settings(&url));
    let (at, pending) = client
        .begin(REDIRECT_URI, "/x".into())
        .await
        .expect("begin");
    let query: std::collections::HashMap<_, _> = at.query_pairs().into_owned().collect();
    assert_eq!(query["response_type"], "code");
    assert_eq!(query["scope"], "openid profile");
    assert_eq!(query["code_challenge_method"], "S256");
    assert_eq!(query["ui_locales"], "de");
    assert_eq!(query["state"].len(), 43);
    let page = browser()
        .call(
            Request::get(at.as_str())
                .body(Vec::new())
                .expect("a request"),
        )
        .await;
    let page = String::from_utf8(page.expect("an answer").into_body()).expect("text");
    assert!(page.contains("name=\"user\" value=\"alice\""));
    let params = CallbackParams::parse(&choose(&at, "alice").await).expect("no duplicates");
    assert_eq!(params.state.as_deref(), Some(pending.state.as_str()));
    let who = client
        .finish(REDIRECT_URI, &pending, &params)
        .await
        .expect("signed in");
    assert_eq!(
        (who.subject.as_str(), who.name.as_deref()),
        ("alice", Some("Alice"))
    );
    assert_eq!(who.email.as_deref(), Some("alice@example.test"));
    let again = client
        .finish(REDIRECT_URI, &pending, &params)
        .await
        .expect_err("a used code");
    assert!(again.to_string().contains("invalid_grant"), "{again}");
    assert!(!client.is_degraded());
    let out = client
        .end_session_url("http://localhost:3721/")
        .await
        .expect("it has one");
    assert!(out.as_str().contains("client_id=edgecloud-dev") && !out.as_str().contains("hint"));
}

#[tokio::test]
async fn ol_01_each_sign_in_has_its_own_secrets() {
    let (url, _dir, _stop) = dev_issuer();
    let client = client(settings(&url));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let (_, pending) = client.begin(REDIRECT_URI, "/".into()).await.expect("begin");
        for secret in [pending.state, pending.nonce, pending.verifier] {
            assert!(secret.len() >= 43 && seen.insert(secret));
        }
    }
}

#[tokio::test]
async fn ol_07_another_verifier_does_not_fit() {
    let (url, _dir, _stop) = dev_issuer();
    let client = client(settings(&url));
    let (at, mut pending) = client.begin(REDIRECT_URI, "/".into()).await.expect("begin");
    let params = CallbackParams::parse(&choose(&at, "bob").await).expect("no duplicates");
    pending.verifier = "v".repeat(43);
    let error = client
        .finish(REDIRECT_URI, &pending, &params)
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("invalid_grant"), "{error}");
}

#[tokio::test]
async fn the_development_issuer_refuses_what_is_not_ours() {
    let (url, _dir, _stop) = dev_issuer();
    let base = format!("{url}/authorize?client_id=edgecloud-dev&response_type=code&scope=openid");
    let challenge = format!(
        "&code_challenge={}&code_challenge_method=S256",
        "c".repeat(43)
    );
    let get = async |query: &str| {
        let request = Request::get(format!("{base}{query}"))
            .body(Vec::new())
            .expect("a request");
        browser().call(request).await.expect("an answer")
    };
    for elsewhere in [
        "https://evil.example/api/auth/callback",
        "http://localhost:1/other",
        "x",
    ] {
        let response = get(&format!("&redirect_uri={elsewhere}{challenge}")).await;
        assert_eq!(response.status(), 400, "{elsewhere}");
        assert!(!response.headers().contains_key(header::LOCATION));
    }
    let plain = "&code_challenge=abc&code_challenge_method=plain";
    for pkce in ["", plain] {
        let response = get(&format!("&redirect_uri={REDIRECT_URI}&state=s{pkce}")).await;
        let location = response.headers()[header::LOCATION].to_str().expect("text");
        assert!(location.contains("error=invalid_request") && location.contains("state=s"));
    }
}

/// An issuer whose ID tokens, metadata and answers the test makes up.
struct Liar {
    url: String,
    token_requests: Arc<AtomicUsize>,
    key_requests: Arc<AtomicUsize>,
    _stop: DropGuard,
}

#[derive(Clone, Default)]
struct Lies {
    metadata: Value,
    /// Put over the right claims; `null` removes.
    claims: Value,
    /// Put over the right header.
    header: Value,
    /// Cuts the signature off.
    unsigned: bool,
    /// Answers the token endpoint with this in the place of JSON.
    token_answer: Option<fn() -> axum::response::Response>,
    userinfo: Value,
}

fn over(base: &mut Value, changes: &Value) {
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            base.as_object_mut().expect("an object").remove(name);
        } else {
            base[name] = value.clone();
        }
    }
}

/// The liar takes the nonce as the code, so that it can put it into the token.
async fn liar(lies: Lies) -> Liar {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
    let pair = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        pkcs8.expect("a key").as_ref(),
        &random,
    );
    let pair = Arc::new(pair.expect("a key"));
    let (token_requests, key_requests) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut metadata = json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/jwks"),
        "code_challenge_methods_supported": ["S256"],
    });
    if !lies.userinfo.is_null() {
        metadata["userinfo_endpoint"] = json!(format!("{url}/userinfo"));
    }
    over(&mut metadata, &lies.metadata);
    let point = pair.public_key().as_ref().to_vec();
    let jwks = json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "use": "sig", "kid": "k1",
        "x": BASE64URL_NOPAD.encode(&point[1..33]), "y": BASE64URL_NOPAD.encode(&point[33..]),
    }] });
    let (issuer, tokens, keys) = (
        url.clone(),
        Arc::clone(&token_requests),
        Arc::clone(&key_requests),
    );
    let info = lies.userinfo.clone();
    let router = Router::new()
        .route(
            "/.well-known/openid-configuration",
            get(async move || axum::Json(metadata.clone())),
        )
        .route(
            "/jwks",
            get(async move || {
                keys.fetch_add(1, Ordering::Relaxed);
                axum::Json(jwks.clone())
            }),
        )
        .route("/userinfo", get(async move || axum::Json(info.clone())))
        .route(
            "/token",
            post(async move |body: String| {
                tokens.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = lies.token_answer {
                    return answer();
                }
                let form: std::collections::HashMap<_, _> =
                    url::form_urlencoded::parse(body.as_bytes())
                        .into_owned()
                        .collect();
                let token = id_token(&pair, &issuer, &form["code"], &lies);
                let body = json!({"access_token": "at", "token_type": "Bearer", "id_token": token});
                axum::response::IntoResponse::into_response(axum::Json(body))
            }),
        );
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    tokio::task::spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await
    });
    Liar {
        url,
        token_requests,
        key_requests,
        _stop: stop.drop_guard(),
    }
}

fn id_token(pair: &EcdsaKeyPair, issuer: &str, nonce: &str, lies: &Lies) -> String {
    let now = Clock::system().now().as_secs();
    let mut claims = json!({
        "iss": issuer, "sub": "eve", "aud": CLIENT_ID, "iat": now, "exp": now + 60, "nonce": nonce,
    });
    over(&mut claims, &lies.claims);
    let mut header = json!({ "alg": "ES256", "kid": "k1" });
    over(&mut header, &lies.header);
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = pair
        .sign(&SystemRandom::new(), signed.as_bytes())
        .expect("a signature");
    let signature = if lies.unsigned {
        String::new()
    } else {
        BASE64URL_NOPAD.encode(signature.as_ref())
    };
    format!("{signed}.{signature}")
}

async fn sign_in_at(liar: &Liar) -> Result<SignedIn, OidcError> {
    sign_in_with(&client(settings(&liar.url)), None).await
}

async fn sign_in_with(client: &OidcClient, iss: Option<&str>) -> Result<SignedIn, OidcError> {
    let (_, pending) = client.begin(REDIRECT_URI, "/".into()).await?;
    let params = CallbackParams {
        state: Some(pending.state.clone()),
        code: Some(pending.nonce.clone()),
        iss: iss.map(str::to_owned),
        error: None,
    };
    client.finish(REDIRECT_URI, &pending, &params).await
}

#[tokio::test]
async fn an_issuer_that_does_not_lie_is_believed() {
    let liar = liar(Lies {
        userinfo: json!({"sub": "eve", "name": "Eve"}),
        ..Lies::default()
    })
    .await;
    let who = sign_in_at(&liar).await.expect("signed in");
    assert_eq!(
        (who.subject.as_str(), who.name.as_deref()),
        ("eve", Some("Eve"))
    );
}

#[tokio::test]
async fn ol_10_to_15_id_tokens_that_lie_are_refused() {
    let claims = |claims: Value| Lies {
        claims,
        ..Lies::default()
    };
    let header = |header: Value| Lies {
        header,
        ..Lies::default()
    };
    let cases = [
        ("nonce", claims(json!({"nonce": "other"}))),
        ("nonce", claims(json!({"nonce": null}))),
        ("iss", claims(json!({"iss": "https://evil.example"}))),
        ("aud", claims(json!({"aud": "other"}))),
        ("aud", claims(json!({"aud": [CLIENT_ID, "other"]}))),
        ("azp", claims(json!({"azp": "other"}))),
        ("exp", claims(json!({"exp": 1}))),
        ("", claims(json!({"exp": "never"}))),
        ("", claims(json!({"iat": null}))),
        ("nbf", claims(json!({"nbf": 99_999_999_999u64}))),
        (
            "at_hash",
            claims(json!({"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"})),
        ),
        ("", header(json!({"alg": "none"}))),
        ("", header(json!({"alg": "HS256"}))),
        (
            "signature",
            Lies {
                unsigned: true,
                ..Lies::default()
            },
        ),
    ];
    for (what, lies) in cases {
        let told = format!("{} {}", lies.claims, lies.header);
        let liar = liar(lies).await;
        let error = sign_in_at(&liar).await.expect_err(&told);
        assert!(matches!(error, OidcError::Refused(_)), "{told}: {error}");
        assert!(error.to_string().contains(what), "{told}: {error}");
    }
}

#[tokio::test]
async fn ol_12_unknown_keys_are_looked_for_once_in_a_while() {
    let liar = liar(Lies {
        header: json!({"kid": "k2"}),
        ..Lies::default()
    })
    .await;
    let client = client(settings(&liar.url));
    for _ in 0..20 {
        sign_in_with(&client, None)
            .await
            .expect_err("an unknown key");
    }
    assert_eq!(liar.key_requests.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn ol_16_the_answer_must_name_our_provider() {
    let liar = liar(Lies {
        metadata: json!({"authorization_response_iss_parameter_supported": true}),
        ..Lies::default()
    })
    .await;
    let client = client(settings(&liar.url));
    for iss in [None, Some("https://evil.example"), Some("")] {
        sign_in_with(&client, iss).await.expect_err("refused");
    }
    assert_eq!(liar.token_requests.load(Ordering::Relaxed), 0);
    sign_in_with(&client, Some(&liar.url))
        .await
        .expect("signed in");
}

#[tokio::test]
async fn ol_08_and_17_metadata_that_lie_disable_sign_in() {
    for (metadata, what) in [
        (json!({"issuer": "http://127.0.0.1:1"}), "calls itself"),
        (
            json!({"code_challenge_methods_supported": ["plain"]}),
            "S256",
        ),
        (json!({"code_challenge_methods_supported": null}), "S256"),
    ] {
        let liar = liar(Lies {
            metadata,
            ..Lies::default()
        })
        .await;
        let client = client(settings(&liar.url));
        let error = client
            .begin(REDIRECT_URI, "/".into())
            .await
            .err()
            .expect("unusable");
        assert!(error.to_string().contains(what), "{error}");
        assert!(client.is_degraded());
    }
}

#[tokio::test]
async fn ol_22_token_endpoints_that_misbehave_are_cut_off() {
    let redirect: fn() -> axum::response::Response = || {
        axum::response::IntoResponse::into_response(axum::response::Redirect::temporary("/jwks"))
    };
    let endless: fn() -> axum::response::Response =
        || axum::response::IntoResponse::into_response(vec![b'a'; 50 << 20]);
    let html: fn() -> axum::response::Response =
        || axum::response::IntoResponse::into_response(axum::response::Html("<h1>hi</h1>"));
    for answer in [redirect, endless, html] {
        let liar = liar(Lies {
            token_answer: Some(answer),
            ..Lies::default()
        })
        .await;
        sign_in_at(&liar).await.expect_err("no tokens");
        assert_eq!(
            liar.key_requests.load(Ordering::Relaxed),
            1,
            "the redirect was followed"
        );
    }
}

#[tokio::test]
async fn ol_24_userinfo_must_speak_of_the_same_person() {
    let liar = liar(Lies {
        userinfo: json!({"sub": "mallory"}),
        ..Lies::default()
    })
    .await;
    let error = sign_in_at(&liar).await.expect_err("refused");
    assert!(error.to_string().contains("sub"), "{error}");
}

#[tokio::test]
async fn ol_25_a_provider_that_is_away_is_unavailable() {
    let client = client(settings("http://127.0.0.1:1"));
    let error = client
        .begin(REDIRECT_URI, "/".into())
        .await
        .err()
        .expect("nobody there");
    assert!(matches!(error, OidcError::Unavailable(_)), "{error}");
    assert!(client.is_degraded());
}

crate::fuzzing::fuzz_target!(provider_tokens, |bytes| {
    use super::jwt::{Expected, check_times, verify};

    let text = String::from_utf8_lossy(bytes);
    let now = crate::types::Timestamp::from_millis(1_700_000_000_000);
    let expected = Expected {
        typ: "JWT",
        issuer: "https://id.example",
        audience: "edgecloud",
        allowed_algs: &["RS256".to_owned(), "ES256".to_owned()],
        now,
    };
    let keys = openidconnect::core::CoreJsonWebKeySet::new(Vec::new());
    assert!(
        verify(&text, &keys, &expected).is_err(),
        "nobody has signed it"
    );
    if let Ok(claims) = serde_json::from_slice(bytes) {
        // Whatever the numbers are.
        let _ = check_times(&claims, now);
    }
});
