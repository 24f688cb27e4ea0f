//! The agent on the device: what it keeps, whom it trusts, and how it takes bad news.

use std::os::unix::fs::PermissionsExt;

use http::Method;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::support::{
    Anonymous, Browser, Device, Origin, Process, RawOrigin, TestCloud, Topology, eventually,
    on_both_topologies, run,
};

on_both_topologies![
    its_identity_is_for_its_owner_only,
    a_revoked_agent_stays_calm_and_stays_out,
    an_agent_waits_for_a_cloud_that_is_away,
    the_host_that_the_origin_expects_can_be_chosen,
    a_stream_over_the_agents_limit_is_reset_and_the_others_live,
];

async fn its_identity_is_for_its_owner_only(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let mut with_token = 0;
    for entry in std::fs::read_dir(device.state_dir()).expect("the agent's state") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains("edt_") {
            with_token += 1;
            let mode = path.metadata().expect("its mode").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
    }
    assert_eq!(with_token, 1, "the token is kept in one place");
}

async fn a_revoked_agent_stays_calm_and_stays_out(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    let path = format!("/api/devices/{}", device.id);
    alice.delete(&path).send().await.expect_success();
    let process = device.process();
    process
        .prints("that it is no longer welcome", |line| {
            let line = line.to_lowercase();
            let says_so = ["removed", "revoked", "parked", "refuse"];
            says_so.iter().any(|word| line.contains(word)).then_some(())
        })
        .await;
    process.check_running();
    assert!(!process.output().contains("edt_"), "no token in the log");
    assert_eq!(alice.devices().await.len(), 0);
}

async fn an_agent_waits_for_a_cloud_that_is_away(mut cloud: TestCloud) {
    use crate::support::Part;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    device.process().crash().await;
    cloud.crash(Part::Proxy).await;
    device.start_again();
    let process = device.process();
    process
        .prints("that it tries again", |line| {
            (line.contains("WARN") || line.contains("ERROR")).then_some(())
        })
        .await;
    process.check_running();
    cloud.start_again(Part::Proxy).await;
    eventually("the device answers", async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn the_host_that_the_origin_expects_can_be_chosen(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    device.process().crash().await;
    alice.wait_for_status(&device.id, "offline").await;
    device.start_again_with(&["--host-header", "box.example"]);
    alice.wait_for_status(&device.id, "online").await;
    eventually("the origin sees the chosen host", async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        (answer.status == 200 && origin.last().header("host") == "box.example").then_some(())
    })
    .await;
}

async fn a_stream_over_the_agents_limit_is_reset_and_the_others_live(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let more = ["--max-streams", "2"];
    let device = Device::pair_with(&cloud, &alice, origin.addr(), &more).await;
    let download = "/do/download?bytes=20000000";
    let mut held = Vec::new();
    for _ in 0..2 {
        let answer = alice
            .forward(&device.id, Method::GET, download)
            .open()
            .await;
        held.push(answer.expect(200));
    }
    let third = alice.forward(&device.id, Method::GET, "/").send().await;
    third.expect_problem(502, "origin_invalid");
    for answer in held {
        assert_eq!(answer.finish().await.body.len(), 20_000_000);
    }
    eventually("there is room again", async || {
        let answer = alice.forward(&device.id, Method::GET, "/").send().await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pa_12_the_agent_follows_no_redirect() {
    let elsewhere = RawOrigin::spawn(|stream, _| async move { drop(stream) }).await;
    let target = format!("http://{}/", elsewhere.addr());
    let cloud = RawOrigin::spawn(move |mut stream, _| {
        let target = target.clone();
        async move {
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let home = TempDir::new().expect("make a directory");
    let url = format!("http://{}", cloud.addr());
    let state = home.path().join("state");
    let args = [
        "agent",
        "--cloud",
        &url,
        "--pair",
        "AAAA-AAAA",
        "--origin",
        "http://127.0.0.1:1",
        "--state-dir",
        state.to_str().expect("a readable path"),
    ];
    let args = args.map(str::to_owned);
    let agent = Process::spawn("agent", home.path(), &args, &[]);
    eventually("the agent has asked the cloud", async || {
        (cloud.requests() > 0).then_some(())
    })
    .await;
    eventually("the agent has taken the answer", async || {
        (!agent.output().is_empty()).then_some(())
    })
    .await;
    assert_eq!(elsewhere.requests(), 0);
    drop(agent);
}

#[tokio::test]
async fn a_code_that_was_used_pairs_no_second_box() {
    let cloud = TestCloud::builder(Topology::All).spawn().await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (_, code) = alice.pairing_code().await;
    Anonymous::of(&cloud).exchange(&code).await.expect(200);
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
    let refused = run(home.path(), &args, &[]).await.expect_code(1);
    assert!(!refused.stderr.contains(&code), "{}", refused.stderr);
    assert_eq!(alice.devices().await.len(), 1);
}
