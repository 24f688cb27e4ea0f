//! The development issuer's token and userinfo endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::time::Instant;
use url::form_urlencoded;

use super::{CLIENT_ID, Issuer, TOKEN_FOR, lock};
use crate::device_token::sha256;

/// An error of the token endpoint (RFC 6749 §5.2).
fn refused(error: &str, description: &str) -> Response {
    let body = Json(json!({ "error": error, "error_description": description }));
    (
        StatusCode::BAD_REQUEST,
        [(header::CACHE_CONTROL, "no-store")],
        body,
    )
        .into_response()
}

pub async fn token(
    State(issuer): State<Arc<Issuer>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let param = |wanted: &str| {
        let mut values = form_urlencoded::parse(body.as_bytes())
            .filter(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned());
        values.next().filter(|_| values.next().is_none())
    };
    if headers.contains_key(header::AUTHORIZATION) || param("client_secret").is_some() {
        return refused(
            "invalid_client",
            "edgecloud-dev is a public client and has no secret",
        );
    }
    if param("client_id").as_deref() != Some(CLIENT_ID) {
        return refused("invalid_client", "client_id must be edgecloud-dev");
    }
    if param("grant_type").as_deref() != Some("authorization_code") {
        return refused("unsupported_grant_type", "only authorization_code");
    }
    let grant = param("code").and_then(|code| lock(&issuer.codes).take(&code));
    let Some(grant) = grant else {
        return refused(
            "invalid_grant",
            "the code is unknown, used or older than a minute",
        );
    };
    if param("redirect_uri").as_deref() != Some(&grant.redirect_uri) {
        return refused(
            "invalid_grant",
            "redirect_uri is not that of the authorization request",
        );
    }
    let challenge =
        param("code_verifier").map(|verifier| BASE64URL_NOPAD.encode(&sha256(verifier.as_bytes())));
    if challenge != Some(grant.challenge) {
        return refused(
            "invalid_grant",
            "code_verifier does not fit the code_challenge",
        );
    }
    let access_token = lock(&issuer.access_tokens).put(grant.user, TOKEN_FOR);
    let now = issuer.clock.now().as_secs();
    let mut claims = json!({
        "iss": issuer.url,
        "sub": grant.user,
        "aud": CLIENT_ID,
        "iat": now,
        "exp": now + i64::try_from(TOKEN_FOR.as_secs()).unwrap_or(0),
        // The left half of the hash (OpenID Connect Core §3.1.3.6).
        "at_hash": BASE64URL_NOPAD.encode(&sha256(access_token.as_bytes())[..16]),
    });
    if let Some(nonce) = grant.nonce {
        claims["nonce"] = Value::String(nonce);
    }
    let body = Json(json!({
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": TOKEN_FOR.as_secs(),
        "id_token": issuer.key.sign(&claims),
    }));
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

pub async fn userinfo(State(issuer): State<Arc<Issuer>>, headers: HeaderMap) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let user = token.and_then(|token| {
        let tokens = lock(&issuer.access_tokens);
        tokens
            .0
            .get(token)
            .filter(|(_, until)| *until > Instant::now())
            .map(|(user, _)| *user)
    });
    let Some(user) = user else {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    };
    let name = format!("{}{}", user[..1].to_uppercase(), &user[1..]);
    Json(json!({
        "sub": user,
        "name": name,
        "email": format!("{user}@example.test"),
        "email_verified": true,
    }))
    .into_response()
}
