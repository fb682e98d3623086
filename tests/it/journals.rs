//! Clients die, and come back with nothing but their journal: exactly once, and the first outcome.

use cluster_client::{ClusterClient, LogIndex, RequestJournal, Ticket};
use cluster_server::ServerLimits;
use futures_util::future::join_all;
use voter_mesh::machine::MachineFactory;

use crate::harness::eventually;
use crate::here::{Mortal, client_of, counter, journal, shutdown, started, take, url, voters};
use crate::proxy::{Flow, Proxy};
use crate::tally::Tally;

/// A client is killed when some of its requests are committed and not answered, and the others have not left. Meanwhile so much
/// happens that a ring of `ring_bytes_max` holds it all, or does not.
async fn dies_and_returns(ring_bytes_max: usize, by_snapshot: bool) {
    let directory = tempfile::tempdir().unwrap();
    let limits = ServerLimits { ring_bytes_max, ..ServerLimits::default() };
    let builder = voters(3, &directory.path().join("servers")).machine(MachineFactory::of(Tally::default)).limits(limits);
    let cluster = started(builder).await;
    let here = url(&cluster, cluster.seats()[0]);
    let proxy = Proxy::before(&here).await;
    let path = directory.path().join("requests.journal");
    let begin = |url: String, journal| client_of(&[url]).journal(journal).state(Tally::default());
    let mortal = Mortal::born(begin(proxy.url(&here), RequestJournal::file(&path).unwrap())).await;
    let watcher = client_of(std::slice::from_ref(&here)).state(Tally::default()).connect().await.unwrap();
    let mut seen = watcher.committed_from(LogIndex::FIRST);
    mortal.client.propose(&"answered".to_owned()).await.unwrap();
    take(&mut seen, 1).await;

    let commands: Vec<String> = (0..20).map(|number| format!("request {number}")).collect();
    let mut tickets: Vec<Ticket> = Vec::new();
    for _ in &commands {
        tickets.push(mortal.client.reserve().await.unwrap());
    }
    let mut calls = Vec::new();
    let mut propose = |range: std::ops::Range<usize>| {
        for number in range {
            calls.push(tokio::spawn(mortal.client.propose_as(&tickets[number], &commands[number]).into_future()));
        }
    };
    proxy.set(Flow::HoldReplies);
    propose(0..10);
    let first: Vec<_> = take(&mut seen, 10).await.into_iter().map(|entry| entry.index).collect();
    proxy.set(Flow::Stalled);
    propose(10..20);
    // Journaled, and therefore handed to the socket or about to be: what the next process must send again.
    eventually("all journaled", || async {
        let journal = std::fs::read(&path).unwrap();
        let holds = |command: &String| journal.windows(command.len()).any(|window| window == command.as_bytes());
        commands.iter().all(holds).then_some(())
    })
    .await;
    mortal.kill();
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    drop(proxy);

    for number in 0..200 {
        watcher.propose(&format!("meanwhile {number}")).await.unwrap();
    }
    let returned: ClusterClient<Tally> = begin(here, journal(&path).await).connect().await.unwrap();
    let outcomes = join_all(tickets.iter().map(|ticket| returned.outcome(ticket))).await;
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let outcome = outcome.unwrap();
        assert_eq!((outcome.reply, outcome.repeat), (1, number < 10), "request {number}");
        assert!(number >= 10 || first.contains(&outcome.index), "request {number} has another outcome than its first");
    }
    assert!(returned.unanswered().is_empty());
    returned.propose(&"after".to_owned()).await.unwrap();
    let ones = returned.read(cluster_client::Consistency::Session, |tally| commands.iter().all(|command| tally.of(command) == 1));
    assert!(ones.await.unwrap());
    assert_eq!(counter(&cluster, cluster.seats()[0], "client_snapshots").await > 0, by_snapshot);
    crate::here::identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_client_that_died_with_requests_in_flight_returns_from_its_journal() {
    dies_and_returns(64 << 20, false).await;
}

#[tokio::test]
async fn a_client_that_died_returns_from_its_journal_when_only_a_snapshot_is_left() {
    dies_and_returns(4 << 10, true).await;
}
