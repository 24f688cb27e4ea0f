//! The one table of routes: method, path, access rule, handler and description.

use std::collections::HashMap;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, any, on};
use http::Method;

use super::openapi::Doc;
use super::{AppState, assets, devices, forwarding, logins, openapi, pairing, sign_in, system};
use crate::auth::access::Access;
use crate::types::Role;

const VIEWER: Access = Access::Role(Role::Viewer);
const OPERATOR: Access = Access::Role(Role::Operator);
const ADMIN: Access = Access::Role(Role::Admin);

/// Methods that a forwarding route takes; CONNECT and TRACE are not for devices.
const FORWARDED: &[Method] = &[
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// What a route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// One method; GET answers HEAD too.
    One(Method),
    /// Every method but CONNECT and TRACE, known or not.
    Any,
}

/// One row of the table.
pub struct Route {
    /// What it takes.
    pub verb: Verb,
    /// The path, with `{name}` for a segment and `{*name}` for the rest.
    pub path: &'static str,
    /// What it asks of the caller.
    pub access: Access,
    /// What it says of itself.
    pub doc: Doc,
    handler: MethodRouter<AppState>,
}

fn route<H, T>(method: Method, path: &'static str, access: Access, handler: H, doc: Doc) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    let filter =
        MethodFilter::try_from(method.clone()).expect("the table has standard methods only");
    Route {
        verb: Verb::One(method),
        path,
        access,
        doc,
        handler: on(filter, handler),
    }
}

fn forwarded(path: &'static str, doc: Doc) -> Route {
    Route {
        verb: Verb::Any,
        path,
        access: OPERATOR,
        doc,
        handler: any(forwarding::forward),
    }
}

/// All routes.
pub fn table() -> Vec<Route> {
    let mut routes = vec![
        route(
            Method::GET,
            "/healthz",
            Access::Public,
            system::healthz,
            system::healthz_doc(),
        ),
        route(
            Method::GET,
            "/readyz",
            Access::Public,
            system::readyz,
            system::readyz_doc(),
        ),
        route(
            Method::GET,
            "/api/openapi.json",
            Access::Public,
            openapi::show,
            openapi::show_doc(),
        ),
        route(
            Method::GET,
            "/api/version",
            Access::Login,
            system::version,
            system::version_doc(),
        ),
    ];
    routes.extend(sign_in_routes());
    routes.extend(pairing_routes());
    routes.extend(device_routes());
    routes
}

fn sign_in_routes() -> Vec<Route> {
    vec![
        route(
            Method::GET,
            "/api/auth/login",
            Access::Public,
            sign_in::login,
            sign_in::login_doc(),
        ),
        route(
            Method::GET,
            "/api/auth/callback",
            Access::Public,
            sign_in::callback,
            sign_in::callback_doc(),
        ),
        route(
            Method::GET,
            "/api/auth/me",
            Access::Login,
            logins::me,
            logins::me_doc(),
        ),
        route(
            Method::POST,
            "/api/auth/logout",
            Access::Login,
            sign_in::logout,
            sign_in::logout_doc(),
        ),
        route(
            Method::GET,
            "/api/auth/logins",
            Access::Login,
            logins::list_logins,
            logins::list_doc(),
        ),
        route(
            Method::DELETE,
            "/api/auth/logins",
            Access::Login,
            logins::end_other_logins,
            logins::end_others_doc(),
        ),
        route(
            Method::DELETE,
            "/api/auth/logins/{id}",
            Access::Login,
            logins::end_login,
            logins::end_doc(),
        ),
        route(
            Method::PUT,
            "/api/auth/tenant",
            Access::Login,
            logins::set_active_tenant,
            logins::set_tenant_doc(),
        ),
    ]
}

fn pairing_routes() -> Vec<Route> {
    let codes = "/api/pairing/codes";
    let code = "/api/pairing/codes/{id}";
    vec![
        route(
            Method::GET,
            codes,
            ADMIN,
            pairing::list_codes,
            pairing::list_doc(),
        ),
        route(
            Method::POST,
            codes,
            ADMIN,
            pairing::create_code,
            pairing::create_doc(),
        ),
        route(
            Method::GET,
            code,
            ADMIN,
            pairing::get_code,
            pairing::get_doc(),
        ),
        route(
            Method::DELETE,
            code,
            ADMIN,
            pairing::delete_code,
            pairing::delete_doc(),
        ),
        route(
            Method::POST,
            "/api/pairing/exchange",
            Access::Public,
            pairing::exchange_code,
            pairing::exchange_doc(),
        ),
    ]
}

