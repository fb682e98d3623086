//! Linearizability of every key: there is an order of all operations on it that agrees with real time and explains every answer.
//!
//! From calls and returns alone: no index, no log, no server's word is believed. (The search is first tried in the order of the log, because
//! that mostly leads to the end at once; an order that explains every answer is one, whoever proposed it.) Commands and linearizable reads count; one that has not
//! returned, or whose outcome is unknown, may take effect at any later time or never. Calls under one ticket are one operation, from the
//! first call to the first answer. A history is one key's; clients change keys often enough for it to stay decidable, and one that the
//! search gives up is a violation, not a pass. Of some histories a second algorithm judges too, and the two must agree.
//!
//! Keys that raw clients write to, whose frames are no calls, are left to the index oracle.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cluster_client::{Consistency, Ticket};
use voter_mesh::ids::LogIndex;
use voter_mesh::machine::from_cbor;
use voter_mesh::machine::kv::{KvCommand, KvExpected};
use voter_mesh::run::Run;

use super::calls::Payload;
use super::model::{Digest, Fate, digest};
use super::spec::{Action, Answer, Expected, Judgement, KeyHistory, Operation as KeyOperation, ValueId};
use super::{Checker, CheckerOptions, History, Wrong, state_sets, wing_gong};
use crate::sim::record::{CallId, Event, Operation, Report, Returned, What};

/// Worlds that the second algorithm may see at once; it is let off a history in which more are possible. The first one never is.
const SECOND_WORLDS_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct Linearizability {
    options: CheckerOptions,
    calls: u64,
    operations: Vec<Tracked>,
    keys: BTreeMap<Bytes, Vec<usize>>,
    values: BTreeMap<Digest, ValueId>,
    by_call: BTreeMap<CallId, usize>,
    by_ticket: BTreeMap<Ticket, Vec<(Payload, usize)>>,
    /// Of each entry, the operation that was first told of it.
    told: BTreeMap<LogIndex, usize>,
    /// Keys that raw clients write to.
    raw: BTreeSet<Bytes>,
    /// Where commands took effect in the log.
    effects: BTreeMap<Payload, BTreeSet<LogIndex>>,
}

#[derive(Clone, Copy, Debug)]
struct Tracked {
    operation: KeyOperation,
    payload: Option<Payload>,
    /// Where it was said to have taken effect.
    effect: Option<LogIndex>,
    /// It certainly has no effect and no answer.
    void: bool,
    /// It is named by a ticket alone: no earlier call began it.
    ticketed: bool,
}

impl Linearizability {
    pub(super) fn new(options: &CheckerOptions) -> Self {
        Self {
            options: *options,
            calls: 0,
            operations: Vec::new(),
            keys: BTreeMap::new(),
            values: BTreeMap::new(),
            by_call: BTreeMap::new(),
            by_ticket: BTreeMap::new(),
            told: BTreeMap::new(),
            raw: BTreeSet::new(),
            effects: BTreeMap::new(),
        }
    }

    fn value(&mut self, value: &[u8]) -> ValueId {
        let next = self.values.len() as ValueId;
        *self.values.entry(digest(value)).or_insert(next)
    }

    fn action(&mut self, command: &KvCommand) -> (Bytes, Action) {
        match command {
            KvCommand::Put { key, value } => (key.clone().into(), Action::Put(self.value(value))),
            KvCommand::Delete { key } => (key.clone().into(), Action::Delete),
            KvCommand::CompareAndSet { key, expected, value } => {
                let expected = match expected {
                    KvExpected::Absent => Expected::Absent,
                    KvExpected::Version(version) => Expected::Version(*version),
                    KvExpected::Value(value) => Expected::Value(self.value(value)),
                };
                (key.clone().into(), Action::CompareAndSet(expected, self.value(value)))
            }
        }
    }

    fn begin(&mut self, call: CallId, sequence: u64, key: Bytes, action: Action, payload: Option<Payload>) -> usize {
        let at = self.operations.len();
        self.operations.push(Tracked {
            operation: KeyOperation { called: sequence, returned: None, action, version: None, place: None },
            payload,
            effect: None,
            void: false,
            ticketed: false,
        });
        self.keys.entry(key).or_default().push(at);
        self.by_call.insert(call, at);
        at
    }

