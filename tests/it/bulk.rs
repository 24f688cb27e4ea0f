//! Bodies far larger than any buffer: they arrive intact, and no process holds more than a little of
//! them at a time.

use futures_util::stream;
use http::Method;
use serde_json::json;

use crate::support::{Browser, Device, Origin, Pattern, TestCloud, on_both_topologies};

on_both_topologies![fw_16_two_gigabytes_pass_each_way_in_flat_memory];

const BYTES: u64 = 2_000_000_000;
/// Enough to fill every buffer and pool on the way once.
const WARM_UP: u64 = 200_000_000;
/// How much more memory than before a process may have had in use, in bytes.
const MAX_GROWTH: u64 = 64 << 20;

async fn fw_16_two_gigabytes_pass_each_way_in_flat_memory(cloud: TestCloud) {
    let alice = Browser::sign_in(&cloud, "alice").await;
    let origin = Origin::spawn().await;
    let mut device = Device::pair(&cloud, &alice, origin.addr()).await;
    download(&alice, &device.id, WARM_UP).await;
    upload(&alice, &device.id, WARM_UP).await;
    let before = peaks(&cloud, &mut device);
    download(&alice, &device.id, BYTES).await;
    upload(&alice, &device.id, BYTES).await;
    let after = peaks(&cloud, &mut device);
    for (before, after) in before.iter().zip(&after) {
        // The kernel sums up counters of its processors: a peak may be read a little too high.
        let grown = after.saturating_sub(*before);
        assert!(grown < MAX_GROWTH, "from {before} to {after} bytes");
    }
}

/// The most memory that each process ever had in use, in bytes.
fn peaks(cloud: &TestCloud, device: &mut Device) -> Vec<u64> {
    let agent = device.process().peak_memory();
    let processes = cloud.processes();
    processes
        .map(crate::support::Process::peak_memory)
        .chain([agent])
        .collect()
}

async fn download(person: &Browser, device: &str, bytes: u64) {
    let target = format!("/do/download?bytes={bytes}");
    let request = person.forward(device, Method::GET, &target);
    let mut answer = request.open().await.expect(200);
    let mut pattern = Pattern::default();
    while let Some(piece) = answer.next().await {
        let piece = piece.expect("the body is not cut off");
        assert!(
            pattern.accepts(&piece),
            "wrong before {}",
            pattern.position()
        );
    }
    assert_eq!(pattern.position(), bytes);
}

async fn upload(person: &Browser, device: &str, bytes: u64) {
    let body = stream::unfold(Pattern::default(), move |mut pattern| async move {
        let left = bytes - pattern.position();
        (left > 0).then(|| (pattern.next(left), pattern))
    });
    let request = person.forward(device, Method::POST, "/do/upload");
    let answer = request.stream(body).send_long().await.expect(200);
    let whole = json!({"bytes": bytes, "intact": true, "complete": true});
    assert_eq!(answer.json(), whole);
}
