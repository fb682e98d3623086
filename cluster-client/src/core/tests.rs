//! The client's rules, each as a story in virtual time against real rooms and replicas.
#![allow(clippy::unwrap_used)]

use relay::room::RoomLimits;
use relay::wire::{Admit, Code, SessionStatus, Start, WireLimits, WireReply};
use voter_mesh::ids::{Epoch, Opening, SessionId};

use super::*;
use crate::error::{GiveUpError, NotSent, Unresolved};
use crate::follower::lock;
use crate::history::Step;

mod world;

use world::{Cluster, Health, World, options, put, refused};

/// A source that repeats itself for the same seed.
pub(crate) fn randomness(seed: u64) -> Randomness {
    let mut state = seed;
    Randomness::new(move |bytes| {
        for byte in bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
    })
}

fn two_links(servers: usize) -> CoreOptions {
    CoreOptions { links: 2, ..options(servers) }
}

#[test]
fn a_command_resolves_when_it_is_applied_here_and_stands_in_the_log_once() {
    let mut world = World::new(3);
    assert_eq!(world.live_on(), Some(0));
    assert!(world.cluster.log.is_empty(), "admission writes nothing");
    let call = world.propose(put("a"));
    world.run_for(10);
    let answer = world.told(call).clone().unwrap();
    assert!(!answer.repeat);
    assert!(lock(&world.client.state).get(b"a").is_some());
    assert_eq!(world.effects(&put("a")), 1);
    assert!(world.is_replica_of(2));
}

#[test]
fn nothing_leaves_before_the_journal_has_it() {
    let mut world = World::new(1);
    world.journal_stalls = true;
    let call = world.propose(put("a"));
    world.run_for(5_000);
    assert!(world.cluster.log.is_empty(), "not even the session's opening");
    world.journal_stalls = false;
    world.run_for(10);
    world.told(call).clone().unwrap();
    assert!(world.journal.open.is_empty(), "the answer is journaled too");
    assert!(world.journal.id_end > RequestId(1));
}

#[test]
fn the_entry_server_dies_mid_request_and_the_command_applies_once_elsewhere() {
    let mut world = World::new(3);
    world.mute.insert(0);
    let call = world.propose(put("first"));
    world.run_for(50);
    assert!(!world.client.proposed.contains_key(&call));
    world.mute.clear();
    world.kill(0);
    world.run_for(100);
    world.told(call).clone().unwrap();
    assert_eq!(world.live_on(), Some(1));

    // And one that the dead server had committed: the first outcome comes back.
    world.mute.insert(1);
    let call = world.propose(put("second"));
    world.run_for(50);
    assert_eq!(world.effects(&put("second")), 1);
    world.mute.clear();
    world.kill(1);
    world.run_for(100);
    let answer = world.told(call).clone().unwrap();
    assert!(answer.repeat);
    assert_eq!(world.effects(&put("second")), 1);
    assert!(world.is_replica_of(2));
    assert_eq!(world.cluster.servers[2].room.counters().snapshots, 0, "the log reached back");
}

#[test]
fn a_restarted_client_sends_again_what_its_journal_holds_and_gets_the_first_outcome() {
    let mut world = World::new(3);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.mute.insert(0);
    world.propose(put("committed"));
    world.run_for(10);
    world.cluster.quorum = false;
    world.propose(put("parked"));
    world.run_for(10);
    world.mute.clear();
    world.cluster.parked.clear();
    world.restart_client(options(3));
    world.cluster.quorum = true;
    let open = world.client.core.unanswered();
    assert_eq!(open.len(), 2);
    world.run_for(3_000);
    assert!(world.outcome(open[0].0).unwrap().repeat);
    assert!(!world.outcome(open[1].0).unwrap().repeat);
    assert_eq!(world.outcome(open[1].0), Err(ProposeError::NoSuchRequest), "an outcome is told once");
    for name in ["warm", "committed", "parked"] {
        assert_eq!(world.effects(&put(name)), 1, "{name}");
    }
    assert!(world.client.core.unanswered().is_empty());
    assert!(world.is_replica_of(0));
}

