//! Places in tenants that a claim of the provider gives, changes and takes, and what the audit says of it.

use http::Method;
use serde_json::{Value, json};

use crate::hostile_provider::Scene;
use crate::providers::{make_refresh_due, refresh_is_due};
use crate::support::{
    Browser, Provider, Registration, Script, TestCloud, Topology, eventually, text, within,
};

const CLAIM: (&str, &str) = ("EDGECLOUD__OIDC__TENANT_CLAIM", "edgecloud_tenants");

/// What the audit says of places that a claim gave: what, in which tenant, whose, the role.
type Line = (String, String, String, Option<String>);

fn written(cloud: &TestCloud) -> Vec<Line> {
    let database = cloud.database();
    let sql = "SELECT a.action, t.name, a.target, a.detail ->> 'role' FROM audit a
               JOIN tenants t ON t.id = a.tenant_id
               WHERE a.actor_kind = 'provider' AND a.action LIKE 'member.%' ORDER BY a.seq";
    let mut statement = database.prepare(sql).expect("a statement");
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let rows = rows.expect("read the audit");
    rows.collect::<Result<_, _>>().expect("rows of the audit")
}

fn line(action: &str, tenant: &str, user: &str, role: Option<&str>) -> Line {
    let role = role.map(str::to_owned);
    (format!("member.{action}"), tenant.into(), user.into(), role)
}

/// The places as the API tells them: tenant and role.
async fn places(browser: &Browser) -> Vec<(String, String)> {
    let me = browser.me().await;
    let tenants = me["tenants"].as_array().expect("a list").iter();
    let mut places: Vec<_> = tenants
        .map(|of| (text(&of["name"]), text(&of["role"])))
        .collect();
    places.sort();
    places
}

fn place(tenant: &str, role: &str) -> (String, String) {
    (tenant.to_owned(), role.to_owned())
}

fn script(subject: &str, tenants: &[&str]) -> Script {
    Script::claims(json!({"sub": subject, "edgecloud_tenants": tenants}))
}

async fn with_claim() -> (Provider, TestCloud) {
    let registration = Registration::Public;
    Provider::with_cloud(Topology::All, registration, |it| {
        it.setting(CLAIM.0, CLAIM.1)
    })
    .await
}

