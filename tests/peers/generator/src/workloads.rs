//! One file per workload, defined as those of `quorate bench`.

pub mod catchup;
pub mod commit;
pub mod failover;
pub mod fanout;
pub mod recovery;
pub mod watch;

use crate::figures::now_ns;

/// Bytes of each value.
pub const VALUE_BYTES: usize = 64;

/// A value that begins with the time and a number.
pub fn value(number: u64) -> Vec<u8> {
    let mut value = vec![b'x'; VALUE_BYTES];
    value[..8].copy_from_slice(&now_ns().to_le_bytes());
    value[8..16].copy_from_slice(&number.to_le_bytes());
    value
}

/// The time and the number of a value.
pub fn parts(value: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
    Some((number(0)?, number(8)?))
}
