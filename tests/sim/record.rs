//! What happened in a run, as seen from outside: the one list that the world, the tap on the mesh, the auditors and the clients write
//! into, and that the checkers read as it grows.
//!
//! The order in which things are recorded is the order in which they happened: each is recorded by whoever sees it, when it sees it, so
//! a call whose return stands before another's beginning was over when that one began. Times are for people; nothing is decided by
//! them but liveness. The record itself keeps nothing: each event goes to the [`Sink`] and is gone, so a long run needs no more memory
//! than its checkers do.
//!
//! It serves simulated runs and runs of real processes alike: the clock is tokio's, real or paused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cluster_client::{Applied, Consistency, ProposeError, ReadError, Ticket};
use cluster_server::ServerStatus;
use tokio::time::Instant;
use voter_mesh::ids::{Chain, LogIndex, Opening, RaftId, RequestId, Seat, SessionId, Term};
use voter_mesh::machine::kv::{Kv, KvCommand, KvReply, KvValue};
use voter_mesh::mesh::message::Message;
use voter_mesh::outcome::Reply;
use voter_mesh::run::{Run, RunHeader, Tail};

/// Names a client's machine for the whole run; one that comes back from its journal keeps its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ClientId(pub u32);

/// Names a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct CallId(pub u64);

/// One learner or stream of one client, numbered by the client: a learner from when its state is fresh until that is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LearnerId(pub ClientId, pub u32);

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the record; the first is 1.
    pub sequence: u64,
    /// Microseconds since the record began.
    pub at_us: u64,
    /// What it is.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum What {
    /// A server put this on a consensus connection: once for each time that it was sent, whatever the network makes of it.
    Mesh {
        /// Who sent it.
        from: RaftId,
        /// To whom.
        to: RaftId,
        /// The message.
        message: Message,
    },
    /// A server's feed said that this run is committed, with these verdict bits (as they stand in the frame). Told by auditors, who
    /// follow every server's full feed; a run may come again on a later link.
    Feed {
        /// Whose feed.
        server: Seat,
        /// The run.
        run: Run,
        /// Its verdict bits.
        verdicts: Bytes,
    },
    /// A server's answer to `status`.
    Status {
        /// Who says it.
        server: Seat,
        /// What it says of itself.
        status: Box<ServerStatus>,
    },
    /// What is read from a server's disk at the end of the run.
    Disk(DiskFound),
    /// A client's process starts: with a fresh state, and without what an earlier one under this name has seen.
    ClientStarted {
        /// Its name.
        client: ClientId,
    },
    /// A client's call begins. Recorded before the client does anything for it.
    Called {
        /// Names the call.
        call: CallId,
        /// Whose.
        client: ClientId,
        /// What is asked.
        operation: Operation,
    },
    /// It returns. A call that never does (its client crashed) may take effect at any later time, or never; whoever drops a call's
    /// future records it as unknown.
    Returned {
        /// Which.
        call: CallId,
        /// With what.
        outcome: Returned,
    },
    /// A server's answer as a raw client saw it on its link.
    Replied {
        /// Who saw it.
        client: ClientId,
        /// Whose answer.
        server: Seat,
        /// The answer.
        reply: Reply,
    },
    /// A learner's position as its client saw it; the state's hash (SHA-256 of what the machine writes) where it was taken.
    Learnt {
        /// Whose.
        learner: LearnerId,
        /// At a run's end, the last entry that it has applied; without a chain, the last command that its state has seen.
        index: LogIndex,
        /// The chain after it, where the client shows it.
        chain: Option<Chain>,
        /// The hash of its state there.
        state_hash: Option<[u8; 32]>,
    },
    /// A stream of committed commands begins.
    StreamBegan {
        /// Names it; no two have one name.
        stream: LearnerId,
        /// The first index that it may give.
        from: LogIndex,
    },
    /// It gave this command.
    Streamed {
        /// Which stream.
        stream: LearnerId,
        /// Index of the command.
        index: LogIndex,
        /// Its term.
        term: Term,
        /// Its session.
        session: SessionId,
        /// The command.
        payload: Bytes,
    },
    /// A server's process starts.
    Started {
        /// Its seat.
        server: Seat,
        /// How often this seat was started, this time included.
        life: u32,
    },
    /// It ended.
    Ended {
        /// Its seat.
        server: Seat,
        /// How.
        how: End,
    },
    /// Everything that a dead server had on its disk is gone.
    Wiped {
        /// Its seat.
        server: Seat,
    },
    /// The world did this to the system.
    Fault {
        /// Its kind, by the name that the fault table uses.
        kind: &'static str,
        /// To whom and how, for people.
        detail: String,
    },
    /// The run enters its next phase.
    Phase(Phase),
}

