//! What happens to a tenant's devices, as a live stream and by device.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    Browser, Manner, Part, RawDevice, Request, Streaming, TestCloud, Topology, on_both_topologies,
    text,
};

on_both_topologies![
    a_stream_tells_what_happens_to_devices,
    a_stream_resumes_after_the_last_event_that_was_seen,
    a_stream_that_cannot_be_resumed_begins_anew,
    tn_04_a_stream_tells_of_its_own_tenant_only,
    a_query_names_the_tenant_of_a_stream,
    ch_06_another_site_cannot_read_a_stream,
    lo_03_a_stream_says_bye_when_its_login_ends,
    a_stream_says_bye_when_the_process_stops,
    the_events_of_a_device_are_listed_newest_first,
];

/// Two seconds are promised; the rest is slack for a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// An open stream of events.
struct Stream {
    answer: Streaming,
    read: String,
}

impl Stream {
    async fn of(person: &Browser) -> Self {
        Self::by(person.get("/api/events")).await
    }

    async fn by(request: Request) -> Self {
        let mut answer = request.open().await.expect(200);
        let kind = answer.headers["content-type"].to_str();
        assert_eq!(kind.expect("a text"), "text/event-stream");
        answer.read_until("events follow\n\n").await;
        Self {
            answer,
            read: String::new(),
        }
    }

    /// The next event: its id, its kind and its data.
    async fn next(&mut self) -> (String, String, Value) {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    let mut lines = block.lines();
                    lines
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::to_owned)
                };
                if let Some(kind) = field("event: ") {
                    let data = field("data: ").expect("an event has data");
                    let data = serde_json::from_str(&data).expect("JSON");
                    return (field("id: ").unwrap_or_default(), kind, data);
                }
                continue;
            }
            let piece = self.answer.next_piece().await;
            self.read += std::str::from_utf8(&piece).expect("text");
        }
    }

    async fn next_kind(&mut self) -> String {
        self.next().await.1
    }

    async fn says_bye(mut self, reason: &str) {
        let (_, kind, data) = self.next().await;
        assert_eq!((kind.as_str(), &data["reason"]), ("bye", &json!(reason)));
        while let Some(rest) = self.answer.next().await {
            rest.expect("a clean end after the last words");
        }
    }
}

async fn rename(owner: &Browser, device: &str, name: &str) {
    let path = format!("/api/devices/{device}");
    let renamed = owner.patch(&path).json(&json!({"name": name}));
    renamed.send().await.expect(200);
}

async fn a_stream_tells_what_happens_to_devices(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let mut stream = Stream::of(&alice).await;
    let device = RawDevice::pair(&cloud, &alice).await;
    let (_, kind, paired) = stream.next().await;
    assert_eq!(kind, "device.paired");
    assert_eq!(
        (&paired["kind"], &paired["device_id"]),
        (&json!(kind), &json!(device.id))
    );
    assert_eq!(paired["detail"]["hostname"], "box");
    let served = device.serve(Manner::Says("hello")).await;
    assert_eq!(stream.next_kind().await, "device.connected");
    rename(&alice, &device.id, "till").await;
    let (_, kind, renamed) = stream.next().await;
    assert_eq!(
        (kind.as_str(), &renamed["detail"]["name"]),
        ("device.renamed", &json!("till"))
    );
    let path = format!("/api/devices/{}", device.id);
    let tag = alice
        .put(&format!("{path}/tags/room"))
        .json(&json!({"value": "7"}));
    tag.send().await.expect(200);
    let (_, kind, tagged) = stream.next().await;
    assert_eq!(
        (kind.as_str(), &tagged["detail"]["tags"]),
        ("device.tagged", &json!({"room": "7"}))
    );
    alice
        .post(&format!("{path}/token"))
        .send()
        .await
        .expect(200);
    assert_eq!(stream.next_kind().await, "device.token_rotated");
    drop(served);
    assert_eq!(stream.next_kind().await, "device.disconnected");
    alice.delete(&path).send().await.expect(204);
    assert_eq!(stream.next_kind().await, "device.removed");
}

async fn a_stream_resumes_after_the_last_event_that_was_seen(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let mut stream = Stream::of(&alice).await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    let (first, ..) = stream.next().await;
    drop(stream);
    rename(&alice, &device, "one").await;
    rename(&alice, &device, "two").await;
    for request in [
        alice.get("/api/events").header("last-event-id", &first),
        alice.get(&format!("/api/events?last_event_id={first}")),
    ] {
        let mut stream = Stream::by(request).await;
        for name in ["one", "two"] {
            assert_eq!(stream.next().await.2["detail"]["name"], name);
        }
    }
    let mut fresh = Stream::of(&alice).await;
    rename(&alice, &device, "three").await;
    assert_eq!(
        fresh.next().await.2["detail"]["name"],
        "three",
        "only what is new"
    );
    let nonsense = alice.get("/api/events").header("last-event-id", "nonsense");
    nonsense.send().await.expect_problem(400, "bad_request");
}

