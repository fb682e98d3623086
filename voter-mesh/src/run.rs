//! A run: consecutive entries sealed by one leader. One run is one raft entry, one record in the log on disk and one block of the
//! feed, and travels byte for byte between all of them.
//!
//! ```text
//!  0  u32  bytes of entries        36  u64  time_ms
//!  4  u32  count of entries        44  u32  epoch
//!  8  u64  run index               48  u16  room
//! 16  u64  first log index         50  u16  flags (0)
//! 24  u64  term                    52  u32  chain before
//! 32  u32  reserved (0)            56  u32  chain after
//!                                  60  u32  CRC32C of bytes 0..60
//! 64  entries, end to end
//! ```
//!
//! The header's CRC covers the header; each entry carries its own two; and the chain ties every entry to all that came before it:
//! `chain(i) = crc32c(chain(i-1) ‖ term ‖ time_ms ‖ header CRC ‖ payload CRC)`.

use std::fmt;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::entry::{Entries, EntryError, EntryKind, EntryRef, u32_at, u64_at};
use crate::ids::{Chain, Epoch, Identity, LogIndex, RoomId, RunIndex, Term, TimeMs};

#[cfg(test)]
mod tests;

/// Bytes of a run's header.
pub const RUN_HEADER_BYTES: usize = 64;

/// Bytes of entries that a leader puts into one run. A single larger entry gets a run of its own.
/// Larger runs amortise more; smaller ones keep a slow link's heartbeat latency down.
pub const RUN_BYTES_MAX: usize = 256 << 10;

/// Bytes that any run may have, header included: one entry of the largest payload.
pub const RUN_WHOLE_BYTES_MAX: usize =
    RUN_HEADER_BYTES + crate::entry::ENTRY_HEADER_BYTES + crate::entry::PAYLOAD_BYTES_MAX + RUN_BYTES_MAX;

/// The chain before the first entry of a history.
#[must_use]
pub fn chain_zero(identity: &Identity) -> Chain {
    let mut bytes = [0_u8; 22];
    bytes[..16].copy_from_slice(&identity.cluster.0);
    bytes[16..20].copy_from_slice(&identity.epoch.0.to_le_bytes());
    bytes[20..].copy_from_slice(&identity.room.0.to_le_bytes());
    Chain(crc32c::crc32c(&bytes))
}

/// The chain after one more entry.
#[must_use]
pub fn chain_next(before: Chain, term: Term, time: TimeMs, header_crc: u32, payload_crc: u32) -> Chain {
    let mut bytes = [0_u8; 28];
    bytes[0..4].copy_from_slice(&before.0.to_le_bytes());
    bytes[4..12].copy_from_slice(&term.0.to_le_bytes());
    bytes[12..20].copy_from_slice(&time.0.to_le_bytes());
    bytes[20..24].copy_from_slice(&header_crc.to_le_bytes());
    bytes[24..28].copy_from_slice(&payload_crc.to_le_bytes());
    Chain(crc32c::crc32c(&bytes))
}

/// A run's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunHeader {
    /// Bytes of entries behind the header.
    pub entries_bytes: u32,
    /// How many entries; at least 1.
    pub count: u32,
    /// Raft's index of this run.
    pub run: RunIndex,
    /// The log index of its first entry.
    pub first: LogIndex,
    /// The term of the leader that sealed it.
    pub term: Term,
    /// That leader's clock, never below the previous run's.
    pub time: TimeMs,
    /// The history it belongs to.
    pub epoch: Epoch,
    /// The room it belongs to.
    pub room: RoomId,
    /// The chain before its first entry.
    pub chain_before: Chain,
    /// The chain after its last entry.
    pub chain_after: Chain,
}

impl RunHeader {
    /// Decodes and checks the header at the front of `bytes`; the entries are not looked at.
    ///
    /// # Errors
    /// `Truncated`, `HeaderChecksum`, `Flags`, `Empty` or `TooLarge`.
    pub fn decode(bytes: &[u8]) -> Result<Self, RunError> {
        let Some(head) = bytes.get(..RUN_HEADER_BYTES) else { return Err(RunError::Truncated) };
        if crc32c::crc32c(&head[..60]) != u32_at(head, 60) {
            return Err(RunError::HeaderChecksum);
        }
        if u32_at(head, 32) != 0 || head[50] != 0 || head[51] != 0 {
            return Err(RunError::Flags);
        }
        let header = Self {
            entries_bytes: u32_at(head, 0),
            count: u32_at(head, 4),
            run: RunIndex(u64_at(head, 8)),
            first: LogIndex(u64_at(head, 16)),
            term: Term(u64_at(head, 24)),
            time: TimeMs(u64_at(head, 36)),
            epoch: Epoch(u32_at(head, 44)),
            room: RoomId(u16::from_le_bytes([head[48], head[49]])),
            chain_before: Chain(u32_at(head, 52)),
            chain_after: Chain(u32_at(head, 56)),
        };
        // A last index past the end of numbers is no position either.
        let last = header.first.0.checked_add(u64::from(header.count));
        if header.count == 0 || header.first == LogIndex::ZERO || header.run == RunIndex::ZERO || last.is_none() {
            return Err(RunError::Empty);
        }
        if header.whole_bytes() > RUN_WHOLE_BYTES_MAX {
            return Err(RunError::TooLarge(header.entries_bytes));
        }
        Ok(header)
    }