/// How a server's process ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Killed; what it had written and not synced is still in the cache.
    Killed,
    /// Its power failed: what was not synced may be gone.
    PowerCut,
    /// Asked to, it shut down.
    Shutdown,
    /// By itself, for this reason.
    Itself(String),
    /// It refused to start on a directory that was damaged, and said why.
    Refused(String),
}

/// The phases of a run, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Servers start on empty directories.
    Forming,
    /// Faults happen.
    Faults,
    /// Faults have ended: every server runs, every link and disk is good. From here on the system must come to rest.
    Healed,
    /// Clients have stopped calling; what they called is to be answered.
    Quiet,
    /// All that is to happen has happened.
    Over,
}

/// What a server's disk holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskFound {
    /// Whose.
    pub server: Seat,
    /// The newest snapshot's end; none if there is no snapshot.
    pub snapshot: Option<Tail>,
    /// The headers of the log's runs, ascending. Runs that no good record stands behind are not among them.
    pub runs: Vec<RunHeader>,
    /// Term and vote as they are stored.
    pub vote: (Term, RaftId),
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `propose`, `try_propose` or, with a ticket, `propose_as`.
    Propose {
        /// The ticket, where the caller chose it.
        ticket: Option<Ticket>,
        /// The command.
        command: KvCommand,
    },
    /// `outcome` of a ticket whose command was proposed by an earlier call.
    Outcome {
        /// The ticket.
        ticket: Ticket,
    },
    /// A raw client's `Propose` frame. It never returns: answers are [`What::Replied`].
    Send {
        /// Its session.
        session: SessionId,
        /// The opening under which its link is attached.
        opening: Opening,
        /// The request id.
        request: RequestId,
        /// The payload: a command, or anything.
        payload: Bytes,
    },
    /// `read` of one key.
    Read {
        /// How recent.
        consistency: Consistency,
        /// The key.
        key: Bytes,
    },
}

/// What a call returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Returned {
    /// The command took effect.
    Applied {
        /// Where.
        index: LogIndex,
        /// In which term.
        term: Term,
        /// Whether the answer says that it was recorded before.
        repeat: bool,
        /// The machine's reply; none where it was too large to be kept.
        reply: Option<KvReply>,
    },
    /// A read's answer.
    Read {
        /// The key's value and version; none if there is none.
        value: Option<KvValue>,
        /// The last index that had been applied to the state that was read, where the client knows it.
        applied: Option<LogIndex>,
    },
    /// Certainly without effect by this call, now and ever: not sent, refused, stale, in conflict, not decodable, not in this session.
    NoEffect(&'static str),
    /// A request that was used with another command: no effect.
    Conflict,
    /// A request below its session's floor: no effect by this call; an earlier one of the same ticket may have had its own.
    Stale,
    /// The session has ended: no effect by this call.
    SessionExpired,
    /// The journal was opened elsewhere. What this call proposed may take effect under the other opening, which took the journal's
    /// open requests over.
    Superseded {
        /// The opening that holds.
        current: Opening,
    },
    /// It may have an effect, now or later.
    Unknown {
        /// What names the request; none for one that never had a name.
        ticket: Option<Ticket>,
    },
    /// A read that did not run.
    NotRead,
}

impl Returned {
    /// What a proposal returned, in these terms.
    #[must_use]
    pub fn of_propose(result: &Result<Applied<KvReply>, ProposeError>) -> Self {
        match result {
            Ok(Applied { index, term, repeat, reply }) => {
                Self::Applied { index: *index, term: *term, repeat: *repeat, reply: Some(*reply) }
            }
            Err(ProposeError::Elided { index, term, .. } | ProposeError::Reply { index, term }) => {
                Self::Applied { index: *index, term: *term, repeat: true, reply: None }
            }
            Err(ProposeError::Unknown { ticket, .. }) => Self::Unknown { ticket: Some(*ticket) },
            Err(ProposeError::NotSent { .. }) => Self::NoEffect("not sent"),
            Err(ProposeError::SessionExpired) => Self::SessionExpired,
            Err(ProposeError::Superseded { current }) => Self::Superseded { current: *current },
            Err(ProposeError::Undecodable) => Self::NoEffect("undecodable"),
            Err(ProposeError::Conflict) => Self::Conflict,
            Err(ProposeError::Stale) => Self::Stale,
            Err(ProposeError::WindowBroken) => Self::NoEffect("window broken"),
            Err(ProposeError::ForeignTicket) => Self::NoEffect("foreign ticket"),
            Err(ProposeError::NoSuchRequest) => Self::NoEffect("no such request"),
            // What a later version adds is not known to be without effect.
            Err(_) => Self::Unknown { ticket: None },
        }
    }

