//! Feeds, snapshots, standbys, fetches and reads.

use super::*;

/// A session on link 1000 that writes: the log's source in these stories.
fn writer(world: &mut World) -> LinkId {
    let (link, _) = world.join(1000, hello(FeedMode::Thin));
    world.open(link);
    link
}

fn write(world: &mut World, link: LinkId, ids: std::ops::Range<u64>) {
    for id in ids {
        world.propose(link, vec![Proposal { floor: RequestId(id), ..proposal(id, b"0123456789012345678901234567890123456789") }]);
        world.hear(link);
    }
}

fn small_ring() -> RoomLimits {
    let feed = crate::feed::FeedLimits { feed_ring_bytes_max: 4_000, ..Default::default() };
    RoomLimits { feed, ..RoomLimits::default() }
}

#[test]
fn every_learner_receives_everything_and_one_frame_serves_all() {
    let mut world = World::new();
    let links: Vec<_> = (1..=10).map(|link| world.join_full(link)).collect();
    let mut followers: Vec<_> = links.iter().map(|_| Follower::new()).collect();
    let writer = writer(&mut world);
    write(&mut world, writer, 1..20);
    world.pass_ms(5);
    let frames: Vec<_> = links.iter().map(|link| world.poll(*link, BYTES).0).collect();
    assert_eq!(frames[0].len(), 1);
    assert!(frames.iter().all(|frame| frame[0].as_ptr() == frames[0][0].as_ptr()));
    for (follower, messages) in followers.iter_mut().zip(&frames) {
        let decoded: Vec<_> = messages.iter().map(|message| ServerFrame::decode(message).unwrap()).collect();
        follower.follow(&decoded);
        follower.assert_equals(&world);
        assert_eq!(follower.payloads.len(), 19);
    }
    // One who comes later gets the whole history; one who comes back, the rest of it.
    let late = world.join(50, hello(FeedMode::Full)).1;
    let mut follower = Follower::new();
    follower.follow(&late);
    follower.assert_equals(&world);
    let back = Hello { resume: Some(follower.point()), ..hello(FeedMode::Full) };
    write(&mut world, writer, 20..25);
    follower.follow(&world.join(51, back).1);
    follower.assert_equals(&world);
    assert_eq!(follower.payloads.len(), 24);
}

#[test]
fn idle_the_feed_wakes_at_once_and_under_load_with_a_gap() {
    let mut world = World::new();
    let link = world.join_full(1);
    world.pass_ms(10);
    world.noop();
    assert_eq!(std::mem::take(&mut world.woken), [link]);
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Feed(_)]));
    for _ in 0..5 {
        world.noop();
    }
    assert_eq!(world.woken, []);
    world.pass_ms(1);
    assert_eq!(world.woken, []);
    world.pass_ms(1);
    assert_eq!(std::mem::take(&mut world.woken), [link]);
    // One message for all five runs.
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Feed(_)]));
    assert_eq!(world.hear(link), []);
}

#[test]
fn whoever_waits_for_an_answer_goes_before_the_pass_and_the_gap_begins_at_its_end() {
    let mut world = World::new();
    let links: Vec<_> = (1..=4).map(|link| world.join_full(link)).collect();
    let writer = writer(&mut world);
    world.pass_ms(10);
    for link in &links {
        world.hear(*link);
    }
    world.apply_noop();
    assert_eq!(world.room.poll_wake(world.now), Some(links[0]));
    assert_eq!(world.hear(links[0]).len(), 1);
    // While the pass is under way, and slow, there comes an answer, and more feed.
    let ping = ClientFrame::Ping { nonce: 1 }.encode();
    world.room.handle_frame(writer, ping, world.replica.sessions(), world.now).unwrap();
    for _ in 0..3 {
        world.now = world.now.plus_ms(5);
        world.apply_noop();
    }
    let rest: Vec<_> = std::iter::from_fn(|| world.room.poll_wake(world.now)).collect();
    assert_eq!(rest, [writer, links[1], links[2], links[3]]);
    // Those whose turn it was have all of it; the first has the next pass, after a gap as long as this one, which began when it ended.
    for link in &links[1..] {
        assert!(matches!(&world.hear(*link)[..], [ServerFrame::Feed(_)]));
    }
    assert_eq!(world.room.poll_timeout().map(|(at, _)| at), Some(world.now.plus_ms(15)));
    world.pass_ms(14);
    assert_eq!(world.woken, []);
    world.pass_ms(1);
    assert_eq!(std::mem::take(&mut world.woken), [links[0]]);
    assert!(matches!(&world.hear(links[0])[..], [ServerFrame::Feed(_)]));
    // Nobody is left behind, so nobody is woken for nothing.
    world.pass_ms(100);
    assert_eq!(world.woken, []);
    // However long a pass was held up, the gap has its limit.
    world.apply_noop();
    assert_eq!(world.room.poll_wake(world.now), Some(links[1]));
    world.now = world.now.plus_ms(5_000);
    world.apply_noop();
    while world.room.poll_wake(world.now).is_some() {}
    assert_eq!(world.room.poll_timeout().map(|(at, _)| at), Some(world.now.plus_ms(RoomLimits::default().feed_gap_max_ms)));
}

