//! Answers that two readers could read differently, sent byte by byte by the origin: what is left over
//! of one is never taken for the answer to another request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Browser, Device, RawOrigin, TestCloud, Topology, on_both_topologies};

on_both_topologies![
    fw_04_and_05_ambiguous_answers_poison_no_other,
    fw_04_endless_interim_answers_end_the_request,
    fw_11_trailers_say_nothing_that_a_head_may_not,
    fw_18_a_get_is_tried_again_only_without_a_byte_of_an_answer,
];

/// What the caller gets.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// A problem: the origin's answer is not valid.
    Invalid,
    /// As `Invalid`, but not for HEAD: there is no body whose length could be wrong.
    BadLength,
    /// This body, with status 200, and nothing behind it.
    Body(&'static str),
    /// An answer without a body.
    Empty(u16),
    /// The head, and then less than a whole body.
    Cut,
}
use Fate::{BadLength, Body, Cut, Empty, Invalid};

/// What the origin sends. `<ok>` is the start of a good answer, `<more>` a second answer that nobody
/// asked for, `<end>` the end of the connection, which else stays open.
type Case = (&'static str, Fate);

// One case a line, so that they can be read as a table.
#[rustfmt::skip]
const ANSWERS: &[Case] = &[
    ("<ok>Content-Length: 5\r\n\r\nhello", Body("hello")),
    ("<ok>Content-Length: 5\r\n\r\nhello<more>", Body("hello")),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n<more>", Body("hello")),
    ("HTTP/1.1 204 No Content\r\n\r\n<more>", Empty(204)),
    ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello<more>", Empty(204)),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello<more>", Empty(304)),
    ("HTTP/1.1 100 Continue\r\n\r\n<ok>Content-Length: 5\r\n\r\nhello<more>", Body("hello")),
    ("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n<ok>Content-Length: 5\r\n\r\nhello", Body("hello")),
    ("HTTP/1.0 200 OK\r\n\r\nhello<end>", Body("hello")),
    // Both lengths, and lengths that are none.
    ("<ok>Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n<more>", Body("hello")),
    ("<ok>Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n<more>", Body("hello")),
    ("<ok>Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello<more>", Body("hello")),
    ("<ok>Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello<more>", BadLength),
    ("<ok>Content-Length: 5, 5\r\n\r\nhello<more>", Body("hello")),
    ("<ok>Content-Length: -5\r\n\r\nhello", BadLength),
    ("<ok>Content-Length: +5\r\n\r\nhello", BadLength),
    ("<ok>Content-Length: 0x5\r\n\r\nhello", BadLength),
    ("<ok>Content-Length: 5 5\r\n\r\nhello", BadLength),
    ("<ok>Content-Length:\r\n\r\nhello", BadLength),
    ("<ok>Content-Length: 18446744073709551621\r\n\r\nhello", BadLength),
    // Codings that are not chunked alone.
    ("<ok>Transfer-Encoding: xchunked\r\n\r\nhello<end>", Invalid),
    ("<ok>Transfer-Encoding: identity\r\n\r\nhello<end>", Invalid),
    ("<ok>Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Invalid),
    ("<ok>Transfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n<end>", Invalid),
    ("<ok>Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Invalid),
    ("<ok>Transfer-Encoding : chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Invalid),
    ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n<end>", BadLength),
    // Chunks.
    ("<ok>Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n<more>", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n<more>", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n<more>", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n<more>", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n<more>", Cut),
    ("<ok>Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T : 1\r\n\r\n<more>", Cut),
    // Lines.
    ("<ok>X-Fold: a\r\n b\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok>X-Space : a\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok>X-Nul: a\0b\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok>X-Cr: a\rb\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok>no colon\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok>: a\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", Body("hello")),
    ("HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("HTTP/1.1\t200 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("http/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("hello<end>", Invalid),
    ("<ok>X-Long: <long>\r\nContent-Length: 5\r\n\r\nhello", Invalid),
    ("<ok><many>Content-Length: 5\r\n\r\nhello", Invalid),
];

const MORE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// Answers `/case-N` with that case, and everything with its own path, as often as it is asked.
async fn converse(mut stream: TcpStream, mut head: String) {
    loop {
        let target = head.split(' ').nth(1).unwrap_or_default();
        let bytes = answer_to(target);
        let all_but_end = bytes.trim_end_matches("<end>");
        let sent = stream.write_all(all_but_end.as_bytes()).await;
        if sent.is_err() || all_but_end.len() < bytes.len() {
            return;
        }
        head.clear();
        while !head.ends_with("\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                return;
            };
            head.push(char::from(byte));
        }
    }
}

fn answer_to(target: &str) -> String {
    let case = target
        .strip_prefix("/case-")
        .and_then(|case| case.parse::<usize>().ok());
    let Some(case) = case else {
        let length = target.len();
        return format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}");
    };
    ANSWERS[case]
        .0
        .replace("<ok>", "HTTP/1.1 200 OK\r\n")
        .replace("<more>", MORE)
        .replace("<long>", &"x".repeat(400_000))
        .replace("<many>", &"X-Many: 1\r\n".repeat(200))
}

async fn fw_04_and_05_ambiguous_answers_poison_no_other(cloud: TestCloud) {
    let origin = RawOrigin::spawn(converse).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let mut failed = Vec::new();
    for (number, (case, fate)) in ANSWERS.iter().enumerate() {
        for method in [Method::GET, Method::POST, Method::HEAD] {
            let path = format!("/case-{number}");
            let request = alice.forward(&device.id, method.clone(), &path);
            let got = request.try_send().await;
            let got = got.map(|answer| (answer.status.as_u16(), answer.text()));
            let is_head = method == Method::HEAD;
            let as_expected = match (&got, *fate) {
                (Ok((200, text)), BadLength) => is_head && text.is_empty(),
                (Ok((502, text)), Invalid | BadLength) => {
                    is_head || text.contains("\"origin_invalid\"")
                }
                (Ok((200, text)), Body(body)) => is_head || text == body,
                (Ok((status, text)), Empty(expected)) => *status == expected && text.is_empty(),
                // A HEAD has no body that could be cut.
                (Ok((200, text)), Cut) => is_head && text.is_empty(),
                (Err(_), Cut) => !is_head,
                _ => false,
            };
            if !as_expected {
                failed.push(format!("{method} {case:?}: {got:?} instead of {fate:?}"));
            }
            for next in ["/next", "/after"] {
                let path = format!("{next}-{number}-{method}");
                let answer = alice.forward(&device.id, Method::GET, &path).send().await;
                let text = answer.expect(200).text();
                if text != path {
                    failed.push(format!(
                        "after {method} {case:?}: {path} was answered with {text:?}"
                    ));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_04_endless_interim_answers_end_the_request(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__RESPONSE_HEADER_TIMEOUT", "20s")
        .spawn()
        .await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let origin = RawOrigin::spawn(move |mut stream, _| {
        let counter = Arc::clone(&counter);
        async move {
            let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
            while stream.write_all(interim.as_bytes()).await.is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let request = alice.forward(&device.id, Method::GET, "/");
    request.send().await.expect_problem(502, "origin_invalid");
    assert!(sent.load(Ordering::SeqCst) > 1);
    alice.wait_for_status(&device.id, "online").await;
}

async fn fw_11_trailers_say_nothing_that_a_head_may_not(cloud: TestCloud) {
    let origin = RawOrigin::spawn(|mut stream, _| async move {
        let names = "x-sum, set-cookie, strict-transport-security, clear-site-data, \
                     access-control-allow-origin, content-length, edgecloud-agent-error";
        let answer = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n\
             5\r\nhello\r\n0\r\nX-Sum: good\r\nSet-Cookie: edgecloud=evil\r\n\
             Strict-Transport-Security: max-age=1\r\nClear-Site-Data: \"*\"\r\n\
             Access-Control-Allow-Origin: *\r\nContent-Length: 1\r\n\
             Edgecloud-Agent-Error: timeout\r\n\r\n"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.read_u8().await;
    })
    .await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let request = alice
        .forward(&device.id, Method::GET, "/")
        .header("te", "trailers");
    let answer = request.send().await.expect(200);
    assert_eq!(answer.text(), "hello");
    let trailers = answer.trailers.expect("trailers");
    let names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["x-sum"], "{trailers:?}");
}

async fn fw_18_a_get_is_tried_again_only_without_a_byte_of_an_answer(cloud: TestCloud) {
    /// Answers the first request of a connection, and the second one with `second` and the end.
    async fn breaking_off(second: &'static str) -> (RawOrigin, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let origin = RawOrigin::spawn(move |mut stream, _| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(answer_to("/ok").as_bytes()).await;
                let mut head = [0; 4096];
                if let Ok(1..) = stream.read(&mut head).await {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(second.as_bytes()).await;
                }
            }
        })
        .await;
        (origin, asked)
    }
    for (second, method, status, requests) in [
        // The kept connection was closed at this very moment: once more, on a new one.
        ("", Method::GET, 200, 3),
        ("", Method::POST, 502, 2),
        ("HTTP/1.1 2", Method::GET, 502, 2),
    ] {
        let (origin, asked) = breaking_off(second).await;
        let alice = Browser::sign_in(&cloud, "alice").await;
        let device = Device::pair(&cloud, &alice, origin.addr()).await;
        let first = alice.forward(&device.id, Method::GET, "/first");
        first.send().await.expect(200);
        let request = alice.forward(&device.id, method.clone(), "/again");
        request.send().await.expect(status);
        let asked = asked.load(Ordering::SeqCst);
        assert_eq!(asked, requests, "{method} after {second:?}");
    }
}
