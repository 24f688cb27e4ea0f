//! The one table of routes: method, path, access rule, handler and description.

use std::collections::HashMap;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, any, on};
use http::Method;

use super::openapi::Doc;
use super::{
    AppState, assets, audit, backchannel, device_health, device_tags, devices, events, forwarding,
    groups, invitations, logins, members, openapi, pairing, service_clients, sign_in, system, tcp,
    tenants, usage,
};
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
        handler: any(forwarding::no_way),
    }
}

/// All routes.
pub fn table() -> Vec<Route> {
    let mut routes = system_routes();
    routes.extend(auth_routes());
    routes.extend(tenant_routes());
    routes.extend(service_client_routes());
    routes.extend(pairing_routes());
    routes.extend(device_routes());
    routes.extend(forwarding_routes());
    routes.extend(group_routes());
    routes.extend(record_routes());
    routes
}

#[rustfmt::skip] // A table is read by its columns.
fn system_routes() -> Vec<Route> {
    use system::{healthz, healthz_doc, readyz, readyz_doc, version, version_doc};
    vec![
        route(Method::GET, "/healthz", Access::Public, healthz, healthz_doc()),
        route(Method::GET, "/readyz", Access::Public, readyz, readyz_doc()),
        route(Method::GET, "/api/openapi.json", Access::Public, openapi::show, openapi::show_doc()),
        route(Method::GET, "/api/version", Access::Authenticated, version, version_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn auth_routes() -> Vec<Route> {
    let logins = "/api/auth/logins";
    vec![
        route(Method::GET, "/api/auth/login", Access::Public, sign_in::login, sign_in::login_doc()),
        route(Method::GET, "/api/auth/callback", Access::Public, sign_in::callback, sign_in::callback_doc()),
        route(Method::POST, "/api/auth/backchannel-logout", Access::Public, backchannel::backchannel_logout, backchannel::backchannel_logout_doc()),
        route(Method::GET, "/api/auth/me", Access::Authenticated, logins::me, logins::me_doc()),
        route(Method::POST, "/api/auth/logout", Access::Person, sign_in::logout, sign_in::logout_doc()),
        route(Method::GET, logins, Access::Person, logins::list_logins, logins::list_doc()),
        route(Method::DELETE, logins, Access::Person, logins::end_other_logins, logins::end_others_doc()),
        route(Method::DELETE, "/api/auth/logins/{id}", Access::Person, logins::end_login, logins::end_doc()),
        route(Method::PUT, "/api/auth/tenant", Access::Person, logins::set_active_tenant, logins::set_tenant_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn tenant_routes() -> Vec<Route> {
    let (tenants, tenant) = ("/api/tenants", "/api/tenants/{id}");
    let (members, member) = ("/api/tenants/{id}/members", "/api/tenants/{id}/members/{user}");
    let (all, one) = ("/api/tenants/{id}/invitations", "/api/tenants/{id}/invitations/{inv}");
    let of = Access::PathTenant;
    vec![
        route(Method::GET, tenants, Access::Authenticated, tenants::list_tenants, tenants::list_doc()),
        route(Method::POST, tenants, Access::Person, tenants::create_tenant, tenants::create_doc()),
        route(Method::GET, tenant, of(Role::Viewer), tenants::get_tenant, tenants::get_doc()),
        route(Method::PATCH, tenant, of(Role::Owner), tenants::update_tenant, tenants::update_doc()),
        route(Method::DELETE, tenant, of(Role::Owner), tenants::delete_tenant, tenants::delete_doc()),
        route(Method::GET, members, of(Role::Viewer), members::list_members, members::list_doc()),
        route(Method::PUT, member, of(Role::Owner), members::set_member, members::set_doc()),
        // Everybody may leave; the handler asks for an owner where somebody else is taken out.
        route(Method::DELETE, member, of(Role::Viewer), members::delete_member, members::delete_doc()),
        route(Method::GET, all, of(Role::Admin), invitations::list_invitations, invitations::list_doc()),
        route(Method::POST, all, of(Role::Admin), invitations::create_invitation, invitations::create_doc()),
        route(Method::DELETE, one, of(Role::Admin), invitations::delete_invitation, invitations::delete_doc()),
        route(Method::POST, "/api/invitations/accept", Access::Person, invitations::accept_invitation, invitations::accept_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn service_client_routes() -> Vec<Route> {
    use service_clients as clients;
    let (all, one) = ("/api/service-clients", "/api/service-clients/{id}");
    vec![
        route(Method::GET, all, ADMIN, clients::list_service_clients, clients::list_doc()),
        route(Method::POST, all, ADMIN, clients::create_service_client, clients::create_doc()),
        route(Method::GET, one, ADMIN, clients::get_service_client, clients::get_doc()),
        route(Method::PATCH, one, ADMIN, clients::update_service_client, clients::update_doc()),
        route(Method::DELETE, one, ADMIN, clients::delete_service_client, clients::delete_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn pairing_routes() -> Vec<Route> {
    let (codes, code) = ("/api/pairing/codes", "/api/pairing/codes/{id}");
    vec![
        route(Method::GET, codes, ADMIN, pairing::list_codes, pairing::list_doc()),
        route(Method::POST, codes, ADMIN, pairing::create_code, pairing::create_doc()),
        route(Method::GET, code, ADMIN, pairing::get_code, pairing::get_doc()),
        route(Method::DELETE, code, ADMIN, pairing::delete_code, pairing::delete_doc()),
        route(Method::POST, "/api/pairing/exchange", Access::Public, pairing::exchange_code, pairing::exchange_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn device_routes() -> Vec<Route> {
    let (device, session) = ("/api/devices/{id}", "/api/devices/{id}/session");
    let tag = "/api/devices/{id}/tags/{key}";
    vec![
        route(Method::GET, "/api/devices", VIEWER, devices::list_devices, devices::list_doc()),
        route(Method::GET, device, VIEWER, devices::get_device, devices::get_doc()),
        route(Method::PATCH, device, ADMIN, devices::update_device, devices::update_doc()),
        route(Method::DELETE, device, ADMIN, devices::delete_device, devices::delete_doc()),
        route(Method::POST, "/api/devices/{id}/token", ADMIN, device_tags::rotate_token, device_tags::rotate_doc()),
        route(Method::GET, session, VIEWER, devices::get_session, devices::get_session_doc()),
        route(Method::DELETE, session, OPERATOR, devices::close_session, devices::close_session_doc()),
        route(Method::GET, "/api/devices/{id}/events", VIEWER, events::list_device_events, events::device_doc()),
        route(Method::GET, "/api/devices/{id}/metrics", VIEWER, usage::get_device_metrics, usage::device_doc()),
        route(Method::PUT, tag, OPERATOR, device_tags::set_tag, device_tags::set_doc()),
        route(Method::DELETE, tag, OPERATOR, device_tags::delete_tag, device_tags::delete_doc()),
        route(Method::POST, "/api/devices/{id}/diagnose", OPERATOR, device_health::diagnose_device, device_health::diagnose_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn forwarding_routes() -> Vec<Route> {
    vec![
        route(Method::POST, "/api/devices/{id}/open", OPERATOR, forwarding::open_device, forwarding::open_doc()),
        route(Method::GET, "/api/devices/{id}/tcp/{port}", OPERATOR, tcp::open_tcp, tcp::open_doc()),
        forwarded(forwarding::ROUTE, forwarding::forward_doc()),
        forwarded("/api/devices/{id}/http/", Doc::hidden()),
        forwarded("/api/devices/{id}/http", Doc::hidden()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn group_routes() -> Vec<Route> {
    let (all, one, device) = ("/api/groups", "/api/groups/{id}", "/api/groups/{id}/devices/{device}");
    vec![
        route(Method::GET, all, VIEWER, groups::list_groups, groups::list_doc()),
        route(Method::POST, all, ADMIN, groups::create_group, groups::create_doc()),
        route(Method::GET, one, VIEWER, groups::get_group, groups::get_doc()),
        route(Method::PATCH, one, ADMIN, groups::update_group, groups::update_doc()),
        route(Method::DELETE, one, ADMIN, groups::delete_group, groups::delete_doc()),
        route(Method::PUT, device, ADMIN, groups::add_group_device, groups::add_device_doc()),
        route(Method::DELETE, device, ADMIN, groups::delete_group_device, groups::delete_device_doc()),
    ]
}

#[rustfmt::skip] // A table is read by its columns.
fn record_routes() -> Vec<Route> {
    vec![
        route(Method::GET, "/api/events", VIEWER, events::stream_events, events::stream_doc()),
        route(Method::GET, "/api/audit", ADMIN, audit::list_audit, audit::list_doc()),
        route(Method::GET, "/api/usage", VIEWER, usage::get_usage, usage::get_doc()),
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
                "One(POST) /api/auth/backchannel-logout",
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
