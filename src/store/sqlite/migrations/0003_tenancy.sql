CREATE TABLE invitations (
    id          TEXT PRIMARY KEY,
    tenant_id   TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    token_hash  BLOB NOT NULL UNIQUE,
    role        TEXT NOT NULL,
    email       TEXT,
    -- A person or a service client.
    created_by  TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    accepted_at INTEGER,
    accepted_by TEXT REFERENCES users (id) ON DELETE SET NULL
) STRICT;
CREATE INDEX invitations_of_tenant ON invitations (tenant_id, created_at, id);

CREATE TABLE service_clients (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    -- One provider, one meaning: a client is fixed to the tenant that registered it.
    client_id  TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    role       TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX service_clients_of_tenant ON service_clients (tenant_id, created_at, id);

-- As before, but codes are made by service clients, too.
ALTER TABLE pairing_codes RENAME TO pairing_codes_before;
DROP INDEX pairing_codes_of_tenant;
CREATE TABLE pairing_codes (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    mac        BLOB NOT NULL UNIQUE,
    key_id     TEXT NOT NULL,
    name       TEXT,
    -- A person or a service client.
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    revoked_at INTEGER,
    device_id  TEXT REFERENCES devices (id) ON DELETE SET NULL
) STRICT;
INSERT INTO pairing_codes SELECT id, tenant_id, mac, key_id, name, created_by, created_at, expires_at,
    used_at, revoked_at, device_id FROM pairing_codes_before;
DROP TABLE pairing_codes_before;
CREATE INDEX pairing_codes_of_tenant ON pairing_codes (tenant_id, created_at, id);

-- What everybody who may make codes and invitations may do, whether a person or a service client.
CREATE VIEW makers AS
    SELECT tenant_id, user_id AS id, role FROM members
    UNION ALL SELECT tenant_id, id, role FROM service_clients;

CREATE TABLE device_groups (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant_id, name)
) STRICT;

CREATE TABLE group_devices (
    group_id  TEXT NOT NULL REFERENCES device_groups (id) ON DELETE CASCADE,
    device_id TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX groups_of_device ON group_devices (device_id);

-- What a tenant's people see happen; removed after a while.
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    -- No foreign key: the removal of a device is an event, too.
    device_id TEXT,
    kind      TEXT NOT NULL,
    detail    TEXT,
    at        INTEGER NOT NULL
) STRICT;
CREATE INDEX events_of_tenant ON events (tenant_id, seq);
CREATE INDEX events_of_device ON events (device_id, seq);
CREATE INDEX events_by_time ON events (at);

CREATE TABLE usage_hours (
    tenant_id         TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    device_id         TEXT NOT NULL,
    hour              INTEGER NOT NULL,
    requests          INTEGER NOT NULL,
    bytes_to_device   INTEGER NOT NULL,
    bytes_from_device INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, device_id, hour)
) STRICT, WITHOUT ROWID;

-- Who did what. A tenant's rows stay when the tenant goes: no foreign key.
CREATE TABLE audit (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    tenant_id   TEXT,
    actor_kind  TEXT NOT NULL,
    actor       TEXT,
    action      TEXT NOT NULL,
    target      TEXT,
    outcome     TEXT NOT NULL,
    remote_addr TEXT,
    request_id  TEXT,
    detail      TEXT
) STRICT;
CREATE INDEX audit_of_tenant ON audit (tenant_id, seq);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;

-- Each seals the rows since the one before it.
CREATE TABLE audit_checkpoints (
    up_to  INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    key_id TEXT NOT NULL,
    mac    BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_checkpoints_are_not_changed BEFORE UPDATE ON audit_checkpoints
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_checkpoints_are_not_removed BEFORE DELETE ON audit_checkpoints
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
