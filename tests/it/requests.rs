//! Request ids that the application chooses, persists, mixes up, reuses and copies: each has the outcome that the rules name.

use std::time::Duration;

use bytes::Bytes;
use cluster_client::{
    ClusterClient, JournalError, LogIndex, NotSent, ProposeError, Raw, RequestId, RequestJournal, ReserveError, Ticket, Unresolved,
};
use cluster_server::ServerCluster;
use futures_util::future::join_all;
use relay::wire::{ClientFrame, Code, FeedMode, Hello, Proposal, ServerFrame, SessionProof, SessionSecret, WireReply};
use tempfile::TempDir;
use voter_mesh::ids::{Opening, SessionId};
use voter_mesh::outcome::Outcome;

use crate::here::{Mortal, client_of, counts, journal, raw, shutdown, started, url, voters};
use crate::peer::{Peer, hello};
use crate::proxy::{Flow, Proxy};

async fn lone() -> (TempDir, ServerCluster) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path())).await;
    (directory, cluster)
}

async fn three() -> (TempDir, ServerCluster, ClusterClient<Raw>) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path())).await;
    let client = raw(&cluster.urls()).await;
    (directory, cluster, client)
}

fn command(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn an_automatic_id_follows_a_chosen_one_and_gaps_are_free() {
    let (_directory, cluster, client) = three().await;
    for id in [7_777, 9_000, 1 << 40] {
        let ticket = client.ticket(RequestId(id)).await.unwrap();
        assert_eq!(ticket.request, RequestId(id));
        assert!(!client.propose_as(&ticket, &command("chosen")).await.unwrap().repeat);
        client.propose(&command("automatic")).await.unwrap();
        let next = client.reserve().await.unwrap();
        assert!(next.request > RequestId(id + 1), "{next}");
        client.release(&next).unwrap();
    }
    for bad in [0, 1 << 63, u64::MAX] {
        assert_eq!(client.ticket(RequestId(bad)).await, Err(ReserveError::BadId));
    }
    let last = client.propose(&command("last")).await.unwrap().index;
    assert_eq!(counts(&client, last, &[command("chosen"), command("automatic")]).await, [3, 3]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_replay_is_answered_while_its_record_is_kept_and_stale_when_the_floor_has_passed_it() {
    let (_directory, cluster, client) = three().await;
    let holds_the_floor = client.ticket(RequestId(1)).await.unwrap();
    let chosen = client.ticket(RequestId(7_777)).await.unwrap();
    let first = client.propose_as(&chosen, &command("7777")).await.unwrap();
    let later = client.ticket(RequestId(7_778)).await.unwrap();
    client.propose_as(&later, &command("7778")).await.unwrap();

    let again = client.propose_as(&chosen, &command("7777")).await.unwrap();
    assert_eq!((again.index, again.term, again.repeat, again.reply), (first.index, first.term, true, first.reply));
    assert_eq!(client.propose_as(&chosen, &command("another")).await, Err(ProposeError::Conflict));

    client.release(&holds_the_floor).unwrap();
    client.propose(&command("raises the floor")).await.unwrap();
    assert_eq!(client.propose_as(&chosen, &command("7777")).await, Err(ProposeError::Stale));
    let below = client.ticket(RequestId(5)).await.unwrap();
    assert_eq!(client.propose_as(&below, &command("below")).await, Err(ProposeError::Stale));
    let last = client.propose(&command("last")).await.unwrap().index;
    let expected = [command("7777"), command("7778"), command("another"), command("below")];
    assert_eq!(counts(&client, last, &expected).await, [1, 1, 0, 0]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn concurrent_requests_commit_in_any_order_and_a_reserved_id_may_come_last() {
    let (_directory, cluster, client) = three().await;
    let oldest = client.reserve().await.unwrap();
    for shift in 0..5 {
        let mut tickets = Vec::new();
        for _ in 0..5 {
            tickets.push(client.reserve().await.unwrap());
        }
        // One after the other, so that the log really has them in this order; then all at once.
        let mut indices = Vec::new();
        for step in 0..5 {
            let ticket = &tickets[(step * 2 + shift) % 5];
            indices.push(client.propose_as(ticket, &command(&ticket.to_string())).await.unwrap().index);
        }
        assert!(indices.is_sorted());
        let again = join_all(tickets.iter().map(|ticket| client.propose_as(ticket, &command(&ticket.to_string())).into_future()));
        assert!(again.await.into_iter().all(|outcome| outcome.unwrap().repeat));
    }
    let applied = client.propose_as(&oldest, &command("oldest")).await.unwrap();
    assert!(!applied.repeat);
    assert_eq!(counts(&client, applied.index, &[command("oldest")]).await, [1]);
    assert_eq!(crate::here::committed_to(&client, applied.index).await.len(), 26);
    shutdown(cluster).await;
}

#[tokio::test]
async fn the_window_holds_256_and_one_more_waits_or_is_refused_but_never_sent() {
    let (_directory, cluster) = lone().await;
    let here = url(&cluster, cluster.seats()[0]);
    let proxy = Proxy::before(&here).await;
    let client = raw(&[proxy.url(&here)]).await;
    client.propose(&command("first")).await.unwrap();
    proxy.set(Flow::HoldReplies);
    let calls: Vec<_> = (0..256).map(|number| tokio::spawn(client.propose(&command(&number.to_string())).into_future())).collect();
    crate::harness::eventually("256 open", || async { (client.unanswered().len() == 256).then_some(()) }).await;

    let refused = Err(ProposeError::NotSent { reason: NotSent::WindowFull });
    assert_eq!(client.try_propose(&command("257")).await, refused);
    let late = Err(ProposeError::NotSent { reason: NotSent::Deadline });
    assert_eq!(client.propose(&command("257")).deadline(Duration::from_millis(50)).await, late);
    let waits = tokio::spawn(client.propose(&command("258")).into_future());
    proxy.set(Flow::Open);
    for call in calls {
        assert!(!call.await.unwrap().unwrap().repeat);
    }
    let last = waits.await.unwrap().unwrap().index;
    assert_eq!(counts(&client, last, &[command("0"), command("255"), command("257"), command("258")]).await, [1, 1, 0, 1]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_conflicting_or_foreign_ticket_is_refused_before_anything_is_sent() {
    let (_directory, cluster, client) = three().await;
    let stranger = raw(&cluster.urls()).await;
    let (own, foreign) = (client.reserve().await.unwrap(), stranger.reserve().await.unwrap());
    assert_ne!(own.session, foreign.session);
    assert_eq!(client.propose_as(&foreign, &command("foreign")).await, Err(ProposeError::ForeignTicket));
    assert_eq!(client.outcome(&foreign).await, Err(ProposeError::ForeignTicket));
    let never = Ticket { session: own.session, request: RequestId(own.request.0 + 1_000) };
    assert_eq!(client.outcome(&never).await, Err(ProposeError::NoSuchRequest));
    let last = client.propose_as(&own, &command("own")).await.unwrap().index;
    assert_eq!(counts(&client, last, &[command("own"), command("foreign")]).await, [1, 0]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_journal_has_one_owner_and_of_two_copies_only_the_later_one_goes_on() {
    let (directory, cluster, _) = three().await;
    let (path, copied) = (directory.path().join("journal"), directory.path().join("copied"));
    let first = Mortal::born(client_of(&cluster.urls()).journal(RequestJournal::file(&path).unwrap()).raw()).await;
    first.client.propose(&command("one")).await.unwrap();
    assert!(matches!(RequestJournal::file(&path), Err(JournalError::JournalBusy(_))), "two processes with one journal");

    std::fs::copy(&path, &copied).unwrap();
    let second = client_of(&cluster.urls()).journal(journal(&copied).await).raw().connect().await.unwrap();
    let last = second.propose(&command("two")).await.unwrap().index;
    let overtaken = first.client.propose(&command("three")).await.unwrap_err();
    assert!(matches!(overtaken, ProposeError::Superseded { .. }), "{overtaken}");
    assert!(matches!(first.client.reserve().await, Err(ReserveError::Superseded { .. })));
    // Neither does it come back by restarting.
    first.kill();
    let third = client_of(&cluster.urls()).journal(journal(&path).await).raw().connect().await.unwrap();
    assert!(matches!(third.propose(&command("four")).await, Err(ProposeError::Superseded { .. })));
    let end = second.propose(&command("five")).await.unwrap().index;
    assert!(end > last);
    assert_eq!(counts(&second, end, &["one", "two", "three", "four", "five"].map(command)).await, [1, 1, 0, 0, 1]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_request_goes_on_after_its_deadline_until_it_is_answered_or_abandoned() {
    let (_directory, cluster) = lone().await;
    let here = url(&cluster, cluster.seats()[0]);
    let proxy = Proxy::before(&here).await;
    let client = raw(&[proxy.url(&here)]).await;
    client.propose(&command("first")).await.unwrap();
    proxy.set(Flow::HoldReplies);
    let mut tickets = Vec::new();
    for text in ["asked", "abandoned"] {
        match client.propose(&command(text)).deadline(Duration::from_millis(50)).await {
            Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    client.abandon(&tickets[1]).unwrap();
    assert_eq!(client.outcome(&tickets[1]).await, Err(ProposeError::NoSuchRequest));
    proxy.set(Flow::Open);
    assert!(client.outcome(&tickets[0]).await.is_ok());
    // Told once: from then on only the servers know, if they still do.
    assert_eq!(client.outcome(&tickets[0]).await, Err(ProposeError::NoSuchRequest));
    shutdown(cluster).await;
}

/// A session opened by hand.
async fn opened(peer: &mut Peer, secret: [u8; 32]) -> (SessionId, Opening) {
    peer.say(ClientFrame::SessionOpen { secret: SessionSecret(secret) }).await;
    peer.hear_for("SessionOpened", |frame| match frame {
        ServerFrame::SessionOpened { session, opening } => Some((session, opening)),
        _ => None,
    })
    .await
}

fn proposal(id: u64, floor: u64, text: &str) -> Proposal {
    Proposal { id: RequestId(id), floor: RequestId(floor), payload: command(text) }
}

/// The outcomes of these ids, in their order, whatever order they come in.
async fn outcomes(peer: &mut Peer, ids: impl IntoIterator<Item = u64>) -> Vec<WireReply> {
    let ids: Vec<u64> = ids.into_iter().collect();
    let mut found = std::collections::BTreeMap::new();
    while found.len() < ids.len() {
        let replies = peer.hear_for("Replies", |frame| match frame {
            ServerFrame::Replies(replies) => Some(replies),
            _ => None,
        });
        found.extend(replies.await.into_iter().filter(|reply| ids.contains(&reply.id.0)).map(|reply| (reply.id.0, reply)));
    }
    ids.iter().map(|id| found[id].clone()).collect()
}

#[tokio::test]
async fn a_session_on_two_servers_at_once_applies_what_both_propose_once() {
    let (_directory, cluster, client) = three().await;
    let urls = cluster.urls();
    let (mut here, _) = Peer::admitted(&urls[0], hello(FeedMode::Thin)).await;
    let (session, opening) = opened(&mut here, [7; 32]).await;
    let proof = SessionProof { session, secret: SessionSecret([7; 32]), opening: Some(opening) };
    let (mut there, _) = Peer::admitted(&urls[1], Hello { session: Some(proof), ..hello(FeedMode::Thin) }).await;
    for id in 1..=50 {
        let frame = ClientFrame::Propose(vec![proposal(id, 1, &id.to_string())]);
        let ((), ()) = tokio::join!(here.say(frame.clone()), there.say(frame));
    }
    let (here, there) = (outcomes(&mut here, 1..=50).await, outcomes(&mut there, 1..=50).await);
    for (one, other) in here.iter().zip(&there) {
        assert_eq!((one.index, one.term, &one.outcome), (other.index, other.term, &other.outcome));
        assert!(matches!(one.outcome, Outcome::Applied(_)));
    }
    let last = client.propose(&command("last")).await.unwrap().index;
    let commands: Vec<_> = (1..=50).map(|id| command(&id.to_string())).collect();
    assert!(counts(&client, last, &commands).await.into_iter().all(|count| count == 1));
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_client_that_breaks_its_window_loses_its_session_and_nothing_else() {
    let (_directory, cluster, client) = three().await;
    let (mut peer, _) = Peer::admitted(&cluster.urls()[0], hello(FeedMode::Thin)).await;
    opened(&mut peer, [7; 32]).await;
    let all: Vec<_> = (1..=256).map(|id| proposal(id, 1, "kept")).collect();
    peer.say(ClientFrame::Propose(all)).await;
    assert!(outcomes(&mut peer, 1..=256).await.iter().all(|reply| matches!(reply.outcome, Outcome::Applied(_))));
    peer.say(ClientFrame::Propose(vec![proposal(257, 1, "one more")])).await;
    let broken = outcomes(&mut peer, [257]).await;
    assert_eq!(broken[0].outcome, Outcome::WindowBroken);
    crate::harness::eventually("the session ended", || async {
        (cluster.status(cluster.seats()[0]).await.unwrap().sessions == 0).then_some(())
    })
    .await;
    let last = client.propose(&command("last")).await.unwrap().index;
    assert_eq!(counts(&client, last, &[command("kept"), command("one more")]).await, [256, 0]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_session_is_worth_nothing_without_its_secret() {
    let (_directory, cluster, client) = three().await;
    let ticket = client.reserve().await.unwrap();
    let proof = SessionProof { session: ticket.session, secret: SessionSecret([0; 32]), opening: Some(Opening(ticket.session.0)) };
    for url in cluster.urls() {
        let mut thief = Peer::connect(&url).await;
        thief.say(ClientFrame::Hello(Hello { session: Some(proof.clone()), ..hello(FeedMode::Thin) })).await;
        match thief.hear().await {
            Some(ServerFrame::Refuse { code: Code::Auth, .. } | ServerFrame::Close { code: Code::Auth, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(thief.hear().await, None);
        let (mut silent, _) = Peer::admitted(&url, hello(FeedMode::Thin)).await;
        silent.say(ClientFrame::Propose(vec![proposal(ticket.request.0, 1, "stolen")])).await;
        let refused = silent.hear_for("ProposeRefused", |frame| match frame {
            ServerFrame::ProposeRefused { ids, code, .. } => Some((ids, code)),
            _ => None,
        });
        assert_eq!(refused.await, (vec![ticket.request], Code::Auth));
    }
    let last = client.propose_as(&ticket, &command("own")).await.unwrap().index;
    assert_eq!(counts(&client, last, &[command("own"), command("stolen")]).await, [1, 0]);
    assert_eq!(crate::here::committed_to(&client, LogIndex(last.0)).await.len(), 1);
    shutdown(cluster).await;
}