#[test]
fn a_copied_journal_is_superseded_by_whoever_opens_it_last() {
    let mut world = World::new(1);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    let copy = world.journal.clone();
    world.restart_client(options(1));
    let call = world.propose(put("b"));
    world.run_for(10);
    world.told(call).clone().unwrap();

    world.open_client(options(1), &copy);
    let call = world.propose(put("c"));
    world.run_for(10);
    assert!(matches!(world.told(call), Err(ProposeError::Superseded { .. })));
    let call = world.propose(put("d"));
    assert!(matches!(world.told(call), Err(ProposeError::Superseded { .. })));
    assert_eq!(world.effects(&put("c")) + world.effects(&put("d")), 0);
    // Never quietly: only when it is asked for is there another session.
    assert!(world.client.core.renew_session(world.now));
    let call = world.propose(put("d"));
    world.run_for(100);
    world.told(call).clone().unwrap();
}

#[test]
fn a_copy_of_a_journal_without_a_session_does_not_go_on_with_the_one_that_the_other_copy_opened() {
    let mut world = World::new(1);
    world.mute.insert(0);
    world.propose(put("a"));
    world.run_for(10);
    assert!(world.journal.secret.is_some() && world.journal.session.is_none());
    world.mute.clear();
    let copy = world.journal.clone();
    world.restart_client(options(1));
    let call = world.propose(put("b"));
    world.run_for(100);
    world.told(call).clone().unwrap();

    // It is told the present opening, and does not hold it: the ids that it would use are used.
    world.open_client(options(1), &copy);
    let call = world.propose(put("c"));
    world.run_for(100);
    assert!(matches!(world.told(call), Err(ProposeError::Superseded { .. })));
    assert_eq!(world.effects(&put("c")), 0);
}

#[test]
fn an_attach_that_a_crash_left_unsettled_is_settled_and_then_made_anew() {
    let mut world = World::new(1);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.restart_client(options(1));
    world.mute.insert(0);
    world.propose(put("b"));
    world.run_for(10);
    assert!(world.journal.nonce.is_some(), "the attach was sent and not answered");
    world.mute.clear();
    let copy = world.journal.clone();
    world.restart_client(options(1));
    let call = world.propose(put("c"));
    world.run_for(100);
    world.told(call).clone().unwrap();
    assert_eq!((world.effects(&put("b")), world.effects(&put("c"))), (0, 1), "what was never sent is not sent later");
    // The unsettled attach is no licence for two: a copy of that journal is found out.
    world.open_client(options(1), &copy);
    let call = world.propose(put("d"));
    world.run_for(100);
    assert!(matches!(world.told(call), Err(ProposeError::Superseded { .. })));
}

#[test]
fn a_reply_that_is_ahead_of_the_feed_waits_for_it() {
    let mut world = World::new(1);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.cluster.quorum = false;
    let call = world.propose(put("a"));
    let (id, index) = (*world.journal.open.keys().next().unwrap(), world.client.core.position.unwrap().0.next());
    let outcome = voter_mesh::outcome::Outcome::Applied(Bytes::from_static(b"early"));
    world.say(
        0,
        ServerFrame::Replies(vec![WireReply {
            id,
            index,
            term: Term(1),
            payload_crc: crc32c::crc32c(&put("a")),
            repeat: false,
            outcome,
        }]),
    );
    assert!(!world.client.proposed.contains_key(&call));
    world.cluster.quorum = true;
    world.run_for(10);
    assert_eq!(world.told(call).clone().unwrap().reply, "early");
}

#[test]
fn a_feed_that_would_go_back_in_time_costs_the_link_and_not_the_state() {
    let mut world = World::new(2);
    for start in [Start::Snapshot(LogIndex(1)), Start::Tail(LogIndex(1)), Start::Tail(LogIndex(9))] {
        let call = world.propose(put("a"));
        world.run_for(2_000);
        world.told(call).clone().unwrap();
        let server = world.live_on().unwrap();
        world.say(server, ServerFrame::Start(start));
        world.run_for(100);
        assert_eq!(world.live_on(), Some(1 - server));
    }
    assert!(world.is_replica_of(0));
}

