use bytes::{Bytes, BytesMut};

use super::*;
use crate::entry::{EntryKind, EntrySpec, entry};
use crate::ids::{ClusterId, Epoch, Identity, RaftId, RoomId};
use crate::run::Run;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

fn tail(run: u64, term: u64) -> Tail {
    Tail { run: RunIndex(run), term: Term(term), last: LogIndex(run * 2), chain: Chain(run as u32 + 100), time: TimeMs(run + 1000) }
}

fn mark() -> Mark {
    Mark {
        sequence: 12,
        segment: 3,
        term: Term(5),
        vote: RaftId::new(crate::ids::Seat(2), 1),
        commit: RunIndex(8),
        last: tail(10, 5),
        synced_through: RunIndex(9),
        must_reach: None,
        vote_lost: false,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_header_has_these_bytes_and_no_flipped_bit_passes() {
    let header = SegmentHeader {
        kind: SegmentKind::Continues,
        identity: IDENTITY,
        id: RaftId::new(crate::ids::Seat(2), 3),
        sequence: 4,
        before: tail(10, 5),
    };
    let sector = header.encode();
    assert_eq!(
        hex(&sector[..96]),
        "51554f524c4f470a0100000001000000070707070707070707070707070707070100000000000000\
         030002000000000004000000000000000a000000000000000500000000000000140000000000000\
         0f2030000000000006e00000000000000"
    );
    assert_eq!((sector[96..508].to_vec(), hex(&sector[508..])), (vec![0; 412], "c28cd1d2".into()));
    assert_eq!(SegmentHeader::decode(&sector), Ok(header));
    for bit in 0..SECTOR_BYTES * 8 {
        let mut flipped = sector;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&flipped).is_err(), "bit {bit}");
    }
    let mut newer = sector;
    newer[8] = 2;
    seal(&mut newer);
    assert_eq!(SegmentHeader::decode(&newer), Err(SegmentError::Newer { found: 2 }));
}

#[test]
fn the_mark_has_these_bytes_and_no_flipped_bit_passes() {
    let mark = Mark { must_reach: Some(tail(11, 5)), vote_lost: true, ..mark() };
    let sector = mark.encode();
    assert_eq!(
        hex(&sector[..136]),
        "4d41524b030000000c000000000000000300000000000000050000000000000001000200000000000800000000000000\
         0a0000000000000005000000000000001400000000000000f2030000000000006e00000000000000\
         0900000000000000\
         0b0000000000000005000000000000001600000000000000f3030000000000006f00000000000000"
    );
    assert_eq!((sector[136..508].to_vec(), hex(&sector[508..])), (vec![0; 372], "9b02441b".into()));
    assert_eq!(Mark::decode(&sector, 3, 0), Some(mark));
    assert_eq!(Mark::decode(&sector, 4, 0), None, "another segment's");
    assert_eq!(Mark::decode(&sector, 3, 1), None, "in the other slot");
    for bit in 0..SECTOR_BYTES * 8 {
        let mut flipped = sector;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Mark::decode(&flipped, 3, 0), None, "bit {bit}");
    }
}

#[test]
fn one_unreadable_slot_costs_the_certainty_of_the_vote_and_two_cost_the_log() {
    let (old, new) = (Mark { sequence: 11, ..mark() }, mark());
    assert_eq!(MarkSlots([Some(new), Some(old)]).newest(), Ok(new));
    assert_eq!(MarkSlots([None, Some(old)]).newest(), Ok(Mark { vote_lost: true, ..old }));
    assert_eq!(MarkSlots([Some(new), None]).newest(), Ok(Mark { vote_lost: true, ..new }));
    assert_eq!(MarkSlots([None, None]).newest(), Err(NoMark));
}

#[test]
fn the_verdict_follows_from_the_end_and_the_mark() {
    let mark = mark();
    assert_eq!(judge(&tail(10, 5), false, &mark), Verdict::Clean);
    assert_eq!(judge(&tail(10, 5), true, &mark), Verdict::Torn);
    assert_eq!(judge(&tail(12, 5), false, &mark), Verdict::Torn, "a later batch without its mark");
    assert_eq!(judge(&tail(9, 5), false, &mark), Verdict::Doubtful);
    assert_eq!(judge(&tail(9, 5), true, &mark), Verdict::Doubtful);
    assert_eq!(judge(&tail(8, 5), false, &mark), Verdict::Suspect);
    let suspect = Mark { must_reach: Some(tail(20, 5)), ..mark };
    assert_eq!(judge(&tail(10, 5), false, &suspect), Verdict::Suspect, "it remembers what it lost");
    assert_eq!(judge(&tail(20, 5), false, &suspect), Verdict::Torn);
    assert_eq!(judge(&tail(12, 6), false, &suspect), Verdict::Torn, "a later leader's history is whole");
}

