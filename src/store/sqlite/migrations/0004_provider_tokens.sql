-- When the provider is asked again about a login, and who does that at the moment.
ALTER TABLE logins ADD COLUMN refresh_at INTEGER;
ALTER TABLE logins ADD COLUMN refresh_holder TEXT;
ALTER TABLE logins ADD COLUMN refresh_not_before INTEGER;
CREATE INDEX logins_of_provider_session ON logins (sid) WHERE sid IS NOT NULL;
