//! Snapshots and old runs between servers, on the `bulk` connection of a link: frames and credit.
//!
//! `Begin` → `Accept {credit, offset}` or `Refuse`; then `Chunk`s from that offset on, in order, never more bytes than the credit that is
//! left; the receiver gives `Credit` as it consumes them; `End` → `Done`, when the whole is verified and durable, or `Refuse`. `Abort`
//! takes a `Begin` back. One transfer at a time in each direction; every frame names its transfer, so that what is late is
//! recognised. Both ends' memory is bounded by [`CREDIT_BYTES`], whatever the snapshot's size.
//!
//! The offset is above 0 where the receiver already has the beginning of the same file, whoever sent it: the offer's hash says which
//! file it is.
//!
//! `FetchRuns` → `Runs` or `NoRuns`, one question at a time in each direction, for what a server finds damaged in its log. An answer
//! holds the first runs that were asked for, at least one, and about [`RUNS_BYTES_MAX`] at most.

use bytes::{BufMut, Bytes};
use serde_bytes::ByteArray;
use thiserror::Error;

use super::codec::{self, CodecError, Fields, kind};
use crate::ids::{RunIndex, Term};
use crate::log::NoRuns;
use crate::run::Run;
use crate::snapshot::SnapshotMeta;

/// Bytes of one chunk.
pub const CHUNK_BYTES_MAX: usize = 64 << 10;

/// Bytes that may be under way to a receiver that has not consumed them.
pub const CREDIT_BYTES: u64 = 1 << 20;

/// A receiver gives credit back in portions of this size: a frame for every few chunks, and the sender never runs dry.
const CREDIT_PORTION_BYTES: u64 = 256 << 10;

/// Bytes of the runs in one answer; one larger run alone is allowed.
pub const RUNS_BYTES_MAX: usize = 1 << 20;

/// Bytes of a refusal's reason; longer ones are cut.
const REASON_BYTES_MAX: usize = 512;

/// Numbers the transfers that one server sends on one connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct TransferId(pub u32);

/// What a snapshot transfer announces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotOffer {
    /// The term of the leader that sends it.
    pub term: Term,
    /// Bytes of the whole, as they will be sent.
    pub total: u64,
    /// Names the file: equal hashes are equal bytes, on any server.
    pub hash: [u8; 32],
    /// What it holds.
    pub meta: SnapshotMeta,
}

/// One frame of the `bulk` connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BulkFrame {
    /// A snapshot for the receiver. Head: CBOR [transfer, term, total, hash, meta].
    Begin(TransferId, SnapshotOffer),
    /// Send it from `offset` on; `credit` bytes may be under way. Head: transfer u32, credit u64, offset u64.
    Accept {
        /// Which.
        transfer: TransferId,
        /// Bytes that may be under way.
        credit: u64,
        /// Bytes that the receiver has already.
        offset: u64,
    },
    /// A piece. Head: transfer u32, offset u64; tail: the bytes.
    Chunk(TransferId, u64, Bytes),
    /// This many bytes more may be sent. Head: transfer u32, credit u64.
    Credit(TransferId, u64),
    /// All was sent. Head: transfer u32.
    End(TransferId),
    /// All is verified and durable. Head: transfer u32.
    Done(TransferId),
    /// Not taken, or given up. Head: CBOR [transfer, reason].
    Refuse(TransferId, String),
    /// The sender gives up. Head: transfer u32.
    Abort(TransferId),
    /// A question for the runs from the first to the last of these. Head: question u32; first, last: u64.
    FetchRuns(TransferId, RunIndex, RunIndex),
    /// Runs that were asked for. Head: question u32; tail: them.
    Runs(TransferId, Vec<Run>),
    /// There are none. Head: question u32; first u64 (0 unless trimmed); why u8 (0 trimmed, 1 absent, 2 not yet).
    NoRuns(TransferId, NoRuns),
}

