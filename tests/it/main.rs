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

mod access_matrix;
mod admission;
mod agent;
mod architecture;
mod audit_chain;
mod backup;
mod browser;
mod bulk;
mod canary;
mod claimed_tenants;
mod claims;
mod cli;
mod cookies;
mod crash;
mod csrf;
mod database_faults;
mod demo;
mod device_host;
mod devices;
mod diagnose;
mod events;
mod foreign;
mod forwarding;
mod gate;
mod groups;
mod harness;
mod hostile_device;
mod hostile_frames;
mod hostile_provider;
mod http_surface;
mod id_tokens;
mod internal;
mod internal_keys;
mod interop;
mod interop_ends;
mod invitation_faults;
mod invitations;
mod leaks;
mod login_cookie;
mod logins;
mod logout;
mod measures;
mod memory;
mod pairing;
mod pairing_faults;
mod poisoning;
mod providers;
mod rate_limits;
mod records;
mod reload;
mod revocation;
mod secrets;
mod security_coverage;
mod service_clients;
mod several;
mod sign_in;
mod slow_callers;
mod smuggling;
mod ssh;
mod targets;
mod tcp;
mod tenancy;
mod tenant_limits;
mod tls;
mod tokens;
mod tunnel;
mod upgrades;
