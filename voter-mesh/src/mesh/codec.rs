//! Frames of the mesh: messages to bytes and back.
//!
//! ```text
//! 0  u32  length of what follows        9       head: the message's small fields
//! 4  u8   kind                          9+head  tail: runs, entries or snapshot bytes, verbatim
//! 5  u32  length of the head
//! ```
//!
//! All integers are little-endian. Heads of the hot kinds are fixed tuples of integers in the order below; heads that hold text or
//! configurations are CBOR. Encoding shares the bytes of runs (tiny ones are copied, which is cheaper than an `iovec` for each);
//! decoding slices runs and entries out of the received buffer.
//!
//! | kind | message | head | tail |
//! |---|---|---|---|
//! | 1 | `Append` | term, previous, previous term, commit: u64 | runs |
//! | 2 | `AppendReply` | term, run, commit, hint run, hint term: u64; hint? u8 | |
//! | 3, 4 | `Heartbeat`, `HeartbeatReply` | term, commit, round: u64 | |
//! | 5 | `VoteRequest` | term, last, last term, commit, commit term: u64; priority i32; flags u8 (1 pre, 2 transfer) | |
//! | 6 | `VoteReply` | term, commit, commit term: u64; flags u8 (1 pre, 2 granted) | |
//! | 7 | `TimeoutNow` | term u64 | |
//! | 8 | `Forward` | batch u64 | entries |
//! | 9 | `Taken` | batch, term, first: u64 | |
//! | 10 | `Refused` | batch, leader (0: unknown): u64; why u8 (0 not leader, 1 overloaded, 2 transferring, 3 malformed, 4 recovering) | |
//! | 11 | `ReadIndex` | server, incarnation, counter: u64 | |
//! | 12 | `ReadAnswer` | server, incarnation, counter, run: u64; answer u8 (0 run, 1 not leader, 2 not ready, 3 recovering) | |
//! | 13 | `SessionActivity` | attached count u32 | session ids u64: attached, then detached |
//! | 14, 15 | `Admin`, `AdminReply` | CBOR [nonce, request or result] | |
//! | 16 | [`FormMessage`] | CBOR | |
//! | 17, 18 | [`Control`]: alive, bye | | |
//! | 19 | `Commit` | term, previous, previous term, commit: u64 | |
//! | 20 | `SnapshotHashes` | run u64; state's SHA-256, 32 B; sessions' SHA-256, 32 B | |
//! | 32–42 | [`super::bulk`] | | |
//! | 64–67 | [`super::handshake`] | | |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::forming::FormMessage;
use super::message::{BatchId, ForwardRefusal, Message, ReadNonce, ReadRefusal, RejectHint};
use crate::ids::{Incarnation, LogIndex, RaftId, RunIndex, SessionId, Term};
use crate::run::{Run, RunError};
use crate::snapshot::SnapshotHashes;

/// Bytes of one frame behind its length field. Holds one run of the largest size with room for more; bounds what a peer can make
/// this process buffer.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Bytes of one frame's head.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Runs up to this size are copied beside their neighbours: a system call takes 1024 pieces, and a piece costs more than a copy.
const RUN_BYTES_COPIED: usize = 512;

/// Received frames up to this size are copied out, so that a small run kept for long does not pin a whole read buffer.
const FRAME_BYTES_COPIED: usize = 4 << 10;

/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;

/// Bytes between the length field and the head.
const ENVELOPE_BYTES: usize = 5;

/// In the place of a hint that there is not.
const NO_HINT: RejectHint = RejectHint { run: RunIndex::ZERO, term: Term::ZERO };

