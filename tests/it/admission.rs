//! A fleet that comes all at once: it is let in as fast as it may be, and told when to come back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgecloud::device_token::DeviceToken;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{
    Answer, Browser, Process, RawDevice, RawOrigin, TestCloud, Topology, WebSocket, eventually,
    on_both_topologies,
};

on_both_topologies![
    tu_02_a_crowd_is_told_when_to_come_back_and_all_get_in,
    tu_02_a_crowd_is_put_off_before_the_database_is_asked,
    tu_02_wrong_tokens_take_no_devices_turn,
];

const CROWD: usize = 16;

async fn pacing(topology: Topology, per_second: usize) -> TestCloud {
    TestCloud::builder(topology)
        .setting("EDGECLOUD__TUNNEL__NEW_SESSIONS_PER_SECOND", per_second)
        .spawn()
        .await
}

/// The seconds of a `Retry-After`.
fn retry_after(answer: &Answer) -> u64 {
    let seconds = answer.header("retry-after").parse();
    seconds.unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Connects as a good client does; tells how often it was put off.
async fn insist(device: &RawDevice) -> (WebSocket, usize) {
    let mut refusals = 0;
    loop {
        match device.handshake().websocket().await {
            Ok(socket) => return (socket, refusals),
            Err(answer) => {
                let answer = answer.expect(503);
                let seconds = retry_after(&answer);
                assert!((1..=46).contains(&seconds), "{answer:?}");
                refusals += 1;
                sleep(Duration::from_secs(seconds)).await;
            }
        }
    }
}

async fn tu_02_a_crowd_is_told_when_to_come_back_and_all_get_in(topology: Topology) {
    let cloud = pacing(topology, 4).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let mut devices = JoinSet::new();
    let mut paired = Vec::new();
    for _ in 0..CROWD {
        paired.push(RawDevice::pair(&cloud, &alice).await);
    }
    for device in paired {
        devices.spawn(async move { insist(&device).await });
    }
    let entered = devices.join_all().await;
    let refusals: usize = entered.iter().map(|(_, refusals)| refusals).sum();
    assert!(refusals > 0, "sixteen do not fit into the first second");
    eventually("all are online", async || {
        let devices = alice.devices().await;
        let online = devices.iter().filter(|device| device["status"] == "online");
        (online.count() == CROWD).then_some(())
    })
    .await;
}

async fn tu_02_a_crowd_is_put_off_before_the_database_is_asked(topology: Topology) {
    let cloud = pacing(topology, 1).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let nobody = RawDevice::known(&cloud, "", DeviceToken::random().expose());
    // A token that only the database knows to be wrong.
    eventually("nobody is asked to come back too", async || {
        // Takes the second's turn, if it was not taken.
        drop(device.handshake().websocket().await);
        let refused = nobody.handshake().websocket().await.err();
        let refused = refused.expect("no tunnel without a token");
        match refused.status.as_u16() {
            503 => Some(()),
            _ => {
                refused.expect(401);
                None
            }
        }
    })
    .await;
}

async fn tu_02_wrong_tokens_take_no_devices_turn(topology: Topology) {
    // A minute's worth of turns would not do for so many.
    let cloud = pacing(topology, 1).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await;
    for _ in 0..100 {
        let nobody = RawDevice::known(&cloud, "", DeviceToken::random().expose());
        let refused = nobody.handshake().websocket().await.err();
        refused.expect("no tunnel without a token").expect(401);
    }
    device.connect().await;
}

/// Longer than the first waits of an agent that is told nothing.
const ASKED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn the_agent_comes_back_no_sooner_than_it_was_told() {
    let attempts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&attempts);
    let proxy = RawOrigin::spawn(move |mut stream, _| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Instant::now());
        async move {
            let answer = format!(
                "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {}\r\nContent-Length: 0\r\n\r\n",
                ASKED.as_secs()
            );
            // An agent that has gone shows below.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let cloud = TestCloud::builder(Topology::All)
        .setting(
            "EDGECLOUD__TUNNEL__PUBLIC_URL",
            format!("ws://{}", proxy.addr()),
        )
        .spawn()
        .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    let home = TempDir::new().expect("make a directory");
    let state = home.path().join("state");
    let args = [
        "agent",
        "--cloud",
        cloud.public_url(),
        "--pair",
        &code,
        "--origin",
        "http://127.0.0.1:1",
        "--state-dir",
        state.to_str().expect("a readable path"),
    ];
    let mut agent = Process::spawn("agent", home.path(), &args, &[]);
    eventually("the agent tries again and again", async || {
        agent.check_running();
        (proxy.requests() >= 4).then_some(())
    })
    .await;
    let attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    for pair in attempts.windows(2) {
        let waited = pair[1] - pair[0];
        assert!(waited >= ASKED, "{waited:?}");
    }
}