#[test]
fn a_client_that_does_not_read_costs_nothing_and_catches_up_from_the_ring() {
    let mut world = World::new();
    let (stuck, quick) = (world.join_full(1), world.join_full(2));
    let (mut behind, mut ahead) = (Follower::new(), Follower::new());
    let writer = writer(&mut world);
    for round in 0..200 {
        write(&mut world, writer, round * 10 + 1..round * 10 + 11);
        world.pass_ms(2);
        ahead.follow(&world.hear(quick));
        ahead.assert_equals(&world);
    }
    assert_eq!(world.room.links.get(stuck).unwrap().queued_bytes, 0);
    loop {
        let (out, transmit) = world.poll(stuck, 1);
        assert!(out.len() <= 1 && out.iter().all(|message| message.len() <= (16 << 10) + 1));
        let frames: Vec<_> = out.iter().map(|message| ServerFrame::decode(message).unwrap()).collect();
        behind.follow(&frames);
        if transmit == Transmit::Idle {
            break;
        }
    }
    behind.assert_equals(&world);
    assert_eq!(behind.payloads, ahead.payloads);
}

#[test]
fn a_learner_below_the_ring_gets_a_snapshot_and_goes_on_behind_it() {
    let mut world = World::with(small_ring());
    let slow = world.join_full(1);
    let mut follower = Follower::new();
    let writer = writer(&mut world);
    write(&mut world, writer, 1..100);
    // The ring has moved past its cursor: it waits for a state.
    assert_eq!(world.hear(slow), []);
    world.settle();
    assert_eq!(world.states_wanted.len(), 1);
    // While the state was written the log went on, further than the ring reaches back: asked again.
    let old = world.client_state();
    write(&mut world, writer, 100..200);
    world.room.handle_state(Some(old), world.now);
    world.settle();
    assert_eq!((world.hear(slow), world.states_wanted.len()), (vec![], 2));
    let state = world.client_state();
    world.room.handle_state(Some(state.clone()), world.now);
    write(&mut world, writer, 200..203);
    let heard = world.hear_all(slow);
    assert_eq!(heard[0], ServerFrame::Start(Start::Snapshot(state.index)));
    follower.follow(&heard);
    follower.assert_equals(&world);

    // An empty newcomer is told at admission; the last state is not kept any more, so it gets a new one.
    drop(state);
    world.pass_ms(10_000);
    let (fresh, heard) = world.join(2, hello(FeedMode::Full));
    let least = world.room.feed().first().previous();
    assert!(matches!(&heard[..], [ServerFrame::Admit(admit)] if admit.start == Start::Snapshot(least)));
    assert_eq!(world.states_wanted.len(), 3);
    let state = world.client_state();
    world.room.handle_state(Some(state.clone()), world.now);
    world.settle();
    let heard = world.hear_all(fresh);
    assert_eq!(heard[0], ServerFrame::Start(Start::Snapshot(state.index)));
    let mut follower = Follower::new();
    follower.follow(&heard);
    follower.assert_equals(&world);
}

