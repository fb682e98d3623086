//! Reads: linearizable ones see what was acknowledged anywhere; no client ever goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster_client::{ClusterClient, Consistency, LinkError, Status};
use cluster_server::ServerCluster;
use futures_util::future::join_all;
use relay::wire::Code;
use voter_mesh::machine::MachineFactory;
use voter_mesh::mesh::message::AdminRequest;

use crate::harness::PATIENCE;
use crate::here::{administer, client_of, followers, leader, live, shutdown, started, url, urls_from, voters};
use crate::tally::Tally;

async fn three() -> (tempfile::TempDir, ServerCluster) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    (directory, cluster)
}

async fn client(urls: &[String]) -> ClusterClient<Tally> {
    client_of(urls).state(Tally::default()).connect().await.unwrap()
}

/// Reads at every server at once, and proves that each sees this many.
async fn all_see(readers: &[ClusterClient<Tally>], at_least: u64) {
    let seen = join_all(readers.iter().map(|reader| reader.read(Consistency::Linearizable, Tally::total))).await;
    for seen in seen {
        let seen = seen.unwrap();
        assert!(seen >= at_least, "saw {seen} of {at_least}");
    }
}

#[tokio::test]
async fn a_linearizable_read_anywhere_sees_what_was_acknowledged_elsewhere() {
    let (_directory, cluster) = three().await;
    let mut clients = Vec::new();
    for seat in cluster.seats() {
        clients.push(client(&urls_from(&cluster, seat)).await);
    }
    for number in 0..60 {
        clients[number % 3].propose(&"write".to_owned()).await.unwrap();
        all_see(&clients, number as u64 + 1).await;
    }
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_linearizable_read_sees_what_was_acknowledged_across_leader_changes() {
    let (_directory, mut cluster) = three().await;
    let mut clients = Vec::new();
    for seat in cluster.seats() {
        clients.push(client(&urls_from(&cluster, seat)).await);
    }
    let mut written = 0;
    for _ in 0..3 {
        for _ in 0..5 {
            clients[0].propose(&"write".to_owned()).await.unwrap();
            written += 1;
        }
        // Handed over: reads under way meet the old leader, the new one, or neither.
        let seat = followers(&cluster).await[0];
        let ((), ()) = tokio::join!(administer(&cluster, AdminRequest::Transfer { seat }), all_see(&clients, written));
        all_see(&clients, written).await;
        clients[1].propose(&"write".to_owned()).await.unwrap();
        written += 1;
        // Killed: the next one has to be elected.
        let old = leader(&cluster).await;
        cluster.stop_voter(old).await;
        all_see(&clients, written).await;
        cluster.start_voter(old).await.unwrap();
    }
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_session_read_sees_the_own_writes_and_a_local_one_never_goes_back() {
    let (_directory, mut cluster) = three().await;
    let client = client(&cluster.urls()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        async move {
            let mut highest = 0;
            while !stop.load(Ordering::Relaxed) {
                let now = client.read(Consistency::Local, Tally::total).await.unwrap();
                assert!(now >= highest, "back from {highest} to {now}");
                highest = now;
                tokio::task::yield_now().await;
            }
            highest
        }
    });
    for number in 1..=30 {
        client.propose(&"write".to_owned()).await.unwrap();
        assert!(client.read(Consistency::Session, Tally::total).await.unwrap() >= number);
        if number % 10 == 0 {
            let entry = crate::here::entry_server(&client);
            if let Some(seat) = entry {
                cluster.stop_voter(seat).await;
                live(&client).await;
                cluster.start_voter(seat).await.unwrap();
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(watch.await.unwrap(), 30);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_client_that_meets_a_lagging_server_waits_rather_than_go_back() {
    let (_directory, mut cluster) = three().await;
    let lagging = followers(&cluster).await[0];
    let others: Vec<_> = cluster.seats().into_iter().filter(|seat| *seat != lagging).collect();
    let client = client(&[url(&cluster, others[0]), url(&cluster, lagging)]).await;
    cluster.stop_voter(lagging).await;
    for _ in 0..50 {
        client.propose(&"write".to_owned()).await.unwrap();
    }
    for seat in &others {
        cluster.stop_voter(*seat).await;
    }
    cluster.start_voter(lagging).await.unwrap();
    let mut status = client.status();
    let behind = status.wait_for(|status| {
        matches!(
            status,
            Status::FailingOver { last_error: Some(LinkError::Refused(Code::Behind) | LinkError::Closed(Code::Behind)), .. }
        )
    });
    drop(tokio::time::timeout(PATIENCE, behind).await.expect("told that it is behind").unwrap());
    assert_eq!(client.read(Consistency::Local, Tally::total).await.unwrap(), 50);
    for seat in &others {
        cluster.start_voter(*seat).await.unwrap();
    }
    client.propose(&"write".to_owned()).await.unwrap();
    assert_eq!(client.read(Consistency::Linearizable, Tally::total).await.unwrap(), 51);
    shutdown(cluster).await;
}
