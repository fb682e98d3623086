//! What every server applies: the state machine, the session table and the configuration, fed with committed runs.
//!
//! It is deterministic: the same runs give the same state, the same verdicts and the same events on every server. It never decides
//! what is committed, never looks into a command and never reads a clock.
//!
//! Driving it: [`Replica::apply`] each committed run in order, once; what it returns goes to the room. When `snapshot_due`, take an
//! [`Replica::image`] before the next run and write it out elsewhere.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;

use crate::configuration::{ConfigPayload, Configuration};
use crate::entry::{EntryKind, EntryRef};
use crate::ids::{Identity, LogIndex, RunIndex, SessionId};
use crate::layout::READ_BYTES;
use crate::machine::{Image, Machine, MachineFactory, Position, RestoreError};
use crate::mutant;
use crate::run::{Run, Tail, Verdicts};
pub use crate::session::SessionEvent;
use crate::session::{SessionLimits, Sessions};
use crate::snapshot::{Hashing, LogGrowth, SnapshotMeta};

#[cfg(test)]
mod tests;

/// Limits of a replica. All of them decide something that servers must agree on: equal on all servers of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaLimits {
    /// The session table's.
    pub sessions: SessionLimits,
    /// Entries after which a snapshot is due; 0: never for this reason. Default 500,000. Fewer: faster restarts, more writing.
    pub snapshot_entries: u64,
    /// Bytes of log after which a snapshot is due; 0: never for this reason. Default 64 MiB.
    pub snapshot_log_bytes: u64,
}

impl Default for ReplicaLimits {
    fn default() -> Self {
        Self { sessions: SessionLimits::default(), snapshot_entries: 500_000, snapshot_log_bytes: 64 << 20 }
    }
}

/// What applying one run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The run.
    pub run: Run,
    /// Which of its entries took effect on the state.
    pub verdicts: Verdicts,
    /// What became of its entries, in their order.
    pub events: Vec<SessionEvent>,
    /// The configuration that holds from here on, if the run changed it.
    pub configuration: Option<Configuration>,
    /// A snapshot is due at the end of this run, on every server.
    pub snapshot_due: bool,
}

/// Why a run is not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ApplyError {
    /// It is not the next one. Nothing has changed.
    #[error("run {found} is not the next one, {expected}")]
    NotNext {
        /// The next one.
        expected: RunIndex,
        /// The one that came.
        found: RunIndex,
    },
    /// It is the next one by its index, but continues another history. Nothing has changed; the server must stop.
    #[error("run {run} does not continue this history")]
    Diverged {
        /// The run.
        run: RunIndex,
    },
    /// The state machine panicked. The replica is of no use any more: every further run gets this error. The server must stop.
    #[error("the state machine panicked at entry {index}")]
    Panicked {
        /// The entry.
        index: LogIndex,
    },
}

/// A server's replica.
pub struct Replica {
    identity: Identity,
    tail: Tail,
    configuration: Configuration,
    configuration_run: RunIndex,
    sessions: Sessions,
    machine: Box<dyn Machine>,
    machine_name: &'static str,
    machine_version: u32,
    limits: ReplicaLimits,
    growth: LogGrowth,
    panicked: Option<LogIndex>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({} v{} at {:?})", self.machine_name, self.machine_version, self.tail)
    }
}

impl Replica {
    /// The replica that forming begins with, before every entry.
    #[must_use]
    pub fn form(identity: Identity, configuration: Configuration, factory: &MachineFactory, limits: ReplicaLimits) -> Self {
        let tail = Tail::zero(&identity);
        Self {
            identity,
            configuration_run: tail.run,
            tail,
            configuration,
            sessions: Sessions::new(limits.sessions),
            machine: factory.fresh(),
            machine_name: factory.name,
            machine_version: factory.version,
            limits,
            growth: LogGrowth::default(),
            panicked: None,
        }
    }

