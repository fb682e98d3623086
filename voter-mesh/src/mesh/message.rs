//! What servers say to each other on the `consensus` connection. Only these typed kinds are ever decoded; a message of the raft
//! crate is only ever constructed from one of them, after its checks.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, LogIndex, RaftId, RunIndex, SessionId, Term};
use crate::run::Run;
use crate::snapshot::SnapshotHashes;

/// A batch of entries that an entry server forwards; its own counter, unique within its incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct BatchId(pub u64);

/// Names one read round of one entry server; answers to any other are discarded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct ReadNonce {
    /// Who asks.
    pub server: RaftId,
    /// In which life of its process.
    pub incarnation: Incarnation,
    /// Its counter.
    pub counter: u64,
}

/// One message between two servers. Who sent it is known from the link, never from the message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Runs after (`previous`, `previous_term`); empty to probe (Raft §5.3).
    Append {
        /// The leader's term.
        term: Term,
        /// The run before the first one here.
        previous: RunIndex,
        /// Its term.
        previous_term: Term,
        /// The leader's commit index.
        commit: RunIndex,
        /// Consecutive runs; may be empty.
        runs: Vec<Run>,
    },
    /// More is committed, of a log that is known to match: an append without runs that is answered only if it does not match.
    Commit {
        /// The leader's term.
        term: Term,
        /// The last run that the receiver was sent.
        previous: RunIndex,
        /// Its term.
        previous_term: Term,
        /// The leader's commit index.
        commit: RunIndex,
    },
    /// Answer to an append or a snapshot.
    AppendReply {
        /// The sender's term.
        term: Term,
        /// Matched (or, when rejected, asked-for) run.
        run: RunIndex,
        /// Where to try next, if it did not match.
        reject: Option<RejectHint>,
        /// The sender's commit index.
        commit: RunIndex,
    },
    /// The leader lives.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// What the receiver may commit.
        commit: RunIndex,
        /// The read round that this beat confirms; 0 for none.
        round: u64,
    },
    /// Answer to a heartbeat.
    HeartbeatReply {
        /// The sender's term.
        term: Term,
        /// The sender's commit index.
        commit: RunIndex,
        /// The round of the beat.
        round: u64,
    },
    /// Asks for a vote or a pre-vote (Raft §5.2, thesis §9.6).
    VoteRequest {
        /// The term campaigned for.
        term: Term,
        /// Pre-vote: binds nobody.
        pre: bool,
        /// The candidate's last run.
        last: RunIndex,
        /// Its term.
        last_term: Term,
        /// The candidate's commit index.
        commit: RunIndex,
        /// Its term.
        commit_term: Term,
        /// The candidate's priority.
        priority: i32,
        /// A leadership transfer: may overrule a live leader.
        transfer: bool,
    },
    /// Answer to a vote request.
    VoteReply {
        /// The term it answers for.
        term: Term,
        /// Answer to a pre-vote.
        pre: bool,
        /// Granted.
        granted: bool,
        /// The sender's commit index, when refused.
        commit: RunIndex,
        /// Its term.
        commit_term: Term,
    },
    /// The leader asks the receiver to campaign at once (thesis §3.10).
    TimeoutNow {
        /// The leader's term.
        term: Term,
    },
    /// Entries for the leader, from the server that took them from its clients.
    Forward {
        /// Names the batch in the answer.
        batch: BatchId,
        /// Laid-out entries, end to end.
        entries: Bytes,
    },
    /// The leader has sealed the batch; it is not committed yet.
    Taken {
        /// The batch.
        batch: BatchId,
        /// The leader's term.
        term: Term,
        /// The log index of its first entry.
        first: LogIndex,
    },
    /// The batch was not sealed.
    Refused {
        /// The batch.
        batch: BatchId,
        /// Why.
        why: ForwardRefusal,
        /// Who leads, if the sender knows.
        leader: Option<RaftId>,
    },
    /// How far must a replica have applied to serve a read that starts now? (Raft thesis §6.4)
    ReadIndex {
        /// Names the question.
        nonce: ReadNonce,
    },
    /// The answer.
    ReadAnswer {
        /// The question's nonce.
        nonce: ReadNonce,
        /// The commit index of a leader that was confirmed after the question was asked, by it or by a heartbeat round that began
        /// when it came; or why there is none.
        answer: Result<RunIndex, ReadRefusal>,
    },
    /// Which sessions came to or left the sender's room since it last said so.
    SessionActivity {
        /// Attached since.
        attached: Vec<SessionId>,
        /// Detached since.
        detached: Vec<SessionId>,
    },
    /// The sender's snapshot of a run is durable, and this is what it hashes to. For all members, not only the leader.
    SnapshotHashes(SnapshotHashes),
    /// An administrator's request on its way to the leader.
    Admin {
        /// Names the request in the answer.
        nonce: u64,
        /// What is asked.
        request: AdminRequest,
    },
    /// Its answer: done, or the reason in words.
    AdminReply {
        /// The request's nonce.
        nonce: u64,
        /// Done, or why not.
        result: Result<(), AdminFailure>,
    },
}

/// Where a follower's log may match.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RejectHint {
    /// The run to try.
    pub run: RunIndex,
    /// Its term at the follower.
    pub term: Term,
}

/// Why a leader, or one that was taken for it, does not seal a forwarded batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ForwardRefusal {
    /// It does not lead.
    NotLeader,
    /// Too much is uncommitted.
    Overloaded,
    /// It hands its leadership over.
    Transferring,
    /// The entries do not check.
    Malformed,
    /// It is still reading or mending its log, and has no part in consensus yet.
    Recovering,
    /// Its disk is full.
    DiskFull,
}

/// Why a read index is refused; the asker asks again after a leader change or one heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReadRefusal {
    /// It does not lead.
    NotLeader,
    /// It leads but has not committed in its term yet.
    NotReady,
    /// It is still reading or mending its log, and has no part in consensus yet.
    Recovering,
}

/// Why an administrator's request is not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum AdminFailure {
    /// The server is still reading or mending its log: ask again, or another one.
    #[error("the server is recovering")]
    Recovering,
    /// Refused, in words; nothing has changed.
    #[error("{0}")]
    Refused(String),
}

/// What an administrator asks of the leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Add a seat; whoever starts there becomes a standby.
    AddSeat {
        /// The new seat.
        seat: crate::ids::Seat,
        /// Its mesh address.
        address: String,
        /// Its priority.
        priority: i32,
        /// Its failure domain.
        failure_domain: String,
    },
    /// Give a standby a vote.
    Promote {
        /// Whose.
        seat: crate::ids::Seat,
    },
    /// Remove a seat, and its vote if it has one.
    RemoveSeat {
        /// Which.
        seat: crate::ids::Seat,
    },
    /// Hand leadership to a seat's member.
    Transfer {
        /// To whom.
        seat: crate::ids::Seat,
    },
    /// A newcomer asks for an id: it has an empty directory and met a formed cluster.
    Join {
        /// Its seat.
        seat: crate::ids::Seat,
        /// Its directory.
        directory: crate::ids::DirectoryId,
    },
}