    fn encode(&self) -> [u8; RUN_HEADER_BYTES] {
        let mut head = [0_u8; RUN_HEADER_BYTES];
        head[0..4].copy_from_slice(&self.entries_bytes.to_le_bytes());
        head[4..8].copy_from_slice(&self.count.to_le_bytes());
        head[8..16].copy_from_slice(&self.run.0.to_le_bytes());
        head[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        head[24..32].copy_from_slice(&self.term.0.to_le_bytes());
        head[36..44].copy_from_slice(&self.time.0.to_le_bytes());
        head[44..48].copy_from_slice(&self.epoch.0.to_le_bytes());
        head[48..50].copy_from_slice(&self.room.0.to_le_bytes());
        head[52..56].copy_from_slice(&self.chain_before.0.to_le_bytes());
        head[56..60].copy_from_slice(&self.chain_after.0.to_le_bytes());
        let crc = crc32c::crc32c(&head[..60]);
        head[60..64].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// The log index of its last entry.
    #[must_use]
    pub const fn last(&self) -> LogIndex {
        LogIndex(self.first.0 + self.count as u64 - 1)
    }

    /// Bytes of the whole run, header and entries.
    #[must_use]
    pub const fn whole_bytes(&self) -> usize {
        RUN_HEADER_BYTES + self.entries_bytes as usize
    }

    /// Bytes of the verdict bits that the feed sends with this run: one bit per entry, rounded up.
    #[must_use]
    pub const fn verdict_bytes(&self) -> usize {
        (self.count as usize).div_ceil(8)
    }

    /// The tail of a log that ends with this run.
    #[must_use]
    pub const fn tail(&self) -> Tail {
        Tail { run: self.run, term: self.term, last: self.last(), chain: self.chain_after, time: self.time }
    }
}

/// Why bytes are not a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RunError {
    /// The bytes end before the run does.
    #[error("run is truncated")]
    Truncated,
    /// The header's checksum does not match.
    #[error("run header checksum does not match")]
    HeaderChecksum,
    /// Reserved fields are set: a newer version wrote this.
    #[error("run header uses fields that this version does not know")]
    Flags,
    /// A run without entries or without a position.
    #[error("run is empty")]
    Empty,
    /// The entries are over the limit.
    #[error("run of {0} bytes is over the limit")]
    TooLarge(u32),
    /// An entry inside is bad.
    #[error("run holds a bad entry: {0}")]
    Entry(#[from] EntryError),
    /// The entries do not add up to the header's count or bytes.
    #[error("run's entries do not match its header")]
    Count,
    /// The chain over the entries does not end at the header's `chain_after`.
    #[error("run's chain does not match its entries")]
    Chain,
    /// A configuration shares its run with other entries.
    #[error("a configuration must be alone in its run")]
    ConfigNotAlone,
}

/// The end of a log: what the next run must continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tail {
    /// Raft's index of the last run.
    pub run: RunIndex,
    /// Its term.
    pub term: Term,
    /// The log index of its last entry.
    pub last: LogIndex,
    /// The chain after it.
    pub chain: Chain,
    /// Its time.
    pub time: TimeMs,
}

impl Tail {
    /// The tail that forming begins with: snapshot zero at run 1, term 1, before every entry.
    #[must_use]
    pub fn zero(identity: &Identity) -> Self {
        Self { run: RunIndex(1), term: Term(1), last: LogIndex::ZERO, chain: chain_zero(identity), time: TimeMs(0) }
    }

    /// Whether `run` is the next one: index, log index, chain and time go on from here.
    #[must_use]
    pub fn continues(&self, run: &RunHeader) -> bool {
        run.run == self.run.next()
            && run.first == self.last.next()
            && run.chain_before == self.chain
            && run.term >= self.term
            && run.time >= self.time
    }
}

/// A checked run: cheap to clone (a count), immutable, verbatim as it travels.
#[derive(Clone, PartialEq, Eq)]
pub struct Run {
    header: RunHeader,
    bytes: Bytes,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Run({} = {}..={} @{} {} B)",
            self.header.run,
            self.header.first,
            self.header.last(),
            self.header.term,
            self.bytes.len()
        )
    }
}

