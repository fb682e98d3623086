//! The application's calls: each has a deadline, can be cancelled, and is answered exactly once.

use std::collections::BTreeSet;

use voter_mesh::ids::{RequestId, Time};

use super::window::Stage;
use super::{After, CallId, Core, Event, Waiters};
use crate::error::{NotSent, ProposeError, ReadError, ReserveError, StreamError, Unresolved};
use crate::status::CloseReason;
use crate::ticket::Ticket;

/// Where a call waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Queue,
    Request(RequestId),
    Read,
    Fetch,
}

impl<W: Waiters> Core<W> {
    pub(super) fn new_call(&mut self, deadline: Time, place: Place) -> CallId {
        let call = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(call, (deadline.monotonic_us, place));
        if deadline.monotonic_us != u64::MAX {
            self.deadlines.insert((deadline.monotonic_us, call));
        }
        call
    }

    pub(super) fn forget_call(&mut self, call: CallId) -> Option<Place> {
        let (deadline_us, place) = self.calls.remove(&call)?;
        self.deadlines.remove(&(deadline_us, call));
        Some(place)
    }

    pub(super) fn ticket(&self, request: RequestId) -> Option<Ticket> {
        self.session.id().map(|session| Ticket { session, request })
    }

    /// Nobody waits for this call any more: the same as its deadline, without an answer.
    pub fn cancel(&mut self, call: CallId) {
        match self.forget_call(call) {
            Some(Place::Queue) => {
                self.queue.remove(&call);
            }
            Some(Place::Request(id)) => {
                self.drop_waiter(id, call);
                self.fill();
            }
            Some(Place::Read) => {
                self.reads.remove(call);
            }
            Some(Place::Fetch) => {
                // A question that was asked is answered to nobody.
                let asked = usize::from(self.fetching.as_ref().is_some_and(|fetching| !fetching.answered));
                let mut at = 0;
                self.fetches.retain(|fetch| {
                    at += 1;
                    fetch.call != call || at <= asked
                });
            }
            None => {}
        }
    }

    pub(super) fn expire_calls(&mut self, now: Time) {
        while let Some(&(_, call)) = self.deadlines.first().filter(|(at, _)| *at <= now.monotonic_us) {
            match self.forget_call(call) {
                Some(Place::Queue) => {
                    if let Some(queued) = self.queue.remove(&call) {
                        let unsent = ProposeError::NotSent { reason: NotSent::Deadline };
                        self.events.push_back(queued.refused(unsent, ReserveError::Deadline));
                    }
                }
                Some(Place::Request(id)) => {
                    if let Some((waiter, result, kept)) = self.drop_waiter(id, call) {
                        let event = Event::Proposed { waiter, request: self.ticket(id), result: Err(result) };
                        if kept { self.tell_unsent(event) } else { self.events.push_back(event) }
                    }
                }
                Some(Place::Read) => {
                    if let Some(waiter) = self.reads.remove(call) {
                        self.events.push_back(Event::Read { waiter, result: Err(ReadError::Deadline) });
                    }
                }
                Some(Place::Fetch) | None => {}
            }
        }
    }

    /// Says that a request was not sent once the journal will not bring it back, even if the machine crashes.
    fn tell_unsent(&mut self, event: Event<W>) {
        self.records_durable = true;
        self.after.push(After::Tell(event));
    }

    /// Another epoch: indices mean something else now.
    pub(super) fn fail_reads_and_fetches(&mut self) {
        for (call, waiter) in self.reads.drain() {
            self.forget_call(call);
            self.events.push_back(Event::Read { waiter, result: Err(ReadError::Epoch) });
        }
        self.fetching = None;
        for fetch in std::mem::take(&mut self.fetches) {
            self.forget_call(fetch.call);
            self.events.push_back(Event::Fetched { waiter: fetch.waiter, result: Err(StreamError::Epoch) });
        }
    }

    /// The client closes: nobody is left waiting.
    pub(super) fn answer_all(&mut self, why: &CloseReason) {
        for (_, queued) in std::mem::take(&mut self.queue) {
            let unsent = ProposeError::NotSent { reason: NotSent::Closed(why.clone()) };
            self.events.push_back(queued.refused(unsent, ReserveError::Closed(why.clone())));
        }
        let open: BTreeSet<RequestId> = self.window.open().chain(self.replied.iter().map(|(_, id)| *id)).collect();
        let journal_failed = matches!(why, CloseReason::Journal(_));
        for id in open {
            let Some(ticket) = self.ticket(id) else { continue };
            let Some(request) = self.window.requests.get_mut(&id) else { continue };
            let unsent = !request.sent() && !journal_failed;
            let result = match &request.stage {
                Stage::Replied(result) => result.clone(),
                _ if unsent => Err(ProposeError::NotSent { reason: NotSent::Closed(why.clone()) }),
                _ => Err(ProposeError::Unknown { ticket, reason: Unresolved::Closed }),
            };
            for (_, waiter) in std::mem::take(&mut request.waiters) {
                let event = Event::Proposed { waiter, request: Some(ticket), result: result.clone() };
                if unsent { self.tell_unsent(event) } else { self.events.push_back(event) }
            }
            if unsent {
                self.unsend(id);
            }
        }
        for (_, waiter) in self.reads.drain() {
            self.events.push_back(Event::Read { waiter, result: Err(ReadError::Closed(why.clone())) });
        }
        for fetch in std::mem::take(&mut self.fetches) {
            self.events.push_back(Event::Fetched { waiter: fetch.waiter, result: Err(StreamError::Closed(why.clone())) });
        }
        self.calls.clear();
        self.deadlines.clear();
        if journal_failed {
            self.records.clear();
            for after in std::mem::take(&mut self.after) {
                if let After::Tell(event) = after {
                    let event = self.journal_lost(event);
                    self.events.push_back(event);
                }
            }
        }
    }

    /// What an answer becomes when the journal could not take what it rests on.
    pub(super) fn journal_lost(&self, event: Event<W>) -> Event<W> {
        match event {
            Event::Proposed { waiter, request: Some(ticket), result: Err(ProposeError::NotSent { .. }) } => {
                let result = Err(ProposeError::Unknown { ticket, reason: Unresolved::Closed });
                Event::Proposed { waiter, request: Some(ticket), result }
            }
            Event::Reserved { waiter, .. } => Event::Reserved { waiter, result: Err(ReserveError::Deadline) },
            other => other,
        }
    }
}
