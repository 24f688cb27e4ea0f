//! The development issuer's token and userinfo endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use tokio::time::Instant;
use url::form_urlencoded;

use super::{API_AUDIENCE, CLIENT_ID, Issuer, PROGRAM_PREFIX, PROGRAM_SECRET, TOKEN_FOR, lock};
use crate::device_token::sha256;
use crate::types::{base32_lower, random_bytes};

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
    if param("grant_type").as_deref() == Some("client_credentials") {
        return program_token(&issuer, &headers, &param);
    }
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
        return refused(
            "unsupported_grant_type",
            "only authorization_code and client_credentials",
        );
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
        "id_token": issuer.key.sign("JWT", &claims),
    }));
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// An access token for a program (RFC 6749 §4.4, RFC 9068): any client id with the right beginning, and
/// the one secret, in `Authorization` or in the body.
fn program_token(
    issuer: &Issuer,
    headers: &HeaderMap,
    param: &impl Fn(&str) -> Option<String>,
) -> Response {
    let in_header = headers.get(header::AUTHORIZATION);
    let credentials = match in_header {
        Some(value) => value.to_str().ok().and_then(basic),
        None => param("client_id").zip(param("client_secret")),
    };
    let client_id = match credentials {
        Some((id, secret))
            if secret == PROGRAM_SECRET && id.len() <= 100 && id.starts_with(PROGRAM_PREFIX) =>
        {
            id
        }
        _ => {
            let description =
                "a program is edgecloud-dev-NAME with the secret edgecloud-dev-secret";
            return refused("invalid_client", description);
        }
    };
    let now = issuer.clock.now().as_secs();
    let claims = json!({
        "iss": issuer.url,
        "sub": client_id,
        "client_id": client_id,
        "aud": API_AUDIENCE,
        "iat": now,
        "exp": now + i64::try_from(TOKEN_FOR.as_secs()).unwrap_or(0),
        "jti": base32_lower(&random_bytes::<16>()),
    });
    let body = Json(json!({
        "access_token": issuer.key.sign("at+jwt", &claims),
        "token_type": "Bearer",
        "expires_in": TOKEN_FOR.as_secs(),
    }));
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Client id and secret of a Basic credential, each form-encoded (RFC 6749 §2.3.1).
fn basic(field: &str) -> Option<(String, String)> {
    let encoded = field.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64.decode(encoded.as_bytes()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |text: &str| {
        let mut pairs = form_urlencoded::parse(text.as_bytes());
        pairs.next().map(|(name, _)| name.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
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
