//! One tenant's load does not take another's share.

use http::Method;

use crate::support::{
    Browser, Device, Origin, TestCloud, Topology, eventually, on_both_topologies,
};

on_both_topologies![tn_09_a_tenant_at_its_limit_is_told_so_and_another_is_served];

async fn tn_09_a_tenant_at_its_limit_is_told_so_and_another_is_served(topology: Topology) {
    let cloud = TestCloud::builder(topology)
        .setting("EDGECLOUD__LIMITS__OPEN_REQUESTS_PER_TENANT", 3)
        .spawn()
        .await;
    let origin = Origin::spawn().await;
    let (alice, bob) = (
        Browser::sign_in(&cloud, "alice").await,
        Browser::sign_in(&cloud, "bob").await,
    );
    let hers = Device::pair(&cloud, &alice, origin.addr()).await;
    let his = Device::pair(&cloud, &bob, origin.addr()).await;
    let mut open = Vec::new();
    for name in ["one", "two"] {
        let body = origin.drive(name);
        let target = format!("/do/driven?name={name}&type=text/plain");
        let answer = alice.forward(&hers.id, Method::GET, &target).open().await;
        open.push((body, answer.expect(200)));
    }
    let events = alice.get("/api/events").open().await.expect(200);
    let more = || alice.forward(&hers.id, Method::GET, "/hello").send();
    let refused = more().await.expect_problem(429, "tenant_busy");
    assert_eq!(refused.header("retry-after"), "1");
    let another = alice.get("/api/events").send().await;
    another.expect_problem(429, "tenant_busy");
    alice.devices().await;
    let his = bob.forward(&his.id, Method::GET, "/hello").send().await;
    his.expect_success();
    drop(events);
    eventually("what has ended counts no more", async || {
        (more().await.status != 429).then_some(())
    })
    .await;
}
