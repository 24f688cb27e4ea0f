//! Why there is no answer of the device.

use http::{HeaderMap, StatusCode};

use super::headers;
use crate::store::StoreError;

/// Why a request did not get the device's answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The tenant has as many requests open as it may have.
    #[error("the tenant has too many open requests")]
    TenantBusy,
    /// The device has no session.
    #[error("the device is offline")]
    Offline,
    /// The node that holds the device's session does not answer.
    #[error("the node of the device does not answer")]
    NodeLost,
    /// The device has as many open streams as are allowed.
    #[error("the device has too many open streams")]
    Busy,
    /// The device's agent could not reach the origin.
    #[error("the origin refused the connection")]
    OriginRefused,
    /// What came back is no HTTP response, or less than one.
    #[error("the origin's answer is not valid")]
    OriginInvalid,
    /// The tunnel ended before the response.
    #[error("the tunnel was lost")]
    TunnelLost,
    /// The device or its origin took too long.
    #[error("the origin did not answer in time")]
    OriginTimeout,
    /// The client stopped sending its request.
    #[error("the request's body did not arrive in time")]
    ClientTimeout,
    /// The client broke off.
    #[error("the request's body broke off")]
    ClientAborted,
    /// The device's agent allows no connection to the address.
    #[error("the device does not allow the address")]
    AddressNotAllowed,
    /// The device does not know `CONNECT`.
    #[error("the device does not take TCP connections")]
    TcpUnsupported,
    /// The request has been here before.
    #[error("the device leads back to this cloud")]
    Loop,
    /// The login or the device's place in the tenant ended meanwhile.
    #[error("the login or the device is no longer valid")]
    Ended,
    /// The directory cannot be read.
    #[error("the directory cannot be read")]
    Directory(#[from] StoreError),
}

/// What the agent says when it could not reach the origin.
pub fn agent_error(status: StatusCode, headers: &HeaderMap) -> Option<ForwardError> {
    let said = headers.get(&headers::AGENT_ERROR)?;
    (status == StatusCode::BAD_GATEWAY).then(|| match said.as_bytes() {
        b"timeout" => ForwardError::OriginTimeout,
        _ => ForwardError::OriginRefused,
    })
}
