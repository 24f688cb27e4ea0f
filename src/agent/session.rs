//! One tunnel from its handshake to its end: its streams, and what the cloud says on its control
//! stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connect::Connected;
use super::serve::{Routes, serve};
use crate::tunnel::control::{ControlMessage, ControlStream};
use crate::tunnel::{CloseReason, Tunnel, TunnelSettings, TunnelStream};
use crate::types::NodeId;

/// How long a tunnel that another has followed stays without streams before it is closed.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// How long the last words on the control stream may take after the tunnel's end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What the cloud said and nobody has looked at yet.
const NOTICES: usize = 8;

/// What the supervisor must know of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The cloud has let the device in; its node, if it has a name.
    Connected(Option<NodeId>),
    /// A new tunnel is wanted after this time.
    Move(Duration),
    /// The device is no longer welcome.
    Revoked,
}

/// A tunnel that runs.
pub struct Session {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// What the cloud says; ends after the tunnel.
    pub notices: mpsc::Receiver<Notice>,
    /// Cancelled when another tunnel has taken over.
    pub followed: CancellationToken,
}

/// What all tunnels of a device share.
#[derive(Debug)]
pub struct Device {
    /// Where streams lead to.
    pub routes: Routes,
    /// The `Host` that the origin expects.
    pub origin_host: String,
    /// Streams of a tunnel that are served at once; further ones are reset.
    pub max_streams: usize,
}

impl Session {
    /// Begins a tunnel; its work is done in `tasks`, and cut off when those are dropped.
    pub fn begin(
        connected: Connected,
        settings: &TunnelSettings,
        device: Arc<Device>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let settings = TunnelSettings {
            subprotocol: connected.subprotocol,
            ..settings.clone()
        };
        let (tunnel, driver, incoming) = Tunnel::over(connected.link, connected.ahead, &settings);
        let (sender, notices) = mpsc::channel(NOTICES);
        let followed = CancellationToken::new();
        let service = Service {
            tunnel: tunnel.clone(),
            device,
            incoming,
            notices: sender,
            followed: followed.clone(),
            streams: JoinSet::new(),
            control: JoinSet::new(),
        };
        let subprotocol = connected.subprotocol;
        tasks.spawn(async move {
            let mut driving = JoinSet::new();
            driving.spawn(driver.run());
            service.run(subprotocol).await;
        });
        Self {
            tunnel,
            notices,
            followed,
        }
    }
}

struct Service {
    tunnel: Tunnel,
    device: Arc<Device>,
    incoming: mpsc::Receiver<TunnelStream>,
    notices: mpsc::Sender<Notice>,
    followed: CancellationToken,
    streams: JoinSet<()>,
    control: JoinSet<()>,
}

impl Service {
    async fn run(mut self, subprotocol: bool) {
        let mut control_is_next = subprotocol;
        if !subprotocol {
            // Nobody says hello without a control stream. The receiver is never full this early.
            let _ = self.notices.try_send(Notice::Connected(None));
        }
        loop {
            let followed = self.followed.is_cancelled();
            tokio::select! {
                biased;
                _ = self.tunnel.ended() => break,
                Some(_) = self.streams.join_next() => {}
                stream = self.incoming.recv() => match stream {
                    Some(stream) if control_is_next => {
                        control_is_next = false;
                        self.begin_control(stream);
                    }
                    Some(stream) => self.begin_stream(stream),
                    None => break,
                },
                () = self.followed.cancelled(), if !followed => {}
                () = sleep(DRAIN_GRACE), if followed && self.streams.is_empty() => {
                    self.tunnel.close(CloseReason::Done);
                    self.tunnel.ended().await;
                }
            }
        }
        // The streams have lost their tunnel: what came before that still goes to the device, then what
        // they hold there is reset.
        let ending = async { while self.streams.join_next().await.is_some() {} };
        let _ = timeout(LAST_WORDS, ending).await;
        self.streams.shutdown().await;
        // A cloud that says "revoked" and closes must be heard.
        let _ = timeout(LAST_WORDS, self.control.join_next()).await;
    }

    fn begin_control(&mut self, stream: TunnelStream) {
        let origin_host = self.device.origin_host.clone();
        let notices = self.notices.clone();
        self.control.spawn(converse(stream, origin_host, notices));
    }

    fn begin_stream(&mut self, stream: TunnelStream) {
        let limit = self.device.max_streams;
        if self.streams.len() >= limit {
            tracing::warn!(limit, "too many streams; one was reset");
            return;
        }
        let device = Arc::clone(&self.device);
        self.streams
            .spawn(async move { serve(stream, &device.routes).await });
    }
}

/// Says hello and passes on what the cloud says, until either end is gone.
async fn converse(stream: TunnelStream, origin_host: String, notices: mpsc::Sender<Notice>) {
    let mut control = ControlStream::new(stream);
    let hello = ControlMessage::Hello {
        origin_host: Some(origin_host),
        node_id: None,
        device_id: None,
        tenant_id: None,
    };
    if control.send(&hello).await.is_err() {
        return;
    }
    loop {
        let notice = match control.receive().await {
            Ok(Some(ControlMessage::Hello { node_id, .. })) => {
                Notice::Connected(node_id.and_then(|id| id.parse().ok()))
            }
            Ok(Some(ControlMessage::Move { after_ms })) => {
                Notice::Move(Duration::from_millis(after_ms))
            }
            Ok(Some(ControlMessage::Revoked)) => Notice::Revoked,
            Ok(Some(ControlMessage::Unknown)) => continue,
            Ok(None) | Err(_) => return,
        };
        if notices.send(notice).await.is_err() {
            return;
        }
    }
}
