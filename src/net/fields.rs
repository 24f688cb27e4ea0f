//! Names of header fields that the `http` crate does not have, ready to be looked up: to read one from a
//! text costs several times what the look-up does.

use http::HeaderName;

/// Where a browser's request comes from (Fetch Metadata).
pub static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How a browser came to make a request (Fetch Metadata).
pub static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// What a browser will do with the answer (Fetch Metadata).
pub static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// The addresses that a request has passed, as most origins read them.
pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the client used.
pub static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