#[test]
fn a_large_state_travels_in_pieces_and_is_shared_by_those_who_wait() {
    let mut world = World::with(small_ring());
    let writer = writer(&mut world);
    write(&mut world, writer, 1..100);
    let links = [1, 2].map(|link| world.join(link, hello(FeedMode::Full)).0);
    assert_eq!(world.states_wanted.len(), 1);
    let bytes: Vec<u8> = (0..150_000_u32).map(|byte| byte as u8).collect();
    let tail = *world.replica.tail();
    let state = world.state_of(tail.last, tail.chain, bytes.clone().into());
    world.room.handle_state(Some(state), world.now);
    world.settle();
    for link in links {
        let (mut got, mut polls) = (Vec::new(), 0);
        loop {
            let (out, transmit) = world.poll(link, 1);
            polls += 1;
            for message in out {
                if let ServerFrame::Snapshot(chunk) = ServerFrame::decode(&message).unwrap() {
                    assert_eq!((chunk.offset, chunk.total), (got.len() as u64, bytes.len() as u64));
                    got.extend_from_slice(&chunk.bytes);
                }
            }
            world.settle();
            if transmit == Transmit::Idle && got.len() == bytes.len() {
                break;
            }
        }
        assert_eq!(got, bytes);
        assert!(polls >= 4);
    }
    assert_eq!(world.room.counters().snapshots, 2);
}

#[test]
fn a_state_that_does_not_come_ends_the_wait_and_a_stalled_transfer_ends_the_link() {
    let mut world = World::with(RoomLimits { snapshot_stall_ms: 15_000, ..small_ring() });
    let writer = writer(&mut world);
    write(&mut world, writer, 1..100);
    let (link, _) = world.join(1, hello(FeedMode::Full));
    world.pass_ms(10_000);
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Close { code: Code::Overloaded, retry_after_ms: Some(_), .. }]));
    let (link, _) = world.join(2, hello(FeedMode::Full));
    let tail = *world.replica.tail();
    let state = world.state_of(tail.last, tail.chain, vec![0; 1 << 20].into());
    world.room.handle_state(Some(state), world.now);
    world.settle();
    world.poll(link, 1);
    world.poll(link, 1);
    for _ in 0..2 {
        // It pings, but it does not read.
        world.pass_ms(7_500);
        let _ = world.say(link, ClientFrame::Ping { nonce: 0 });
    }
    assert!(matches!(world.hear(link).last(), Some(ServerFrame::Close { code: Code::Timeout, .. })));
}

#[test]
fn a_resume_takes_the_place_of_what_the_link_waited_for() {
    let mut world = World::with(small_ring());
    let writer = writer(&mut world);
    write(&mut world, writer, 1..100);
    let (link, _) = world.join(1, hello(FeedMode::Full));
    world.say(link, ClientFrame::Resume { resume: None, feed: FeedMode::Thin, unanswered: vec![], partial: None }).unwrap();
    let state = world.client_state();
    world.room.handle_state(Some(state), world.now);
    world.pass_ms(11_000);
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Start(Start::Tail(_))]));
}

#[test]
fn a_thin_client_gets_replies_and_no_feed() {
    let mut world = World::new();
    let (link, _) = world.join(1, hello(FeedMode::Thin));
    world.open(link);
    world.propose(link, vec![proposal(1, b"x")]);
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Replies(replies)] if replies.len() == 1));
    world.noop();
    world.pass_ms(1_000);
    assert_eq!(world.hear(link), []);
}

