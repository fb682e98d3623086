//! With and without a quorum: what goes on, what waits, and what is truly said of it; and servers that come and go in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster_client::{ClusterClient, Consistency, NotSent, ProposeError, ReadError, Unresolved};
use cluster_server::{Phase, ServerCluster};
use voter_mesh::ids::Seat;
use voter_mesh::machine::MachineFactory;
use voter_mesh::mesh::message::AdminRequest;

use crate::harness::eventually;
use crate::here::{
    administer, client_of, followers, identical, leader, live, lone_voter, mesh_addresses, shutdown, started, url, voters,
};
use crate::tally::Tally;

fn tallies(count: u16, directory: &Path) -> cluster_server::ServerClusterBuilder {
    voters(count, directory).machine(MachineFactory::of(Tally::default))
}

async fn client(urls: &[String]) -> ClusterClient<Tally> {
    client_of(urls).state(Tally::default()).connect().await.unwrap()
}

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn without_a_quorum_proposals_end_truly_and_resolve_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(tallies(3, directory.path())).await;
    let (survivor, others) = (leader(&cluster).await, followers(&cluster).await);
    let client = client(&[url(&cluster, survivor)]).await;
    client.propose(&"before".to_owned()).await.unwrap();
    for seat in &others {
        cluster.stop_voter(*seat).await;
    }
    // It reached a server, which may yet commit it.
    let ticket = match client.propose(&"unknown".to_owned()).deadline(SHORT).await {
        Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) => ticket,
        other => panic!("{other:?}"),
    };
    assert_eq!(client.read(Consistency::Local, Tally::total).await, Ok(1));
    assert_eq!(client.read(Consistency::Session, Tally::total).await, Ok(1));
    let impatient = client.with_deadline(SHORT);
    assert_eq!(impatient.read(Consistency::Linearizable, Tally::total).await, Err(ReadError::Deadline));
    // Nobody is there to send this one to.
    cluster.stop_voter(survivor).await;
    eventually("the link lost", || async {
        (!matches!(*client.status().borrow(), cluster_client::Status::Live { .. })).then_some(())
    })
    .await;
    let late = Err(ProposeError::NotSent { reason: NotSent::Deadline });
    assert_eq!(client.propose(&"not sent".to_owned()).deadline(SHORT).await, late);
    assert_eq!(client.read(Consistency::Local, Tally::total).await, Ok(1));

    cluster.start_voter(survivor).await.unwrap();
    cluster.start_voter(others[0]).await.unwrap();
    assert_eq!(client.outcome(&ticket).await.unwrap().reply, 1);
    client.propose(&"after".to_owned()).await.unwrap();
    let seen = client.read(Consistency::Linearizable, |tally| ["unknown", "not sent", "after"].map(|command| tally.of(command)));
    assert_eq!(seen.await.unwrap(), [1, 0, 1]);
    cluster.start_voter(others[1]).await.unwrap();
    identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn five_voters_work_without_two_and_wait_without_three() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(tallies(5, directory.path())).await;
    let (first, others) = (leader(&cluster).await, followers(&cluster).await);
    let client = client(&cluster.urls()).await;
    client.propose(&"five".to_owned()).await.unwrap();
    // The leader is one of the two.
    cluster.stop_voter(first).await;
    cluster.stop_voter(others[0]).await;
    client.propose(&"three".to_owned()).await.unwrap();
    live(&client).await;
    let third = followers(&cluster).await[0];
    cluster.stop_voter(third).await;
    let waiting = tokio::spawn(client.propose(&"two".to_owned()).into_future());
    let impatient = client.with_deadline(SHORT);
    assert_eq!(impatient.read(Consistency::Linearizable, Tally::total).await, Err(ReadError::Deadline));
    assert!(!waiting.is_finished());
    cluster.start_voter(first).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().reply, 1);
    for seat in [others[0], third] {
        cluster.start_voter(seat).await.unwrap();
    }
    let once = client.read(Consistency::Linearizable, |tally| ["five", "three", "two"].map(|command| tally.of(command)));
    assert_eq!(once.await.unwrap(), [1, 1, 1]);
    identical(&cluster).await;
    shutdown(cluster).await;
}