/// The kind byte of each frame.
pub(super) mod kind {
    pub(crate) const APPEND: u8 = 1;
    pub(crate) const APPEND_REPLY: u8 = 2;
    pub(crate) const HEARTBEAT: u8 = 3;
    pub(crate) const HEARTBEAT_REPLY: u8 = 4;
    pub(crate) const VOTE_REQUEST: u8 = 5;
    pub(crate) const VOTE_REPLY: u8 = 6;
    pub(crate) const TIMEOUT_NOW: u8 = 7;
    pub(crate) const FORWARD: u8 = 8;
    pub(crate) const TAKEN: u8 = 9;
    pub(crate) const REFUSED: u8 = 10;
    pub(crate) const READ_INDEX: u8 = 11;
    pub(crate) const READ_ANSWER: u8 = 12;
    pub(crate) const SESSION_ACTIVITY: u8 = 13;
    pub(crate) const ADMIN: u8 = 14;
    pub(crate) const ADMIN_REPLY: u8 = 15;
    pub(crate) const FORM: u8 = 16;
    pub(crate) const ALIVE: u8 = 17;
    pub(crate) const BYE: u8 = 18;
    pub(crate) const COMMIT: u8 = 19;
    pub(crate) const SNAPSHOT_HASHES: u8 = 20;
    pub(crate) const SNAPSHOT_BEGIN: u8 = 32;
    pub(crate) const SNAPSHOT_ACCEPT: u8 = 33;
    pub(crate) const SNAPSHOT_CHUNK: u8 = 34;
    pub(crate) const SNAPSHOT_CREDIT: u8 = 35;
    pub(crate) const SNAPSHOT_END: u8 = 36;
    pub(crate) const SNAPSHOT_DONE: u8 = 37;
    pub(crate) const SNAPSHOT_REFUSE: u8 = 38;
    pub(crate) const SNAPSHOT_ABORT: u8 = 39;
    pub(crate) const FETCH_RUNS: u8 = 40;
    pub(crate) const RUNS: u8 = 41;
    pub(crate) const NO_RUNS: u8 = 42;
    pub(crate) const HELLO: u8 = 64;
    pub(crate) const PROOF: u8 = 65;
    pub(crate) const VERDICT: u8 = 66;
    pub(crate) const REFUSAL: u8 = 67;
}

/// What travels on the `consensus` connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeshMessage {
    /// For the consensus core, or for the server that drives it.
    Raft(Message),
    /// For [`super::forming`].
    Form(FormMessage),
}

/// Frames that the connection itself answers to; they never reach an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Nothing else was sent for a while; the sender lives.
    Alive,
    /// The sender closes this connection on purpose: its end is not a tear.
    Bye,
}

/// Why bytes are not a frame, or a message does not fit one. The connection is of no further use after a received one.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CodecError {
    /// The frame is over its limit.
    #[error("frame of {0} bytes is over the limit")]
    TooLarge(usize),
    /// The head is over [`HEAD_BYTES_MAX`].
    #[error("frame head of {0} bytes is over the limit")]
    HeadTooLarge(usize),
    /// The frame ends before its head or a field does.
    #[error("frame is truncated")]
    Truncated,
    /// The kind is none that may come here.
    #[error("frame kind {0} is unknown here")]
    Kind(u8),
    /// Bytes are left over behind the last field.
    #[error("frame has bytes left over")]
    Trailing,
    /// A field has a value that it cannot have.
    #[error("frame field {0} has no such value")]
    Field(&'static str),
    /// The head's CBOR does not decode.
    #[error("frame head does not decode")]
    Cbor,
    /// A run inside is bad.
    #[error("frame holds a bad run: {0}")]
    Run(#[from] RunError),
}

/// A frame with the head that `fill` writes, complete but for `tail_bytes` that the caller sends behind it.
pub(super) fn frame(kind: u8, tail_bytes: usize, fill: impl FnOnce(&mut BytesMut)) -> Result<BytesMut, CodecError> {
    let mut buffer = BytesMut::with_capacity(128);
    buffer.put_bytes(0, LENGTH_BYTES + ENVELOPE_BYTES);
    fill(&mut buffer);
    let head_bytes = buffer.len() - LENGTH_BYTES - ENVELOPE_BYTES;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(CodecError::HeadTooLarge(head_bytes));
    }
    let length = ENVELOPE_BYTES + head_bytes + tail_bytes;
    if length > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge(length));
    }
    buffer[..4].copy_from_slice(&(length as u32).to_le_bytes());
    buffer[4] = kind;
    buffer[5..9].copy_from_slice(&(head_bytes as u32).to_le_bytes());
    Ok(buffer)
}

