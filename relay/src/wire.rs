//! The client protocol's frames, as types. One WebSocket binary message is one frame: a kind byte, then a body.
//!
//! Bodies are CBOR arrays in the order of the fields here, byte strings for bytes; [`ServerFrame::Feed`] and
//! [`ServerFrame::Runs`] carry blocks of raw runs instead. `docs/protocol.md` has the bytes of an example of each.
//! Decoding shares the message's buffer, never panics, and allocates only for what is there.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use voter_mesh::ids::{Chain, ClusterId, Epoch, LogIndex, Opening, RaftId, RequestId, SessionId, Term};
use voter_mesh::outcome::Outcome;

mod cbor;
mod codec;

pub(crate) use codec::encode_replies;
pub use codec::{REPLIES_MAX, REPLY_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, WINDOW_MAX, WireError, kind};

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// A session's secret: 32 random bytes that only its client and the servers that it attaches to ever see. The log holds its SHA-256.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionSecret(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

/// Proves that a hello speaks for a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionProof {
    /// The session.
    pub session: SessionId,
    /// Its secret.
    pub secret: SessionSecret,
    /// The opening that this client's journal holds; proposals on this link are laid out with it. `None` from a journal that was
    /// just reopened: it sends `SessionAttach` before its first proposal.
    pub opening: Option<Opening>,
}

/// What a link receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FeedMode {
    /// Feed and replies.
    Full,
    /// Replies, and no feed.
    Thin,
    /// `Commit` at most every 100 ms, until `Resume` makes it full or thin.
    Standby,
}

/// How far a learner has come: it resumes right behind this entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResumePoint {
    /// The last entry that it applied.
    pub applied: LogIndex,
    /// The chain after it.
    pub chain: Chain,
}

/// What a client has of a state, on whatever link it came: pieces of the same state go on behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartialState {
    /// The entry at which the state stands.
    pub index: LogIndex,
    /// SHA-256 of the whole state.
    pub hash: [u8; 32],
    /// How many of its first bytes are there.
    pub bytes: u64,
}

/// The first frame of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The cluster that the client has state of.
    pub cluster: Option<ClusterId>,
    /// Its epoch.
    pub epoch: Option<Epoch>,
    /// The room's name; the same as in the URL's path.
    pub room: String,
    /// Credentials; reserved, empty today.
    #[serde(with = "serde_bytes")]
    pub auth: Vec<u8>,
    /// The state machine that the learner runs, as (name, version); `None` from raw and thin clients, which take any.
    pub state_machine: Option<(String, u32)>,
    /// The session that the client has, if any.
    pub session: Option<SessionProof>,
    /// Where its learner stands; `None` for an empty one.
    pub resume: Option<ResumePoint>,
    /// What it wants to receive.
    pub feed: FeedMode,
    /// Its unanswered request ids: answered from the session table where that knows them. At most 256.
    pub unanswered: Vec<RequestId>,
    /// The state of which it has received a part, if it needs one.
    pub partial: Option<PartialState>,
}

/// One proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The request id.
    pub id: RequestId,
    /// All lower ids are answered or given up. Never above `id`.
    pub floor: RequestId,
    /// The command.
    pub payload: Bytes,
}

/// What a client sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientFrame {
    /// First of all.
    Hello(Hello),
    /// Opens a session, or finds the one that this secret opened before. The log gets only the secret's hash; the secret itself
    /// is sent because learners see the hashes, so a hash would prove nothing.
    SessionOpen {
        /// The session's secret.
        secret: SessionSecret,
    },
    /// Opens the session again for a journal that was closed: see design §6.9.
    SessionAttach {
        /// Minted and journaled before it is sent.
        nonce: [u8; 16],
        /// The opening that the journal holds.
        previous: Opening,
    },
    /// Ends the session.
    SessionClose,
    /// Commands.
    Propose(Vec<Proposal>),
    /// Asks for an index that a linearizable read must have applied.
    ReadIndex {
        /// Names the question.
        id: u64,
    },
    /// Asks for runs with verdicts, from the one that holds `from` to the one that holds `to`.
    Fetch {
        /// First entry.
        from: LogIndex,
        /// Last entry.
        to: LogIndex,
    },
    /// Changes what the link receives, and from where: makes a standby link the first one.
    Resume {
        /// Where the learner stands.
        resume: Option<ResumePoint>,
        /// What it wants.
        feed: FeedMode,
        /// Its unanswered ids.
        unanswered: Vec<RequestId>,
        /// The state of which it has received a part.
        partial: Option<PartialState>,
    },
    /// How far the learner has applied; for the operator's lag figures only.
    Ack {
        /// The last entry that it applied.
        applied: LogIndex,
    },
    /// Answered by `Pong`.
    Ping {
        /// Comes back.
        nonce: u64,
    },
}

