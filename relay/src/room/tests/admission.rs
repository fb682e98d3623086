//! Who is let in, and how links end.

use std::net::{IpAddr, Ipv4Addr};

use super::*;

fn refusal(frames: &[ServerFrame]) -> Code {
    match frames {
        [ServerFrame::Refuse { code, .. }] => *code,
        _ => panic!("not refused: {frames:?}"),
    }
}

fn closing(frames: &[ServerFrame]) -> Code {
    match frames.last() {
        Some(ServerFrame::Close { code, .. }) => *code,
        _ => panic!("not closed: {frames:?}"),
    }
}

#[test]
fn a_hello_that_names_anything_else_is_refused_with_what_it_is() {
    let mut world = World::new();
    let other = hello(FeedMode::Full);
    let cases = [
        (Hello { version: 9, ..other.clone() }, Code::Version),
        (Hello { room: "other".into(), ..other.clone() }, Code::UnknownRoom),
        (Hello { cluster: Some(ClusterId([8; 16])), ..other.clone() }, Code::Cluster),
        (Hello { epoch: Some(Epoch(2)), ..other.clone() }, Code::Epoch),
        (Hello { state_machine: Some(("kv".into(), 1)), ..other.clone() }, Code::StateMachine),
        (Hello { state_machine: Some(("log".into(), 2)), ..other.clone() }, Code::StateMachine),
    ];
    for (link, (hello, code)) in cases.into_iter().enumerate() {
        let (link, heard) = world.join(link as u64, hello);
        assert_eq!(refusal(&heard), code);
        assert_eq!(world.poll(link, BYTES).1, Transmit::CloseAfter);
        assert!(world.room.counters().refused[&code] > 0);
        world.room.handle_disconnected(link, world.now);
    }
    let same = Hello {
        cluster: Some(IDENTITY.cluster),
        epoch: Some(IDENTITY.epoch),
        state_machine: Some(("log".into(), 1)),
        ..hello(FeedMode::Full)
    };
    let (_, heard) = world.join(99, same);
    let [ServerFrame::Admit(admit)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((admit.cluster, admit.start, admit.session), (IDENTITY.cluster, Start::Tail(LogIndex(1)), SessionStatus::None));
    assert_eq!(world.room.link_count(), 1);
}

#[test]
fn a_slow_handshake_ends_after_five_seconds_and_undisturbed_links_stay() {
    let mut world = World::new();
    let talker = world.join_full(1);
    let silent = world.connect(2);
    world.pass_ms(4_999);
    assert_eq!(world.hear(silent), []);
    world.pass_ms(1);
    assert_eq!(refusal(&world.hear(silent)), Code::Timeout);
    world.room.handle_disconnected(silent, world.now);
    world.say(talker, ClientFrame::Ping { nonce: 5 }).unwrap();
    assert_eq!(world.hear(talker), [ServerFrame::Pong { nonce: 5 }]);
}

#[test]
fn silence_for_two_ping_periods_closes_a_link_and_any_frame_keeps_it() {
    let mut world = World::new();
    let (silent, pinging) = (world.join_full(1), world.join_full(2));
    for _ in 0..2 {
        world.pass_ms(19_999);
        assert_eq!(world.hear(silent), []);
        world.say(pinging, ClientFrame::Ping { nonce: 0 }).unwrap();
        world.hear(pinging);
    }
    world.pass_ms(2);
    assert_eq!(closing(&world.hear(silent)), Code::Timeout);
    assert_eq!(world.poll(silent, BYTES).1, Transmit::CloseAfter);
    assert_eq!(world.hear(pinging), []);
    // Its socket did not even take the goodbye.
    world.pass_ms(1_999);
    assert_eq!(world.room.poll_abort(), None);
    world.pass_ms(1);
    assert_eq!((world.room.poll_abort(), world.room.poll_abort()), (Some(silent), None));
}

#[test]
fn what_is_no_client_frame_closes_the_link_and_is_counted() {
    let mut world = World::new();
    let bystander = world.join_full(100);
    let nested = [&[kind::PROPOSE][..], &[0x81; 10_000]].concat();
    let cases: [(Vec<u8>, Code); 8] = [
        (vec![], Code::Malformed),
        // What a mesh frame looks like: a length, then its kind.
        (vec![0, 0, 0, 9, 1, 2, 3, 4], Code::Malformed),
        (vec![kind::ADMIT, 0x80], Code::Malformed),
        (vec![kind::PRESENCE, 0x80], Code::Unsupported),
        (nested, Code::Malformed),
        (vec![kind::PROPOSE, 0x9b, 0x80, 0, 0, 0, 0, 0, 0, 0], Code::TooLarge),
        (ClientFrame::Ping { nonce: 1 }.encode()[..2].to_vec(), Code::Malformed),
        (vec![kind::PING; (1 << 20) + 1], Code::TooLarge),
    ];
    let count = cases.len() as u64;
    for (link, (bytes, code)) in (1..).zip(cases) {
        let link = world.join_full(link);
        assert_eq!(world.room.handle_frame(link, bytes.into(), world.replica.sessions(), world.now), Err(code));
        assert_eq!(closing(&world.hear(link)), code);
        // Nothing more is heard from it.
        assert_eq!(world.say(link, ClientFrame::Ping { nonce: 1 }), Err(code));
    }
    let counters = world.room.counters();
    assert_eq!(counters.unknown_kinds, 2);
    assert_eq!(counters.malformed, count - 2);
    assert_eq!(counters.closed.values().sum::<u64>(), count);
    world.noop();
    world.pass_ms(5);
    assert!(matches!(&world.hear(bystander)[..], [ServerFrame::Feed(_)]));
}

#[test]
fn before_the_hello_nothing_else_may_be_said_and_no_second_hello_after() {
    let mut world = World::new();
    let early = world.connect(1);
    assert_eq!(world.say(early, ClientFrame::Ping { nonce: 1 }), Err(Code::Malformed));
    assert_eq!(refusal(&world.hear(early)), Code::Malformed);
    let twice = world.join_full(2);
    assert_eq!(world.say(twice, ClientFrame::Hello(hello(FeedMode::Full))), Err(Code::Malformed));
    assert_eq!(closing(&world.hear(twice)), Code::Malformed);
}

#[test]
fn places_are_bounded_in_all_and_by_address_and_a_disconnect_gives_them_back() {
    let mut world = World::with(RoomLimits { links_max: 3, links_per_address_max: 2, ..RoomLimits::default() });
    let elsewhere = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    world.connect(1);
    world.connect(2);
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert_eq!(world.room.handle_connected(LinkId(3), local, world.now), Err(Code::Overloaded));
    world.room.handle_connected(LinkId(4), elsewhere, world.now).unwrap();
    world.room.handle_disconnected(LinkId(1), world.now);
    world.room.handle_connected(LinkId(5), elsewhere, world.now).unwrap();
    assert_eq!(world.room.handle_connected(LinkId(6), local, world.now), Err(Code::Overloaded));
    assert_eq!(world.room.link_count(), 3);
}

#[test]
fn a_client_that_is_ahead_waits_for_the_server_and_is_sent_away_if_it_does_not_come() {
    let mut world = World::new();
    world.noop();
    let mut ahead = World::new();
    ahead.noop();
    ahead.now = ahead.now.plus_ms(499);
    ahead.noop();
    let point = ResumePoint { applied: LogIndex(2), chain: ahead.replica.tail().chain };
    let lagging = Hello { resume: Some(point), ..hello(FeedMode::Full) };

    let (first, heard) = world.join(1, lagging.clone());
    assert_eq!(heard, []);
    world.pass_ms(499);
    assert_eq!(world.hear(first), []);
    world.noop();
    world.settle();
    let heard = world.hear(first);
    assert!(matches!(&heard[..], [ServerFrame::Admit(Admit { start: Start::Tail(LogIndex(3)), .. })]), "{heard:?}");

    let further = ResumePoint { applied: LogIndex(9), ..point };
    let (second, _) = world.join(2, Hello { resume: Some(further), ..lagging });
    world.pass_ms(500);
    assert_eq!(refusal(&world.hear(second)), Code::Behind);
}

#[test]
fn a_history_that_is_not_ours_is_never_resynced() {
    let mut world = World::new();
    world.noop();
    world.noop();
    for (link, feed) in [(1, FeedMode::Full), (2, FeedMode::Standby)] {
        let foreign = ResumePoint { applied: LogIndex(1), chain: Chain(1) };
        let (_, heard) = world.join(link, Hello { resume: Some(foreign), ..hello(feed) });
        assert_eq!(refusal(&heard), Code::Diverged);
    }
    // Ours has one run over 3 and 4: no replica of it ever stood at 3.
    let entry = voter_mesh::entry::entry(&voter_mesh::entry::EntrySpec::internal(voter_mesh::entry::EntryKind::Noop), &[]).unwrap();
    world.apply(&[&entry[..], &entry[..]].concat());
    let inside = ResumePoint { applied: LogIndex(3), chain: Chain(1) };
    let (_, heard) = world.join(3, Hello { resume: Some(inside), ..hello(FeedMode::Full) });
    assert_eq!(refusal(&heard), Code::Diverged);
}

#[test]
fn a_session_needs_its_secret_and_an_ended_one_is_said_to_be_gone() {
    let mut world = World::new();
    let first = world.join_full(1);
    let (session, opening) = world.open(first);
    let proof = SessionProof { session, secret: SECRET, opening: Some(opening) };
    let stranger = SessionProof { secret: SessionSecret([2; 32]), ..proof.clone() };
    let (_, heard) = world.join(2, Hello { session: Some(stranger), ..hello(FeedMode::Thin) });
    assert_eq!(refusal(&heard), Code::Auth);

    let status = |heard: &[ServerFrame]| match heard {
        [ServerFrame::Admit(admit), ..] => admit.session,
        _ => panic!("{heard:?}"),
    };
    let (_, heard) = world.join(3, Hello { session: Some(proof.clone()), ..hello(FeedMode::Thin) });
    assert_eq!(status(&heard), SessionStatus::Attached(opening));
    world.say(first, ClientFrame::SessionClose).unwrap();
    let (_, heard) = world.join(4, Hello { session: Some(proof.clone()), ..hello(FeedMode::Thin) });
    assert_eq!(status(&heard), SessionStatus::Expired);

    // A session, or an opening of it, that this server has not applied yet: it waits.
    let ahead = SessionProof { session: SessionId(40), ..proof };
    let (waiting, heard) = world.join(5, Hello { session: Some(ahead), ..hello(FeedMode::Thin) });
    assert_eq!(heard, []);
    world.pass_ms(500);
    assert_eq!(refusal(&world.hear(waiting)), Code::Behind);
}

#[test]
fn shutting_down_closes_every_link_with_where_to_go_and_takes_no_new_one() {
    let mut world = World::new();
    let live = world.join_full(1);
    let early = world.connect(2);
    world.room.handle_close(Code::Closing, Some(250));
    world.settle();
    let endpoints = vec!["ws://server-2:7400".to_owned(), "ws://server-3:7400".to_owned()];
    assert_eq!(world.hear(live), [ServerFrame::Close { code: Code::Closing, retry_after_ms: Some(250), endpoints }]);
    assert_eq!(world.hear(early), [ServerFrame::Refuse { code: Code::Closing, retry_after_ms: Some(250) }]);
    assert_eq!(world.room.handle_connected(LinkId(3), IpAddr::V4(Ipv4Addr::LOCALHOST), world.now), Err(Code::Closing));
}

#[test]
fn a_recovering_server_says_so() {
    let mut world = World::new();
    world.room.handle_recovering(true);
    let (_, heard) = world.join(1, hello(FeedMode::Full));
    assert_eq!(refusal(&heard), Code::Recovering);
    world.room.handle_recovering(false);
    world.join_full(2);
}

#[test]
fn sessions_that_come_and_go_are_reported_in_deltas_and_all_of_them_to_a_new_leader() {
    let mut world = World::new();
    let first = world.join_full(1);
    let (session, opening) = world.open(first);
    let proof =
        Hello { session: Some(SessionProof { session, secret: SECRET, opening: Some(opening) }), ..hello(FeedMode::Standby) };
    let (second, _) = world.join(2, proof);
    assert_eq!(world.activity, []);
    world.pass_ms(10_000);
    assert_eq!(std::mem::take(&mut world.activity), [(vec![session], vec![])]);
    // One of two links goes: the session is still here.
    world.room.handle_disconnected(first, world.now);
    world.say(second, ClientFrame::Ping { nonce: 0 }).unwrap();
    world.pass_ms(10_000);
    assert_eq!(world.activity, []);
    world.room.report_all_sessions();
    world.settle();
    assert_eq!(std::mem::take(&mut world.activity), [(vec![session], vec![])]);
    world.room.handle_disconnected(second, world.now);
    world.pass_ms(10_000);
    assert_eq!(world.activity, [(vec![session], vec![session])]);
    assert_eq!(world.room.poll_timeout(), None);
}

#[test]
fn a_link_costs_little_and_leaves_nothing_behind() {
    assert!(size_of::<super::super::link::Link>() < 512, "{}", size_of::<super::super::link::Link>());
    let mut world = World::new();
    for round in 0..50_u64 {
        for number in 0..200 {
            world.join_full(round * 200 + number);
        }
        for number in 0..200 {
            world.room.handle_disconnected(LinkId(round * 200 + number), world.now);
        }
    }
    assert_eq!(world.room.link_count(), 0);
    assert!(world.room.addresses.is_empty() && world.room.attached.is_empty());
    assert!(world.room.links.listed(super::super::List::Parked) <= 400);
    assert_eq!(world.room.poll_timeout(), None);
}
