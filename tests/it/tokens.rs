//! Signed tokens that come to us: logout tokens of the provider and access tokens of programs. What is
//! not exactly right does nothing.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::hostile_provider::Scene;
use crate::support::{Anonymous, Answer, RawOrigin, Script, Signature, random_token};

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
const AUDIENCE: &str = "https://cloud.example.test/api";

/// Claims with changes; `null` removes.
fn changed(mut claims: Value, changes: &Value) -> Value {
    let fields = claims.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => fields.remove(name),
            value => fields.insert(name.clone(), value.clone()),
        };
    }
    claims
}

fn logout_claims(scene: &Scene, changes: &Value) -> Value {
    let now = Timestamp::now().as_second();
    let claims = json!({
        "iss": scene.provider.issuer(), "aud": "edgecloud", "iat": now, "exp": now + 120,
        "jti": random_token(), "events": { EVENT: {} }, "sub": "alice", "sid": "s1",
    });
    changed(claims, changes)
}

fn logout_token(scene: &Scene, claims: &Value, header: &Value, signature: &Signature) -> String {
    scene.provider.token(&Script {
        header: changed(json!({"typ": "logout+jwt"}), header),
        claims: claims.clone(),
        signature: signature.clone(),
        ..Script::default()
    })
}

/// The provider's call.
async fn call(scene: &Scene, token: &str) -> Answer {
    let form: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("logout_token", token)
        .finish();
    Anonymous::of(&scene.cloud)
        .post("/api/auth/backchannel-logout")
        .header("content-type", "application/x-www-form-urlencoded")
        .bytes(form)
        .send()
        .await
}

