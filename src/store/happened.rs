//! Which writes did something: only those are written down in the audit.

use std::borrow::Cow;

use super::{
    Acceptance, AuditEntry, Group, MemberChange, PairingCode, RefreshEnd, ServiceClient, Tenant,
};
use crate::types::{TenantId, UserId};

/// Whether a write did something: only then it is written down in the audit.
pub trait Happened {
    /// Whether it did.
    fn happened(&self) -> bool {
        true
    }

    /// In which tenant, where only the write finds that out.
    fn place(&self) -> Option<&TenantId> {
        None
    }
}

/// What is to be written down of a write that has `done` this; `None` when it did nothing.
pub fn of<'a>(entry: &'a AuditEntry, done: &impl Happened) -> Option<Cow<'a, AuditEntry>> {
    done.happened().then(|| match done.place() {
        None => Cow::Borrowed(entry),
        Some(tenant) => Cow::Owned(AuditEntry {
            tenant: Some(tenant.clone()),
            ..entry.clone()
        }),
    })
}

impl Happened for bool {
    fn happened(&self) -> bool {
        *self
    }
}

impl<T> Happened for Option<T> {
    fn happened(&self) -> bool {
        self.is_some()
    }
}

impl<T> Happened for Vec<T> {
    fn happened(&self) -> bool {
        !self.is_empty()
    }
}

impl Happened for MemberChange {
    fn happened(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

impl Happened for Acceptance {
    fn happened(&self) -> bool {
        matches!(self, Self::Joined(_))
    }

    fn place(&self) -> Option<&TenantId> {
        match self {
            Self::Joined(membership) => Some(&membership.id),
            Self::AlreadyMember | Self::Invalid => None,
        }
    }
}

impl Happened for () {}
impl Happened for RefreshEnd {}
impl Happened for UserId {}
impl Happened for PairingCode {}
impl Happened for Tenant {}
impl Happened for ServiceClient {}
impl Happened for Group {}
