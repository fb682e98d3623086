//! Stories of real server processes, killed, frozen, wiped and started again.

mod fleet;

use fleet::{Fleet, Load, exactly_once};

#[tokio::test]
async fn what_is_proposed_at_any_server_arrives_on_all_and_byte_identical() {
    let fleet = Fleet::start("log").await;
    let mut told = Vec::new();
    for seat in 1..=3 {
        let client = fleet.thin(seat).await;
        let payload = format!("from server {seat}: \u{0}\u{7f}ß");
        told.push((client.propose(&payload.clone().into()).await.unwrap().index, payload));
        client.close().await;
    }
    fleet.identical().await;
    assert_eq!(fleet.history().await, told);
}

#[tokio::test]
async fn all_servers_are_killed_under_load_and_nothing_acknowledged_is_lost_or_doubled() {
    let mut fleet = Fleet::start("log").await;
    let load = Load::start(&fleet, 6).await;
    load.more(300).await;
    for seat in 1..=3 {
        fleet.kill(seat).await;
    }
    for seat in [3, 1, 2] {
        fleet.launch(seat).await;
    }
    load.more(300).await;
    let acks = load.finish().await;
    exactly_once(&acks, &fleet.history().await);
    fleet.identical().await;
}
