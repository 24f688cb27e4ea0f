//! ID tokens that lie: whatever a provider, or somebody in its place, puts into one, nobody is signed in
//! who should not be.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::hostile_provider::Scene;
use crate::support::{Browser, Endpoint, RawOrigin, Script, Signature};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_provider_is_believed() {
    let scene = Scene::set().await;
    for signature in [Signature::Es256, Signature::Rs256] {
        let eve = scene.sign_in(signed(signature)).await;
        assert!(eve.is_signed_in().await);
    }
    let now = Timestamp::now().as_second();
    for claims in [
        json!({"aud": ["edgecloud"], "azp": "edgecloud"}),
        json!({"exp": now - 30, "iat": now + 30, "nbf": now + 30}),
        json!({"exp": now as f64 + 60.5}),
    ] {
        scene.sign_in(Script::claims(claims)).await;
    }
}

fn signed(signature: Signature) -> Script {
    Script {
        signature,
        ..Script::default()
    }
}

fn headed(header: Value, signature: Signature) -> Script {
    Script {
        header,
        signature,
        ..Script::default()
    }
}

/// Every way to sign that is not the provider's own.
fn forgeries(scene: &Scene) -> Vec<Script> {
    let mut forgeries = vec![
        signed(Signature::Stranger),
        signed(Signature::Stripped),
        headed(json!({"alg": "none"}), Signature::Stripped),
        headed(json!({"alg": "None", "kid": null}), Signature::Stripped),
        headed(json!({"alg": "none"}), Signature::Es256),
        headed(json!({"alg": null}), Signature::Es256),
        headed(json!({"alg": "RS256"}), Signature::Es256),
        headed(json!({"alg": "ES384"}), Signature::Es256),
        headed(json!({"kid": null}), Signature::Stranger),
        headed(json!({"kid": "rsa"}), Signature::Stranger),
        headed(json!({"crit": ["exp"]}), Signature::Stranger),
    ];
    for secret in scene.provider.public_keys() {
        for kid in [json!("first"), json!("rsa"), Value::Null] {
            let signature = Signature::Hs256(secret.clone());
            forgeries.push(headed(json!({ "kid": kid }), signature));
        }
    }
    forgeries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_10_a_token_that_the_provider_did_not_sign_is_refused() {
    let scene = Scene::set().await;
    for forgery in forgeries(&scene) {
        scene.is_refused(forgery).await;
    }
    assert_eq!(scene.provider.hits(Endpoint::Userinfo), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_10_a_clients_secret_signs_no_token() {
    const SECRET: &str = "the secret of a confidential client";
    let scene = Scene::with(&[("EDGECLOUD__OIDC__CLIENT_SECRET", SECRET)]).await;
    scene.sign_in(Script::default()).await;
    let secret = || Signature::Hs256(SECRET.as_bytes().to_vec());
    scene.is_refused(signed(secret())).await;
    scene
        .is_refused(headed(json!({"kid": null}), secret()))
        .await;
    for forgery in forgeries(&scene) {
        scene.is_refused(forgery).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_10_only_the_configured_algorithms_are_accepted() {
    let scene = Scene::with(&[("EDGECLOUD__OIDC__ALLOWED_ALGS", "ES256")]).await;
    scene.sign_in(signed(Signature::Es256)).await;
    scene.is_refused(signed(Signature::Rs256)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_11_a_token_cannot_bring_its_own_key() {
    let scene = Scene::set().await;
    let attacker = RawOrigin::spawn(|_, _| async {}).await;
    let elsewhere = format!("http://{}/keys", attacker.addr());
    let key = scene.provider.strangers_key();
    for header in [
        json!({"jku": elsewhere}),
        json!({"x5u": elsewhere}),
        json!({"jwk": key}),
        json!({"jwk": key, "kid": null}),
        json!({"jku": elsewhere, "kid": "stranger"}),
        json!({"kid": elsewhere}),
        json!({"x5c": ["MIIB"]}),
    ] {
        let forgery = headed(header.clone(), Signature::Stranger);
        scene.is_refused(forgery).await;
        // Beside the right signature it leads nowhere either, whether or not the token is accepted.
        let browser = Browser::new(&scene.cloud);
        let answer = scene
            .attempt(&browser, headed(header, Signature::Es256))
            .await;
        assert!(answer.status == 303 || answer.status == 400, "{answer:?}");
    }
    assert_eq!(attacker.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_12_a_new_key_is_fetched_once() {
    let scene = Scene::set().await;
    scene.sign_in(Script::default()).await;
    assert_eq!(scene.provider.hits(Endpoint::Keys), 1);
    scene.provider.change_key("second", true);
    for _ in 0..3 {
        scene.sign_in(Script::default()).await;
    }
    assert_eq!(scene.provider.hits(Endpoint::Keys), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_12_unknown_keys_do_not_flood_the_provider() {
    let scene = Scene::set().await;
    scene.provider.change_key("hidden", false);
    for attempt in 0..100 {
        let key_id = format!("unknown-{attempt}");
        let unknown = headed(json!({ "kid": key_id }), Signature::Es256);
        scene.is_refused(unknown).await;
    }
    // One for the start, one for the first unknown key; the next only after the cool-down.
    assert_eq!(scene.provider.hits(Endpoint::Keys), 2);
    assert_eq!(scene.provider.hits(Endpoint::Discovery), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_13_a_token_is_from_our_provider_and_for_us_alone() {
    let scene = Scene::set().await;
    let issuer = scene.provider.issuer().to_owned();
    for claims in [
        json!({"iss": format!("{issuer}/")}),
        json!({"iss": issuer.to_uppercase()}),
        json!({"iss": issuer.replace("http:", "HTTP:")}),
        json!({"iss": issuer.replace("http:", "https:")}),
        json!({"iss": format!("{issuer}.evil.example")}),
        json!({"iss": format!("{issuer}?")}),
        json!({"iss": [issuer]}),
        json!({"iss": ""}),
        json!({"iss": null}),
        json!({"aud": "other"}),
        json!({"aud": "EDGECLOUD"}),
        json!({"aud": "edgecloud "}),
        json!({"aud": ["edgecloud", "other"]}),
        json!({"aud": ["other", "edgecloud"]}),
        json!({"aud": ["edgecloud", "edgecloud"]}),
        json!({"aud": []}),
        json!({"aud": {"edgecloud": true}}),
        json!({"aud": null}),
        json!({"azp": "other"}),
        json!({"azp": ["edgecloud"]}),
        json!({"azp": ""}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": 7}),
        json!({"sub": "s".repeat(256)}),
    ] {
        scene.is_refused(Script::claims(claims)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_14_times_are_there_and_are_numbers_and_right() {
    let scene = Scene::set().await;
    let now = Timestamp::now().as_second();
    for claims in [
        json!({"exp": now - 61}),
        json!({"exp": -1}),
        json!({"exp": 0}),
        json!({"exp": null}),
        json!({"iat": null}),
        json!({"iat": now + 600}),
        json!({"nbf": now + 600}),
        json!({"nbf": 99_999_999_999_u64}),
    ] {
        scene.is_refused(Script::claims(claims)).await;
    }
    for claim in ["exp", "iat", "nbf"] {
        for text in [
            "\"never\"",
            "\"4102444800\"",
            "null",
            "1e400",
            "-1e400",
            "true",
            "[4102444800]",
            "{}",
            "NaN",
        ] {
            let script = Script {
                raw_claims: vec![(claim, text)],
                ..Script::default()
            };
            scene.is_refused(script).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_15_a_token_of_another_sign_in_is_put_aside_before_it_is_used() {
    let scene = Scene::set().await;
    for claims in [
        json!({"nonce": "other"}),
        json!({"nonce": ""}),
        json!({"nonce": null}),
        json!({"nonce": ["other"]}),
    ] {
        scene.is_refused(Script::claims(claims)).await;
    }
    assert_eq!(scene.provider.hits(Endpoint::Userinfo), 0);
    scene.sign_in(Script::default()).await;
    assert_eq!(scene.provider.hits(Endpoint::Userinfo), 1, "as it should");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_23_a_person_is_known_by_issuer_and_subject_and_by_nothing_else() {
    let scene = Scene::set().await;
    let email = "alice@example.test";
    let alice = scene
        .sign_in(named("alice", json!(email), json!(true)))
        .await;
    let known = alice.me().await;
    assert_eq!(known["user"]["email"], email);
    for (place, verified) in [json!(true), json!(false), Value::Null]
        .into_iter()
        .enumerate()
    {
        let mallory = named(&format!("mallory-{place}"), json!(email), verified);
        let other = scene.sign_in(mallory).await.me().await;
        assert_ne!(other["user"]["id"], known["user"]["id"]);
        assert_ne!(other["tenant"]["id"], known["tenant"]["id"]);
    }
    // Claims of another type than theirs make the whole token unreadable.
    for (email, verified) in [(json!(email), json!("false")), (json!(7), json!(true))] {
        scene.is_refused(named("mallory", email, verified)).await;
    }
    let renamed = named("alice", json!("other@example.test"), json!(false));
    let again = scene.sign_in(renamed).await.me().await;
    assert_eq!(again["user"]["id"], known["user"]["id"]);
    assert_eq!(again["tenant"]["id"], known["tenant"]["id"]);
    // What is no address is not shown as one.
    for odd in ["a@example.test@evil.example", "alice", ""] {
        let odd = named("odd", json!(odd), json!(true));
        let shown = scene.sign_in(odd).await.me().await;
        assert!(shown["user"]["email"].is_null(), "{shown}");
    }
}

fn named(subject: &str, email: Value, verified: Value) -> Script {
    Script::claims(json!({"sub": subject, "email": email, "email_verified": verified}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ol_24_userinfo_must_speak_of_the_same_person() {
    let scene = Scene::set().await;
    for sub in [json!("mallory"), json!("EVE"), json!(["eve"]), Value::Null] {
        let script = Script {
            userinfo: json!({ "sub": sub }),
            ..Script::of("eve")
        };
        scene.is_refused(script).await;
    }
    let script = Script {
        userinfo: json!({"name": "Eve", "iss": "https://evil.example"}),
        ..Script::of("eve")
    };
    let eve = scene.sign_in(script).await.me().await;
    assert_eq!(eve["user"]["name"], "Eve");
}
