//! Sign-in through the provider, who is signed in, and sign-out.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Error;
use super::extract::{Query, Signed, Trail};
use super::openapi::{Doc, schema};
use super::{AppState, pages};
use crate::auth::live::Right;
use crate::auth::oidc::{CallbackParams, OidcError, SignedIn};
use crate::auth::pending::{
    PENDING_FOR, PendingCookies, PendingLogin, cookie_name, expired_cookie,
};
use crate::auth::return_to::sanitize_return_to;
use crate::device_token::sha256;
use crate::net::Client;
use crate::net::fields::SEC_FETCH_DEST;
use crate::store::{NewLogin, StoreError};
use crate::types::{LoginId, RequestId};

/// Longest browser name that is kept, in characters.
const MAX_USER_AGENT: usize = 256;

/// The parameters of a sign-in.
#[derive(Deserialize)]
pub struct LoginQuery {
    return_to: Option<String>,
}

fn redirect_uri(app: &AppState) -> String {
    format!("{}/api/auth/callback", app.0.public_url.origin())
}

/// Leads the browser to the provider.
pub async fn login(
    State(app): State<AppState>,
    Extension(id): Extension<RequestId>,
    Extension(client): Extension<Client>,
    query: Result<Query<LoginQuery>, Error>,
    headers: HeaderMap,
) -> Response {
    let destination = headers.get(&SEC_FETCH_DEST);
    if destination.is_some_and(|destination| destination != "document") {
        let detail = "a sign-in begins with a navigation of the whole page";
        return Error::new(StatusCode::FORBIDDEN, "navigation_required", detail).into_response();
    }
    if let Err(wait) = app.0.sign_in_starts.count(client.addr) {
        return too_many(wait);
    }
    let return_to = query.ok().and_then(|query| query.0.return_to);
    let return_to = sanitize_return_to(return_to.as_deref().unwrap_or("/"));
    let (url, pending) = match app.0.oidc.begin(&redirect_uri(&app), return_to).await {
        Ok(begun) => begun,
        Err(error) => return failed(&id, &error),
    };
    let cookies = &app.0.auth.cookies;
    let mut response = pages::see_other(url.as_str());
    let brought = PendingCookies::from_headers(&headers, cookies, app.0.clock.now());
    for name in brought.surplus() {
        pages::set_cookie(&mut response, &expired_cookie(name, cookies.is_secure()));
    }
    let pending = pending.to_cookie(cookies.keys(), cookies.is_secure());
    pages::set_cookie(&mut response, &pending);
    response
}

/// A sign-in that did not succeed, as a page with a way back.
fn failed(id: &RequestId, error: &OidcError) -> Response {
    tracing::warn!(%error, %id, "a sign-in failed");
    let (status, text) = match error {
        OidcError::Unavailable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The sign-in service does not answer at the moment. Please try again in a minute.",
        ),
        OidcError::Unusable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The sign-in service is not set up as it has to be. Please tell the operator.",
        ),
        OidcError::Refused(_) => (
            StatusCode::BAD_REQUEST,
            "The sign-in was not completed. Please try again.",
        ),
    };
    pages::notice(status, "Sign-in failed", text, ("/", "Back to edgecloud"))
}

fn refused(text: &str) -> Response {
    let back = ("/", "Back to edgecloud");
    pages::notice(StatusCode::BAD_REQUEST, "Sign-in failed", text, back)
}

