//! Service clients.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{audit, changes, is_taken, parsed, time};
use crate::store::{
    AuditActor, AuditEntry, ChangeKind, NewServiceClient, Page, PageRequest, ServiceClient,
    StoreError,
};
use crate::types::{Role, ServiceClientId, TenantId, Timestamp};

const SELECT: &str = "SELECT c.id, c.tenant_id, t.name AS tenant_name, c.client_id, c.name, c.role,
    c.created_at FROM service_clients c JOIN tenants t ON t.id = c.tenant_id";

fn service_client(row: &Row<'_>) -> rusqlite::Result<ServiceClient> {
    Ok(ServiceClient {
        id: parsed(row, "id")?,
        tenant: parsed(row, "tenant_id")?,
        tenant_name: row.get("tenant_name")?,
        client_id: row.get("client_id")?,
        name: row.get("name")?,
        role: parsed(row, "role")?,
        created_at: time(row, "created_at")?,
    })
}

/// Registers.
pub fn create(
    connection: &Connection,
    tenant: &TenantId,
    client: &NewServiceClient,
    max: u32,
    now: Timestamp,
) -> Result<ServiceClient, StoreError> {
    let registered: u32 = connection
        .prepare_cached("SELECT count(*) FROM service_clients WHERE tenant_id = ?1")?
        .query_row([tenant.as_str()], |row| row.get(0))?;
    if registered >= max {
        return Err(StoreError::Conflict("too many service clients"));
    }
    let inserted = connection
        .prepare_cached(
            "INSERT INTO service_clients (id, tenant_id, client_id, name, role, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            client.id.as_str(),
            tenant.as_str(),
            client.client_id,
            client.name,
            client.role.as_str(),
            now.as_millis()
        ]);
    match inserted {
        Err(error) if is_taken(&error) => {
            return Err(StoreError::Conflict("the client id is registered"));
        }
        other => other?,
    };
    find(connection, tenant, &client.id)?
        .ok_or_else(|| StoreError::Failed("a new service client is gone".to_owned()))
}

/// Part of a tenant's list.
pub fn list(
    connection: &Connection,
    tenant: &TenantId,
    page: &PageRequest,
) -> Result<Page<ServiceClient>, StoreError> {
    let (after_time, after_id) = page.after(tenant)?;
    let sql = format!(
        "{SELECT} WHERE c.tenant_id = ?1 AND (c.created_at, c.id) > (?2, ?3)
         ORDER BY c.created_at, c.id LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = page.limit.saturating_add(1);
    let rows = statement.query_map(
        params![tenant.as_str(), after_time, after_id, limit],
        service_client,
    )?;
    let items = rows.collect::<Result<_, _>>()?;
    Ok(page.page(tenant, items, |last: &ServiceClient| {
        (last.created_at.as_millis(), last.id.to_string())
    }))
}

/// One of a tenant's.
pub fn find(
    connection: &Connection,
    tenant: &TenantId,
    id: &ServiceClientId,
) -> Result<Option<ServiceClient>, StoreError> {
    let sql = format!("{SELECT} WHERE c.id = ?1 AND c.tenant_id = ?2");
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([id.as_str(), tenant.as_str()], service_client)
        .optional()?)
}

/// By the client id at the provider.
pub fn find_by_client_id(
    connection: &Connection,
    client_id: &str,
    issuer: &str,
    subject: &str,
) -> Result<Option<ServiceClient>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE c.client_id = ?1
         AND NOT EXISTS (SELECT 1 FROM users u WHERE u.issuer = ?2 AND u.subject = ?3)"
    );
    Ok(connection
        .prepare_cached(&sql)?
        .query_row([client_id, issuer, subject], service_client)
        .optional()?)
}

/// Changes name and role.
pub fn update(
    connection: &Connection,
    tenant: &TenantId,
    id: &ServiceClientId,
    (name, role): (Option<&str>, Option<Role>),
    now: Timestamp,
) -> Result<Option<ServiceClient>, StoreError> {
    let Some(before) = find(connection, tenant, id)? else {
        return Ok(None);
    };
    connection
        .prepare_cached(
            "UPDATE service_clients SET name = coalesce(?3, name), role = coalesce(?4, role)
             WHERE id = ?1 AND tenant_id = ?2",
        )?
        .execute(params![
            id.as_str(),
            tenant.as_str(),
            name,
            role.map(Role::as_str)
        ])?;
    if role.is_some_and(|role| role != before.role) {
        ended(connection, id, now)?;
    }
    find(connection, tenant, id)
}

/// Removes.
pub fn delete(
    connection: &Connection,
    tenant: &TenantId,
    id: &ServiceClientId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let deleted = connection
        .prepare_cached("DELETE FROM service_clients WHERE id = ?1 AND tenant_id = ?2")?
        .execute([id.as_str(), tenant.as_str()])?;
    if deleted == 1 {
        ended(connection, id, now)?;
    }
    Ok(deleted == 1)
}

/// Removes whoever has a client id.
pub fn take(
    connection: &Connection,
    client_id: &str,
    now: Timestamp,
) -> Result<Option<ServiceClient>, StoreError> {
    let sql = format!("{SELECT} WHERE c.client_id = ?1");
    let found = connection
        .prepare_cached(&sql)?
        .query_row([client_id], service_client)
        .optional()?;
    let Some(client) = found else {
        return Ok(None);
    };
    delete(connection, &client.tenant, &client.id, now)?;
    let (tenant, actor) = (client.tenant.clone(), AuditActor::Command);
    let entry = AuditEntry {
        target: Some(client.id.to_string()),
        detail: Some(serde_json::json!({ "client_id": client.client_id })),
        ..AuditEntry::new(now, Some(tenant), actor, "service_client.removed")
    };
    audit::append(connection, &entry)?;
    Ok(Some(client))
}

fn ended(connection: &Connection, id: &ServiceClientId, now: Timestamp) -> Result<(), StoreError> {
    let kind = ChangeKind::ServiceClientEnded;
    changes::append(connection, kind, id.as_str(), None, now)
}
