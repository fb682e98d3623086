//! Proposals, outcomes and sessions.

use super::*;

fn outcomes(frames: &[ServerFrame]) -> Vec<WireReply> {
    let replies =
        frames.iter().filter_map(|frame| if let ServerFrame::Replies(replies) = frame { Some(replies.clone()) } else { None });
    replies.flatten().collect()
}

fn refused(frames: &[ServerFrame]) -> Vec<(Vec<u64>, Code)> {
    let refused = frames.iter().filter_map(|frame| match frame {
        ServerFrame::ProposeRefused { ids, code, .. } => Some((ids.iter().map(|id| id.0).collect(), *code)),
        _ => None,
    });
    refused.collect()
}

fn proven(session: SessionId, opening: Option<Opening>, feed: FeedMode) -> Hello {
    Hello { session: Some(SessionProof { session, secret: SECRET, opening }), ..hello(feed) }
}

#[test]
fn an_outcome_and_the_feed_up_to_it_leave_in_one_write_at_once() {
    let mut world = World::new();
    let (own, other) = (world.join_full(1), world.join_full(2));
    world.open(own);
    world.hear(other);
    // The feed's gap is running; the one who waits for an outcome does not wait for it.
    world.propose(own, vec![proposal(1, b"a"), proposal(2, b"b")]);
    assert_eq!(world.woken, [own]);
    let (out, transmit) = world.poll(own, BYTES);
    let frames: Vec<_> = out.iter().map(|message| ServerFrame::decode(message).unwrap()).collect();
    let replies = outcomes(&frames);
    assert_eq!(
        replies.iter().map(|reply| (reply.id.0, reply.index.0, reply.repeat)).collect::<Vec<_>>(),
        [(1, 2, false), (2, 3, false)]
    );
    assert!(matches!(frames.last(), Some(ServerFrame::Feed(_))));
    assert_eq!(transmit, Transmit::Idle);
    world.pass_ms(2);
    assert_eq!(world.woken, [other]);
}

#[test]
fn proposals_of_all_links_travel_in_one_batch() {
    let mut world = World::new();
    let links = [1, 2, 3].map(|link| world.join_full(link));
    let (session, opening) = world.open(links[0]);
    for link in &links[1..] {
        world.say(*link, ClientFrame::SessionOpen { secret: SECRET }).unwrap();
        assert!(world.hear(*link).contains(&ServerFrame::SessionOpened { session, opening }));
    }
    let before = world.replica.tail().run;
    for (number, link) in links.iter().enumerate() {
        let frame = ClientFrame::Propose(vec![proposal(number as u64 + 1, b"x")]).encode();
        world.room.handle_frame(*link, frame, world.replica.sessions(), world.now).unwrap();
    }
    world.settle();
    assert_eq!(world.replica.tail().run, before.next());
    // All three speak for the session: each hears all outcomes.
    for link in links {
        assert_eq!(outcomes(&world.hear(link)).len(), 3);
    }
}

#[test]
fn what_can_never_be_right_or_has_no_room_is_refused_with_its_reason() {
    let mut world = World::new();
    let link = world.join_full(1);
    world.propose(link, vec![proposal(1, b"x")]);
    assert_eq!(refused(&world.hear(link)), [(vec![1], Code::Auth)]);
    let (session, opening) = world.open(link);
    let above = Proposal { floor: RequestId(8), ..proposal(7, b"x") };
    world.held = Some(Vec::new());
    world.propose(link, vec![proposal(1, b"x"), above, proposal(2, b"y")]);
    assert_eq!(refused(&world.hear(link)), [(vec![7], Code::Malformed)]);
    // 254 more fill the window; a repetition of an open one is not another.
    world.propose(link, (3..=256).map(|id| proposal(id, b"z")).collect());
    world.propose(link, vec![proposal(256, b"z"), proposal(257, b"z")]);
    assert_eq!(refused(&world.hear(link)), [(vec![257], Code::Overloaded)]);
    assert_eq!(world.room.counters().proposals_refused, 3);

    let (standby, _) = world.join(2, proven(session, Some(opening), FeedMode::Standby));
    world.propose(standby, vec![proposal(300, b"x")]);
    assert_eq!(refused(&world.hear(standby)), [(vec![300], Code::Malformed)]);
    // A journal that was reopened has to attach first.
    let (reopened, _) = world.join(3, proven(session, None, FeedMode::Thin));
    world.propose(reopened, vec![proposal(300, b"x")]);
    assert_eq!(refused(&world.hear(reopened)), [(vec![300], Code::Auth)]);
    let large = Proposal { payload: vec![0; (1 << 20) - 1_000].into(), ..proposal(301, b"") };
    let (thin, _) = world.join(4, proven(session, Some(opening), FeedMode::Thin));
    world.propose(thin, vec![large]);
    assert_eq!(refused(&world.hear(thin)), [(vec![301], Code::TooLarge)]);
}