#[test]
fn a_standby_hears_how_far_the_log_is_at_most_every_100_ms_and_takes_over_with_resume() {
    let mut world = World::new();
    let full = world.join_full(1);
    let (session, opening) = world.open(full);
    let proof = SessionProof { session, secret: SECRET, opening: Some(opening) };
    let (standby, heard) = world.join(2, Hello { session: Some(proof), ..hello(FeedMode::Standby) });
    assert_eq!(heard.len(), 1);
    world.pass_ms(200);
    assert_eq!(world.hear(standby), [], "nothing changed");
    let mut follower = Follower::new();
    world.propose(full, vec![proposal(1, b"a")]);
    world.pass_ms(0);
    let tail = *world.replica.tail();
    assert_eq!(world.hear(standby), [ServerFrame::Commit { index: tail.last, chain: tail.chain }]);
    world.propose(full, vec![proposal(2, b"b")]);
    world.pass_ms(99);
    assert_eq!(world.hear(standby), []);
    world.pass_ms(1);
    assert!(matches!(&world.hear(standby)[..], [ServerFrame::Commit { .. }]));

    // The first link dies: request 2 was never heard of, request 3 never arrived.
    follower.follow(&world.hear(full)[..1]);
    world.room.handle_disconnected(full, world.now);
    let resume = ClientFrame::Resume {
        resume: Some(follower.point()),
        feed: FeedMode::Full,
        unanswered: vec![RequestId(2), RequestId(3)],
        partial: None,
    };
    world.say(standby, resume).unwrap();
    world.propose(standby, vec![proposal(3, b"c")]);
    let heard = world.hear(standby);
    assert!(matches!(heard[0], ServerFrame::Start(Start::Tail(_))), "{heard:?}");
    let answered: Vec<_> = heard
        .iter()
        .filter_map(|frame| if let ServerFrame::Replies(replies) = frame { Some(replies.clone()) } else { None })
        .flatten()
        .map(|reply| (reply.id.0, reply.repeat))
        .collect();
    assert_eq!(answered, [(2, true), (3, false)]);
    follower.follow(&heard);
    follower.assert_equals(&world);
}

#[test]
fn a_resume_that_is_ahead_waits_while_the_link_lives_on() {
    let mut world = World::new();
    let (link, _) = world.join(1, hello(FeedMode::Standby));
    let mut ahead = World::new();
    ahead.noop();
    let point = ResumePoint { applied: LogIndex(1), chain: ahead.replica.tail().chain };
    let resume = |applied| ClientFrame::Resume {
        resume: Some(ResumePoint { applied, ..point }),
        feed: FeedMode::Full,
        unanswered: vec![],
        partial: None,
    };
    world.say(link, resume(LogIndex(1))).unwrap();
    world.say(link, ClientFrame::Ping { nonce: 4 }).unwrap();
    assert_eq!(world.hear(link), [ServerFrame::Pong { nonce: 4 }]);
    world.noop();
    assert_eq!(world.hear(link), [ServerFrame::Start(Start::Tail(LogIndex(2)))]);
    world.say(link, resume(LogIndex(7))).unwrap();
    world.pass_ms(500);
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Close { code: Code::Behind, .. }]));
}

#[test]
fn a_restored_server_begins_its_feed_anew_and_loses_no_learner() {
    let mut world = World::new();
    let link = world.join_full(1);
    let (standby, _) = world.join(2, hello(FeedMode::Standby));
    world.noop();
    let mut follower = Follower::new();
    follower.follow(&world.hear(link));
    // Five runs that this room never sees.
    let entry = voter_mesh::entry::entry(&voter_mesh::entry::EntrySpec::internal(voter_mesh::entry::EntryKind::Noop), &[]).unwrap();
    for _ in 0..5 {
        world.commit(&entry);
    }
    let tail = *world.replica.tail();
    world.room.handle_restored((tail.last, tail.chain), world.replica.sessions(), world.now);
    world.pass_ms(200);
    assert_eq!(world.hear(link), []);
    world.settle();
    let state = world.client_state();
    world.room.handle_state(Some(state), world.now);
    world.settle();
    world.noop();
    follower.follow(&world.hear_all(link));
    follower.assert_equals(&world);
    assert!(matches!(&world.hear(standby)[..], [ServerFrame::Commit { .. }]));
}