    /// What a read of `key` returned, in these terms; the client's state says at which index it stands.
    #[must_use]
    pub fn of_read(result: Result<(Option<KvValue>, Option<LogIndex>), ReadError>) -> Self {
        match result {
            Ok((value, applied)) => Self::Read { value, applied },
            Err(_) => Self::NotRead,
        }
    }
}

/// Reads one key, as [`Operation::Read`] does.
#[must_use]
pub fn read_key(state: &Kv, key: &[u8]) -> Option<KvValue> {
    state.get(key).cloned()
}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which checker says so.
    pub checker: &'static str,
    /// The event at which it was seen; 0 if at the end of the run.
    pub sequence: u64,
    /// When that was.
    pub at_us: u64,
    /// What is wrong, with the evidence.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (event {}, {}.{:06} s): {}",
            self.checker,
            self.sequence,
            self.at_us / 1_000_000,
            self.at_us % 1_000_000,
            self.text
        )
    }
}

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// What is wrong; the first few of each checker.
    pub violations: Vec<Violation>,
    /// Calls that clients made.
    pub operations: u64,
    /// Histories of single keys that were checked for linearizability.
    pub histories: u64,
    /// Whatever else was counted, by name.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Whoever reads a record.
pub trait Sink: Send {
    /// The next event.
    fn observe(&mut self, event: &Event);

    /// The run is over: what is wrong with it.
    fn finish(&mut self, report: &mut Report);

    /// Whether something is wrong already, so that the run may end here.
    fn violated(&self) -> bool {
        false
    }
}

/// Writes into a record. Clones write into the same one.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Inner>>);

struct Inner {
    origin: Instant,
    sequence: u64,
    calls: u64,
    sinks: Vec<Box<dyn Sink>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// A record that begins now.
    #[must_use]
    pub fn new(sinks: Vec<Box<dyn Sink>>) -> Self {
        Self(Arc::new(Mutex::new(Inner { origin: Instant::now(), sequence: 0, calls: 0, sinks })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This happened, now.
    pub fn record(&self, what: What) {
        self.lock().record(what);
    }

    /// A call begins, now.
    #[must_use]
    pub fn call(&self, client: ClientId, operation: Operation) -> CallId {
        let mut inner = self.lock();
        inner.calls += 1;
        let call = CallId(inner.calls);
        inner.record(What::Called { call, client, operation });
        call
    }

    /// It returns, now. Whoever sees it return must not have begun anything else in between.
    pub fn returned(&self, call: CallId, outcome: Returned) {
        self.record(What::Returned { call, outcome });
    }

    /// Whether something is known to be wrong.
    #[must_use]
    pub fn violated(&self) -> bool {
        self.lock().sinks.iter().any(|sink| sink.violated())
    }

    /// The run is over. What is recorded later is seen by nobody.
    #[must_use]
    pub fn finish(&self) -> Report {
        let mut sinks = std::mem::take(&mut self.lock().sinks);
        let mut report = Report::default();
        for sink in &mut sinks {
            sink.finish(&mut report);
        }
        report
    }
}

impl Inner {
    fn record(&mut self, what: What) {
        self.sequence += 1;
        let at_us = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let event = Event { sequence: self.sequence, at_us, what };
        for sink in &mut self.sinks {
            sink.observe(&event);
        }
    }
}

/// A sink that hands each event's line on: the log of a run, or what its trace hash is taken over.
pub struct Lines<F>(pub F);

impl<F: FnMut(fmt::Arguments<'_>) + Send> Sink for Lines<F> {
    fn observe(&mut self, event: &Event) {
        (self.0)(format_args!("{event}"));
    }

    fn finish(&mut self, _report: &mut Report) {}
}

impl<F> fmt::Debug for Lines<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lines").finish_non_exhaustive()
    }
}

/// One line, the same for the same event in every process.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, at_us, what } = self;
        write!(f, "{sequence} {}.{:06} {what}", at_us / 1_000_000, at_us % 1_000_000)
    }
}

