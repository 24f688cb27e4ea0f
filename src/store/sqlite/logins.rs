//! Users, tenants, members and logins.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::claims::{self, Claim};
use super::{audit, changes, members, parsed, time};
use crate::store::logins::MAX_LOGINS_PER_USER;
use crate::store::{
    AuditActor, AuditEntry, ChangeKind, LoginEntry, LoginRecord, Membership, NewLogin, StoreError,
    User,
};
use crate::types::{LoginId, Role, TenantId, Timestamp, UserId};

/// Logins that are ended at once.
const BATCH: i64 = 1_000;

/// Signs somebody in; `None` when the claim has taken the person's last place.
pub fn sign_in(
    connection: &Connection,
    login: &NewLogin,
    now: Timestamp,
) -> Result<Option<UserId>, StoreError> {
    let user = upsert_user(connection, login, now)?;
    let from = login.remote_addr.as_deref();
    let remote_addr = from.and_then(|addr| addr.parse().ok());
    let has_taken = match &login.tenants {
        Some(tenants) => {
            let claim = Claim {
                user: &user,
                issuer: &login.issuer,
                tenants,
                remote_addr,
            };
            claims::follow(connection, &claim, now)?
        }
        None => {
            ensure_personal_tenant(connection, &user, login, now)?;
            false
        }
    };
    let active: Option<String> = connection
        .query_row(
            "SELECT m.tenant_id FROM members m JOIN users u ON u.id = m.user_id
             JOIN tenants t ON t.id = m.tenant_id
             WHERE m.user_id = ?1 ORDER BY m.tenant_id = u.last_tenant DESC, t.created_at, t.id
             LIMIT 1",
            [user.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    let Some(active) = active else {
        // What was taken stays taken; somebody who had nothing leaves nothing behind.
        return match has_taken {
            true => Ok(None),
            false => Err(StoreError::Conflict("no_tenant")),
        };
    };
    let (sealed, refresh_at) = login.provider_columns();
    connection.execute(
        "INSERT INTO logins (id, secret_hash, user_id, active_tenant, sid, created_at,
             idle_expires_at, expires_at, user_agent, remote_addr, provider_tokens, refresh_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            login.id.as_str(),
            &login.secret_hash[..],
            user.as_str(),
            active,
            login.sid,
            now.as_millis(),
            login.idle_expires_at.as_millis(),
            login.expires_at.as_millis(),
            login.user_agent,
            login.remote_addr,
            sealed,
            refresh_at
        ],
    )?;
    audit::append(
        connection,
        &AuditEntry {
            target: Some(login.id.to_string()),
            remote_addr,
            ..AuditEntry::new(
                now,
                active.parse().ok(),
                AuditActor::User(user.clone()),
                "login.signed_in",
            )
        },
    )?;
    end_surplus_logins(connection, &user, now)?;
    Ok(Some(user))
}

fn upsert_user(
    connection: &Connection,
    login: &NewLogin,
    now: Timestamp,
) -> Result<UserId, StoreError> {
    let sql = "INSERT INTO users (id, issuer, subject, email, name, created_at)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (issuer, subject) DO UPDATE SET email = excluded.email, name = excluded.name
               RETURNING id";
    let id = UserId::random();
    let values = params![
        id.as_str(),
        login.issuer,
        login.subject,
        login.email,
        login.name,
        now.as_millis()
    ];
    Ok(connection.query_row(sql, values, |row| parsed(row, "id"))?)
}

fn ensure_personal_tenant(
    connection: &Connection,
    user: &UserId,
    login: &NewLogin,
    now: Timestamp,
) -> Result<(), StoreError> {
    let member: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM members WHERE user_id = ?1)",
        [user.as_str()],
        |row| row.get(0),
    )?;
    if member {
        return Ok(());
    }
    let owner = login
        .name
        .as_deref()
        .or(login.email.as_deref())
        .unwrap_or(&login.subject);
    let tenant = TenantId::random();
    connection.execute(
        "INSERT INTO tenants (id, name, created_at) VALUES (?1, ?2, ?3)",
        params![
            tenant.as_str(),
            format!("{owner}'s devices"),
            now.as_millis()
        ],
    )?;
    members::add(connection, &tenant, user, Role::Owner, "personal")
}

