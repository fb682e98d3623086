#![allow(clippy::unwrap_used)]

use bytes::BytesMut;

use super::*;
use crate::configuration::Configuration;
use crate::entry::EntryKind;
use crate::ids::Opening;
use crate::machine::Image;
use crate::machine::kv::{self, Kv, KvCommand};
use crate::machine::to_cbor;
use crate::replica::{Applied, Replica, ReplicaLimits};
use crate::session::EndReason;
use crate::testing::{IDENTITY, Leader, Ledger, World, attach, command, end, internal, open, written};

fn block(applied: &Applied) -> Bytes {
    let mut bytes = BytesMut::from(&applied.run.bytes()[..]);
    bytes.extend_from_slice(applied.verdicts.as_bytes());
    bytes.freeze()
}

/// A feed with every kind of entry in it, effective and not; the world that made it; the end of each block.
fn feed() -> (World, Bytes, Vec<usize>) {
    let mut world = World::new();
    let (session, opening) = (SessionId(1), Opening(1));
    let runs = [
        vec![internal(EntryKind::Noop, SessionId(0), Opening(0), b""), open(9)],
        vec![open(1)],
        vec![
            command(SessionId(2), Opening(2), 1, 0, b"a"),
            command(SessionId(2), Opening(2), 1, 0, b"a"),
            command(SessionId(2), Opening(2), 1, 0, b"conflict"),
            command(SessionId(2), Opening(2), 2, 0, b"undecodable"),
            command(session, opening, 1, 0, b"no session"),
            command(SessionId(2), Opening(2), 3, 0, b"b"),
            attach(SessionId(2), 1, Opening(2)),
            command(SessionId(2), Opening(2), 4, 0, b"superseded"),
            command(SessionId(2), Opening(10), 4, 0, b"c"),
        ],
        vec![
            end(SessionId(2), EndReason::Expired, 0),
            end(SessionId(2), EndReason::Closed, 0),
            end(SessionId(2), EndReason::Closed, 0),
        ],
    ];
    let (mut feed, mut ends) = (BytesMut::new(), Vec::new());
    for run in runs {
        feed.extend_from_slice(&block(&world.apply(&run)));
        ends.push(feed.len());
    }
    (world, feed.freeze(), ends)
}

#[test]
fn a_learner_reaches_the_servers_state_without_a_session_table() {
    let (world, mut blocks, _) = feed();
    let (mut learner, mut state, mut committed) = (Learner::new(&IDENTITY), RawState(Ledger::default()), Vec::new());
    learner.apply_blocks(&mut blocks, &mut state, &mut |one| committed.push(one)).unwrap();
    assert!(blocks.is_empty());
    assert_eq!((learner.applied(), learner.chain()), (world.leader.tail.last, world.leader.tail.chain));
    assert_eq!(state.0.0, world.effects());
    let mut bytes = Vec::new();
    Box::new(state.0).write(&mut bytes).unwrap();
    assert_eq!(bytes, written(&world.replica).1, "and so the same state hash");
    let payloads: Vec<_> = committed.iter().map(|one| (one.index.0, one.session.0, &one.payload[..])).collect();
    assert_eq!(payloads, [(4, 2, &b"a"[..]), (9, 2, b"b"), (12, 2, b"c")]);
}

#[test]
fn a_feed_cut_anywhere_is_taken_up_where_it_broke() {
    let (world, blocks, ends) = feed();
    for cut in 0..blocks.len() {
        let (mut learner, mut state) = (Learner::new(&IDENTITY), RawState(Ledger::default()));
        let mut part = blocks.slice(..cut);
        let result = learner.apply_blocks(&mut part, &mut state, &mut |_| ());
        let done = ends.iter().rev().find(|end| **end <= cut).copied().unwrap_or(0);
        assert_eq!(result.is_ok(), done == cut, "cut at {cut}");
        assert_eq!(part.len(), cut - done, "whole blocks are taken off");
        learner.apply_blocks(&mut blocks.slice(done..), &mut state, &mut |_| ()).unwrap();
        assert_eq!(state.0.0, world.effects());
    }
}

#[test]
fn a_flipped_bit_in_a_run_is_never_applied() {
    let (_, blocks, ends) = feed();
    for bit in 0..(ends[0] - 1) * 8 {
        let mut damaged = blocks.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut learner = Learner::new(&IDENTITY);
        assert!(learner.apply_blocks(&mut damaged.into(), &mut (), &mut |_| ()).is_err(), "bit {bit}");
        assert_eq!(learner.applied(), LogIndex::ZERO);
    }
}

#[test]
fn a_run_is_applied_once_in_its_place_and_in_its_history_or_not_at_all() {
    let (_, blocks, ends) = feed();
    let (mut learner, mut state) = (Learner::new(&IDENTITY), ());
    let mut apply =
        |learner: &mut Learner, from: usize, to: usize| learner.apply_blocks(&mut blocks.slice(from..to), &mut state, &mut |_| ());
    let not_next = Err(LearnerError::NotNext { expected: LogIndex(1), found: LogIndex(3) });
    assert_eq!(apply(&mut learner, ends[0], ends[1]), not_next);
    apply(&mut learner, 0, ends[1]).unwrap();
    let old = Err(LearnerError::Old { first: LogIndex(1), last: LogIndex(2) });
    assert_eq!(apply(&mut learner, 0, ends[0]), old);
    let mut inside = Learner::at(LogIndex(1), learner.chain());
    let not_next = Err(LearnerError::NotNext { expected: LogIndex(2), found: LogIndex(1) });
    assert_eq!(apply(&mut inside, 0, ends[0]), not_next, "a learner stands at a run's end");
    let mut stranger = Learner::at(LogIndex(3), Chain(1));
    assert_eq!(apply(&mut stranger, ends[1], ends[2]), Err(LearnerError::Diverged { index: LogIndex(4) }));
}

#[test]
fn a_typed_learner_holds_what_the_server_holds_and_says_when_it_is_another_machine() {
    let mut leader = Leader::new();
    let mut replica = Replica::form(IDENTITY, Configuration::default(), &kv::factory(), ReplicaLimits::default());
    let mut feed = BytesMut::from(&block(&replica.apply(&leader.seal(&[open(1)])).unwrap())[..]);
    let put = to_cbor(&KvCommand::Put { key: b"k".to_vec(), value: b"v".to_vec() }).unwrap();
    let entries = [command(SessionId(1), Opening(1), 1, 0, &put), command(SessionId(1), Opening(1), 2, 0, b"\xff")];
    feed.extend_from_slice(&block(&replica.apply(&leader.seal(&entries)).unwrap()));

    let (mut learner, mut state) = (Learner::new(&IDENTITY), TypedState(Kv::default()));
    learner.apply_blocks(&mut feed.clone().freeze(), &mut state, &mut |_| ()).unwrap();
    assert_eq!(state.0.get(b"k").unwrap().value, &b"v"[..]);
    let mut bytes = Vec::new();
    <Kv as StateMachine>::write(state.0, &mut bytes).unwrap();
    assert_eq!(bytes, written(&replica).1);

    struct Other;
    impl LearnerState for Other {
        fn apply(&mut self, _payload: &[u8], _at: &Position) -> Result<(), Undecodable> {
            Err(Undecodable)
        }
        fn session_ended(&mut self, _session: SessionId, _at: &Position) {}
    }
    let mut learner = Learner::new(&IDENTITY);
    let result = learner.apply_blocks(&mut feed.freeze(), &mut Other, &mut |_| ());
    assert_eq!(result, Err(LearnerError::Undecodable { index: LogIndex(2) }));
    assert_eq!(learner.applied(), LogIndex(1));
}
