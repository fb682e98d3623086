//! Snapshots that servers hold against each other's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster_server::cluster::voter_dir;
use cluster_server::{ServerCluster, ServerLimits};
use voter_mesh::ids::{LogIndex, Seat, SessionId, Term, TimeMs};
use voter_mesh::machine::kv::{self, Kv, KvCommand};
use voter_mesh::machine::{MachineFactory, Position, StateMachine};
use voter_mesh::replica::ReplicaLimits;

use crate::harness::eventually;
use crate::here::{client_of, counter, shutdown, started, voters};
use crate::tally::Tally;

async fn sum(cluster: &ServerCluster, name: &str) -> u64 {
    let mut sum = 0;
    for seat in cluster.seats() {
        sum += counter(cluster, seat, name).await;
    }
    sum
}

/// Three servers, of which `odd` may start from another state, through three due snapshots; how many comparisons were equal, and not.
async fn compared(odd: bool) -> (u64, u64) {
    let directory = tempfile::tempdir().unwrap();
    let odd = Arc::new(AtomicBool::new(odd));
    let machine = MachineFactory::of(move || {
        let mut tally = Tally::default();
        // The first server that asks gets it.
        if odd.swap(false, Ordering::Relaxed) {
            let at = Position { index: LogIndex(1), term: Term(1), time: TimeMs(0), session: SessionId(1) };
            tally.apply("a bit that flipped".into(), &at);
        }
        tally
    });
    let limits = ReplicaLimits { snapshot_entries: 20, ..ReplicaLimits::default() };
    let cluster = started(voters(3, directory.path()).machine(machine).replica_limits(limits)).await;
    let client = client_of(&cluster.urls()).thin().connect().await.unwrap();
    for number in 0..70 {
        client.propose(&voter_mesh::machine::to_cbor(&number.to_string()).unwrap()).await.unwrap();
    }
    // Each of three servers is told by two others, three times; a message may be lost while links are young.
    let counts = eventually("comparisons", || async {
        let counts = (sum(&cluster, "state_hashes_equal").await, sum(&cluster, "state_hashes_differ").await);
        (counts.0 + counts.1 >= 12).then_some(counts)
    })
    .await;
    client.close().await;
    shutdown(cluster).await;
    counts
}

#[tokio::test]
async fn servers_hold_their_snapshots_against_each_others_and_shout_when_one_holds_another_state() {
    assert_eq!(compared(false).await.1, 0);
    let (equal, differ) = compared(true).await;
    assert!(differ > equal && equal > 0, "{equal} equal, {differ} not: two of three servers agree");
}

#[tokio::test]
async fn a_server_that_writes_a_large_snapshot_at_a_slow_pace_ends_when_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    // At this pace it would take minutes.
    let limits = ServerLimits { snapshot_cpu_percent: 1, ..ServerLimits::default() };
    let replica = ReplicaLimits { snapshot_entries: 64, ..ReplicaLimits::default() };
    let builder = voters(1, directory.path()).machine(kv::factory()).limits(limits).replica_limits(replica);
    let cluster = started(builder).await;
    let client = client_of(&cluster.urls()).state(Kv::default()).connect().await.unwrap();
    for key in 0..64_u8 {
        client.propose(&KvCommand::Put { key: vec![key], value: vec![key; 512 << 10] }).await.unwrap();
    }
    client.close().await;
    let writes = || async {
        let files = std::fs::read_dir(voter_dir(directory.path(), Seat(1)).join("snapshots")).unwrap();
        files.map(|file| file.unwrap().path()).any(|path| path.extension().is_some_and(|ending| ending == "tmp")).then_some(())
    };
    eventually("a snapshot is being written", writes).await;
    shutdown(cluster).await;
}
