//! The main job, in this process: real sockets and files, threads for servers.

use cluster_client::{ClusterClient, Consistency};
use cluster_server::ServerCluster;
use voter_mesh::machine::kv::{Kv, KvCommand, KvValue};

async fn one_command(voters: u16) {
    let directory = tempfile::tempdir().unwrap();
    let mut builder = ServerCluster::builder().voters(voters).data_dir(directory.path());
    for _ in 0..voters {
        builder = builder.listen("127.0.0.1:0");
    }
    let cluster = builder.start().await.unwrap();
    cluster.leader().await.unwrap();
    for url in cluster.urls() {
        let client = ClusterClient::builder().endpoints([url.as_str()]).state(Kv::default()).connect().await.unwrap();
        let key = url.clone().into_bytes();
        let _: KvValue;
        client.propose(&KvCommand::Put { key: key.clone().into(), value: b"v".to_vec().into() }).await.unwrap();
        let found = client.read(Consistency::Linearizable, |kv| kv.get(&key).is_some()).await.unwrap();
        assert!(found);
        client.close().await;
    }
    cluster.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn one_voter_commits_and_serves_a_linearizable_read() {
    one_command(1).await;
}

#[tokio::test]
async fn three_voters_commit_what_is_proposed_at_any_relay() {
    one_command(3).await;
}