#[test]
fn a_bad_feed_costs_its_link_alone() {
    let mut world = World::with(Cluster::new(2), two_links(2));
    world.run_for(100);
    let link = world.client.core.first.unwrap();
    for _ in 0..2 {
        world.client.core.handle_frame(link, ServerFrame::Feed(Bytes::from_static(b"no run")), world.now);
    }
    world.settle();
    assert_eq!(world.live_on(), Some(1), "the standby took over and stays");
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
}

#[test]
fn a_server_that_cannot_know_the_session_yet_does_not_end_it() {
    let mut world = World::new(2);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.cluster.servers[0].health = Health::Stopped;
    let thin = CoreOptions { feed: FeedMode::Thin, machine: None, ..options(2) };
    world.restart_client(thin);
    let limits = WireLimits { message_bytes_max: 1 << 20, payload_bytes_max: 1 << 20, window_max: 256, ping_ms: 10_000 };
    let admit = Admit {
        cluster: world.cluster.identity.cluster,
        epoch: world.cluster.identity.epoch,
        server: voter_mesh::ids::RaftId(1),
        servers: Vec::new(),
        leader: None,
        commit: LogIndex::ZERO,
        state_machine: (String::new(), 0),
        start: Start::Tail(LogIndex(1)),
        session: SessionStatus::Expired,
        limits,
    };
    world.say(0, ServerFrame::Admit(admit));
    let call = world.propose(put("b"));
    world.run_for(100);
    world.told(call).clone().unwrap();
}

#[test]
fn a_link_that_held_is_replaced_at_once_however_hard_it_was_to_get() {
    let mut cluster = Cluster::new(1);
    cluster.servers[0].health = Health::Down;
    let mut world = World::with(cluster, options(1));
    world.run_for(60_000);
    world.cluster.servers[0].health = Health::Up;
    world.run_for(20_000);
    assert_eq!(world.live_on(), Some(0));
    world.tear(0);
    assert_eq!(world.live_on(), Some(0));
    world.run_for(2_000);
    world.kill(0);
    world.cluster.servers[0].health = Health::Up;
    world.run_for(60);
    assert_eq!(world.live_on(), Some(0), "the first pause is short again");
    // But not one that is torn again and again.
    let dials = world.client.dialled.len();
    for _ in 0..100 {
        if world.live_on().is_some() {
            world.tear(0);
        }
        world.run_for(10);
    }
    assert!(world.client.dialled.len() - dials < 30, "{}", world.client.dialled.len() - dials);
}

#[test]
fn chosen_ids_gaps_and_replays_get_the_outcome_that_the_table_has() {
    let mut world = World::new(1);
    let ticket = world.reserve(Some(7777));
    let first = world.propose_as(ticket, put("chosen"));
    world.run_for(10);
    let first = world.told(first).clone().unwrap();
    let replay = world.propose_as(ticket, put("chosen"));
    world.run_for(10);
    assert_eq!(world.told(replay).clone().unwrap(), Answer { repeat: true, ..first });
    let other = world.propose_as(ticket, put("other"));
    world.run_for(10);
    assert_eq!(world.told(other), &Err(ProposeError::Conflict));
    let next = world.propose(put("next"));
    world.run_for(10);
    world.told(next).clone().unwrap();
    assert_eq!(world.reserve(None).request, RequestId(7779));
    let late = world.propose_as(ticket, put("chosen"));
    world.run_for(10);
    assert_eq!(world.told(late), &Err(ProposeError::Stale));
    let stranger = Ticket { session: SessionId(999), ..ticket };
    let foreign = world.propose_as(stranger, put("x"));
    assert_eq!(world.told(foreign), &Err(ProposeError::ForeignTicket));
    assert_eq!(world.effects(&put("chosen")), 1);
}

#[test]
fn a_reserved_id_used_last_is_still_good_and_holds_the_floor() {
    let mut world = World::new(1);
    let ticket = world.reserve(None);
    for number in 0..100 {
        let call = world.propose(put(&format!("k{number}")));
        world.run_for(10);
        world.told(call).clone().unwrap();
    }
    world.restart_client(options(1));
    assert_eq!(world.client.core.unanswered(), [(ticket, None)]);
    let call = world.propose_as(ticket, put("last"));
    world.run_for(100);
    world.told(call).clone().unwrap();
    let ticket = world.reserve(None);
    assert_eq!(world.client.core.release(ticket), Ok(()));
    assert_eq!(world.client.core.release(ticket), Err(GiveUpError::NoSuchRequest));
}