    /// Operations on a key that do just this, and whose outcome nobody was told.
    fn earlier(&self, key: &Bytes, action: Action) -> Vec<usize> {
        let on_key = self.keys.get(key).into_iter().flatten().copied();
        let tracked = |at: &usize| &self.operations[*at];
        on_key
            .filter(|at| !tracked(at).void && tracked(at).operation.returned.is_none() && tracked(at).operation.action == action)
            .collect()
    }

    fn called(&mut self, call: CallId, sequence: u64, operation: &Operation, payload: Option<Payload>) {
        self.calls += 1;
        match operation {
            Operation::Propose { ticket, command } => {
                let known = ticket.and_then(|ticket| self.by_ticket.get(&ticket)).into_iter().flatten();
                let known = known.copied().find(|(known, _)| Some(*known) == payload);
                if let Some((_, at)) = known {
                    self.by_call.insert(call, at);
                    return;
                }
                let (key, action) = self.action(command);
                let (Some(ticket), Some(payload)) = (ticket, payload) else {
                    self.begin(call, sequence, key, action, payload);
                    return;
                };
                let at = match self.earlier(&key, action)[..] {
                    // An earlier call of this very command: its client has crashed, and found the ticket in its journal.
                    [earlier] if action != Action::Delete => {
                        self.by_call.insert(call, earlier);
                        earlier
                    }
                    // One of these, or none: it may have begun with the first of them.
                    ref earlier => {
                        let called = earlier.first().map_or(sequence, |first| self.operations[*first].operation.called);
                        let at = self.begin(call, called, key, action, Some(payload));
                        self.operations[at].ticketed = true;
                        at
                    }
                };
                self.by_ticket.entry(*ticket).or_default().push((payload, at));
            }
            Operation::Read { consistency: Consistency::Linearizable, key } => {
                self.begin(call, sequence, key.clone(), Action::Read, None);
            }
            Operation::Outcome { ticket } => {
                if let Some([(_, at)]) = self.by_ticket.get(ticket).map(Vec::as_slice) {
                    self.by_call.insert(call, *at);
                }
            }
            Operation::Send { payload, .. } => {
                if let Ok(command) = from_cbor(payload) {
                    let (key, _) = self.action(&command);
                    self.raw.insert(key);
                }
            }
            Operation::Read { .. } => {}
        }
    }

    fn returned(&mut self, call: CallId, sequence: u64, outcome: &Returned, fresh: Option<Payload>) {
        let Some(at) = self.by_call.remove(&call) else { return };
        let answer = match outcome {
            Returned::Applied { reply: Some(reply), index, .. } => {
                let answer = Answer::Reply(*reply);
                if self.is_told_again(at, *index, answer) {
                    return self.operations[at].void = true;
                }
                self.operations[at].effect.get_or_insert(*index);
                self.told.entry(*index).or_insert(at);
                answer
            }
            Returned::Read { value, .. } => {
                let value = value.as_ref().map(|value| (self.value(&value.value), value.version));
                Answer::Value(value)
            }
            Returned::Conflict if self.operations[at].ticketed => return self.operations[at].void = true,
            Returned::NotRead => return self.operations[at].void = true,
            Returned::NoEffect(_) | Returned::Conflict | Returned::Stale | Returned::SessionExpired if fresh.is_some() => {
                return self.operations[at].void = true;
            }
            Returned::Unknown { ticket: Some(ticket) } => {
                if let Some(payload) = fresh {
                    self.by_ticket.entry(*ticket).or_default().push((payload, at));
                }
                return;
            }
            _ => return,
        };
        self.operations[at].operation.returned.get_or_insert((sequence, answer));
    }

    /// Whether this is an operation that has returned already, with this very answer, and that its client took up once more: it crashed before its
    /// journal knew the answer.
    fn is_told_again(&self, at: usize, index: LogIndex, answer: Answer) -> bool {
        let (again, first) = (self.operations[at], self.told.get(&index).filter(|first| **first != at));
        again.ticketed
            && first.map(|first| self.operations[*first].operation).is_some_and(|first| {
                first.action == again.operation.action && first.returned.is_some_and(|(_, told)| told == answer)
            })
    }

