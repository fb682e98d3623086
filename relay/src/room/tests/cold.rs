//! Learners below the ring: runs read from the log, states in pieces, and every edge between ring, log and state.

use super::*;

/// Runs written in these stories; the small ring holds about the last ten of them.
const RUNS: u64 = 100;

fn small_ring(feed_ring_bytes_max: usize) -> RoomLimits {
    let feed = crate::feed::FeedLimits { feed_ring_bytes_max, ..Default::default() };
    RoomLimits { feed, ..RoomLimits::default() }
}

/// A world with a log that reaches far below its ring.
fn deep() -> (World, LinkId) {
    let mut world = World::with(small_ring(4_000));
    let (writer, _) = world.join(1000, hello(FeedMode::Thin));
    world.open(writer);
    write(&mut world, writer, 1..RUNS);
    world.keep_from(1);
    assert!(world.room.feed().first() > LogIndex(80) && world.room.feed().first() < LogIndex(RUNS - 5));
    (world, writer)
}

fn write(world: &mut World, link: LinkId, ids: std::ops::Range<u64>) {
    for id in ids {
        world.propose(link, vec![Proposal { floor: RequestId(id), ..proposal(id, b"0123456789012345678901234567890123456789") }]);
        world.hear(link);
    }
}

/// The point of a learner that has applied the first `runs` runs.
fn point(world: &World, runs: usize) -> ResumePoint {
    match runs.checked_sub(1).map(|last| world.log[last].0.header()) {
        Some(header) => ResumePoint { applied: header.last(), chain: header.chain_after },
        None => ResumePoint { applied: LogIndex::ZERO, chain: voter_mesh::run::chain_zero(&IDENTITY) },
    }
}

/// Follows all that comes, until nothing does.
fn follow_all(world: &mut World, link: LinkId, follower: &mut Follower) -> Vec<ServerFrame> {
    let heard = world.hear_all(link);
    follower.follow(&heard);
    heard
}

#[test]
fn a_learner_at_every_run_end_gets_the_rest_whole_from_log_and_ring() {
    let (mut world, _) = deep();
    for runs in 0..=world.log.len() {
        let at = point(&world, runs);
        let mut follower = Follower::new();
        follower.learner = voter_mesh::learner::Learner::at(at.applied, at.chain);
        let (link, heard) = world.join(runs as u64 + 1, Hello { resume: Some(at), ..hello(FeedMode::Full) });
        let Some(ServerFrame::Admit(admit)) = heard.first().cloned().or_else(|| world.hear(link).first().cloned()) else {
            panic!("{runs}: {heard:?}")
        };
        assert_eq!(admit.start, Start::Tail(at.applied.next()), "{runs}");
        follower.follow(&heard);
        follow_all(&mut world, link, &mut follower);
        assert_eq!(follower.point(), point(&world, world.log.len()), "{runs}");
        world.room.handle_disconnected(link, world.now);
    }
    assert_eq!(world.room.counters().snapshots, 0);
}

#[test]
fn the_chain_is_looked_up_in_the_log_too() {
    let (mut world, _) = deep();
    for (applied, chain) in
        [(LogIndex(20), Chain(1)), (LogIndex(0), Chain(1)), (point(&world, 30).applied, point(&world, 31).chain)]
    {
        let resume = Some(ResumePoint { applied, chain });
        let (link, heard) = world.join(1, Hello { resume, ..hello(FeedMode::Full) });
        let refused = ServerFrame::Refuse { code: Code::Diverged, retry_after_ms: None };
        assert_eq!([heard, world.hear(link)].concat(), [refused], "{applied}");
        world.room.handle_disconnected(link, world.now);
    }
}

