//! Places in tenants that the provider's claim gives.

use std::collections::HashMap;
use std::net::IpAddr;

use rusqlite::{Connection, params};

use super::{audit, members, parsed};
use crate::store::{AuditActor, AuditEntry, StoreError};
use crate::types::{Role, TenantId, Timestamp, UserId};

/// What the provider says of a person's tenants.
pub struct Claim<'a> {
    /// The person.
    pub user: &'a UserId,
    /// The provider.
    pub issuer: &'a str,
    /// Tenants by their names there, each with the person's role.
    pub tenants: &'a [(String, Role)],
    /// From where the person signs in; `None` at a refresh.
    pub remote_addr: Option<IpAddr>,
}

impl Claim<'_> {
    fn record(
        &self,
        connection: &Connection,
        (action, tenant): (&'static str, &TenantId),
        role: Option<Role>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let actor = AuditActor::Provider;
        let entry = AuditEntry {
            target: Some(self.user.to_string()),
            remote_addr: self.remote_addr,
            detail: role.map(|role| serde_json::json!({ "role": role.as_str() })),
            ..AuditEntry::new(now, Some(tenant.clone()), actor, action)
        };
        audit::append(connection, &entry)
    }
}

/// Makes a person's places by claim exactly those that the claim names, and writes down which came,
/// changed and went; tells whether one went.
pub fn follow(
    connection: &Connection,
    claim: &Claim<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT tenant_id, role, source FROM members WHERE user_id = ?1")?;
    let rows = statement.query_map([claim.user.as_str()], |row| {
        let place = (parsed(row, "role")?, row.get("source")?);
        Ok((parsed(row, "tenant_id")?, place))
    })?;
    let mut before: HashMap<TenantId, (Role, String)> = rows.collect::<Result<_, _>>()?;
    for (name, role) in claim.tenants {
        let tenant = find_or_make(connection, claim.issuer, name, now)?;
        members::add(connection, &tenant, claim.user, *role, "claim")?;
        // Whoever was there by invitation has the claim's role from now on, too.
        match before.remove(&tenant) {
            Some((held, _)) if held == *role => {}
            Some(_) => {
                members::ended(connection, &tenant, claim.user, now)?;
                let change = ("member.role_changed", &tenant);
                claim.record(connection, change, Some(*role), now)?;
            }
            None => claim.record(connection, ("member.added", &tenant), Some(*role), now)?,
        }
    }
    before.retain(|_, (_, source)| source == "claim");
    for tenant in before.keys() {
        members::remove(connection, tenant, claim.user, now)?;
        claim.record(connection, ("member.removed", tenant), None, now)?;
    }
    Ok(!before.is_empty())
}

/// The tenant that a provider calls by this name.
fn find_or_make(
    connection: &Connection,
    issuer: &str,
    name: &str,
    now: Timestamp,
) -> Result<TenantId, StoreError> {
    let sql = "INSERT INTO tenants (id, name, external_key, created_at) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (external_key) DO UPDATE SET name = name RETURNING id";
    let made = TenantId::random();
    let key = format!("{issuer}\n{name}");
    let values = params![made.as_str(), name, key, now.as_millis()];
    Ok(connection
        .prepare_cached(sql)?
        .query_row(values, |row| parsed(row, "id"))?)
}
