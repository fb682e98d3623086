//! What a client says of itself, and why a link or the client ended.

use relay::wire::Code;
use thiserror::Error;
use voter_mesh::ids::{Epoch, LogIndex, RaftId};

/// How the client stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// No server has let it in yet.
    Connecting {
        /// Dials that failed since the start.
        attempt: u32,
        /// How the last one failed.
        last_error: Option<LinkError>,
    },
    /// Let in; the learner follows what was committed before.
    CatchingUp {
        /// The last entry that it has applied.
        applied: LogIndex,
        /// The last entry that the server had applied when it let the client in.
        target: LogIndex,
        /// The cluster's epoch. Where it has risen, the cluster was restored: state and session of the one before are dropped.
        epoch: Epoch,
    },
    /// Let in and up to date.
    Live {
        /// The entry server.
        server: RaftId,
        /// The last entry that the learner has applied; for a thin client, the last one that it was answered about.
        applied: LogIndex,
        /// The cluster's epoch. Where it has risen, the cluster was restored: state and session of the one before are dropped.
        epoch: Epoch,
    },
    /// It was live and lost its links; learner, state and session survive.
    FailingOver {
        /// Dials that failed since.
        attempt: u32,
        /// Why the last link ended.
        last_error: Option<LinkError>,
    },
    /// It has ended for good.
    Closed {
        /// Why.
        why: CloseReason,
    },
}

/// Why a link did not come to be, or ended. The client goes on to the next endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No connection, or no WebSocket on it.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Connected, but not let in within the handshake's time.
    #[error("no admission in time")]
    HandshakeTimeout,
    /// The server refused: another version, cluster, epoch, room, state machine, ...
    #[error("refused: {0:?}")]
    Refused(Code),
    /// The server closed the link.
    #[error("closed by the server: {0:?}")]
    Closed(Code),
    /// The connection ended without a word.
    #[error("torn: {0}")]
    Torn(String),
    /// Nothing was heard for two ping periods.
    #[error("silent for two ping periods")]
    Silent,
    /// The second link was ahead for the stall time while this one said nothing.
    #[error("overtaken by the standby link")]
    Overtaken,
    /// The server broke the protocol.
    #[error("broke the protocol: {0}")]
    Malformed(&'static str),
    /// The server's snapshot is over this client's limit.
    #[error("snapshot of {0} bytes is over the limit")]
    SnapshotTooLarge(u64),
}

/// Why a client closed for good.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The application closed it, or dropped its last handle.
    #[error("closed by the application")]
    Application,
    /// The cluster's history is not the one that this learner applied. Never resynced silently: begin anew with a fresh client.
    #[error("the cluster's history is not this learner's")]
    Diverged,
    /// The journal cannot be written: going on could apply a command twice.
    #[error("the journal failed: {0}")]
    Journal(String),
    /// The state machine could not restore a snapshot or decode a committed command: it is not the servers' machine.
    #[error("the state machine failed: {0}")]
    Machine(String),
    /// The task that drives the client ended: its runtime shut down, or the state machine panicked.
    #[error("the client's task ended")]
    TaskEnded,
}
