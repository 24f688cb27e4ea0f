//! A session from the end of its handshake to its own: hello, directory entry, streams, farewell.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Admitted, HELLO_DEADLINE, Hello, Tunnels, is_host};
use crate::net::Connection;
use crate::session::LocalHandle;
use crate::session::claims::Claims;
use crate::session::local::SessionParts;
use crate::session::registry::{Beginning, Insertion};
use crate::store::{AuditActor, AuditEntry, NewSession};
use crate::tunnel::control::{ControlMessage, ControlStream};
use crate::tunnel::{CloseReason, EndReason, Side, Tunnel, TunnelSettings};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Messages to a device's control stream that wait.
const CONTROL_QUEUE: usize = 8;
/// How often a superseded session is looked at, whether its streams have ended.
const SUPERSEDED_POLL: Duration = Duration::from_millis(200);

impl Tunnels {
    /// Keeps one device's session from its first to its last byte.
    pub(super) async fn keep(&self, mut admitted: Admitted, connection: Connection, ahead: Bytes) {
        let settings = self.settings(admitted.subprotocol);
        let (tunnel, task, _) = Tunnel::over(connection, ahead, &settings);
        let driver = AbortOnDropHandle::new(self.0.sessions.spawn(task.run()));
        let control = match admitted.subprotocol {
            // What is over before the tunnel rests is boxed: a resting one is not to keep room for it.
            true => Box::pin(self.say_hello(&tunnel)).await,
            false => None,
        };
        let (control, hello) = control.unzip();
        let hello = hello.unwrap_or_default();
        admitted.claims.extend(hello.claims);
        let work = self.0.admission.resume();
        let beginning = self.0.node.registry().begin(&admitted.device);
        let begun = Box::pin(self.begin(&admitted, &tunnel, hello.origin_host)).await;
        drop((work, admitted.claims));
        let Some(parts) = begun else {
            drop(beginning);
            let _ = driver.await;
            return;
        };
        let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
        let _control = control.map(|stream| {
            AbortOnDropHandle::new(self.0.sessions.spawn(converse(stream, receiver)))
        });
        let session = LocalHandle::new(SessionParts {
            control: admitted.subprotocol.then_some(sender),
            ..parts
        });
        self.hold(session, beginning).await;
        let _ = driver.await;
    }

    fn settings(&self, subprotocol: bool) -> TunnelSettings {
        let policy = &self.0.policy;
        TunnelSettings {
            side: Side::Proxy,
            subprotocol,
            heartbeat: policy.heartbeat,
            max_streams: policy.max_streams,
            window_budget: policy.window_budget,
            process_budget: policy.process_budget.clone(),
            max_message_bytes: policy.max_message_bytes,
            clock: self.0.clock.clone(),
        }
    }

    /// Opens the control stream and exchanges hellos; a device that does not answer is served
    /// without one.
    async fn say_hello(
        &self,
        tunnel: &Tunnel,
    ) -> Option<(ControlStream<crate::tunnel::TunnelStream>, Hello)> {
        let exchange = async {
            let mut control = ControlStream::new(tunnel.open_control().ok()?);
            let node_id = Some(self.0.node.id().to_string());
            let hello = ControlMessage::Hello {
                origin_host: None,
                node_id,
                device_id: None,
                tenant_id: None,
            };
            control.send(&hello).await.ok()?;
            loop {
                match control.receive().await.ok()?? {
                    ControlMessage::Hello {
                        origin_host,
                        device_id,
                        tenant_id,
                        ..
                    } => {
                        let mut claims = Claims::default();
                        claims.add(device_id.as_deref());
                        claims.add(tenant_id.as_deref());
                        let origin_host = origin_host.filter(|host| is_host(host));
                        let hello = Hello {
                            origin_host,
                            claims,
                        };
                        return Some((control, hello));
                    }
                    _ => continue,
                }
            }
        };
        timeout(HELLO_DEADLINE, exchange).await.ok().flatten()
    }

