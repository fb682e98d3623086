//! Servers that are killed while snapshots are taken, sent and installed.

use std::time::Duration;

use super::fleet::{Fleet, FleetOptions, Load};

#[tokio::test]
async fn followers_and_leaders_killed_while_a_snapshot_travels_lose_nothing_and_end_alike() {
    let arguments = ["--snapshot-entries", "200", "--segment-bytes", "65536", "--log-retain-bytes", "0"];
    let arguments = arguments.iter().map(ToString::to_string).collect();
    let mut fleet = Fleet::start_with(FleetOptions { arguments, ..FleetOptions::default() }).await;
    let load = Load::start(&fleet, 6).await;
    let leader = fleet.leader().await;
    let behind = leader % 3 + 1;
    fleet.kill(behind).await;
    load.more(3_000).await;
    // It is sent a snapshot each time, and dies a little later each time.
    for round in 0..6 {
        fleet.launch(behind).await;
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        fleet.kill(behind).await;
        load.more(300).await;
    }
    fleet.launch(behind).await;
    // And whoever sends it dies too.
    let leader = fleet.leader().await;
    fleet.kill(leader).await;
    load.more(200).await;
    fleet.launch(leader).await;
    load.more(200).await;
    let acks = load.finish().await;
    let status = fleet.identical().await;
    assert!(status.applied.0 >= acks.len() as u64, "{} acknowledged, {} applied", acks.len(), status.applied);
    // It was a snapshot that came, at work or (killed between its last byte and the log's restart) at the next start.
    assert!(std::fs::read_to_string(fleet.log(behind)).unwrap().contains("receiving a snapshot"));
}
