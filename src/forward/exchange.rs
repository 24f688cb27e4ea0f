//! One request on its way to an answer: the session, a connection, and another attempt where that is
//! safe.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Cutter, OriginConnection};
use super::framing::is_framed_clearly;
use super::pool::SessionKey;
use super::request_body::{Progress, RequestBody, Stage};
use super::{Caller, ForwardError, Forwarder, headers};
use crate::auth::live::LiveStream;
use crate::session::{Handle, SessionError};

/// A method that is not idempotent goes on a kept connection only if that was used this lately: the
/// origin may be closing an older one at this very moment.
const FRESH_ENOUGH: Duration = Duration::from_secs(1);
/// Any other method may use whatever is kept.
const ANY_AGE: Duration = Duration::MAX;
/// Times that a session is looked up for one request: a cached answer may be old once.
const MAX_ATTEMPTS: usize = 3;
/// The `Host` of an origin that the device did not name.
const DEFAULT_ORIGIN_HOST: &str = "localhost";

/// Interim responses (1xx) to one request; a device that sends more does not mean to answer.
const MAX_INTERIM: u32 = 64;

/// What one attempt brought.
enum Failure {
    /// The request was never sent and can be sent elsewhere.
    Unsent(Box<Request<RequestBody>>),
    /// It is not known what became of it; whether a byte of a response came.
    Lost { heard: bool, parse: bool },
    /// It is over.
    Final(ForwardError),
}

/// A response head and what it came over.
pub struct Answered {
    /// The head, and the body to come.
    pub response: Response<Incoming>,
    /// What it came over.
    pub connection: OriginConnection,
    /// The session that it came through.
    pub key: SessionKey,
    /// The `Host` that the origin got.
    pub origin_host: String,
    /// Where the time went.
    pub timing: Timing,
}

/// Where the time of a request went.
pub struct Timing {
    directory: Duration,
    stream: Duration,
    device: Duration,
}

impl Timing {
    /// `Server-Timing` (W3C), in milliseconds.
    pub fn header(&self, caller: &Caller) -> HeaderValue {
        let mut text = String::with_capacity(80);
        for (name, took) in [
            ("auth", caller.auth_time),
            ("directory", self.directory),
            ("stream", self.stream),
            ("device", self.device),
        ] {
            let separator = if text.is_empty() { "" } else { ", " };
            text.extend([separator, name, ";dur="]);
            push_millis(&mut text, took);
        }
        let value = HeaderValue::from_maybe_shared(Bytes::from(text));
        value.unwrap_or(HeaderValue::from_static(""))
    }
}

/// Writes milliseconds with two decimals, without the machinery of formatting.
fn push_millis(text: &mut String, duration: Duration) {
    let mut rest = duration.as_micros() / 10;
    let mut digits = [b'0'; 40];
    let mut first = digits.len();
    while rest > 0 || digits.len() - first < 3 {
        first -= 1;
        digits[first] += (rest % 10) as u8;
        rest /= 10;
    }
    let digits = digits[first..].iter().map(|digit| char::from(*digit));
    let whole = digits.len() - 2;
    text.extend(digits.clone().take(whole));
    text.push('.');
    text.extend(digits.skip(whole));
}

/// One request on its way to an answer, over one attempt or more.
pub struct Exchange<'a> {
    /// The way to devices.
    pub forwarder: &'a Forwarder,
    /// Who asks.
    pub caller: &'a Caller,
    /// Path and query for the origin.
    pub target: &'a str,
    /// The request's head.
    pub parts: &'a Parts,
    /// Where the request's body stands.
    pub progress: &'a Progress,
    /// Ends the wait when the login or the device ends.
    pub live: &'a LiveStream,
    /// Whether protocols are to be switched.
    pub websocket: bool,
}

