//! How proposals fare while a large state is snapshotted, three voters and their client in one process: `cargo run --release -p tests
//! --example while_snapshotting`. A `kv` of 256 MiB (1 KiB values); closed loop; latencies before, and while a snapshot is written.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use cluster_client::{ClusterClient, Thin};
use cluster_server::ServerCluster;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use voter_mesh::machine::kv::{self, KvCommand};
use voter_mesh::machine::to_cbor;
use voter_mesh::replica::ReplicaLimits;

const KEYS: u64 = 256 << 10;
const VALUE_BYTES: usize = 1 << 10;
const OUTSTANDING: usize = 64;
/// Entries between the end of the filling and the snapshot: the time in which it is measured without one.
const BEFORE: u64 = 40_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether any of the voters below `root` writes a snapshot.
fn writes(root: &Path) -> bool {
    let in_directory = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    in_directory(root).any(|voter| {
        in_directory(&voter.path().join("snapshots"))
            .any(|file| file.path().extension().is_some_and(|extension| extension == "tmp"))
    })
}

fn report(what: &str, latencies: &mut [Duration]) {
    latencies.sort_unstable();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or_default();
    println!("{what}: {} proposals, p50 {:?}, p99 {:?}, p99.9 {:?}", latencies.len(), at(0.5), at(0.99), at(0.999));
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let directory = tempfile::tempdir().unwrap();
    let limits = ReplicaLimits { snapshot_entries: KEYS + BEFORE, snapshot_log_bytes: 0, ..ReplicaLimits::default() };
    let builder = ServerCluster::builder().voters(3).data_dir(directory.path()).machine(kv::factory()).replica_limits(limits);
    let cluster = builder.listen("127.0.0.1:0").start().await.unwrap();
    cluster.leader().await.unwrap();
    let client: ClusterClient<Thin> = ClusterClient::builder().endpoints(cluster.urls()).thin().connect().await.unwrap();
    let propose = async |key: u64| {
        let value = key.to_le_bytes().repeat(VALUE_BYTES / 8);
        let command = to_cbor(&KvCommand::Put { key: format!("key {:08}", key % KEYS).into_bytes(), value }).unwrap();
        let begun = Instant::now();
        client.propose(&command).await.unwrap();
        (begun, begun.elapsed())
    };
    let (mut waiting, mut next) = (FuturesUnordered::new(), 0);
    let (mut before, mut during) = (Vec::new(), Vec::new());
    let (mut wrote, mut writing, mut looked) = (None::<Instant>, false, Instant::now());
    let begun = Instant::now();
    loop {
        while waiting.len() < OUTSTANDING {
            waiting.push(propose(next));
            next += 1;
        }
        let Some((_, took)) = waiting.next().await else { break };
        if next < KEYS + 2 * OUTSTANDING as u64 {
            continue;
        }
        if looked.elapsed() > Duration::from_millis(20) {
            (writing, looked) = (writes(directory.path()), Instant::now());
            wrote = wrote.or(writing.then_some(looked));
        }
        match (wrote, writing) {
            (None, _) => before.push(took),
            (Some(_), true) => during.push(took),
            (Some(since), false) => {
                println!("all three snapshots written in {:?}", since.elapsed());
                break;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "no snapshot came");
    }
    report("before", &mut before);
    report("during", &mut during);
}
