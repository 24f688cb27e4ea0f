//! Invitations into tenants.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{members, optional_time, parsed, time};
use crate::fail_point;
use crate::store::{
    Acceptance, Invitation, Membership, NewInvitation, Page, PageRequest, StoreError,
};
use crate::types::{InvitationId, Role, TenantId, Timestamp, UserId};

fn invitation(row: &Row<'_>) -> rusqlite::Result<Invitation> {
    let accepted_by = match row.get::<_, Option<String>>("accepted_by")? {
        Some(_) => Some(parsed(row, "accepted_by")?),
        None => None,
    };
    Ok(Invitation {
        id: parsed(row, "id")?,
        role: parsed(row, "role")?,
        email: row.get("email")?,
        created_by: row.get("created_by")?,
        created_at: time(row, "created_at")?,
        expires_at: time(row, "expires_at")?,
        accepted_at: optional_time(row, "accepted_at")?,
        accepted_by,
    })
}

/// Makes an invitation.
pub fn create(
    connection: &Connection,
    tenant: &TenantId,
    invitation: &NewInvitation,
    max_open: u32,
    now: Timestamp,
) -> Result<(), StoreError> {
    let open: u32 = connection
        .prepare_cached(
            "SELECT count(*) FROM invitations
             WHERE tenant_id = ?1 AND accepted_at IS NULL AND expires_at > ?2",
        )?
        .query_row(params![tenant.as_str(), now.as_millis()], |row| row.get(0))?;
    if open >= max_open {
        return Err(StoreError::Conflict("too many open invitations"));
    }
    connection
        .prepare_cached(
            "INSERT INTO invitations (id, tenant_id, token_hash, role, email, created_by, created_at,
                 expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            invitation.id.as_str(),
            tenant.as_str(),
            &invitation.token_hash[..],
            invitation.role.as_str(),
            invitation.email,
            invitation.created_by,
            now.as_millis(),
            invitation.expires_at.as_millis()
        ])?;
    Ok(())
}

/// Part of a tenant's invitations.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    page: &PageRequest,
) -> Result<Page<Invitation>, StoreError> {
    let (after_time, after_id) = page.after(tenant)?;
    let mut statement = connection.prepare_cached(
        "SELECT * FROM invitations WHERE tenant_id = ?1 AND (created_at, id) > (?2, ?3)
         ORDER BY created_at, id LIMIT ?4",
    )?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(
        params![tenant.as_str(), after_time, after_id, limit],
        invitation,
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &Invitation| {
        (last.created_at.as_millis(), last.id.to_string())
    }))
}

/// Takes an invitation back.
pub fn delete(
    connection: &Connection,
    tenant: &TenantId,
    id: &InvitationId,
) -> Result<bool, StoreError> {
    let deleted = connection
        .prepare_cached("DELETE FROM invitations WHERE id = ?1 AND tenant_id = ?2")?
        .execute([id.as_str(), tenant.as_str()])?;
    Ok(deleted == 1)
}

/// Makes a person a member. The maker must still be allowed to give that role.
pub fn accept(
    connection: &Connection,
    token_hash: &[u8; 32],
    user: &UserId,
    now: Timestamp,
) -> Result<Acceptance, StoreError> {
    let sql = "SELECT i.id, i.tenant_id, i.role, t.name, m.role AS makers_role FROM invitations i
               JOIN tenants t ON t.id = i.tenant_id
               JOIN makers m ON m.tenant_id = i.tenant_id AND m.id = i.created_by
               WHERE i.token_hash = ?1 AND i.accepted_at IS NULL AND i.expires_at > ?2";
    let found = connection
        .prepare_cached(sql)?
        .query_row(params![&token_hash[..], now.as_millis()], |row| {
            let membership = Membership {
                id: parsed(row, "tenant_id")?,
                name: row.get("name")?,
                role: parsed(row, "role")?,
            };
            let id: InvitationId = parsed(row, "id")?;
            Ok((id, membership, parsed::<Role>(row, "makers_role")?))
        })
        .optional()?;
    let Some((id, membership, makers_role)) = found else {
        return Ok(Acceptance::Invalid);
    };
    if makers_role < Role::Admin || makers_role < membership.role {
        return Ok(Acceptance::Invalid);
    }
    if members::find(connection, &membership.id, user)?.is_some() {
        return Ok(Acceptance::AlreadyMember);
    }
    fail_point::reach("accept.found");
    let marked = connection
        .prepare_cached(
            "UPDATE invitations SET accepted_at = ?2, accepted_by = ?3
             WHERE id = ?1 AND accepted_at IS NULL",
        )?
        .execute(params![id.as_str(), now.as_millis(), user.as_str()])?;
    if marked != 1 {
        return Err(StoreError::Failed(
            "the invitation could not be marked accepted".to_owned(),
        ));
    }
    fail_point::reach("accept.after_mark");
    members::add(
        connection,
        &membership.id,
        user,
        membership.role,
        "invitation",
    )?;
    fail_point::reach("accept.after_member");
    Ok(Acceptance::Joined(membership))
}