#[test]
fn the_writers_term_fences_and_the_runs_terms_do_not() {
    let mark = mark();
    let append = Intent { term: mark.term, vote: mark.vote, writer: Some(mark.term), cut_above: None, restart_behind: None };
    assert_eq!(mark.admit(&append), Ok(()));
    assert_eq!(mark.admit(&Intent { cut_above: Some(RunIndex(8)), ..append }), Ok(()), "whatever the terms above it are");
    assert_eq!(
        mark.admit(&Intent { cut_above: Some(RunIndex(7)), ..append }),
        Err(Fenced::Committed { commit: RunIndex(8), keep_through: RunIndex(7) })
    );
    assert_eq!(
        mark.admit(&Intent { restart_behind: Some(RunIndex(7)), ..append }),
        Err(Fenced::Committed { commit: RunIndex(8), keep_through: RunIndex(7) }),
        "a stale snapshot does not wipe a newer log"
    );
    assert_eq!(mark.admit(&Intent { writer: Some(Term(4)), ..append }), Err(Fenced::Deposed { durable: Term(5), writer: Term(4) }));
    assert_eq!(mark.admit(&Intent { term: Term(4), ..append }), Err(Fenced::TermFell { durable: Term(5), asked: Term(4) }));
    let other = RaftId::new(crate::ids::Seat(3), 1);
    assert_eq!(
        mark.admit(&Intent { vote: other, ..append }),
        Err(Fenced::VoteChanged { term: Term(5), durable: mark.vote, asked: other })
    );
    assert_eq!(mark.admit(&Intent { term: Term(6), vote: other, ..append }), Ok(()));
}

#[test]
fn a_walk_takes_what_continues_and_stops_at_everything_else() {
    let command = entry(&EntrySpec::internal(EntryKind::Command), b"hello").unwrap();
    let zero = Tail::zero(&IDENTITY);
    let seal =
        |tail: &Tail, term| Run::seal(tail, Term(term), TimeMs(9), IDENTITY.epoch, IDENTITY.room, &[command.as_ref()]).unwrap();
    let first = seal(&zero, 2);
    let second = seal(&first.header().tail(), 2);
    let other_second = seal(&first.header().tail(), 3);
    let stale_third = seal(&second.header().tail(), 2);

    let mut bytes = BytesMut::new();
    for run in [&first, &other_second, &stale_third] {
        bytes.extend_from_slice(run.bytes());
    }
    let mut bytes = bytes.freeze();
    assert_eq!(step(&zero, &IDENTITY, &mut bytes), Step::Run(first.clone()));
    assert_eq!(step(&first.header().tail(), &IDENTITY, &mut bytes), Step::Run(other_second.clone()));
    let end = other_second.header().tail();
    assert_eq!(step(&end, &IDENTITY, &mut bytes), Step::End { torn: true }, "its neighbour was overwritten");

    assert_eq!(step(&end, &IDENTITY, &mut Bytes::from_static(&[0; 200])), Step::End { torn: false });
    assert_eq!(step(&end, &IDENTITY, &mut Bytes::new()), Step::End { torn: false });
    let third = seal(&end, 3);
    for cut in 1..third.bytes().len() {
        assert_eq!(step(&end, &IDENTITY, &mut third.bytes().slice(..cut)), Step::More, "cut at {cut}");
    }
    let elsewhere = Identity { epoch: Epoch(2), ..IDENTITY };
    assert_eq!(step(&end, &elsewhere, &mut third.bytes().clone()), Step::End { torn: true });
    for bit in 0..third.bytes().len() * 8 {
        let mut flipped = third.bytes().to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(step(&end, &IDENTITY, &mut flipped.into()), Step::End { torn: true }, "bit {bit}");
    }
}

#[test]
fn a_run_is_found_behind_damage_and_none_that_cannot_stand_there() {
    let mut leader = crate::testing::Leader::new();
    let runs: Vec<Run> = (0..6).map(|n| leader.seal(&[crate::testing::open(n)])).collect();
    let after = runs[0].header().tail();
    let mut bytes = vec![0xa5; 333];
    // An older run that a recycled file left, and the one that would continue, do not stand behind a hole.
    for run in [&runs[0], &runs[1], &runs[3], &runs[4]] {
        bytes.extend_from_slice(run.bytes());
    }
    let (one, at) = (runs[3].bytes().len(), 333 + runs[0].bytes().len() + runs[1].bytes().len());
    let through = RunIndex(7);
    let find = |bytes: &[u8], at_end| find_run(&after, through, &IDENTITY, &Bytes::copy_from_slice(bytes), at_end);
    assert_eq!(find(&bytes, true), Ok((at, runs[3].clone())));
    assert_eq!(find(&bytes[..at + one - 1], false), Err(at), "read on from there");
    assert_eq!(find(&bytes[..at + one - 1], true), Err(at + one - 1 - 63));
    bytes[at + 70] ^= 1;
    assert_eq!(find(&bytes, true), Ok((at + one, runs[4].clone())), "a damaged one is no far side");
    assert_eq!(find_run(&after, RunIndex(5), &IDENTITY, &bytes.clone().into(), true), Err(bytes.len() - 63), "none of the log");
    let elsewhere = Identity { epoch: Epoch(2), ..IDENTITY };
    assert!(find_run(&after, through, &elsewhere, &bytes.into(), true).is_err());
}
