//! What every request passes before a handler sees it, in this order: who asks (401), whether the
//! browser was made to ask (403), whether the thing exists (404), whether the caller may (403),
//! whether the method is known (405).

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use tokio::time::Instant;
use url::form_urlencoded;

use super::error::Error;
use super::routes::{PathRules, Rules};
use super::{AppState, pages};
use crate::auth::access::{Access, Denied, Principal};
use crate::auth::csrf;
use crate::forward::asks_for_websocket;
use crate::net::Client;
use crate::net::fields::{SEC_FETCH_MODE, SEC_FETCH_SITE};
use crate::store::{AuditEntry, AuditOutcome, Thing};

/// What the gate works with. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    /// The handlers' state.
    pub app: AppState,
    /// The rules of the route table.
    pub rules: Arc<Rules>,
}

/// When the request arrived, for handlers that say where time went.
#[derive(Debug, Clone, Copy)]
pub struct Arrived(pub Instant);

/// Lets a request through or answers it.
pub async fn check(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(Arrived(Instant::now()));
    let route = parts.extensions.get::<MatchedPath>();
    match gate.admit(&parts, route.map(MatchedPath::as_str)).await {
        Ok(Some(principal)) => {
            parts.extensions.insert(principal);
        }
        Ok(None) => {}
        Err(answer) => return *answer,
    }
    next.run(Request::from_parts(parts, body)).await
}

/// An answer to somebody who may not pass.
type Refusal = Box<Response>;

fn refuse(error: Error) -> Refusal {
    Box::new(error.into_response())
}

