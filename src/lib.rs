//! edgecloud: self-hosted cloud back end for fleets of edge AI boxes behind NAT.
//!
//! The modules in reading order, lowest first; arrows of use never go up this list:
//!
//! - [`types`]: ids, roles, time. Uses nothing else.
//! - [`config`]: files, environment and flags become one checked [`config::Config`].
//! - [`telemetry`], [`runtime`]: logs and metrics; tasks, signals, drain.
//! - [`tunnel`]: yamux over WebSocket, the same driver at both ends.
//! - [`store`]: the only place with SQL.
//! - [`session`]: a device's live tunnel behind the `Handle` seam.
//! - [`auth`]: OpenID Connect, logins, cookies, access rules.
//! - [`forward`]: a person's request into a device's stream and back.
//! - [`api`], [`console`], [`agent`]: what the outside sees.
//! - [`roles`]: puts the parts together.

pub mod types;
pub mod config;
pub mod telemetry;
pub mod runtime;
pub mod tunnel;
#[cfg(feature = "_server")]
pub mod store;
#[cfg(feature = "_server")]
pub mod session;
#[cfg(feature = "_server")]
pub mod auth;
#[cfg(feature = "api")]
pub mod forward;
#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "console")]
pub mod console;
#[cfg(feature = "agent")]
pub mod agent;
pub mod roles;
pub mod cli;
