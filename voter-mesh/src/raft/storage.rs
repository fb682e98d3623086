//! The crate's view of the log: recent runs in memory, the terms of all others, and a way to ask the owner for old runs.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::configuration::Configuration;
use crate::ids::{Chain, RaftId, RunIndex, Term};
use crate::run::{Run, Tail};
use crate::snapshot::SnapshotMeta;

/// Followers for whom old runs are being read, at most; whoever is left out asks again with its next heartbeat.
const WAITING_MAX: usize = 64;

/// What the crate looked for and did not find.
#[derive(Default)]
pub(super) struct Wants {
    /// Old runs for lagging followers.
    pub(super) fetch: Option<(u64, u64)>,
    /// The owner is reading them.
    pub(super) fetching: bool,
    /// For whom the crate wanted them.
    pub(super) contexts: Vec<GetEntriesContext>,
    /// A newer snapshot.
    pub(super) snapshot: bool,
}

pub(super) struct Store {
    /// The run before the log's first one, and its term.
    pub(super) before_first: (u64, u64),
    /// The first run of each term in the log, ascending.
    terms: VecDeque<(u64, u64)>,
    /// The newest runs, contiguous to the end; everything that is not applied is here.
    runs: VecDeque<Run>,
    runs_bytes: usize,
    /// The end of the log, with what the crate still calls unstable.
    pub(super) tail: Tail,
    /// The last run that the crate has handed out.
    pub(super) stable: u64,
    /// Old runs that the owner has read.
    fetched: Vec<Run>,
    hard: HardState,
    conf: ConfState,
    pub(super) snapshot: Option<SnapshotMeta>,
    pub(super) wants: RefCell<Wants>,
}

/// What raft must know of a configuration.
pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let raw = |ids: Vec<RaftId>| ids.into_iter().map(|id| id.0).collect::<Vec<u64>>();
    let mut conf = ConfState::default();
    conf.set_voters(raw(configuration.voters()));
    conf.set_learners(raw(configuration.standbys()));
    conf.set_voters_outgoing(raw(configuration.outgoing.clone()));
    conf
}

/// A run as the crate's entry: a slice of the same buffer.
pub(super) fn entry(run: &Run) -> Entry {
    let mut entry = Entry::default();
    if run.config_payload().is_some() {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
    }
    entry.index = run.header().run.0;
    entry.term = run.header().term.0;
    entry.data = run.bytes().clone();
    entry
}

/// The crate's idea of a snapshot: where it stands, and no bytes.
pub(super) fn snapshot(meta: &SnapshotMeta) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = meta.tail.run.0;
    metadata.term = meta.tail.term.0;
    metadata.set_conf_state(conf_state(&meta.configuration));
    snapshot
}

impl Store {
    pub(super) fn new(
        hard: (Term, RaftId, RunIndex),
        configuration: &Configuration,
        before_first: (RunIndex, Term),
        terms: &[(RunIndex, Term)],
        recent: Vec<Run>,
        tail: Tail,
        snapshot: Option<SnapshotMeta>,
    ) -> Self {
        let mut state = HardState::default();
        (state.term, state.vote, state.commit) = (hard.0.0, hard.1.0, hard.2.0);
        Self {
            before_first: (before_first.0.0, before_first.1.0),
            terms: terms.iter().map(|(run, term)| (run.0, term.0)).collect(),
            runs_bytes: recent.iter().map(|run| run.bytes().len()).sum(),
            runs: recent.into(),
            tail,
            stable: tail.run.0,
            fetched: Vec::new(),
            hard: state,
            conf: conf_state(configuration),
            snapshot,
            wants: RefCell::default(),
        }
    }

