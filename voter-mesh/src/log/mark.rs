//! The mark: raft's hard state and how far the log must reach to be believed.

use super::{SECTOR_BYTES, TAIL_BYTES, is_sealed, put_tail, seal, tail_at};
use crate::entry::{u32_at, u64_at};
use crate::ids::{RaftId, RunIndex, Term};
use crate::mutant;
use crate::run::Tail;

const MAGIC: [u8; 4] = *b"MARK";
const VOTE_LOST: u32 = 1;
const MUST_REACH: u32 = 2;

/// What is true of the log once the sync returns under which this was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Rises by one with each mark; even ones stand in slot 0, odd ones in slot 1.
    pub sequence: u64,
    /// The segment that it stands in: a recycled file's old marks are none of its new segment's.
    pub segment: u64,
    /// The highest term seen.
    pub term: Term,
    /// Who got this server's vote in that term, or [`RaftId::NONE`].
    pub vote: RaftId,
    /// A commit index that was true; never falls.
    pub commit: RunIndex,
    /// The end of the log.
    pub last: Tail,
    /// The last run that an *earlier* sync has confirmed. Whatever else is missing after a crash, this is not.
    pub synced_through: RunIndex,
    /// The log once lost what it had acknowledged and must reach this end again before it counts as whole.
    pub must_reach: Option<Tail>,
    /// A mark was once unreadable, and a vote in it may be forgotten: vote in no term at or below the highest heard from a quorum.
    pub vote_lost: bool,
}

impl Mark {
    /// The slot that this mark stands in.
    #[must_use]
    pub const fn slot(&self) -> usize {
        (self.sequence % 2) as usize
    }

    /// The mark's sector. See `docs/formats.md` for the drawing.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        let mut flags = if self.vote_lost { VOTE_LOST } else { 0 };
        if let Some(tail) = &self.must_reach {
            flags |= MUST_REACH;
            put_tail(&mut sector[96..96 + TAIL_BYTES], tail);
        }
        sector[0..4].copy_from_slice(&MAGIC);
        sector[4..8].copy_from_slice(&flags.to_le_bytes());
        sector[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        sector[16..24].copy_from_slice(&self.segment.to_le_bytes());
        sector[24..32].copy_from_slice(&self.term.0.to_le_bytes());
        let vote = if mutant!("mark_without_vote") { RaftId::NONE } else { self.vote };
        sector[32..40].copy_from_slice(&vote.0.to_le_bytes());
        sector[40..48].copy_from_slice(&self.commit.0.to_le_bytes());
        put_tail(&mut sector[48..48 + TAIL_BYTES], &self.last);
        sector[88..96].copy_from_slice(&self.synced_through.0.to_le_bytes());
        seal(&mut sector);
        sector
    }

    /// Decodes the mark in slot `slot` of segment `segment`; `None` if the slot holds none that belongs there.
    #[must_use]
    pub fn decode(sector: &[u8; SECTOR_BYTES], segment: u64, slot: usize) -> Option<Self> {
        let flags = u32_at(sector, 4);
        if sector[0..4] != MAGIC || !is_sealed(sector) || flags & !(VOTE_LOST | MUST_REACH) != 0 {
            return None;
        }
        let mark = Self {
            sequence: u64_at(sector, 8),
            segment: u64_at(sector, 16),
            term: Term(u64_at(sector, 24)),
            vote: RaftId(u64_at(sector, 32)),
            commit: RunIndex(u64_at(sector, 40)),
            last: tail_at(sector, 48),
            synced_through: RunIndex(u64_at(sector, 88)),
            must_reach: (flags & MUST_REACH != 0).then(|| tail_at(sector, 96)),
            vote_lost: flags & VOTE_LOST != 0,
        };
        (mark.segment == segment && mark.slot() == slot).then_some(mark)
    }
}

/// Both slots of a segment hold no mark of it: term and vote are unknown, so the log cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("neither mark can be read: the term and the vote that this server gave are unknown")]
pub struct NoMark;

/// Both slots of a segment, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkSlots(pub [Option<Mark>; 2]);

impl MarkSlots {
    /// The newer mark. Both slots are written when a segment is made, so an unreadable one is damage (or a write that tore): the
    /// other then stands in, and says that a vote may be lost.
    ///
    /// # Errors
    /// [`NoMark`].
    pub fn newest(self) -> Result<Mark, NoMark> {
        match self.0 {
            [Some(even), Some(odd)] => Ok(if even.sequence > odd.sequence { even } else { odd }),
            [Some(mark), None] | [None, Some(mark)] => Ok(Mark { vote_lost: true, ..mark }),
            [None, None] => Err(NoMark),
        }
    }
}
