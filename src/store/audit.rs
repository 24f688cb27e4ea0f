//! The audit: who did what, append-only, sealed by a chain of checkpoints.

use std::net::IpAddr;

use ring::digest::{Context, SHA256};
use serde::Serialize;

use super::{Page, PageRequest, Store, StoreError, on_engine};
use crate::types::{DeviceId, RequestId, ServiceClientId, TenantId, Timestamp, UserId};

/// Rows that are read at once when the chain is followed.
pub const ROWS_AT_ONCE: u32 = 1_000;

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditActor {
    /// A person.
    User(UserId),
    /// A program.
    ServiceClient(ServiceClientId),
    /// A device.
    Device(DeviceId),
    /// The provider, by a claim, a refresh or a back-channel call.
    Provider,
    /// Whoever runs the installation, by a command on its host.
    Command,
    /// Somebody who has not shown who they are.
    Anonymous,
}

impl AuditActor {
    /// The kind's name in the API and the database.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::ServiceClient(_) => "service_client",
            Self::Device(_) => "device",
            Self::Provider => "provider",
            Self::Command => "command",
            Self::Anonymous => "anonymous",
        }
    }

    /// The id, of somebody who has one.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::User(id) => Some(id.as_str()),
            Self::ServiceClient(id) => Some(id.as_str()),
            Self::Device(id) => Some(id.as_str()),
            Self::Provider | Self::Command | Self::Anonymous => None,
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    /// It was done.
    Success,
    /// The caller may not.
    Denied,
    /// It was tried and did not succeed.
    Failure,
}

impl AuditOutcome {
    /// The name in the API and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failure => "failure",
        }
    }
}

/// Something to be written down. Never holds a token, a code, a cookie or a body.
#[derive(Debug, Clone)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// In which tenant; `None` for what is no tenant's, such as a failed sign-in.
    pub tenant: Option<TenantId>,
    /// Who.
    pub actor: AuditActor,
    /// What, as `thing.done`.
    pub action: &'static str,
    /// On what: an id or a name.
    pub target: Option<String>,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// From where.
    pub remote_addr: Option<IpAddr>,
    /// In which request.
    pub request: Option<RequestId>,
    /// More, by action: short texts and numbers.
    pub detail: Option<serde_json::Value>,
}

impl AuditEntry {
    /// A success without anything more to tell.
    pub fn new(
        at: Timestamp,
        tenant: Option<TenantId>,
        actor: AuditActor,
        action: &'static str,
    ) -> Self {
        Self {
            at,
            tenant,
            actor,
            action,
            target: None,
            outcome: AuditOutcome::Success,
            remote_addr: None,
            request: None,
            detail: None,
        }
    }
}

/// Something that was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its place in the sequence.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// In which tenant.
    pub tenant: Option<String>,
    /// What kind of actor.
    pub actor_kind: String,
    /// Who.
    pub actor: Option<String>,
    /// What.
    pub action: String,
    /// On what.
    pub target: Option<String>,
    /// How it ended.
    pub outcome: String,
    /// From where.
    pub remote_addr: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// More, as JSON.
    pub detail: Option<String>,
}

/// A seal over the rows since the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditCheckpoint {
    /// The last row under it.
    pub up_to: i64,
    /// When it was made.
    pub at: Timestamp,
    /// SHA-256 over the hash before it and the rows since.
    pub hash: [u8; 32],
    /// Names the key of the signature.
    pub key_id: String,
    /// HMAC-SHA256 of the hash.
    pub mac: [u8; 32],
}

/// What a sealing hash is made of: the one before, then each row, every field with its length.
pub struct AuditHash(Context);

impl AuditHash {
    /// Begins after the hash of the checkpoint before, all zeros for the first.
    pub fn after(previous: &[u8; 32]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(previous);
        Self(context)
    }

    /// Takes a row in.
    pub fn add(&mut self, row: &AuditRow) {
        self.0.update(&row.seq.to_be_bytes());
        self.0.update(&row.at.as_millis().to_be_bytes());
        for field in [
            row.tenant.as_deref(),
            Some(row.actor_kind.as_str()),
            row.actor.as_deref(),
            Some(row.action.as_str()),
            row.target.as_deref(),
            Some(row.outcome.as_str()),
            row.remote_addr.as_deref(),
            row.request_id.as_deref(),
            row.detail.as_deref(),
        ] {
            // A field that is not there differs from one that is empty.
            let length = field.map_or(u64::MAX, |text| text.len() as u64);
            self.0.update(&length.to_be_bytes());
            self.0.update(field.unwrap_or_default().as_bytes());
        }
    }

    /// The hash.
    pub fn finish(self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
}

/// Which rows of a tenant's audit.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Those of an action, or of all actions that begin with `thing.`.
    pub action: Option<String>,
    /// Those of an actor.
    pub actor: Option<String>,
    /// Those about something.
    pub target: Option<String>,
}

impl Store {
    /// The same store, whose next write also writes `entry` down, in the same transaction and only
    /// when it did something.
    pub fn audited(&self, entry: AuditEntry) -> Self {
        Self {
            record: Some(std::sync::Arc::new(entry)),
            engine: self.engine.clone(),
        }
    }

    /// Writes something down that changes nothing else.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn append_audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.audited(entry).note().await
    }

    async fn note(&self) -> Result<(), StoreError> {
        on_engine!(self, write, audit::note())
    }

    /// A tenant's audit, newest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_audit(
        &self,
        tenant: &TenantId,
        filter: AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditRow>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, audit::list(&tenant, &filter, &page))
    }

    /// All rows after a place in the sequence, oldest first, at most [`ROWS_AT_ONCE`].
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read_audit(&self, after: i64) -> Result<Vec<AuditRow>, StoreError> {
        on_engine!(self, read, audit::read(after))
    }

    /// The checkpoints after a place in the sequence, oldest first, at most [`ROWS_AT_ONCE`].
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read_audit_checkpoints(
        &self,
        after: i64,
    ) -> Result<Vec<AuditCheckpoint>, StoreError> {
        on_engine!(self, read, audit::checkpoints(after))
    }

    /// The newest checkpoint.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn latest_audit_checkpoint(&self) -> Result<Option<AuditCheckpoint>, StoreError> {
        on_engine!(self, read, audit::latest_checkpoint())
    }

    /// Adds a checkpoint; false when another process was faster.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn create_audit_checkpoint(
        &self,
        previous: i64,
        checkpoint: AuditCheckpoint,
    ) -> Result<bool, StoreError> {
        on_engine!(self, write, audit::create_checkpoint(previous, &checkpoint))
    }
}
