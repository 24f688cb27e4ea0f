//! Who is asking: sign-in with OpenID Connect, logins, cookies, and what each may do.
//!
//! This module decides and remembers; the routes that use it are in `api`. It knows nothing of
//! devices' tunnels.

#[cfg(feature = "api")]
pub mod access;
#[cfg(feature = "api")]
pub mod bearer;
#[cfg(feature = "api")]
pub mod cookies;
#[cfg(feature = "api")]
pub mod csrf;
#[cfg(feature = "api")]
pub mod http;
#[cfg(feature = "dev-issuer")]
pub mod issuer;
#[cfg(feature = "api")]
pub mod live;
#[cfg(feature = "api")]
pub mod oidc;
#[cfg(feature = "api")]
pub mod pairing_code;
#[cfg(feature = "api")]
pub mod pending;
#[cfg(feature = "api")]
pub mod refresh;
#[cfg(feature = "api")]
pub mod return_to;
