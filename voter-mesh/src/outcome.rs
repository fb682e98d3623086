//! What became of a command: the same on every server, recorded in the session table and answered again to every retry.

use bytes::Bytes;

use crate::ids::{LogIndex, Opening, RequestId, SessionId, Term};

/// What became of one proposed command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It took effect, now or (where [`Reply::repeat`] says so) when it was first proposed; this is what the machine answered.
    Applied(Bytes),
    /// It took effect earlier and its reply was over [`crate::session::REPLY_BYTES_KEPT_MAX`]; only the reply's SHA-256 was kept.
    Elided([u8; 32]),
    /// The state machine could not decode it. No effect; recorded.
    Undecodable,
    /// The same request id was used before with another payload. No effect; the first outcome stands.
    Conflict,
    /// The request id is below the session's floor: it was answered or given up before. No effect.
    Stale,
    /// It broke the session's window. No effect; the session takes no further command and will be ended.
    WindowBroken,
    /// The session does not exist (any more). No effect.
    SessionExpired,
    /// The session's journal was opened again elsewhere; this is the current opening. No effect.
    Superseded(Opening),
}

/// An outcome and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The session that proposed.
    pub session: SessionId,
    /// The opening under which the entry was proposed.
    pub opening: Opening,
    /// The request.
    pub request: RequestId,
    /// Index of the entry that took effect (the first one, for a repeat), else of the entry that was judged.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// Checksum of the payload that was judged, as in [`EntryHeader`](crate::entry::EntryHeader); 0 where no entry stands behind the answer. A request
    /// id alone does not say which command is meant: it may have been used with several.
    pub payload_crc: u32,
    /// Whether the outcome was recorded by an earlier entry.
    pub repeat: bool,
    /// What became of it.
    pub outcome: Outcome,
}
