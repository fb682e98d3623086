//! The recent committed commands, kept once for all streams. A stream reads by index, so a slow one holds nobody back: what it
//! missed here it fetches from its server.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;
use voter_mesh::ids::LogIndex;
use voter_mesh::learner::Committed;

use crate::error::StreamError;
use crate::follower::lock;

/// What an entry costs besides its payload, about.
const ENTRY_BYTES: usize = 64;

/// Commands handed to a stream at once.
const READ_MAX: usize = 256;

/// Entries asked for in one fetch.
const FETCH_MAX: u64 = 256;

struct Kept {
    /// Every effective command above this index and up to `end` is in `entries`.
    base: LogIndex,
    end: LogIndex,
    entries: VecDeque<Committed>,
    bytes: usize,
    /// Counts resets: a stream of an earlier epoch ends.
    epoch: u64,
    ended: Option<StreamError>,
}

pub(crate) struct History {
    kept: Mutex<Kept>,
    bytes_max: usize,
    /// Ticks at every change.
    changed: watch::Sender<()>,
}

/// What a stream does next.
pub(crate) enum Step {
    /// These are next; then go on behind `end`.
    Take { entries: VecDeque<Committed>, end: LogIndex },
    /// What is next is not kept here: fetch up to `to`.
    Fetch { to: LogIndex },
    /// Nothing is there yet.
    Wait,
    /// Nothing more will come.
    Ended(StreamError),
}

impl History {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let kept = Kept { base: LogIndex::ZERO, end: LogIndex::ZERO, entries: VecDeque::new(), bytes: 0, epoch: 0, ended: None };
        Self { kept: Mutex::new(kept), bytes_max, changed: watch::channel(()).0 }
    }

    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn epoch(&self) -> u64 {
        lock(&self.kept).epoch
    }

    pub(crate) fn begin(&self, index: LogIndex) {
        let mut kept = lock(&self.kept);
        (kept.base, kept.end, kept.bytes) = (index, index, 0);
        kept.entries.clear();
        drop(kept);
        self.changed.send_replace(());
    }

    pub(crate) fn push(&self, committed: Vec<Committed>, applied: LogIndex) {
        let mut kept = lock(&self.kept);
        kept.end = applied;
        for entry in committed {
            kept.bytes += entry.payload.len() + ENTRY_BYTES;
            kept.entries.push_back(entry);
        }
        while kept.bytes > self.bytes_max
            && let Some(oldest) = kept.entries.pop_front()
        {
            kept.bytes -= oldest.payload.len() + ENTRY_BYTES;
            kept.base = oldest.index;
        }
        drop(kept);
        self.changed.send_replace(());
    }

    pub(crate) fn reset(&self) {
        let mut kept = lock(&self.kept);
        let epoch = kept.epoch + 1;
        *kept = Kept { base: LogIndex::ZERO, end: LogIndex::ZERO, entries: VecDeque::new(), bytes: 0, epoch, ended: None };
        drop(kept);
        self.changed.send_replace(());
    }

    pub(crate) fn end(&self, why: StreamError) {
        lock(&self.kept).ended.get_or_insert(why);
        self.changed.send_replace(());
    }

    /// What is next for a stream of `epoch` that has had everything below `next`.
    pub(crate) fn step(&self, next: LogIndex, epoch: u64) -> Step {
        let kept = lock(&self.kept);
        if kept.epoch != epoch {
            return Step::Ended(StreamError::Epoch);
        }
        if next > kept.base && next <= kept.end {
            let from = kept.entries.partition_point(|entry| entry.index < next);
            let entries: VecDeque<Committed> = kept.entries.iter().skip(from).take(READ_MAX).cloned().collect();
            let whole = from + entries.len() == kept.entries.len();
            let end = if whole { kept.end } else { entries.back().map_or(kept.end, |entry| entry.index) };
            return Step::Take { entries, end };
        }
        if let Some(why) = &kept.ended {
            return Step::Ended(why.clone());
        }
        if next <= kept.base {
            return Step::Fetch { to: kept.base.min(next.plus(FETCH_MAX - 1)) };
        }
        Step::Wait
    }
}