fn too_many(wait: Duration) -> Response {
    let mut response = pages::notice(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many sign-ins",
        "There were too many sign-ins from your network. Please try again in a minute.",
        ("/", "Back to edgecloud"),
    );
    // At least a second, whole seconds.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Takes the browser back from the provider.
pub async fn callback(
    State(app): State<AppState>,
    Extension(id): Extension<RequestId>,
    Extension(client): Extension<Client>,
    trail: Trail,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let (now, cookies) = (app.0.clock.now(), &app.0.auth.cookies);
    // Counted only when it has failed: who comes back with the right answer is let in whatever others
    // at the same address do.
    let failure = || app.0.failed_callbacks.count(client.addr);
    let Ok(params) = CallbackParams::parse(query.as_deref().unwrap_or_default()) else {
        let text = "The answer of the sign-in service cannot be read.";
        return failure().map_or_else(too_many, |()| refused(text));
    };
    let state = params.state.as_deref().unwrap_or_default();
    let mut brought = PendingCookies::from_headers(&headers, cookies, now);
    let Some(pending) = brought.take(state) else {
        let text = "This sign-in was not begun in this browser, or too long ago.";
        return failure().map_or_else(too_many, |()| refused(text));
    };
    let mut response = match finish(&app, &pending, &params, &id, browser(&headers, &client)).await
    {
        Ok(response) => {
            end_previous(&app, &headers).await;
            response
        }
        // A provider that is away is nobody's failure.
        Err(response) if response.status().is_server_error() => {
            write_down(&app, trail).await;
            *response
        }
        Err(response) => match failure() {
            Ok(()) => {
                write_down(&app, trail).await;
                *response
            }
            Err(wait) => too_many(wait),
        },
    };
    let used = expired_cookie(
        &cookie_name(state, cookies.is_secure()),
        cookies.is_secure(),
    );
    pages::set_cookie(&mut response, &used);
    response
}

async fn write_down(app: &AppState, trail: Trail) {
    let failed = app.0.store.append_audit(trail.failed("login.failed"));
    if let Err(error) = failed.await {
        tracing::warn!(%error, "a failed sign-in could not be written down");
    }
}

async fn finish(
    app: &AppState,
    pending: &PendingLogin,
    params: &CallbackParams,
    id: &RequestId,
    browser: Browser,
) -> Result<Response, Box<Response>> {
    let store_failed = |error: StoreError| {
        tracing::warn!(%error, "a sign-in could not be recorded");
        Box::new(pages::notice(
            StatusCode::SERVICE_UNAVAILABLE,
            "Sign-in failed",
            "The service is not available for the moment. Please try again.",
            ("/", "Back to edgecloud"),
        ))
    };
    let now = app.0.clock.now();
    // Before the provider hears of it: a second use of its code could revoke the first login's tokens.
    let used_up = app
        .0
        .store
        .use_once(sha256(pending.state.as_bytes()), now.plus(PENDING_FOR))
        .await
        .map_err(store_failed)?;
    if !used_up {
        return Err(Box::new(refused("This sign-in was completed before.")));
    }
    let signed_in = app
        .0
        .oidc
        .finish(&redirect_uri(app), pending, params)
        .await
        .map_err(|error| Box::new(failed(id, &error)))?;
    let (cookie, login) = new_login(app, signed_in, browser);
    match app.0.store.sign_in(login, now).await {
        Ok(user) => tracing::info!(%user, "signed in"),
        Err(StoreError::Conflict(_)) => {
            return Err(Box::new(pages::notice(
                StatusCode::FORBIDDEN,
                "No access",
                "Your account is known, but it belongs to no tenant here. Please ask your administrator.",
                ("/", "Back to edgecloud"),
            )));
        }
        Err(error) => return Err(store_failed(error)),
    }
    let mut response = pages::see_other(&pending.return_to);
    pages::set_cookie(&mut response, &cookie);
    Ok(response)
}

/// What a person recognises a login by.
struct Browser {
    user_agent: Option<String>,
    remote_addr: String,
}

fn browser(headers: &HeaderMap, client: &Client) -> Browser {
    let user_agent = headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok());
    Browser {
        user_agent: user_agent.map(|text| text.chars().take(MAX_USER_AGENT).collect()),
        remote_addr: client.addr.to_string(),
    }
}

