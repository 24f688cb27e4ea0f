//! The role proxy: the tunnel listener and the internal API.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::StatusCode;
use tokio_util::task::TaskTracker;

use super::ready_file::Addresses;
use super::server::Process;
use crate::net::{HttpLimits, Listener, TrustedProxies, serve_http};
use crate::session::LeaseState;
use crate::session::internal::credential::Verifier;
use crate::session::internal::server::{InternalApi, StatusPages};
use crate::session::node::Node;
use crate::session::tunnels::{TunnelPolicy, Tunnels};
use crate::store::NewNode;
use crate::telemetry::render_metrics;
use crate::tunnel::WindowBudget;
use crate::types::NodeId;

/// Largest head of a tunnel's handshake, in bytes, and how long it may take.
const HANDSHAKE_HEAD: usize = 16 * 1024;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Connections beyond the sessions that may be at their handshake.
const HANDSHAKES: usize = 4_096;
/// Connections of other processes at once; each stream to a device is one.
const INTERNAL_CONNECTIONS: usize = 100_000;

/// The listeners of the role.
pub struct ProxyListeners {
    tunnel: Listener,
    internal: Option<Listener>,
}

impl ProxyListeners {
    /// Binds them.
    pub fn bind(process: &Process, addresses: &mut Addresses) -> anyhow::Result<Self> {
        let config = &process.config;
        let tls = process.tls.clone();
        let tunnel = Listener::bind(config.tunnel.listen, config.server.reuse_port, tls)
            .with_context(|| format!("bind tunnel.listen {}", config.tunnel.listen))?;
        let internal = config.internal.listen.map(|addr| {
            let listener = Listener::bind(addr, config.server.reuse_port, None);
            listener.with_context(|| format!("bind internal.listen {addr}"))
        });
        let internal = internal.transpose()?;
        addresses.tunnel = Some(tunnel.addr());
        addresses.internal = internal.as_ref().map(Listener::addr);
        Ok(Self { tunnel, internal })
    }

    /// Enters the directory as a node.
    pub async fn register(&self, process: &Process) -> anyhow::Result<Node> {
        let config = &process.config;
        let tunnel_url = match &config.tunnel.public_url {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => format!("ws://{}", reachable(self.tunnel.addr())),
        };
        let internal_url =
            self.internal
                .as_ref()
                .map(|listener| match &config.internal.advertise_url {
                    Some(url) => url.as_str().trim_end_matches('/').to_owned(),
                    None => format!("http://{}", reachable(listener.addr())),
                });
        let new_node = NewNode {
            id: NodeId::random(),
            internal_url,
            tunnel_url: Some(tunnel_url),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let registered = Node::register(process.store.clone(), new_node).await;
        registered.context("enter the directory of nodes")
    }

    /// Accepts tunnels and, where it listens, other processes. Returns what waits for the sessions.
    pub fn serve(self, process: &Process, node: &Node) -> TaskTracker {
        let (config, lifecycle) = (&process.config, &process.lifecycle);
        let sessions = TaskTracker::new();
        let policy = TunnelPolicy {
            heartbeat: config.tunnel.heartbeat,
            max_sessions: config.tunnel.max_sessions,
            new_sessions_per_second: config.tunnel.new_sessions_per_second,
            handshakes_at_once: config.tunnel.handshakes_at_once,
            max_streams: config.tunnel.max_streams_per_session,
            max_message_bytes: config.tunnel.max_message_bytes,
            window_budget: config.tunnel.window_budget_bytes,
            process_budget: WindowBudget::new(config.tunnel.process_window_budget_bytes),
            drain_timeout: config.server.drain_timeout,
            failed_tokens_per_minute: config.limits.failed_device_tokens_per_minute,
            trusted_proxies: TrustedProxies::new(&config.server.trusted_proxies),
        };
        let tunnels = Tunnels::new(
            node.clone(),
            policy,
            process.clock.clone(),
            sessions.clone(),
            lifecycle.ready.clone(),
        );
        let limits = HttpLimits {
            head_bytes: HANDSHAKE_HEAD,
            headers: 64,
            header_read_timeout: HANDSHAKE_TIME,
            connections: config.tunnel.max_sessions + HANDSHAKES,
        };
        let service = tower::service_fn(move |request| tunnels.clone().answer(request));
        let (stop, abort) = (lifecycle.stop.clone(), lifecycle.abort.clone());
        let serve = serve_http(self.tunnel, service, limits, stop, abort);
        lifecycle.spawn_listener("tunnel listener", serve);
        if let Some(listener) = self.internal {
            serve_internal(process, node, listener, sessions.clone());
        }
        // The lease is kept until the very end: sessions live on while the process drains.
        let maintain = {
            let (node, abort) = (node.clone(), lifecycle.abort.clone());
            async move { node.maintain(abort).await }
        };
        lifecycle.spawn_vital("node", maintain);
        sessions
    }
}

fn serve_internal(process: &Process, node: &Node, listener: Listener, splices: TaskTracker) {
    let lifecycle = &process.lifecycle;
    let verifier = Verifier::new(process.internal_keys.clone(), process.clock.clone());
    let status = status_pages(process, node);
    let api = InternalApi::new(node.clone(), verifier, splices, status);
    let limits = HttpLimits {
        head_bytes: HANDSHAKE_HEAD,
        headers: 64,
        header_read_timeout: HANDSHAKE_TIME,
        connections: INTERNAL_CONNECTIONS,
    };
    let service = tower::service_fn(move |request| api.clone().answer(request));
    // Other processes reach the sessions of a draining node until they have ended.
    let abort = lifecycle.abort.clone();
    let serve = serve_http(listener, service, limits, abort.clone(), abort);
    lifecycle.spawn_vital("internal listener", serve);
}

fn status_pages(process: &Process, node: &Node) -> StatusPages {
    let (lifecycle, node) = (process.lifecycle.clone(), node.clone());
    Arc::new(move |path| match path {
        "/healthz" => Some((StatusCode::OK, "ok\n".to_owned())),
        "/readyz" => {
            let held = node.lease_state() == LeaseState::Held;
            Some(match lifecycle.is_ready() && held {
                true => (StatusCode::OK, "{\"degraded\":[]}".to_owned()),
                false => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "{\"ready\":false}".to_owned(),
                ),
            })
        }
        "/metrics" => Some((StatusCode::OK, render_metrics())),
        _ => None,
    })
}

/// The address by which this machine reaches a listener on any of its addresses.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port())),
        false => addr,
    }
}
