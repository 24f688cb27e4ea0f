//! Every key there is.

/// The keys, as in the file; `oidc.authorize_params` is a table of free keys.
pub const KEYS: &[&str] = &[
    "server.public_url",
    "server.api_listen",
    "server.trusted_proxies",
    "server.drain_timeout",
    "server.reuse_port",
    "server.device_domain",
    "server.device_domain_same_site",
    "tunnel.listen",
    "tunnel.public_url",
    "tunnel.heartbeat",
    "tunnel.max_sessions",
    "tunnel.new_sessions_per_second",
    "tunnel.handshakes_at_once",
    "tunnel.max_streams_per_session",
    "tunnel.max_message_bytes",
    "tunnel.window_budget_bytes",
    "tunnel.process_window_budget_bytes",
    "internal.listen",
    "internal.advertise_url",
    "internal.secret",
    "tls.cert",
    "tls.key",
    "store.url",
    "oidc.issuer",
    "oidc.client_id",
    "oidc.client_secret",
    "oidc.scopes",
    "oidc.authorize_params",
    "oidc.tenant_claim",
    "oidc.allowed_algs",
    "oidc.ca_file",
    "oidc.service_client.client_id",
    "oidc.service_client.client_secret",
    "oidc.service_client.scopes",
    "oidc.api.audience",
    "login.cookie_key",
    "login.idle_timeout",
    "login.absolute_timeout",
    "limits.request_head_bytes",
    "limits.json_body_bytes",
    "limits.header_read_timeout",
    "limits.body_read_timeout",
    "limits.write_timeout",
    "limits.connections",
    "limits.pairing_attempts_per_minute",
    "limits.pairing_attempts_global_per_minute",
    "limits.sign_in_starts_per_minute",
    "limits.failed_callbacks_per_minute",
    "limits.failed_device_tokens_per_minute",
    "limits.stream_open_timeout",
    "limits.response_header_timeout",
    "limits.response_idle_timeout",
    "limits.idle_streams_per_session",
    "limits.open_requests_per_tenant",
    "log.format",
    "log.level",
    "metrics.listen",
    "dev.issuer_listen",
];

/// The keys whose values are never shown and may come from `..._FILE`.
pub const SECRETS: &[&str] = &[
    "internal.secret",
    "store.url",
    "oidc.client_secret",
    "oidc.service_client.client_secret",
    "login.cookie_key",
];

/// The known key that is most like `key`, if any is much like it.
pub fn closest(key: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|known| (distance(key, known), *known))
        .filter(|(distance, _)| *distance <= 4)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
