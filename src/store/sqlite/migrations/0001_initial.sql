CREATE TABLE users (
    id          TEXT PRIMARY KEY,
    issuer      TEXT NOT NULL,
    subject     TEXT NOT NULL,
    email       TEXT,
    name        TEXT,
    last_tenant TEXT REFERENCES tenants (id) ON DELETE SET NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (issuer, subject)
) STRICT;

CREATE TABLE tenants (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    external_key TEXT UNIQUE,
    created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
    tenant_id TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    user_id   TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role      TEXT NOT NULL,
    source    TEXT NOT NULL,
    PRIMARY KEY (user_id, tenant_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_of_tenant ON members (tenant_id);

CREATE TABLE logins (
    id              TEXT PRIMARY KEY,
    secret_hash     BLOB NOT NULL UNIQUE,
    user_id         TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    active_tenant   TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    sid             TEXT,
    provider_tokens BLOB,
    created_at      INTEGER NOT NULL,
    idle_expires_at INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX logins_of_user ON logins (user_id, created_at);
CREATE INDEX logins_by_expiry ON logins (expires_at);

CREATE TABLE used_states (
    state_hash BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX used_states_by_expiry ON used_states (expires_at);

CREATE TABLE devices (
    id                TEXT PRIMARY KEY,
    tenant_id         TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name              TEXT NOT NULL,
    hostname          TEXT,
    os                TEXT,
    arch              TEXT,
    agent_version     TEXT,
    paired_from       TEXT NOT NULL,
    tags              TEXT NOT NULL DEFAULT '{}',
    epoch             INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL,
    last_seen         INTEGER,
    disconnect_reason TEXT
) STRICT;
CREATE INDEX devices_of_tenant ON devices (tenant_id, created_at, id);

CREATE TABLE device_tokens (
    hash       BLOB PRIMARY KEY,
    device_id  TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX device_tokens_of_device ON device_tokens (device_id);

CREATE TABLE pairing_codes (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    mac        BLOB NOT NULL UNIQUE,
    key_id     TEXT NOT NULL,
    name       TEXT,
    created_by TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,
    revoked_at INTEGER,
    device_id  TEXT REFERENCES devices (id) ON DELETE SET NULL
) STRICT;
CREATE INDEX pairing_codes_of_tenant ON pairing_codes (tenant_id, created_at, id);

CREATE TABLE tickets (
    hash       BLOB PRIMARY KEY,
    login_id   TEXT NOT NULL REFERENCES logins (id) ON DELETE CASCADE,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    device_id  TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tickets_by_expiry ON tickets (expires_at);

CREATE TABLE nodes (
    node_id          TEXT PRIMARY KEY,
    internal_url     TEXT,
    tunnel_url       TEXT,
    version          TEXT NOT NULL,
    draining         INTEGER NOT NULL DEFAULT 0,
    lease_expires_at INTEGER NOT NULL
) STRICT;

-- node_id has no foreign key on purpose: a session of a node that is gone says why a device is away.
CREATE TABLE sessions (
    device_id     TEXT PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    tenant_id     TEXT NOT NULL,
    node_id       TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    connected_at  INTEGER NOT NULL,
    last_echo_at  INTEGER,
    rtt_ms        REAL,
    remote_addr   TEXT NOT NULL,
    agent_version TEXT,
    origin_host   TEXT
) STRICT;
CREATE INDEX sessions_of_node ON sessions (node_id);

CREATE TABLE changes (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT,
    at      INTEGER NOT NULL
) STRICT;
