//! What goes into a [`super::Voter`] and comes out of it.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::configuration::Configuration;
use crate::ids::{Identity, Incarnation, RaftId, ReadId, RunIndex, Term};
use crate::mesh::message::{AdminRequest, Message};
use crate::run::{Run, Tail};
use crate::snapshot::SnapshotMeta;

/// A term so far above ours is believed only when a majority of the voters claims such terms: one peer with a damaged disk must not
/// drag the cluster into terms that nobody elected.
pub const TERM_JUMP_MAX: u64 = 1_000;

/// The clockwork of elections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Milliseconds of one tick. Default 50.
    pub tick_ms: u64,
    /// Ticks between two heartbeats. Default 4 (200 ms). Fewer: more traffic when idle, faster notice of silent leaders.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader's word after which a follower campaigns, at least. Default 20 (1 s).
    pub election_ticks: usize,
    /// The same at most: each wait is random between the two. Default 40 (2 s).
    pub election_ticks_max: usize,
    /// Ticks that a process which was stopped lives through at once when it wakes, besides those for which it would have slept
    /// anyway. Default 2: it must not fire all of its timeouts before it has read what came meanwhile.
    pub catch_up_ticks_max: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { tick_ms: 50, heartbeat_ticks: 4, election_ticks: 20, election_ticks_max: 40, catch_up_ticks_max: 2 }
    }
}

impl Timing {
    pub(super) fn check(&self) -> Result<(), VoterError> {
        let Self { tick_ms, heartbeat_ticks, election_ticks, election_ticks_max, catch_up_ticks_max } = *self;
        let fits = tick_ms > 0 && catch_up_ticks_max > 0 && heartbeat_ticks > 0 && election_ticks_max > election_ticks;
        if fits && election_ticks > heartbeat_ticks {
            Ok(())
        } else {
            Err(VoterError::Timing { heartbeat_ticks, election_ticks, election_ticks_max })
        }
    }

    pub(super) const fn heartbeat_us(&self) -> u64 {
        self.tick_ms * 1000 * self.heartbeat_ticks as u64
    }
}

/// Bounds of a voter's memory and windows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoterLimits {
    /// Bytes of one append message. Default 1 MiB.
    pub append_bytes_max: u64,
    /// Append messages under way to one follower. Default 256.
    pub appends_in_flight_max: usize,
    /// Bytes that a leader seals before they are committed. Default 64 MiB: over it, entries wait unsealed.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries that this server keeps for its clients until they are committed, and that a leader keeps unsealed.
    /// Default 16 MiB. Over it, proposals are refused as overloaded.
    pub forward_bytes_max: usize,
    /// Bytes of entries that this server has given to a leader which has not answered. Default 4 MiB; more waits its turn.
    pub forward_in_flight_bytes_max: usize,
    /// Bytes of applied runs kept in memory for followers that lag a little. Default 32 MiB; older ones are read from disk. Where
    /// unapplied runs push the sum over this and [`Self::uncommitted_bytes_max`], a leader seals nothing and a follower drops
    /// appends (they are repeated) until its disk and its applier have caught up.
    pub memory_bytes_max: usize,
    /// Reads that wait for an index at once. Default 65,536; more are refused.
    pub reads_max: usize,
}

impl Default for VoterLimits {
    fn default() -> Self {
        Self {
            append_bytes_max: 1 << 20,
            appends_in_flight_max: 256,
            uncommitted_bytes_max: 64 << 20,
            forward_bytes_max: 16 << 20,
            forward_in_flight_bytes_max: 4 << 20,
            memory_bytes_max: 32 << 20,
            reads_max: 65_536,
        }
    }
}

/// Who a voter is.
#[derive(Clone, Debug)]
pub struct VoterOptions {
    /// Its id.
    pub id: RaftId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Its history.
    pub identity: Identity,
    /// Ticks and timeouts.
    pub timing: Timing,
    /// Bounds.
    pub limits: VoterLimits,
    /// Where its randomness begins: the same seed and inputs give the same outputs.
    pub seed: u64,
}

