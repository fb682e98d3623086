//! How long a new client takes to have what a cluster holds, in one process with its server: `cargo run --release -p tests --example
//! catch_up`. A `kv` of 100,000 keys is sent as a snapshot's state; 100,000 entries, once from the ring and once from the log.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use cluster_client::{ClusterClient, Raw};
use cluster_server::{ServerCluster, ServerLimits};
use futures_util::StreamExt;
use futures_util::future::join_all;
use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::{self, Kv, KvCommand};
use voter_mesh::machine::{MachineFactory, log, to_cbor};
use voter_mesh::replica::ReplicaLimits;

const COUNT: usize = 100_000;
const ROUNDS: usize = 7;

async fn started(machine: MachineFactory, limits: ServerLimits, replica: ReplicaLimits) -> (ServerCluster, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let builder = ServerCluster::builder().voters(1).data_dir(directory.path()).machine(machine);
    let cluster = builder.limits(limits).replica_limits(replica).listen("127.0.0.1:0").start().await.unwrap();
    cluster.leader().await.unwrap();
    (cluster, directory)
}

async fn filled(cluster: &ServerCluster, command: impl Fn(usize) -> bytes::Bytes) -> LogIndex {
    let client: ClusterClient<Raw> = ClusterClient::builder().endpoints(cluster.urls()).raw().connect().await.unwrap();
    let (numbers, mut last) = ((0..COUNT).collect::<Vec<_>>(), LogIndex::ZERO);
    for batch in numbers.chunks(250) {
        let commands: Vec<_> = batch.iter().map(|number| command(*number)).collect();
        for done in join_all(commands.iter().map(|command| client.propose(command).into_future())).await {
            last = last.max(done.unwrap().index);
        }
    }
    client.close().await;
    last
}

fn report(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    println!("{what}: median {:?}, worst of {ROUNDS} {:?}", took[ROUNDS / 2], took[ROUNDS - 1]);
}

/// From the dial until a learner without state has applied `last`.
async fn followed(cluster: &ServerCluster, last: LogIndex) -> Duration {
    let begun = Instant::now();
    let client: ClusterClient<Raw> = ClusterClient::builder().endpoints(cluster.urls()).raw().connect().await.unwrap();
    let mut stream = client.committed_from(LogIndex::FIRST);
    let mut count = 0;
    while stream.next().await.unwrap().unwrap().index < last {
        count += 1;
    }
    assert_eq!(count + 1, COUNT);
    let took = begun.elapsed();
    client.close().await;
    took
}

#[tokio::main]
async fn main() {
    let put = |number: usize| {
        let (key, value) = (format!("key {number:08}").into_bytes(), vec![number as u8; 64]);
        to_cbor(&KvCommand::Put { key, value }).unwrap()
    };
    // The ring holds nothing of it, and the last snapshot all of it.
    let limits = ServerLimits { ring_bytes_max: 64 << 10, ..ServerLimits::default() };
    let replica = ReplicaLimits { snapshot_entries: COUNT as u64 / 2, ..ReplicaLimits::default() };
    let (cluster, _directory) = started(kv::factory(), limits, replica).await;
    filled(&cluster, put).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let client = ClusterClient::builder().endpoints(cluster.urls()).state(Kv::default()).connect().await.unwrap();
        took.push(begun.elapsed());
        let keys = client.read(cluster_client::Consistency::Linearizable, Kv::len).await.unwrap();
        assert_eq!(keys, COUNT);
        client.close().await;
    }
    println!("first {:?}", took[0]);
    report("a state of 100,000 keys of 64 B", took);

    for (what, ring_bytes_max) in [("ring", 64 << 20), ("log", 64 << 10)] {
        let limits = ServerLimits { ring_bytes_max, ..ServerLimits::default() };
        let (cluster, _directory) = started(log::factory(), limits, ReplicaLimits::default()).await;
        let last = filled(&cluster, |number| vec![number as u8; 64].into()).await;
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            took.push(followed(&cluster, last).await);
        }
        report(&format!("100,000 entries of 64 B from the {what}"), took);
    }
}
