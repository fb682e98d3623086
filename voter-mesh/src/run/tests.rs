#![allow(clippy::unwrap_used)]

use super::*;
use crate::ids::{Opening, SessionId};
use crate::testing::{IDENTITY, Leader, command, hex, internal};

fn example() -> Run {
    Leader::new().seal(&[command(SessionId(1), Opening(1), 1, 0, b"one"), command(SessionId(1), Opening(1), 2, 1, b"two")])
}

/// The run with its header changed and its checksum made right again: what a broken or hostile server could send.
fn forged(change: impl FnOnce(&mut [u8])) -> Result<Run, RunError> {
    let mut bytes = example().bytes().to_vec();
    change(&mut bytes);
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    Run::split_from(&mut bytes.into())
}

#[test]
fn golden_bytes_of_a_run() {
    assert_eq!(hex(example().bytes()), GOLDEN_RUN);
    let mut bytes = example().bytes().clone();
    assert_eq!(Run::split_from(&mut bytes), Ok(example()));
    assert!(bytes.is_empty());
}

const GOLDEN_RUN: &str = "\
6600000002000000020000000000000001000000000000000100000000000000
00000000e803000000000000010000000000000056fd0d86df478229bb7981c2
03000000e9b2942a010000000100000000000000010000000000000001000000
000000000000000000000000cf9d22566f6e6503000000a3b3d8520100000001
0000000000000001000000000000000200000000000000010000000000000040
26efe174776f";

#[test]
fn a_run_with_any_bit_flipped_or_any_byte_missing_is_refused_and_stays_where_it_was() {
    let good = example().bytes().clone();
    for bit in 0..good.len() * 8 {
        let mut damaged = good.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut damaged = Bytes::from(damaged);
        assert!(Run::split_from(&mut damaged).is_err(), "bit {bit}");
        assert_eq!(damaged.len(), good.len());
    }
    for cut in 0..good.len() {
        assert_eq!(Run::split_from(&mut good.slice(..cut)), Err(RunError::Truncated));
    }
}

#[test]
fn a_forged_header_with_a_good_checksum_is_refused() {
    let put = |at: usize, value: u64| move |bytes: &mut [u8]| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    assert_eq!(forged(|_| ()), Ok(example()));
    assert_eq!(forged(|bytes| bytes[4] = 0), Err(RunError::Empty));
    assert_eq!(forged(|bytes| bytes[4] = 3), Err(RunError::Count));
    assert_eq!(forged(|bytes| bytes[7] = 0xFF), Err(RunError::Count));
    assert_eq!(forged(put(8, 0)), Err(RunError::Empty));
    assert_eq!(forged(put(16, 0)), Err(RunError::Empty));
    assert_eq!(forged(put(16, u64::MAX)), Err(RunError::Empty), "its last index would not be a number");
    assert_eq!(forged(put(24, 2)), Err(RunError::Chain), "the term is in the chain");
    assert_eq!(forged(put(36, 2)), Err(RunError::Chain), "so is the time");
    assert_eq!(forged(|bytes| bytes[32] = 1), Err(RunError::Flags));
    assert_eq!(forged(|bytes| bytes[50] = 1), Err(RunError::Flags));
    assert!(matches!(forged(|bytes| bytes[3] = 0x7F), Err(RunError::TooLarge(_))));
}

#[test]
fn a_leaders_clock_that_jumps_back_never_makes_time_fall() {
    let mut leader = Leader::new();
    let first = leader.seal(&[internal(EntryKind::Noop, SessionId(0), Opening(0), b"")]);
    leader.clock = TimeMs(3);
    let second = leader.seal(&[internal(EntryKind::Noop, SessionId(0), Opening(0), b"")]);
    assert_eq!(second.header().time, first.header().time);
    assert!(first.header().tail().continues(second.header()));
}

#[test]
fn a_configuration_stands_alone_and_a_run_holds_something() {
    let seal = |entries: &[&[u8]]| Run::seal(&Tail::zero(&IDENTITY), Term(1), TimeMs(0), Epoch(1), RoomId(0), entries);
    let config = internal(EntryKind::Config, SessionId(0), Opening(0), b"c");
    let noop = internal(EntryKind::Noop, SessionId(0), Opening(0), b"");
    assert_eq!(seal(&[]), Err(RunError::Empty));
    assert_eq!(seal(&[&config, &noop]), Err(RunError::ConfigNotAlone));
    assert_eq!(seal(&[&config]).unwrap().config_payload(), Some(&b"c"[..]));
    assert_eq!(seal(&[&noop]).unwrap().config_payload(), None);
    assert!(matches!(seal(&[&noop[1..]]), Err(RunError::Entry(_))));
}

#[test]
fn verdict_bits_are_one_per_entry_lowest_first() {
    let mut verdicts = Verdicts::clear(9);
    verdicts.set(0);
    verdicts.set(8);
    verdicts.set(99);
    assert_eq!(verdicts.as_bytes(), [1, 1]);
    assert_eq!((0..10).filter(|offset| verdicts.get(*offset)).collect::<Vec<_>>(), [0, 8]);
}
