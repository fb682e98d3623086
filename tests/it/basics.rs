//! The main job, in this process: real sockets and files, threads for servers.

use cluster_client::Consistency;
use voter_mesh::machine::kv::{self, Kv, KvCommand};

use crate::here::{client_of, shutdown, started, voters};

async fn one_command(count: u16) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(count, directory.path()).machine(kv::factory())).await;
    for url in cluster.urls() {
        let key = url.clone().into_bytes();
        let client = client_of(&[url]).state(Kv::default()).connect().await.unwrap();
        client.propose(&KvCommand::Put { key: key.clone(), value: b"v".to_vec() }).await.unwrap();
        assert!(client.read(Consistency::Linearizable, |kv| kv.get(&key).is_some()).await.unwrap());
        client.close().await;
    }
    shutdown(cluster).await;
}

#[tokio::test]
async fn one_voter_commits_and_serves_a_linearizable_read() {
    one_command(1).await;
}

#[tokio::test]
async fn three_voters_commit_what_is_proposed_at_any_relay() {
    one_command(3).await;
}
