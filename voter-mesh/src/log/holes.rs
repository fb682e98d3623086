//! Holes: runs of a log that cannot be read, with good ones of the same history behind them.
//!
//! A run's bytes are the same on every server, so what fills a hole is exactly the runs that are missing, and the chain proves them:
//! they continue what stands before the hole, fit its bytes, and what stands behind it continues them. A log that ends badly with
//! nothing good behind has no hole there: it has lost its end, which only a leader can give back.

use bytes::Bytes;

use crate::entry::u32_at;
use crate::ids::{Identity, RunIndex};
use crate::run::{RUN_HEADER_BYTES, Run, RunError, RunHeader, Tail};

/// What stands behind a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FarSide {
    /// A whole run, in the same segment: the hole has exactly the bytes between.
    Run {
        /// It.
        header: RunHeader,
        /// Bytes of the hole.
        bytes: u64,
    },
    /// The next segment, whose header says where the log stood before it.
    Segment(Tail),
}

/// Runs that are missing between two places that are whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// The end of what is whole before it.
    pub after: Tail,
    /// What stands behind it.
    pub far: FarSide,
}

impl Hole {
    /// The first run that is missing.
    #[must_use]
    pub const fn first(&self) -> RunIndex {
        self.after.run.next()
    }

    /// The last run that is missing.
    #[must_use]
    pub const fn last(&self) -> RunIndex {
        match &self.far {
            FarSide::Run { header, .. } => RunIndex(header.run.0 - 1),
            FarSide::Segment(before) => before.run,
        }
    }

    /// Whether these are the missing runs. `runs` must continue each other.
    #[must_use]
    pub fn is_filled_by(&self, runs: &[Run]) -> bool {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return false };
        let end = last.header().tail();
        self.after.continues(first.header())
            && match &self.far {
                FarSide::Run { header, bytes } => {
                    end.continues(header) && runs.iter().map(|run| run.bytes().len() as u64).sum::<u64>() == *bytes
                }
                FarSide::Segment(before) => end == *before,
            }
    }
}

/// Looks in `bytes` for a whole run of this history that may stand behind a hole after `after`: at least one run is missing before
/// it, and it is not above `through`. `at_end`: nothing follows these bytes in the file.
///
/// # Errors
/// There is none; the number says before which of the bytes none begins. Unless `at_end`, look again from there with more of them.
pub fn find_run(after: &Tail, through: RunIndex, identity: &Identity, bytes: &Bytes, at_end: bool) -> Result<(usize, Run), usize> {
    let begins = bytes.len().saturating_sub(RUN_HEADER_BYTES - 1);
    for offset in 0..begins {
        let rest = &bytes[offset..];
        // Before a checksum is made of it: bytes that never change within a history.
        if u32_at(rest, 44) != identity.epoch.0 || u32_at(rest, 32) != 0 || rest[48..52] != room_and_flags(identity) {
            continue;
        }
        let Ok(header) = RunHeader::decode(rest) else { continue };
        let follows = header.run > after.run.next()
            && header.run <= through
            && header.first > after.last.next()
            && header.term >= after.term
            && header.time >= after.time;
        if !follows {
            continue;
        }
        match Run::split_from(&mut bytes.slice(offset..)) {
            Ok(run) => return Ok((offset, run)),
            Err(RunError::Truncated) if !at_end => return Err(offset),
            Err(_) => {}
        }
    }
    Err(begins)
}

fn room_and_flags(identity: &Identity) -> [u8; 4] {
    let [low, high] = identity.room.0.to_le_bytes();
    [low, high, 0, 0]
}
