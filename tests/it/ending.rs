//! Sessions and clients end: what was waiting is told, and nothing is left behind.

use std::time::Duration;

use cluster_client::{
    CloseReason, Consistency, GiveUpError, LogIndex, NotSent, ProposeError, ReadError, RequestJournal, ReserveError, Status,
    StreamError, Unresolved,
};
use futures_util::StreamExt;
use relay::wire::FeedMode;
use voter_mesh::ids::Seat;
use voter_mesh::machine::MachineFactory;
use voter_mesh::mesh::message::AdminRequest;

use crate::harness::{PATIENCE, eventually};
use crate::here::{Mortal, administer, client_of, journal, lone_voter, mesh_addresses, shutdown, started, take, url, voters};
use crate::peer::{Peer, hello};
use crate::proxy::{Flow, Proxy};
use crate::tally::Tally;

#[tokio::test]
async fn a_session_that_was_detached_too_long_is_over_and_says_so_while_an_attached_one_lives() {
    let directory = tempfile::tempdir().unwrap();
    let builder = voters(3, directory.path()).machine(MachineFactory::of(Tally::default)).session_ttl(Duration::from_secs(1));
    let cluster = started(builder).await;
    let path = directory.path().join("journal");
    let describe = |journal| client_of(&cluster.urls()).journal(journal).state(Tally::default());
    let attached = client_of(&cluster.urls()).state(Tally::default()).connect().await.unwrap();
    let ticket = attached.reserve().await.unwrap();
    let detached = Mortal::born(describe(RequestJournal::file(&path).unwrap())).await;
    let kept = detached.client.reserve().await.unwrap();
    detached.client.propose(&"in time".to_owned()).await.unwrap();
    detached.kill();
    let seats = cluster.seats();
    eventually("one session left", || async { (cluster.status(seats[0]).await.unwrap().sessions == 1).then_some(()) }).await;

    assert!(!attached.propose_as(&ticket, &"alive".to_owned()).await.unwrap().repeat);
    let returned = describe(journal(&path).await).connect().await.unwrap();
    assert_eq!(returned.propose_as(&kept, &"too late".to_owned()).await, Err(ProposeError::SessionExpired));
    assert_eq!(returned.propose(&"too late".to_owned()).await, Err(ProposeError::SessionExpired));
    assert_eq!(returned.reserve().await, Err(ReserveError::SessionExpired));
    assert!(returned.renew_session());
    assert_eq!(returned.propose_as(&kept, &"too late".to_owned()).await, Err(ProposeError::ForeignTicket));
    returned.propose(&"anew".to_owned()).await.unwrap();
    let seen =
        returned.read(Consistency::Session, |tally| ["in time", "alive", "too late", "anew"].map(|command| tally.of(command)));
    assert_eq!(seen.await.unwrap(), [1, 1, 0, 1]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn an_attached_session_outlives_a_link_between_servers_that_flaps() {
    let directory = tempfile::tempdir().unwrap();
    let addresses = mesh_addresses(3);
    let flapping = Proxy::to(&addresses[&Seat(2)]).await;
    let mut servers = Vec::new();
    for seat in 1..=3 {
        let mut peers = addresses.clone();
        if seat == 1 {
            // The lower seat dials.
            peers.insert(Seat(2), flapping.address());
        }
        let builder = lone_voter(seat, peers, directory.path()).machine(MachineFactory::of(Tally::default));
        servers.push(builder.session_ttl(Duration::from_secs(1)).start().await.unwrap());
    }
    let [first, second, _] = &servers[..] else { unreachable!() };
    first.leader_within(PATIENCE).await.unwrap();
    administer(first, AdminRequest::Transfer { seat: Seat(1) }).await;
    eventually("the first leads", || async { (second.status(Seat(2)).await.unwrap().leader?.seat() == Seat(1)).then_some(()) })
        .await;
    let idle = client_of(&second.urls()).state(Tally::default()).connect().await.unwrap();
    let ticket = idle.reserve().await.unwrap();
    let journal = RequestJournal::file(directory.path().join("journal")).unwrap();
    let mortal = Mortal::born(client_of(&first.urls()).journal(journal).state(Tally::default())).await;
    mortal.client.reserve().await.unwrap();
    eventually("both sessions", || async { (first.status(Seat(1)).await.unwrap().sessions == 2).then_some(()) }).await;

    let term = first.status(Seat(1)).await.unwrap().term;
    flapping.flap().await;
    // Whoever is taken for detached since the flap is so for longer than this one.
    mortal.kill();
    eventually("one session left", || async { (first.status(Seat(1)).await.unwrap().sessions == 1).then_some(()) }).await;
    idle.propose_as(&ticket, &"alive".to_owned()).await.unwrap();
    assert_eq!(first.status(Seat(1)).await.unwrap().term, term, "the flap deposed a healthy leader");
    for server in servers {
        shutdown(server).await;
    }
}

#[tokio::test]
async fn a_client_without_a_journal_takes_its_session_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let client = client_of(&cluster.urls()).state(Tally::default()).connect().await.unwrap();
    client.propose(&"command".to_owned()).await.unwrap();
    client.close().await;
    for seat in cluster.seats() {
        eventually("nothing left", || async {
            let status = cluster.status(seat).await.unwrap();
            (status.sessions == 0 && status.clients == 0).then_some(())
        })
        .await;
    }
    shutdown(cluster).await;
}

#[tokio::test]
async fn closing_answers_everyone_who_waits() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let here = url(&cluster, cluster.seats()[0]);
    let proxy = Proxy::before(&here).await;
    let client = client_of(&[proxy.url(&here)]).state(Tally::default()).connect().await.unwrap();
    client.propose(&"before".to_owned()).await.unwrap();
    let reserved = client.reserve().await.unwrap();
    let mut stream = client.committed_from(LogIndex::FIRST);
    take(&mut stream, 1).await;
    proxy.set(Flow::HoldReplies);
    // More than the window holds, so that some were sent and some wait for room; the ticket takes one place.
    let calls: Vec<_> = (0..300).map(|number| tokio::spawn(client.propose(&number.to_string()).into_future())).collect();
    eventually("a full window", || async { (client.unanswered().len() == 256).then_some(()) }).await;
    let reader = client.clone();
    let read = tokio::spawn(async move { reader.read(Consistency::Linearizable, Tally::total).await });
    let (clone, open) = (client.clone(), client.unanswered().iter().find(|(_, command)| command.is_some()).unwrap().0);
    let outcome = tokio::spawn(async move { clone.outcome(&open).await });
    let clone = client.clone();
    let waits = tokio::spawn(async move { clone.reserve().await });
    let next = tokio::spawn(async move { stream.next().await });
    tokio::task::yield_now().await;

    tokio::time::timeout(PATIENCE, client.close()).await.expect("closing ends");
    let (mut unknown, mut unsent) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Err(ProposeError::Unknown { reason: Unresolved::Closed, .. }) => unknown += 1,
            Err(ProposeError::NotSent { reason: NotSent::Closed(CloseReason::Application) }) => unsent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((unknown, unsent), (255, 45));
    assert_eq!(read.await.unwrap(), Err(ReadError::Closed(CloseReason::Application)));
    let outcome = outcome.await.unwrap();
    assert!(matches!(outcome, Err(ProposeError::Unknown { reason: Unresolved::Closed, .. })), "{outcome:?}");
    assert_eq!(waits.await.unwrap(), Err(ReserveError::Closed(CloseReason::Application)));
    assert_eq!(next.await.unwrap(), Some(Err(StreamError::Closed(CloseReason::Application))));

    // And everything that comes later.
    client.close().await;
    assert!(matches!(*client.status().borrow(), Status::Closed { why: CloseReason::Application }));
    let closed = Err(ProposeError::NotSent { reason: NotSent::Closed(CloseReason::Application) });
    assert_eq!(client.propose(&"late".to_owned()).await, closed);
    assert_eq!(client.reserve().await, Err(ReserveError::Closed(CloseReason::Application)));
    assert_ne!(client.release(&reserved), Err(GiveUpError::ForeignTicket));
    assert_eq!(client.read(Consistency::Local, Tally::total).await, Ok(1));
    shutdown(cluster).await;
}

#[tokio::test]
async fn what_was_shut_down_in_order_starts_again_with_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let client = client_of(&cluster.urls()).state(Tally::default()).connect().await.unwrap();
    let begun = client.propose(&"before".to_owned()).await.unwrap();
    shutdown(cluster).await;
    eventually("told", || async { (!matches!(*client.status().borrow(), Status::Live { .. })).then_some(()) }).await;
    // The same directories, other ports.
    cluster = started(voters(3, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let again = client_of(&cluster.urls()).state(Tally::default()).connect().await.unwrap();
    assert_eq!(again.read(Consistency::Linearizable, Tally::total).await, Ok(1));
    assert!(again.propose(&"after".to_owned()).await.unwrap().index > begun.index);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_no_server_from_ending_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path())).await;
    let (_deaf, _) = Peer::admitted(&cluster.urls()[0], hello(FeedMode::Full)).await;
    let client = client_of(&cluster.urls()).thin().connect().await.unwrap();
    // More than the sockets between them hold.
    for _ in 0..64 {
        client.propose(&vec![7; 512 << 10].into()).await.unwrap();
    }
    client.close().await;
    cluster.shutdown(Duration::from_secs(2)).await.unwrap();
}
