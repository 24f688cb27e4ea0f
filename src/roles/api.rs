//! The role api: REST, sign-in, the console and the way to devices.

use std::sync::Arc;

use anyhow::Context;
use data_encoding::HEXLOWER;
use url::Url;

use super::Failure;
use super::ready_file::Addresses;
use super::server::Process;
use crate::api::{App, AppState, PublicUrl, serve};
use crate::auth::access::Authenticator;
use crate::auth::bearer::BearerTokens;
use crate::auth::cookies::Cookies;
use crate::auth::http::HttpClient;
use crate::auth::live::LiveStreams;
use crate::auth::oidc::{OidcClient, OidcSettings, ServiceCredentials, ServiceToken};
use crate::auth::refresh::Refresher;
use crate::config::{OidcConfig, ServiceClientConfig};
use crate::forward::{ForwardLimits, Forwarder};
use crate::net::{Listener, RateLimit, TrustedProxies};
use crate::session::ProxySessions;

/// The listeners of the role.
pub struct ApiListeners {
    api: Listener,
    issuer: Issuer,
}

/// Who signs people in.
enum Issuer {
    Configured(Box<OidcConfig>),
    #[cfg(feature = "dev-issuer")]
    Development(Box<crate::auth::issuer::DevIssuer>),
}

impl ApiListeners {
    /// Binds them.
    pub fn bind(process: &Process, addresses: &mut Addresses) -> Result<Self, Failure> {
        let config = &process.config;
        let tls = process.tls.clone();
        let api = Listener::bind(config.server.api_listen, config.server.reuse_port, tls)
            .with_context(|| format!("bind server.api_listen {}", config.server.api_listen))?
            .write_timeout(config.limits.write_timeout);
        let issuer = match &config.oidc {
            Some(oidc) => Issuer::Configured(Box::new(oidc.clone())),
            None => bind_issuer(process, addresses)?,
        };
        let public_url = match &config.server.public_url {
            Some(url) => url.origin().ascii_serialization(),
            None => format!("http://localhost:{}", api.addr().port()),
        };
        addresses.api = Some(api.addr());
        addresses.public_url = Some(public_url);
        Ok(Self { api, issuer })
    }

    /// Serves people and programs on `sessions`.
    pub fn serve(
        self,
        process: &Process,
        sessions: ProxySessions,
        addresses: &Addresses,
    ) -> anyhow::Result<AppState> {
        let (config, lifecycle) = (&process.config, &process.lifecycle);
        let public_url = addresses.public_url.as_deref().unwrap_or_default();
        let public_url = PublicUrl::new(&Url::parse(public_url).context("read the public URL")?);
        let (settings, ca_file, own) = match self.issuer {
            Issuer::Configured(oidc) => (settings(&oidc), oidc.ca_file, oidc.service_client),
            #[cfg(feature = "dev-issuer")]
            Issuer::Development(issuer) => {
                let settings = development_settings(issuer.issuer_url());
                let stop = lifecycle.abort.clone();
                lifecycle.spawn_vital("development issuer", issuer.serve(stop));
                (settings, None, None)
            }
        };
        let http = HttpClient::new(ca_file.as_deref()).context("read oidc.ca_file")?;
        let cookies = Cookies::new(process.cookie_keys.clone(), public_url.is_https());
        let live = LiveStreams::default();
        let oidc = OidcClient::new(settings, http, process.clock.clone());
        let (refresher, due) = Refresher::new(
            process.store.clone(),
            oidc.clone(),
            process.cookie_keys.clone(),
            process.clock.clone(),
            live.clone(),
        );
        let limits = &config.limits;
        let app = AppState(Arc::new(App {
            auth: Authenticator::new(
                cookies,
                (
                    BearerTokens::new(oidc.clone(), process.clock.clone()),
                    refresher.clone(),
                ),
                process.store.clone(),
                process.clock.clone(),
                config.login.idle_timeout,
            ),
            service_token: own.map(|own| service_token(&oidc, own)),
            oidc,
            refresher: refresher.clone(),
            forwarder: forwarder(process, &sessions, &live),
            sessions,
            live,
            pairing_failures: RateLimit::per_address(limits.pairing_attempts_per_minute)
                .and_of_all(limits.pairing_attempts_global_per_minute),
            sign_in_starts: RateLimit::per_address(limits.sign_in_starts_per_minute),
            failed_callbacks: RateLimit::per_address(limits.failed_callbacks_per_minute),
            newest_event: tokio::sync::watch::Sender::new(0),
            denials: crate::api::denials(),
            trusted_proxies: TrustedProxies::new(&config.server.trusted_proxies),
            public_url,
            config: config.clone(),
            store: process.store.clone(),
            clock: process.clock.clone(),
            lifecycle: lifecycle.clone(),
        }));
        lifecycle.spawn_listener("api listener", serve(app.clone(), self.api));
        // Revocations are followed until the very end, like the streams that they cut.
        lifecycle.spawn_vital("changes", app.clone().follow_changes());
        lifecycle.spawn_vital("provider", app.clone().watch_provider());
        lifecycle.spawn_vital("refresh of logins", refresher.run(due));
        lifecycle.spawn_vital("expiry of logins", app.clone().end_expired_logins());
        lifecycle.spawn_vital("events", app.clone().watch_events());
        lifecycle.spawn_vital("usage", app.clone().record_usage());
        lifecycle.spawn_vital("audit", app.clone().seal_audit());
        lifecycle.spawn_vital("clean-up", app.clone().clean_up());
        let forwarder = app.0.forwarder.clone();
        lifecycle.spawn_vital(
            "kept connections",
            async move { forwarder.maintain().await },
        );
        Ok(app)
    }
}

