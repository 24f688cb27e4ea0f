//! What one process must tell the others.

use super::{Store, StoreError, on_engine};

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// A login is over; the subject is its id.
    LoginEnded,
    /// A person's role in a tenant changed or ended; the subject is the person, the detail the tenant.
    MemberChanged,
    /// A program's role changed or ended; the subject is its id.
    ServiceClientEnded,
    /// A device was removed; the subject is its id.
    DeviceRevoked,
    /// A device has a newer session on another node; the detail is the newer epoch.
    SessionMoved,
    /// A device was paired; the subject is its id.
    DevicePaired,
    /// A node is on its way out; the subject is its id.
    NodeDraining,
    /// Something that this version does not know.
    Unknown,
}

impl ChangeKind {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoginEnded => "login_ended",
            Self::MemberChanged => "member_changed",
            Self::ServiceClientEnded => "service_client_ended",
            Self::DeviceRevoked => "device_revoked",
            Self::SessionMoved => "session_moved",
            Self::DevicePaired => "device_paired",
            Self::NodeDraining => "node_draining",
            Self::Unknown => "unknown",
        }
    }

    /// The kind with a name.
    pub fn parse(text: &str) -> Self {
        [
            Self::LoginEnded,
            Self::MemberChanged,
            Self::ServiceClientEnded,
            Self::DeviceRevoked,
            Self::SessionMoved,
            Self::DevicePaired,
            Self::NodeDraining,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .unwrap_or(Self::Unknown)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its place in the sequence.
    pub seq: i64,
    /// What kind it is.
    pub kind: ChangeKind,
    /// What it is about.
    pub subject: String,
    /// More, by kind.
    pub detail: Option<String>,
}

impl Store {
    /// The newest change's place in the sequence, 0 when there was none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn latest_change(&self) -> Result<i64, StoreError> {
        on_engine!(self, read, changes::latest())
    }

    /// The changes after a place in the sequence, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list_changes(&self, after: i64, limit: u32) -> Result<Vec<Change>, StoreError> {
        on_engine!(self, read, changes::list(after, limit))
    }
}