/// A frame whose head is CBOR, without a tail.
pub(super) fn cbor_frame(kind: u8, head: &impl Serialize) -> Result<BytesMut, CodecError> {
    let head = crate::machine::to_cbor(head).map_err(|_| CodecError::Cbor)?;
    frame(kind, 0, |buffer| buffer.put_slice(&head))
}

/// Decodes a CBOR head.
pub(super) fn from_cbor<T: DeserializeOwned>(head: &[u8]) -> Result<T, CodecError> {
    crate::machine::from_cbor(head).map_err(|_| CodecError::Cbor)
}

/// A frame taken apart. `frame` is what [`split_frame`] gave: everything behind the length field.
pub(super) fn open(mut frame: Bytes) -> Result<(u8, Bytes, Bytes), CodecError> {
    let kind = frame.try_get_u8().map_err(|_| CodecError::Truncated)?;
    let head_bytes = frame.try_get_u32_le().map_err(|_| CodecError::Truncated)? as usize;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(CodecError::HeadTooLarge(head_bytes));
    }
    if head_bytes > frame.len() {
        return Err(CodecError::Truncated);
    }
    let head = frame.split_to(head_bytes);
    Ok((kind, head, frame))
}

/// Takes the frame at the front of what was received off it, without its length field. `None`: it is not all there yet; room for the rest is
/// reserved then, so that it arrives in one piece.
///
/// # Errors
/// [`CodecError::TooLarge`] if it claims more than `bytes_max`, [`CodecError::Truncated`] if less than a frame can have.
pub fn split_frame(received: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, CodecError> {
    let Some(length) = received.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > bytes_max {
        return Err(CodecError::TooLarge(length));
    }
    if length < ENVELOPE_BYTES {
        return Err(CodecError::Truncated);
    }
    if received.len() < LENGTH_BYTES + length {
        received.reserve(LENGTH_BYTES + length - received.len());
        return Ok(None);
    }
    received.advance(LENGTH_BYTES);
    if length <= FRAME_BYTES_COPIED {
        let frame = Bytes::copy_from_slice(&received[..length]);
        received.advance(length);
        return Ok(Some(frame));
    }
    Ok(Some(received.split_to(length).freeze()))
}

impl Control {
    /// The whole frame.
    #[must_use]
    pub const fn frame(self) -> Bytes {
        Bytes::from_static(match self {
            Self::Alive => &[ENVELOPE_BYTES as u8, 0, 0, 0, kind::ALIVE, 0, 0, 0, 0],
            Self::Bye => &[ENVELOPE_BYTES as u8, 0, 0, 0, kind::BYE, 0, 0, 0, 0],
        })
    }

    /// Whether a frame from [`split_frame`] is one of these.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        match frame.first() {
            Some(&kind::ALIVE) => Some(Self::Alive),
            Some(&kind::BYE) => Some(Self::Bye),
            _ => None,
        }
    }
}