    fn history(&self, operations: &[usize]) -> KeyHistory {
        let tracked = operations.iter().map(|at| self.operations[*at]).filter(|tracked| !tracked.void);
        let mut operations: Vec<_> = tracked.map(|tracked| tracked.operation).collect();
        operations.sort_by_key(|operation| operation.called);
        KeyHistory::new(operations)
    }

    /// The same with every command in its place in the log: those without an answer that have none there are left out, for they need
    /// not have happened. Whoever linearizes this has linearized the history.
    fn guided(&self, operations: &[usize]) -> KeyHistory {
        let mut tracked: Vec<Tracked> = operations.iter().map(|at| self.operations[*at]).filter(|tracked| !tracked.void).collect();
        tracked.sort_by_key(|tracked| tracked.operation.called);
        let mut taken: BTreeSet<LogIndex> = tracked.iter().filter_map(|tracked| tracked.effect).collect();
        for tracked in &mut tracked {
            let effects = tracked.payload.and_then(|payload| self.effects.get(&payload));
            let free = || effects.into_iter().flatten().find(|index| !taken.contains(index)).copied();
            tracked.operation.place = tracked.effect.or_else(free);
            taken.extend(tracked.operation.place);
        }
        tracked.retain(|tracked| tracked.operation.returned.is_some() || tracked.operation.place.is_some());
        KeyHistory::new(tracked.iter().map(|tracked| tracked.operation).collect())
    }

    fn judge(&self, operations: &[usize], history: &KeyHistory) -> Judgement {
        match wing_gong::judge(&self.guided(operations), self.options.steps_max) {
            Judgement::Linearizable => Judgement::Linearizable,
            _ => wing_gong::judge(history, self.options.steps_max),
        }
    }
}

impl Checker for Linearizability {
    fn name(&self) -> &'static str {
        "linearizability"
    }

    fn observe(&mut self, event: &Event, history: &History, _wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Called { call, operation, .. } => {
                let payload = history.calls.get(*call).and_then(|call| call.payload);
                self.called(*call, event.sequence, operation, payload);
            }
            What::Returned { call, outcome } => {
                let fresh =
                    history.calls.get(*call).filter(|call| matches!(call.operation, Operation::Propose { ticket: None, .. }));
                self.returned(*call, event.sequence, outcome, fresh.and_then(|call| call.payload));
            }
            _ => {}
        }
    }

    fn committed(&mut self, run: &Run, history: &History, _wrong: &mut Wrong<'_>) {
        for (index, entry) in run.entries() {
            if history.entry(index).is_some_and(|entry| matches!(entry.fate, Fate::Effective(_))) {
                self.effects.entry((entry.header.payload_bytes, entry.header.payload_crc)).or_default().insert(index);
            }
        }
    }

    fn finish(&mut self, _history: &History, wrong: &mut Wrong<'_>, report: &mut Report) {
        report.operations += self.calls;
        for (key, operations) in self.keys.iter().filter(|(key, _)| !self.raw.contains(*key)) {
            let history = self.history(operations);
            if history.operations.iter().all(|operation| operation.returned.is_none()) {
                continue;
            }
            report.histories += 1;
            let judgement = self.judge(operations, &history);
            if judgement != Judgement::Linearizable {
                wrong.say(|| format!("{key:?}: {judgement:?}: {history}"));
            }
            let looked_at_twice =
                self.options.second_look_every > 0 && report.histories.is_multiple_of(self.options.second_look_every);
            if looked_at_twice {
                let second = state_sets::judge(&history, SECOND_WORLDS_MAX);
                let decided = second != Judgement::Undecided;
                *report.counts.entry(if decided { "histories_judged_twice" } else { "histories_too_wide" }).or_default() += 1;
                if decided && second != judgement {
                    wrong.say(|| {
                        format!("{key:?}: {judgement:?} by one algorithm, {second:?} by the other: {:#?}", history.operations)
                    });
                }
            }
        }
    }
}