#[test]
fn the_window_holds_256_and_the_next_one_waits_or_is_told() {
    let mut world = World::new(1);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.cluster.quorum = false;
    let calls: Vec<u32> = (0..256).map(|number| world.propose(put(&format!("k{number}")))).collect();
    let tried = world.propose_with(put("tried"), None, WhenFull::Refuse, 10_000);
    assert_eq!(world.told(tried), &Err(ProposeError::NotSent { reason: NotSent::WindowFull }));
    let short = world.propose_with(put("short"), None, WhenFull::Wait, 100);
    let waits = world.propose(put("waits"));
    world.run_for(200);
    assert_eq!(world.told(short), &Err(ProposeError::NotSent { reason: NotSent::Deadline }));
    world.cluster.quorum = true;
    world.run_for(100);
    for call in calls {
        world.told(call).clone().unwrap();
    }
    world.told(waits).clone().unwrap();
    assert_eq!(world.effects(&put("tried")) + world.effects(&put("short")), 0);
}

#[test]
fn without_a_quorum_deadlines_tell_the_truth_and_later_the_outcome_is_had() {
    let mut world = World::new(3);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.cluster.quorum = false;
    let sent = world.propose_with(put("sent"), None, WhenFull::Wait, 1_000);
    let read = world.read(ReadAfter::Linearizable, 1_000);
    world.run_for(1_000);
    let Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) = *world.told(sent) else { panic!("it was sent") };
    assert_eq!(world.client.reads[&read], Err(ReadError::Deadline));
    for server in 0..3 {
        world.kill(server);
    }
    let unsent = world.propose_with(put("unsent"), None, WhenFull::Wait, 1_000);
    world.run_for(1_000);
    assert_eq!(world.told(unsent), &Err(ProposeError::NotSent { reason: NotSent::Deadline }));
    // Nor may a power cut bring it back.
    let holds = |journal: &JournalState| journal.open.values().any(|payload| *payload == Some(put("unsent")));
    assert!(!world.after_power_cut.iter().any(holds));
    assert!(matches!(world.client.core.status(), Status::FailingOver { .. }));
    for server in &mut world.cluster.servers {
        server.health = Health::Up;
    }
    world.cluster.quorum = true;
    assert!(world.outcome(ticket).is_ok());
    assert_eq!(world.effects(&put("sent")), 1);
    assert_eq!(world.effects(&put("unsent")), 0);
}

#[test]
fn a_cancelled_call_is_forgotten_if_unsent_and_sent_on_if_not() {
    let mut world = World::new(1);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.cluster.quorum = false;
    let deadline = world.now.plus_ms(60_000);
    let sent = world.client.core.propose(put("sent"), None, WhenFull::Wait, deadline, 900);
    world.run_for(10);
    world.client.core.cancel(sent);
    world.kill(0);
    let unsent = world.client.core.propose(put("unsent"), None, WhenFull::Wait, deadline, 901);
    world.settle();
    world.client.core.cancel(unsent);
    world.cluster.servers[0].health = Health::Up;
    world.cluster.quorum = true;
    world.run_for(10_000);
    assert_eq!(world.effects(&put("sent")), 1);
    assert_eq!(world.effects(&put("unsent")), 0);
    assert!(world.client.core.unanswered().is_empty() && world.journal.open.is_empty());
}

#[test]
fn with_two_links_a_killed_entry_server_costs_no_dial() {
    let mut world = World::with(Cluster::new(3), two_links(3));
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    assert_eq!(world.client.dialled, [0, 1]);
    world.mute.insert(0);
    let call = world.propose(put("b"));
    world.run_for(1);
    world.mute.clear();
    world.kill(0);
    world.run_for(5);
    assert!(world.told(call).clone().unwrap().repeat);
    assert_eq!(world.live_on(), Some(1));
    assert_eq!(world.client.dialled, [0, 1, 2], "a new standby, and nothing waited for it");
    assert_eq!(world.effects(&put("b")), 1);
    assert!(world.is_replica_of(1));
}