#[test]
fn a_thousand_learners_at_one_place_cost_one_read_for_each_chunk() {
    let (mut world, _) = deep();
    let at = point(&world, 5);
    let mut followers = Vec::new();
    for number in 1..=900 {
        let link = world.connect(number);
        let resume = Hello { resume: Some(at), ..hello(FeedMode::Full) };
        world.room.handle_frame(link, ClientFrame::Hello(resume).encode(), world.replica.sessions(), world.now).unwrap();
        let mut follower = Follower::new();
        follower.learner = voter_mesh::learner::Learner::at(at.applied, at.chain);
        followers.push((link, follower));
    }
    world.settle();
    for _ in 0..40 {
        for (link, follower) in &mut followers {
            let heard = world.hear(*link);
            follower.follow(&heard);
        }
        world.settle();
    }
    let end = point(&world, world.log.len());
    assert!(followers.iter().all(|(_, follower)| follower.point() == end));
    assert!(world.runs_wanted.len() <= 10, "{:?}", world.runs_wanted);
}

#[test]
fn a_learner_that_fell_below_the_ring_goes_on_in_the_log_while_others_are_served_from_the_ring() {
    let mut world = World::with(small_ring(4_000));
    world.keep_from(1);
    let (slow, quick) = (world.join_full(1), world.join_full(2));
    let (mut behind, mut ahead) = (Follower::new(), Follower::new());
    let (writer, _) = world.join(1000, hello(FeedMode::Thin));
    world.open(writer);
    for round in 0..20 {
        write(&mut world, writer, round * 10 + 1..round * 10 + 11);
        world.pass_ms(2);
        ahead.follow(&world.hear(quick));
        ahead.assert_equals(&world);
    }
    assert_eq!(world.runs_wanted, []);
    // It reads a little at a time, while the log goes on.
    for round in 20..60 {
        write(&mut world, writer, round * 10 + 1..round * 10 + 11);
        let (out, _) = world.poll(slow, 1);
        behind.follow(&out.iter().map(|message| ServerFrame::decode(message).unwrap()).collect::<Vec<_>>());
        world.settle();
    }
    follow_all(&mut world, slow, &mut behind);
    behind.assert_equals(&world);
    assert_eq!(behind.payloads.len(), 600);
    assert!(!world.runs_wanted.is_empty());
    assert_eq!(world.room.counters().snapshots, 0);
}

#[test]
fn a_log_that_is_trimmed_under_a_learner_gives_it_a_state_and_never_a_gap() {
    let (mut world, writer) = deep();
    let at = point(&world, 3);
    world.disk_stalls = true;
    let (link, heard) = world.join(1, Hello { resume: Some(at), ..hello(FeedMode::Full) });
    assert_eq!(heard, []);
    // While its chunk is being read, the log loses it.
    world.keep_from(50);
    world.room.handle_runs(at.applied.next(), Vec::new(), world.now);
    world.settle();
    let heard = world.hear(link);
    assert!(matches!(&heard[..], [ServerFrame::Admit(admit)] if admit.start == Start::Snapshot(LogIndex(49))), "{heard:?}");
    assert_eq!(world.states_wanted, [(LogIndex(49), None)]);
    // A state behind which the log goes on will do, although the ring begins later.
    world.disk_stalls = false;
    let state = world.client_state();
    let index = state.index;
    world.room.handle_state(Some(state), world.now);
    write(&mut world, writer, RUNS..2 * RUNS);
    assert!(index.next() < world.room.feed().first());
    let mut follower = Follower::new();
    let all = follow_all(&mut world, link, &mut follower);
    assert_eq!(all[0], ServerFrame::Start(Start::Snapshot(index)));
    follower.assert_equals(&world);

    // One that is in the midst of the log is told so too.
    let (link, heard) = world.join(2, Hello { resume: Some(point(&world, 60)), ..hello(FeedMode::Full) });
    let mut follower = Follower::new();
    follower.learner = voter_mesh::learner::Learner::at(point(&world, 60).applied, point(&world, 60).chain);
    follower.follow(&heard);
    world.keep_from(150);
    let state = world.client_state();
    world.room.handle_state(Some(state), world.now);
    follow_all(&mut world, link, &mut follower);
    follower.assert_equals(&world);
}

