//! What can go wrong, one enum per operation; each variant says what state remains.

use thiserror::Error;
use voter_mesh::ids::{LogIndex, Opening, Term};

use relay::wire::Code;

use crate::status::{CloseReason, LinkError};
use crate::ticket::Ticket;

/// Why a command was certainly not sent. It was not applied and never will be; proposing it anew is safe.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum NotSent {
    /// No server could take it before the deadline, or the future was dropped before one did.
    #[error("no server could take it before the deadline")]
    Deadline,
    /// `try_propose` found no room: 256 requests are open from the oldest unanswered one on.
    #[error("the window of open requests is full")]
    WindowFull,
    /// Too many proposals wait for room already.
    #[error("too many proposals wait for room")]
    QueueFull,
    /// The payload is over the limit that the server (or the layout of entries) sets.
    #[error("the command has {bytes} bytes, {max} are allowed")]
    TooLarge {
        /// Bytes of the payload.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The command's own `Serialize` failed.
    #[error("the command cannot be encoded: {0}")]
    Encode(String),
    /// The server refused it for good and no other copy was ever sent.
    #[error("refused: {0:?}")]
    Refused(Code),
    /// The client is closed.
    #[error("the client is closed: {0}")]
    Closed(CloseReason),
}

/// Why it cannot be said whether a command took effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// The deadline passed. The request stays in the journal and goes on being sent; `outcome(ticket)` waits for it.
    #[error("the deadline passed; it goes on being sent")]
    Deadline,
    /// The session ended while it was in flight. It is not sent any more and its outcome cannot be learnt.
    #[error("the session ended while it was in flight")]
    SessionExpired,
    /// The cluster was restored from a backup while it was in flight. It is not sent any more.
    #[error("the cluster was restored while it was in flight")]
    Epoch,
    /// The application abandoned the ticket. It is not sent any more.
    #[error("it was abandoned while it was in flight")]
    Abandoned,
    /// The client closed. It stays in the journal; a client that opens the journal again sends it again.
    #[error("the client closed while it was in flight")]
    Closed,
}

/// What became of a proposal that has no reply to show.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// No server has seen it: certainly not applied. Its id, if it had one, is given up.
    #[error("not sent: {reason}")]
    NotSent {
        /// Why.
        reason: NotSent,
    },
    /// It may or may not have been applied; `reason` says whether more can be learnt.
    #[error("unknown whether {ticket} was applied: {reason}")]
    Unknown {
        /// Names the request.
        ticket: Ticket,
        /// Why it is unknown, and what happens to it now.
        reason: Unresolved,
    },
    /// The session is gone, and this command was not sent under it. Nothing proposed in this session will be applied from now on;
    /// `renew_session` begins another one.
    #[error("the session has ended")]
    SessionExpired,
    /// The journal was opened elsewhere: whoever holds that opening now speaks for the session, and knows what became of requests
    /// that were in flight here.
    #[error("the journal was opened elsewhere (opening {current})")]
    Superseded {
        /// The opening that holds.
        current: Opening,
    },
    /// It took effect, but its reply was too large to be kept for this retry; only its SHA-256 was.
    #[error("applied at {index}, but the reply was not kept")]
    Elided {
        /// Where it was applied.
        index: LogIndex,
        /// In which term.
        term: Term,
        /// SHA-256 of the reply.
        hash: [u8; 32],
    },
    /// It took effect, and this client cannot decode the reply.
    #[error("applied at {index}, but the reply does not decode")]
    Reply {
        /// Where it was applied.
        index: LogIndex,
        /// In which term.
        term: Term,
    },
    /// The state machine cannot decode it. No effect, now or ever.
    #[error("the state machine cannot decode the command")]
    Undecodable,
    /// The same ticket was used with another command, here or through a copy of the journal. This one has no effect; the first one's outcome
    /// stands.
    #[error("the ticket was used with another command")]
    Conflict,
    /// The ticket was answered or given up long ago. No effect by this attempt.
    #[error("the ticket was answered or given up before")]
    Stale,
    /// The session broke its window of open requests. No effect; the session takes no further command and ends.
    #[error("the session broke its window of open requests")]
    WindowBroken,
    /// The ticket belongs to another session, or its id is none. Nothing was sent.
    #[error("the ticket belongs to another session")]
    ForeignTicket,
    /// The journal holds no open request under this ticket and no outcome that nobody has taken yet: it was never proposed here,
    /// or its outcome was taken or given up. `propose_as` with the same command asks the servers.
    #[error("no such request in the journal")]
    NoSuchRequest,
}

