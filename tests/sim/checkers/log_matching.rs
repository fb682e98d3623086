//! Log matching: a run's index and term name one content and one history before it (Raft §5.3).
//!
//! From every run that a leader sends, a feed gives or a disk holds, and from the (run, term) that appends say they continue. The history
//! before a run is its chain: two logs that hold the same run hold the same chain before it.
//!
//! It sees only what travels or is committed; a run that lies on one disk and is overwritten there before it was ever sent concerns nobody.

use std::collections::BTreeMap;

use voter_mesh::ids::{Chain, LogIndex, RunIndex, Term};
use voter_mesh::mesh::message::Message;
use voter_mesh::run::RunHeader;

use super::{Checker, History, Wrong};
use crate::sim::record::{Event, What};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Content {
    first: LogIndex,
    count: u32,
    before: Chain,
    after: Chain,
}

#[derive(Debug, Default)]
pub(super) struct LogMatching {
    runs: BTreeMap<(RunIndex, Term), Content>,
    /// The term of the run before.
    before: BTreeMap<(RunIndex, Term), Term>,
}

impl LogMatching {
    fn holds(&mut self, run: &RunHeader, wrong: &mut Wrong<'_>) {
        let content = Content { first: run.first, count: run.count, before: run.chain_before, after: run.chain_after };
        let known = *self.runs.entry((run.run, run.term)).or_insert(content);
        if known != content {
            wrong.say(|| format!("run {} of term {} is {content:?} and {known:?}", run.run, run.term));
        }
    }

    fn continues(&mut self, run: &RunHeader, previous: Term, wrong: &mut Wrong<'_>) {
        let known = *self.before.entry((run.run, run.term)).or_insert(previous);
        if known != previous {
            wrong.say(|| format!("run {} of term {} stands behind one of term {previous} and of term {known}", run.run, run.term));
        }
        if let Some(before) = self.runs.get(&(run.run.previous(), previous))
            && before.after != run.chain_before
        {
            wrong.say(|| format!("run {run:?} stands behind {before:?}, which it does not continue"));
        }
    }

    fn consecutive<'a>(
        &mut self,
        runs: impl Iterator<Item = &'a RunHeader>,
        mut previous: Option<(RunIndex, Term)>,
        wrong: &mut Wrong<'_>,
    ) {
        for run in runs {
            self.holds(run, wrong);
            if let Some((_, term)) = previous.filter(|(index, _)| index.next() == run.run) {
                self.continues(run, term, wrong);
            }
            previous = Some((run.run, run.term));
        }
    }
}

impl Checker for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn observe(&mut self, event: &Event, _history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Mesh { message: Message::Append { previous, previous_term, runs, .. }, .. } => {
                self.consecutive(runs.iter().map(|run| run.header()), Some((*previous, *previous_term)), wrong);
            }
            What::Feed { run, .. } => self.holds(run.header(), wrong),
            What::Disk(found) => self.consecutive(found.runs.iter(), None, wrong),
            _ => {}
        }
    }
}
