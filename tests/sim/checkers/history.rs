//! The committed history, put together from what every server's feed said, and what each of its entries comes to by the models.
//!
//! A feed may begin again further back, and one server's may be ahead of another's. Where no feed gave a run (an auditor was away, and the
//! server had nothing but a snapshot left), it is taken from what leaders sent on the mesh, if the chain proves it.

use std::collections::BTreeMap;

use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{LogIndex, RequestId, RunIndex, SessionId, Term};
use voter_mesh::run::{Run, RunHeader};
use voter_mesh::session::SessionLimits;

use super::calls::Calls;
use super::model::{Fate, KvModel, SessionModel};

/// Runs that wait for those before them.
const WAITING_MAX: usize = 4096;

/// One entry of the history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) term: Term,
    pub(super) kind: EntryKind,
    pub(super) session: SessionId,
    pub(super) request: RequestId,
    pub(super) payload_bytes: u32,
    pub(super) payload_crc: u32,
    pub(super) fate: Fate,
}

/// Everything that is known to be committed, in order.
#[derive(Debug)]
pub(super) struct History {
    runs: Vec<RunHeader>,
    entries: Vec<Entry>,
    /// Sessions open after each run: where it changed.
    session_counts: Vec<(LogIndex, usize)>,
    sessions: SessionModel,
    pub(super) kv: KvModel,
    /// Runs of some feed, ahead of the history.
    waiting: BTreeMap<RunIndex, Run>,
    /// Runs that some leader sent, ahead of the history.
    appended: BTreeMap<(RunIndex, Term), Run>,
    /// The calls that are under way.
    pub(super) calls: Calls,
}

