//! Listening sockets: binding, TLS, and HTTP/1.1 connections with limits. Knows nothing of routes.

mod admission;
mod client;
pub mod fields;
mod lingering;
mod listener;
mod rate_limit;
mod serve;
mod tls;
mod websocket;

pub use admission::{Admission, Entered, Work};
pub use client::{Client, TrustedProxies};
pub use lingering::upgraded_connection;
pub use listener::{Connection, Listener, Peer};
pub use rate_limit::{Attempt, RateLimit};
pub use serve::{HttpLimits, serve_http};
pub use tls::{TlsError, TlsFiles};
pub use websocket::{offers_subprotocol, switch_to_websocket, websocket_accept};