async fn one_of(seat: u16, peers: &BTreeMap<Seat, String>, directory: &Path) -> ServerCluster {
    lone_voter(seat, peers.clone(), directory).machine(MachineFactory::of(Tally::default)).start().await.unwrap()
}

#[tokio::test]
async fn a_voter_is_added_and_the_leader_removed_under_load_and_no_proposal_fails() {
    let directory = tempfile::tempdir().unwrap();
    let addresses = mesh_addresses(4);
    let forming: BTreeMap<_, _> = addresses.iter().take(3).map(|(seat, address)| (*seat, address.clone())).collect();
    let mut servers = BTreeMap::new();
    for seat in 1..=3 {
        servers.insert(Seat(seat), one_of(seat, &forming, directory.path()).await);
    }
    let urls: Vec<_> = servers.values().flat_map(ServerCluster::urls).collect();
    let (stop, proposed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = Vec::new();
    for number in 0..3 {
        let (mut urls, stop, proposed) = (urls.clone(), Arc::clone(&stop), Arc::clone(&proposed));
        urls.rotate_left(number);
        let client = client(&urls).await;
        load.push(tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let applied = client.propose(&format!("{number} {count}")).await.unwrap();
                assert_eq!(applied.reply, 1);
                count += 1;
                proposed.fetch_add(1, Ordering::Relaxed);
            }
            (client, count)
        }));
    }
    let more = |what: &'static str| {
        let (proposed, target) = (&proposed, proposed.load(Ordering::Relaxed) + 50);
        eventually(what, move || async move { (proposed.load(Ordering::Relaxed) > target).then_some(()) })
    };
    more("load before").await;

    let (fourth, anyone) = (Seat(4), &servers[&Seat(1)]);
    let address = addresses[&fourth].clone();
    let add = AdminRequest::AddSeat { seat: fourth, address, priority: 0, failure_domain: String::new() };
    administer(anyone, add).await;
    let newcomer = one_of(4, &addresses, directory.path()).await;
    eventually("a standby that follows", || async {
        let status = newcomer.status(fourth).await.unwrap();
        (status.phase == Phase::Following && status.configuration.seats[&fourth].member.is_some()).then_some(())
    })
    .await;
    more("load with a standby").await;
    administer(anyone, AdminRequest::Promote { seat: fourth }).await;
    eventually("four voters", || async {
        (newcomer.status(fourth).await.unwrap().configuration.voters().len() == 4).then_some(())
    })
    .await;
    servers.insert(fourth, newcomer);
    let old = servers[&Seat(1)].leader().await.unwrap().seat();
    administer(&servers[&old], AdminRequest::RemoveSeat { seat: old }).await;
    let survivors: Vec<Seat> = servers.keys().copied().filter(|seat| *seat != old).collect();
    for seat in &survivors {
        eventually("the old leader removed", || async {
            let status = servers[seat].status(*seat).await.unwrap();
            let led = status.leader.is_some_and(|leader| leader.seat() != old);
            (led && !status.configuration.seats.contains_key(&old) && status.configuration.outgoing.is_empty()).then_some(())
        })
        .await;
    }
    more("load without the old leader").await;
    servers.remove(&old).unwrap().shutdown(Duration::from_secs(10)).await.unwrap();
    more("load without the old leader's server").await;
    stop.store(true, Ordering::Relaxed);
    for (number, load) in load.into_iter().enumerate() {
        let (client, count) = load.await.expect("no proposal fails");
        let once = client.read(Consistency::Linearizable, |tally| {
            (0..count).all(|command| tally.of(&format!("{number} {command}")) == 1) && tally.of(&format!("{number} {count}")) == 0
        });
        assert!(once.await.unwrap());
    }
    eventually("the same state everywhere", || async {
        let mut hashes = Vec::new();
        for seat in &survivors {
            let status = servers[seat].status_with_hashes(*seat).await.unwrap();
            hashes.push((status.applied, status.state_hash.unwrap(), status.sessions_hash.unwrap()));
        }
        hashes.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
    for (_, server) in servers {
        shutdown(server).await;
    }
}
