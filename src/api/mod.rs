//! The REST API, sign-in, the console and the way to devices, over HTTP.
//!
//! All routes stand in one table (`routes`); the router, the gate in front of it and the OpenAPI
//! document are made from that. Nothing here knows which role runs.

mod assets;
mod audit;
mod backchannel;
mod device_health;
mod device_hosts;
mod device_tags;
mod devices;
mod error;
mod events;
mod extract;
mod forwarding;
mod gate;
mod groups;
mod invitations;
mod logins;
mod members;
pub mod openapi;
mod pages;
mod pairing;
mod routes;
mod service;
mod service_clients;
mod sign_in;
mod system;
mod tcp;
mod tenants;
mod usage;

use std::sync::Arc;

use moka::sync::Cache;
use tokio::sync::watch;
use url::Url;

use crate::auth::access::Authenticator;
use crate::auth::live::{LiveStreams, Right};
use crate::auth::oidc::{OidcClient, ServiceToken};
use crate::auth::refresh::Refresher;
use crate::config::Config;
use crate::feed::ChangeCursor;
use crate::forward::Forwarder;
use crate::net::{RateLimit, TrustedProxies};
use crate::runtime::Lifecycle;
use crate::session::ProxySessions;
use crate::store::{Change, ChangeKind, Store};
use crate::types::{Clock, DeviceId};
pub use service::serve;

/// Where people reach the cloud.
#[derive(Debug, Clone)]
pub struct PublicUrl {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host without the port.
    pub host: String,
    /// The port, where it is not the scheme's own.
    port: Option<u16>,
    authority: Arc<str>,
    origin: String,
}

impl PublicUrl {
    /// Takes a URL that the configuration has checked: http(s), a host, no path.
    pub fn new(url: &Url) -> Self {
        let scheme = match url.scheme() {
            "https" => "https",
            _ => "http",
        };
        let (host, port) = (url.host_str().unwrap_or("localhost"), url.port());
        let authority = authority(host, port);
        Self {
            scheme,
            host: host.to_owned(),
            port,
            origin: format!("{scheme}://{authority}"),
            authority: authority.into(),
        }
    }

    /// Host and port, as in a `Host` field.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    /// Another host on the same port.
    pub fn authority_of(&self, host: &str) -> String {
        authority(host, self.port)
    }

    /// The origin (RFC 6454), as in an `Origin` field.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether browsers reach us by https.
    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    fn is_loopback(&self) -> bool {
        is_loopback_host(&self.host)
    }
}