    /// The replica that a snapshot holds. Both streams are read to their end and must match the meta's hashes.
    ///
    /// # Errors
    /// [`RestoreError`]; no replica then.
    pub fn restore(
        meta: &SnapshotMeta,
        state: &mut dyn Read,
        sessions: &mut dyn Read,
        factory: &MachineFactory,
        limits: ReplicaLimits,
    ) -> Result<Self, RestoreError> {
        if (meta.machine_name.as_str(), meta.machine_version) != (factory.name, factory.version) {
            return Err(RestoreError::OtherMachine { name: meta.machine_name.clone(), version: meta.machine_version });
        }
        let mut state = BufReader::with_capacity(READ_BYTES, Hashing::new(state));
        let machine = factory.restore(&mut state)?;
        // A machine may leave an end that it has no use for; the hash is over the whole.
        io::copy(&mut state, &mut io::sink())?;
        if state.into_inner().finish() != meta.state_hash {
            return Err(RestoreError::Hash { part: "state" });
        }
        let mut sessions = BufReader::with_capacity(READ_BYTES, Hashing::new(sessions));
        let (table, growth) = Sessions::restore(limits.sessions, &mut sessions)?;
        if sessions.into_inner().finish() != meta.sessions_hash {
            return Err(RestoreError::Hash { part: "sessions" });
        }
        Ok(Self {
            identity: meta.identity,
            tail: meta.tail,
            configuration: meta.configuration.clone(),
            configuration_run: meta.configuration_run,
            sessions: table,
            machine,
            machine_name: factory.name,
            machine_version: factory.version,
            limits,
            growth,
            panicked: None,
        })
    }

    /// Applies the next committed run.
    ///
    /// # Errors
    /// [`ApplyError`]; each says what state is left.
    pub fn apply(&mut self, run: &Run) -> Result<Applied, ApplyError> {
        self.apply_run(run, true)
    }

    /// As [`Replica::apply`], of a run whose entries nobody waits for: all is the same, but there are no events.
    ///
    /// # Errors
    /// As [`Replica::apply`].
    pub fn replay(&mut self, run: &Run) -> Result<Applied, ApplyError> {
        self.apply_run(run, false)
    }

