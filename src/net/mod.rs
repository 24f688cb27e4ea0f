//! Listening sockets: binding, TLS, and HTTP/1.1 connections with limits. Knows nothing of routes.

mod client;
mod listener;
mod serve;
mod tls;

pub use client::{Client, TrustedProxies};
pub use listener::{Connection, Listener, Peer};
pub use serve::{HttpLimits, serve_http};
pub use tls::{TlsError, TlsFiles};
