//! `edgecloud demo`: one command shows everything.

use http::Method;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::{Browser, Process, Ready, run_program, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_a_paired_device_and_its_curl_line_works() {
    let home = TempDir::new().expect("make a directory");
    let file = home.path().join("ready.json");
    let env = [
        "EDGECLOUD__SERVER__API_LISTEN",
        "EDGECLOUD__TUNNEL__LISTEN",
        "EDGECLOUD__DEV__ISSUER_LISTEN",
    ]
    .map(|name| (name.to_owned(), "127.0.0.1:0".to_owned()));
    let args = ["demo".as_ref(), "--ready-file".as_ref(), file.as_os_str()];
    let mut demo = Process::spawn("demo", home.path(), &args, &env);
    let ready = Ready::read("the demo", &file, &mut demo).await;
    let url = ready.public_url.expect("the console's address");
    demo.prints("the console's address", |line| {
        line.contains(&url).then_some(())
    })
    .await;
    for user in ["alice", "bob"] {
        demo.prints(user, |line| line.contains(user).then_some(()))
            .await;
    }
    let curl = demo
        .prints("a curl line", |line| {
            let start = line.find("curl ")?;
            Some(line[start..].to_owned())
        })
        .await;
    let answer = run_program("bash", home.path(), &["-ec", &curl], &[]).await;
    let answer = answer.expect_code(0);
    assert!(!answer.stdout.trim().is_empty(), "{curl}: {answer:?}");
    assert!(
        !answer.stdout.contains("\"request_id\""),
        "{curl}: {answer:?}"
    );

    let host = url.strip_prefix("http://").expect("plain http");
    let alice = Browser::at(ready.api.expect("an api listens"), host);
    alice.sign_in_again("alice").await;
    let devices = alice.devices().await;
    assert_eq!(devices.len(), 1, "{devices:?}");
    let id = text(&devices[0]["id"]);
    alice.wait_for_status(&id, "online").await;
    let page = alice
        .forward(&id, Method::GET, "/")
        .send()
        .await
        .expect(200);
    assert!(!page.body.is_empty());

    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.wait().await.code(), Some(0));
}
