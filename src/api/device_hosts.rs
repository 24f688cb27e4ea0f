//! The devices' own hosts: entered with a one-time ticket, then everything is the device's.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64URL_NOPAD;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::time::Instant;
use url::form_urlencoded;

use super::error::Error;
use super::service::host_name;
use super::{AppState, forwarding, pages};
use crate::auth::access::Denied;
use crate::auth::csrf;
use crate::auth::live::Right;
use crate::auth::return_to::sanitize_return_to;
use crate::device_token::sha256;
use crate::forward::{self, Door, asks_for_websocket};
use crate::net::Client;
use crate::net::fields::SEC_FETCH_MODE;
use crate::session::{SessionError, Sessions};
use crate::store::LoginRecord;
use crate::types::{DeviceId, RequestId, Role, TenantId};

/// The one path of a device's host that is ours.
pub const OPEN_PATH: &str = "/.edgecloud/open";

/// The device whose host this is.
pub fn device_of(app: &AppState, host: &str) -> Option<DeviceId> {
    let domain = app.0.config.server.device_domain.as_deref()?;
    let name = host_name(host).to_ascii_lowercase();
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    DeviceId::from_host_label(label).ok()
}

/// Answers a request on a device's host.
pub async fn answer(app: &AppState, device: DeviceId, request: Request) -> Response {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    if parts.uri.path() == OPEN_PATH {
        return enter(app, &device, &parts).await;
    }
    if parts.method == Method::TRACE {
        return Error::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "not TRACE",
        )
        .header(
            header::ALLOW,
            "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        )
        .into_response();
    }
    let headers = &parts.headers;
    let domain = app
        .0
        .config
        .server
        .device_domain
        .as_deref()
        .unwrap_or_default();
    let public_url = &app.0.public_url;
    let authority = public_url.authority_of(&format!("{}.{domain}", device.host_label()));
    let found = match app.0.auth.cookies.read_device(headers, &device) {
        Some(login) => app.0.auth.find_login(&login).await,
        None => Err(Denied::Unauthenticated),
    };
    let login = match found {
        Ok(login) => login,
        Err(Denied::Unauthenticated) => return not_entered(app, headers),
        Err(denied) => return Error::from(denied).into_response(),
    };
    if is_foreign(
        &parts.method,
        headers,
        &format!("{}://{authority}", public_url.scheme),
    ) {
        let detail = "another site may not make this request with your login";
        return Error::new(StatusCode::FORBIDDEN, "cross_origin", detail).into_response();
    }
    let tenant = match tenant_of(app, &login, &device).await {
        Ok(Some(tenant)) => tenant,
        Ok(None) => return Error::not_found().into_response(),
        Err(error) => return error.into_response(),
    };
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str())
        .to_owned();
    let (Some(client), Some(request_id)) = (
        parts.extensions.get::<Client>(),
        parts.extensions.get::<RequestId>(),
    ) else {
        return Error::internal().into_response();
    };
    let caller = forward::Caller {
        rights: vec![
            Right::Login(login.id),
            Right::Member(login.user.id.clone(), tenant.clone()),
        ],
        tenant,
        device,
        user: login.user.id.to_string(),
        checked: arrived,
        request_id: request_id.clone(),
        client: client.clone(),
        door: Door {
            scheme: public_url.scheme,
            authority: authority.into(),
            prefix: String::new(),
        },
        auth_time: arrived.elapsed(),
    };
    forwarding::send(app, caller, &target, Request::from_parts(parts, body)).await
}

fn is_foreign(method: &Method, headers: &HeaderMap, origin: &str) -> bool {
    match asks_for_websocket(headers) {
        true => csrf::is_foreign_websocket(headers, origin),
        false => csrf::is_foreign_to_device(method, headers, origin),
    }
}

/// The device's tenant, if the login may reach devices there. A session answers without the database.
async fn tenant_of(
    app: &AppState,
    login: &LoginRecord,
    device: &DeviceId,
) -> Result<Option<TenantId>, Error> {
    let reaching = || {
        login
            .memberships
            .iter()
            .filter(|of| of.role >= Role::Operator)
    };
    for membership in reaching() {
        match app.0.sessions.find(&membership.id, device).await {
            Ok(Some(_)) => return Ok(Some(membership.id.clone())),
            Ok(None) => {}
            Err(SessionError::Directory(error)) => return Err(error.into()),
            // Which tenant it is in does not depend on whether its node answers.
            Err(_) => {}
        }
    }
    for membership in reaching() {
        if app
            .0
            .store
            .find_device(&membership.id, device)
            .await?
            .is_some()
        {
            return Ok(Some(membership.id.clone()));
        }
    }
    Ok(None)
}

/// Somebody who has not come through the console, or whose login has ended.
fn not_entered(app: &AppState, headers: &HeaderMap) -> Response {
    let navigates = headers
        .get(&SEC_FETCH_MODE)
        .is_some_and(|mode| mode == "navigate");
    if !navigates {
        return Error::unauthenticated().into_response();
    }
    let console = format!("{}/", app.0.public_url.origin());
    pages::notice(
        StatusCode::UNAUTHORIZED,
        "Open this device from the console",
        "You are not signed in here, or your sign-in has ended.",
        (&console, "Go to the console"),
    )
}

/// Takes a ticket and gives the device host's cookie for it.
async fn enter(app: &AppState, device: &DeviceId, request: &Parts) -> Response {
    if request.method != Method::GET {
        return Error::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET",
        )
        .header(header::ALLOW, "GET")
        .into_response();
    }
    let query = request.uri.query().unwrap_or_default();
    let param = |wanted: &str| {
        form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let ticket = BASE64URL_NOPAD
        .decode(param("ticket").as_bytes())
        .unwrap_or_default();
    let now = app.0.clock.now();
    let redeemed = match app
        .0
        .store
        .redeem_ticket(sha256(&ticket), device, now)
        .await
    {
        Ok(redeemed) => redeemed,
        Err(error) => return Error::from(error).into_response(),
    };
    let Some((login, tenant)) = redeemed else {
        let console = format!("{}/", app.0.public_url.origin());
        return pages::notice(
            StatusCode::UNAUTHORIZED,
            "This link has been used or has expired",
            "A link to a device works once and for a minute. Open the device from the console again.",
            (&console, "Go to the console"),
        );
    };
    tracing::info!(%device, %tenant, %login, "device host opened");
    let mut response = pages::see_other(&sanitize_return_to(&param("path")));
    pages::set_cookie(
        &mut response,
        &app.0.auth.cookies.issue_device(&login, device),
    );
    response
}