/// Appends the pieces of `message`'s frame to `to` and returns their bytes together. Runs and entries are shared, not copied.
///
/// # Errors
/// [`CodecError::TooLarge`] or [`CodecError::HeadTooLarge`]; `to` is then unchanged.
pub fn encode(message: &MeshMessage, to: &mut impl Extend<Bytes>) -> Result<usize, CodecError> {
    let message = match message {
        MeshMessage::Raft(message) => message,
        MeshMessage::Form(message) => return finish(cbor_frame(kind::FORM, message)?, to),
    };
    match message {
        Message::Append { term, previous, previous_term, commit, runs } => {
            let tail_bytes = runs.iter().map(|run| run.bytes().len()).sum();
            let head = [term.0, previous.0, previous_term.0, commit.0];
            append(fixed(kind::APPEND, &head, &[], tail_bytes)?, tail_bytes, runs, to)
        }
        Message::Commit { term, previous, previous_term, commit } => {
            finish(fixed(kind::COMMIT, &[term.0, previous.0, previous_term.0, commit.0], &[], 0)?, to)
        }
        Message::AppendReply { term, run, reject, commit } => {
            let hint = reject.unwrap_or(NO_HINT);
            let head = [term.0, run.0, commit.0, hint.run.0, hint.term.0];
            finish(fixed(kind::APPEND_REPLY, &head, &[reject.is_some().into()], 0)?, to)
        }
        Message::Heartbeat { term, commit, round } => finish(fixed(kind::HEARTBEAT, &[term.0, commit.0, *round], &[], 0)?, to),
        Message::HeartbeatReply { term, commit, round } => {
            finish(fixed(kind::HEARTBEAT_REPLY, &[term.0, commit.0, *round], &[], 0)?, to)
        }
        Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer } => {
            let [a, b, c, d] = priority.to_le_bytes();
            let head = [term.0, last.0, last_term.0, commit.0, commit_term.0];
            finish(fixed(kind::VOTE_REQUEST, &head, &[a, b, c, d, bits([*pre, *transfer])], 0)?, to)
        }
        Message::VoteReply { term, pre, granted, commit, commit_term } => {
            finish(fixed(kind::VOTE_REPLY, &[term.0, commit.0, commit_term.0], &[bits([*pre, *granted])], 0)?, to)
        }
        Message::TimeoutNow { term } => finish(fixed(kind::TIMEOUT_NOW, &[term.0], &[], 0)?, to),
        Message::Forward { batch, entries } => {
            let buffer = fixed(kind::FORWARD, &[batch.0], &[], entries.len())?;
            let bytes = buffer.len() + entries.len();
            to.extend([buffer.freeze(), entries.clone()]);
            Ok(bytes)
        }
        Message::Taken { batch, term, first } => finish(fixed(kind::TAKEN, &[batch.0, term.0, first.0], &[], 0)?, to),
        Message::Refused { batch, why, leader } => {
            let head = [batch.0, leader.unwrap_or(RaftId::NONE).0];
            finish(fixed(kind::REFUSED, &head, &[refusal_byte(*why)], 0)?, to)
        }
        Message::ReadIndex { nonce } => finish(fixed(kind::READ_INDEX, &nonce_numbers(nonce), &[], 0)?, to),
        Message::ReadAnswer { nonce, answer } => {
            let [server, incarnation, counter] = nonce_numbers(nonce);
            let (run, answer) = match answer {
                Ok(run) => (run.0, 0),
                Err(ReadRefusal::NotLeader) => (0, 1),
                Err(ReadRefusal::NotReady) => (0, 2),
                Err(ReadRefusal::Recovering) => (0, 3),
            };
            finish(fixed(kind::READ_ANSWER, &[server, incarnation, counter, run], &[answer], 0)?, to)
        }
        Message::SessionActivity { attached, detached } => {
            let count = u32::try_from(attached.len()).map_err(|_| CodecError::TooLarge(attached.len()))?;
            let tail_bytes = 8 * (attached.len() + detached.len());
            let mut buffer = frame(kind::SESSION_ACTIVITY, tail_bytes, |buffer| buffer.put_u32_le(count))?;
            buffer.reserve(tail_bytes);
            for session in attached.iter().chain(detached) {
                buffer.put_u64_le(session.0);
            }
            finish(buffer, to)
        }
        Message::SnapshotHashes(SnapshotHashes { run, state, sessions }) => {
            finish(fixed(kind::SNAPSHOT_HASHES, &[run.0], &[*state, *sessions].concat(), 0)?, to)
        }
        Message::Admin { nonce, request } => finish(cbor_frame(kind::ADMIN, &(nonce, request))?, to),
        Message::AdminReply { nonce, result } => finish(cbor_frame(kind::ADMIN_REPLY, &(nonce, result))?, to),
    }
}

fn finish(buffer: BytesMut, to: &mut impl Extend<Bytes>) -> Result<usize, CodecError> {
    let bytes = buffer.len();
    to.extend([buffer.freeze()]);
    Ok(bytes)
}

pub(super) fn append(
    mut buffer: BytesMut,
    tail_bytes: usize,
    runs: &[Run],
    to: &mut impl Extend<Bytes>,
) -> Result<usize, CodecError> {
    let bytes = buffer.len() + tail_bytes;
    for run in runs.iter().map(Run::bytes) {
        if run.len() <= RUN_BYTES_COPIED {
            buffer.put_slice(run);
        } else {
            if !buffer.is_empty() {
                to.extend([buffer.split().freeze()]);
            }
            to.extend([run.clone()]);
        }
    }
    if !buffer.is_empty() {
        to.extend([buffer.freeze()]);
    }
    Ok(bytes)
}

