//! Outcomes: every answer that a server gives is the one that the session model gives for that entry, the same again for every retry, and
//! in the words of the design: Conflict, Stale, Superseded, WindowBroken, SessionExpired, Undecodable.
//!
//! From the answers that raw clients saw on their links, and from what calls returned. An answer that names no entry was given from a
//! server's table: there must be a reason for it in the history by the end of the run.
//!
//! An answer names the payload that it is for: it must be that of the entry.
//!
//! It cannot see that an answer from the table came too early, only that it was never true.

use std::collections::{BTreeMap, BTreeSet};

use cluster_client::Ticket;
use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{LogIndex, Opening, RequestId, SessionId};
use voter_mesh::machine::from_cbor;
use voter_mesh::outcome::{Outcome, Reply};
use voter_mesh::run::Run;

use super::calls::{Payload, Waiting};
use super::history::Entry;
use super::model::Fate;
use super::{Checker, History, Wrong};
use crate::sim::record::{CallId, Event, Operation, Report, Returned, What};

#[derive(Debug, Default)]
pub(super) struct Sessions {
    waiting: Waiting<Reply>,
    /// Answers that name no entry.
    from_table: BTreeMap<(SessionId, RequestId), Vec<Outcome>>,
    /// Sessions that ever broke their window.
    broken: BTreeSet<SessionId>,
    /// Openings that ever held, and were not the session's first.
    openings: BTreeSet<(SessionId, Opening)>,
    ended: BTreeSet<SessionId>,
    floors: BTreeMap<SessionId, RequestId>,
    /// Calls that were told of a conflict, with the command that they proposed.
    conflicts: Vec<(CallId, Ticket, Payload)>,
    effects: BTreeMap<(SessionId, RequestId), Payload>,
}

/// Whether this entry comes to this outcome for its own request.
fn right(entry: &Entry, reply: &Reply) -> bool {
    (entry.session, entry.request, entry.term, entry.payload_crc) == (reply.session, reply.request, reply.term, reply.payload_crc)
        && match (&reply.outcome, entry.fate) {
            (Outcome::Applied(bytes), Fate::Effective(expected)) => from_cbor(bytes) == Ok(expected),
            (Outcome::Elided(_), Fate::Effective(_)) | (Outcome::Undecodable, Fate::Undecodable) => true,
            // Only recorded outcomes are answered again.
            (Outcome::Conflict, Fate::Conflict)
            | (Outcome::Stale, Fate::Stale)
            | (Outcome::WindowBroken, Fate::WindowBroken)
            | (Outcome::SessionExpired, Fate::NoSession) => !reply.repeat,
            (Outcome::Superseded(told), Fate::Superseded(current)) => !reply.repeat && *told == current,
            _ => false,
        }
}

impl Sessions {
    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (index, reply) in self.waiting.ready(history.last()) {
            if let Some(entry) = history.entry(index).filter(|entry| !right(entry, &reply)) {
                wrong.say(|| format!("answered {reply:?}, and the entry is {entry:?}"));
            }
        }
    }

    /// Whether an answer that names no entry has its reason somewhere in the history.
    fn has_reason(&self, session: SessionId, request: RequestId, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Stale => self.floors.get(&session).is_some_and(|floor| request < *floor),
            Outcome::WindowBroken => self.broken.contains(&session),
            Outcome::SessionExpired => self.ended.contains(&session),
            Outcome::Superseded(current) => current.0 == session.0 || self.openings.contains(&(session, *current)),
            _ => false,
        }
    }
}

impl Checker for Sessions {
    fn name(&self) -> &'static str {
        "outcomes"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Replied { reply, .. } if reply.index == LogIndex::ZERO => {
                self.from_table.entry((reply.session, reply.request)).or_default().push(reply.outcome.clone());
            }
            What::Replied { reply, .. } => {
                self.waiting.until(reply.index, reply.clone());
                self.settle(history, wrong);
            }
            What::Returned { call, outcome: Returned::Conflict } => {
                if let Some(known) = history.calls.get(*call)
                    && let (Operation::Propose { ticket: Some(ticket), .. }, Some(payload)) = (&known.operation, known.payload)
                {
                    self.conflicts.push((*call, *ticket, payload));
                }
            }
            What::Returned { call, outcome: outcome @ (Returned::SessionExpired | Returned::Superseded { .. }) } => {
                if let Some(known) = history.calls.get(*call)
                    && let Operation::Propose { ticket: Some(ticket), .. } | Operation::Outcome { ticket } = &known.operation
                {
                    let outcome = match outcome {
                        Returned::Superseded { current } => Outcome::Superseded(*current),
                        _ => Outcome::SessionExpired,
                    };
                    self.from_table.entry((ticket.session, ticket.request)).or_default().push(outcome);
                }
            }
            _ => {}
        }
    }

    fn committed(&mut self, run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        for (index, entry) in run.entries() {
            let header = &entry.header;
            let session = header.session;
            let Some(fate) = history.entry(index).map(|entry| entry.fate) else { continue };
            match fate {
                Fate::EndedSession => drop(self.ended.insert(session)),
                Fate::Attached => drop(self.openings.insert((session, Opening(index.0)))),
                Fate::Effective(_) => {
                    self.effects.insert((session, header.request), (header.payload_bytes, header.payload_crc));
                }
                Fate::WindowBroken => drop(self.broken.insert(session)),
                _ => {}
            }
            if header.kind == EntryKind::Command && !matches!(fate, Fate::NoSession | Fate::Superseded(_)) {
                let floor = self.floors.entry(session).or_default();
                *floor = (*floor).max(header.floor);
            }
        }
        self.settle(history, wrong);
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, _report: &mut Report) {
        for (index, reply) in self.waiting.rest() {
            wrong.say(|| format!("answered {reply:?}; nothing is committed at {index}"));
        }
        for ((session, request), outcomes) in &self.from_table {
            for outcome in outcomes.iter().filter(|outcome| !self.has_reason(*session, *request, outcome)) {
                wrong.say(|| format!("request {session}-{request} was answered {outcome:?} for no reason"));
            }
        }
        for (call, ticket, payload) in &self.conflicts {
            // What was recorded under the ticket is another command, or none that took effect.
            if self.effects.get(&(ticket.session, ticket.request)) == Some(payload) {
                let last = history.last();
                wrong.say(|| format!("call {} conflicts under {ticket} with the same command (history ends at {last})", call.0));
            }
        }
    }
}
