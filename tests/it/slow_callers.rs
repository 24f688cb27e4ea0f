//! Callers who take their time: their connections are closed in time, and nobody waits for them.

use bytes::Bytes;
use http::Method;

use crate::support::{
    Anonymous, Authority, Browser, Device, Origin, RawConnection, TestCloud, Topology,
    on_both_topologies, within,
};

on_both_topologies![
    rx_01_a_slow_head_is_cut_off,
    rx_01_a_slow_body_is_cut_off,
    rx_01_who_reads_nothing_is_cut_off,
    rx_01_a_tls_handshake_that_stalls_is_cut_off,
];

async fn impatient(topology: Topology) -> TestCloud {
    TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__HEADER_READ_TIMEOUT", "1s")
        .setting("EDGECLOUD__LIMITS__BODY_READ_TIMEOUT", "1s")
        .setting("EDGECLOUD__LIMITS__WRITE_TIMEOUT", "1s")
        .spawn()
        .await
}

async fn rx_01_a_slow_head_is_cut_off(topology: Topology) {
    let cloud = impatient(topology).await;
    let mut slow = Vec::new();
    for beginning in [
        "",
        "GET ",
        "GET /api/auth/me HTTP/1.1\r\n",
        "GET /api/auth/me HTTP/1.1\r\nHost: localhost\r\nX-A: ",
    ] {
        for _ in 0..25 {
            let mut caller = RawConnection::open(cloud.api_addr()).await;
            caller.send(beginning).await;
            slow.push(caller);
        }
    }
    Browser::sign_in(&cloud, "alice").await;
    for mut caller in slow {
        // Byte by byte is not faster.
        caller.send_what_is_taken("x").await;
        let told = caller.read_to_end().await;
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains(" 200 "), "{told}");
    }
}

async fn rx_01_a_slow_body_is_cut_off(topology: Topology) {
    let cloud = impatient(topology).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let (host, cookie) = (cloud.public_host(), alice.login_cookie());
    let mut slow = Vec::new();
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        for path in ["/api/pairing/codes", "/api/pairing/exchange"] {
            let mut caller = RawConnection::open(cloud.api_addr()).await;
            caller
                .send(format!(
                    "POST {path} HTTP/1.1\r\nHost: {host}\r\nCookie: edgecloud={cookie}\r\n\
                     Edgecloud-Csrf: 1\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
                ))
                .await;
            if framing.starts_with("Transfer") {
                caller.send("1\r\n{\r\n").await;
            } else {
                caller.send("{").await;
            }
            slow.push((path, caller));
        }
    }
    alice.pairing_code().await;
    for (path, mut caller) in slow {
        let told = caller.read_to_end().await;
        let told = String::from_utf8_lossy(&told);
        assert!(told.starts_with("HTTP/1.1 408 "), "{path}: {told}");
    }
}

async fn rx_01_who_reads_nothing_is_cut_off(topology: Topology) {
    let cloud = impatient(topology).await;
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let device = Device::pair(&cloud, &alice, origin.addr()).await;
    let body = origin.drive("endless");
    let (host, cookie) = (cloud.public_host(), alice.login_cookie());
    let mut caller = RawConnection::open(cloud.api_addr()).await;
    caller
        .send(format!(
            "GET /api/devices/{}/http/do/driven?name=endless HTTP/1.1\r\nHost: {host}\r\n\
             Cookie: edgecloud={cookie}\r\n\r\n",
            device.id
        ))
        .await;
    assert_eq!(caller.read_status().await, 200);
    // Once every buffer on the way is full, nothing more is taken, and then the way is given up.
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let pushed = async { while body.send(piece.clone()).await.is_ok() {} };
    within("the origin learns that nobody reads", pushed).await;
    let other = alice.forward(&device.id, Method::GET, "/other").send();
    other.await.expect(200);
    drop(caller);
}

async fn rx_01_a_tls_handshake_that_stalls_is_cut_off(topology: Topology) {
    let authority = Authority::new();
    authority.issue("localhost");
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__HEADER_READ_TIMEOUT", "1s")
        .tls(&authority)
        .spawn()
        .await;
    let mut slow = Vec::new();
    for addr in [cloud.api_addr(), cloud.tunnel_addr()] {
        // Nothing at all, the head of a record, and the beginning of a ClientHello.
        for beginning in [
            &b""[..],
            b"\x16\x03\x01\x02\x00",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ] {
            for _ in 0..10 {
                let mut caller = RawConnection::open(addr).await;
                caller.send(beginning).await;
                slow.push(caller);
            }
        }
    }
    let alice = Browser::sign_in(&cloud, "alice").await;
    Anonymous::of(&cloud)
        .get("/healthz")
        .send()
        .await
        .expect(200);
    for mut caller in slow {
        let told = caller.read_to_end().await;
        assert_eq!(told, b"", "nothing is said before the handshake");
    }
    assert!(alice.is_signed_in().await);
}