fn signed_in_as(sub: &str, sid: &str) -> Script {
    Script::claims(json!({"sub": sub, "sid": sid}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_05_a_logout_token_that_is_not_right_ends_nothing() {
    let scene = Scene::set().await;
    let alice = scene.sign_in(signed_in_as("alice", "s1")).await;
    let now = Timestamp::now().as_second();
    let bad_claims = [
        json!({"iss": "https://evil.example"}),
        json!({"iss": format!("{}/", scene.provider.issuer())}),
        json!({"aud": "another client"}),
        json!({"aud": null}),
        json!({"exp": now - 61}),
        json!({"exp": null}),
        json!({"exp": "never"}),
        json!({"iat": null}),
        json!({"iat": now + 61}),
        json!({"nonce": "n"}),
        json!({"events": null}),
        json!({"events": {}}),
        json!({"events": {EVENT: true}}),
        json!({"events": [EVENT]}),
        json!({"jti": null}),
        json!({"jti": 7}),
        json!({"sub": null, "sid": null}),
        json!({"sub": 7}),
        json!({"sid": ""}),
    ];
    for changes in bad_claims {
        let claims = logout_claims(&scene, &changes);
        let token = logout_token(&scene, &claims, &json!({}), &Signature::Es256);
        let answer = call(&scene, &token).await;
        assert_eq!(answer.status, 400, "{changes}: {}", answer.text());
        answer.expect_problem(400, "logout_token_invalid");
    }
    let good = logout_claims(&scene, &json!({}));
    let mut forgeries = vec![
        (json!({"typ": "JWT"}), Signature::Es256),
        (json!({"typ": "at+jwt"}), Signature::Es256),
        (json!({"typ": null}), Signature::Es256),
        (json!({"crit": ["exp"]}), Signature::Es256),
        (json!({"alg": "none"}), Signature::Stripped),
        (json!({"alg": "RS256"}), Signature::Es256),
        (json!({}), Signature::Stripped),
        (json!({}), Signature::Stranger),
        (json!({"kid": null}), Signature::Stranger),
        (
            json!({"jwk": scene.provider.strangers_key()}),
            Signature::Stranger,
        ),
    ];
    for secret in scene.provider.public_keys() {
        forgeries.push((json!({}), Signature::Hs256(secret)));
    }
    for (header, signature) in forgeries {
        let token = logout_token(&scene, &good, &header, &signature);
        let answer = call(&scene, &token).await;
        assert_eq!(answer.status, 400, "{header} {signature:?}");
    }
    for token in ["", "x", "a.b.c", &"a".repeat(70_000)] {
        call(&scene, token)
            .await
            .expect_problem(400, "logout_token_invalid");
    }
    assert!(alice.is_signed_in().await);
    let token = logout_token(&scene, &good, &json!({}), &Signature::Es256);
    call(&scene, &token).await.expect(200);
    assert!(!alice.is_signed_in().await, "the good one counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_05_what_a_logout_token_names_is_ended_and_nothing_else_and_once() {
    let scene = Scene::set().await;
    let first = scene.sign_in(signed_in_as("alice", "s1")).await;
    let second = scene.sign_in(signed_in_as("alice", "s2")).await;
    let bob = scene.sign_in(signed_in_as("bob", "s3")).await;
    let send = async |changes: Value| {
        let claims = logout_claims(&scene, &changes);
        let token = logout_token(&scene, &claims, &json!({}), &Signature::Es256);
        call(&scene, &token).await.expect(200);
        token
    };
    send(json!({"sub": "bob", "sid": "s1"})).await;
    send(json!({"sub": "carol", "sid": null})).await;
    for browser in [&first, &second, &bob] {
        assert!(browser.is_signed_in().await, "sub and sid must both fit");
    }
    let used = send(json!({"sub": null})).await;
    assert!(!first.is_signed_in().await && second.is_signed_in().await);
    let again = scene.sign_in(signed_in_as("alice", "s1")).await;
    call(&scene, &used)
        .await
        .expect_problem(400, "logout_token_invalid");
    assert!(again.is_signed_in().await, "a replay ends nothing");
    send(json!({"sid": null})).await;
    assert!(!again.is_signed_in().await && !second.is_signed_in().await);
    assert!(bob.is_signed_in().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lo_05_only_a_form_with_one_token_is_read() {
    let scene = Scene::set().await;
    let post = |kind: &str, body: String| {
        Anonymous::of(&scene.cloud)
            .post("/api/auth/backchannel-logout")
            .header("content-type", kind)
            .bytes(body)
    };
    let form = "application/x-www-form-urlencoded";
    let claims = logout_claims(&scene, &json!({}));
    let token = logout_token(&scene, &claims, &json!({}), &Signature::Es256);
    let json = post(
        "application/json",
        format!("{{\"logout_token\":\"{token}\"}}"),
    );
    json.send()
        .await
        .expect_problem(415, "unsupported_media_type");
    for body in [
        String::new(),
        "other=x".to_owned(),
        format!("logout_token={token}&logout_token={token}"),
    ] {
        let answer = post(form, body).send().await;
        answer.expect_problem(400, "logout_token_invalid");
    }
    let huge = post(form, format!("logout_token={}", "a".repeat(100_000)));
    huge.send().await.expect_problem(413, "payload_too_large");
    let answer = post(form, format!("logout_token={token}")).send().await;
    assert_eq!(answer.expect(200).header("cache-control"), "no-store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_27_an_access_token_that_is_not_right_is_nobodys() {
    let scene = Scene::with(&[("EDGECLOUD__OIDC__API__AUDIENCE", AUDIENCE)]).await;
    let alice = scene.sign_in(Script::of("alice")).await;
    let register = alice.post("/api/service-clients");
    let body = json!({"client_id": "robot", "name": "robot", "role": "viewer"});
    register.json(&body).send().await.expect(201);
    let now = Timestamp::now().as_second();
    let good = json!({
        "iss": scene.provider.issuer(), "aud": AUDIENCE, "iat": now, "exp": now + 300,
        "client_id": "robot", "sub": "robot",
    });
    let token = |changes: &Value, header: &Value, signature: &Signature| {
        scene.provider.token(&Script {
            header: changed(json!({"typ": "at+jwt"}), header),
            claims: changed(good.clone(), changes),
            signature: signature.clone(),
            ..Script::default()
        })
    };
    let status = async |token: &str| {
        let request = Anonymous::of(&scene.cloud).get("/api/devices");
        let bearer = format!("Bearer {token}");
        request.header("authorization", &bearer).send().await.status
    };
    let signature = Signature::Es256;
    for changes in [
        json!({}),
        json!({"aud": [AUDIENCE, "https://other.example"]}),
        json!({"sub": "9b1f"}),
    ] {
        let good = token(&changes, &json!({}), &signature);
        assert_eq!(status(&good).await, 200, "{changes}");
    }
    let other_typ = json!({"typ": "application/at+jwt"});
    assert_eq!(
        status(&token(&json!({}), &other_typ, &signature)).await,
        200
    );
    for changes in [
        json!({"iss": "https://evil.example"}),
        json!({"aud": "edgecloud"}),
        json!({"aud": [format!("{AUDIENCE}/")]}),
        json!({"aud": null}),
        json!({"exp": now - 61}),
        json!({"exp": null}),
        json!({"exp": "never"}),
        json!({"iat": null}),
        json!({"nbf": now + 61}),
        json!({"client_id": null}),
        json!({"client_id": ""}),
        json!({"client_id": "stranger"}),
        json!({"sub": null}),
        // A person's, however it got into the program's hands.
        json!({"sub": "alice"}),
    ] {
        let bad = token(&changes, &json!({}), &signature);
        assert_eq!(status(&bad).await, 401, "{changes}");
    }
    let attacker = RawOrigin::spawn(async |_, _| {}).await;
    for (header, signature) in [
        (json!({"typ": "JWT"}), Signature::Es256),
        (json!({"typ": "logout+jwt"}), Signature::Es256),
        (json!({"typ": null}), Signature::Es256),
        (json!({"alg": "none"}), Signature::Stripped),
        (json!({}), Signature::Stranger),
        (
            json!({"jku": format!("http://{}/", attacker.addr())}),
            Signature::Stranger,
        ),
        (json!({}), Signature::Stripped),
    ] {
        let bad = token(&json!({}), &header, &signature);
        assert_eq!(status(&bad).await, 401, "{header} {signature:?}");
    }
    assert_eq!(attacker.requests(), 0, "a token names no keys");
    let id_token = token(
        &json!({"aud": "edgecloud"}),
        &json!({"typ": "JWT"}),
        &signature,
    );
    assert_eq!(status(&id_token).await, 401, "an ID token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_27_without_an_audience_no_access_token_is_accepted() {
    let scene = Scene::set().await;
    let alice = scene.sign_in(Script::of("alice")).await;
    let register = alice.post("/api/service-clients");
    let body = json!({"client_id": "robot", "name": "robot", "role": "viewer"});
    register.json(&body).send().await.expect(201);
    let now = Timestamp::now().as_second();
    for aud in [json!("edgecloud"), json!(""), Value::Null] {
        let token = scene.provider.token(&Script {
            header: json!({"typ": "at+jwt"}),
            claims: json!({
                "iss": scene.provider.issuer(), "aud": aud, "iat": now, "exp": now + 300,
                "client_id": "robot", "sub": "robot",
            }),
            ..Script::default()
        });
        let request = Anonymous::of(&scene.cloud).get("/api/devices");
        let request = request.header("authorization", &format!("Bearer {token}"));
        request.send().await.expect_problem(401, "unauthenticated");
    }
}