/// What the disk knew at the start. A newcomer that has nothing gives zeros, an empty configuration and
/// [`empty_tail`](crate::log::empty_tail), and waits for a leader's snapshot.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The highest term.
    pub term: Term,
    /// The vote in it.
    pub vote: RaftId,
    /// A commit index that was true.
    pub commit: RunIndex,
    /// The end of what the owner's replica has applied.
    pub applied: Tail,
    /// The configuration at that point.
    pub configuration: Configuration,
    /// The run that it came with.
    pub configuration_run: RunIndex,
    /// The run before the log's first, and its term.
    pub before_first: (RunIndex, Term),
    /// The first run of each term in the log, ascending.
    pub terms: Vec<(RunIndex, Term)>,
    /// The last runs, contiguous up to `tail`: at least all above `applied`.
    pub recent: Vec<Run>,
    /// The log's end.
    pub tail: Tail,
    /// The newest durable snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// Where the log must reach before this replica may campaign again, if it lost its end (design §5).
    pub suspect: Option<Tail>,
    /// A mark was unreadable, and a vote may be forgotten with it: this replica gives no vote that could be its second one, and
    /// does not campaign, until it has heard all other voters; [`Event::VoteSettled`] says when that is over.
    pub vote_lost: bool,
}

/// The other end of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its id.
    pub id: RaftId,
    /// Its process.
    pub incarnation: Incarnation,
}

/// What must become durable, in order, before anything that depends on it is said.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its number, for [`super::Voter::handle_written`]; rises.
    pub number: u64,
    /// The term.
    pub term: Term,
    /// The vote in it.
    pub vote: RaftId,
    /// The commit index.
    pub commit: RunIndex,
    /// The term of the leader that this write obeys.
    pub writer_term: Term,
    /// Runs above this one are cut before `runs` are appended.
    pub keep_through: Option<RunIndex>,
    /// What is appended.
    pub runs: Vec<Run>,
    /// The log restarts behind this snapshot, which is durable; `runs` follow it.
    pub install: Option<SnapshotMeta>,
    /// Whether it must be synced.
    pub must_sync: bool,
}

/// Everything up to a write is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The last write that is.
    pub number: u64,
}

/// A write failed: nobody knows what the disk holds, and the server must end.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the log cannot be written: {0}")]
pub struct WriteFailed(pub String);

/// How a disk stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskState {
    /// It takes what is written.
    Good,
    /// It has no room, or takes no writes for now: what waits is written when it does again.
    Full,
}

/// Why a leader hands over by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOver {
    /// Its disk has no room.
    DiskFull,
    /// Its disk takes far longer than the followers'.
    SlowDisk,
}

/// A message on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// To whom.
    pub to: RaftId,
    /// What.
    pub message: Message,
}

/// What a replica does in its term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftRole {
    /// Follows, or waits for a leader.
    Follower,
    /// Campaigns.
    Candidate,
    /// Leads.
    Leader,
}

/// What the owner should know, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// Apply these, in order, then say [`super::Voter::handle_applied`].
    Committed(Vec<Run>),
    /// The log restarted behind this snapshot: reload the replica from it before anything that comes later is applied.
    Installed(SnapshotMeta),
    /// Term, role or leader changed.
    Role {
        /// The term.
        term: Term,
        /// What this replica does in it.
        role: RaftRole,
        /// Who leads, if known.
        leader: Option<RaftId>,
    },
    /// Stream this snapshot to a peer, then say [`super::Voter::handle_snapshot_sent`].
    SendSnapshot {
        /// To whom.
        to: RaftId,
        /// The leader's term, which travels with it.
        term: Term,
        /// Which.
        meta: SnapshotMeta,
    },
    /// A peer needs a newer snapshot than there is: take one now, then say [`super::Voter::handle_snapshot_taken`].
    SnapshotWanted,
    /// Read these runs from the own disk, or the first of them, then say [`super::Voter::handle_fetched`].
    Fetch {
        /// The first.
        first: RunIndex,
        /// The last.
        last: RunIndex,
    },
    /// A read is linearizable once this run is applied.
    ReadReady {
        /// The read.
        read: ReadId,
        /// The run.
        run: RunIndex,
    },
    /// A request that was begun has ended.
    Admin {
        /// The request.
        request: AdminRequest,
        /// Done, or why not.
        result: Result<(), String>,
    },
    /// Whether proposals are refused.
    Overloaded(bool),
    /// This leader gives its leadership away because of its disk.
    HandsOver {
        /// To whom.
        to: RaftId,
        /// Why.
        why: HandOver,
    },
    /// With [`Recovered::vote_lost`]: a durable term is above every one in which a forgotten vote could count. Tell the log.
    VoteSettled,
    /// The server must stop; nothing more comes.
    Fatal(FatalError),
}