/// Has the provider asked again and waits for what came of it.
async fn refresh(cloud: &TestCloud, browser: &Browser) {
    make_refresh_due(cloud);
    eventually("the login is refreshed", async || {
        // A lone process may notice what is changed beside it a moment later.
        browser.me().await;
        (!refresh_is_due(cloud)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn au_01_places_that_a_claim_gives_changes_and_takes_are_in_the_audit() {
    let (provider, cloud) = with_claim().await;
    let say = async |tenants: &str| {
        let what = format!("tenants?are={tenants}");
        provider.control(Method::POST, &what).await
    };
    say("acme:admin,lab").await;
    let alice = Browser::new(&cloud);
    provider.sign_in(&alice, "alice").await;
    let id = alice.user_id().await;
    let mut expected = vec![
        line("added", "acme", &id, Some("admin")),
        line("added", "lab", &id, Some("viewer")),
    ];
    assert_eq!(written(&cloud), expected);

    say("acme:owner,yard:operator").await;
    refresh(&cloud, &alice).await;
    expected.extend([
        line("role_changed", "acme", &id, Some("owner")),
        line("added", "yard", &id, Some("operator")),
        line("removed", "lab", &id, None),
    ]);
    assert_eq!(written(&cloud), expected);
    let now = [place("acme", "owner"), place("yard", "operator")];
    assert_eq!(places(&alice).await, now);

    // What is as it was is not written again, at a refresh or a sign-in.
    refresh(&cloud, &alice).await;
    provider.sign_in(&Browser::new(&cloud), "alice").await;
    assert_eq!(written(&cloud), expected);

    let me = alice.me().await;
    let tenants = me["tenants"].as_array().expect("a list");
    let acme = tenants.iter().find(|of| of["name"] == "acme");
    alice.enter_tenant(&text(&acme.expect("acme")["id"])).await;
    let listed = alice.get("/api/audit?action=member").send().await;
    let listed: Vec<Value> = listed.expect(200).items();
    assert_eq!(listed.len(), 2, "those of this tenant: {listed:?}");
    for row in &listed {
        assert_eq!(row["actor"]["kind"], "provider", "{row}");
        assert_eq!(row["target"], *id, "{row}");
    }
    assert_eq!(listed[0]["action"], "member.role_changed");
    assert_eq!(listed[0]["remote_addr"], Value::Null, "a refresh");
    assert_eq!(listed[1]["action"], "member.added");
    assert_eq!(listed[1]["remote_addr"], "127.0.0.1", "a sign-in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn au_01_a_place_that_cannot_be_written_down_is_neither_given_nor_taken() {
    let scene = Scene::with(&[CLAIM]).await;
    let alice = scene.sign_in(script("alice", &["acme:admin", "lab"])).await;
    let before = [place("acme", "admin"), place("lab", "viewer")];
    let then = script("alice", &["acme:owner", "yard"]);
    for action in ["member.added", "member.role_changed", "member.removed"] {
        let fault = format!(
            "CREATE TRIGGER fault BEFORE INSERT ON audit WHEN NEW.action = '{action}'
             BEGIN SELECT RAISE(ABORT, 'canary'); END"
        );
        let made = scene.cloud.database().execute_batch(&fault);
        made.expect("install the fault");
        let again = Browser::new(&scene.cloud);
        let page = scene.attempt(&again, then.clone()).await.expect(503);
        assert!(!page.text().contains("canary"), "{}", page.text());
        assert_eq!(places(&alice).await, before, "{action}");
        let heal = scene.cloud.database().execute_batch("DROP TRIGGER fault");
        heal.expect("remove the fault");
    }
    scene.sign_in(then).await;
    let after = [place("acme", "owner"), place("yard", "viewer")];
    assert_eq!(places(&alice).await, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_whose_claim_names_no_tenant_takes_the_places_that_there_were() {
    let scene = Scene::with(&[CLAIM]).await;
    let alice = scene.sign_in(script("alice", &["acme:admin"])).await;
    let id = alice.user_id().await;
    let again = Browser::new(&scene.cloud);
    let refused = scene.attempt(&again, script("alice", &[])).await;
    assert!(refused.expect(403).text().contains("No access"));
    assert!(!alice.is_signed_in().await, "the other browser is out, too");
    let removed = line("removed", "acme", &id, None);
    assert_eq!(written(&scene.cloud).last(), Some(&removed));

    // A stranger leaves nothing behind.
    let stranger = Browser::new(&scene.cloud);
    let refused = scene.attempt(&stranger, script("mallory", &[])).await;
    refused.expect(403);
    let people = "SELECT count(*) FROM users";
    let people = scene
        .cloud
        .database()
        .query_row(people, [], |row| row.get(0));
    assert_eq!(people, Ok::<u32, _>(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_whose_claim_names_no_tenant_takes_the_places_and_ends_all_logins() {
    let (provider, cloud) = with_claim().await;
    provider.control(Method::POST, "tenants?are=acme").await;
    let (alice, elsewhere) = (Browser::new(&cloud), Browser::new(&cloud));
    provider.sign_in(&alice, "alice").await;
    provider.sign_in(&elsewhere, "alice").await;
    let id = alice.user_id().await;
    let mut events = elsewhere.get("/api/events").open().await.expect(200);
    provider.control(Method::POST, "tenants?are=").await;
    // Only the one login is asked about; that the other ends follows from the place.
    let login = text(&alice.me().await["login"]["id"]);
    let due = "UPDATE logins SET refresh_at = 1 WHERE id = ?1";
    let changed = cloud.database().execute(due, [login]);
    assert_eq!(changed, Ok(1));
    eventually("the login is refreshed and ends", async || {
        (!alice.is_signed_in().await).then_some(())
    })
    .await;
    within("the stream ends", events.read_until("event: bye")).await;
    assert!(!elsewhere.is_signed_in().await);
    let removed = line("removed", "acme", &id, None);
    assert_eq!(written(&cloud).last(), Some(&removed));
    let ended = "SELECT count(*) FROM audit WHERE action = 'login.ended_by_provider'";
    let ended = cloud.database().query_row(ended, [], |row| row.get(0));
    assert_eq!(ended, Ok::<u32, _>(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_lowers_a_role_by_invitation_cuts_what_was_open() {
    let scene = Scene::with(&[CLAIM]).await;
    let owner = scene.sign_in(script("olga", &["acme:owner"])).await;
    let alice = scene.sign_in(script("alice", &["lab"])).await;
    let (_, token) = owner.invite("admin").await;
    alice.accept(&token).await.expect(200);
    alice.enter_tenant(&owner.tenant_id().await).await;
    let mut events = alice.get("/api/events").open().await.expect(200);
    scene
        .sign_in(script("alice", &["lab", "acme:viewer"]))
        .await;
    within("the stream ends", events.read_until("event: bye")).await;
    let id = alice.user_id().await;
    let lowered = line("role_changed", "acme", &id, Some("viewer"));
    assert_eq!(written(&scene.cloud).last(), Some(&lowered));
}