#[test]
fn a_log_that_cannot_be_read_where_it_should_is_not_asked_again() {
    let (mut world, _) = deep();
    world.disk_stalls = true;
    let (_, _) = world.join(1, Hello { resume: Some(point(&world, 3)), ..hello(FeedMode::Full) });
    let from = world.runs_wanted[0];
    world.room.handle_runs(from, Vec::new(), world.now);
    world.settle();
    let (_, _) = world.join(2, Hello { resume: Some(point(&world, 60)), ..hello(FeedMode::Full) });
    assert_eq!((world.runs_wanted.len(), world.states_wanted.len()), (1, 1));
    // Said again, it is served again.
    world.keep_from(1);
    let (_, _) = world.join(3, Hello { resume: Some(point(&world, 60)), ..hello(FeedMode::Full) });
    assert_eq!(world.runs_wanted.len(), 2);
}

#[test]
fn a_disk_that_does_not_answer_ends_the_wait_and_holds_up_nobody_else() {
    let (mut world, writer) = deep();
    world.disk_stalls = true;
    let live = world.join_full(3);
    assert!(world.states_wanted.len() == 1, "the ring does not begin at the first entry");
    let at = point(&world, 3);
    let links: Vec<_> = (10..20)
        .map(|number| world.join(number, Hello { resume: Some(point(&world, number as usize)), ..hello(FeedMode::Full) }).0)
        .collect();
    assert_eq!(world.runs_wanted.len(), 2, "at once");
    world.say(writer, ClientFrame::Fetch { from: LogIndex(2), to: LogIndex(9) }).unwrap();
    write(&mut world, writer, RUNS..RUNS + 5);
    world.pass_ms(3_000);
    for link in links {
        assert!(matches!(&world.hear(link)[..], [ServerFrame::Refuse { code: Code::Overloaded, retry_after_ms: Some(_) }]));
        world.room.handle_disconnected(link, world.now);
    }
    // When it answers again, whoever is gone costs nothing.
    world.disk_stalls = false;
    for from in world.runs_wanted.clone() {
        world.read_runs(from);
    }
    world.settle();
    assert!(matches!(&world.hear(writer)[..], [ServerFrame::Runs(_)]));
    assert_eq!(world.runs_wanted.len(), 3, "only the fetch was still waited for: {at:?}");
    let _ = live;
}

#[test]
fn a_fetch_from_the_first_entry_is_answered_from_log_and_ring_without_a_gap() {
    let (mut world, writer) = deep();
    let tail = world.room.feed().tail().0;
    world.say(writer, ClientFrame::Fetch { from: LogIndex(1), to: tail }).unwrap();
    let mut learner = voter_mesh::learner::Learner::new(&IDENTITY);
    let mut follower = Follower::new();
    while learner.applied() < tail {
        for frame in world.hear(writer) {
            let ServerFrame::Runs(blocks) = frame else { panic!("{frame:?}") };
            learner.apply_blocks(&mut blocks.clone(), &mut follower.state(), &mut |_| ()).unwrap();
        }
        world.settle();
    }
    assert_eq!(learner.applied(), tail);
    world.keep_from(40);
    world.say(writer, ClientFrame::Fetch { from: LogIndex(39), to: tail }).unwrap();
    assert_eq!(world.hear(writer), [ServerFrame::Trimmed { first: LogIndex(40) }]);
}

/// Reads pieces of a state until `bytes` are there; they must begin at `from`.
fn pieces(world: &mut World, link: LinkId, from: u64, bytes: u64) -> Vec<u8> {
    let mut got = Vec::new();
    while (got.len() as u64) < bytes {
        let (out, _) = world.poll(link, 1);
        world.settle();
        for message in out {
            if let ServerFrame::Snapshot(chunk) = ServerFrame::decode(&message).unwrap() {
                assert_eq!(chunk.offset, from + got.len() as u64);
                got.extend_from_slice(&chunk.bytes);
            }
        }
    }
    got
}

