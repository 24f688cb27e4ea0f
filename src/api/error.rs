//! The one place that turns errors into answers: RFC 9457 problems with stable codes.
//!
//! An [`Error`] travels in the response's extensions until the gate writes it out with the request's
//! id. 5xx answers say the same whatever happened; the detail is in the log.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::auth::access::Denied;
use crate::forward::ForwardError;
use crate::store::StoreError;
use crate::types::{RequestId, Role};

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as in the request.
    pub field: String,
    /// What is allowed.
    pub message: String,
}

/// An answer that says what went wrong.
#[derive(Debug, Clone)]
pub struct Error {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
    extra: Map<String, Value>,
}

impl Error {
    /// An error with a stable code and a sentence for people.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Nobody is signed in.
    pub fn unauthenticated() -> Self {
        let detail = "sign in first: no valid login or token came with the request";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
            .header(header::WWW_AUTHENTICATE, "Bearer")
    }

    /// The caller's role in the tenant is too low.
    pub fn role_insufficient(needed: Role) -> Self {
        let detail = format!("this needs the role {} in the tenant", needed.as_str());
        Self::new(StatusCode::FORBIDDEN, "role_insufficient", detail)
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// A program asks for what only people have.
    pub fn person_needed() -> Self {
        let detail = "this is for people who have signed in, not for service clients";
        Self::new(StatusCode::FORBIDDEN, "person_needed", detail)
    }

    /// There is no such thing, or it is somebody else's.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
    }

    /// A well-formed request with a field that has a value which is not allowed.
    pub fn invalid_field(field: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_field",
            format!("{field}: {message}"),
        );
        error.errors.push(FieldError {
            field: field.to_owned(),
            message,
        });
        error
    }

    /// A request that cannot be read.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    /// A field with a value of the wrong type.
    pub fn wrong_type(field: &str, expected: &str) -> Self {
        let message = format!("{expected} is expected");
        let mut error = Self::bad_request(format!("{field}: {message}"));
        error.errors.push(FieldError {
            field: field.to_owned(),
            message,
        });
        error
    }

    /// Something that should not happen; the log knows more.
    pub fn internal() -> Self {
        let detail = "something went wrong here; the log tells more under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// The database does not answer.
    pub fn unavailable() -> Self {
        let detail = "the service is not available for the moment; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
            .header(header::RETRY_AFTER, "1")
    }

    /// Too many attempts.
    pub fn rate_limited(wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        let detail = format!("too many attempts; try again in {seconds} seconds");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .header(header::RETRY_AFTER, &seconds.to_string())
    }

    /// The tenant has as much open as it may have.
    pub fn tenant_busy() -> Self {
        let detail = "the tenant has as many open requests as it may have; try again";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "tenant_busy", detail)
            .header(header::RETRY_AFTER, "1")
    }

    /// Adds a header field; a value that cannot stand in one is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// Adds a member to the problem.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// The answer's status.
    #[cfg(test)]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, for people.
    #[cfg(test)]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    fn body(&self, request_id: &RequestId) -> Bytes {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let mut body = json!({
            "type": format!("/problems/{}", self.code),
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        });
        if !self.errors.is_empty() {
            let errors = self.errors.iter();
            let errors =
                errors.map(|error| json!({"field": error.field, "message": error.message}));
            body["errors"] = errors.collect();
        }
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        body.to_string().into()
    }

    /// Writes the problem into the response that carries it.
    pub fn write_out(response: &mut Response, request_id: &RequestId) {
        let Some(error) = response.extensions_mut().remove::<Self>() else {
            return;
        };
        *response.body_mut() = error.body(request_id).into();
        // The router has counted the empty body that was here.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        for (name, value) in &self.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadCursor => {
                let detail = "cursor: not one that this list has given out";
                Self::new(StatusCode::BAD_REQUEST, "cursor_invalid", detail)
            }
            StoreError::Conflict(detail) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            StoreError::Unavailable(_) => {
                tracing::warn!(%error, "the database does not answer");
                Self::unavailable()
            }
            _ => {
                tracing::error!(%error, "the database failed");
                Self::internal()
            }
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated => Self::unauthenticated(),
            Denied::TenantForbidden => Self::new(
                StatusCode::FORBIDDEN,
                "tenant_forbidden",
                "the named tenant is not one of yours",
            ),
            Denied::Provider(error) => {
                tracing::warn!(%error, "an access token cannot be verified");
                Self::unavailable()
            }
            Denied::Store(error) => error.into(),
        }
    }
}

impl From<ForwardError> for Error {
    fn from(error: ForwardError) -> Self {
        let of = |status, code, detail: &'static str| Self::new(status, code, detail);
        match error {
            ForwardError::Offline | ForwardError::NodeLost => of(
                StatusCode::SERVICE_UNAVAILABLE,
                "device_offline",
                "the device is not connected",
            ),
            ForwardError::Busy => of(
                StatusCode::SERVICE_UNAVAILABLE,
                "device_busy",
                "the device has as many open streams as it may have; try again",
            )
            .header(header::RETRY_AFTER, "1"),
            ForwardError::TenantBusy => Self::tenant_busy(),
            ForwardError::OriginRefused => of(
                StatusCode::BAD_GATEWAY,
                "origin_refused",
                "the device is connected, but nothing answers at its origin's address",
            ),
            ForwardError::OriginInvalid => of(
                StatusCode::BAD_GATEWAY,
                "origin_invalid",
                "the device's origin broke off or its answer is not HTTP/1.1",
            ),
            ForwardError::TunnelLost => of(
                StatusCode::BAD_GATEWAY,
                "tunnel_lost",
                "the device's tunnel ended before the answer; whether the request was carried out is not known",
            ),
            ForwardError::OriginTimeout => of(
                StatusCode::GATEWAY_TIMEOUT,
                "origin_timeout",
                "the device's origin did not answer in time",
            ),
            ForwardError::ClientTimeout => of(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "the request's body did not arrive in time",
            ),
            ForwardError::ClientAborted => Self::bad_request("the request's body broke off"),
            ForwardError::AddressNotAllowed => of(
                StatusCode::FORBIDDEN,
                "address_not_allowed",
                "the device's agent allows no TCP connection to this address; see its --allow-tcp",
            ),
            ForwardError::TcpUnsupported => of(
                StatusCode::BAD_GATEWAY,
                "tcp_unsupported",
                "the device does not answer CONNECT, so it takes no TCP connections",
            ),
            ForwardError::Loop => of(
                StatusCode::LOOP_DETECTED,
                "loop_detected",
                "the device's origin is this cloud itself",
            ),
            ForwardError::Ended => Self::unauthenticated(),
            ForwardError::Directory(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_a_stable_shape() {
        let id = RequestId::random();
        let mut response = Error::invalid_field("name", "1 to 100 characters")
            .with("hint", 7)
            .into_response();
        Error::write_out(&mut response, &id);
        assert_eq!(response.status(), 422);
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let error = Error::invalid_field("name", "1 to 100 characters");
        let body: Value = serde_json::from_slice(&error.body(&id)).expect("JSON");
        assert_eq!(body["type"], "/problems/invalid_field");
        assert_eq!(body["errors"][0]["field"], "name");
        assert_eq!(body["request_id"], id.as_str());
    }

    #[test]
    fn fw_20_a_failure_inside_is_not_described() {
        let error = Error::from(StoreError::Failed("no such table: secrets".into()));
        assert_eq!(error.status(), 500);
        assert!(!error.detail().contains("secrets"));
    }
}
