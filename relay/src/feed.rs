//! The feed: the recent committed runs with their verdicts, kept once and read by any number of cursors.
//!
//! A *block* is one run and its verdict bits, as learners receive them. The ring keeps the latest blocks, bounded in bytes; a cursor is
//! nothing but the index of the next entry, so a slow reader costs nothing and holds nobody back: when the ring has moved past it, it
//! is [`Behind`] and needs a snapshot. Cursors at one place get one shared frame. It never waits for a reader and never looks into
//! an entry.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use voter_mesh::ids::{Chain, LogIndex};
use voter_mesh::mutant;
use voter_mesh::run::{Run, Verdicts};

/// Bytes of built frames that are kept for the cursors that come to the same place next.
const FRAMES_BYTES_MAX: usize = 4 << 20;
/// Built frames that are kept; the search among them is linear.
const FRAMES_MAX: usize = 32;

/// Bounds of a [`Feed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedLimits {
    /// Bytes of recent blocks that are kept for learners. Default 64 MiB. Smaller: slow learners need snapshots sooner. Larger: more
    /// memory, once per server, not per learner. The latest block is always kept.
    pub feed_ring_bytes_max: usize,
    /// Bytes of a frame of several blocks. Default 16 KiB. One larger block travels alone. Larger: fewer, longer writes.
    pub feed_frame_bytes_max: usize,
}

impl Default for FeedLimits {
    fn default() -> Self {
        Self { feed_ring_bytes_max: 64 << 20, feed_frame_bytes_max: 16 << 10 }
    }
}

/// The cursor is below the ring: `first` is the first entry that can still be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behind {
    /// The first entry of the ring.
    pub first: LogIndex,
}

/// What the feed knows of the history up to an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainAt {
    /// A run ends there, and this is the chain after it.
    Known(Chain),
    /// The index lies inside a run: no replica of this history ever stood there.
    Inside,
    /// The index is below what is kept.
    Below,
    /// The index has not been applied here yet.
    Above,
}

struct Block {
    run: Run,
    verdicts: Verdicts,
}

impl Block {
    fn wire_bytes(&self) -> usize {
        self.run.bytes().len() + self.verdicts.as_bytes().len()
    }

    /// What it costs to keep: for small runs the headers in memory weigh as much as their bytes.
    fn kept_bytes(&self) -> usize {
        self.wire_bytes() + size_of::<Self>()
    }
}

struct Frame {
    kind: u8,
    first: LogIndex,
    next: LogIndex,
    /// Another block would not have fitted, so no block that comes later belongs into it.
    full: bool,
    bytes: Bytes,
}

/// The ring of recent blocks.
pub struct Feed {
    limits: FeedLimits,
    blocks: VecDeque<Block>,
    kept_bytes: usize,
    tail: LogIndex,
    chain: Chain,
    frames: VecDeque<Frame>,
    frames_bytes: usize,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed({}..={}, {} B)", self.first(), self.tail, self.kept_bytes)
    }
}

impl Feed {
    /// An empty ring behind `tail`, whose chain is `chain`.
    #[must_use]
    pub fn new(limits: FeedLimits, tail: LogIndex, chain: Chain) -> Self {
        Self { limits, blocks: VecDeque::new(), kept_bytes: 0, tail, chain, frames: VecDeque::new(), frames_bytes: 0 }
    }

    /// The last entry, and the chain after it.
    #[must_use]
    pub const fn tail(&self) -> (LogIndex, Chain) {
        (self.tail, self.chain)
    }

