//! The log on disk: what its bytes look like, and the rules by which they are believed. The server's disk writes and reads them;
//! nothing here touches a file.
//!
//! ```text
//! segment = header page │ mark slot 0 page │ mark slot 1 page │ records: runs verbatim, end to end │ zeros or old bytes
//! ```
//!
//! * [`SegmentHeader`] says whose segment this is and what it continues. A new segment is also how the log is cut (its header then
//!   continues an earlier run than the segments before it hold) and how it restarts behind a snapshot, so bytes that were once
//!   confirmed are never overwritten, and either step is one rename.
//! * [`Mark`] is the hard state. It is written in the same pass and under the same sync as the records that it names, into the slot
//!   that the mark before it does not occupy; the newest segment holds it.
//! * [`step`] walks records: the log ends at the first one that does not continue it.
//! * [`Hole`] is what cannot be read with something good behind it; [`Filling`] gets the missing runs from peers, and [`DamagePolicy`]
//!   says whether it should.
//! * [`judge`] compares that end with the mark; [`Mark::admit`] fences writers out whose term has passed.

mod filling;
mod header;
mod holes;
mod mark;
mod policy;
mod rules;

pub use filling::{FetchRuns, FillLimits, Filled, Filling, NoRuns};
pub use header::{LOG_FORMAT_VERSION, SegmentError, SegmentHeader, SegmentKind};
pub use holes::{FarSide, Hole, find_run};
pub use mark::{Mark, MarkSlots, NoMark};
pub use policy::{DamagePolicy, Decision, Findings, decide};
pub use rules::{Fenced, Intent, Step, Verdict, empty_tail, judge, reaches, step};

use crate::entry::{u32_at, u64_at};
use crate::ids::{Chain, LogIndex, RunIndex, Term, TimeMs};
use crate::run::Tail;

/// Bytes of a segment's header and of each mark slot. All three stand at the front of a page of their own: a page that tears while
/// a mark is written takes neither the header nor the other mark with it.
pub const SECTOR_BYTES: usize = 512;

/// Where mark slot 0 and mark slot 1 begin.
pub const MARK_AT: [u64; 2] = [4096, 8192];

/// Where a segment's records begin.
pub const RECORDS_AT: u64 = 12288;

/// Zeros that a writer puts behind its last record, as far as the segment reaches: what a recycled file or a torn write left there is
/// then not even looked at.
pub const END_BYTES: usize = crate::run::RUN_HEADER_BYTES;

const TAIL_BYTES: usize = 40;

fn put_tail(to: &mut [u8], tail: &Tail) {
    to[0..8].copy_from_slice(&tail.run.0.to_le_bytes());
    to[8..16].copy_from_slice(&tail.term.0.to_le_bytes());
    to[16..24].copy_from_slice(&tail.last.0.to_le_bytes());
    to[24..32].copy_from_slice(&tail.time.0.to_le_bytes());
    to[32..36].copy_from_slice(&tail.chain.0.to_le_bytes());
}

fn tail_at(bytes: &[u8], at: usize) -> Tail {
    Tail {
        run: RunIndex(u64_at(bytes, at)),
        term: Term(u64_at(bytes, at + 8)),
        last: LogIndex(u64_at(bytes, at + 16)),
        time: TimeMs(u64_at(bytes, at + 24)),
        chain: Chain(u32_at(bytes, at + 32)),
    }
}

/// Puts the CRC32C of all before it into a sector's last four bytes.
fn seal(sector: &mut [u8; SECTOR_BYTES]) {
    let crc = crc32c::crc32c(&sector[..SECTOR_BYTES - 4]);
    sector[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(sector: &[u8; SECTOR_BYTES]) -> bool {
    crc32c::crc32c(&sector[..SECTOR_BYTES - 4]) == u32_at(sector, SECTOR_BYTES - 4)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