/// A frame whose head is a tuple of integers: `numbers`, then `bytes`.
fn fixed(kind: u8, numbers: &[u64], bytes: &[u8], tail_bytes: usize) -> Result<BytesMut, CodecError> {
    frame(kind, tail_bytes, |buffer| {
        numbers.iter().for_each(|number| buffer.put_u64_le(*number));
        buffer.put_slice(bytes);
    })
}

fn bits(flags: [bool; 2]) -> u8 {
    u8::from(flags[0]) | u8::from(flags[1]) << 1
}

fn nonce_numbers(nonce: &ReadNonce) -> [u64; 3] {
    [nonce.server.0, nonce.incarnation.0, nonce.counter]
}

fn refusal_byte(why: ForwardRefusal) -> u8 {
    match why {
        ForwardRefusal::NotLeader => 0,
        ForwardRefusal::Overloaded => 1,
        ForwardRefusal::Transferring => 2,
        ForwardRefusal::Malformed => 3,
        ForwardRefusal::Recovering => 4,
        ForwardRefusal::DiskFull => 5,
    }
}

/// Decodes what [`split_frame`] gave on a `consensus` connection and is no [`Control`].
///
/// # Errors
/// Any [`CodecError`]: the peer is broken or of another version; close the link.
pub fn decode(frame: Bytes) -> Result<MeshMessage, CodecError> {
    let (kind, head, mut tail) = open(frame)?;
    let mut fields = Fields(&head);
    let message = match kind {
        kind::APPEND => {
            let (term, previous) = (Term(fields.u64()?), RunIndex(fields.u64()?));
            let (previous_term, commit) = (Term(fields.u64()?), RunIndex(fields.u64()?));
            // Bounded by the frame: a run has more than a hundred bytes.
            let mut runs = Vec::new();
            while !tail.is_empty() {
                runs.push(Run::split_from(&mut tail)?);
            }
            Message::Append { term, previous, previous_term, commit, runs }
        }
        kind::COMMIT => {
            let (term, previous) = (Term(fields.u64()?), RunIndex(fields.u64()?));
            Message::Commit { term, previous, previous_term: Term(fields.u64()?), commit: RunIndex(fields.u64()?) }
        }
        kind::APPEND_REPLY => {
            let (term, run, commit) = (Term(fields.u64()?), RunIndex(fields.u64()?), RunIndex(fields.u64()?));
            let hint = RejectHint { run: RunIndex(fields.u64()?), term: Term(fields.u64()?) };
            let [rejected] = fields.bits("reject")?;
            if !rejected && hint != NO_HINT {
                return Err(CodecError::Field("hint"));
            }
            Message::AppendReply { term, run, reject: rejected.then_some(hint), commit }
        }
        kind::HEARTBEAT => Message::Heartbeat { term: Term(fields.u64()?), commit: RunIndex(fields.u64()?), round: fields.u64()? },
        kind::HEARTBEAT_REPLY => {
            Message::HeartbeatReply { term: Term(fields.u64()?), commit: RunIndex(fields.u64()?), round: fields.u64()? }
        }
        kind::VOTE_REQUEST => {
            let (term, last, last_term) = (Term(fields.u64()?), RunIndex(fields.u64()?), Term(fields.u64()?));
            let (commit, commit_term) = (RunIndex(fields.u64()?), Term(fields.u64()?));
            let priority = fields.i32()?;
            let [pre, transfer] = fields.bits("vote request")?;
            Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer }
        }
        kind::VOTE_REPLY => {
            let (term, commit, commit_term) = (Term(fields.u64()?), RunIndex(fields.u64()?), Term(fields.u64()?));
            let [pre, granted] = fields.bits("vote reply")?;
            Message::VoteReply { term, pre, granted, commit, commit_term }
        }
        kind::TIMEOUT_NOW => Message::TimeoutNow { term: Term(fields.u64()?) },
        kind::FORWARD => Message::Forward { batch: BatchId(fields.u64()?), entries: std::mem::take(&mut tail) },
        kind::TAKEN => Message::Taken { batch: BatchId(fields.u64()?), term: Term(fields.u64()?), first: LogIndex(fields.u64()?) },
        kind::REFUSED => {
            let (batch, leader) = (BatchId(fields.u64()?), RaftId(fields.u64()?).some());
            let why = match fields.u8()? {
                0 => ForwardRefusal::NotLeader,
                1 => ForwardRefusal::Overloaded,
                2 => ForwardRefusal::Transferring,
                3 => ForwardRefusal::Malformed,
                4 => ForwardRefusal::Recovering,
                5 => ForwardRefusal::DiskFull,
                _ => return Err(CodecError::Field("refusal")),
            };
            Message::Refused { batch, why, leader }
        }
        kind::READ_INDEX => Message::ReadIndex { nonce: fields.nonce()? },
        kind::READ_ANSWER => {
            let (nonce, run) = (fields.nonce()?, RunIndex(fields.u64()?));
            let answer = match (fields.u8()?, run) {
                (0, run) => Ok(run),
                (1, RunIndex::ZERO) => Err(ReadRefusal::NotLeader),
                (2, RunIndex::ZERO) => Err(ReadRefusal::NotReady),
                (3, RunIndex::ZERO) => Err(ReadRefusal::Recovering),
                _ => return Err(CodecError::Field("read answer")),
            };
            Message::ReadAnswer { nonce, answer }
        }
        kind::SESSION_ACTIVITY => {
            let count = fields.u32()? as usize;
            if tail.len() % 8 != 0 || count > tail.len() / 8 {
                return Err(CodecError::Field("session count"));
            }
            let mut attached = Vec::with_capacity(tail.len() / 8);
            while tail.has_remaining() {
                attached.push(SessionId(tail.get_u64_le()));
            }
            let detached = attached.split_off(count);
            Message::SessionActivity { attached, detached }
        }
        kind::SNAPSHOT_HASHES => Message::SnapshotHashes(SnapshotHashes {
            run: RunIndex(fields.u64()?),
            state: fields.array()?,
            sessions: fields.array()?,
        }),
        kind::ADMIN => {
            let (nonce, request) = from_cbor(fields.rest())?;
            Message::Admin { nonce, request }
        }
        kind::ADMIN_REPLY => {
            let (nonce, result) = from_cbor(fields.rest())?;
            Message::AdminReply { nonce, result }
        }
        kind::FORM => {
            let message = from_cbor(fields.rest())?;
            fields.finish(&tail)?;
            return Ok(MeshMessage::Form(message));
        }
        unknown => return Err(CodecError::Kind(unknown)),
    };
    fields.finish(&tail)?;
    Ok(MeshMessage::Raft(message))
}