async fn a_stream_that_cannot_be_resumed_begins_anew(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    rename(&alice, &device, "one").await;
    let forgotten = cloud.database().execute("DELETE FROM events", []);
    assert_eq!(forgotten.expect("forget the events"), 2);
    for last in ["0", "999999"] {
        let request = alice.get("/api/events").header("last-event-id", last);
        let mut stream = Stream::by(request).await;
        let (id, kind, _) = stream.next().await;
        assert_eq!((id.as_str(), kind.as_str()), ("2", "reset"));
        drop(stream);
    }
    let request = alice.get("/api/events").header("last-event-id", "2");
    let mut stream = Stream::by(request).await;
    rename(&alice, &device, "two").await;
    assert_eq!(stream.next().await.2["detail"]["name"], "two");
}

async fn tn_04_a_stream_tells_of_its_own_tenant_only(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let from_the_start = alice.get("/api/events").header("last-event-id", "0");
    let mut stream = Stream::by(from_the_start).await;
    RawDevice::pair(&cloud, &bob).await;
    let hers = RawDevice::pair(&cloud, &alice).await.id;
    assert_eq!(stream.next().await.2["device_id"], *hers);
}

async fn a_query_names_the_tenant_of_a_stream(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let bob = Browser::sign_in(&cloud, "bob").await;
    let first = alice.tenant_id().await;
    let second = alice.create_tenant("second").await;
    let mut stream = Stream::by(alice.get(&format!("/api/events?tenant={second}"))).await;
    RawDevice::pair(&cloud, &alice).await;
    alice.enter_tenant(&second).await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    assert_eq!(
        stream.next().await.2["device_id"],
        *device,
        "not the first tenant's"
    );
    Stream::by(alice.get(&format!("/api/events?tenant={first}"))).await;
    let unknown = format!("ten_{}", "a".repeat(26));
    for bad in [bob.tenant_id().await.as_str(), &unknown, "nonsense", ""] {
        let answer = alice.get(&format!("/api/events?tenant={bad}")).send().await;
        answer.expect_problem(403, "tenant_forbidden");
    }
}

async fn ch_06_another_site_cannot_read_a_stream(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for site in ["cross-site", "same-site"] {
        let request = alice.get("/api/events").header("sec-fetch-site", site);
        request.send().await.expect_problem(403, "cross_origin");
    }
    let bare = || alice.request_on(alice.host(), Method::GET, "/api/events");
    bare().send().await.expect_problem(403, "cross_origin");
    Stream::by(bare().header("edgecloud-csrf", "1")).await;
}

async fn lo_03_a_stream_says_bye_when_its_login_ends(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let elsewhere = Browser::sign_in(&cloud, "alice").await;
    let (ends, mut lives) = (Stream::of(&alice).await, Stream::of(&elsewhere).await);
    let login = text(&alice.me().await["login"]["id"]);
    let path = format!("/api/auth/logins/{login}");
    elsewhere.delete(&path).send().await.expect(204);
    let bye = timeout(SOON, ends.says_bye("login_ended")).await;
    bye.expect("it ends soon");
    RawDevice::pair(&cloud, &elsewhere).await;
    assert_eq!(
        lives.next_kind().await,
        "device.paired",
        "the other login lives on"
    );
}

async fn a_stream_says_bye_when_the_process_stops(mut cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let stream = Stream::of(&alice).await;
    cloud.terminate(Part::Api);
    stream.says_bye("restarting").await;
    assert!(cloud.wait_exit(Part::Api).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_what_was_done_at_another_process() {
    let cloud = TestCloud::builder(Topology::Split).spawn().await;
    let second = cloud.another("api", &[]).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    let mut stream = Stream::of(&alice.through(second.api_addr())).await;
    rename(&alice, &device, "till").await;
    assert_eq!(stream.next_kind().await, "device.renamed");
}

async fn the_events_of_a_device_are_listed_newest_first(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = RawDevice::pair(&cloud, &alice).await.id;
    RawDevice::pair(&cloud, &alice).await;
    for name in ["one", "two"] {
        rename(&alice, &device, name).await;
    }
    let path = format!("/api/devices/{device}/events");
    let listed = alice.get(&path).send().await.expect(200).items();
    let kinds: Vec<_> = listed.iter().map(|event| text(&event["kind"])).collect();
    assert_eq!(kinds, ["device.renamed", "device.renamed", "device.paired"]);
    assert_eq!(listed[0]["detail"]["name"], "two");
    assert!(listed.iter().all(|event| event["device_id"] == *device));
    let page = alice
        .get(&format!("{path}?limit=2"))
        .send()
        .await
        .expect(200);
    assert_eq!(page.items(), listed[..2]);
    let next = text(&page.json()["next_cursor"]);
    let page = alice
        .get(&format!("{path}?limit=2&cursor={next}"))
        .send()
        .await;
    assert_eq!(page.expect(200).items(), listed[2..]);
}
