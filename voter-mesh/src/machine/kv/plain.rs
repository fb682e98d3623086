//! The commonest command and its reply without serde: a put as clients lay it out, and the answer that it was written. Whatever looks
//! different in any byte goes the general way, so what is decodable, and to what, is the same as without this module.

use bytes::Bytes;

use crate::ids::LogIndex;

/// Key and value of a put as [`to_cbor`](crate::machine::to_cbor) lays it out; `None` for all else.
pub(super) fn put(command: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = command.strip_prefix(b"\xa1\x63put\xa2\x63key")?;
    let key = byte_string(&mut rest)?;
    rest = rest.strip_prefix(b"\x65value")?;
    let value = byte_string(&mut rest)?;
    rest.is_empty().then_some((key, value))
}

/// A byte string with the shortest head that its length has, up to 65,535 bytes.
fn byte_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, head) = match **rest {
        [head @ 0x40..=0x57, ..] => (usize::from(head - 0x40), 1),
        [0x58, len @ 24..=0xff, ..] => (usize::from(len), 2),
        [0x59, high @ 1..=0xff, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 3),
        _ => return None,
    };
    let (string, behind) = rest.get(head..)?.split_at_checked(len)?;
    *rest = behind;
    Some(string)
}

/// `KvReply::Written` as [`to_cbor`](crate::machine::to_cbor) lays it out.
pub(super) fn written(version: LogIndex) -> Bytes {
    const FRONT: &[u8] = b"\xa1\x67written\xa1\x67version";
    let mut reply = [0; FRONT.len() + 9];
    reply[..FRONT.len()].copy_from_slice(FRONT);
    let number = &mut reply[FRONT.len()..];
    let be = version.0.to_be_bytes();
    // The shortest form: in the head, or 1, 2, 4 or 8 bytes behind it.
    let bytes = match version.0 {
        0..=23 => 0,
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8_usize,
    };
    number[0] = if bytes == 0 { be[7] } else { 0x18 + bytes.trailing_zeros() as u8 };
    number[1..=bytes].copy_from_slice(&be[8 - bytes..]);
    Bytes::copy_from_slice(&reply[..=FRONT.len() + bytes])
}
