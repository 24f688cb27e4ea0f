//! The harness without the product: a request that goes straight to an origin sees what the
//! forwarding tests expect to see through the cloud.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Origin, Pattern, RawConnection, RawOrigin, Request, eventually};

fn request(origin: &Origin, method: Method, target: &str) -> Request {
    let addr = origin.addr();
    Request::new(addr, &addr.to_string(), method, target)
}

async fn get(origin: &Origin, target: &str) -> crate::support::Answer {
    request(origin, Method::GET, target).send().await
}

#[tokio::test]
async fn an_origin_tells_what_arrived() {
    let origin = Origin::spawn().await;
    for target in ["/", "//a//b", "/../x/%2e%2F?q=[1]|{2}", "/x?"] {
        let seen = get(&origin, target).await.expect(200).json();
        assert_eq!(seen["target"], target);
    }
    let posted = request(&origin, Method::POST, "/x").bytes("12345");
    assert_eq!(posted.send().await.expect(200).json()["body_bytes"], 5);
    assert_eq!(origin.count("/x"), 1);
    assert_eq!(origin.connections(), 5);
    let built = "/do/answer?status=404&body=no&set-cookie=a&set-cookie=b";
    let answer = get(&origin, built).await.expect(404);
    assert_eq!(answer.text(), "no");
    assert_eq!(answer.all("set-cookie"), ["a", "b"]);
    for status in [204, 304] {
        let answer = get(&origin, &format!("/do/answer?status={status}")).await;
        assert!(answer.expect(status).body.is_empty());
    }
}

#[tokio::test]
async fn a_pattern_shows_lost_and_changed_bytes() {
    let mut maker = Pattern::default();
    let bytes: Vec<u8> = (0..5).flat_map(|_| maker.next(50_000)).collect();
    assert!(Pattern::default().accepts(&bytes));
    assert!(!Pattern::default().accepts(&bytes[1..]));
    let mut lost = bytes.clone();
    lost.drain(70_000..70_000 + 4096);
    assert!(!Pattern::default().accepts(&lost));
    let mut changed = bytes;
    changed[200_000] ^= 1;
    assert!(!Pattern::default().accepts(&changed));
}

#[tokio::test]
async fn bodies_of_any_kind_pass() {
    let origin = Origin::spawn().await;
    for framing in ["", "&length=1"] {
        let target = format!("/do/download?bytes=300001{framing}");
        let answer = get(&origin, &target).await.expect(200);
        assert_eq!(answer.body.len(), 300_001);
        assert!(Pattern::default().accepts(&answer.body));
    }
    let pieces = stream::unfold(Pattern::default(), |mut pattern| async move {
        let left = 300_001 - pattern.position();
        (left > 0).then(|| (pattern.next(left), pattern))
    });
    let upload = request(&origin, Method::POST, "/do/upload").stream(pieces);
    let told = upload.send().await.expect(200).json();
    let whole = json!({"bytes": 300_001, "intact": true, "complete": true});
    assert_eq!(told, whole);

    let trailers = request(&origin, Method::GET, "/do/trailers").header("te", "trailers");
    let trailers = trailers.send().await.expect(200).trailers;
    assert_eq!(trailers.expect("trailers")["x-checksum"], "of the body");
    let range = request(&origin, Method::GET, "/do/range").header("range", "bytes=2-5");
    assert_eq!(range.send().await.expect(206).text(), "2345");
}

#[tokio::test]
async fn a_driven_body_comes_piece_by_piece_and_tells_when_its_reader_is_gone() {
    let origin = Origin::spawn().await;
    let body = origin.drive("one");
    let target = "/do/driven?name=one&type=text/event-stream";
    let mut answer = request(&origin, Method::GET, target)
        .open()
        .await
        .expect(200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    for piece in ["first", "second"] {
        body.send(piece.into()).await.expect("taken");
        assert_eq!(answer.read_until(piece).await, piece);
    }
    drop(answer);
    eventually("the origin notices", async || {
        // What is sent to a reader that is gone is refused at last.
        body.try_send(Bytes::from("x"))
            .err()
            .filter(|_| body.is_closed())
            .map(drop)
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_is_cut_off_is_seen_as_such() {
    let origin = Origin::spawn().await;
    let mut caller = RawConnection::open(origin.addr()).await;
    let start = Pattern::default().next(1000);
    caller
        .send("POST /do/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        .await;
    caller.send(&start).await;
    drop(caller);
    let upload = eventually("the end", async || origin.uploads().first().copied()).await;
    assert!(!upload.complete && upload.intact, "{upload:?}");
}

#[tokio::test]
async fn expectations_are_answered_as_the_origin_likes() {
    let origin = Origin::spawn().await;
    for (path, status) in [("/do/upload", 100), ("/do/refuse-body", 417)] {
        let mut caller = RawConnection::open(origin.addr()).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        );
        caller.send(head).await;
        assert_eq!(caller.read_status().await, status);
    }
}

#[tokio::test]
async fn a_websocket_echoes_and_closes_with_codes() {
    let origin = Origin::spawn().await;
    let handshake = request(&origin, Method::GET, "/do/websocket");
    let handshake = handshake.header("sec-websocket-protocol", "v2, v1");
    let mut opened = handshake.websocket().await.expect("a WebSocket");
    assert_eq!(opened.headers["sec-websocket-protocol"], "v2");
    opened
        .socket
        .send(Message::text("hello"))
        .await
        .expect("sent");
    let back = opened
        .socket
        .next()
        .await
        .expect("open")
        .expect("a message");
    assert_eq!(back, Message::text("hello"));
    let close = Message::text("close 4321 enough for today");
    opened.socket.send(close).await.expect("sent");
    let Some(Ok(Message::Close(Some(frame)))) = opened.socket.next().await else {
        panic!("a close frame should come");
    };
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (4321, "enough for today")
    );

    let handshake = request(&origin, Method::GET, "/do/websocket");
    let mut other = handshake.websocket().await.expect("a WebSocket");
    let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame {
        code: 4567.into(),
        reason: "bye".into(),
    };
    other.socket.close(Some(frame)).await.expect("sent");
    eventually("the code arrives", async || {
        origin
            .closes()
            .contains(&(4567, "bye".to_owned()))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_an_error_and_an_early_answer_arrives() {
    let origin = RawOrigin::spawn(|mut stream, head| async move {
        let early = head.starts_with("POST");
        let answer = if early {
            "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\n\r\ntoo much"
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello"
        };
        let _ = stream.write_all(answer.as_bytes()).await;
        if early {
            std::future::pending::<()>().await;
        }
    })
    .await;
    let send = |method| Request::new(origin.addr(), "x", method, "/");
    let mut answer = send(Method::GET).open().await.expect(200);
    answer.read_until("hello").await;
    assert!(matches!(answer.next().await, Some(Err(_))));
    let endless = stream::unfold(Pattern::default(), |mut pattern| async {
        Some((pattern.next(u64::MAX), pattern))
    });
    let answer = send(Method::POST).stream(endless).open().await.expect(413);
    assert_eq!(answer.finish().await.text(), "too much");
    assert_eq!(origin.requests(), 2);
}