/// A run's place in the log, its seal and its end.
struct Sealed<'a>(&'a RunHeader);

impl fmt::Display for Sealed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RunHeader { run, term, first, chain_after, .. } = self.0;
        write!(f, "{run}@{term}[{first}..={} {chain_after:x?}]", self.0.last())
    }
}

/// Bytes as a length, a checksum and, if they are few, text.
struct Short<'a>(&'a [u8]);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0..=48 => write!(f, "\"{}\"", self.0.escape_ascii()),
            length => write!(f, "{length} B {:08x}", crc32c::crc32c(self.0)),
        }
    }
}

struct Said<'a>(&'a Message);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Message::Append { term, previous, previous_term, commit, runs } => {
                write!(f, "Append term {term} after {previous}@{previous_term} commit {commit}")?;
                runs.iter().try_for_each(|run| write!(f, " {}", Sealed(run.header())))
            }
            Message::Forward { batch, entries } => write!(f, "Forward {} {}", batch.0, Short(entries)),
            other => write!(f, "{other:?}"),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh { from, to, message } => write!(f, "mesh {from} -> {to} {}", Said(message)),
            Self::Feed { server, run, verdicts } => write!(f, "feed {server} {} {verdicts:x?}", Sealed(run.header())),
            Self::Status { server, status } => {
                let ServerStatus { id, phase, term, leader, commit, applied, state_hash, sessions_hash, .. } = &**status;
                write!(f, "status {server} {id:?} {phase:?} term {term} leader {leader:?} commit {commit} applied {applied}")?;
                write!(f, " {state_hash:?} {sessions_hash:?}")
            }
            Self::Disk(DiskFound { server, snapshot, runs, vote }) => {
                write!(f, "disk {server} snapshot {snapshot:?} vote {vote:?}")?;
                [runs.first(), runs.last()].into_iter().flatten().try_for_each(|run| write!(f, " {}", Sealed(run)))
            }
            Self::ClientStarted { client } => write!(f, "client {} starts", client.0),
            Self::Called { call, client, operation } => write!(f, "client {} call {} {operation}", client.0, call.0),
            Self::Returned { call, outcome } => write!(f, "return {} {outcome:?}", call.0),
            Self::Replied { client, server, reply } => write!(f, "client {} replied by {server}: {reply:?}", client.0),
            Self::Learnt { learner, index, chain, state_hash } => {
                write!(f, "learner {} {index} {chain:x?}", Named(learner))?;
                state_hash.iter().flatten().take(8).try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::StreamBegan { stream, from } => write!(f, "stream {} from {from}", Named(stream)),
            Self::Streamed { stream, index, term, session, payload } => {
                write!(f, "stream {} {index}@{term} session {session} {}", Named(stream), Short(payload))
            }
            Self::Started { server, life } => write!(f, "start {server} life {life}"),
            Self::Ended { server, how } => write!(f, "end {server} {how:?}"),
            Self::Wiped { server } => write!(f, "wipe {server}"),
            Self::Fault { kind, detail } => write!(f, "fault {kind} {detail}"),
            Self::Phase(phase) => write!(f, "phase {phase:?}"),
        }
    }
}

struct Named<'a>(&'a LearnerId);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.0.0, self.0.1)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose { ticket, command } => {
                ticket.iter().try_for_each(|ticket| write!(f, "as {ticket} "))?;
                match command {
                    KvCommand::Put { key, value } => write!(f, "put {} {}", Short(key), Short(value)),
                    KvCommand::Delete { key } => write!(f, "delete {}", Short(key)),
                    KvCommand::CompareAndSet { key, expected, value } => {
                        write!(f, "cas {} {expected:?} {}", Short(key), Short(value))
                    }
                }
            }
            Self::Outcome { ticket } => write!(f, "outcome {ticket}"),
            Self::Send { session, opening, request, payload } => {
                write!(f, "send {session}-{request} opening {opening} {}", Short(payload))
            }
            Self::Read { consistency, key } => write!(f, "read {consistency:?} {}", Short(key)),
        }
    }
}
