#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::entry::EntrySpec;
use crate::entry::entry;
use crate::ids::{Epoch, Opening, RoomId, Seat, Term, TimeMs};
use crate::machine::{kv, log};
use crate::outcome::{Outcome, Reply};
use crate::session::EndReason;
use crate::testing::{IDENTITY, Leader, Ledger, World, attach, command, end, hex, internal, open, reborn, written};

fn config(base: RunIndex, outgoing: u64) -> bytes::Bytes {
    let configuration = Configuration { outgoing: vec![crate::ids::RaftId(outgoing)], ..Configuration::default() };
    entry(&EntrySpec::internal(EntryKind::Config), &ConfigPayload { base, configuration }.encode()).unwrap()
}

/// One step of a made-up history: everything that a log can hold, aimed at few sessions and ids so that they meet.
fn step(world: &World, what: u8, a: u64, b: u64) -> bytes::Bytes {
    let sessions = world.replica.sessions();
    let (session, last_activity) = sessions.activity().nth((a % 3) as usize).unwrap_or((SessionId(1), LogIndex(0)));
    let opening = sessions.opening(session).filter(|_| !b.is_multiple_of(9)).unwrap_or(Opening(session.0));
    match what % 16 {
        0 => open((a % 3) as u8),
        1 => attach(session, (b % 3) as u8, opening),
        2 => end(session, EndReason::Expired, last_activity.0.saturating_sub(b % 6)),
        3 if b.is_multiple_of(4) => end(session, EndReason::Closed, 0),
        4 => config(RunIndex(world.replica.configuration_run().0 - b % 2), a),
        5 => internal(EntryKind::Noop, SessionId(0), Opening(0), b""),
        6 => command(session, opening, 40 + a % 4, 0, b"undecodable"),
        7 | 8 => command(session, opening, 30 + a % 4, 0, b"big5000"),
        _ => command(session, opening, a % 12, if b.is_multiple_of(5) { a % 9 } else { 0 }, &[(b / 7 % 5 / 4) as u8]),
    }
}

fn history(steps: &[(u8, u64, u64)]) -> Vec<Run> {
    let mut world = World::new();
    let mut runs = vec![world.apply(&[open(0)]).run, world.apply(&[open(1)]).run, world.apply(&[open(2)]).run];
    for (number, (what, a, b)) in steps.iter().enumerate() {
        world.leader.term = Term(1 + number as u64 / 50);
        world.leader.clock = TimeMs(1000 + a % 500);
        let entry = step(&world, *what, *a, *b);
        runs.push(world.apply(&[entry]).run);
    }
    runs
}

/// A fixed pseudo-random walk: the same on every machine.
fn steps(count: usize) -> Vec<(u8, u64, u64)> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    };
    (0..count).map(|_| (next() as u8, next(), next())).collect()
}

#[test]
fn a_snapshot_at_each_index_of_a_log_changes_nothing() {
    let limits = ReplicaLimits { snapshot_entries: 17, ..ReplicaLimits::default() };
    let runs = history(&steps(197));
    let mut whole = Replica::form(IDENTITY, Configuration::default(), &Ledger::factory(), limits);
    let mut stages = vec![reborn(&whole, limits)];
    let mut told = Vec::new();
    for run in &runs {
        told.push(whole.apply(run).unwrap());
        stages.push(reborn(&whole, limits));
    }
    let outcomes = |wanted: fn(&Reply) -> bool| {
        let replies = told.iter().flat_map(|applied| &applied.events);
        replies.filter(|event| matches!(event, SessionEvent::Replied(reply) if wanted(reply))).count()
    };
    let counts = [
        outcomes(|reply| matches!(reply.outcome, Outcome::Applied(_)) && !reply.repeat),
        outcomes(|reply| matches!(reply.outcome, Outcome::Applied(_)) && reply.repeat),
        outcomes(|reply| matches!(reply.outcome, Outcome::Elided(_))),
        outcomes(|reply| reply.outcome == Outcome::Undecodable),
        outcomes(|reply| reply.outcome == Outcome::Conflict),
        outcomes(|reply| reply.outcome == Outcome::Stale),
        outcomes(|reply| matches!(reply.outcome, Outcome::Superseded(_))),
    ];
    assert!(counts.iter().all(|count| *count > 0), "the history has every outcome in it: {counts:?}");
    for (index, mut replica) in stages.into_iter().enumerate() {
        for (run, told) in runs[index..].iter().zip(&told[index..]) {
            assert_eq!(replica.apply(run).unwrap(), *told, "restored after {index}");
        }
        assert_eq!(written(&replica).0, written(&whole).0, "restored after {index}");
    }
}

