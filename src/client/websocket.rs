//! The WebSocket to the cloud that carries one TCP connection.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::timeout;

use super::ClientConfig;
use crate::agent::{Exchange, Link, LinkError, Links, host_header, shown, upgraded_websocket};
use crate::tunnel::Metered;
use crate::types::random_bytes;

/// How long it may take until the device's end is connected.
const OPEN_TIMEOUT: Duration = Duration::from_secs(90);
/// Largest problem that is read, in bytes.
const MAX_PROBLEM_BYTES: usize = 64 * 1024;

/// Why the cloud opens no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to trust, or none at all.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No answer in time.
    #[error("{0} does not answer in time")]
    Timeout(String),
    /// The access token is not good here.
    #[error(
        "the cloud does not accept the access token: is the service client registered there, \
         with oidc.api.audience as the token's audience?"
    )]
    Unauthorized,
    /// It says why.
    #[error("{1} ({0})")]
    Refused(String, String),
    /// An answer that no cloud of ours gives.
    #[error("{0} answers as no edgecloud does (status {1}): is --cloud its address?")]
    Unexpected(String, u16),
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
}

/// Opens one; also what was read from it already.
///
/// # Errors
/// When the cloud or the device does not open the connection.
pub async fn open(
    links: &Links,
    config: &ClientConfig,
    token: &SecretString,
) -> Result<(Metered<Link>, Bytes), OpenError> {
    timeout(OPEN_TIMEOUT, handshake(links, config, token))
        .await
        .unwrap_or_else(|_| Err(OpenError::Timeout(shown(&config.cloud))))
}

async fn handshake(
    links: &Links,
    config: &ClientConfig,
    token: &SecretString,
) -> Result<(Metered<Link>, Bytes), OpenError> {
    let cloud = &config.cloud;
    let unexpected = |status: StatusCode| OpenError::Unexpected(shown(cloud), status.as_u16());
    let key = BASE64.encode(&random_bytes::<16>());
    let mut target = format!("/api/devices/{}/tcp/{}", config.device, config.port);
    if let Some(host) = &config.host {
        target = format!("{target}?host={host}");
    }
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
        .map_err(|_| OpenError::Unauthorized)?;
    bearer.set_sensitive(true);
    let request = Request::builder()
        .uri(target)
        .header(header::HOST, host_header(cloud))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::AUTHORIZATION, bearer)
        .body(Full::default())
        .map_err(|_| unexpected(StatusCode::BAD_REQUEST))?;
    let (answer, connection) = links.exchange(cloud, request).await?;
    let status = answer.status();
    match status {
        StatusCode::SWITCHING_PROTOCOLS => {
            let upgraded = upgraded_websocket(answer, connection, &key).await;
            upgraded.ok_or_else(|| unexpected(status))
        }
        StatusCode::UNAUTHORIZED => Err(OpenError::Unauthorized),
        _ => match read_problem(answer.into_body(), connection).await {
            Some(Problem { code, detail }) => Err(OpenError::Refused(code, detail)),
            None => Err(unexpected(status)),
        },
    }
}

async fn read_problem(body: Incoming, connection: Exchange) -> Option<Problem> {
    let body = Limited::new(body, MAX_PROBLEM_BYTES).collect();
    tokio::pin!(connection, body);
    let body = tokio::select! {
        body = &mut body => body,
        () = &mut connection => body.await,
    };
    serde_json::from_slice(&body.ok()?.to_bytes()).ok()
}
