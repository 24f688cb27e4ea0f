-- What a person recognises a signed-in browser by.
ALTER TABLE logins ADD COLUMN user_agent TEXT;
ALTER TABLE logins ADD COLUMN remote_addr TEXT;
-- Logins whose time is over are looked for every second.
CREATE INDEX logins_by_idle_expiry ON logins (idle_expires_at);