#[test]
fn a_run_that_is_applied_again_leaves_all_as_it_did_and_tells_nobody() {
    let limits = ReplicaLimits { snapshot_entries: 17, ..ReplicaLimits::default() };
    let form = || Replica::form(IDENTITY, Configuration::default(), &Ledger::factory(), limits);
    let (mut first, mut again) = (form(), form());
    for run in &history(&steps(197)) {
        let told = first.apply(run).unwrap();
        assert_eq!(again.replay(run).unwrap(), Applied { events: Vec::new(), ..told });
        assert_eq!(written(&again), written(&first), "state, sessions and what they keep of their replies");
    }
}

#[test]
fn a_replay_from_zero_gives_the_same_hashes_however_entries_are_grouped() {
    let runs = history(&steps(150));
    let entries =
        runs.iter().filter(|run| run.config_payload().is_none()).flat_map(|run| run.entries().map(|(_, entry)| entry.bytes));
    let entries: Vec<_> = entries.map(bytes::Bytes::copy_from_slice).collect();
    let replay = |size: usize| {
        let mut world = World::new();
        entries.chunks(size).for_each(|chunk| drop(world.apply(chunk)));
        let meta = written(&world.replica).0;
        (meta.tail.last, meta.state_hash)
    };
    assert_eq!(replay(1), replay(150));
    assert_eq!(replay(1), replay(7));
}

#[test]
fn only_the_next_run_of_this_history_is_applied() {
    let mut world = World::new();
    let before = world.leader.clone();
    let first = world.leader.seal(&[open(1)]);
    let second = world.leader.seal(&[open(2)]);
    let not_next = |expected, found| Err(ApplyError::NotNext { expected: RunIndex(expected), found: RunIndex(found) });
    assert_eq!(world.replica.apply(&second), not_next(2, 3));
    world.replica.apply(&first).unwrap();
    assert_eq!(world.replica.apply(&first), not_next(3, 2));

    let mut other = before;
    other.seal(&[open(3)]);
    let stranger = other.seal(&[open(2)]);
    let hashes = written(&world.replica).0;
    assert_eq!(world.replica.apply(&stranger), Err(ApplyError::Diverged { run: RunIndex(3) }));
    let elsewhere = Run::seal(world.replica.tail(), Term(1), TimeMs(0), Epoch(2), RoomId(0), &[&open(2)]).unwrap();
    assert_eq!(world.replica.apply(&elsewhere), Err(ApplyError::Diverged { run: RunIndex(3) }));
    assert_eq!(written(&world.replica).0, hashes);
    world.replica.apply(&second).unwrap();
}

#[test]
fn a_configuration_made_from_an_overwritten_one_is_void() {
    let mut world = World::new();
    assert_eq!(world.replica.configuration_run(), RunIndex(1));
    let applied = world.apply(&[config(RunIndex(1), 5)]);
    assert_eq!(applied.configuration.as_ref(), Some(world.replica.configuration()));
    assert!(!applied.verdicts.get(0));
    assert_eq!(world.replica.configuration_run(), RunIndex(2));
    assert_eq!(world.apply(&[config(RunIndex(1), 6)]).configuration, None, "its base is gone");
    assert_eq!(world.replica.configuration().outgoing, [crate::ids::RaftId(5)]);
    assert!(world.apply(&[config(RunIndex(2), 7)]).configuration.is_some());
    assert_eq!(reborn(&world.replica, ReplicaLimits::default()).configuration(), world.replica.configuration());
}

