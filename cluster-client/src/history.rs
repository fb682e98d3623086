//! The recent committed commands, kept once for all streams. A stream reads by index, so a slow one holds nobody back: what it
//! missed here it fetches from its server. Where runs end, the chain is kept too: what is fetched must lead to it.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;
use voter_mesh::ids::{Chain, LogIndex};
use voter_mesh::learner::Committed;

use crate::error::StreamError;
use crate::follower::lock;

/// What an entry costs besides its payload, about.
const ENTRY_BYTES: usize = 64;

/// What the end of a run costs.
const END_BYTES: usize = size_of::<RunEnd>();

/// Commands handed to a stream at once.
const READ_MAX: usize = 256;

/// Entries asked for in one fetch.
const FETCH_MAX: u64 = 256;

/// Where a run ends, and the chain there.
pub(crate) type RunEnd = (LogIndex, Chain);

struct Kept {
    /// Where runs end, ascending, from the one before the first that is kept on: every effective command above the first end and up
    /// to the last is in `entries`. None before the learner has begun.
    ends: VecDeque<RunEnd>,
    entries: VecDeque<Committed>,
    /// Of entries and ends, about.
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
    /// These are next; then go on behind `end`, in or behind the run that follows `joint`.
    Take { entries: VecDeque<Committed>, end: LogIndex, joint: RunEnd },
    /// What is next is not kept here: fetch up to `to`.
    Fetch { to: LogIndex },
    /// Nothing is there yet.
    Wait,
    /// Nothing more will come.
    Ended(StreamError),
}

impl Kept {
    fn new(epoch: u64) -> Self {
        Self { ends: VecDeque::new(), entries: VecDeque::new(), bytes: 0, epoch, ended: None }
    }

    /// The last run end at or before `index`.
    fn end_before(&self, index: LogIndex) -> Option<RunEnd> {
        let behind = self.ends.partition_point(|(end, _)| *end <= index);
        self.ends.get(behind.checked_sub(1)?).copied()
    }

    /// Forgets the oldest run. The last one's end stays.
    fn forget_oldest(&mut self) {
        self.ends.pop_front();
        self.bytes = self.bytes.saturating_sub(END_BYTES);
        let base = self.ends.front().map_or(LogIndex::ZERO, |(end, _)| *end);
        let gone = self.entries.partition_point(|entry| entry.index <= base);
        for oldest in self.entries.drain(..gone) {
            self.bytes = self.bytes.saturating_sub(oldest.payload.len() + ENTRY_BYTES);
        }
    }
}

impl History {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { kept: Mutex::new(Kept::new(0)), bytes_max, changed: watch::channel(()).0 }
    }

    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn epoch(&self) -> u64 {
        lock(&self.kept).epoch
    }

    pub(crate) fn begin(&self, at: RunEnd) {
        let mut kept = lock(&self.kept);
        (kept.ends, kept.bytes) = ([at].into(), 0);
        kept.entries.clear();
        drop(kept);
        self.changed.send_replace(());
    }

    /// Adds the commands of the runs that end at `ends`.
    pub(crate) fn push(&self, committed: Vec<Committed>, ends: Vec<RunEnd>) {
        let mut kept = lock(&self.kept);
        kept.bytes += ends.len() * END_BYTES;
        kept.bytes += committed.iter().map(|entry| entry.payload.len() + ENTRY_BYTES).sum::<usize>();
        kept.entries.extend(committed);
        kept.ends.extend(ends);
        while kept.bytes > self.bytes_max && kept.ends.len() > 1 {
            kept.forget_oldest();
        }
        drop(kept);
        self.changed.send_replace(());
    }

    pub(crate) fn reset(&self) {
        let mut kept = lock(&self.kept);
        *kept = Kept::new(kept.epoch + 1);
        drop(kept);
        self.changed.send_replace(());
    }

    pub(crate) fn end(&self, why: StreamError) {
        lock(&self.kept).ended.get_or_insert(why);
        self.changed.send_replace(());
    }

    /// What is next for a stream of `epoch` that has had everything below `next`, and last fetched up to `fetched`.
    pub(crate) fn step(&self, next: LogIndex, epoch: u64, fetched: Option<RunEnd>) -> Step {
        let kept = lock(&self.kept);
        if kept.epoch != epoch {
            return Step::Ended(StreamError::Epoch);
        }
        let (base, end) = match (kept.ends.front(), kept.ends.back()) {
            (Some((base, _)), Some((end, _))) => (*base, *end),
            _ => (LogIndex::ZERO, LogIndex::ZERO),
        };
        // What was fetched ends where a run ends; from the base on all of these are known.
        if let Some(fetched) = fetched.filter(|(at, _)| (base..=end).contains(at) && !kept.ends.is_empty())
            && kept.end_before(fetched.0) != Some(fetched)
        {
            return Step::Ended(StreamError::Diverged { after: fetched.0 });
        }
        if next > base && next <= end {
            let from = kept.entries.partition_point(|entry| entry.index < next);
            let entries: VecDeque<Committed> = kept.entries.iter().skip(from).take(READ_MAX).cloned().collect();
            let whole = from + entries.len() == kept.entries.len();
            let end = if whole { end } else { entries.back().map_or(end, |entry| entry.index) };
            // There is one: the base lies before.
            let joint = kept.end_before(end).unwrap_or_default();
            return Step::Take { entries, end, joint };
        }
        if let Some(why) = &kept.ended {
            return Step::Ended(why.clone());
        }
        if next <= base {
            return Step::Fetch { to: base.min(next.plus(FETCH_MAX - 1)) };
        }
        Step::Wait
    }
}
