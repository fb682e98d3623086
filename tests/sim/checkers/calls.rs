//! The calls that are under way, with what was known to have happened when each began.

use std::collections::BTreeMap;

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::to_cbor;

use crate::sim::record::{CallId, ClientId, Event, Operation, Returned, What};

/// What somebody was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Known {
    /// The highest index at which a command was said to have taken effect.
    pub(super) applied: LogIndex,
    /// The highest index of a state that a read has shown.
    pub(super) read: LogIndex,
}

impl Known {
    fn learn(&mut self, outcome: &Returned) {
        match outcome {
            Returned::Applied { index, .. } => self.applied = self.applied.max(*index),
            Returned::Read { applied: Some(index), .. } => self.read = self.read.max(*index),
            _ => {}
        }
    }
}

/// A command as the log shows it: length and checksum of its bytes.
pub(super) type Payload = (u32, u32);

pub(super) fn payload(bytes: &[u8]) -> Payload {
    (u32::try_from(bytes.len()).unwrap_or(u32::MAX), crc32c::crc32c(bytes))
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) client: ClientId,
    pub(super) operation: Operation,
    /// The command that it proposes.
    pub(super) payload: Option<Payload>,
    /// What anybody knew when it began.
    pub(super) all: Known,
    /// What its own client knew.
    pub(super) own: Known,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: BTreeMap<CallId, Call>,
    all: Known,
    by_client: BTreeMap<ClientId, Known>,
}

impl Calls {
    pub(super) fn get(&self, call: CallId) -> Option<&Call> {
        self.open.get(&call)
    }

    /// Before any checker sees the event.
    pub(super) fn before(&mut self, event: &Event) {
        if let What::ClientStarted { client } = &event.what {
            self.by_client.remove(client);
        }
        if let What::Called { call, client, operation } = &event.what {
            let payload = match operation {
                Operation::Propose { command, .. } => to_cbor(command).ok().map(|bytes| payload(&bytes)),
                Operation::Send { payload: bytes, .. } => Some(payload(bytes)),
                _ => None,
            };
            let own = self.by_client.get(client).copied().unwrap_or_default();
            self.open.insert(*call, Call { client: *client, operation: operation.clone(), payload, all: self.all, own });
        }
    }

    /// After all of them have.
    pub(super) fn after(&mut self, event: &Event) {
        match &event.what {
            What::Returned { call, outcome } => {
                if let Some(call) = self.open.remove(call) {
                    self.all.learn(outcome);
                    self.by_client.entry(call.client).or_default().learn(outcome);
                }
            }
            // Nobody waits for it.
            What::Called { call, operation: Operation::Send { .. }, .. } => drop(self.open.remove(call)),
            _ => {}
        }
    }
}

/// Things that wait until the history reaches an index.
#[derive(Debug)]
pub(super) struct Waiting<T>(BTreeMap<LogIndex, Vec<T>>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Waiting<T> {
    pub(super) fn until(&mut self, index: LogIndex, thing: T) {
        self.0.entry(index).or_default().push(thing);
    }

    /// Those whose time has come, in the order of their indices.
    pub(super) fn ready(&mut self, last: LogIndex) -> Vec<(LogIndex, T)> {
        if self.0.first_key_value().is_none_or(|(index, _)| *index > last) {
            return Vec::new();
        }
        let later = self.0.split_off(&last.next());
        let ready = std::mem::replace(&mut self.0, later);
        ready.into_iter().flat_map(|(index, things)| things.into_iter().map(move |thing| (index, thing))).collect()
    }

    /// Those whose time never came.
    pub(super) fn rest(&self) -> impl Iterator<Item = (LogIndex, &T)> {
        self.0.iter().flat_map(|(index, things)| things.iter().map(move |thing| (*index, thing)))
    }
}
