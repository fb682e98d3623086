//! Bounds: what a server says of itself stays within what it is allowed and never goes back.
//!
//! From its statuses: as many sessions as the session model has at that index; no more clients than allowed; term, commit and applied
//! never lower than before in the same life of its process, the term never lower than in an earlier one of the same directory; no
//! snapshot hash that differs from another server's.
//!
//! It sees the counters that a server gives to operators. Bytes that it holds and does not count are bounded by named limits, each with
//! a test of its own.

use std::collections::BTreeMap;

use voter_mesh::ids::{LogIndex, RunIndex, Seat, Term};
use voter_mesh::run::Run;

use super::calls::Waiting;
use super::{Checker, CheckerOptions, History, Wrong};
use crate::sim::record::{Event, What};

#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    term: Term,
    commit: RunIndex,
    applied: LogIndex,
}

#[derive(Debug)]
pub(super) struct Bounds {
    clients_max: usize,
    reached: BTreeMap<Seat, Reached>,
    sessions: Waiting<(Seat, usize)>,
}

impl Bounds {
    pub(super) fn new(options: &CheckerOptions) -> Self {
        Self { clients_max: options.clients_max, reached: BTreeMap::new(), sessions: Waiting::default() }
    }

    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (index, (server, sessions)) in self.sessions.ready(history.last()) {
            let expected = history.sessions_at(index);
            if sessions != expected {
                wrong.say(|| format!("server {server} has {sessions} sessions at {index}, and there are {expected}"));
            }
        }
    }
}

impl Checker for Bounds {
    fn name(&self) -> &'static str {
        "bounds"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            // Of what it said of itself, nothing need have been durable: what others were told is the other checkers' affair.
            What::Started { server, .. } => drop(self.reached.remove(server)),
            // It says nothing of itself before it takes part.
            What::Status { server, status } if status.id.is_some() && status.recovery.is_none() => {
                let known = self.reached.entry(*server).or_default();
                let now = Reached { term: status.term, commit: status.commit, applied: status.applied };
                if now.term < known.term || now.commit < known.commit || now.applied < known.applied {
                    wrong.say(|| format!("server {server} goes back from {known:?} to {now:?}"));
                }
                *known = now;
                if status.clients > self.clients_max {
                    wrong.say(|| format!("server {server} has {} clients", status.clients));
                }
                if status.counters.get("state_hashes_differ").is_some_and(|count| *count > 0) {
                    wrong.say(|| format!("server {server} says that a snapshot's hashes differ from another server's"));
                }
                self.sessions.until(status.applied, (*server, status.sessions));
                self.settle(history, wrong);
            }
            _ => {}
        }
    }

    fn committed(&mut self, _run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        self.settle(history, wrong);
    }
}