impl History {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self {
            runs: Vec::new(),
            entries: Vec::new(),
            session_counts: Vec::new(),
            sessions: SessionModel::new(limits),
            kv: KvModel::default(),
            waiting: BTreeMap::new(),
            appended: BTreeMap::new(),
            calls: Calls::default(),
        }
    }

    /// The last run of the history; run 1, which is none, before there is any.
    pub(super) fn last_run(&self) -> RunIndex {
        RunIndex(1 + self.runs.len() as u64)
    }

    /// The last entry of the history.
    pub(super) fn last(&self) -> LogIndex {
        LogIndex(self.entries.len() as u64)
    }

    /// All runs of the history.
    pub(super) fn runs(&self) -> &[RunHeader] {
        &self.runs
    }

    /// A run of the history.
    pub(super) fn run(&self, run: RunIndex) -> Option<&RunHeader> {
        self.runs.get(usize::try_from(run.0.checked_sub(2)?).ok()?)
    }

    /// The run that ends with this entry.
    pub(super) fn run_ending_at(&self, index: LogIndex) -> Option<&RunHeader> {
        self.runs.binary_search_by_key(&index, RunHeader::last).ok().map(|at| &self.runs[at])
    }

    /// An entry of the history.
    pub(super) fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    /// The entries from `from` on, with their indices.
    pub(super) fn entries_from(&self, from: LogIndex) -> impl Iterator<Item = (LogIndex, &Entry)> {
        let begin = from.max(LogIndex::FIRST);
        let entries = self.entries.get((begin.0 - 1) as usize..).unwrap_or_default();
        entries.iter().enumerate().map(move |(offset, entry)| (begin.plus(offset as u64), entry))
    }

    /// The last command that took effect.
    pub(super) fn last_effective(&self) -> LogIndex {
        let at = self.entries.iter().rposition(|entry| matches!(entry.fate, Fate::Effective(_)));
        LogIndex(at.map_or(0, |at| at as u64 + 1))
    }

    /// How many sessions are open after the entry at `index`.
    pub(super) fn sessions_at(&self, index: LogIndex) -> usize {
        let after = self.session_counts.partition_point(|(since, _)| *since <= index);
        self.session_counts[..after].last().map_or(0, |(_, count)| *count)
    }

    /// Runs that were committed and do not join on to the history: the first of them, if any.
    pub(super) fn gap(&self) -> Option<&Run> {
        self.waiting.values().next()
    }

    /// A leader sent this run.
    pub(super) fn appended(&mut self, run: &Run) {
        let header = run.header();
        if header.run > self.last_run() && self.appended.len() < WAITING_MAX {
            self.appended.entry((header.run, header.term)).or_insert_with(|| run.clone());
        }
    }

    /// A feed said that this run is committed. Gives the runs that the history gained.
    ///
    /// # Errors
    /// What of the history it contradicts; the history is as before.
    pub(super) fn committed(&mut self, run: &Run) -> Result<Vec<Run>, String> {
        let header = run.header();
        let next = self.last_run().next();
        if header.run < next {
            return match self.run(header.run) {
                Some(known) if known == header => Ok(Vec::new()),
                known => Err(format!("run {header:?} is committed, and so is {known:?}")),
            };
        }
        if let Some(known) = self.waiting.get(&header.run)
            && known.header() != header
        {
            return Err(format!("run {header:?} is committed, and so is {:?}", known.header()));
        }
        if header.run > next {
            if self.waiting.len() < WAITING_MAX {
                self.waiting.insert(header.run, run.clone());
            }
            return Ok(self.bridge(header.run).map_or_else(Vec::new, |runs| self.take(runs)));
        }
        self.follows(header)?;
        Ok(self.take(vec![run.clone()]))
    }

    fn follows(&self, header: &RunHeader) -> Result<(), String> {
        let Some(last) = self.runs.last() else {
            return if header.first == LogIndex::FIRST { Ok(()) } else { Err(format!("the first run is {header:?}")) };
        };
        let follows = (header.first, header.chain_before, header.epoch) == (last.last().next(), last.chain_after, last.epoch);
        let risen = header.term >= last.term && header.time >= last.time;
        if follows && risen { Ok(()) } else { Err(format!("committed run {header:?} does not continue {last:?}")) }
    }

    /// Runs that lead from the history to the committed run `to`, by the chain, all but it appended by leaders.
    fn bridge(&self, to: RunIndex) -> Option<Vec<Run>> {
        let mut runs = vec![self.waiting.get(&to)?.clone()];
        loop {
            let first = *runs.last()?.header();
            if self.follows(&first).is_ok() && first.run == self.last_run().next() {
                runs.reverse();
                return Some(runs);
            }
            let before = first.run.previous();
            let candidates = self.appended.range((before, Term(0))..=(before, first.term)).map(|(_, run)| run);
            let before = self
                .waiting
                .get(&before)
                .into_iter()
                .chain(candidates)
                .find(|run| (run.header().chain_after, run.header().last().next()) == (first.chain_before, first.first))?;
            runs.push(before.clone());
        }
    }

    /// Adds runs that continue the history, and those that waited for them.
    fn take(&mut self, mut runs: Vec<Run>) -> Vec<Run> {
        for run in &runs {
            self.apply(run);
        }
        while let Some(run) = self.waiting.remove(&self.last_run().next()) {
            // One that does not fit stays missing, and is found at the end.
            if self.follows(run.header()).is_err() {
                self.waiting.insert(run.header().run, run);
                break;
            }
            self.apply(&run);
            runs.push(run);
        }
        self.waiting = self.waiting.split_off(&self.last_run().next());
        self.appended = self.appended.split_off(&(self.last_run().next(), Term(0)));
        runs
    }

    fn apply(&mut self, run: &Run) {
        let header = *run.header();
        self.runs.push(header);
        for (index, entry) in run.entries() {
            let fate = self.sessions.apply(index, &entry, &mut self.kv);
            let count = self.sessions.len();
            if self.session_counts.last().map_or(0, |(_, count)| *count) != count {
                self.session_counts.push((index, count));
            }
            let voter_mesh::entry::EntryHeader { kind, session, request, payload_bytes, payload_crc, .. } = entry.header;
            self.entries.push(Entry { term: header.term, kind, session, request, payload_bytes, payload_crc, fate });
        }
    }
}
