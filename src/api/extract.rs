//! Reads what a request says, strictly, in the order of the conventions: 415, 413, 400, 422.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::AppState;
use super::error::Error;
use crate::auth::access::{Person, Principal};
use crate::net::Client;
use crate::store::{AuditActor, AuditEntry, AuditOutcome, PageRequest};
use crate::types::Role;

/// Most items of a list.
const MAX_LIMIT: u32 = 200;
/// Items of a list when the request does not say.
const DEFAULT_LIMIT: u32 = 50;

/// Who asks; the gate has made sure that there is somebody.
pub struct Caller(pub Principal);

impl FromRequestParts<AppState> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Error> {
        let found = parts.extensions.get::<Principal>().cloned();
        // Only a route that the table calls public gets here without a caller.
        found.map(Self).ok_or_else(Error::unauthenticated)
    }
}

/// What the audit says of whatever this request does: who, where, when.
pub struct Trail(AuditEntry);

impl Trail {
    /// The entry for something that is done to something.
    pub fn of(&self, action: &'static str, target: impl std::fmt::Display) -> AuditEntry {
        AuditEntry {
            action,
            target: Some(target.to_string()),
            ..self.0.clone()
        }
    }

    /// The entry for something that was tried and did not succeed.
    pub fn failed(&self, action: &'static str) -> AuditEntry {
        AuditEntry {
            action,
            outcome: AuditOutcome::Failure,
            ..self.0.clone()
        }
    }

    /// As [`Trail::of`], with more to tell: short texts and numbers.
    pub fn with(
        &self,
        action: &'static str,
        target: impl std::fmt::Display,
        detail: serde_json::Value,
    ) -> AuditEntry {
        AuditEntry {
            detail: Some(detail),
            ..self.of(action, target)
        }
    }
}

impl FromRequestParts<AppState> for Trail {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Infallible> {
        let principal = parts.extensions.get::<Principal>();
        Ok(Self(AuditEntry {
            at: app.0.clock.now(),
            tenant: principal.map(|principal| principal.tenant.id.clone()),
            actor: principal.map_or(AuditActor::Anonymous, Principal::audit_actor),
            action: "",
            target: None,
            outcome: AuditOutcome::Success,
            remote_addr: parts.extensions.get::<Client>().map(|client| client.addr),
            request: parts.extensions.get().cloned(),
            detail: None,
        }))
    }
}

/// The person who asks, where the table lets no programs through.
pub struct Signed(pub Person);

impl FromRequestParts<AppState> for Signed {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Error> {
        let found = parts.extensions.get::<Principal>();
        let found = found.ok_or_else(Error::unauthenticated)?;
        let person = found.person().cloned();
        person.map(Self).ok_or_else(Error::person_needed)
    }
}

/// A JSON body; an empty one is `{}`.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let limits = &app.0.config.limits;
        let (limit, time) = (limits.json_body_bytes, limits.body_read_timeout);
        let declared = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok());
        let too_long =
            declared.is_some_and(|length| usize::try_from(length).is_ok_and(|it| it > limit));
        if !is_json(&parts.headers) {
            // Without a body no type is needed; whether a chunked one is empty shows at its end.
            let empty = !too_long
                && read_body(body, limit, time)
                    .await
                    .is_ok_and(|bytes| bytes.is_empty());
            return match empty {
                true => parse(b"{}").map(Self),
                false => Err(Error::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    "Content-Type: application/json is needed",
                )),
            };
        }
        if too_long {
            return Err(too_large(limit));
        }
        let bytes = read_body(body, limit, time).await?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// A whole body of at most `limit` bytes, in time.
pub async fn read_body(body: Body, limit: usize, time: Duration) -> Result<bytes::Bytes, Error> {
    let collected = timeout(time, Limited::new(body, limit).collect()).await;
    let Ok(collected) = collected else {
        let detail = "the body did not arrive in time";
        return Err(
            Error::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
                .header(header::CONNECTION, "close"),
        );
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Err(_) => Err(Error::bad_request("the request's body broke off")),
    }
}

fn too_large(limit: usize) -> Error {
    let detail = format!("the body may have at most {limit} bytes");
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        })
        .is_some_and(|kind| {
            matches!(
                kind.as_str(),
                "application/json" | "application/merge-patch+json"
            )
        })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // serde would take an array for the fields in order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::bad_request("the body is not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        match error.inner().classify() {
            serde_json::error::Category::Data => wrong_shape(&field, &error.inner().to_string()),
            _ => Error::bad_request("the body is not JSON"),
        }
    })?;
    json.end()
        .map_err(|_| Error::bad_request("the body is not JSON"))?;
    Ok(parsed)
}