impl BulkFrame {
    /// Appends the pieces of this frame to `to` and returns their bytes together. A chunk's bytes are shared.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] or [`CodecError::HeadTooLarge`]; `to` is then unchanged.
    pub fn encode(&self, to: &mut impl Extend<Bytes>) -> Result<usize, CodecError> {
        let short = |kind, transfer: &TransferId| codec::frame(kind, 0, |head| head.put_u32_le(transfer.0));
        let long = |kind, transfer: &TransferId, numbers: &[u64], tail_bytes| {
            codec::frame(kind, tail_bytes, |head| {
                head.put_u32_le(transfer.0);
                numbers.iter().for_each(|number| head.put_u64_le(*number));
            })
        };
        let (head, tail) = match self {
            Self::Begin(transfer, SnapshotOffer { term, total, hash, meta }) => {
                (codec::cbor_frame(kind::SNAPSHOT_BEGIN, &(transfer.0, term, total, ByteArray::new(*hash), meta))?, None)
            }
            Self::Accept { transfer, credit, offset } => (long(kind::SNAPSHOT_ACCEPT, transfer, &[*credit, *offset], 0)?, None),
            Self::Chunk(transfer, offset, bytes) => {
                (long(kind::SNAPSHOT_CHUNK, transfer, &[*offset], bytes.len())?, Some(bytes.clone()))
            }
            Self::Credit(transfer, credit) => (long(kind::SNAPSHOT_CREDIT, transfer, &[*credit], 0)?, None),
            Self::End(transfer) => (short(kind::SNAPSHOT_END, transfer)?, None),
            Self::Done(transfer) => (short(kind::SNAPSHOT_DONE, transfer)?, None),
            Self::Refuse(transfer, reason) => {
                let cut = (0..=reason.len().min(REASON_BYTES_MAX)).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
                (codec::cbor_frame(kind::SNAPSHOT_REFUSE, &(transfer.0, &reason[..cut]))?, None)
            }
            Self::Abort(transfer) => (short(kind::SNAPSHOT_ABORT, transfer)?, None),
            Self::FetchRuns(question, first, last) => {
                let head = codec::frame(kind::FETCH_RUNS, 0, |head| {
                    head.put_u32_le(question.0);
                    head.put_u64_le(first.0);
                    head.put_u64_le(last.0);
                })?;
                (head, None)
            }
            Self::Runs(question, runs) => {
                let tail_bytes = runs.iter().map(|run| run.bytes().len()).sum();
                let head = codec::frame(kind::RUNS, tail_bytes, |head| head.put_u32_le(question.0))?;
                return codec::append(head, tail_bytes, runs, to);
            }
            Self::NoRuns(question, why) => {
                let (first, why) = match why {
                    NoRuns::Trimmed { first } => (first.0, 0),
                    NoRuns::Absent => (0, 1),
                    NoRuns::NotYet => (0, 2),
                };
                let head = codec::frame(kind::NO_RUNS, 0, |head| {
                    head.put_u32_le(question.0);
                    head.put_u64_le(first);
                    head.put_u8(why);
                })?;
                (head, None)
            }
        };
        let bytes = head.len() + tail.as_ref().map_or(0, Bytes::len);
        to.extend([head.freeze()].into_iter().chain(tail));
        Ok(bytes)
    }

    /// Decodes what [`codec::split_frame`] gave on a `bulk` connection and is no [`codec::Control`].
    ///
    /// # Errors
    /// Any [`CodecError`]; close the connection.
    pub fn decode(frame: Bytes) -> Result<Self, CodecError> {
        let (kind, head, mut tail) = codec::open(frame)?;
        let mut fields = Fields(&head);
        let frame = match kind {
            kind::SNAPSHOT_BEGIN => {
                let (transfer, term, total, hash, meta) = codec::from_cbor::<(_, _, _, ByteArray<32>, _)>(fields.rest())?;
                Self::Begin(TransferId(transfer), SnapshotOffer { term, total, hash: hash.into_array(), meta })
            }
            kind::SNAPSHOT_ACCEPT => {
                Self::Accept { transfer: TransferId(fields.u32()?), credit: fields.u64()?, offset: fields.u64()? }
            }
            kind::SNAPSHOT_CHUNK => {
                if tail.is_empty() || tail.len() > CHUNK_BYTES_MAX {
                    return Err(CodecError::Field("chunk"));
                }
                Self::Chunk(TransferId(fields.u32()?), fields.u64()?, std::mem::take(&mut tail))
            }
            kind::SNAPSHOT_CREDIT => Self::Credit(TransferId(fields.u32()?), fields.u64()?),
            kind::SNAPSHOT_END => Self::End(TransferId(fields.u32()?)),
            kind::SNAPSHOT_DONE => Self::Done(TransferId(fields.u32()?)),
            kind::SNAPSHOT_REFUSE => {
                let (transfer, reason) = codec::from_cbor(fields.rest())?;
                Self::Refuse(TransferId(transfer), reason)
            }
            kind::SNAPSHOT_ABORT => Self::Abort(TransferId(fields.u32()?)),
            kind::FETCH_RUNS => Self::FetchRuns(TransferId(fields.u32()?), RunIndex(fields.u64()?), RunIndex(fields.u64()?)),
            kind::RUNS => {
                let (question, mut runs) = (TransferId(fields.u32()?), Vec::new());
                while !tail.is_empty() {
                    runs.push(Run::split_from(&mut tail)?);
                }
                Self::Runs(question, runs)
            }
            kind::NO_RUNS => {
                let (question, first) = (TransferId(fields.u32()?), RunIndex(fields.u64()?));
                let why = match (fields.u8()?, first) {
                    (0, first) => NoRuns::Trimmed { first },
                    (1, RunIndex::ZERO) => NoRuns::Absent,
                    (2, RunIndex::ZERO) => NoRuns::NotYet,
                    _ => return Err(CodecError::Field("no runs")),
                };
                Self::NoRuns(question, why)
            }
            unknown => return Err(CodecError::Kind(unknown)),
        };
        fields.finish(&tail)?;
        Ok(frame)
    }
}