#[test]
fn an_overloaded_server_keeps_what_it_took_and_refuses_the_rest() {
    let mut world = World::with(RoomLimits { proposals_bytes_max: 100, ..RoomLimits::default() });
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    world.open(link);
    world.room.handle_overloaded(true);
    world.propose(link, vec![proposal(1, b"x")]);
    assert_eq!(refused(&world.hear(link)), [(vec![1], Code::Overloaded)]);
    world.room.handle_overloaded(false);
    // Laid out before the owner could look: bounded, and held while it is overloaded.
    let frame = ClientFrame::Propose((1..=4).map(|id| proposal(id, b"0123456789")).collect()).encode();
    world.room.handle_frame(link, frame, world.replica.sessions(), world.now).unwrap();
    assert_eq!(refused(&world.hear(link)), [(vec![3, 4], Code::Overloaded)]);
    world.room.handle_overloaded(true);
    assert_eq!(world.room.poll_event(), None);
    world.room.handle_overloaded(false);
    world.settle();
    assert_eq!(outcomes(&world.hear(link)).len(), 2);
}

#[test]
fn opening_is_idempotent_and_costs_one_entry() {
    let mut world = World::new();
    let (one, two) = (world.join_full(1), world.join_full(2));
    world.held = Some(Vec::new());
    for link in [one, two, one] {
        world.say(link, ClientFrame::SessionOpen { secret: SECRET }).unwrap();
    }
    for entries in world.held.take().unwrap() {
        world.apply(&entries);
    }
    world.settle();
    let opened = |heard: &[ServerFrame]| heard.iter().filter(|frame| matches!(frame, ServerFrame::SessionOpened { .. })).count();
    assert_eq!((opened(&world.hear(one)), opened(&world.hear(two))), (1, 1));
    assert!(world.room.opening.is_empty());
    let tail = world.replica.tail().last;
    world.open(two);
    assert_eq!(world.replica.tail().last, tail, "answered from the table");
}

#[test]
fn a_reopened_journal_attaches_and_the_one_before_it_is_superseded() {
    let mut world = World::new();
    let (old, _) = world.join(1, hello(FeedMode::Thin));
    let (session, opening) = world.open(old);
    let attach = |nonce: u8, previous| ClientFrame::SessionAttach { nonce: [nonce; 16], previous };
    let (new, heard) = world.join(2, proven(session, None, FeedMode::Thin));
    assert!(matches!(&heard[..], [ServerFrame::Admit(admit)] if admit.session == SessionStatus::Attached(opening)));
    world.say(new, attach(1, opening)).unwrap();
    let heard = world.hear(new);
    let [ServerFrame::SessionOpened { opening: second, .. }] = heard[..] else { panic!("{heard:?}") };
    assert!(second > opening);
    // The same nonce again, here or elsewhere: the same opening, without an entry.
    let tail = world.replica.tail().last;
    let (again, _) = world.join(3, proven(session, None, FeedMode::Standby));
    world.say(again, attach(1, opening)).unwrap();
    assert_eq!(world.hear(again), [ServerFrame::SessionOpened { session, opening: second }]);
    assert_eq!(world.replica.tail().last, tail);
    // A copy of the journal as it was.
    let (copy, _) = world.join(4, proven(session, None, FeedMode::Thin));
    world.say(copy, attach(2, opening)).unwrap();
    assert_eq!(world.hear(copy), [ServerFrame::Superseded { current: second }]);
    // The old process still runs: its own proposals say so, and the new one's answers are not its.
    world.propose(new, vec![proposal(1, b"new")]);
    world.propose(old, vec![proposal(1, b"old")]);
    assert_eq!(outcomes(&world.hear(old))[0].outcome, Outcome::Superseded(second));
    let replies = outcomes(&world.hear(new));
    assert!(matches!(&replies[..], [WireReply { outcome: Outcome::Applied(_), .. }]), "{replies:?}");
    assert_eq!(outcomes(&world.hear(again)), []);
}

