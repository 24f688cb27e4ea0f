//! The internal API between api and proxy processes (`:3801`): its credential, its two ends.

pub mod credential;
#[cfg(feature = "proxy")]
pub mod server;

mod client;

pub use client::{CLOSE_DEADLINE, InternalClient, Target};

/// The prefix of every path of the internal API.
pub const PREFIX: &str = "/internal/v1/sessions";
/// The protocol of the upgrade that turns a request into a stream.
pub const UPGRADE: &str = "edgecloud-stream";
/// Names the epoch of the session that a stream is meant for.
pub const EPOCH_HEADER: &str = "edgecloud-epoch";
/// Names the tenant that the caller acts for.
pub const TENANT_HEADER: &str = "edgecloud-tenant";
