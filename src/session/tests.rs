use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::internal::{CLOSE_DEADLINE, InternalClient, Target};
use super::{Handle, RemoteHandle, SessionError, Summary};
use crate::keys::KeyRing;
use crate::types::{Clock, DeviceId, NodeId, TenantId, Timestamp};

/// A proxy's internal API that counts what it is asked, and answers when it is let.
struct Proxy {
    url: String,
    asked: Arc<AtomicUsize>,
    closes: Arc<AtomicUsize>,
    may_answer: Arc<Semaphore>,
}

impl Proxy {
    async fn start(status: StatusCode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (asked, closes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let may_answer = Arc::new(Semaphore::new(0));
        let proxy = Self {
            url,
            asked: Arc::clone(&asked),
            closes: Arc::clone(&closes),
            may_answer: Arc::clone(&may_answer),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, closes) = (Arc::clone(&asked), Arc::clone(&closes));
                let may_answer = Arc::clone(&may_answer);
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let (closes, may_answer) = (Arc::clone(&closes), Arc::clone(&may_answer));
                    async move {
                        let permit = may_answer.acquire().await.expect("never closed");
                        permit.forget();
                        if request.method() == Method::DELETE {
                            closes.fetch_add(1, Ordering::SeqCst);
                        }
                        let mut answer = Response::new(Empty::<Bytes>::new());
                        *answer.status_mut() = status;
                        Ok::<_, Infallible>(answer)
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // The client goes when it has its answer.
                    let _ = connection.await;
                });
            }
        });
        proxy
    }

    fn let_answer(&self, times: usize) {
        self.may_answer.add_permits(times);
    }

    fn handle(&self) -> RemoteHandle {
        let summary = summary();
        let target = Target {
            node: summary.node.clone(),
            url: self.url.clone(),
            device: summary.device.clone(),
            tenant: summary.tenant.clone(),
            epoch: summary.epoch,
        };
        let keys = KeyRing::from_secrets(&[SecretString::from("k".repeat(32))]);
        let client = InternalClient::new(keys.expect("long enough"), Clock::system());
        RemoteHandle::new(summary, Some((client, target)))
    }

    async fn was_told(&self, times: usize) {
        let told = async {
            while self.closes.load(Ordering::SeqCst) < times {
                tokio::task::yield_now().await;
            }
        };
        let deadline = std::time::Duration::from_secs(10);
        tokio::time::timeout(deadline, told)
            .await
            .expect("the proxy is told in time");
    }
}

fn summary() -> Summary {
    Summary {
        device: DeviceId::random(),
        tenant: TenantId::random(),
        node: NodeId::random(),
        epoch: 3,
        remote_addr: "192.0.2.1:5".into(),
        agent_version: None,
        origin_host: None,
        connected_at: Timestamp::from_millis(1),
        last_heartbeat: None,
        rtt_ms: None,
        open_streams: 0,
        bytes_in: 0,
        bytes_out: 0,
    }
}

#[tokio::test]
async fn closing_a_remote_session_tells_the_proxy_once() {
    let proxy = Proxy::start(StatusCode::NO_CONTENT).await;
    proxy.let_answer(10);
    let handle = proxy.handle();
    assert!(!handle.is_closed());
    handle.close().await.expect("the proxy confirms it");
    handle.close().await.expect("a second close does nothing");
    assert!(handle.is_closed());
    assert_eq!(proxy.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn after_a_close_that_failed_no_stream_is_opened_and_the_network_is_left_alone() {
    let proxy = Proxy::start(StatusCode::INTERNAL_SERVER_ERROR).await;
    proxy.let_answer(10);
    let handle = proxy.handle();
    assert!(matches!(handle.close().await, Err(SessionError::NodeLost)));
    handle
        .close()
        .await
        .expect("a second close is Ok, also after a first that failed");
    assert!(handle.is_closed());
    assert!(matches!(
        handle.open_stream().await,
        Err(SessionError::SessionClosed)
    ));
    assert_eq!(proxy.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_cut_the_close_short() {
    let proxy = Proxy::start(StatusCode::NO_CONTENT).await;
    let handle = proxy.handle();
    {
        let mut close = handle.close();
        tokio::select! {
            biased;
            _ = &mut close => panic!("the proxy has not answered yet"),
            () = async {
                while proxy.asked.load(Ordering::SeqCst) == 0 {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        // Here the caller's future is dropped.
    }
    proxy.let_answer(1);
    proxy.was_told(1).await;
    assert!(handle.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_close_has_a_deadline_of_its_own() {
    let proxy = Proxy::start(StatusCode::NO_CONTENT).await;
    let handle = proxy.handle();
    let started = tokio::time::Instant::now();
    // With paused time the connection's own deadline may be the first to pass.
    assert!(matches!(
        handle.close().await,
        Err(SessionError::Timeout | SessionError::NodeLost)
    ));
    assert!(started.elapsed() <= CLOSE_DEADLINE);
    assert!(handle.is_closed());
}

#[tokio::test]
async fn a_handle_made_from_metadata_only_describes() {
    let handle = RemoteHandle::new(summary(), None);
    assert!(matches!(
        handle.open_stream().await,
        Err(SessionError::NotSupported)
    ));
    assert!(matches!(
        handle.close().await,
        Err(SessionError::NotSupported)
    ));
    handle.close().await.expect("a second close does nothing");
    assert!(handle.is_closed());
}

#[test]
fn a_heartbeat_moves_the_local_snapshot_forward_only() {
    let handle = RemoteHandle::new(summary(), None);
    assert_eq!(handle.summary().last_heartbeat, None);
    handle.record_heartbeat(Timestamp::from_millis(20));
    handle.record_heartbeat(Timestamp::from_millis(10));
    assert_eq!(
        handle.summary().last_heartbeat,
        Some(Timestamp::from_millis(20))
    );
}

crate::fuzzing::fuzz_target!(control_messages, |bytes| {
    use crate::tunnel::control::ControlStream;
    use tokio::io::AsyncWriteExt;

    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        near.write_all(bytes).await.expect("there is room");
        drop(near);
        let mut control = ControlStream::new(far);
        let mut received = 0;
        while let Ok(Some(_)) = control.receive().await {
            received += 1;
        }
        assert!(received <= bytes.split(|byte| *byte == b'\n').count());
    });
});

#[tokio::test]
async fn a_session_that_is_entering_the_directory_is_waited_for() {
    use super::{LocalSessions, Registry, Sessions};
    use futures_util::FutureExt;

    let (tenant, device) = (TenantId::random(), DeviceId::random());
    let registry = Registry::default();
    let sessions = LocalSessions(registry.clone());
    let now = sessions.find(&tenant, &device).now_or_never();
    assert!(
        matches!(now, Some(Ok(None))),
        "there is nothing to wait for"
    );
    let (first, second) = (registry.begin(&device), registry.begin(&device));
    let other = sessions.find(&tenant, &DeviceId::random()).now_or_never();
    assert!(matches!(other, Some(Ok(None))), "another device's");
    let mut found = sessions.find(&tenant, &device);
    assert!((&mut found).now_or_never().is_none());
    drop(first);
    assert!(
        (&mut found).now_or_never().is_none(),
        "one is still to come"
    );
    drop(second);
    assert!(matches!(found.await, Ok(None)));
    assert!(!registry.begun(&device).await, "all have begun");
}