fn device_routes() -> Vec<Route> {
    let device = "/api/devices/{id}";
    let session = "/api/devices/{id}/session";
    vec![
        route(
            Method::GET,
            "/api/devices",
            VIEWER,
            devices::list_devices,
            devices::list_doc(),
        ),
        route(
            Method::GET,
            device,
            VIEWER,
            devices::get_device,
            devices::get_doc(),
        ),
        route(
            Method::PATCH,
            device,
            ADMIN,
            devices::update_device,
            devices::update_doc(),
        ),
        route(
            Method::DELETE,
            device,
            ADMIN,
            devices::delete_device,
            devices::delete_doc(),
        ),
        route(
            Method::GET,
            session,
            VIEWER,
            devices::get_session,
            devices::get_session_doc(),
        ),
        route(
            Method::DELETE,
            session,
            OPERATOR,
            devices::close_session,
            devices::close_session_doc(),
        ),
        route(
            Method::POST,
            "/api/devices/{id}/open",
            OPERATOR,
            forwarding::open_device,
            forwarding::open_doc(),
        ),
        forwarded("/api/devices/{id}/http/{*path}", forwarding::forward_doc()),
        forwarded("/api/devices/{id}/http/", Doc::hidden()),
        forwarded("/api/devices/{id}/http", Doc::hidden()),
    ]
}

/// What the gate has to know about a path.
#[derive(Debug, Default)]
pub struct PathRules {
    methods: Vec<(Method, Access)>,
    any: Option<Access>,
}

impl PathRules {
    /// What a method asks of the caller; `None` when the path does not take it.
    pub fn access(&self, method: &Method) -> Option<Access> {
        if let Some(access) = self.any {
            return (*method != Method::CONNECT && *method != Method::TRACE).then_some(access);
        }
        let method = if *method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        self.methods
            .iter()
            .find(|(of, _)| of == method)
            .map(|(_, access)| *access)
    }

    /// The value of an `Allow` field (RFC 9110 §10.2.1).
    pub fn allow(&self) -> String {
        let mut methods: Vec<&str> = match self.any {
            Some(_) => FORWARDED.iter().map(Method::as_str).collect(),
            None => self
                .methods
                .iter()
                .map(|(method, _)| method.as_str())
                .collect(),
        };
        if self.any.is_none() && methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.join(", ")
    }

    /// Whether requests go on to a device.
    pub fn is_forwarded(&self) -> bool {
        self.any.is_some()
    }
}

/// The rules of every path.
pub type Rules = HashMap<&'static str, PathRules>;

/// The rules and the router of the table.
pub fn build() -> (Rules, Router<AppState>) {
    let mut rules = Rules::new();
    let mut router = Router::new();
    for route in table() {
        let of_path = rules.entry(route.path).or_default();
        match route.verb {
            Verb::One(method) => of_path.methods.push((method, route.access)),
            Verb::Any => of_path.any = Some(route.access),
        }
        router = router.route(route.path, route.handler);
    }
    (rules, router.fallback(assets::show))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tn_10_the_public_routes_are_the_documented_ones() {
        let public: Vec<String> = table()
            .iter()
            .filter(|route| route.access == Access::Public)
            .map(|route| format!("{:?} {}", route.verb, route.path))
            .collect();
        assert_eq!(
            public,
            [
                "One(GET) /healthz",
                "One(GET) /readyz",
                "One(GET) /api/openapi.json",
                "One(GET) /api/auth/login",
                "One(GET) /api/auth/callback",
                "One(POST) /api/pairing/exchange",
            ]
        );
    }

    #[test]
    fn a_path_knows_its_methods() {
        let (rules, _) = build();
        let device = &rules["/api/devices/{id}"];
        assert_eq!(device.allow(), "GET, PATCH, DELETE, HEAD");
        assert_eq!(device.access(&Method::HEAD), Some(VIEWER));
        assert_eq!(device.access(&Method::POST), None);
        let forwarded = &rules["/api/devices/{id}/http/{*path}"];
        let unknown = Method::from_bytes(b"PROPFIND").expect("a method");
        assert_eq!(forwarded.access(&unknown), Some(OPERATOR));
        assert_eq!(forwarded.access(&Method::TRACE), None);
    }
}