    /// Bytes of the runs in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.runs_bytes
    }

    fn window_first(&self) -> u64 {
        self.runs.front().map_or(self.tail.run.0 + 1, |run| run.header().run.0)
    }

    /// The run at `index`, where it is in memory.
    pub(super) fn run(&self, index: u64) -> Option<&Run> {
        self.runs.get(usize::try_from(index.checked_sub(self.window_first())?).ok()?)
    }

    /// The chain after the run at `index`, where it is known.
    pub(super) fn chain_after(&self, index: u64) -> Option<Chain> {
        if index == self.tail.run.0 {
            return Some(self.tail.chain);
        }
        let own = self.run(index).map(|run| run.header().chain_after);
        own.or_else(|| self.run(index + 1).map(|next| next.header().chain_before))
    }

    /// The term of the run at `index`, with what is unstable; 0 where there is none.
    pub(super) fn term_at(&self, index: u64) -> u64 {
        if index == self.before_first.0 {
            return self.before_first.1;
        }
        if index < self.before_first.0 || index > self.tail.run.0 {
            return 0;
        }
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).and_then(|at| self.terms.get(at)).map_or(0, |(_, term)| *term)
    }

    /// Appends the next run.
    pub(super) fn push(&mut self, run: Run) {
        let header = *run.header();
        if self.terms.back().is_none_or(|(_, term)| *term != header.term.0) {
            self.terms.push_back((header.run.0, header.term.0));
        }
        self.tail = header.tail();
        self.runs_bytes += run.bytes().len();
        self.runs.push_back(run);
    }

    /// The last configuration above `applied`, if there is one.
    pub(super) fn last_config_above(&self, applied: u64) -> Option<RunIndex> {
        let above = self.runs.iter().rev().map(|run| (run.header().run, run)).take_while(|(index, _)| index.0 > applied);
        above.filter(|(_, run)| run.config_payload().is_some()).map(|(index, _)| index).next()
    }

    /// Drops the runs above `keep`, whose tail is taken from memory or is `base`; false if neither knows it.
    pub(super) fn truncate(&mut self, keep: u64, base: Tail) -> bool {
        if keep >= self.tail.run.0 {
            return true;
        }
        let Some(tail) = self.run(keep).map(|run| run.header().tail()).or((base.run.0 == keep).then_some(base)) else {
            return false;
        };
        while self.runs.back().is_some_and(|run| run.header().run.0 > keep) {
            self.runs_bytes -= self.runs.pop_back().map_or(0, |run| run.bytes().len());
        }
        while self.terms.back().is_some_and(|(first, _)| *first > keep) {
            self.terms.pop_back();
        }
        self.tail = tail;
        self.stable = self.stable.min(keep);
        true
    }

    /// The log restarts behind a snapshot.
    pub(super) fn restart(&mut self, meta: &SnapshotMeta) {
        self.runs.clear();
        self.terms.clear();
        self.fetched.clear();
        self.runs_bytes = 0;
        self.tail = meta.tail;
        self.stable = meta.tail.run.0;
        self.before_first = (meta.tail.run.0, meta.tail.term.0);
        self.snapshot = Some(meta.clone());
    }

    /// The disk holds no run below `first` any more.
    pub(super) fn trim(&mut self, first: u64, term_before: u64) {
        if first <= self.before_first.0 + 1 || first > self.tail.run.0 + 1 {
            return;
        }
        self.before_first = (first - 1, term_before);
        while self.terms.get(1).is_some_and(|(next, _)| *next <= first) {
            self.terms.pop_front();
        }
        if let Some(front) = self.terms.front_mut() {
            front.0 = front.0.max(first);
        }
    }

    /// Lets go of applied runs over the memory's bound.
    pub(super) fn evict(&mut self, applied: u64, bytes_max: usize) {
        while self.runs_bytes > bytes_max {
            match self.runs.front() {
                Some(run) if run.header().run.0 < applied.min(self.stable) => self.runs_bytes -= run.bytes().len(),
                _ => return,
            }
            self.runs.pop_front();
        }
    }

    /// Keeps what the owner has read until the next read.
    pub(super) fn set_fetched(&mut self, runs: Vec<Run>) {
        self.fetched = runs;
    }
}

fn collect<'a>(runs: impl Iterator<Item = &'a Run>, count: u64, bytes_max: u64) -> Vec<Entry> {
    let (mut entries, mut bytes) = (Vec::new(), 0_u64);
    for run in runs.take(usize::try_from(count).unwrap_or(usize::MAX)) {
        bytes = bytes.saturating_add(run.bytes().len() as u64);
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(entry(run));
    }
    entries
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before_first.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let (bytes_max, count) = (max_size.into().unwrap_or(u64::MAX), high.saturating_sub(low));
        let window_first = self.window_first();
        if let Some(skip) = low.checked_sub(window_first) {
            return Ok(collect(self.runs.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)), count, bytes_max));
        }
        if let Some(old) = self.fetched.iter().position(|run| run.header().run.0 == low && run.header().term.0 == self.term_at(low))
        {
            return Ok(collect(self.fetched.iter().skip(old), count, bytes_max));
        }
        if !context.can_async() {
            // Everything that is not applied is in memory, and the crate reads nothing else in this way.
            return Err(Error::Store(StorageError::Unavailable));
        }
        let mut wants = self.wants.borrow_mut();
        wants.fetch.get_or_insert((low, high.min(window_first) - 1));
        if wants.contexts.len() < WAITING_MAX {
            wants.contexts.push(context);
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.before_first.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.tail.run.0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        Ok(self.term_at(index))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before_first.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.stable)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = self.snapshot.as_ref().filter(|meta| {
            let run = meta.tail.run.0;
            run >= request_index && run >= self.before_first.0 && meta.configuration.contains(RaftId(to))
        });
        match fits {
            Some(meta) => Ok(snapshot(meta)),
            None => {
                self.wants.borrow_mut().snapshot = true;
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