#[test]
fn a_state_goes_on_where_the_last_link_ended_if_it_is_the_same_state() {
    let (mut world, _) = deep();
    world.keep_from(50);
    let tail = *world.replica.tail();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|byte| (byte / 7) as u8).collect();
    let state = world.state_of(tail.last, tail.chain, bytes.clone().into());
    let (link, _) = world.join(1, hello(FeedMode::Full));
    world.room.handle_state(Some(state.clone()), world.now);
    world.settle();
    let begun = pieces(&mut world, link, 0, 400_000);
    world.room.handle_disconnected(link, world.now);

    // The very same: from there on, with a `Start` first because the piece at hand is asked for again.
    let partial = Some(PartialState { index: state.index, hash: state.hash, bytes: begun.len() as u64 });
    let (link, heard) = world.join(2, Hello { partial, ..hello(FeedMode::Full) });
    assert!(matches!(&heard[0], ServerFrame::Admit(admit) if admit.start == Start::Snapshot(state.index)));
    let first: Vec<u8> = heard
        .iter()
        .filter_map(|frame| if let ServerFrame::Snapshot(chunk) = frame { Some(chunk.bytes.to_vec()) } else { None })
        .flatten()
        .collect();
    let rest = pieces(&mut world, link, (begun.len() + first.len()) as u64, (bytes.len() - begun.len() - first.len()) as u64);
    assert_eq!([begun, first, rest].concat(), bytes);
    assert_eq!((world.room.counters().snapshots, world.room.counters().snapshots_resumed), (2, 1));

    // Another hash, or more than there is: it is asked for, and when it does not come the state at hand is sent from its beginning.
    for partial in [
        PartialState { index: state.index, hash: [9; 32], bytes: 10 },
        PartialState { index: state.index, hash: state.hash, bytes: state.bytes },
        PartialState { index: LogIndex(60), hash: [9; 32], bytes: 10 },
    ] {
        let (link, heard) = world.join(3, Hello { partial: Some(partial), ..hello(FeedMode::Full) });
        assert!(matches!(&heard[..], [ServerFrame::Admit(_)]), "{heard:?}");
        assert_eq!(world.states_wanted.last(), Some(&(LogIndex(49), Some(partial))));
        world.room.handle_state(Some(state.clone()), world.now);
        world.settle();
        pieces(&mut world, link, 0, bytes.len() as u64);
        world.room.handle_disconnected(link, world.now);
    }
}

#[test]
fn a_large_state_for_many_slow_readers_keeps_memory_bounded() {
    let limits = RoomLimits { pieces_kept_max: 4, ..small_ring(4_000) };
    let mut world = World::with(limits);
    let (writer, _) = world.join(1000, hello(FeedMode::Thin));
    world.open(writer);
    write(&mut world, writer, 1..RUNS);
    let tail = *world.replica.tail();
    let bytes = vec![7; 1_000 * 65_536];
    let state = world.state_of(tail.last, tail.chain, bytes.into());
    let links: Vec<_> = (1..=20).map(|number| world.join(number, hello(FeedMode::Full)).0).collect();
    world.room.handle_state(Some(state), world.now);
    world.settle();
    // Each at a place of its own.
    for (number, link) in links.iter().enumerate() {
        pieces(&mut world, *link, 0, number as u64 * 300_000 + 1);
    }
    assert!(world.room.states.pieces.len() <= 4);
    for link in links {
        assert_eq!(world.room.links.get(link).unwrap().queued_bytes, 0);
    }
}

#[test]
fn a_state_that_cannot_be_read_ends_the_links_that_wait_for_it() {
    let (mut world, _) = deep();
    world.keep_from(50);
    let state = world.client_state();
    world.states.clear();
    let (link, _) = world.join(1, hello(FeedMode::Full));
    world.room.handle_state(Some(state), world.now);
    world.settle();
    world.hear(link);
    world.settle();
    assert!(matches!(&world.hear(link)[..], [ServerFrame::Close { code: Code::Overloaded, retry_after_ms: Some(_), .. }]));
    // It is not offered again.
    world.join(2, hello(FeedMode::Full));
    assert_eq!(world.states_wanted.len(), 2);
}