/// Reads a fixed head, field by field.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        self.0.try_get_u64_le().map_err(|_| CodecError::Truncated)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.0.try_get_u32_le().map_err(|_| CodecError::Truncated)
    }

    fn i32(&mut self) -> Result<i32, CodecError> {
        self.0.try_get_i32_le().map_err(|_| CodecError::Truncated)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(CodecError::Truncated)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        self.0.try_get_u8().map_err(|_| CodecError::Truncated)
    }

    fn nonce(&mut self) -> Result<ReadNonce, CodecError> {
        Ok(ReadNonce { server: RaftId(self.u64()?), incarnation: Incarnation(self.u64()?), counter: self.u64()? })
    }

    /// The lowest `N` bits of a byte whose other bits must be clear.
    fn bits<const N: usize>(&mut self, name: &'static str) -> Result<[bool; N], CodecError> {
        let byte = self.u8()?;
        if byte >> N != 0 {
            return Err(CodecError::Field(name));
        }
        Ok(std::array::from_fn(|bit| byte >> bit & 1 == 1))
    }

    /// Everything that is left of the head.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Nothing may be left over, neither of the head nor of the tail.
    pub(super) fn finish(self, tail: &[u8]) -> Result<(), CodecError> {
        if self.0.is_empty() && tail.is_empty() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

#[cfg(test)]
mod tests;
