//! Exactly once: a request takes effect at most once, a command no more often than it was called for, one that nobody asked for never, and
//! one that was told to have none has none.
//!
//! A request is its session and id; a command is known by its bytes, so that a retry under a new id is seen too: clients make each put and
//! compare-and-set unlike all others. From the verdicts of the session model over the committed history; that the servers' verdicts are
//! the same is another checker's.
//!
//! It cannot tell two deletes of one key apart: there it only counts.

use std::collections::{BTreeMap, BTreeSet};

use cluster_client::Ticket;
use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{LogIndex, RequestId, SessionId};
use voter_mesh::run::Run;

use super::calls::{Payload, payload};
use super::model::Fate;
use super::{Checker, History, Wrong};
use crate::sim::record::{Event, Operation, Report, Returned, What};

#[derive(Debug, Default)]
struct Command {
    /// How often it was called for.
    called: u64,
    /// How many of those calls were told that they had no effect.
    denied: u64,
    effects: Vec<LogIndex>,
}

#[derive(Debug, Default)]
pub(super) struct Effects {
    commands: BTreeMap<Payload, Command>,
    /// Calls under one ticket with one command are one.
    tickets: BTreeSet<(Ticket, Payload)>,
    requests: BTreeMap<(SessionId, RequestId), LogIndex>,
}

impl Effects {
    fn called(&mut self, ticket: Option<Ticket>, payload: Payload) {
        if ticket.is_none_or(|ticket| self.tickets.insert((ticket, payload))) {
            self.commands.entry(payload).or_default().called += 1;
        }
    }
}

impl Checker for Effects {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn observe(&mut self, event: &Event, history: &History, _wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Called { call, .. } => {
                let Some(call) = history.calls.get(*call) else { return };
                match (&call.operation, call.payload) {
                    (Operation::Propose { ticket, .. }, Some(payload)) => self.called(*ticket, payload),
                    (Operation::Send { session, request, payload: bytes, .. }, _) => {
                        self.called(Some(Ticket { session: *session, request: *request }), payload(bytes));
                    }
                    _ => {}
                }
            }
            What::Returned { call, outcome } => {
                let Some(call) = history.calls.get(*call) else { return };
                let (Operation::Propose { ticket: None, .. }, Some(payload)) = (&call.operation, call.payload) else { return };
                match outcome {
                    Returned::NoEffect(_) | Returned::Conflict | Returned::Stale | Returned::SessionExpired => {
                        self.commands.entry(payload).or_default().denied += 1;
                    }
                    // Whoever proposes it again under this ticket calls for nothing more.
                    Returned::Unknown { ticket: Some(ticket) } => drop(self.tickets.insert((*ticket, payload))),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn committed(&mut self, run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        for (index, entry) in run.entries().filter(|(_, entry)| entry.header.kind == EntryKind::Command) {
            if !history.entry(index).is_some_and(|entry| matches!(entry.fate, Fate::Effective(_))) {
                continue;
            }
            let (session, request) = (entry.header.session, entry.header.request);
            if let Some(before) = self.requests.insert((session, request), index) {
                wrong.say(|| format!("request {session}-{request} takes effect at {before} and at {index}"));
            }
            let command = self.commands.entry((entry.header.payload_bytes, entry.header.payload_crc)).or_default();
            command.effects.push(index);
            if command.effects.len() as u64 > command.called {
                wrong.say(|| format!("the command of request {session}-{request} takes effect once too often: {command:?}"));
            }
        }
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, _report: &mut Report) {
        for command in self
            .commands
            .values()
            .filter(|command| command.effects.len() as u64 > command.called - command.denied.min(command.called))
        {
            let entries: Vec<_> = command.effects.iter().map(|index| history.entry(*index)).collect();
            wrong.say(|| format!("a command that was told to have no effect has one: {command:?}, {entries:?}"));
        }
    }
}