#[test]
fn with_two_links_a_stopped_entry_server_costs_the_stall_time() {
    let mut world = World::with(Cluster::new(3), two_links(3));
    let call = world.propose(put("a"));
    world.run_for(5_000);
    world.told(call).clone().unwrap();
    world.cluster.servers[0].health = Health::Stopped;
    let call = world.propose(put("b"));
    let read = world.read(ReadAfter::Linearizable, 5_000);
    world.run_for(255);
    world.told(call).clone().unwrap();
    assert_eq!(world.client.reads[&read], Ok(()));
    assert_eq!(world.live_on(), Some(1));
    assert_eq!(world.effects(&put("b")), 1);
}

#[test]
fn a_standby_that_is_ahead_of_a_silent_link_overtakes_it_without_any_call() {
    let mut world = World::with(Cluster::new(2), two_links(2));
    world.run_for(1_000);
    world.cluster.servers[0].health = Health::Stopped;
    let entries = voter_mesh::entry::EntrySpec::internal(voter_mesh::entry::EntryKind::Noop);
    world.cluster.parked.push(voter_mesh::entry::entry(&entries, b"").unwrap());
    world.run_for(400);
    assert_eq!(world.live_on(), Some(1));
    assert_eq!(world.client.core.position.unwrap().0, LogIndex(1));
}

#[test]
fn endpoints_that_are_down_silent_or_wrong_are_left_for_the_next_with_a_typed_reason() {
    let mut cluster = Cluster::new(4);
    cluster.servers[0].health = Health::Down;
    cluster.servers[1].health = Health::Stopped;
    let mut world = World::with(cluster, options(4));
    assert!(matches!(world.client.core.status(), Status::Connecting { last_error: Some(LinkError::Unreachable(_)), .. }));
    world.cluster.servers[2].room.handle_recovering(true);
    world.cluster.servers[3].health = Health::Down;
    world.run_for(5_010);
    assert_eq!(world.client.dialled[..3], [0, 1, 2]);
    let dials = world.client.dialled.len();
    world.run_for(60_000);
    assert!(world.client.dialled.len() - dials < 80, "it backs off: {}", world.client.dialled.len() - dials);
    for code in [Code::Version, Code::Cluster, Code::UnknownRoom, Code::StateMachine, Code::Auth] {
        world.cluster.servers[3].health = Health::Stopped;
        while !matches!(world.client.dialled.last(), Some(3)) {
            world.run_for(10);
        }
        world.say(3, ServerFrame::Refuse { code, retry_after_ms: None });
        let Status::Connecting { last_error: Some(error), .. } = world.client.core.status() else { panic!() };
        assert!(error == refused(code) || matches!(error, LinkError::Unreachable(_)), "{error:?}");
        world.client.dialled.push(0);
    }
    world.cluster.servers[0].health = Health::Up;
    world.run_for(20_000);
    assert_eq!(world.live_on(), Some(0), "it never gives up");
}

#[test]
fn a_closing_server_says_where_to_go_and_when_not_to_come_back() {
    let mut world = World::new(3);
    let endpoints = vec!["ws://2".to_owned()];
    world.say(0, ServerFrame::Close { code: Code::Closing, retry_after_ms: Some(10_000), endpoints });
    world.run_for(100);
    assert_eq!(world.live_on(), Some(2));
    assert_eq!(world.client.dialled, [0, 2]);
}

#[test]
fn a_half_open_link_is_noticed_within_two_ping_periods() {
    let mut world = World::new(2);
    world.run_for(60_000);
    assert_eq!(world.live_on(), Some(0), "an idle link is kept by pings");
    world.cluster.servers[0].health = Health::Stopped;
    world.run_for(40_100);
    assert_eq!(world.live_on(), Some(1));
}

