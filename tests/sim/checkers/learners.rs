//! Learners: each holds a prefix of the committed history, and none goes back; a stream gives every effective command from its beginning
//! on, in order, once, and nothing else.
//!
//! From the positions that clients report of their learners, with the chain, and from what their streams gave.
//!
//! It cannot see where a stream should have gone on: that a learner stands still is for the liveness checker.

use std::collections::BTreeMap;

use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{Chain, LogIndex, SessionId, Term};
use voter_mesh::run::Run;

use super::calls::{Payload, Waiting, payload};
use super::model::Fate;
use super::{Checker, History, Wrong};
use crate::sim::record::{Event, LearnerId, Report, What};

#[derive(Debug)]
enum Claim {
    At(LearnerId, Option<Chain>),
    Given { stream: LearnerId, before: LogIndex, term: Term, session: SessionId, payload: Payload },
}

#[derive(Debug, Default)]
pub(super) struct Learners {
    positions: BTreeMap<LearnerId, LogIndex>,
    /// The last index that a stream has given, or passed by beginning behind it.
    streams: BTreeMap<LearnerId, LogIndex>,
    waiting: Waiting<Claim>,
}

impl Learners {
    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (index, claim) in self.waiting.ready(history.last()) {
            judge(index, &claim, history, wrong);
        }
    }
}

fn judge(index: LogIndex, claim: &Claim, history: &History, wrong: &mut Wrong<'_>) {
    match claim {
        Claim::At(learner, None) => {
            let entry = history.entry(index);
            if !entry.is_some_and(|entry| matches!(entry.fate, Fate::Effective(_))) {
                wrong.say(|| format!("{learner:?} has seen a command at {index}, where {entry:?} is"));
            }
        }
        Claim::At(learner, Some(chain)) => {
            let run = history.run_ending_at(index);
            if run.is_none_or(|run| run.chain_after != *chain) {
                wrong.say(|| format!("{learner:?} stands at {index} with {chain:x?}; the history has {run:?}"));
            }
        }
        Claim::Given { stream, before, term, session, payload } => {
            let effective = |fate| matches!(fate, Fate::Effective(_));
            let passed = history.entries_from(before.next()).take_while(|(at, _)| *at < index);
            if let Some((missed, _)) = passed.into_iter().find(|(_, entry)| effective(entry.fate)) {
                wrong.say(|| format!("{stream:?} gives {index} after {before}, and misses {missed}"));
            }
            let given = (EntryKind::Command, *term, *session, payload.0, payload.1);
            let right = history.entry(index).is_some_and(|entry| {
                effective(entry.fate) && (entry.kind, entry.term, entry.session, entry.payload_bytes, entry.payload_crc) == given
            });
            if !right {
                wrong.say(|| format!("{stream:?} gives {given:?} at {index}, where {:?} is", history.entry(index)));
            }
        }
    }
}

impl Checker for Learners {
    fn name(&self) -> &'static str {
        "learner prefix"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Learnt { learner, index, chain, .. } => {
                let known = self.positions.entry(*learner).or_default();
                if index < known {
                    wrong.say(|| format!("{learner:?} goes back from {known} to {index}"));
                }
                *known = *index;
                if *index > LogIndex::ZERO {
                    self.waiting.until(*index, Claim::At(*learner, *chain));
                }
            }
            What::ClientStarted { client } => self.positions.retain(|learner, _| learner.0 != *client),
            What::StreamBegan { stream, from } => drop(self.streams.insert(*stream, from.previous())),
            What::Streamed { stream, index, term, session, payload: bytes } => {
                let known = self.streams.entry(*stream).or_default();
                let before = std::mem::replace(known, *index);
                if *index <= before {
                    wrong.say(|| format!("{stream:?} gives {index} after {before}"));
                }
                let payload = payload(bytes);
                self.waiting.until(*index, Claim::Given { stream: *stream, before, term: *term, session: *session, payload });
            }
            _ => return,
        }
        self.settle(history, wrong);
    }

    fn committed(&mut self, _run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        self.settle(history, wrong);
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, _report: &mut Report) {
        for (index, claim) in self.waiting.rest() {
            wrong.say(|| format!("{claim:?} at {index}, and the history ends at {}", history.last()));
        }
    }
}
