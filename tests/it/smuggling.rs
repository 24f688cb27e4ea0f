//! Requests that two readers could read differently (RFC 9112 §11.2), sent byte by byte: each is
//! refused, or becomes exactly one request that the cloud has framed anew.

use http::Method;

use crate::support::{
    Browser, Crossed, Device, RawConnection, StrictOrigin, TestCloud, on_both_topologies,
};

on_both_topologies![
    fw_03_ambiguous_framing_by_the_devices_path,
    fw_03_ambiguous_framing_on_the_devices_host,
    fw_10_trailers_forge_nothing_by_the_devices_path,
    fw_10_trailers_forge_nothing_on_the_devices_host,
    fw_08_ambiguous_targets_by_the_devices_path,
    fw_08_ambiguous_targets_on_the_devices_host,
    tn_05_a_pipelined_request_has_its_own_caller,
];

/// What becomes of the bytes.
#[derive(Clone, Copy)]
enum Fate {
    /// One answer with this status, then the end of the connection. The origin sees nothing.
    Refused(u16),
    /// The end of the connection without a word.
    Dropped,
    /// An answer with this status; where the request ends is clear, so that the next one is answered.
    TurnedAway(u16),
    /// Refused when the head was through already: the origin never gets a complete request.
    CutOff,
    /// One request with this body reaches the origin; what follows is another request.
    Once(&'static str),
    /// As `Once`, but nothing after it on this connection is looked at.
    OnceAndClosed(&'static str),
}
use Fate::{CutOff, Dropped, Once, OnceAndClosed, Refused, TurnedAway};

/// What is sent, and what becomes of it. `<post>` is the start of a good POST, all of it but the last
/// empty line; `<target>`, `<host>` and `<who>` are its parts. What must not arrive is called evil,
/// what must is called good.
type Case = (&'static str, Fate);

// One case a line, so that they can be read as a table.
#[rustfmt::skip]
const FRAMING: &[Case] = &[
    // Both lengths.
    ("<post>Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", OnceAndClosed("")),
    ("<post>Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", OnceAndClosed("")),
    ("<post>Content-Length: 36\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nX-Y: 1\r\n\r\n", OnceAndClosed("")),
    ("<post>Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\nGET /evil HTTP/1.1\r\nX-Y: 1\r\n\r\n0\r\n\r\n", OnceAndClosed("GET /evil HTTP/1.1\r\nX-Y: 1\r\n")),
    // Codings that are not chunked, or not only.
    ("<post>Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: identity\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("<post>Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("<post>Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("<post>Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: chunk\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding:\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("<post>Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(501)),
    ("<post>Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding\x0b: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post> Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>X-A: 1\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("POST <target> HTTP/1.0\r\n<host><who>Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("<post>Transfer-Encoding:\t CHUNKED \t\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Once("hello")),
    ("<post>Transfer_Encoding: evil\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
    // Lengths.
    ("<post>Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
    ("<post>Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", Refused(400)),
    ("<post>Content-Length: 5, 5\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: 5, 6\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: -1\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: +5\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: 0x5\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: 5 5\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: 5e0\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length:\r\n\r\n", Refused(400)),
    ("<post>Content-Length: 18446744073709551616\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length: 99999999999999999999999999999999\r\n\r\nhello", Refused(400)),
    ("<post>Content-Length : 5\r\n\r\nhello", Refused(400)),
    // Names, values and line ends.
    ("<post>X Y: 1\r\n\r\n", Refused(400)),
    ("<post>X-Space : 1\r\n\r\n", Refused(400)),
    ("<post>: 1\r\n\r\n", Refused(400)),
    ("<post>no colon\r\n\r\n", Refused(400)),
    ("<post>X-Nul\0: 1\r\n\r\n", Refused(400)),
    ("<post>X-Nul: a\0b\r\n\r\n", Refused(400)),
    ("<post>X-Cr: a\rb\r\n\r\n", Refused(400)),
    ("<post>X-Cr: a\rContent-Length: 5\r\n\r\nhello", Refused(400)),
    ("<post>X-Fold: a\r\n b\r\n\r\n", Refused(400)),
    ("<post>X-Fold: a\r\n\tb\r\n\r\n", Refused(400)),
    ("<post>X-A: 1\rContent-Length: 0\r\r", Refused(400)),
    ("<post>Content-Length: 5\nX-Bare: 1\n\nhello", Once("hello")),
    // Chunks.
    ("<post>Transfer-Encoding: chunked\r\n\r\n5;a=1;b=\"2\"\r\nhello\r\n0;c\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\n\r\n005\r\nhello\r\n00\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5g\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\r\nhello\r\n0\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n", CutOff),
    // Fields that Connection names are gone for the next hop; the framing is not theirs to take.
    ("<post>Connection: content-length\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
    ("<post>Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Once("hello")),
    ("<post>Connection: close\r\nContent-Length: 5\r\n\r\nhello", OnceAndClosed("hello")),
    ("<post>Connection: x-evil\r\nX-Evil: 1\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
    // A body where none is expected is still a body.
    ("GET <target> HTTP/1.1\r\n<host><who>Content-Length: 22\r\n\r\nGET /evil HTTP/1.1\r\n\r\n", Once("GET /evil HTTP/1.1\r\n\r\n")),
    ("DELETE <target> HTTP/1.1\r\n<host><who>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Once("hello")),
    ("<post>Expect: something else\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
    ("<post>Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: evil\r\nContent-Length: 5\r\n\r\nhello", Once("hello")),
];

#[rustfmt::skip]
const TRAILERS: &[Case] = &[
    ("<post>Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: good\r\n\r\n", Once("hello")),
    // Trailers never count as fields, and those that must not be trailers never arrive.
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\nTrailer: host\r\n\r\n5\r\nhello\r\n0\r\nHost: evil\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\nTrailer: transfer-encoding\r\n\r\n5\r\nhello\r\n0\r\nTransfer-Encoding: evil\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\nTrailer: authorization, cookie\r\n\r\n5\r\nhello\r\n0\r\nAuthorization: evil\r\nCookie: evil\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\nTrailer: edgecloud-user, x-forwarded-for\r\n\r\n5\r\nhello\r\n0\r\nEdgecloud-User: evil\r\nX-Forwarded-For: evil\r\n\r\n", Once("hello")),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T : evil\r\n\r\n", CutOff),
    ("<post>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n folded evil\r\n\r\n", CutOff),
];

#[rustfmt::skip]
const TARGETS: &[Case] = &[
    ("GET <target> HTTP/1.1\r\n<who>\r\n", TurnedAway(400)),
    ("GET <target> HTTP/1.1\r\nHost:\r\n<who>\r\n", TurnedAway(400)),
    ("GET <target> HTTP/1.1\r\n<host><host><who>\r\n", TurnedAway(400)),
    ("GET <target> HTTP/1.1\r\n<host>Host: evil.example\r\n<who>\r\n", TurnedAway(400)),
    ("GET <target> HTTP/1.1\r\nHost: evil.example\r\n<host><who>\r\n", TurnedAway(400)),
    ("GET <target> HTTP/1.1\r\nHost: evil.example\r\n<who>\r\n", TurnedAway(421)),
    ("GET <target> HTTP/1.1\r\nHost: evil@<name>\r\n<who>\r\n", TurnedAway(421)),
    ("GET <target> HTTP/1.1\r\nHost: <name>/evil\r\n<who>\r\n", TurnedAway(421)),
    ("GET <target> HTTP/1.1\r\nHost: <name>,evil.example\r\n<who>\r\n", TurnedAway(421)),
    ("GET <target> HTTP/1.1\r\nHost : <name>\r\n<who>\r\n", Refused(400)),
    ("GET http://evil.example<target> HTTP/1.1\r\n<host><who>\r\n", TurnedAway(421)),
    ("GET http://evil@<name><target> HTTP/1.1\r\n<host><who>\r\n", TurnedAway(421)),
    ("GET http://<name><target> HTTP/1.1\r\nHost: evil.example\r\n<who>\r\n", Once("")),
    ("GET <target>  HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET  <target> HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET\t<target> HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    (" GET <target> HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> evil HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target>\rX HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target>\0 HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target>#evil HTTP/1.1\r\n<host><who>\r\n", Once("")),
    ("GET evil<target> HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> HTTP/1.2\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> HTTP/2.0\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> HTTP/0.9\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> HTTP/11\r\n<host><who>\r\n", Refused(400)),
    ("GET <target> http/1.1\r\n<host><who>\r\n", Refused(400)),
    ("GET <target>\r\n<host><who>\r\n", Refused(400)),
    ("G\x0bT <target> HTTP/1.1\r\n<host><who>\r\n", Refused(400)),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Dropped),
    ("TRACE <target> HTTP/1.1\r\n<host><who>\r\n", TurnedAway(405)),
    ("\r\n\r\nGET <target> HTTP/1.1\r\n<host><who>\r\n", Once("")),
    ("GET <target> HTTP/1.1\r\n<host><who>Connection: host, cookie, x-evil\r\nX-Evil: 1\r\n\r\n", Once("")),
    ("GET <target> HTTP/1.1\r\n<host><who>Connection: close\r\n\r\n", OnceAndClosed("")),
];

/// How the device is reached.
#[derive(Clone, Copy)]
enum Door {
    Path,
    Host,
}

/// A device behind an origin that is strict, and a person who may reach it.
struct Scene {
    cloud: TestCloud,
    alice: Browser,
    device: Device,
    origin: StrictOrigin,
    name: String,
    prefix: String,
    cookie: String,
}

impl Scene {
    async fn set(cloud: TestCloud, door: Door) -> Self {
        let alice = Browser::sign_in(&cloud, "alice").await;
        let origin = StrictOrigin::spawn().await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        let (name, prefix, cookie) = match door {
            Door::Path => (
                alice.host().to_owned(),
                format!("/api/devices/{}/http", device.id),
                format!("edgecloud={}", alice.login_cookie()),
            ),
            Door::Host => {
                let host = alice.enter(&device.id).await;
                let cookie = alice.cookie(&host, "edgecloud-device");
                let cookie = cookie.expect("the way in gives a cookie");
                (host, String::new(), format!("edgecloud-device={cookie}"))
            }
        };
        Self {
            cloud,
            alice,
            device,
            origin,
            name,
            prefix,
            cookie,
        }
    }

    fn bytes(&self, case: &str) -> String {
        let who = format!("Cookie: {}\r\nSec-Fetch-Site: same-origin\r\n", self.cookie);
        case.replace("<post>", "POST <target> HTTP/1.1\r\n<host><who>")
            .replace("<target>", &format!("{}/case", self.prefix))
            .replace("<host>", "Host: <name>\r\n")
            .replace("<name>", &self.name)
            .replace("<who>", &who)
    }

    /// Sends a case and another request behind it, and compares what becomes of both.
    async fn judge(&self, (case, fate): &Case) -> Result<(), String> {
        let before = self.origin.complete().len();
        let mut caller = RawConnection::open(self.cloud.api_addr()).await;
        let behind = format!(
            "GET /api/evil HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.name
        );
        let bytes = self.bytes(case) + &behind;
        caller.send_what_is_taken(bytes).await;
        let told = caller.read_to_end().await;
        let told = String::from_utf8_lossy(&told).into_owned();
        let statuses: Vec<_> = told
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| told[at + 9..].chars().take(3).collect::<String>())
            .collect();
        // Whoever comes next gets their own answer.
        let path = format!("/next-{before}");
        let next = self.alice.forward(&self.device.id, Method::GET, &path);
        let next = next.send().await.expect(200).text();
        if next != format!("GET {path}") {
            return Err(format!("the next request was answered with {next:?}"));
        }
        let mut crossed = self.origin.complete().split_off(before);
        crossed.retain(|crossed| crossed.target() != path);
        let statuses: Vec<_> = statuses.iter().map(String::as_str).collect();
        let matches = match *fate {
            Refused(status) => crossed.is_empty() && statuses == [status.to_string()],
            CutOff => crossed.is_empty() && matches!(statuses[..], [] | ["400"]),
            Dropped => crossed.is_empty() && statuses.is_empty(),
            TurnedAway(status) => crossed.is_empty() && statuses == [&status.to_string(), "401"],
            Once(body) => is_once(case, &crossed, body) && statuses == ["200", "401"],
            OnceAndClosed(body) => is_once(case, &crossed, body) && statuses == ["200"],
        };
        let wrong = self.origin.wrong();
        if matches && wrong.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{statuses:?}, the origin saw {crossed:?}, wrong: {wrong:?}"
        ))
    }

    async fn judge_all(&self, cases: &[Case]) {
        let mut failed = Vec::new();
        for case in cases {
            if let Err(what) = self.judge(case).await {
                failed.push(format!("{:?}: {what}", case.0));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }
}

/// Whether the origin got one request, with this body and nothing that must not arrive.
fn is_once(case: &str, crossed: &[Crossed], body: &str) -> bool {
    let [one] = crossed else {
        return false;
    };
    let raw = String::from_utf8_lossy(&one.raw).to_lowercase();
    let around = raw.replace(&body.to_lowercase(), "");
    let is_whole = around.contains("good") == case.contains("good");
    one.target() == "/case" && one.body == body.as_bytes() && is_whole && !around.contains("evil")
}

async fn fw_03_ambiguous_framing_by_the_devices_path(cloud: TestCloud) {
    Scene::set(cloud, Door::Path).await.judge_all(FRAMING).await;
}

async fn fw_03_ambiguous_framing_on_the_devices_host(cloud: TestCloud) {
    Scene::set(cloud, Door::Host).await.judge_all(FRAMING).await;
}

async fn fw_10_trailers_forge_nothing_by_the_devices_path(cloud: TestCloud) {
    Scene::set(cloud, Door::Path)
        .await
        .judge_all(TRAILERS)
        .await;
}

async fn fw_10_trailers_forge_nothing_on_the_devices_host(cloud: TestCloud) {
    Scene::set(cloud, Door::Host)
        .await
        .judge_all(TRAILERS)
        .await;
}

async fn fw_08_ambiguous_targets_by_the_devices_path(cloud: TestCloud) {
    Scene::set(cloud, Door::Path).await.judge_all(TARGETS).await;
}

async fn fw_08_ambiguous_targets_on_the_devices_host(cloud: TestCloud) {
    Scene::set(cloud, Door::Host).await.judge_all(TARGETS).await;
}

async fn tn_05_a_pipelined_request_has_its_own_caller(cloud: TestCloud) {
    let scene = Scene::set(cloud, Door::Path).await;
    let bob = Browser::sign_in(&scene.cloud, "bob").await;
    let ask = |who: &Browser, path: &str, more: &str| {
        format!(
            "GET {}{path} HTTP/1.1\r\nHost: {}\r\nCookie: edgecloud={}\r\n\
             Sec-Fetch-Site: same-origin\r\n{more}\r\n",
            scene.prefix,
            scene.name,
            who.login_cookie()
        )
    };
    let all = ask(&scene.alice, "/first", "")
        + &ask(&bob, "/evil", "")
        + &ask(&scene.alice, "/last", "Connection: close\r\n");
    let mut caller = RawConnection::open(scene.cloud.api_addr()).await;
    caller.send(all).await;
    let told = caller.read_to_end().await;
    let told = String::from_utf8_lossy(&told);
    let statuses: Vec<_> = told
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &told[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"], "{told}");
    let crossed = scene.origin.complete();
    let targets: Vec<_> = crossed.iter().map(Crossed::target).collect();
    assert_eq!(targets, ["/first", "/last"]);
    let me = scene.alice.me().await;
    for crossed in &crossed {
        assert_eq!(
            crossed.all("edgecloud-user"),
            [me["user"]["id"].as_str().expect("an id")]
        );
    }
    assert_eq!(scene.origin.wrong(), Vec::<String>::new());
}
