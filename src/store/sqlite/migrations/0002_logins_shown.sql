-- What a person recognises a signed-in browser by.
ALTER TABLE logins ADD COLUMN user_agent TEXT;
ALTER TABLE logins ADD COLUMN remote_addr TEXT;