#[test]
fn what_was_unanswered_is_answered_at_the_next_server_from_the_table() {
    let mut world = World::new();
    let first = world.join_full(1);
    let (session, opening) = world.open(first);
    world.propose(first, vec![proposal(5, b"five")]);
    world.room.handle_disconnected(first, world.now);
    let unanswered = vec![RequestId(5), RequestId(6)];
    let (link, heard) = world.join(2, Hello { unanswered: unanswered.clone(), ..proven(session, Some(opening), FeedMode::Thin) });
    let replies = outcomes(&heard);
    assert_eq!(replies.iter().map(|reply| (reply.id.0, reply.repeat)).collect::<Vec<_>>(), [(5, true)]);
    // Six is proposed again, and answered once.
    world.propose(link, vec![proposal(6, b"six")]);
    assert_eq!(outcomes(&world.hear(link)).iter().map(|reply| (reply.id.0, reply.repeat)).collect::<Vec<_>>(), [(6, false)]);
    // An older opening gets no answers of the present one.
    let (reopened, _) = world.join(3, proven(session, None, FeedMode::Thin));
    world.say(reopened, ClientFrame::SessionAttach { nonce: [3; 16], previous: opening }).unwrap();
    let (_, heard) = world.join(4, Hello { unanswered, ..proven(session, Some(opening), FeedMode::Thin) });
    assert!(outcomes(&heard).iter().all(|reply| matches!(reply.outcome, Outcome::Superseded(_))));
}

#[test]
fn after_a_restored_snapshot_open_requests_are_answered_from_the_table() {
    let mut world = World::new();
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    world.open(link);
    let opener = world.join_full(2);
    world.held = Some(Vec::new());
    world.propose(link, vec![proposal(1, b"a"), proposal(2, b"b")]);
    world.say(opener, ClientFrame::SessionOpen { secret: SessionSecret([9; 32]) }).unwrap();
    for entries in world.held.take().unwrap() {
        world.commit(&entries);
    }
    let tail = *world.replica.tail();
    world.room.handle_restored((tail.last, tail.chain), world.replica.sessions(), world.now);
    world.settle();
    assert_eq!(outcomes(&world.hear(link)).iter().map(|reply| reply.id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(world.hear(opener).iter().any(|frame| matches!(frame, ServerFrame::SessionOpened { .. })));
}

#[test]
fn what_was_in_flight_when_a_session_ended_is_answered_as_expired() {
    let mut world = World::new();
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    let (session, opening) = world.open(link);
    world.say(link, ClientFrame::SessionClose).unwrap();
    world.propose(link, vec![proposal(1, b"late")]);
    assert_eq!(outcomes(&world.hear(link))[0].outcome, Outcome::SessionExpired);
    let (standby, heard) = world.join(2, proven(session, Some(opening), FeedMode::Standby));
    assert!(matches!(&heard[..], [ServerFrame::Admit(admit)] if admit.session == SessionStatus::Expired));
    world.propose(standby, vec![proposal(2, b"x")]);
    assert_eq!(refused(&world.hear(standby)), [(vec![2], Code::Malformed)]);
    // The link may open another one.
    world.say(link, ClientFrame::SessionOpen { secret: SECRET }).unwrap();
    assert!(matches!(&world.hear(link)[..], [ServerFrame::SessionOpened { session: next, .. }] if *next > session));
}

#[test]
fn session_frames_are_bounded_in_time_and_the_link_survives() {
    let mut world = World::with(RoomLimits { session_frames_max: 3, ..RoomLimits::default() });
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    let open = |number: u8| ClientFrame::SessionOpen { secret: SessionSecret([number; 32]) };
    for number in 1..=5 {
        world.say(link, open(number)).unwrap();
    }
    assert_eq!(world.replica.sessions().len(), 3);
    assert_eq!(refused(&world.hear(link)), [(vec![], Code::Overloaded), (vec![], Code::Overloaded)]);
    world.pass_ms(10_000);
    world.say(link, open(6)).unwrap();
    assert_eq!(world.replica.sessions().len(), 4);
}

#[test]
fn a_client_that_asks_and_does_not_read_is_closed_when_its_outbox_is_full() {
    let mut world = World::with(RoomLimits { outbox_bytes_max: 1_000, ..RoomLimits::default() });
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    let ended = (0..1_000).find_map(|nonce| world.say(link, ClientFrame::Ping { nonce }).err());
    assert_eq!(ended, Some(Code::Overloaded));
    // What waited is gone: the socket would not take it anyway.
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Close { code: Code::Overloaded, .. }]));

    let (reader, _) = world.join(2, hello(FeedMode::Thin));
    let (session, opening) = world.open(reader);
    let (deaf, _) = world.join(3, proven(session, Some(opening), FeedMode::Thin));
    for id in 1..=100 {
        world.propose(reader, vec![Proposal { floor: RequestId(id), ..proposal(id, b"x") }]);
        assert_eq!(outcomes(&world.hear(reader)).len(), 1);
    }
    assert!(matches!(&world.hear(deaf)[..], [ServerFrame::Close { code: Code::Overloaded, .. }]));
}
