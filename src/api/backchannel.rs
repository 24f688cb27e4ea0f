//! The provider's own call: somebody has signed out there (OpenID Connect Back-Channel Logout 1.0).

use axum::extract::{Request, State};
use http::{StatusCode, header};
use url::form_urlencoded;

use super::AppState;
use super::error::Error;
use super::extract::read_body;
use super::openapi::Doc;
use crate::auth::live::Right;
use crate::auth::oidc::LogoutError;
use crate::device_token::sha256;
use crate::store::ProviderLogout;

/// Largest body, in bytes: a token and its name.
const MAX_BODY_BYTES: usize = 80 * 1024;
const FORM: &str = "application/x-www-form-urlencoded";

/// Ends the logins of a session at the provider, or of a person.
pub async fn backchannel_logout(
    State(app): State<AppState>,
    request: Request,
) -> Result<StatusCode, Error> {
    let app = &app.0;
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(FORM) {
        return Err(Error::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Content-Type: application/x-www-form-urlencoded is needed",
        ));
    }
    let time = app.config.limits.body_read_timeout;
    let body = read_body(request.into_body(), MAX_BODY_BYTES, time).await?;
    let mut tokens = form_urlencoded::parse(&body).filter(|(name, _)| name == "logout_token");
    let (Some((_, token)), None) = (tokens.next(), tokens.next()) else {
        return Err(invalid("one logout_token is needed"));
    };
    let verified = match app.oidc.verify_logout_token(&token).await {
        Ok(verified) => verified,
        Err(LogoutError::Provider(error)) => {
            tracing::warn!(%error, "a logout token cannot be verified");
            return Err(Error::unavailable());
        }
        Err(LogoutError::Refused(error)) => {
            tracing::warn!(%error, "a logout token was refused");
            return Err(invalid(format!("the logout token is refused: {error}")));
        }
    };
    let logout = ProviderLogout {
        issuer: app.oidc.issuer().to_owned(),
        token_hash: sha256(format!("logout\n{}", verified.id).as_bytes()),
        token_expires_at: verified.remember_until(),
        subject: verified.subject,
        sid: verified.sid,
    };
    let ended = app
        .store
        .end_provider_session(logout, app.clock.now())
        .await?;
    let Some(ended) = ended else {
        return Err(invalid("the logout token was used before"));
    };
    tracing::info!(logins = ended.len(), "signed out at the provider");
    for login in ended {
        app.live.end(Right::Login(login));
    }
    Ok(StatusCode::OK)
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(StatusCode::BAD_REQUEST, "logout_token_invalid", detail)
}

/// Describes [`backchannel_logout`].
pub fn backchannel_logout_doc() -> Doc {
    Doc::new(
        "auth",
        "For the provider: end the logins of a session there, by a signed logout token",
    )
    .answer(200, "The logins have ended")
    .answer(400, "The logout token is not acceptable")
    .answer(413, "The body is too large")
    .answer(415, "The body is not a form")
    .answer(
        503,
        "The provider's keys or the database cannot be had; call again",
    )
}