impl Run {
    /// Seals entries into the run after `tail`. `entries` are laid-out entries end to end, checked by the caller's decoder; their
    /// checksums are verified again here, once for each proposal in the life of the cluster's leader.
    ///
    /// # Errors
    /// `Entry`, `Empty`, `TooLarge` or `ConfigNotAlone`; nothing has happened then.
    pub fn seal(tail: &Tail, term: Term, now: TimeMs, epoch: Epoch, room: RoomId, entries: &[&[u8]]) -> Result<Self, RunError> {
        let time = now.max(tail.time);
        let size: usize = entries.iter().map(|part| part.len()).sum();
        if size + RUN_HEADER_BYTES > RUN_WHOLE_BYTES_MAX {
            return Err(RunError::TooLarge(u32::try_from(size).unwrap_or(u32::MAX)));
        }
        let mut bytes = BytesMut::with_capacity(RUN_HEADER_BYTES + size);
        bytes.resize(RUN_HEADER_BYTES, 0);
        let (mut chain, mut count, mut config) = (tail.chain, 0_u32, false);
        for part in entries {
            for entry in Entries::checked(part) {
                let entry = entry?;
                chain = chain_next(chain, term, time, entry.header.header_crc, entry.header.payload_crc);
                count += 1;
                config |= entry.header.kind == EntryKind::Config;
            }
            bytes.extend_from_slice(part);
        }
        if count == 0 {
            return Err(RunError::Empty);
        }
        if config && count != 1 {
            return Err(RunError::ConfigNotAlone);
        }
        let header = RunHeader {
            entries_bytes: size as u32,
            count,
            run: tail.run.next(),
            first: tail.last.next(),
            term,
            time,
            epoch,
            room,
            chain_before: tail.chain,
            chain_after: chain,
        };
        bytes[..RUN_HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(Self { header, bytes: bytes.freeze() })
    }

    /// Takes the run at the front of `bytes` off it, checking everything that can be checked without its neighbours: both
    /// checksums of every entry and the chain from `chain_before` to `chain_after`. The run shares the buffer.
    ///
    /// # Errors
    /// Any [`RunError`]; `bytes` is then unchanged.
    pub fn split_from(bytes: &mut Bytes) -> Result<Self, RunError> {
        let header = RunHeader::decode(bytes)?;
        if bytes.len() < header.whole_bytes() {
            return Err(RunError::Truncated);
        }
        let run = Self { header, bytes: bytes.slice(..header.whole_bytes()) };
        run.verify()?;
        let _ = bytes.split_to(header.whole_bytes());
        Ok(run)
    }

    fn verify(&self) -> Result<(), RunError> {
        let (mut chain, mut count, mut config) = (self.header.chain_before, 0_u32, false);
        for entry in Entries::checked(&self.bytes[RUN_HEADER_BYTES..]) {
            let entry = entry?;
            chain = chain_next(chain, self.header.term, self.header.time, entry.header.header_crc, entry.header.payload_crc);
            count += 1;
            config |= entry.header.kind == EntryKind::Config;
        }
        if count != self.header.count {
            return Err(RunError::Count);
        }
        if chain != self.header.chain_after {
            return Err(RunError::Chain);
        }
        if config && count != 1 {
            return Err(RunError::ConfigNotAlone);
        }
        Ok(())
    }

    /// The decoded header.
    #[must_use]
    pub const fn header(&self) -> &RunHeader {
        &self.header
    }

    /// Header and entries, verbatim.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The entries inside, with their log indices.
    pub fn entries(&self) -> impl Iterator<Item = (LogIndex, EntryRef<'_>)> + '_ {
        let first = self.header.first;
        Entries::verified(&self.bytes[RUN_HEADER_BYTES..])
            // Every entry was checked when this run was made; an error here cannot occur and would end the walk.
            .map_while(Result::ok)
            .enumerate()
            .map(move |(offset, entry)| (first.plus(offset as u64), entry))
    }

    /// The payload of entry `entry` as a slice that shares this run's buffer.
    #[must_use]
    pub fn payload(&self, entry: &EntryRef<'_>) -> Bytes {
        self.bytes.slice_ref(entry.payload)
    }

    /// Whether this is a configuration's run, and then its payload.
    #[must_use]
    pub fn config_payload(&self) -> Option<&[u8]> {
        let entry = Entries::verified(&self.bytes[RUN_HEADER_BYTES..]).next()?.ok()?;
        (entry.header.kind == EntryKind::Config).then_some(entry.payload)
    }
}

/// One bit per entry of a run: set iff the entry took effect on the state (design §3). Least significant bit first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdicts(Vec<u8>);

impl Verdicts {
    /// All clear, for a run of `count` entries.
    #[must_use]
    pub fn clear(count: u32) -> Self {
        Self(vec![0; (count as usize).div_ceil(8)])
    }

    /// Marks the entry at `offset` as effective.
    pub fn set(&mut self, offset: usize) {
        if let Some(byte) = self.0.get_mut(offset / 8) {
            *byte |= 1 << (offset % 8);
        }
    }

    /// Whether the entry at `offset` is effective.
    #[must_use]
    pub fn get(&self, offset: usize) -> bool {
        verdict_at(&self.0, offset)
    }

    /// The bytes as they travel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether the entry at `offset` is effective, in verdict bytes as they travel.
#[must_use]
pub fn verdict_at(verdicts: &[u8], offset: usize) -> bool {
    verdicts.get(offset / 8).is_some_and(|byte| byte >> (offset % 8) & 1 == 1)
}