/// Why a server must stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FatalError {
    /// Two histories meet: what a leader sends, or what was committed, does not continue what is here.
    #[error("the history here and the leader's differ at run {run}")]
    Diverged {
        /// The first run that differs.
        run: RunIndex,
    },
    /// The crate's log and ours disagree about a run.
    #[error("run {run} is not where it was sealed for")]
    Sealing {
        /// The run.
        run: RunIndex,
    },
    /// A run that must be in memory is not.
    #[error("run {run} is not in memory")]
    Lost {
        /// The run.
        run: RunIndex,
    },
    /// Raft does not take a configuration that was committed.
    #[error("the configuration in run {run} cannot be")]
    Configuration {
        /// Its run.
        run: RunIndex,
    },
}

/// Why a message is refused. Nothing has changed; close the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MessageError {
    /// No link to its sender stands.
    #[error("{0} is not linked")]
    Stranger(RaftId),
    /// Its term is too far away to be true.
    #[error("term {claimed} is too far above {own}")]
    TermJump {
        /// Our term.
        own: Term,
        /// The message's.
        claimed: Term,
    },
    /// Its term is 0.
    #[error("a message without a term")]
    TermZero,
    /// A term has one leader, and it is another server.
    #[error("{0} speaks as a second leader of the term")]
    SecondLeader(RaftId),
    /// Its runs do not continue each other.
    #[error("run {run} does not continue the one before it")]
    Gap {
        /// The run.
        run: RunIndex,
    },
    /// It acknowledges what was never sent.
    #[error("run {run} is beyond the log")]
    BeyondTheLog {
        /// The run.
        run: RunIndex,
    },
    /// Its history is not ours; the server stops.
    #[error("the histories differ at run {run}")]
    Diverged {
        /// The run.
        run: RunIndex,
    },
    /// The snapshot is of another history, or its configuration does not name this replica.
    #[error("the snapshot is not for this replica")]
    NotOurSnapshot,
    /// The server that drives this core answers this kind.
    #[error("not a message for consensus")]
    NotForConsensus,
}

/// Proposals were not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProposeRefused {
    /// Too much is under way. Nothing was kept.
    #[error("too much is under way")]
    Overloaded,
    /// The leader's disk is full, and no other server could take over. Nothing was kept.
    #[error("the leader's disk is full")]
    DiskFull,
}

/// A read was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ReadRefused {
    /// Too many wait already.
    #[error("too many reads wait")]
    Overloaded,
}

/// How far an administrator's request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminProgress {
    /// The newcomer is in already.
    Done,
    /// It was begun; [`Event::Admin`] says how it ends.
    Started,
}

/// Why a voter cannot be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VoterError {
    /// The clockwork does not work.
    #[error(
        "election_ticks ({election_ticks}) must be above heartbeat_ticks ({heartbeat_ticks}) and below election_ticks_max ({election_ticks_max}), and all above 0"
    )]
    Timing {
        /// [`Timing::heartbeat_ticks`].
        heartbeat_ticks: usize,
        /// [`Timing::election_ticks`].
        election_ticks: usize,
        /// [`Timing::election_ticks_max`].
        election_ticks_max: usize,
    },
    /// What the disk knew does not add up.
    #[error("the recovered state cannot be: {0}")]
    State(&'static str),
    /// The crate refuses.
    #[error("raft refuses to start: {0}")]
    Crate(String),
}

/// A follower, as its leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    /// The last run known to be durable there.
    pub matched: RunIndex,
    /// Whether it was heard within the last election timeout.
    pub active: bool,
}

/// How a replica stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoterStatus {
    /// Its id.
    pub id: RaftId,
    /// The term.
    pub term: Term,
    /// What it does in it.
    pub role: RaftRole,
    /// Who leads, if known.
    pub leader: Option<RaftId>,
    /// The commit index.
    pub commit: RunIndex,
    /// What the owner has applied.
    pub applied: RunIndex,
    /// The last run of the log.
    pub last: RunIndex,
    /// Its term.
    pub last_term: Term,
    /// Whether it lost the end of its log and has not caught up since.
    pub suspect: bool,
    /// Its disk.
    pub disk: DiskState,
    /// Appends that were dropped because memory held too many runs that its disk or applier had not caught up with.
    pub appends_dropped: u64,
    /// The others, where this one leads.
    pub peers: BTreeMap<RaftId, PeerProgress>,
}