fn new_login(
    app: &AppState,
    signed_in: SignedIn,
    browser: Browser,
) -> (cookie::Cookie<'static>, NewLogin) {
    let (cookie, secret_hash) = app.0.auth.cookies.issue_login();
    let (now, settings) = (app.0.clock.now(), &app.0.config.login);
    let id = LoginId::random();
    let provider_tokens = signed_in
        .grant
        .map(|grant| app.0.refresher.seal(&id, &grant));
    let login = NewLogin {
        id,
        secret_hash,
        issuer: signed_in.issuer,
        subject: signed_in.subject,
        email: signed_in.email,
        name: signed_in.name,
        sid: signed_in.sid,
        provider_tokens,
        tenants: signed_in.tenants,
        user_agent: browser.user_agent,
        remote_addr: Some(browser.remote_addr),
        idle_expires_at: now.plus(settings.idle_timeout),
        expires_at: now.plus(settings.absolute_timeout),
    };
    (cookie, login)
}

/// The login that the browser had is over with the new one.
async fn end_previous(app: &AppState, headers: &HeaderMap) {
    let now = app.0.clock.now();
    let Some(hash) = app.0.auth.cookies.read_login(headers) else {
        return;
    };
    let ended = async {
        let Some(login) = app.0.store.find_login(hash, now).await? else {
            return Ok(());
        };
        app.0.store.end_login(&login.id, now).await?;
        app.0.live.end(Right::Login(login.id));
        Ok::<_, StoreError>(())
    };
    if let Err(error) = ended.await {
        tracing::warn!(%error, "the previous login could not be ended");
    }
}

/// Where a browser that has signed out goes.
#[derive(Serialize, ToSchema)]
pub struct SignedOut {
    /// The provider's own sign-out, if it has one.
    end_session_url: Option<String>,
}

/// Ends the login.
pub async fn logout(
    State(app): State<AppState>,
    Signed(person): Signed,
    Extension(id): Extension<RequestId>,
    trail: Trail,
) -> Result<Response, Error> {
    app.0
        .store
        .audited(trail.of("login.signed_out", &person.login))
        .end_login(&person.login, app.0.clock.now())
        .await?;
    app.0.live.end(Right::Login(person.login));
    tracing::info!(user = %person.user.id, %id, "signed out");
    let back = format!("{}/", app.0.public_url.origin());
    let end_session_url = app.0.oidc.end_session_url(&back).await;
    let mut response = Json(SignedOut {
        end_session_url: end_session_url.map(Into::into),
    })
    .into_response();
    pages::set_cookie(&mut response, &app.0.auth.cookies.expired_login());
    // Not "cookies": that would clear those of the whole registrable domain.
    let clear = HeaderValue::from_static("\"cache\", \"storage\"");
    response
        .headers_mut()
        .insert(HeaderName::from_static("clear-site-data"), clear);
    Ok(response)
}

/// Describes [`login`].
pub fn login_doc() -> Doc {
    Doc::new("auth", "Begin a sign-in: leads the browser to the provider")
        .query("return_to", "Path on this host to go to afterwards")
        .answer(303, "To the provider, or to the same address on public_url")
        .answer(403, "Not a navigation of the whole page")
        .answer(429, "Too many sign-ins from one address: a page")
        .answer(503, "The provider does not answer: a page")
}

/// Describes [`callback`].
pub fn callback_doc() -> Doc {
    Doc::new(
        "auth",
        "Finish a sign-in: where the provider sends the browser back",
    )
    .query("state", "What the sign-in began with")
    .query("code", "To be exchanged for tokens")
    .query("iss", "The provider (RFC 9207)")
    .query("error", "Why the provider refused")
    .answer(303, "Signed in: to the path that the sign-in began with")
    .answer(400, "Not a sign-in of this browser, or refused: a page")
    .answer(503, "The provider does not answer: a page")
}

/// Describes [`logout`].
pub fn logout_doc() -> Doc {
    Doc::new(
        "auth",
        "Sign out: end the login and everything that is open on its behalf",
    )
    .returns(200, "Signed out", schema::<SignedOut>())
}