#[test]
fn a_configuration_payload_comes_back_as_it_was() {
    let mut configuration = Configuration::default();
    let seat = crate::configuration::SeatRecord {
        address: "10.0.0.1:7501".into(),
        priority: -1,
        failure_domain: "rack".into(),
        highest_life: 3,
        member: None,
        incoming: None,
    };
    configuration.seats.insert(Seat(4), seat);
    let payload = ConfigPayload { base: RunIndex(9), configuration };
    let bytes = payload.encode();
    assert_eq!(ConfigPayload::decode(&bytes), Ok(payload));
    assert!((0..bytes.len()).all(|cut| ConfigPayload::decode(&bytes[..cut]).is_err()));
    assert!(ConfigPayload::decode(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn a_snapshot_is_due_by_the_log_alone_at_the_threshold_and_not_before() {
    let limits = ReplicaLimits { snapshot_entries: 3, snapshot_log_bytes: 0, ..ReplicaLimits::default() };
    let mut world = World::with(limits);
    let due = |world: &mut World, entries: &[bytes::Bytes]| world.apply(entries).snapshot_due;
    assert!(!due(&mut world, &[open(1), open(1)]));
    world.replica = reborn(&world.replica, limits);
    assert!(due(&mut world, &[open(1)]), "a restart in between does not put it off");
    assert!(!due(&mut world, &[open(1), open(1)]));
    assert!(due(&mut world, &[open(1), open(1), open(1)]));
    assert!(!due(&mut world, &[open(1)]));

    let mut world = World::with(ReplicaLimits { snapshot_entries: 0, snapshot_log_bytes: 2 * (64 + 48 + 32), ..limits });
    assert!(!due(&mut world, &[open(1)]));
    assert!(due(&mut world, &[open(1)]));
}

#[test]
fn a_panic_in_the_machine_names_the_entry_and_ends_the_replica() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let run = world.leader.seal(&[command(session, opening, 1, 0, b"a"), command(session, opening, 2, 0, b"panic")]);
    assert_eq!(world.replica.apply(&run), Err(ApplyError::Panicked { index: LogIndex(3) }));
    assert_eq!(world.replica.apply(&run), Err(ApplyError::Panicked { index: LogIndex(3) }), "never applied again on half a run");
}

#[test]
fn a_damaged_snapshot_or_another_machines_is_refused() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    world.command(session, opening, 1, 0, b"a");
    let (meta, state, sessions) = written(&world.replica);
    let restore = |meta: &SnapshotMeta, state: &[u8], sessions: &[u8], factory: &MachineFactory| {
        Replica::restore(meta, &mut &state[..], &mut &sessions[..], factory, ReplicaLimits::default()).map(drop)
    };
    restore(&meta, &state, &sessions, &Ledger::factory()).unwrap();
    for place in 0..sessions.len() {
        let mut damaged = sessions.clone();
        damaged[place] ^= 0x10;
        assert!(restore(&meta, &state, &damaged, &Ledger::factory()).is_err(), "byte {place}");
        assert!(restore(&meta, &state, &sessions[..place], &Ledger::factory()).is_err());
    }
    let last = state.len() - 1;
    let mut damaged = state.clone();
    damaged[last] ^= 1;
    assert!(matches!(restore(&meta, &damaged, &sessions, &Ledger::factory()), Err(RestoreError::Hash { part: "state" })));
    let other = restore(&meta, &state, &sessions, &kv::factory());
    assert!(matches!(other, Err(RestoreError::OtherMachine { name, version: 1 }) if name == "ledger"));
}

#[test]
fn an_image_stays_what_it_was_while_the_replica_goes_on() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    world.command(session, opening, 1, 0, b"a");
    let image = world.replica.image();
    let hashes = written(&world.replica).0;
    world.command(session, opening, 2, 2, b"b");
    world.open(2);
    #[expect(clippy::disallowed_methods, reason = "an image must be able to leave its thread")]
    let written = std::thread::spawn(move || image.write(&mut io::sink(), &mut io::sink()).unwrap()).join().unwrap();
    assert_eq!(written, hashes);
}

#[test]
fn the_log_machine_counts_what_took_effect_and_comes_back_from_its_state() {
    let mut leader = Leader::new();
    let mut replica = Replica::form(IDENTITY, Configuration::default(), &log::factory(), ReplicaLimits::default());
    replica.apply(&leader.seal(&[open(1)])).unwrap();
    let (session, opening) = (SessionId(1), Opening(1));
    let twice = [command(session, opening, 1, 0, b"any \xff bytes"), command(session, opening, 1, 0, b"any \xff bytes")];
    let applied = replica.apply(&leader.seal(&twice)).unwrap();
    assert_eq!(applied.verdicts.as_bytes(), [1]);
    let SessionEvent::Replied(Reply { outcome: Outcome::Applied(reply), .. }) = &applied.events[0] else { panic!() };
    assert_eq!(crate::machine::from_cbor::<LogIndex>(reply), Ok(LogIndex(2)));

    let (_, state, _) = written(&replica);
    let restored = log::Log::restore(&mut &state[..]).unwrap();
    assert_eq!((restored.count(), hex(&state)), (1, "0100000000000000a7380bd5".into()));
    assert!(log::Log::restore(&mut &state[..11]).is_err());
}

#[test]
fn golden_bytes_of_the_session_table() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    world.command(session, opening, 3, 2, b"a");
    world.command(session, opening, 7, 3, b"undecodable");
    world.one(attach(session, 0xCC, opening));
    let (_, _, sessions) = written(&world.replica);
    assert_eq!(hex(&sessions), GOLDEN_SESSIONS);
}

const GOLDEN_SESSIONS: &str = "\
5153455301000000040000000000000004020000000000000100000000000000
010000000000000072cd6e8422c407fb6d098690f1130b7ded7ec2f7f5e1d30b
d9d521f015363793040000000000000003000000000000000400000000000000
01cccccccccccccccccccccccccccccccc020000000300000000000000020000
00000000000100000000000000010000003043d0c10101000000310700000000
000000030000000000000001000000000000000b000000b33bb32003";

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_survives_a_snapshot(steps in proptest::collection::vec((any::<u8>(), 0..1000_u64, 0..1000_u64), 1..120)) {
        let mut replica = Replica::form(IDENTITY, Configuration::default(), &Ledger::factory(), ReplicaLimits::default());
        for run in history(&steps) {
            replica.apply(&run).unwrap();
        }
        prop_assert_eq!(written(&reborn(&replica, ReplicaLimits::default())), written(&replica));
    }
}