    /// Enters the session into the directory; closes the tunnel when that fails.
    async fn begin(
        &self,
        admitted: &Admitted,
        tunnel: &Tunnel,
        origin_host: Option<String>,
    ) -> Option<SessionParts> {
        let node = &self.0.node;
        let connected_at = self.0.clock.now();
        let new = NewSession {
            device: admitted.device.clone(),
            tenant: admitted.tenant.clone(),
            token_hash: admitted.token_hash,
            node: node.id().clone(),
            remote_addr: admitted.remote_addr.clone(),
            agent_version: admitted.agent_version.clone(),
            origin_host: origin_host.clone(),
        };
        let device = (&admitted.tenant, &admitted.device);
        let entry = AuditEntry {
            remote_addr: Some(admitted.remote_ip),
            ..done_by(device, "device.connected", connected_at)
        };
        let store = node.store();
        let (claims, from) = (&admitted.claims, admitted.remote_ip);
        claims.note(store, device, (connected_at, from)).await;
        let store = store.audited(entry);
        let epoch = match store.begin_session(new, connected_at).await {
            Ok(Some(begun)) => begun.epoch,
            Ok(None) => {
                tunnel.close(CloseReason::Revoked);
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, device = %admitted.device, "a session could not begin");
                tunnel.close(CloseReason::Restarting);
                return None;
            }
        };
        Some(SessionParts {
            device: admitted.device.clone(),
            tenant: admitted.tenant.clone(),
            node: node.id().clone(),
            epoch,
            remote_addr: admitted.remote_addr.clone(),
            agent_version: admitted.agent_version.clone(),
            origin_host,
            connected_at,
            tunnel: tunnel.clone(),
            control: None,
        })
    }

    async fn hold(&self, session: LocalHandle, beginning: Beginning) {
        let parts = session.parts();
        let (insertion, registered) = self.0.node.registry().insert(session.clone());
        drop(beginning);
        tracing::info!(device = %parts.device, epoch = parts.epoch, "session began");
        if let Insertion::Newest(Some(older)) = insertion {
            tracing::info!(device = %parts.device, older = older.parts().epoch, "session replaced");
        }
        let reason = tokio::select! {
            reason = parts.tunnel.ended() => reason,
            () = self.outlive(&session) => {
                session.close_because(CloseReason::Done);
                parts.tunnel.ended().await
            }
        };
        drop(registered);
        Box::pin(self.end(&session, &reason)).await;
    }

    /// Waits until the session is superseded and its streams have ended or had their time.
    async fn outlive(&self, session: &LocalHandle) {
        session.draining().await;
        let idle = async {
            while session.parts().tunnel.open_streams() > 0 {
                tokio::time::sleep(SUPERSEDED_POLL).await;
            }
        };
        // Either way the session is over.
        let _ = timeout(self.0.policy.drain_timeout, idle).await;
    }

    async fn end(&self, session: &LocalHandle, reason: &EndReason) {
        let parts = session.parts();
        tracing::info!(
            device = %parts.device, epoch = parts.epoch, reason = reason.as_str(), "session ended"
        );
        let now = self.0.clock.now();
        let seen = parts.tunnel.last_echo().unwrap_or(now);
        let entry = AuditEntry {
            detail: Some(serde_json::json!({ "reason": reason.as_str() })),
            ..done_by((&parts.tenant, &parts.device), "device.disconnected", now)
        };
        let store = self.0.node.store().audited(entry);
        let ended = store.end_session(&parts.device, parts.epoch, reason.as_str(), seen);
        if let Err(error) = ended.await {
            tracing::warn!(%error, device = %parts.device, "the end of a session was not recorded");
        }
    }
}

/// What a device does by itself, for the audit.
fn done_by(
    (tenant, device): (&TenantId, &DeviceId),
    action: &'static str,
    at: Timestamp,
) -> AuditEntry {
    let actor = AuditActor::Device(device.clone());
    AuditEntry::new(at, Some(tenant.clone()), actor, action)
}

/// Passes messages to the device and reads what it says, until either end is gone.
async fn converse(
    mut control: ControlStream<crate::tunnel::TunnelStream>,
    mut messages: mpsc::Receiver<ControlMessage>,
) {
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) if control.send(&message).await.is_ok() => {}
                _ => return,
            },
            received = control.receive() => match received {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
        }
    }
}