#[test]
fn reads_share_a_round_until_it_is_taken_and_none_waits_for_ever() {
    let mut world = World::with(RoomLimits { reads_per_link_max: 3, ..RoomLimits::default() });
    let (one, two) = (world.join_full(1), world.join_full(2));
    let ask = |world: &mut World, link, id| {
        let frame = ClientFrame::ReadIndex { id }.encode();
        world.room.handle_frame(link, frame, world.replica.sessions(), world.now).unwrap();
    };
    ask(&mut world, one, 11);
    ask(&mut world, two, 21);
    ask(&mut world, one, 12);
    world.settle();
    assert_eq!(world.reads.len(), 1);
    ask(&mut world, one, 13);
    ask(&mut world, one, 14);
    assert_eq!(world.hear(one), [ServerFrame::ReadRefused { id: 14, code: Code::Overloaded }]);
    world.settle();
    let [first, second] = world.reads[..] else { panic!("{:?}", world.reads) };
    world.room.handle_read(first, LogIndex(5), world.now);
    let index = LogIndex(5);
    assert_eq!(world.hear(one), [ServerFrame::Read { id: 11, index }, ServerFrame::Read { id: 12, index }]);
    assert_eq!(world.hear(two), [ServerFrame::Read { id: 21, index }]);
    world.pass_ms(5_000);
    assert_eq!(world.hear(one), [ServerFrame::ReadRefused { id: 13, code: Code::Timeout }]);
    assert_eq!(world.cancelled, [second]);
    // Too late: nobody waits.
    world.room.handle_read(second, index, world.now);
    assert_eq!(world.hear(one), []);
    // The owner takes no more.
    ask(&mut world, two, 22);
    world.settle();
    world.room.handle_read_refused(world.reads[2], world.now);
    assert_eq!(world.hear(two), [ServerFrame::ReadRefused { id: 22, code: Code::Overloaded }]);
}

#[test]
fn a_fetch_is_answered_from_the_ring_in_pieces_or_told_where_it_begins() {
    let mut world = World::with(small_ring());
    let writer = writer(&mut world);
    write(&mut world, writer, 1..100);
    let first = world.room.feed().first();
    let tail = world.room.feed().tail().0;
    let fetch = |from, to| ClientFrame::Fetch { from, to };
    world.say(writer, fetch(LogIndex(1), LogIndex(2))).unwrap();
    assert_eq!(world.hear(writer), [ServerFrame::Trimmed { first }]);
    world.say(writer, fetch(first.next(), LogIndex(tail.0 + 9))).unwrap();
    let heard = world.hear(writer);
    let (last, pieces) = heard.split_last().unwrap();
    assert_eq!(*last, ServerFrame::Runs(Default::default()), "it has not come that far");
    let mut learner = voter_mesh::learner::Learner::at(first, chain_at(&world, first));
    let mut follower = Follower::new();
    for piece in pieces {
        let ServerFrame::Runs(blocks) = piece else { panic!("{piece:?}") };
        learner.apply_blocks(&mut blocks.clone(), &mut follower.state(), &mut |_| ()).unwrap();
    }
    assert_eq!(learner.applied(), tail);
    assert_eq!(world.say(writer, fetch(LogIndex(3), LogIndex(2))), Err(Code::Malformed));
}

fn chain_at(world: &World, index: LogIndex) -> Chain {
    match world.room.feed().chain_at(index) {
        crate::feed::ChainAt::Known(chain) => chain,
        other => panic!("{other:?}"),
    }
}

/// What the room costs for each delivery: `cargo test --release -p relay -- --ignored --nocapture fan_out`.
#[expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures")]
#[test]
#[ignore = "a measurement"]
fn fan_out() {
    let mut world = World::with(RoomLimits { links_per_address_max: 20_000, ..RoomLimits::default() });
    let links: Vec<_> = (1..=10_000).map(|link| world.join_full(link)).collect();
    let (mut out, mut messages, mut spent) = (Vec::new(), 0, std::time::Duration::ZERO);
    for _ in 0..200 {
        world.now = world.now.plus_ms(3);
        let entry =
            voter_mesh::entry::entry(&voter_mesh::entry::EntrySpec::internal(voter_mesh::entry::EntryKind::Noop), &[]).unwrap();
        let applied = world.commit(&entry);
        let begun = std::time::Instant::now();
        world.room.handle_applied(&applied, world.now);
        while let Some(link) = world.room.poll_wake(world.now) {
            world.room.poll_transmit(link, BYTES, &mut out, world.now);
            messages += out.len();
            out.clear();
        }
        spent += begun.elapsed();
    }
    assert_eq!(messages, 200 * links.len());
    println!("{:.0} ns a delivery", spent.as_secs_f64() * 1e9 / messages as f64);
}
