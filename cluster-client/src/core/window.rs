//! The requests of a session, from its oldest unanswered one on: at most 256, whatever they become.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use voter_mesh::ids::RequestId;

use super::{CallId, ProposeResult};

/// What has become of a request so far.
pub(super) enum Stage {
    /// Its ticket is out, nothing was proposed under it.
    Reserved,
    /// Proposed, not answered.
    Open,
    /// The reply is there; the learner has yet to apply this index.
    Replied(ProposeResult),
    /// Answered or given up; kept only because it may be a record that the server's window counts.
    Done,
}

pub(super) struct Request<P> {
    pub(super) stage: Stage,
    pub(super) payload: Bytes,
    /// Who waits: calls and their waiters.
    pub(super) waiters: Vec<(CallId, P)>,
    /// The application holds its ticket: if it was not sent, it is reserved again rather than given up.
    pub(super) reserved: bool,
    /// Its record is written.
    pub(super) journaled: bool,
    /// How often it was handed to a socket; an earlier process counts as once.
    pub(super) copies: u32,
    /// How often the servers refused it; paces the next attempt.
    pub(super) refusals: u32,
}

impl<P> Request<P> {
    pub(super) fn new(stage: Stage, payload: Bytes) -> Self {
        Self { stage, payload, waiters: Vec::new(), reserved: false, journaled: false, copies: 0, refusals: 0 }
    }

    /// Whether a server may have seen it.
    pub(super) fn sent(&self) -> bool {
        self.copies > 0
    }
}

pub(super) struct Window<P> {
    pub(super) requests: BTreeMap<RequestId, Request<P>>,
    /// Journaled and waiting for a socket, in the order to be sent.
    pub(super) to_send: VecDeque<RequestId>,
    /// The next id to issue; ids below it are issued or skipped.
    pub(super) next: RequestId,
    /// Ids below this one are in a block that the journal has, or gets before anything that follows.
    pub(super) block_end: RequestId,
    pub(super) window_max: usize,
}

impl<P> Window<P> {
    pub(super) fn new(id_end: RequestId, window_max: usize) -> Self {
        let next = RequestId(id_end.0.max(1));
        Self { requests: BTreeMap::new(), to_send: VecDeque::new(), next, block_end: next, window_max }
    }

    /// Takes over what an earlier process left open; it may have been sent.
    pub(super) fn recover(&mut self, open: &BTreeMap<RequestId, Option<Bytes>>) {
        for (id, payload) in open {
            let (stage, payload) = match payload {
                Some(payload) => (Stage::Open, payload.clone()),
                None => (Stage::Reserved, Bytes::new()),
            };
            let mut request = Request::new(stage, payload);
            (request.copies, request.journaled) = (1, true);
            self.requests.insert(*id, request);
        }
    }

    /// The request's record is written. Whether it is to be sent.
    pub(super) fn journaled(&mut self, id: RequestId) -> bool {
        self.requests.get_mut(&id).is_some_and(|request| {
            request.journaled = true;
            matches!(request.stage, Stage::Open)
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.requests.len() < self.window_max
    }

    /// All lower ids are answered or given up.
    pub(super) fn floor(&self) -> RequestId {
        self.requests.keys().next().copied().unwrap_or(self.next)
    }

    /// Marks an id as answered or given up. Requests behind the oldest unanswered one are forgotten.
    pub(super) fn done(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.stage = Stage::Done;
            request.payload = Bytes::new();
        }
        while self.requests.first_key_value().is_some_and(|(_, first)| matches!(first.stage, Stage::Done)) {
            self.requests.pop_first();
        }
    }

    /// Ids that are proposed and not answered, ascending.
    pub(super) fn open(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.requests.iter().filter(|(_, request)| matches!(request.stage, Stage::Open)).map(|(id, _)| *id)
    }

    /// Whether any proposal has left and is not answered.
    pub(super) fn in_flight(&self) -> bool {
        self.requests.values().any(|request| matches!(request.stage, Stage::Open) && request.sent())
    }
}
