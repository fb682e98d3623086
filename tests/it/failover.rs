//! Servers die under their clients' feet: the client goes on elsewhere, and every command applies once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_client::{Applied, ClusterClient, LogIndex, ProposeError, Raw, Ticket};
use cluster_server::ServerCluster;
use tokio::task::JoinHandle;
use voter_mesh::ids::Seat;

use crate::harness::eventually;
use crate::here::{
    client_of, committed_to, counted, counter, counts, entry_server, followers, identical, leader, live, raw, shutdown, started,
    take, url, voters,
};
use crate::proxy::{Flow, Proxy};

type Proposed = JoinHandle<Result<Applied<Bytes>, ProposeError>>;

fn propose(client: &ClusterClient<Raw>, command: &Bytes) -> Proposed {
    tokio::spawn(client.propose(command).into_future())
}

fn propose_as(client: &ClusterClient<Raw>, ticket: &Ticket, command: &Bytes) -> Proposed {
    tokio::spawn(client.propose_as(ticket, command).into_future())
}

async fn client_snapshots(cluster: &ServerCluster) -> u64 {
    let mut snapshots = 0;
    for seat in cluster.seats() {
        snapshots += counter(cluster, seat, "client_snapshots").await;
    }
    snapshots
}

/// A request commits while its reply is held back; then its entry server, or only that one's listener, is lost.
async fn lost_before_the_reply(entry_leads: bool, relay_only: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path())).await;
    let entry = if entry_leads { leader(&cluster).await } else { followers(&cluster).await[0] };
    let elsewhere = cluster.seats().into_iter().find(|seat| *seat != entry).unwrap();
    let proxy = Proxy::before(&url(&cluster, entry)).await;
    let others = cluster.seats().into_iter().filter(|seat| *seat != entry).map(|seat| url(&cluster, seat));
    let client = raw(&[proxy.url(&url(&cluster, entry))].into_iter().chain(others).collect::<Vec<_>>()).await;
    let watcher = raw(&[url(&cluster, elsewhere)]).await;
    let (mut own, mut seen) = (client.committed_from(LogIndex::FIRST), watcher.committed_from(LogIndex::FIRST));
    client.propose(&"before".into()).await.unwrap();
    let ticket = client.reserve().await.unwrap();
    assert_eq!(entry_server(&client), Some(entry));

    proxy.set(Flow::HoldReplies);
    let command = Bytes::from("during");
    let pending = propose_as(&client, &ticket, &command);
    let first = take(&mut seen, 2).await.pop().unwrap();
    assert_eq!(first.payload, command);
    if relay_only {
        assert!(cluster.stop_relay(usize::from(entry.0) - 1).await);
    } else {
        cluster.stop_voter(entry).await;
    }
    let answer = pending.await.unwrap().unwrap();
    assert_eq!((answer.index, answer.term, answer.repeat), (first.index, first.term, true), "not the first outcome");

    live(&client).await;
    assert_ne!(entry_server(&client), Some(entry));
    assert_eq!(client.reserve().await.unwrap().session, ticket.session, "another session");
    let last = client.propose(&"after".into()).await.unwrap().index;
    let payloads: Vec<_> = take(&mut own, 3).await.into_iter().map(|entry| entry.payload).collect();
    assert_eq!(payloads, ["before", "during", "after"]);
    assert_eq!(counts(&client, last, &[command]).await, [1]);
    assert_eq!(client_snapshots(&cluster).await, 0, "the learner went on where it was");
    cluster.start_voter(entry).await.unwrap();
    identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn an_entry_server_is_killed_mid_request_and_the_client_goes_on_elsewhere() {
    lost_before_the_reply(false, false).await;
}

#[tokio::test]
async fn a_relay_listener_is_stopped_mid_request_and_the_client_goes_on_elsewhere() {
    lost_before_the_reply(false, true).await;
}

#[tokio::test]
async fn the_leader_is_killed_after_commit_and_before_the_reply_and_the_retry_gets_the_first_outcome() {
    lost_before_the_reply(true, false).await;
}

