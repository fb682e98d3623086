//! The index oracle: the committed commands, replayed in the order of their indices in a machine of its own, hold every reply and every
//! read at its index; and the order of indices agrees with real time.
//!
//! * A call that was told that its command took effect at an index finds that very command there, with that reply.
//! * A command takes effect behind everything that anybody was told before it was called.
//! * A read shows the key as it was at the index where the state stood.
//! * A linearizable read stands at or behind everything that anybody was told before it was called.
//!
//! Together these are linearizability of all keys at once, for all calls that say their index, however many they are; the search for a
//! linearization needs no index and believes none. Where a read does not say where its state stood, any index will do at which the key
//! had that value and nothing known was ignored.

use bytes::Bytes;
use cluster_client::{Consistency, Ticket};
use voter_mesh::ids::{LogIndex, Term};
use voter_mesh::machine::kv::{KvReply, KvValue};
use voter_mesh::run::Run;

use super::calls::{Payload, Waiting};
use super::model::{Digest, Fate, digest};
use super::{Checker, History, Wrong};
use crate::sim::record::{CallId, Event, Operation, Report, Returned, What};

#[derive(Debug)]
enum Claim {
    Effect {
        ticket: Option<Ticket>,
        payload: Option<Payload>,
        term: Term,
        reply: Option<KvReply>,
    },
    Value {
        key: Bytes,
        value: Option<(LogIndex, Digest)>,
    },
    /// At or behind this index the key had this value at some time.
    ValueSince {
        key: Bytes,
        value: Option<(LogIndex, Digest)>,
        since: LogIndex,
    },
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    waiting: Waiting<(CallId, Claim)>,
    /// What only the end can tell.
    late: Vec<(CallId, Claim)>,
}

impl Oracle {
    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (index, (call, claim)) in self.waiting.ready(history.last()) {
            judge(index, call, &claim, history, wrong);
        }
    }

    fn applied(&mut self, call: CallId, outcome: &Returned, history: &History, wrong: &mut Wrong<'_>) {
        let (Some(known), Returned::Applied { index, term, reply, .. }) = (history.calls.get(call), outcome) else { return };
        let ticket = match &known.operation {
            Operation::Propose { ticket, .. } => *ticket,
            Operation::Outcome { ticket } => Some(*ticket),
            _ => None,
        };
        // Under a ticket an earlier call may have had the effect.
        let before = known.all.applied.max(known.all.read);
        if ticket.is_none() && *index <= before {
            wrong.say(|| format!("call {} took effect at {index}; before it was called {before} was known", call.0));
        }
        self.waiting.until(*index, (call, Claim::Effect { ticket, payload: known.payload, term: *term, reply: *reply }));
    }

    fn read(&mut self, call: CallId, value: Option<&KvValue>, applied: Option<LogIndex>, history: &History, wrong: &mut Wrong<'_>) {
        let Some(known) = history.calls.get(call) else { return };
        let Operation::Read { consistency, key } = &known.operation else { return };
        let (key, value) = (key.clone(), value.map(|value| (value.version, digest(&value.value))));
        let since = match consistency {
            Consistency::Linearizable => known.all.applied.max(known.all.read),
            Consistency::Session => known.own.applied.max(known.own.read),
            Consistency::Local => known.own.read,
        };
        match applied {
            Some(applied) => {
                if *consistency == Consistency::Linearizable && applied < since {
                    wrong.say(|| format!("read {} is linearizable and stands at {applied}; before it {since} was known", call.0));
                }
                self.waiting.until(applied, (call, Claim::Value { key, value }));
            }
            None => self.late.push((call, Claim::ValueSince { key, value, since })),
        }
    }
}

fn judge(index: LogIndex, call: CallId, claim: &Claim, history: &History, wrong: &mut Wrong<'_>) {
    let call = call.0;
    match claim {
        Claim::Effect { ticket, payload, term, reply } => {
            let Some(entry) = history.entry(index) else {
                return wrong.say(|| format!("call {call} took effect at {index}, which is no index"));
            };
            let right = match entry.fate {
                Fate::Effective(expected) => reply.is_none_or(|reply| reply == expected),
                _ => false,
            };
            let right = right
                && entry.term == *term
                && payload.is_none_or(|payload| payload == (entry.payload_bytes, entry.payload_crc))
                && ticket.is_none_or(|ticket| (ticket.session, ticket.request) == (entry.session, entry.request));
            if !right {
                wrong.say(|| {
                    format!("call {call} ({ticket:?}, {payload:?}) got {reply:?} at {index} in term {term}; there is {entry:?}")
                });
            }
        }
        Claim::Value { key, value } => {
            let expected = history.kv.at(key, index);
            if *value != expected {
                wrong.say(|| format!("read {call} of {key:?} at {index} shows {value:?}, and it was {expected:?}"));
            }
        }
        Claim::ValueSince { key, value, since } => {
            let mut later = history.kv.versions(key).iter().filter(|version| version.since > *since);
            let appeared = later.any(|version| version.value.map(|digest| (version.since, digest)) == *value);
            if history.kv.at(key, *since) != *value && !appeared {
                wrong.say(|| format!("read {call} of {key:?} shows {value:?}, which it never was at {since} or later"));
            }
        }
    }
}

impl Checker for Oracle {
    fn name(&self) -> &'static str {
        "index oracle"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Returned { call, outcome: outcome @ Returned::Applied { .. } } => self.applied(*call, outcome, history, wrong),
            What::Returned { call, outcome: Returned::Read { value, applied } } => {
                self.read(*call, value.as_ref(), *applied, history, wrong);
            }
            _ => return,
        }
        self.settle(history, wrong);
    }

    fn committed(&mut self, _run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        self.settle(history, wrong);
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, _report: &mut Report) {
        for (index, (call, claim)) in self.waiting.rest() {
            wrong.say(|| format!("call {} speaks of {index}, which nobody saw committed: {claim:?}", call.0));
        }
        for (call, claim) in &self.late {
            judge(history.last(), *call, claim, history, wrong);
        }
    }
}