/// Why no ticket was reserved. Nothing was sent under it, and no id is held.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The id asked for is 0 or at least 2^63.
    #[error("no request can have this id")]
    BadId,
    /// No session could be opened, or no room was free, before the deadline.
    #[error("no ticket could be reserved before the deadline")]
    Deadline,
    /// Too many calls wait for room already.
    #[error("too many calls wait for room")]
    QueueFull,
    /// The session is gone; `renew_session` begins another one.
    #[error("the session has ended")]
    SessionExpired,
    /// The journal was opened elsewhere.
    #[error("the journal was opened elsewhere (opening {current})")]
    Superseded {
        /// The opening that holds.
        current: Opening,
    },
    /// The client is closed.
    #[error("the client is closed: {0}")]
    Closed(CloseReason),
}

/// Why a ticket was not given up. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum GiveUpError {
    /// The journal holds no such request: it was answered or given up before.
    #[error("no such request in the journal")]
    NoSuchRequest,
    /// The ticket belongs to another session.
    #[error("the ticket belongs to another session")]
    ForeignTicket,
    /// It was proposed and may take effect: only `abandon` gives it up.
    #[error("the request is in flight; abandon it instead")]
    InFlight,
}

/// Why a read did not run. State and session are as before; the closure was not called.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The replica could not be shown to be recent enough before the deadline.
    #[error("the replica did not get there before the deadline")]
    Deadline,
    /// Too many reads wait already.
    #[error("too many reads wait")]
    QueueFull,
    /// The cluster was restored from a backup meanwhile; read again.
    #[error("the cluster was restored meanwhile")]
    Epoch,
    /// The client is closed. `Consistency::Local` still reads what the replica last held.
    #[error("the client is closed: {0}")]
    Closed(CloseReason),
}

/// Why a stream of committed commands ended.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The servers keep no commands before `first`; begin another stream there, or use a snapshot of the state.
    #[error("trimmed: the first command that can be had is at {first}")]
    Trimmed {
        /// The first index that can be had.
        first: LogIndex,
    },
    /// The cluster was restored from a backup: indices begin anew.
    #[error("the cluster was restored")]
    Epoch,
    /// What a server gave for the commands behind `after` does not continue those before, or does not lead to those that this client
    /// follows: it is not one history. What the stream gave before stands in doubt back to where it began to fetch.
    #[error("the history behind {after} is not the one before it")]
    Diverged {
        /// The last entry that both have.
        after: LogIndex,
    },
    /// The client is closed.
    #[error("the client is closed: {0}")]
    Closed(CloseReason),
}

/// Why there is no client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No endpoint was given.
    #[error("no endpoint")]
    NoEndpoint,
    /// An endpoint is not `ws://HOST:PORT/rooms/ROOM`.
    #[error("bad endpoint {endpoint}: {reason}")]
    Endpoint {
        /// The text given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The endpoints name different rooms.
    #[error("endpoints name different rooms: {0} and {1}")]
    Rooms(String, String),
    /// The number of links is not 1 or 2.
    #[error("{0} links asked for, 1 or 2 are possible")]
    Links(usize),
    /// The initial state cannot be written and read back, which a restore of the cluster would need.
    #[error("the initial state cannot be written and read back: {0}")]
    InitialState(String),
    /// The journal cannot be read or written.
    #[error("journal: {0}")]
    Journal(#[from] crate::journal::JournalError),
    /// There is no tokio runtime to live in.
    #[error("no tokio runtime")]
    NoRuntime,
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Randomness(String),
    /// No server let the client in, or it did not catch up, before the deadline. The client is closed; its journal is free again.
    #[error("not live before the deadline (last error: {last_error:?})")]
    Deadline {
        /// The last failure of a link.
        last_error: Option<LinkError>,
    },
    /// The client closed for good while connecting.
    #[error("closed: {0}")]
    Closed(CloseReason),
}
