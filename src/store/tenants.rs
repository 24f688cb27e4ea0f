//! Tenants, their members and the invitations into them.

use serde::Serialize;

use super::{Membership, Page, PageRequest, Store, StoreError, User, on_engine};
use crate::types::{DeviceId, InvitationId, Role, ServiceClientId, TenantId, Timestamp, UserId};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The id.
    pub id: TenantId,
    /// The name.
    pub name: String,
    /// Whether the provider's claim made it.
    pub claimed: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A person in a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The person.
    pub user: User,
    /// What the person may do.
    pub role: Role,
    /// What put the person there: `personal`, `claim` or `invitation`.
    pub source: String,
}

/// What went with a tenant that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedTenant {
    /// Its devices.
    pub devices: Vec<DeviceId>,
    /// The people in it.
    pub members: Vec<UserId>,
    /// Its programs.
    pub service_clients: Vec<ServiceClientId>,
}

/// What came of a change to somebody's place in a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// It was made.
    Done(Member),
    /// The member is that already.
    Unchanged(Member),
    /// The person is no member.
    NotFound,
    /// The person is the only owner.
    LastOwner,
    /// The provider's claim rules this place.
    Claimed,
}

/// A way into a tenant, without its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The public name.
    pub id: InvitationId,
    /// What the person will be allowed to do.
    pub role: Role,
    /// For whom, as a note.
    pub email: Option<String>,
    /// Who made it: a person or a service client.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it may be used.
    pub expires_at: Timestamp,
    /// When it was used.
    pub accepted_at: Option<Timestamp>,
    /// Who used it.
    pub accepted_by: Option<UserId>,
}

/// An invitation to be made.
#[derive(Debug, Clone)]
pub struct NewInvitation {
    /// The public name.
    pub id: InvitationId,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// What the person will be allowed to do.
    pub role: Role,
    /// For whom, as a note.
    pub email: Option<String>,
    /// Who makes it: a person or a service client.
    pub created_by: String,
    /// Until when it may be used.
    pub expires_at: Timestamp,
}

/// What came of an invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Acceptance {
    /// The person is a member now.
    Joined(Membership),
    /// The person was a member before; the invitation stays open.
    AlreadyMember,
    /// It is unknown, used, expired, revoked, or its maker may no longer invite.
    Invalid,
}

impl Store {
    /// Makes a tenant with one owner.
    ///
    /// # Errors
    /// `Conflict` when the person owns `max_owned` tenants.
    pub async fn create_tenant(
        &self,
        id: &TenantId,
        name: &str,
        owner: &UserId,
        max_owned: u32,
        now: Timestamp,
    ) -> Result<Tenant, StoreError> {
        let (id, name, owner) = (id.clone(), name.to_owned(), owner.clone());
        on_engine!(
            self,
            write,
            tenants::create(&id, &name, &owner, max_owned, now)
        )
    }

    /// A tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_tenant(&self, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let id = id.clone();
        on_engine!(self, read, tenants::find(&id))
    }

    /// Gives a tenant another name.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn rename_tenant(
        &self,
        id: &TenantId,
        name: &str,
    ) -> Result<Option<Tenant>, StoreError> {
        let (id, name) = (id.clone(), name.to_owned());
        on_engine!(self, write, tenants::rename(&id, &name))
    }

    /// Removes a tenant with everything in it, on every process; tells what was in it, `None` when there
    /// was no such tenant. Its people's logins go on in another of their tenants, or end.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_tenant(
        &self,
        id: &TenantId,
        now: Timestamp,
    ) -> Result<Option<RemovedTenant>, StoreError> {
        let id = id.clone();
        on_engine!(self, write, tenants::delete(&id, now))
    }

    /// A tenant's members, in order of their ids.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_members(
        &self,
        tenant: &TenantId,
        page: PageRequest,
    ) -> Result<Page<Member>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, members::list(&tenant, &page))
    }

    /// One of a tenant's members.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn find_member(
        &self,
        tenant: &TenantId,
        user: &UserId,
    ) -> Result<Option<Member>, StoreError> {
        let (tenant, user) = (tenant.clone(), user.clone());
        on_engine!(self, read, members::find(&tenant, &user))
    }

    /// Gives a member another role, on every process.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn set_member_role(
        &self,
        tenant: &TenantId,
        user: &UserId,
        role: Role,
        now: Timestamp,
    ) -> Result<MemberChange, StoreError> {
        let (tenant, user) = (tenant.clone(), user.clone());
        on_engine!(self, write, members::set_role(&tenant, &user, role, now))
    }

    /// Takes a member out, on every process.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_member(
        &self,
        tenant: &TenantId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<MemberChange, StoreError> {
        let (tenant, user) = (tenant.clone(), user.clone());
        on_engine!(self, write, members::delete(&tenant, &user, now))
    }

    /// Makes an invitation.
    ///
    /// # Errors
    /// `Conflict` when the tenant has `max_open` open invitations.
    pub async fn create_invitation(
        &self,
        tenant: &TenantId,
        invitation: NewInvitation,
        max_open: u32,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let tenant = tenant.clone();
        on_engine!(
            self,
            write,
            invitations::create(&tenant, &invitation, max_open, now)
        )
    }

    /// A tenant's invitations, oldest first.
    ///
    /// # Errors
    /// `BadCursor`, or when the database cannot be read.
    pub async fn list_invitations(
        &self,
        tenant: &TenantId,
        page: PageRequest,
    ) -> Result<Page<Invitation>, StoreError> {
        let tenant = tenant.clone();
        on_engine!(self, read, invitations::list(&tenant, &page))
    }

    /// Takes an invitation back; tells whether there was one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn delete_invitation(
        &self,
        tenant: &TenantId,
        id: &InvitationId,
    ) -> Result<bool, StoreError> {
        let (tenant, id) = (tenant.clone(), id.clone());
        on_engine!(self, write, invitations::delete(&tenant, &id))
    }

    /// Makes a person a member by an invitation, all or nothing.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn accept_invitation(
        &self,
        token_hash: [u8; 32],
        user: &UserId,
        now: Timestamp,
    ) -> Result<Acceptance, StoreError> {
        let user = user.clone();
        on_engine!(self, write, invitations::accept(&token_hash, &user, now))
    }
}
