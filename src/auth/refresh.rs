//! Keeps logins in step with the provider: when what it said about a person is out of date, it is asked
//! again in the background. One refresh at a time per login over all processes, by a lease in the
//! database: a provider revokes the whole grant when an old refresh token comes again.
//!
//! Only logins in use are refreshed, by a request or an open stream: a login that nobody uses does not
//! keep the provider's own session alive.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::live::{LiveStreams, Right};
use super::oidc::{Grant, OidcClient, OidcError, Renewed};
use crate::keys::KeyRing;
use crate::store::{
    AuditActor, AuditEntry, LoginRecord, ProviderTokens, RefreshEnd, RefreshLease, Refreshed,
    RefreshedPerson, Store,
};
use crate::types::{Clock, LoginId};
use secrecy::{ExposeSecret, SecretString};

/// What the sealing key is for.
const PURPOSE: &str = "provider-tokens";
/// How long a lease lasts if it is not renewed: a process that dies leaves it.
const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long a login is left alone after the provider did not answer.
const POSTPONE: Duration = Duration::from_secs(30);
/// Refreshes of this process at the same moment.
const AT_ONCE: usize = 16;
/// Logins that wait for theirs; more are noticed again at their next use.
const QUEUE: usize = 1024;
/// How long a login that was noticed is not noticed again.
const NOTICE_EVERY: Duration = Duration::from_secs(2);
/// How often the logins with open streams are looked at.
const STREAMS_EVERY: Duration = Duration::from_secs(15);
/// How often the new tokens are offered to a database that does not take them.
const KEEP_ATTEMPTS: u32 = 5;

/// Refreshes logins. Cheap to clone.
#[derive(Clone)]
pub struct Refresher(Arc<Inner>);

struct Inner {
    store: Store,
    oidc: OidcClient,
    keys: KeyRing,
    clock: Clock,
    live: LiveStreams,
    due: mpsc::Sender<LoginId>,
    noticed: Cache<LoginId, ()>,
}

/// The logins that wait; for [`Refresher::run`].
pub struct DueLogins(mpsc::Receiver<LoginId>);

impl Refresher {
    /// Refreshes at `oidc`; tokens are sealed with `keys`.
    pub fn new(
        store: Store,
        oidc: OidcClient,
        keys: KeyRing,
        clock: Clock,
        live: LiveStreams,
    ) -> (Self, DueLogins) {
        let (due, waiting) = mpsc::channel(QUEUE);
        let noticed = Cache::builder()
            .max_capacity(QUEUE as u64)
            .time_to_live(NOTICE_EVERY)
            .build();
        let inner = Inner {
            store,
            oidc,
            keys,
            clock,
            live,
            due,
            noticed,
        };
        (Self(Arc::new(inner)), DueLogins(waiting))
    }

    /// Seals what the provider gave for a login; it can be opened for that login alone.
    pub fn seal(&self, login: &LoginId, grant: &Grant) -> ProviderTokens {
        let token = grant.refresh_token.expose_secret().as_bytes();
        ProviderTokens {
            sealed: self.0.keys.seal(PURPOSE, login.as_str().as_bytes(), token),
            refresh_at: grant.refresh_at,
        }
    }

    fn open(&self, lease: &RefreshLease) -> Option<SecretString> {
        let aad = lease.login.as_str().as_bytes();
        let token = self.0.keys.open(PURPOSE, aad, &lease.sealed)?;
        String::from_utf8(token).ok().map(SecretString::from)
    }

    /// Takes note of a login that is in use; it is refreshed soon if that is due.
    pub fn notice(&self, login: &LoginRecord) {
        if login.refresh_at.is_some_and(|at| at <= self.0.clock.now()) {
            self.wake(&login.id);
        }
    }

    fn wake(&self, login: &LoginId) {
        let inner = &*self.0;
        if !inner.noticed.contains_key(login) && inner.due.try_send(login.clone()).is_ok() {
            inner.noticed.insert(login.clone(), ());
        }
    }

