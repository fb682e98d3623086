//! Leader completeness: what was committed in a term stands in the log of every leader of a later one (Raft §5.4).
//!
//! A run counts as committed in a term once that term's leader has put a commit index at or behind it on the mesh. What a leader's log holds
//! is what it sends and what it says that comes before: each such (run, term), at a run that was committed in an earlier term, must be
//! the committed one. Where the history does not reach yet, the question waits until it does.
//!
//! It cannot see what a leader holds and never speaks of.

use std::collections::BTreeMap;

use voter_mesh::ids::{RaftId, RunIndex, Term};
use voter_mesh::mesh::message::Message;
use voter_mesh::run::Run;

use super::{Checker, History, Wrong};
use crate::sim::record::{Event, What};

/// A leader's log holds a run of this term at some place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Held {
    leader: RaftId,
    leads: Term,
    term: Term,
}

#[derive(Debug, Default)]
pub(super) struct LeaderCompleteness {
    /// The highest commit index that the leaders of a term and of all before it have claimed: rises with the term.
    committed: BTreeMap<Term, RunIndex>,
    /// What leaders hold at runs that the history does not reach yet. A deposed leader's tail may stay for ever: it was never committed
    /// before its term.
    waiting: BTreeMap<RunIndex, Vec<Held>>,
}

impl LeaderCompleteness {
    fn claims(&mut self, term: Term, commit: RunIndex) {
        let before = self.committed.range(..=term).next_back().map_or(RunIndex::ZERO, |(_, commit)| *commit);
        if commit > before {
            self.committed.insert(term, commit);
            // Later terms that claimed less say nothing more.
            self.committed.retain(|later, claimed| *later <= term || *claimed > commit);
        }
    }

    /// The highest run that was committed in a term before this one.
    fn committed_before(&self, term: Term) -> RunIndex {
        self.committed.range(..term).next_back().map_or(RunIndex::ZERO, |(_, commit)| *commit)
    }

    fn holds(&mut self, run: RunIndex, held: Held, history: &History, wrong: &mut Wrong<'_>) {
        if run <= RunIndex::FIRST {
            return;
        }
        if run > history.last_run() {
            let waiting = self.waiting.entry(run).or_default();
            if !waiting.contains(&held) {
                waiting.push(held);
            }
        } else if run <= self.committed_before(held.leads) {
            judge(run, held, history, wrong);
        }
    }
}

fn judge(run: RunIndex, held: Held, history: &History, wrong: &mut Wrong<'_>) {
    if let Some(committed) = history.run(run).filter(|committed| committed.term != held.term) {
        wrong.say(|| {
            let Held { leader, leads, term } = held;
            format!("{leader} leads term {leads} with a run {run} of term {term}; an earlier term has committed {committed:?}")
        });
    }
}

impl Checker for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        let What::Mesh { from: leader, message, .. } = &event.what else { return };
        let held = |leads: &Term, term: &Term| Held { leader: *leader, leads: *leads, term: *term };
        match message {
            Message::Append { term, previous, previous_term, commit, runs } => {
                self.claims(*term, *commit);
                self.holds(*previous, held(term, previous_term), history, wrong);
                for run in runs {
                    self.holds(run.header().run, held(term, &run.header().term), history, wrong);
                }
            }
            Message::Commit { term, previous, previous_term, commit } => {
                self.claims(*term, *commit);
                self.holds(*previous, held(term, previous_term), history, wrong);
            }
            // A heartbeat's commit is no more than the receiver has; it is true all the same.
            Message::Heartbeat { term, commit, .. } => self.claims(*term, *commit),
            _ => {}
        }
    }

    fn committed(&mut self, run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        let run = run.header().run;
        for held in self.waiting.remove(&run).unwrap_or_default() {
            if run <= self.committed_before(held.leads) {
                judge(run, held, history, wrong);
            }
        }
    }
}