fn end_surplus_logins(
    connection: &Connection,
    user: &UserId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM logins WHERE user_id = ?1 ORDER BY created_at DESC, id LIMIT -1 OFFSET ?2",
    )?;
    let surplus = statement.query_map(params![user.as_str(), MAX_LOGINS_PER_USER], |row| {
        parsed::<LoginId>(row, "id")
    })?;
    for id in surplus.collect::<Result<Vec<_>, _>>()? {
        end(connection, &id, now)?;
    }
    Ok(())
}

/// The live login with a secret.
pub fn find_by_secret(
    connection: &Connection,
    secret_hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<LoginRecord>, StoreError> {
    find(connection, "l.secret_hash = ?1", &&secret_hash[..], now)
}

/// The live login with a public name.
pub fn find_by_id(
    connection: &Connection,
    id: &LoginId,
    now: Timestamp,
) -> Result<Option<LoginRecord>, StoreError> {
    find(connection, "l.id = ?1", &id.as_str(), now)
}

/// One row per membership; the login's columns are the same in each.
fn find(
    connection: &Connection,
    condition: &str,
    value: &dyn ToSql,
    now: Timestamp,
) -> Result<Option<LoginRecord>, StoreError> {
    let sql = format!(
        "SELECT l.id, l.user_id, l.active_tenant, l.idle_expires_at, l.expires_at, l.refresh_at, u.email,
             u.name AS user_name, t.id AS tenant_id, t.name AS tenant_name, m.role
         FROM logins l JOIN users u ON u.id = l.user_id JOIN members m ON m.user_id = u.id
         JOIN tenants t ON t.id = m.tenant_id
         WHERE {condition} AND l.idle_expires_at > ?2 AND l.expires_at > ?2
         ORDER BY t.created_at, t.id"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![value, now.as_millis()])?;
    let (mut record, mut memberships) = (None, Vec::new());
    while let Some(row) = rows.next()? {
        memberships.push(membership(row)?);
        if record.is_none() {
            record = Some(login_record(row)?);
        }
    }
    let Some(mut record) = record else {
        return Ok(None);
    };
    if !memberships.iter().any(|of| of.id == record.active_tenant) {
        record.active_tenant = memberships[0].id.clone();
    }
    record.memberships = memberships.into();
    Ok(Some(record))
}

fn membership(row: &Row<'_>) -> rusqlite::Result<Membership> {
    Ok(Membership {
        id: parsed(row, "tenant_id")?,
        name: row.get("tenant_name")?,
        role: parsed(row, "role")?,
    })
}

fn login_record(row: &Row<'_>) -> rusqlite::Result<LoginRecord> {
    Ok(LoginRecord {
        id: parsed(row, "id")?,
        user: User {
            id: parsed(row, "user_id")?,
            email: row.get("email")?,
            name: row.get("user_name")?,
        },
        active_tenant: parsed(row, "active_tenant")?,
        memberships: Arc::default(),
        idle_expires_at: time(row, "idle_expires_at")?,
        expires_at: time(row, "expires_at")?,
        refresh_at: row
            .get::<_, Option<i64>>("refresh_at")?
            .map(Timestamp::from_millis),
    })
}

/// Moves the idle limit.
pub fn touch(
    connection: &Connection,
    id: &LoginId,
    idle_expires_at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE logins SET idle_expires_at = max(idle_expires_at, ?2) WHERE id = ?1",
        )?
        .execute(params![id.as_str(), idle_expires_at.as_millis()])?;
    Ok(())
}

/// Ends a login.
pub fn end(connection: &Connection, id: &LoginId, now: Timestamp) -> Result<bool, StoreError> {
    let ended = connection
        .prepare_cached("DELETE FROM logins WHERE id = ?1")?
        .execute([id.as_str()])?;
    if ended == 1 {
        changes::append(connection, ChangeKind::LoginEnded, id.as_str(), None, now)?;
    }
    Ok(ended == 1)
}

/// A person's live logins.
pub fn list(
    connection: &Connection,
    user: &UserId,
    now: Timestamp,
) -> Result<Vec<LoginEntry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, created_at, idle_expires_at, expires_at, user_agent, remote_addr FROM logins
         WHERE user_id = ?1 AND idle_expires_at > ?2 AND expires_at > ?2
         ORDER BY created_at DESC, id",
    )?;
    let rows = statement.query_map(params![user.as_str(), now.as_millis()], |row| {
        Ok(LoginEntry {
            id: parsed(row, "id")?,
            created_at: time(row, "created_at")?,
            idle_expires_at: time(row, "idle_expires_at")?,
            expires_at: time(row, "expires_at")?,
            user_agent: row.get("user_agent")?,
            remote_addr: row.get("remote_addr")?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Ends one of a person's logins.
pub fn end_of(
    connection: &Connection,
    user: &UserId,
    id: &LoginId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let owned: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM logins WHERE id = ?1 AND user_id = ?2)")?
        .query_row([id.as_str(), user.as_str()], |row| row.get(0))?;
    Ok(owned && end(connection, id, now)?)
}

/// Ends a person's logins but one.
pub fn end_others(
    connection: &Connection,
    user: &UserId,
    kept: &LoginId,
    now: Timestamp,
) -> Result<Vec<LoginId>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT id FROM logins WHERE user_id = ?1 AND id <> ?2")?;
    let others = statement.query_map([user.as_str(), kept.as_str()], |row| parsed(row, "id"))?;
    let others: Vec<LoginId> = others.collect::<Result<_, _>>()?;
    for id in &others {
        end(connection, id, now)?;
    }
    Ok(others)
}

/// Moves a login to another of its person's tenants.
pub fn set_active_tenant(
    connection: &Connection,
    login: &LoginId,
    tenant: &TenantId,
) -> Result<bool, StoreError> {
    let moved = connection
        .prepare_cached(
            "UPDATE logins SET active_tenant = ?2 WHERE id = ?1 AND EXISTS
             (SELECT 1 FROM members m WHERE m.user_id = logins.user_id AND m.tenant_id = ?2)",
        )?
        .execute([login.as_str(), tenant.as_str()])?;
    if moved == 1 {
        connection
            .prepare_cached(
                "UPDATE users SET last_tenant = ?2
                 WHERE id = (SELECT user_id FROM logins WHERE id = ?1)",
            )?
            .execute([login.as_str(), tenant.as_str()])?;
    }
    Ok(moved == 1)
}

/// Whether the time of a login is over.
pub fn has_expired(connection: &Connection, now: Timestamp) -> Result<bool, StoreError> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM logins WHERE expires_at <= ?1 OR idle_expires_at <= ?1)";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row([now.as_millis()], |row| row.get(0))?)
}

/// Ends the logins whose time is over; the rest of very many waits for the next time.
pub fn end_expired(connection: &Connection, now: Timestamp) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM logins WHERE expires_at <= ?1 OR idle_expires_at <= ?1 LIMIT ?2",
    )?;
    let expired = statement.query_map(params![now.as_millis(), BATCH], |row| {
        parsed::<LoginId>(row, "id")
    })?;
    for id in expired.collect::<Result<Vec<_>, _>>()? {
        end(connection, &id, now)?;
    }
    Ok(())
}

/// Uses something up that may come once.
pub fn use_once(
    connection: &Connection,
    hash: &[u8; 32],
    expires_at: Timestamp,
) -> Result<bool, StoreError> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO used_states (state_hash, expires_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute(params![&hash[..], expires_at.as_millis()])?;
    Ok(inserted == 1)
}