/// The leader takes a command that it cannot commit, and is killed. Who comes back first decides whether it survives in a log.
async fn killed_before_commit(old_leader_comes_back: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path())).await;
    let (old, others) = (leader(&cluster).await, followers(&cluster).await);
    let urls = [old, others[0], others[1]].map(|seat| url(&cluster, seat));
    let client = raw(&urls).await;
    client.propose(&"before".into()).await.unwrap();
    for seat in &others {
        cluster.stop_voter(*seat).await;
    }
    let (taken, applied) = (counter(&cluster, old, "proposals").await, cluster.status(old).await.unwrap().applied);
    let command = Bytes::from("during");
    let pending = propose(&client, &command);
    counted(&cluster, old, "proposals", taken + 1).await;
    assert_eq!(cluster.status(old).await.unwrap().applied, applied);
    cluster.stop_voter(old).await;
    cluster.start_voter(others[0]).await.unwrap();
    cluster.start_voter(if old_leader_comes_back { old } else { others[1] }).await.unwrap();

    let index = pending.await.unwrap().unwrap().index;
    let last = client.propose(&"after".into()).await.unwrap().index;
    assert_eq!(counts(&client, last, std::slice::from_ref(&command)).await, [1]);
    let all = committed_to(&client, last).await;
    assert_eq!(all.iter().find(|entry| entry.payload == command).unwrap().index, index);
    for seat in [old, others[1]] {
        cluster.start_voter(seat).await.unwrap();
    }
    identical(&cluster).await;
    assert_eq!(counts(&client, last, &[command]).await, [1]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn the_leader_is_killed_before_commit_and_the_command_commits_once_under_the_next_one() {
    killed_before_commit(false).await;
}

#[tokio::test]
async fn the_leader_is_killed_before_commit_and_comes_back_with_the_command_in_its_log() {
    killed_before_commit(true).await;
}

/// A client with two links, and the proxies between it and the servers, by seat.
async fn twice_linked(cluster: &ServerCluster, entry: Seat) -> (ClusterClient<Raw>, Vec<Proxy>, Seat) {
    let mut proxies = Vec::new();
    for url in cluster.urls() {
        proxies.push(Proxy::before(&url).await);
    }
    let mut urls: Vec<_> = proxies.iter().zip(cluster.urls()).map(|(proxy, url)| proxy.url(&url)).collect();
    urls.rotate_left(usize::from(entry.0) - 1);
    // Both links are dialled at once, and the first one that is let in feeds: let it be this one.
    let entry_only =
        |only: bool| proxies.iter().enumerate().for_each(|(at, proxy)| proxy.let_in(!only || at + 1 == usize::from(entry.0)));
    entry_only(true);
    let client = client_of(&urls).links(2).raw().connect().await.unwrap();
    entry_only(false);
    let standby = eventually("a standby link", || async {
        for seat in cluster.seats().into_iter().filter(|seat| *seat != entry) {
            if counter(cluster, seat, "admitted").await > 0 {
                return Some(seat);
            }
        }
        None
    })
    .await;
    (client, proxies, standby)
}

#[tokio::test]
async fn with_two_links_a_killed_entry_server_costs_no_reconnect() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path())).await;
    let entry = followers(&cluster).await[0];
    let (client, proxies, standby) = twice_linked(&cluster, entry).await;
    client.propose(&"before".into()).await.unwrap();
    assert_eq!(entry_server(&client), Some(entry));
    // Whatever happens from here on, it happens on the links that stand.
    proxies.iter().for_each(|proxy| proxy.let_in(false));
    proxies[usize::from(entry.0) - 1].set(Flow::HoldReplies);
    let taken = counter(&cluster, entry, "proposals").await;
    let command = Bytes::from("during");
    let pending = propose(&client, &command);
    counted(&cluster, entry, "proposals", taken + 1).await;
    cluster.stop_voter(entry).await;
    pending.await.unwrap().unwrap();
    let last = client.propose(&"after".into()).await.unwrap().index;
    assert_eq!(entry_server(&client), Some(standby));
    assert_eq!(counts(&client, last, &[command]).await, [1]);
    assert_eq!(client_snapshots(&cluster).await, 0);
    shutdown(cluster).await;
}

#[tokio::test]
async fn with_two_links_a_silent_entry_server_is_overtaken() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path())).await;
    let entry = followers(&cluster).await[0];
    let (client, proxies, standby) = twice_linked(&cluster, entry).await;
    client.propose(&"before".into()).await.unwrap();
    proxies.iter().for_each(|proxy| proxy.let_in(false));
    proxies[usize::from(entry.0) - 1].set(Flow::Stalled);
    let (command, begun) = (Bytes::from("during"), Instant::now());
    client.propose(&command).await.unwrap();
    // Far below the handshake's time and the two ping periods in which silence would be noticed.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let last = client.propose(&"after".into()).await.unwrap().index;
    assert_eq!(entry_server(&client), Some(standby));
    assert_eq!(counts(&client, last, &[command]).await, [1]);
    shutdown(cluster).await;
}