fn authority(host: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn is_loopback_host(host: &str) -> bool {
    let addr = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || addr.is_ok_and(|addr| addr.is_loopback())
}

/// Everything that handlers need.
pub struct App {
    /// The checked settings.
    pub config: Config,
    /// Where people reach the cloud.
    pub public_url: PublicUrl,
    /// The database.
    pub store: Store,
    /// The wall clock.
    pub clock: Clock,
    /// Finds out who asks.
    pub auth: Authenticator,
    /// The provider.
    pub oidc: OidcClient,
    /// Asks the provider again about people.
    pub refresher: Refresher,
    /// Our own access token at the provider, where we have credentials.
    pub service_token: Option<ServiceToken>,
    /// What is open on behalf of logins.
    pub live: LiveStreams,
    /// The way to devices.
    pub forwarder: Forwarder,
    /// The sessions of all processes.
    pub sessions: ProxySessions,
    /// Failed exchanges of pairing codes.
    pub pairing_failures: RateLimit,
    /// Limits sign-ins that are begun.
    pub sign_in_starts: RateLimit,
    /// Limits callbacks that sign nobody in.
    pub failed_callbacks: RateLimit,
    /// The newest event that this process knows of.
    pub newest_event: watch::Sender<i64>,
    /// Denials that were written down lately: who and what.
    pub denials: Cache<(String, String), ()>,
    /// Whose `X-Forwarded-*` are believed.
    pub trusted_proxies: TrustedProxies,
    /// The process.
    pub lifecycle: Lifecycle,
}

/// The handlers' state. Cheap to clone.
#[derive(Clone)]
pub struct AppState(pub Arc<App>);

impl AppState {
    /// Follows what other processes changed, until the process ends.
    pub async fn follow_changes(self) {
        let mut changes = ChangeCursor::new(self.0.store.clone());
        loop {
            for change in changes.next().await {
                self.on_change(&change);
            }
        }
    }

    fn on_change(&self, change: &Change) {
        let app = &self.0;
        match change.kind {
            ChangeKind::LoginEnded => {
                if let Ok(login) = change.subject.parse() {
                    app.live.end(Right::Login(login));
                }
            }
            ChangeKind::MemberChanged => {
                let tenant = change.detail.as_deref().unwrap_or_default().parse();
                if let (Ok(user), Ok(tenant)) = (change.subject.parse(), tenant) {
                    app.live.end(Right::Member(user, tenant));
                }
            }
            ChangeKind::ServiceClientEnded => {
                if let Ok(client) = change.subject.parse() {
                    app.live.end(Right::ServiceClient(client));
                }
            }
            ChangeKind::DeviceRevoked => {
                if let Ok(device) = change.subject.parse::<DeviceId>() {
                    app.live.end(Right::Device(device.clone()));
                    app.forwarder.forget(&device);
                }
            }
            ChangeKind::SessionMoved => {
                if let Ok(device) = change.subject.parse() {
                    app.forwarder.forget(&device);
                }
            }
            ChangeKind::NodeDraining => {
                if let Ok(node) = change.subject.parse() {
                    app.forwarder.leave_node(&node);
                }
            }
            ChangeKind::DevicePaired | ChangeKind::Unknown => {}
        }
    }

    /// Asks from time to time whether the provider can be used, and keeps our own access token fresh.
    pub async fn watch_provider(self) {
        loop {
            self.0.oidc.probe().await;
            if let Some(token) = &self.0.service_token
                && let Err(error) = token.get().await
            {
                tracing::warn!(%error, "there is no access token for our own calls to the provider");
            }
            tokio::time::sleep(PROVIDER_EVERY).await;
        }
    }

    /// Ends logins when their time is over, so that what they have open ends with them.
    pub async fn end_expired_logins(self) {
        loop {
            tokio::time::sleep(EXPIRY_EVERY).await;
            let (store, now) = (&self.0.store, self.0.clock.now());
            let ended = match store.has_expired_logins(now).await {
                Ok(true) => store.end_expired_logins(now).await,
                found => found.map(drop),
            };
            if let Err(error) = ended {
                tracing::warn!(%error, "logins whose time is over could not be ended");
            }
        }
    }

    /// Removes what has expired, from time to time.
    pub async fn clean_up(self) {
        loop {
            tokio::time::sleep(CLEAN_UP_EVERY).await;
            if let Err(error) = self.0.store.delete_expired(self.0.clock.now()).await {
                tracing::warn!(%error, "what has expired could not be removed");
            }
        }
    }
}

/// Denials that are remembered at once, and for how long.
const MAX_DENIALS: u64 = 10_000;
const DENIALS_FOR: std::time::Duration = std::time::Duration::from_secs(60);

/// The memory of denials that were written down.
pub fn denials() -> Cache<(String, String), ()> {
    Cache::builder()
        .max_capacity(MAX_DENIALS)
        .time_to_live(DENIALS_FOR)
        .build()
}

/// How often the provider is looked at.
const PROVIDER_EVERY: std::time::Duration = std::time::Duration::from_secs(15);
/// How often logins are looked for whose time is over; with the changes that the others follow, their
/// streams end within two seconds.
const EXPIRY_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// How often what has expired is removed.
const CLEAN_UP_EVERY: std::time::Duration = std::time::Duration::from_secs(60);