#[test]
fn a_linearizable_read_sees_what_was_acknowledged_anywhere_and_a_client_never_goes_back() {
    let mut world = World::new(2);
    let call = world.propose(put("a"));
    world.run_for(10);
    let at = world.told(call).clone().unwrap().index;
    world.cluster.servers[1].lags = true;
    let call = world.propose(put("b"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.kill(0);
    world.run_for(400);
    assert_eq!(world.live_on(), None, "a server that lags makes it wait");
    assert!(world.client.core.position.unwrap().0 > at);
    world.cluster.servers[1].lags = false;
    world.run_for(2_000);
    assert_eq!(world.live_on(), Some(1));
    world.cluster.quorum = false;
    let read = world.read(ReadAfter::Linearizable, 10_000);
    let session = world.read(ReadAfter::Session, 10_000);
    world.run_for(100);
    assert!(!world.client.reads.contains_key(&read), "nobody confirmed it");
    assert_eq!(world.client.reads[&session], Ok(()));
    world.cluster.quorum = true;
    world.run_for(100);
    assert_eq!(world.client.reads[&read], Ok(()));
}

#[test]
fn a_client_that_is_too_far_behind_gets_a_snapshot_and_goes_on_from_there() {
    let mut limits = RoomLimits::default();
    limits.feed.feed_ring_bytes_max = 4 << 10;
    let mut world = World::with(Cluster::of(2, Epoch(1), limits), options(2));
    for number in 0..200 {
        let call = world.propose(put(&format!("k{number}")));
        world.run_for(10);
        world.told(call).clone().unwrap();
    }
    let behind = world.journal.clone();
    world.mute.insert(0);
    world.propose(put("open"));
    world.run_for(10);
    world.mute.clear();
    let journal = world.journal.clone();
    assert_ne!(journal, behind);
    world.open_client(options(2), &journal);
    world.run_for(100);
    assert!(world.is_replica_of(0));
    let ticket = *journal.open.keys().next().unwrap();
    let ticket = Ticket { session: journal.session.unwrap().session, request: ticket };
    assert!(world.outcome(ticket).unwrap().repeat);
    assert_eq!(world.effects(&put("open")), 1);
    // What the snapshot stands for is not in the stream's reach.
    assert!(matches!(world.client.history.step(LogIndex::FIRST, 0, None), Step::Fetch { .. }));
    world.client.core.fetch(LogIndex::FIRST, LogIndex(10), 1);
    world.run_for(10);
    assert!(matches!(world.client.fetched[&1], Err(StreamError::Trimmed { first }) if first > LogIndex::FIRST));
}

#[test]
fn what_is_not_kept_here_is_fetched_in_pieces_that_fit() {
    let mut world = World::new(1);
    for number in 0..300 {
        world.propose(put(&format!("k{number}")));
        world.run_for(3);
    }
    world.client.core.fetch(LogIndex(5), LogIndex(260), 1);
    world.run_for(10);
    let pieces = world.client.fetched[&1].clone().unwrap();
    assert!(pieces.len() > 1);
    let call = world.propose(put("after"));
    world.run_for(10);
    world.told(call).clone().unwrap();
}

#[test]
fn another_epoch_drops_state_and_session_and_says_so() {
    let mut world = World::new(2);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.cluster.quorum = false;
    let flying = world.propose(put("flying"));
    world.run_for(10);
    world.restore_cluster(2);
    world.run_for(1_000);
    assert!(matches!(world.told(flying), Err(ProposeError::Unknown { reason: Unresolved::Epoch, .. })));
    assert!(world.live_on().is_some());
    assert!(lock(&world.client.state).is_empty());
    let call = world.propose(put("b"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    assert_eq!(world.effects(&put("flying")), 0);
    assert!(world.is_replica_of(0));
    // The journal speaks of the new epoch only.
    assert_eq!(world.journal.session.unwrap().epoch, Epoch(2));
}

#[test]
fn a_history_that_is_not_ours_ends_the_client_and_answers_everyone() {
    let mut world = World::new(2);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.cluster.quorum = false;
    let flying = world.propose(put("b"));
    let read = world.read(ReadAfter::Linearizable, 60_000);
    world.say(0, ServerFrame::Close { code: Code::Diverged, retry_after_ms: None, endpoints: Vec::new() });
    assert!(matches!(world.told(flying), Err(ProposeError::Unknown { reason: Unresolved::Closed, .. })));
    assert!(matches!(world.client.reads[&read], Err(ReadError::Closed(CloseReason::Diverged))));
    assert_eq!(world.client.core.status(), Status::Closed { why: CloseReason::Diverged });
    let late = world.propose(put("c"));
    assert!(matches!(world.told(late), Err(ProposeError::NotSent { reason: NotSent::Closed(CloseReason::Diverged) })));
    assert_eq!(world.client.core.poll_timeout(), None);
}

#[test]
fn an_expired_session_is_told_and_never_replaced_quietly() {
    let mut world = World::new(1);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    let session = world.journal.session.unwrap();
    world.cluster.quorum = false;
    let flying = world.propose(put("b"));
    let reply = WireReply {
        id: *world.journal.open.keys().next().unwrap(),
        index: LogIndex::ZERO,
        term: Term(0),
        payload_crc: 0,
        repeat: false,
        outcome: voter_mesh::outcome::Outcome::SessionExpired,
    };
    world.say(0, ServerFrame::Replies(vec![reply]));
    assert!(matches!(world.told(flying), Err(ProposeError::Unknown { reason: Unresolved::SessionExpired, .. })));
    let next = world.propose(put("c"));
    assert_eq!(world.told(next), &Err(ProposeError::SessionExpired));
    assert_eq!(world.journal.session, Some(session), "a reopened journal will hear it again");
    world.cluster.quorum = true;
    assert!(world.client.core.renew_session(world.now));
    let next = world.propose(put("c"));
    world.run_for(100);
    world.told(next).clone().unwrap();
    assert_ne!(world.journal.session.unwrap().session, session.session);
}

#[test]
fn a_refused_proposal_is_sent_again_until_it_is_taken() {
    let mut world = World::new(1);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.cluster.servers[0].room.handle_overloaded(true);
    let call = world.propose(put("a"));
    world.run_for(1_000);
    assert!(!world.client.proposed.contains_key(&call));
    world.cluster.servers[0].room.handle_overloaded(false);
    world.run_for(2_000);
    world.told(call).clone().unwrap();
    assert_eq!(world.effects(&put("a")), 1);
}

#[test]
fn a_thin_client_is_answered_without_a_feed() {
    let thin = CoreOptions { feed: FeedMode::Thin, machine: None, ..two_links(2) };
    let mut world = World::with(Cluster::new(2), thin);
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    world.kill(0);
    let call = world.propose(put("b"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    assert!(lock(&world.client.state).is_empty());
    assert!(matches!(world.client.core.status(), Status::Live { applied, .. } if applied > LogIndex::ZERO));
}

#[test]
fn closing_answers_everyone_and_ends_a_session_that_no_journal_keeps() {
    let mut world = World::with(Cluster::new(1), CoreOptions { journal_kept: false, ..options(1) });
    let call = world.propose(put("a"));
    world.run_for(10);
    world.told(call).clone().unwrap();
    let session = world.journal.session.unwrap().session;
    world.cluster.quorum = false;
    let flying = world.propose(put("b"));
    world.client.core.close(CloseReason::Application);
    world.settle();
    assert!(matches!(world.told(flying), Err(ProposeError::Unknown { reason: Unresolved::Closed, .. })));
    world.cluster.quorum = true;
    world.settle();
    assert_eq!(world.cluster.servers[0].replica.sessions().opening(session), None::<Opening>);
}

#[test]
fn a_journal_that_fails_ends_the_client_and_claims_nothing() {
    let mut world = World::new(1);
    let warm = world.propose(put("warm"));
    world.run_for(10);
    world.told(warm).clone().unwrap();
    world.journal_stalls = true;
    let call = world.propose(put("a"));
    assert!(world.client.core.poll_journal().is_some());
    world.client.core.handle_journaled(Err("disk full".to_owned()));
    world.settle();
    assert!(matches!(world.told(call), Err(ProposeError::Unknown { reason: Unresolved::Closed, .. })));
    assert!(matches!(world.client.core.status(), Status::Closed { why: CloseReason::Journal(_) }));
    assert_eq!(world.effects(&put("a")), 0);
}
