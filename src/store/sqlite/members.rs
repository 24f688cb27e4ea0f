//! Members of tenants.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{changes, logins, parsed};
use crate::store::{ChangeKind, Member, MemberChange, Page, PageRequest, StoreError, User};
use crate::types::{LoginId, Role, TenantId, Timestamp, UserId};

const SELECT: &str = "SELECT u.id, u.email, u.name, m.role, m.source
    FROM members m JOIN users u ON u.id = m.user_id";

fn member(row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member {
        user: User {
            id: parsed(row, "id")?,
            email: row.get("email")?,
            name: row.get("name")?,
        },
        role: parsed(row, "role")?,
        source: row.get("source")?,
    })
}

/// Part of a tenant's members.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    page: &PageRequest,
) -> Result<Page<Member>, StoreError> {
    let (_, after) = page.after(tenant)?;
    let sql = format!("{SELECT} WHERE m.tenant_id = ?1 AND u.id > ?2 ORDER BY u.id LIMIT ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(params![tenant.as_str(), after, limit], member)?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &Member| (0, last.user.id.to_string())))
}

/// One of a tenant's members.
pub fn find(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
) -> Result<Option<Member>, StoreError> {
    let sql = format!("{SELECT} WHERE m.tenant_id = ?1 AND m.user_id = ?2");
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([tenant.as_str(), user.as_str()], member)
        .optional()?)
}

/// Puts a person into a tenant, or changes the place there.
pub fn add(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    role: Role,
    source: &str,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO members (tenant_id, user_id, role, source) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (user_id, tenant_id) DO UPDATE SET role = excluded.role, source = excluded.source",
        )?
        .execute(params![tenant.as_str(), user.as_str(), role.as_str(), source])?;
    Ok(())
}

/// The member, unless the place must stay as it is.
fn changeable(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    stays_owner: bool,
) -> Result<Result<Member, MemberChange>, StoreError> {
    let Some(member) = find(connection, tenant, user)? else {
        return Ok(Err(MemberChange::NotFound));
    };
    if member.source == "claim" {
        return Ok(Err(MemberChange::Claimed));
    }
    let owners: u32 = connection
        .prepare_cached("SELECT count(*) FROM members WHERE tenant_id = ?1 AND role = 'owner'")?
        .query_row([tenant.as_str()], |row| row.get(0))?;
    if member.role == Role::Owner && owners == 1 && !stays_owner {
        return Ok(Err(MemberChange::LastOwner));
    }
    Ok(Ok(member))
}

/// Gives a member another role.
pub fn set_role(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    role: Role,
    now: Timestamp,
) -> Result<MemberChange, StoreError> {
    let mut member = match changeable(connection, tenant, user, role == Role::Owner)? {
        Ok(member) => member,
        Err(refused) => return Ok(refused),
    };
    if member.role == role {
        return Ok(MemberChange::Unchanged(member));
    }
    add(connection, tenant, user, role, &member.source)?;
    ended(connection, tenant, user, now)?;
    member.role = role;
    Ok(MemberChange::Done(member))
}

/// Takes a member out.
pub fn delete(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    now: Timestamp,
) -> Result<MemberChange, StoreError> {
    match changeable(connection, tenant, user, false)? {
        Ok(member) => {
            remove(connection, tenant, user, now)?;
            Ok(MemberChange::Done(member))
        }
        Err(refused) => Ok(refused),
    }
}

/// Tells every process that what rests on a person's role in a tenant is over.
pub fn ended(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let kind = ChangeKind::MemberChanged;
    changes::append(connection, kind, user.as_str(), Some(tenant.as_str()), now)
}

/// Takes a person out of a tenant. Logins that are there go on in another of the person's tenants; a
/// person without any is signed out.
pub fn remove(
    connection: &Connection,
    tenant: &TenantId,
    user: &UserId,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM members WHERE tenant_id = ?1 AND user_id = ?2")?
        .execute([tenant.as_str(), user.as_str()])?;
    ended(connection, tenant, user, now)?;
    let other: Option<String> = connection
        .prepare_cached(
            "SELECT m.tenant_id FROM members m JOIN tenants t ON t.id = m.tenant_id
             WHERE m.user_id = ?1 ORDER BY t.created_at, t.id LIMIT 1",
        )?
        .query_row([user.as_str()], |row| row.get(0))
        .optional()?;
    if let Some(other) = other {
        connection
            .prepare_cached(
                "UPDATE logins SET active_tenant = ?3 WHERE user_id = ?1 AND active_tenant = ?2",
            )?
            .execute([user.as_str(), tenant.as_str(), &other])?;
        return Ok(());
    }
    let mut statement = connection.prepare_cached("SELECT id FROM logins WHERE user_id = ?1")?;
    let ids = statement.query_map([user.as_str()], |row| parsed::<LoginId>(row, "id"))?;
    for id in ids.collect::<Result<Vec<_>, _>>()? {
        logins::end(connection, &id, now)?;
    }
    Ok(())
}