impl Exchange<'_> {
    /// Sends the request until there is an answer or no sense in another attempt.
    pub async fn run(&self, body: RequestBody) -> Result<Answered, ForwardError> {
        let idempotent = self.parts.method.is_idempotent();
        let repeatable = idempotent && self.progress.stage().0 == Stage::Complete;
        let mut body = Some(body);
        let mut may_reuse = !self.websocket;
        let mut error = ForwardError::Offline;
        for _ in 0..MAX_ATTEMPTS {
            let started = Instant::now();
            let session = self.forwarder.find(self.caller).await?;
            let found = Instant::now();
            let summary = session.summary();
            let key = SessionKey {
                device: summary.device,
                epoch: summary.epoch,
                node: summary.node,
            };
            let kept = may_reuse.then(|| {
                let age = if idempotent { ANY_AGE } else { FRESH_ENOUGH };
                self.forwarder.0.pool.take(&key, age)
            });
            let connected = match kept.flatten() {
                Some(connection) => Ok(connection),
                None => self.forwarder.connect(&*session).await,
            };
            let mut connection = match connected {
                Ok(connection) => connection,
                Err(failed) => {
                    error = self.forwarder.on_open_error(&self.caller.device, failed)?;
                    continue;
                }
            };
            let origin_host = summary
                .origin_host
                .as_deref()
                .unwrap_or(DEFAULT_ORIGIN_HOST);
            // A body that was consumed is gone; then there was no second attempt to get here.
            let next = body
                .take()
                .unwrap_or_else(|| RequestBody::new(Body::empty(), false, None).0);
            let request = self.request(origin_host, next, connection.driver.cutter())?;
            let opened = Instant::now();
            match self.send(&mut connection, request).await {
                Ok(response) if !is_framed_clearly(response.headers()) => {
                    return Err(ForwardError::OriginInvalid);
                }
                Ok(response) => {
                    let timing = Timing {
                        directory: found - started,
                        stream: opened - found,
                        device: opened.elapsed(),
                    };
                    let origin_host = origin_host.to_owned();
                    return Ok(Answered {
                        response,
                        connection,
                        key,
                        origin_host,
                        timing,
                    });
                }
                Err(Failure::Unsent(request)) => {
                    body = Some(request.into_body());
                    error = ForwardError::OriginInvalid;
                }
                Err(Failure::Lost { heard, parse }) => {
                    error = self.explain(&*session, parse).await;
                    if heard || !repeatable || !may_reuse {
                        return Err(error);
                    }
                }
                Err(Failure::Final(error)) => return Err(error),
            }
            may_reuse = false;
        }
        Err(error)
    }

    fn request(
        &self,
        origin_host: &str,
        body: RequestBody,
        cutter: Cutter,
    ) -> Result<Request<RequestBody>, ForwardError> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.version_mut() = Version::HTTP_11;
        // The target was part of a request that was parsed, so it is a valid one.
        *request.uri_mut() = self
            .target
            .parse()
            .map_err(|_| ForwardError::ClientAborted)?;
        *request.headers_mut() = headers::to_device(
            &self.parts.headers,
            self.caller,
            origin_host,
            &self.forwarder.0.via,
            self.websocket,
        );
        let progress = self.progress.clone();
        let interim = AtomicU32::new(0);
        hyper::ext::on_informational(&mut request, move |response| {
            if interim.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
                cutter.cut();
            }
            if response.status() == StatusCode::CONTINUE {
                progress.release();
            }
        });
        Ok(request)
    }

    async fn send(
        &self,
        connection: &mut OriginConnection,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        connection.begin_exchange();
        let limit = self.forwarder.0.limits.response_header_timeout;
        let driver = connection.driver.clone();
        let mut answer = pin!(connection.sender.try_send_request(request));
        let mut sent = pin!(poll_fn(
            |cx| driver.poll_for(cx, |cx| answer.as_mut().poll(cx))
        ));
        let outcome = loop {
            // The time runs from the last byte of the request that moved.
            let deadline = self.progress.stage().1 + limit;
            tokio::select! {
                outcome = sent.as_mut() => break outcome,
                () = self.live.ended() => return Err(Failure::Final(ForwardError::Ended)),
                () = sleep_until(deadline) => {
                    let (stage, moved_at) = self.progress.stage();
                    if moved_at + limit > Instant::now() {
                        continue;
                    }
                    return Err(Failure::Final(match stage {
                        Stage::AwaitingClient => ForwardError::ClientTimeout,
                        _ => ForwardError::OriginTimeout,
                    }));
                }
            }
        };
        if outcome.is_ok() {
            self.progress.answered();
        }
        outcome.map_err(|mut failed| {
            if let Some(request) = failed.take_message() {
                return Failure::Unsent(Box::new(request));
            }
            if self.progress.stage().0 == Stage::Aborted {
                return Failure::Final(ForwardError::ClientAborted);
            }
            let error = failed.into_error();
            tracing::debug!(%error, device = %self.caller.device, "no answer");
            Failure::Lost {
                heard: connection.has_heard(),
                parse: error.is_parse(),
            }
        })
    }

    /// Tells a lost tunnel from an origin that broke off: by whether the session still takes streams.
    async fn explain(&self, session: &dyn Handle, parse: bool) -> ForwardError {
        if parse {
            return ForwardError::OriginInvalid;
        }
        let limit = self.forwarder.0.limits.stream_open_timeout;
        // Nothing of a stream that is only opened reaches the device.
        let opened = timeout(limit, session.open_stream()).await;
        if let Ok(Ok(_) | Err(SessionError::Busy)) = opened {
            return ForwardError::OriginInvalid;
        }
        self.forwarder.0.sessions.forget(&self.caller.device);
        ForwardError::TunnelLost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_two_decimals() {
        for (duration, written) in [
            (Duration::ZERO, "0.00"),
            (Duration::from_micros(9), "0.00"),
            (Duration::from_micros(10), "0.01"),
            (Duration::from_micros(1_239), "1.23"),
            (Duration::from_secs(61), "61000.00"),
            (Duration::MAX, "18446744073709551615999.99"),
        ] {
            let mut text = String::new();
            push_millis(&mut text, duration);
            assert_eq!(text, written);
        }
    }
}
