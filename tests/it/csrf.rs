//! Requests that another site makes a browser send with somebody's cookie.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Browser, Device, Origin, Request, TestCloud, on_both_topologies};

on_both_topologies![
    ch_01_what_another_site_makes_a_browser_send_changes_nothing,
    ch_02_without_fetch_metadata_the_origin_must_be_ours,
    ch_03_a_program_with_a_cookie_must_send_our_header,
    ch_07_no_other_origin_may_read_answers,
];

/// Fields of a request, as names and values.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// Alice, and something of hers behind each unsafe method.
struct Scene {
    alice: Browser,
    device: Device,
    origin: Origin,
    code: String,
    before: Vec<Value>,
}

impl Scene {
    async fn set(cloud: &TestCloud) -> Self {
        let alice = Browser::sign_in(cloud, "alice").await;
        let origin = Origin::spawn().await;
        let device = Device::pair(cloud, &alice, origin.addr()).await;
        let (code, _) = alice.pairing_code().await;
        let mut scene = Self {
            alice,
            device,
            origin,
            code,
            before: Vec::new(),
        };
        scene.before = scene.state().await;
        scene
    }

    /// What the requests of [`Scene::attempts`] would change.
    async fn state(&self) -> Vec<Value> {
        let codes = self.alice.get("/api/pairing/codes").send().await;
        let device = self.alice.device(&self.device.id).await;
        let mut state = codes.expect(200).items();
        state.push(device["name"].clone());
        state.push(self.alice.me().await["tenant"]["id"].clone());
        state
    }

    /// A request of each unsafe method, one of them for the device, with alice's cookie and no other
    /// field than those that are given.
    async fn attempts(&self, fields: Fields<'_>) -> Vec<(String, Answer)> {
        let device = format!("/api/devices/{}", self.device.id);
        let requests = [
            (Method::POST, "/api/pairing/codes".to_owned(), json!({})),
            (
                Method::DELETE,
                format!("/api/pairing/codes/{}", self.code),
                json!({}),
            ),
            (Method::PATCH, device.clone(), json!({"name": "forged"})),
            (
                Method::PUT,
                "/api/auth/tenant".to_owned(),
                json!({"tenant_id": "ten_x"}),
            ),
            (Method::POST, format!("{device}/http/order"), json!({})),
        ];
        let mut answers = Vec::new();
        for (method, path, body) in requests {
            let what = format!("{method} {path} with {fields:?}");
            let bare = self.alice.request_on(self.alice.host(), method, &path);
            let bare = bare.json(&body);
            answers.push((what, with_fields(bare, fields).send().await));
        }
        answers
    }

    async fn are_refused(&self, forged: &[Fields<'_>]) {
        for fields in forged {
            for (what, answer) in self.attempts(fields).await {
                assert_eq!(answer.status, 403, "{what}: {}", answer.text());
                assert_eq!(answer.json()["code"], "cross_origin", "{what}");
            }
        }
        assert_eq!(self.state().await, self.before, "nothing has happened");
        assert_eq!(self.origin.count("/order"), 0);
    }

    async fn are_done(&self, honest: &[Fields<'_>]) {
        for fields in honest {
            let path = "/api/pairing/codes";
            let made = self.alice.request_on(self.alice.host(), Method::POST, path);
            let made = with_fields(made.json(&json!({})), fields).send().await;
            assert_eq!(made.status, 201, "{fields:?}: {}", made.text());
        }
    }
}

fn with_fields(request: Request, fields: Fields<'_>) -> Request {
    fields.iter().fold(request, |request, (name, value)| {
        request.another_header(name, value)
    })
}

async fn ch_01_what_another_site_makes_a_browser_send_changes_nothing(cloud: TestCloud) {
    let scene = Scene::set(&cloud).await;
    let origin = scene.alice.origin();
    let site = "sec-fetch-site";
    scene
        .are_refused(&[
            &[(site, "cross-site")],
            &[(site, "same-site")],
            &[(site, "same-site"), ("edgecloud-csrf", "1")],
            &[(site, "cross-site"), ("origin", &origin)],
            &[(site, "same-origin"), ("origin", "https://evil.example")],
            &[(site, "same-origin"), (site, "cross-site")],
            &[(site, "")],
        ])
        .await;
    scene
        .are_done(&[
            &[(site, "same-origin")],
            &[(site, "same-origin"), ("origin", &origin)],
        ])
        .await;
}

async fn ch_02_without_fetch_metadata_the_origin_must_be_ours(cloud: TestCloud) {
    let scene = Scene::set(&cloud).await;
    let origin = scene.alice.origin();
    let other_port = "http://localhost:1";
    let other_scheme = origin.replace("http:", "https:");
    let longer = format!("{origin}.evil.example");
    let sub_domain = origin.replace("localhost", "evil.localhost");
    scene
        .are_refused(&[
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", other_port)],
            &[("origin", "http://localhost")],
            &[("origin", &other_scheme)],
            &[("origin", &longer)],
            &[("origin", &sub_domain)],
            &[("origin", &origin), ("origin", "https://evil.example")],
            // A field of ours does not heal a foreign origin: it would need CORS to be sent.
            &[("origin", "null"), ("edgecloud-csrf", "1")],
        ])
        .await;
    scene.are_done(&[&[("origin", &origin)]]).await;
}

async fn ch_03_a_program_with_a_cookie_must_send_our_header(cloud: TestCloud) {
    let scene = Scene::set(&cloud).await;
    scene
        .are_refused(&[
            &[],
            &[("edgecloud-csrf", "0")],
            &[("edgecloud-csrf", "")],
            &[("edgecloud-csrf", "1"), ("edgecloud-csrf", "1")],
            &[("x-requested-with", "XMLHttpRequest")],
            &[("referer", &format!("{}/", scene.alice.origin()))],
        ])
        .await;
    scene
        .are_done(&[&[("edgecloud-csrf", "1")], &[("sec-fetch-site", "none")]])
        .await;
}

async fn ch_07_no_other_origin_may_read_answers(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    for origin in ["https://evil.example", "null"] {
        for method in [Method::GET, Method::OPTIONS] {
            let answer = alice
                .request(method, "/api/auth/me")
                .header("sec-fetch-site", "cross-site")
                .header("origin", origin)
                .header("access-control-request-method", "GET")
                .send()
                .await;
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
}
