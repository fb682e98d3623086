#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::hex;

fn example() -> Bytes {
    let spec = EntrySpec {
        kind: EntryKind::Command,
        room: RoomId(0),
        session: SessionId(1),
        opening: Opening(2),
        request: RequestId(7777),
        floor: RequestId(7000),
    };
    entry(&spec, b"hello").unwrap()
}

#[test]
fn golden_bytes_of_an_entry() {
    assert_eq!(hex(&example()), GOLDEN_ENTRY);
}

const GOLDEN_ENTRY: &str = "\
050000004cbb719a0100000001000000000000000200000000000000611e0000
00000000581b0000000000007fce85c168656c6c6f";

#[test]
fn an_entry_with_any_bit_flipped_or_any_byte_missing_is_refused() {
    let good = example();
    fn decode(bytes: &[u8]) -> Result<Vec<EntryRef<'_>>, EntryError> {
        Entries::checked(bytes).collect()
    }
    let decoded = decode(&good).unwrap();
    assert_eq!((decoded.len(), decoded[0].payload, decoded[0].bytes), (1, &b"hello"[..], &good[..]));
    for bit in 0..good.len() * 8 {
        let mut damaged = good.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged).is_err(), "bit {bit}");
    }
    for cut in 1..good.len() {
        assert_eq!(decode(&good[..cut]), Err(EntryError::Truncated));
    }
}

#[test]
fn what_a_newer_version_would_write_is_refused_by_name() {
    let rewritten = |place: usize, byte: u8| {
        let mut bytes = example().to_vec();
        bytes[place] = byte;
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        EntryHeader::decode(&bytes)
    };
    assert_eq!(rewritten(8, 7), Err(EntryError::Kind(7)));
    assert_eq!(rewritten(9, 1), Err(EntryError::Flags(1)));
    assert!(matches!(rewritten(3, 1), Err(EntryError::TooLarge(_))));
}

#[test]
fn the_largest_payload_fits_and_one_more_byte_does_not() {
    let spec = EntrySpec::internal(EntryKind::Noop);
    assert!(entry(&spec, &vec![0; PAYLOAD_BYTES_MAX]).is_ok());
    let mut to = BytesMut::new();
    assert!(matches!(put_entry(&mut to, &spec, &vec![0; PAYLOAD_BYTES_MAX + 1]), Err(EntryError::TooLarge(_))));
    assert!(to.is_empty());
}
