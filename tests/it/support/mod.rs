//! The actors of the tests. Nothing here knows how the product works inside.

mod browser;
mod cloud;
mod device;
mod go_device;
mod hostile;
mod http;
mod origin;
mod pattern;
mod people;
mod process;
mod provider;
mod raw_device;
mod service_client;
mod signing;
mod strict_origin;
mod tls;
mod wait;
mod wire_device;

pub use browser::{Anonymous, Browser, LOGIN_COOKIE, text};
pub use cloud::{Another, Part, Ready, TestCloud, Topology, free_addr};
pub use device::Device;
pub use go_device::GoDevice;
pub use hostile::{Endpoint, HostileProvider, Script, Signature, TokenAnswer};
pub use http::{Answer, RawConnection, Request, Streaming, WebSocket, random_token};
pub use origin::{Origin, RawOrigin};
pub use pattern::Pattern;
pub use process::{BINARY, Finished, Process, converse, program, run, run_program};
pub use provider::{AUDIENCE, Provider, Registration};
pub use raw_device::{Manner, RawDevice, ServedDevice};
pub use service_client::ServiceClient;
pub use strict_origin::{Crossed, StrictOrigin};
pub use tls::Authority;
pub use wait::{eventually, within};
pub use wire_device::{WireDevice, yamux};

/// How much of something a test does: `full` is what its requirement says, done with `EDGECLOUD_FULL_LENGTH=1`; `short`
/// fits into a run of all tests.
pub fn length(full: usize, short: usize) -> usize {
    match std::env::var_os("EDGECLOUD_FULL_LENGTH").is_some() {
        true => full,
        false => short,
    }
}

/// What a test asks for: a running cloud, or only the topology, to start one with its own settings.
pub trait Given {
    /// Makes it.
    async fn given(topology: Topology) -> Self;
}

impl Given for Topology {
    async fn given(topology: Topology) -> Self {
        topology
    }
}

impl Given for TestCloud {
    async fn given(topology: Topology) -> Self {
        TestCloud::builder(topology).spawn().await
    }
}

/// Shows a behaviour on a topology.
pub async fn show<G: Given, F: Future<Output = ()>>(
    topology: Topology,
    behaviour: impl FnOnce(G) -> F,
) {
    behaviour(G::given(topology).await).await;
}

/// Runs each named behaviour against one process with all roles, and against an api and a proxy
/// process that share a database.
macro_rules! on_both_topologies {
    ($($name:ident),+ $(,)?) => {
        mod all {
            use crate::support::{Topology, show};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    show(Topology::All, super::$name).await;
                }
            )+
        }
        mod split {
            use crate::support::{Topology, show};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    show(Topology::Split, super::$name).await;
                }
            )+
        }
    };
}
pub(crate) use on_both_topologies;