fn forwarder(process: &Process, sessions: &ProxySessions, live: &LiveStreams) -> Forwarder {
    let limits = &process.config.limits;
    let limits = ForwardLimits {
        stream_open_timeout: limits.stream_open_timeout,
        response_header_timeout: limits.response_header_timeout,
        response_idle_timeout: limits.response_idle_timeout,
        idle_streams_per_session: limits.idle_streams_per_session,
        open_requests_per_tenant: limits.open_requests_per_tenant,
    };
    // The same in every process of the installation, and of no use to anybody.
    let name = process.cookie_keys.sign("via", b"").mac;
    let sessions = Arc::new(sessions.clone());
    Forwarder::new(sessions, live.clone(), limits, &HEXLOWER.encode(&name[..6]))
}

fn service_token(oidc: &OidcClient, own: ServiceClientConfig) -> ServiceToken {
    let credentials = ServiceCredentials {
        client_id: own.client_id,
        client_secret: own.client_secret,
        scopes: own.scopes,
    };
    ServiceToken::new(oidc.clone(), credentials)
}

fn settings(oidc: &OidcConfig) -> OidcSettings {
    OidcSettings {
        issuer: oidc.issuer.clone(),
        client_id: oidc.client_id.clone(),
        client_secret: oidc.client_secret.clone(),
        scopes: oidc.scopes.clone(),
        authorize_params: oidc.authorize_params.clone().into_iter().collect(),
        allowed_algs: oidc.allowed_algs.clone(),
        tenant_claim: oidc.tenant_claim.clone(),
        api_audience: oidc.api_audience.clone(),
    }
}

#[cfg(feature = "dev-issuer")]
fn bind_issuer(process: &Process, addresses: &mut Addresses) -> Result<Issuer, Failure> {
    let config = &process.config;
    let bound = crate::auth::issuer::DevIssuer::bind(
        config.dev_issuer_listen,
        &config.data_dir,
        process.clock.clone(),
    )?;
    addresses.issuer = Some(bound.addr());
    Ok(Issuer::Development(Box::new(bound)))
}

#[cfg(not(feature = "dev-issuer"))]
fn bind_issuer(_: &Process, _: &mut Addresses) -> Result<Issuer, Failure> {
    let mistake = "oidc.issuer: is missing: this build has no development issuer, so --dev needs a configured provider";
    Err(Failure::Usage(mistake.to_owned()))
}

#[cfg(feature = "dev-issuer")]
fn development_settings(issuer: &str) -> OidcSettings {
    OidcSettings {
        issuer: issuer.to_owned(),
        client_id: crate::auth::issuer::CLIENT_ID.to_owned(),
        client_secret: None,
        scopes: ["openid", "profile", "email"].map(str::to_owned).to_vec(),
        authorize_params: Vec::new(),
        allowed_algs: vec!["ES256".to_owned()],
        tenant_claim: None,
        api_audience: Some(crate::auth::issuer::API_AUDIENCE.to_owned()),
    }
}