    fn apply_run(&mut self, run: &Run, told: bool) -> Result<Applied, ApplyError> {
        if let Some(index) = self.panicked {
            return Err(ApplyError::Panicked { index });
        }
        let header = run.header();
        if header.run != self.tail.run.next() {
            return Err(ApplyError::NotNext { expected: self.tail.run.next(), found: header.run });
        }
        if !self.tail.continues(header) || (header.epoch, header.room) != (self.identity.epoch, self.identity.room) {
            return Err(ApplyError::Diverged { run: header.run });
        }
        let mut verdicts = Verdicts::clear(header.count);
        let mut events = Vec::with_capacity(if told { header.count as usize } else { 0 });
        let mut configuration = None;
        let mut at = Position { index: header.first, term: header.term, time: header.time, session: SessionId(0) };
        // Once per run: the machine is the application's code, and whoever stops the server must be able to name the entry.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for (offset, (index, entry)) in run.entries().enumerate() {
                (at.index, at.session) = (index, entry.header.session);
                if entry.header.kind == EntryKind::Config {
                    configuration = self.configure(header.run, entry.payload);
                } else {
                    let (effective, event) = self.apply_entry(&entry, &at);
                    if effective {
                        verdicts.set(offset);
                    }
                    events.extend(event.filter(|_| told));
                }
            }
        }));
        if outcome.is_err() {
            self.panicked = Some(at.index);
            return Err(ApplyError::Panicked { index: at.index });
        }
        self.tail = header.tail();
        let snapshot_due = self.grow(u64::from(header.count), header.whole_bytes() as u64);
        Ok(Applied { run: run.clone(), verdicts, events, configuration, snapshot_due })
    }

    /// Whether the entry took effect on the machine, and what became of it.
    fn apply_entry(&mut self, entry: &EntryRef<'_>, at: &Position) -> (bool, Option<SessionEvent>) {
        match entry.header.kind {
            EntryKind::Command => {
                let (effective, reply) = self.sessions.command(&entry.header, at, || self.machine.apply(entry.payload, at));
                (effective || mutant!("verdict_for_a_repeat") && reply.repeat, Some(SessionEvent::Replied(reply)))
            }
            EntryKind::SessionOpen => (false, self.sessions.open(entry.payload, at)),
            EntryKind::SessionAttach => (false, self.sessions.attach(entry.header.session, entry.payload, at)),
            EntryKind::SessionEnd => {
                let (effective, event) = self.sessions.end(&entry.header, entry.payload);
                if effective {
                    self.machine.session_ended(entry.header.session, at);
                }
                (effective, event)
            }
            EntryKind::Config | EntryKind::Noop => (false, None),
        }
    }

    fn configure(&mut self, run: RunIndex, payload: &[u8]) -> Option<Configuration> {
        let ConfigPayload { base, configuration } = ConfigPayload::decode(payload).ok()?;
        if base != self.configuration_run {
            return None;
        }
        self.configuration_run = run;
        self.configuration = configuration;
        Some(self.configuration.clone())
    }

    /// Counts a run towards the next snapshot; whether it is due.
    fn grow(&mut self, entries: u64, bytes: u64) -> bool {
        let reached = |count: u64, limit: u64| limit != 0 && count >= limit;
        self.growth.entries = self.growth.entries.saturating_add(entries);
        self.growth.bytes = self.growth.bytes.saturating_add(bytes);
        let due = reached(self.growth.entries, self.limits.snapshot_entries)
            || reached(self.growth.bytes, self.limits.snapshot_log_bytes);
        if due {
            self.growth = LogGrowth::default();
        }
        due
    }

    /// The end of what is applied.
    #[must_use]
    pub const fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The configuration in force at the tail.
    #[must_use]
    pub const fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The run of the configuration in force; 1 while it is the one that forming wrote.
    #[must_use]
    pub const fn configuration_run(&self) -> RunIndex {
        self.configuration_run
    }

    /// The session table.
    #[must_use]
    pub const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The history.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// A consistent image, cheap to take; write it out on another thread.
    #[must_use]
    pub fn image(&self) -> ReplicaImage {
        ReplicaImage {
            meta: SnapshotMeta {
                tail: self.tail,
                identity: self.identity,
                configuration: self.configuration.clone(),
                configuration_run: self.configuration_run,
                machine_name: self.machine_name.into(),
                machine_version: self.machine_version,
                state_hash: [0; 32],
                sessions_hash: [0; 32],
            },
            machine: self.machine.image(),
            sessions: SessionsImage { table: self.sessions.clone(), growth: self.growth },
        }
    }
}

/// A consistent image of a replica.
pub struct ReplicaImage {
    /// Where it stands; both hashes are zero until it is written.
    pub meta: SnapshotMeta,
    /// The machine's state.
    pub machine: Box<dyn Image>,
    /// The session table.
    pub sessions: SessionsImage,
}

impl fmt::Debug for ReplicaImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReplicaImage").field(&self.meta).finish_non_exhaustive()
    }
}

impl ReplicaImage {
    /// Writes state and session table, both deterministically, and returns the meta with their hashes.
    ///
    /// # Errors
    /// Only those of the two writers.
    pub fn write(self, state: &mut dyn Write, sessions: &mut dyn Write) -> io::Result<SnapshotMeta> {
        let (mut state, mut sessions) = (Hashing::new(state), Hashing::new(sessions));
        self.machine.write(&mut state)?;
        self.sessions.write(&mut sessions)?;
        Ok(SnapshotMeta { state_hash: state.finish(), sessions_hash: sessions.finish(), ..self.meta })
    }
}

/// A consistent image of the session table, and of how far the next snapshot is.
#[derive(Clone, Debug)]
pub struct SessionsImage {
    table: Sessions,
    growth: LogGrowth,
}

impl SessionsImage {
    /// Writes it deterministically, in pieces of about 64 KiB.
    ///
    /// # Errors
    /// Only those of `to`.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        self.table.write(self.growth, to)
    }
}