/// A sender broke the rules of a transfer; close the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WindowError {
    /// A chunk does not begin where the last one ended.
    #[error("snapshot chunk at {got}, expected {expected}")]
    Offset {
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        got: u64,
    },
    /// More bytes than were announced.
    #[error("snapshot is longer than the announced {0} bytes")]
    Total(u64),
    /// More bytes than the credit allows.
    #[error("snapshot chunk is over the credit")]
    Credit,
    /// The end came before the announced bytes did.
    #[error("snapshot ends at {got} of {total} bytes")]
    Short {
        /// Bytes announced.
        total: u64,
        /// Bytes that came.
        got: u64,
    },
}

/// The receiving end's account of one transfer.
#[derive(Clone, Debug)]
pub struct ReceiveWindow {
    total: u64,
    received: u64,
    credit: u64,
    consumed: u64,
}

impl ReceiveWindow {
    /// For a snapshot of `total` bytes of which the first `offset` are there, with [`CREDIT_BYTES`] of credit given in `Accept`.
    #[must_use]
    pub const fn new(total: u64, offset: u64) -> Self {
        Self { total, received: offset, credit: CREDIT_BYTES, consumed: 0 }
    }

    /// Takes in a chunk.
    ///
    /// # Errors
    /// [`WindowError`]; nothing has changed.
    pub fn receive(&mut self, offset: u64, bytes: usize) -> Result<(), WindowError> {
        let bytes = bytes as u64;
        if offset != self.received {
            return Err(WindowError::Offset { expected: self.received, got: offset });
        }
        if bytes > self.total.saturating_sub(self.received) {
            return Err(WindowError::Total(self.total));
        }
        self.credit = self.credit.checked_sub(bytes).ok_or(WindowError::Credit)?;
        self.received += bytes;
        Ok(())
    }

    /// The owner has consumed so many of the bytes that came; returns the credit to give now, if it is worth a frame.
    pub fn consume(&mut self, bytes: u64) -> Option<u64> {
        self.consumed += bytes;
        if self.consumed < CREDIT_PORTION_BYTES {
            return None;
        }
        let portion = std::mem::take(&mut self.consumed);
        self.credit += portion;
        Some(portion)
    }

    /// Whether the end may come now.
    ///
    /// # Errors
    /// [`WindowError::Short`].
    pub const fn end(&self) -> Result<(), WindowError> {
        if self.received == self.total { Ok(()) } else { Err(WindowError::Short { total: self.total, got: self.received }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn credit_comes_back_in_portions_and_bounds_what_is_under_way() {
        let mut offset = 3 << 20;
        let mut window = ReceiveWindow::new(10 << 20, offset);
        let mut given = offset + CREDIT_BYTES;
        while offset < 10 << 20 {
            assert!(given > offset, "the sender never runs dry");
            window.receive(offset, CHUNK_BYTES_MAX).unwrap();
            given += window.consume(CHUNK_BYTES_MAX as u64).unwrap_or(0);
            offset += CHUNK_BYTES_MAX as u64;
        }
        assert_eq!(window.end(), Ok(()));
        assert_eq!(window.receive(offset, 1), Err(WindowError::Total(10 << 20)));
    }

    #[test]
    fn a_gap_an_overrun_and_an_early_end_are_told_apart() {
        let mut window = ReceiveWindow::new(4 << 20, 0);
        assert_eq!(window.receive(1, 1), Err(WindowError::Offset { expected: 0, got: 1 }));
        assert_eq!(window.receive(0, (CREDIT_BYTES + 1) as usize), Err(WindowError::Credit));
        assert_eq!(window.receive(0, 1), Ok(()));
        assert_eq!(window.end(), Err(WindowError::Short { total: 4 << 20, got: 1 }));
    }
}