/// Why a server refuses a link or closes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum Code {
    /// Another protocol version.
    Version,
    /// Another cluster.
    Cluster,
    /// Another epoch: the cluster was restored; drop the state and the session.
    Epoch,
    /// No such room here.
    UnknownRoom,
    /// Another state machine or version of it.
    StateMachine,
    /// Credentials or session secret do not prove what they should.
    Auth,
    /// The server has not come as far as the client; try another one.
    Behind,
    /// The client's history is not this cluster's. An error for the application: never resynced silently.
    Diverged,
    /// The server recovers and cannot serve yet.
    Recovering,
    /// Too many connections, or too much in flight.
    Overloaded,
    /// The server is shutting down.
    Closing,
    /// A frame that does not decode, or comes where it may not.
    Malformed,
    /// A frame over its limit.
    TooLarge,
    /// A kind that is reserved but not built.
    Unsupported,
    /// No sign of life for two ping periods, or the handshake took too long.
    Timeout,
    /// The server has not known of a leader for long: another one may.
    Leaderless,
}

/// Where an admitted learner's feed begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Start {
    /// With this entry: right behind the learner's own.
    Tail(LogIndex),
    /// With a snapshot at this entry or, where a `Start` of its own follows before its first piece, a later one; the feed goes on
    /// behind it.
    Snapshot(LogIndex),
}

/// What became of the hello's session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionStatus {
    /// The hello named none.
    None,
    /// It lives, and this is its current opening.
    Attached(Opening),
    /// It does not exist any more.
    Expired,
}

/// Limits that a client must keep; a server closes the link where they are broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireLimits {
    /// Bytes of one message in either direction.
    pub message_bytes_max: u32,
    /// Bytes of one command's payload.
    pub payload_bytes_max: u32,
    /// Request ids open at once in a session.
    pub window_max: u32,
    /// Silence after which a side sends a ping; after two of them the link is dead.
    pub ping_ms: u32,
}

/// A server as clients know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Its id.
    pub id: RaftId,
    /// Its client endpoints, as URLs without the room's path.
    pub endpoints: Vec<String>,
}

/// The answer to a hello that is let in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admit {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The server that speaks.
    pub server: RaftId,
    /// All servers that it knows endpoints of.
    pub servers: Vec<ServerEntry>,
    /// Who leads, if known.
    pub leader: Option<RaftId>,
    /// The last entry that this server has applied.
    pub commit: LogIndex,
    /// The state machine's name and version.
    pub state_machine: (String, u32),
    /// Where the feed begins.
    pub start: Start,
    /// What became of the hello's session.
    pub session: SessionStatus,
    /// The limits of this link.
    pub limits: WireLimits,
}

/// An outcome on its way to the client that proposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireReply {
    /// The request.
    pub id: RequestId,
    /// The entry that it speaks of.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// CRC-32C of the payload that was judged, for the same id may have been sent with several; 0 where no entry stands behind the answer.
    pub payload_crc: u32,
    /// Whether an earlier entry recorded it.
    pub repeat: bool,
    /// What became of the command.
    pub outcome: Outcome,
}

/// A piece of a snapshot. Pieces come in order, from the beginning or from where the client said that it stands; the last one has
/// `offset + bytes.len() == total`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotChunk {
    /// The entry at which the state stands.
    pub index: LogIndex,
    /// The chain after it.
    pub chain: Chain,
    /// Where these bytes belong.
    pub offset: u64,
    /// Bytes of the whole state.
    pub total: u64,
    /// SHA-256 of the whole state.
    pub hash: [u8; 32],
    /// The state's bytes, as the machine wrote them.
    pub bytes: Bytes,
}

/// What a server sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerFrame {
    /// Let in.
    Admit(Admit),
    /// Not let in; the server closes.
    Refuse {
        /// Why.
        code: Code,
        /// When to try here again.
        retry_after_ms: Option<u32>,
    },
    /// The session is open under this opening; proposals may follow.
    SessionOpened {
        /// The session.
        session: SessionId,
        /// The opening.
        opening: Opening,
    },
    /// The journal was opened elsewhere since; an error for the application.
    Superseded {
        /// The opening that holds.
        current: Opening,
    },
    /// Committed runs with their verdicts: blocks end to end, each a run and its verdict bits (`ceil(count / 8)` bytes).
    Feed(Bytes),
    /// Outcomes.
    Replies(Vec<WireReply>),
    /// A piece of a snapshot.
    Snapshot(SnapshotChunk),
    /// The answer to `Resume`.
    Start(Start),
    /// How far the log has come, on a standby link.
    Commit {
        /// The last entry that the server has applied.
        index: LogIndex,
        /// The chain after it.
        chain: Chain,
    },
    /// Answer to `ReadIndex`.
    Read {
        /// The question.
        id: u64,
        /// A read at or behind this index is linearizable.
        index: LogIndex,
    },
    /// No answer to `ReadIndex`: no leader confirmed it in time.
    ReadRefused {
        /// The question.
        id: u64,
        /// Why.
        code: Code,
    },
    /// Proposals that the server did not take; certain not to have been forwarded from this link.
    ProposeRefused {
        /// Which.
        ids: Vec<RequestId>,
        /// Why.
        code: Code,
        /// When to send them again.
        retry_after_ms: Option<u32>,
    },
    /// Answer to `Fetch`: blocks as in `Feed`.
    Runs(Bytes),
    /// Answer to `Fetch` below what is kept.
    Trimmed {
        /// The first entry that can be had.
        first: LogIndex,
    },
    /// Answer to `Ping`.
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// The server closes the link.
    Close {
        /// Why.
        code: Code,
        /// When to try here again.
        retry_after_ms: Option<u32>,
        /// Where to go instead.
        endpoints: Vec<String>,
    },
}

#[cfg(test)]
mod tests;
