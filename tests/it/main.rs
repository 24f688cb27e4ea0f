//! Behaviour tests: the built binary as real processes on loopback, seen from outside only.
//!
//! `support` holds the actors (a cloud, browsers, devices and their origins). The other modules are
//! the tests, one file per subject; most run on both topologies, see `support::on_both_topologies`.
//! A name that starts with a row of the security requirements, as in `ol_02_...`, shows that row.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime, and tests pass PATH and CHROMIUM on"
)]

mod support;

mod agent;
mod architecture;
mod browser;
mod bulk;
mod cli;
mod crash;
mod demo;
mod device_host;
mod devices;
mod forwarding;
mod gate;
mod harness;
mod internal;
mod logins;
mod logout;
mod pairing;
mod reload;
mod several;
mod sign_in;
mod tls;
mod tunnel;
