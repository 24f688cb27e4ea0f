//! Refresh tokens and logout by the provider.

use data_encoding::HEXLOWER;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::claims::{self, Claim};
use super::{audit, logins, parsed};
use crate::store::{
    AuditActor, AuditEntry, ProviderLogout, RefreshEnd, RefreshLease, Refreshed, RefreshedPerson,
    StoreError,
};
use crate::types::{LoginId, TenantId, Timestamp, UserId, random_bytes};

/// Takes the lease.
pub fn begin_refresh(
    connection: &Connection,
    login: &LoginId,
    lease_expires_at: Timestamp,
    now: Timestamp,
) -> Result<Option<RefreshLease>, StoreError> {
    let holder = HEXLOWER.encode(&random_bytes::<8>());
    let taken = connection
        .prepare_cached(
            "UPDATE logins SET refresh_holder = ?2, refresh_not_before = ?3
             WHERE id = ?1 AND refresh_at <= ?4 AND provider_tokens IS NOT NULL
             AND (refresh_not_before IS NULL OR refresh_not_before <= ?4)",
        )?
        .execute(params![
            login.as_str(),
            holder,
            lease_expires_at.as_millis(),
            now.as_millis()
        ])?;
    if taken == 0 {
        return Ok(None);
    }
    let lease = |row: &Row<'_>| {
        let sealed: Vec<u8> = row.get("provider_tokens")?;
        Ok(RefreshLease {
            login: login.clone(),
            tenant: parsed(row, "active_tenant")?,
            holder: holder.clone(),
            sealed: String::from_utf8_lossy(&sealed).into_owned(),
            issuer: row.get("issuer")?,
            subject: row.get("subject")?,
        })
    };
    let found = connection
        .prepare_cached(
            "SELECT l.provider_tokens, l.active_tenant, u.issuer, u.subject FROM logins l
             JOIN users u ON u.id = l.user_id WHERE l.id = ?1",
        )?
        .query_row([login.as_str()], lease)
        .optional()?;
    Ok(found)
}

/// Keeps the lease.
pub fn renew_refresh(
    connection: &Connection,
    lease: &RefreshLease,
    lease_expires_at: Timestamp,
) -> Result<bool, StoreError> {
    set_not_before(connection, lease, lease_expires_at)
}

/// Gives the lease up.
pub fn postpone_refresh(
    connection: &Connection,
    lease: &RefreshLease,
    not_before: Timestamp,
) -> Result<(), StoreError> {
    set_not_before(connection, lease, not_before).map(drop)
}

fn set_not_before(
    connection: &Connection,
    lease: &RefreshLease,
    not_before: Timestamp,
) -> Result<bool, StoreError> {
    let set = connection
        .prepare_cached(
            "UPDATE logins SET refresh_not_before = ?3 WHERE id = ?1 AND refresh_holder = ?2",
        )?
        .execute(params![
            lease.login.as_str(),
            lease.holder,
            not_before.as_millis()
        ])?;
    Ok(set == 1)
}

/// Keeps what a refresh brought.
pub fn finish_refresh(
    connection: &Connection,
    lease: &RefreshLease,
    refreshed: &Refreshed,
    now: Timestamp,
) -> Result<RefreshEnd, StoreError> {
    let tokens = &refreshed.tokens;
    let user: Option<UserId> = connection
        .prepare_cached(
            "UPDATE logins SET provider_tokens = ?3, refresh_at = ?4, refresh_holder = NULL,
             refresh_not_before = NULL WHERE id = ?1 AND refresh_holder = ?2 RETURNING user_id",
        )?
        .query_row(
            params![
                lease.login.as_str(),
                lease.holder,
                tokens.sealed.as_bytes(),
                tokens.refresh_at.as_millis()
            ],
            |row| parsed(row, "user_id"),
        )
        .optional()?;
    let Some(user) = user else {
        return Ok(RefreshEnd::Late);
    };
    match &refreshed.person {
        Some(person) => update_person(connection, &user, lease, person, now),
        None => Ok(RefreshEnd::Kept),
    }
}

fn update_person(
    connection: &Connection,
    user: &UserId,
    lease: &RefreshLease,
    person: &RefreshedPerson,
    now: Timestamp,
) -> Result<RefreshEnd, StoreError> {
    connection
        .prepare_cached("UPDATE users SET email = ?2, name = ?3 WHERE id = ?1")?
        .execute(params![user.as_str(), person.email, person.name])?;
    let Some(tenants) = &person.tenants else {
        return Ok(RefreshEnd::Kept);
    };
    let claim = Claim {
        user,
        issuer: &lease.issuer,
        tenants,
        remote_addr: None,
    };
    claims::follow(connection, &claim, now)?;
    let member: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM members WHERE user_id = ?1)")?
        .query_row([user.as_str()], |row| row.get(0))?;
    if member {
        return Ok(RefreshEnd::Kept);
    }
    // All the person's logins ended with the last place; this one is what the provider was asked about.
    logins::end(connection, &lease.login, now)?;
    ended_by_provider(connection, &lease.login, lease.tenant.clone(), now)?;
    Ok(RefreshEnd::NoTenant)
}

fn ended_by_provider(
    connection: &Connection,
    login: &LoginId,
    tenant: TenantId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let actor = AuditActor::Provider;
    let mut entry = AuditEntry::new(now, Some(tenant), actor, "login.ended_by_provider");
    entry.target = Some(login.to_string());
    audit::append(connection, &entry)
}

/// Ends the logins of a provider's session, or of a person.
pub fn end_session(
    connection: &Connection,
    logout: &ProviderLogout,
    now: Timestamp,
) -> Result<Option<Vec<LoginId>>, StoreError> {
    if !logins::use_once(connection, &logout.token_hash, logout.token_expires_at)? {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached(
        "SELECT l.id, l.active_tenant FROM logins l JOIN users u ON u.id = l.user_id
         WHERE u.issuer = ?1 AND (?2 IS NULL OR u.subject = ?2) AND (?3 IS NULL OR l.sid = ?3)
         AND NOT (?2 IS NULL AND ?3 IS NULL)",
    )?;
    let found = statement.query_map(
        params![logout.issuer, logout.subject, logout.sid],
        |row: &Row<'_>| {
            Ok((
                parsed::<LoginId>(row, "id")?,
                parsed::<TenantId>(row, "active_tenant")?,
            ))
        },
    )?;
    let mut ended = Vec::new();
    for (login, tenant) in found.collect::<Result<Vec<_>, _>>()? {
        logins::end(connection, &login, now)?;
        ended_by_provider(connection, &login, tenant, now)?;
        ended.push(login);
    }
    Ok(Some(ended))
}