impl Gate {
    /// The caller of a row of the route table, `None` for a public path.
    ///
    /// # Errors
    /// The answer to somebody who may not pass.
    pub async fn admit(
        &self,
        request: &Parts,
        route: Option<&str>,
    ) -> Result<Option<Principal>, Refusal> {
        let rules = route.and_then(|route| self.rules.get(route));
        let path = request.uri.path();
        let access = rules.and_then(|rules| rules.access(&request.method));
        if access == Some(Access::Public) || (rules.is_none() && !is_api(path)) {
            return Ok(None);
        }
        let mut principal = self.identify(request).await?;
        let forwarded = rules.is_some_and(PathRules::is_forwarded);
        if self.is_forged(request, forwarded) {
            return Err(refuse(Error::new(
                StatusCode::FORBIDDEN,
                "cross_origin",
                "another site may not make this request with your login; a program sends Edgecloud-Csrf: 1",
            )));
        }
        let Some(rules) = rules else {
            return Err(refuse(Error::not_found()));
        };
        Self::choose_tenant(request, &mut principal)?;
        let suffices = match access {
            Some(Access::Role(role) | Access::PathTenant(role)) => principal.tenant.role >= role,
            Some(Access::Person) => principal.person().is_some(),
            Some(Access::Authenticated | Access::Public) => true,
            None => false,
        };
        // What is forwarded finds out by itself, with one look at the device's session.
        if !(forwarded && suffices) {
            Box::pin(self.must_exist(request, &principal)).await?;
        }
        if access.is_some() && !suffices {
            let note = self.note_denial(request, route, &principal, "access.denied");
            Box::pin(note).await;
        }
        match access {
            None => Err(refuse(
                Error::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    format!("allowed here: {}", rules.allow()),
                )
                .header(header::ALLOW, &rules.allow()),
            )),
            Some(Access::Person) if !suffices => Err(refuse(Error::person_needed())),
            Some(Access::Role(role) | Access::PathTenant(role)) if !suffices => {
                Err(refuse(Error::role_insufficient(role)))
            }
            Some(_) => Ok(Some(principal)),
        }
    }

    async fn identify(&self, request: &Parts) -> Result<Principal, Refusal> {
        let auth = &self.app.0.auth;
        let headers = &request.headers;
        match auth.authenticate(headers).await {
            Ok(principal) => Ok(principal),
            Err(Denied::Unauthenticated) => {
                let mut answer = unauthenticated(request);
                if auth.cookies.is_sent(headers) && !headers.contains_key(header::AUTHORIZATION) {
                    pages::set_cookie(&mut answer, &auth.cookies.expired_login());
                }
                Err(Box::new(answer))
            }
            Err(denied) => Err(refuse(denied.into())),
        }
    }

    /// Whether a browser may have been made to send a request that came with a cookie.
    fn is_forged(&self, request: &Parts, forwarded: bool) -> bool {
        let (method, headers) = (&request.method, &request.headers);
        let ours = self.app.0.public_url.origin();
        if headers.contains_key(header::AUTHORIZATION) {
            return false;
        }
        if (forwarded || *method == Method::GET) && asks_for_websocket(headers) {
            return csrf::is_foreign_websocket(headers, ours);
        }
        // A stream of events is as good as a request that changes something: it is held open.
        let method = match request.uri.path() {
            "/api/events" => &Method::POST,
            _ => method,
        };
        csrf::is_forged(method, headers, ours) || (forwarded && csrf::is_foreign_read(headers))
    }

    /// Makes the request be about the tenant that its path or, where a browser can send no header,
    /// its query names.
    fn choose_tenant(request: &Parts, principal: &mut Principal) -> Result<(), Refusal> {
        let path = request.uri.path();
        let member_of = |id: &str| principal.memberships.iter().find(|of| of.id.as_str() == id);
        if let Some(rest) = path.strip_prefix("/api/tenants/") {
            let id = rest.split('/').next().unwrap_or_default();
            match member_of(id).cloned() {
                Some(membership) => principal.tenant = membership,
                None => return Err(refuse(Error::not_found())),
            }
        }
        let named = match path {
            "/api/events" => query_param(request, "tenant"),
            _ => None,
        };
        if let Some(id) = named {
            match member_of(&id).cloned() {
                Some(membership) => principal.tenant = membership,
                None => return Err(refuse(Denied::TenantForbidden.into())),
            }
        }
        Ok(())
    }

    /// 404 for what does not exist and for what belongs to another tenant.
    async fn must_exist(&self, request: &Parts, principal: &Principal) -> Result<(), Refusal> {
        let segments: Vec<&str> = request.uri.path().split('/').skip(2).collect();
        let (thing, id) = match segments[..] {
            ["devices", id, ..] => (Thing::Device, id),
            ["pairing", "codes", id] => (Thing::PairingCode, id),
            ["groups", id, ..] => (Thing::Group, id),
            ["service-clients", id] => (Thing::ServiceClient, id),
            ["tenants", _, "invitations", id] => (Thing::Invitation, id),
            ["tenants", _, "members", id] => (Thing::Member, id),
            _ => return Ok(()),
        };
        match self
            .app
            .0
            .store
            .exists(&principal.tenant.id, thing, id)
            .await
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(refuse(Error::not_found())),
            Err(error) => Err(refuse(error.into())),
        }
    }

    /// Writes down that somebody asked for more than they may; the same again once a minute at most.
    async fn note_denial(
        &self,
        request: &Parts,
        route: Option<&str>,
        principal: &Principal,
        action: &'static str,
    ) {
        let app = &self.app.0;
        let target = format!("{} {}", request.method, route.unwrap_or_default());
        let key = (principal.id().to_owned(), target.clone());
        if app.denials.contains_key(&key) {
            return;
        }
        app.denials.insert(key, ());
        let entry = AuditEntry {
            at: app.clock.now(),
            tenant: Some(principal.tenant.id.clone()),
            actor: principal.audit_actor(),
            action,
            target: Some(target),
            outcome: AuditOutcome::Denied,
            remote_addr: request.extensions.get::<Client>().map(|client| client.addr),
            request: request.extensions.get().cloned(),
            detail: None,
        };
        if let Err(error) = app.store.append_audit(entry).await {
            tracing::warn!(%error, "a denial could not be written down");
        }
    }
}

/// The one value of a query parameter.
fn query_param(request: &Parts, name: &str) -> Option<String> {
    let query = request.uri.query()?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(of, _)| of == name)
        .map(|(_, value)| value.into_owned())
}

/// Whether a path is the API's, also where there is nothing.
pub fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// A program gets 401; a browser that navigates is led to the sign-in. A navigation from another site
/// came without the Strict cookie that there may be: the page that it gets asks again from here.
fn unauthenticated(request: &Parts) -> Response {
    let headers = &request.headers;
    let navigates = request.method == Method::GET && text(headers, &SEC_FETCH_MODE) == "navigate";
    match text(headers, &SEC_FETCH_SITE) {
        "cross-site" | "same-site" if navigates => pages::ask_again(),
        "same-origin" | "none" if navigates => {
            let target = request
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str());
            let return_to: String = form_urlencoded::byte_serialize(target.as_bytes()).collect();
            pages::see_other(&format!("/api/auth/login?return_to={return_to}"))
        }
        _ => Error::unauthenticated().into_response(),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_are_the_api() {
        assert!(is_api("/api") && is_api("/api/") && is_api("/api/x"));
        assert!(!is_api("/apiary") && !is_api("/") && !is_api("/API/x"));
    }
}