    /// The first entry that can be read; the one behind the tail while the ring is empty.
    #[must_use]
    pub fn first(&self) -> LogIndex {
        self.blocks.front().map_or(self.tail.next(), |block| block.run.header().first)
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub const fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Appends a run that was just applied. A run that does not continue the tail empties the ring first: nothing is ever served
    /// across a gap.
    pub fn push(&mut self, run: Run, verdicts: Verdicts) {
        let header = *run.header();
        if header.first != self.tail.next() || header.chain_before != self.chain {
            self.reset(header.first.previous(), header.chain_before);
        }
        let block = Block { run, verdicts };
        self.kept_bytes += block.kept_bytes();
        self.blocks.push_back(block);
        (self.tail, self.chain) = (header.last(), header.chain_after);
        while self.kept_bytes > self.limits.feed_ring_bytes_max && self.blocks.len() > 1 {
            let dropped = self.blocks.pop_front().map_or(0, |block| block.kept_bytes());
            self.kept_bytes -= dropped;
        }
    }

    /// Drops everything and goes on behind `tail`.
    pub fn reset(&mut self, tail: LogIndex, chain: Chain) {
        *self = Self::new(self.limits, tail, chain);
    }

    /// The position of the block that holds `index`, which must not be below the ring.
    fn position(&self, index: LogIndex) -> usize {
        self.blocks.partition_point(|block| block.run.header().last() < index)
    }

    /// The chain after the entry at `index`.
    #[must_use]
    pub fn chain_at(&self, index: LogIndex) -> ChainAt {
        if index > self.tail {
            return ChainAt::Above;
        }
        if index == self.tail {
            return ChainAt::Known(self.chain);
        }
        if index.next() < self.first() {
            return ChainAt::Below;
        }
        match self.blocks.get(self.position(index.next())).map(|block| block.run.header()) {
            Some(header) if header.first == index.next() => ChainAt::Known(header.chain_before),
            _ => ChainAt::Inside,
        }
    }

    /// The message (kind byte `kind`, then blocks) for a cursor at `cursor`, and the cursor behind it; `None` at the end. The first
    /// block is the one that holds `cursor`; the last one is at most the one that holds `last`. All cursors at one place share the
    /// message's bytes.
    ///
    /// # Errors
    /// [`Behind`] if the ring has moved past the cursor.
    pub fn frame_at(&mut self, kind: u8, cursor: LogIndex, last: LogIndex) -> Result<Option<(Bytes, LogIndex)>, Behind> {
        if cursor < self.first() {
            return Err(Behind { first: self.first() });
        }
        let last = last.min(self.tail);
        if cursor > last {
            return Ok(None);
        }
        let built = |frame: &&Frame| {
            (frame.kind == kind && (frame.first == cursor || mutant!("frame_of_another_place")))
                && frame.next.previous() <= last
                && (frame.full || frame.next > last)
        };
        if let Some(frame) = self.frames.iter().rev().find(built) {
            return Ok(Some((frame.bytes.clone(), frame.next)));
        }
        Ok(Some(self.build(kind, cursor, last)))
    }

    fn build(&mut self, kind: u8, cursor: LogIndex, last: LogIndex) -> (Bytes, LogIndex) {
        let from = self.position(cursor);
        let (mut size, mut next, mut full, mut to) = (0, cursor, false, from);
        for block in self.blocks.range(from..) {
            full = to > from && size + block.wire_bytes() > self.limits.feed_frame_bytes_max;
            if full || block.run.header().first > last {
                break;
            }
            size += block.wire_bytes();
            next = block.run.header().last().next();
            to += 1;
        }
        let mut bytes = BytesMut::with_capacity(1 + size);
        bytes.put_u8(kind);
        for block in self.blocks.range(from..to) {
            bytes.put_slice(block.run.bytes());
            bytes.put_slice(block.verdicts.as_bytes());
        }
        let bytes = bytes.freeze();
        self.frames_bytes += bytes.len();
        self.frames.push_back(Frame { kind, first: cursor, next, full, bytes: bytes.clone() });
        while self.frames.len() > FRAMES_MAX || self.frames_bytes > FRAMES_BYTES_MAX {
            let Some(dropped) = self.frames.pop_front() else { break };
            self.frames_bytes -= dropped.bytes.len();
        }
        (bytes, next)
    }
}

#[cfg(test)]
mod tests;