/// What serde says about a body of the wrong shape. It names unknown fields and expected types, but
/// also quotes a wrong value, and a value may be a secret.
fn wrong_shape(field: &str, message: &str) -> Error {
    let fact = message.split(" at line ").next().unwrap_or_default();
    let said = ["unknown field", "missing field", "duplicate field"];
    if said.iter().any(|start| fact.starts_with(start)) {
        return Error::bad_request(fact.replace(", expected ", "; allowed: "));
    }
    let expected = match fact
        .rsplit_once(", expected ")
        .map(|(_, expected)| expected)
    {
        Some("a string") => "a text",
        Some("a boolean") => "true or false",
        Some(expected) if expected.starts_with(['u', 'i']) => "a whole number",
        Some(expected) if expected.starts_with("struct") => "an object",
        _ => "another kind of value",
    };
    Error::wrong_type(field, expected)
}

/// A query string, strictly: an unknown parameter is an error.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Error> {
        let parsed = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        parsed.map(|query| Self(query.0)).map_err(|rejection| {
            let message = rejection.body_text();
            let fact = message.rsplit(": ").next().unwrap_or_default();
            match fact.starts_with("unknown field") {
                true => Error::bad_request(format!("query: {fact}")),
                false => Error::bad_request("the query cannot be read"),
            }
        })
    }
}

/// Checks the parameters of a list.
pub fn page(limit: Option<&str>, cursor: Option<String>) -> Result<PageRequest, Error> {
    let limit = match limit {
        None => DEFAULT_LIMIT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_LIMIT).contains(limit))
            .ok_or_else(|| {
                Error::invalid_field("limit", format!("a whole number from 1 to {MAX_LIMIT}"))
            })?,
    };
    Ok(PageRequest { limit, cursor })
}

/// Which part of a list, in a query.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

impl PageQuery {
    /// The checked page.
    pub fn page(self) -> Result<PageRequest, Error> {
        page(self.limit.as_deref(), self.cursor)
    }
}

/// Checks a role by its name.
pub fn role(text: &str) -> Result<Role, Error> {
    text.parse()
        .map_err(|_| Error::invalid_field("role", "viewer, operator, admin or owner"))
}

/// Reads a text that no log may show.
pub fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    <String as serde::Deserialize>::deserialize(deserializer).map(SecretString::from)
}

/// Tells `null` from a field that is not there.
pub fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Checks a short text for people: a name.
pub fn name(field: &str, text: &str) -> Result<String, Error> {
    let text = text.trim();
    let valid = (1..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    match valid {
        true => Ok(text.to_owned()),
        false => Err(Error::invalid_field(
            field,
            "1 to 100 characters, none of them a control character",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[expect(dead_code, reason = "only parsing is tested")]
        name: Option<String>,
    }

    fn refusal(body: &str) -> Error {
        parse::<Example>(body.as_bytes()).expect_err("it is wrong")
    }

    #[test]
    fn a_wrong_body_is_explained_without_repeating_its_values() {
        assert!(refusal("{").detail().contains("not JSON"));
        for other in ["[]", "7", "null", "nonsense", " "] {
            assert!(refusal(other).detail().contains("JSON object"), "{other}");
        }
        assert!(
            refusal(r#"{"nme":1}"#)
                .detail()
                .contains("unknown field `nme`")
        );
        let wrong = refusal(r#"{"name":{"secret":"hunter2"}}"#);
        assert_eq!(wrong.detail(), "name: a text is expected");
        let deep = format!("{{\"name\":{}", "[".repeat(100_000));
        assert_eq!(refusal(&deep).status(), 400);
    }

    #[test]
    fn names_and_limits_have_bounds() {
        assert_eq!(name("name", " box ").expect("good"), "box");
        for bad in ["", "   ", "a\u{0}b", &"x".repeat(101)] {
            assert!(name("name", bad).is_err(), "{bad:?}");
        }
        assert_eq!(page(None, None).expect("good").limit, DEFAULT_LIMIT);
        for bad in ["0", "201", "-1", "ten", ""] {
            assert!(page(Some(bad), None).is_err(), "{bad:?}");
        }
    }

    crate::fuzzing::fuzz_target!(json_bodies, |bytes| {
        if let Err(error) = parse::<Example>(bytes) {
            assert!(error.status().is_client_error(), "{}", error.detail());
        }
        let text = String::from_utf8_lossy(bytes);
        if let Ok(page) = page(Some(&text), None) {
            assert!((1..=MAX_LIMIT).contains(&page.limit));
        }
        if let Ok(name) = name("name", &text) {
            assert!(!name.chars().any(char::is_control));
        }
    });
}
