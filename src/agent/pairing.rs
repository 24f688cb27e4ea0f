//! Pairing: a code that a person typed becomes the device's identity, once.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::backoff::{Backoff, Outcome};
use super::link::{Exchange, LinkError, Links, host_header, retry_after, shown};
use super::state::State;
use crate::types::{Clock, DeviceId, random_bytes};

/// How long one exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long a cloud that cannot answer now is asked again.
const KEEP_TRYING: Duration = Duration::from_secs(60);
/// Longest host name that is sent, in bytes.
const MAX_HOSTNAME_BYTES: usize = 253;

/// Why a device was not paired. No message holds the code or the token.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The cloud does not know the code, or no longer.
    #[error("the pairing code is wrong, used or expired: make a new one in the console{0}")]
    CodeInvalid(&'static str),
    /// Too many attempts from here.
    #[error("too many attempts to pair: try again in {0} s")]
    TooMany(u64),
    /// The address of the cloud is another one.
    #[error("{0} redirects to {1}, which the agent does not follow: pass the final --cloud URL")]
    Redirected(String, String),
    /// There is no connection to trust, or none at all.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No whole answer in time.
    #[error("{0} does not answer in time")]
    Timeout(String),
    /// The cloud is there and cannot pair devices now.
    #[error("{0} cannot pair devices now (status {1})")]
    Unavailable(String, u16),
    /// An answer that no cloud of ours gives.
    #[error("{0} answers as no edgecloud does (status {1}): is --cloud its address?")]
    Unexpected(String, u16),
}

impl PairingError {
    fn is_worth_a_retry(&self) -> bool {
        matches!(
            self,
            Self::Link(LinkError::Unreachable(..) | LinkError::NoAnswer(..))
                | Self::Timeout(_)
                | Self::Unavailable(..)
        )
    }

    fn leaves_the_code_in_doubt(&self) -> bool {
        matches!(self, Self::Link(LinkError::NoAnswer(..)) | Self::Timeout(_))
    }
}

/// What the cloud is told of the device.
#[derive(Debug, Serialize)]
struct Description {
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    os: &'static str,
    arch: &'static str,
    agent_version: &'static str,
}

impl Description {
    fn of_this_machine() -> Self {
        Self {
            hostname: hostname(),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            agent_version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn hostname() -> Option<String> {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let text = files
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok())?;
    let name = text.trim();
    (!name.is_empty() && name.len() <= MAX_HOSTNAME_BYTES).then(|| name.to_owned())
}

#[derive(Deserialize)]
struct Paired {
    device_id: DeviceId,
    token: String,
    tunnel_url: String,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
}

/// Exchanges the code for an identity. A cloud that cannot be reached or cannot answer is asked
/// again for about a minute.
///
/// # Errors
/// When there is no identity.
pub async fn pair(
    links: &Links,
    cloud: &Url,
    code: &SecretString,
    clock: &Clock,
) -> Result<State, PairingError> {
    let started = Instant::now();
    let mut backoff = Backoff::default();
    let mut unanswered = false;
    loop {
        let attempt = timeout(EXCHANGE_TIMEOUT, exchange(links, cloud, code, clock));
        let error = match attempt.await {
            Ok(Ok(state)) => return Ok(state),
            Ok(Err(PairingError::CodeInvalid(_))) if unanswered => {
                return Err(PairingError::CodeInvalid(
                    " (an earlier attempt had no answer and may have used it: remove that device)",
                ));
            }
            Ok(Err(error)) => error,
            Err(_) => PairingError::Timeout(shown(cloud)),
        };
        unanswered |= error.leaves_the_code_in_doubt();
        let random = u64::from_ne_bytes(random_bytes());
        let wait = backoff.wait_after(Outcome::Failed, random);
        if !error.is_worth_a_retry() || started.elapsed() + wait > KEEP_TRYING {
            return Err(error);
        }
        tracing::warn!(%error, wait_ms = wait.as_millis(), "pairing is tried again");
        sleep(wait).await;
    }
}

async fn exchange(
    links: &Links,
    cloud: &Url,
    code: &SecretString,
    clock: &Clock,
) -> Result<State, PairingError> {
    let body = serde_json::json!({
        "code": code.expose_secret().trim(),
        "device": Description::of_this_machine(),
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri("/api/pairing/exchange")
        .header(header::HOST, host_header(cloud))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a URL's host is valid in a request head");
    let (answer, connection) = links.exchange(cloud, request).await?;
    let status = answer.status();
    let unexpected = || PairingError::Unexpected(shown(cloud), status.as_u16());
    match status {
        StatusCode::OK => {
            let body = read(answer, connection).await.ok_or_else(unexpected)?;
            let paired: Paired = serde_json::from_slice(&body).map_err(|_| unexpected())?;
            let token = SecretString::from(paired.token);
            State::checked(paired.device_id, token, &paired.tunnel_url, cloud.as_str())
                .ok_or_else(unexpected)
        }
        StatusCode::NOT_FOUND => {
            let body = read(answer, connection).await.ok_or_else(unexpected)?;
            match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) if problem.code == "pairing_code_invalid" => {
                    Err(PairingError::CodeInvalid(""))
                }
                _ => Err(unexpected()),
            }
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let asked = retry_after(answer.headers(), clock.now());
            Err(PairingError::TooMany(
                asked.map_or(60, |asked| asked.as_secs()),
            ))
        }
        _ if status.is_redirection() => Err(PairingError::Redirected(
            shown(cloud),
            location(cloud, &answer),
        )),
        _ if status.is_server_error() => {
            Err(PairingError::Unavailable(shown(cloud), status.as_u16()))
        }
        _ => Err(unexpected()),
    }
}

async fn read(answer: Response<Incoming>, connection: Exchange) -> Option<Bytes> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
    let (body, ()) = tokio::join!(body, connection);
    Some(body.ok()?.to_bytes())
}

/// Where a redirect leads, as far as it can be shown.
fn location(cloud: &Url, answer: &Response<Incoming>) -> String {
    let location = answer.headers().get(header::LOCATION);
    location
        .and_then(|value| cloud.join(value.to_str().ok()?).ok())
        .map_or_else(|| "another address".to_owned(), |url| shown(&url))
}