    /// Refreshes what is due, until the end of the process.
    pub async fn run(self, mut due: DueLogins) {
        let mut refreshes = JoinSet::new();
        let mut look_at_streams = interval(STREAMS_EVERY);
        loop {
            tokio::select! {
                Some(login) = due.0.recv(), if refreshes.len() < AT_ONCE => {
                    let refresher = self.clone();
                    refreshes.spawn(async move { refresher.refresh(&login).await });
                }
                Some(ended) = refreshes.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the refresh of a login broke off");
                    }
                }
                _ = look_at_streams.tick() => self.look_at_streams().await,
            }
        }
    }

    /// A login with an open stream is in use, too.
    async fn look_at_streams(&self) {
        let now = self.0.clock.now();
        for login in self.0.live.logins() {
            match self.0.store.find_login_by_id(&login, now).await {
                Ok(Some(login)) => self.notice(&login),
                Ok(None) => {}
                Err(error) => {
                    return tracing::warn!(%error, "logins with open streams cannot be read");
                }
            }
        }
    }

    async fn refresh(&self, login: &LoginId) {
        let (store, now) = (&self.0.store, self.0.clock.now());
        let lease = match store.begin_refresh(login, now.plus(LEASE), now).await {
            Ok(Some(lease)) => lease,
            // Done by another process, or being done.
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "a login could not be refreshed"),
        };
        let Some(token) = self.open(&lease) else {
            tracing::info!(%login, "the key of a login's tokens is gone");
            return self.end(&lease).await;
        };
        let renewed = tokio::select! {
            renewed = self.0.oidc.renew(&token, &lease.subject) => renewed,
            () = self.keep(&lease) => return tracing::warn!(%login, "the lease of a refresh was lost"),
        };
        match renewed {
            Ok(renewed) => self.store(&lease, renewed).await,
            Err(error @ OidcError::Refused(_)) => {
                tracing::info!(%login, %error, "the provider ended a login");
                self.end(&lease).await;
            }
            Err(error) => {
                tracing::warn!(%login, %error, "a login was not refreshed; it lives on");
                let not_before = self.0.clock.now().plus(POSTPONE);
                if let Err(error) = store.postpone_refresh(&lease, not_before).await {
                    tracing::warn!(%error, "the lease of a refresh could not be given up");
                }
            }
        }
    }

    /// Renews the lease; returns when it is lost.
    async fn keep(&self, lease: &RefreshLease) {
        loop {
            sleep(RENEW_EVERY).await;
            let until = self.0.clock.now().plus(LEASE);
            match self.0.store.renew_refresh(lease, until).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "the lease of a refresh was not renewed"),
            }
        }
    }

    /// Keeps what a refresh brought: without it the login would end at the next one.
    async fn store(&self, lease: &RefreshLease, renewed: Renewed) {
        let refreshed = Refreshed {
            tokens: self.seal(&lease.login, &renewed.grant),
            person: renewed.person.map(|person| RefreshedPerson {
                email: person.email,
                name: person.name,
                tenants: person.tenants,
            }),
        };
        for _ in 0..KEEP_ATTEMPTS {
            let (store, now) = (&self.0.store, self.0.clock.now());
            match store.finish_refresh(lease, refreshed.clone(), now).await {
                Ok(RefreshEnd::Kept | RefreshEnd::Late) => {
                    return tracing::debug!(login = %lease.login, "refreshed");
                }
                Ok(RefreshEnd::NoTenant) => {
                    tracing::info!(login = %lease.login, "a person belongs to no tenant any more");
                    return self.0.live.end(Right::Login(lease.login.clone()));
                }
                Err(error) => tracing::warn!(%error, "a refreshed login could not be kept"),
            }
            sleep(RENEW_EVERY / 5).await;
        }
    }

    async fn end(&self, lease: &RefreshLease) {
        let now = self.0.clock.now();
        let action = "login.ended_by_provider";
        let mut entry = AuditEntry::new(
            now,
            Some(lease.tenant.clone()),
            AuditActor::Provider,
            action,
        );
        entry.target = Some(lease.login.to_string());
        let ended = self
            .0
            .store
            .audited(entry)
            .end_login(&lease.login, now)
            .await;
        if let Err(error) = ended {
            tracing::warn!(%error, "a login that the provider ended could not be ended here");
        }
        self.0.live.end(Right::Login(lease.login.clone()));
    }
}
