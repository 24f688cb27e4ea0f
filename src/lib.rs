//! edgecloud: self-hosted cloud back end for fleets of edge AI boxes behind NAT.
//!
//! The modules in reading order, lowest first; arrows of use never go up this list:
//!
//! - [`types`]: ids, roles, time. Uses nothing else.
//! - [`fail_point`]: where tests make a debug build die; `fuzzing`: what tests feed to parsers.
//! - [`config`]: files, environment and flags become one checked [`config::Config`].
//! - [`telemetry`], [`runtime`]: logs and metrics; tasks, signals, drain.
//! - [`net`]: listening sockets, TLS, HTTP connections with limits.
//! - [`websocket`]: frames of RFC 6455 over a byte stream.
//! - [`tunnel`]: yamux over WebSocket, the same driver at both ends.
//! - [`tcp_relay`]: a TCP connection over a WebSocket, the same at both ends.
//! - [`keys`], [`device_token`]: what signs and seals, and the device's secret.
//! - [`store`]: the only place with SQL; [`feed`] follows what other processes changed there.
//! - [`audit_chain`]: seals the audit and checks it.
//! - [`session`]: a device's live tunnel behind the `Handle` seam.
//! - [`auth`]: OpenID Connect, logins, cookies, access rules.
//! - [`forward`]: a person's request into a device's stream and back.
//! - [`console`], [`api`]: what people and programs see.
//! - [`cli`], [`agent`], [`client`]: the command line as types; the program on the device; a device's
//!   TCP ports on another machine.
//! - [`roles`]: puts the parts together.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "_server")]
pub mod audit_chain;
#[cfg(feature = "_server")]
pub mod auth;
pub mod cli;
#[cfg(feature = "agent")]
pub mod client;
pub mod config;
#[cfg(feature = "console")]
pub mod console;
#[cfg(feature = "_server")]
pub mod device_token;
#[cfg(feature = "_server")]
pub mod fail_point;
#[cfg(feature = "_server")]
pub mod feed;
#[cfg(feature = "api")]
pub mod forward;
#[cfg(test)]
mod fuzzing;
#[cfg(feature = "_server")]
pub mod keys;
#[cfg(feature = "_server")]
pub mod net;
pub mod roles;
pub mod runtime;
#[cfg(feature = "_server")]
pub mod session;
#[cfg(feature = "_server")]
pub mod store;
#[cfg(any(feature = "api", feature = "agent"))]
pub mod tcp_relay;
pub mod telemetry;
pub mod tunnel;
pub mod types;
pub mod websocket;
