//! Proposals and tickets: queued until there is a session and room, issued an id, journaled, sent until answered.

use bytes::Bytes;
use relay::wire::{Code, FeedMode, WireReply};
use voter_mesh::ids::{RequestId, Time};
use voter_mesh::mutant;
use voter_mesh::outcome::Outcome;

use super::calls::Place;
use super::link::LinkSession;
use super::session::{Ended, Session};
use super::window::{Request, Stage};
use super::{After, Answer, CallId, Core, Event, LinkId, ProposeResult, Waiters, ms};
use crate::error::{GiveUpError, NotSent, ProposeError, ReserveError, Unresolved};
use crate::journal::record::Record;
use crate::ticket::Ticket;

/// Request ids per block: one durable journal write for so many.
const ID_BLOCK: u64 = 1_024;

/// Ids that a request can have. 0 marks internal records; the upper half leaves room to count on from any of them.
const ID: std::ops::Range<u64> = 1..1 << 63;

/// The first pause before a refused request is sent again, at most.
const REQUEST_RETRY_MS: u64 = 20;

/// Which call of a session's a request waits for.
pub(super) enum Queued<W: Waiters> {
    Propose { ticket: Option<Ticket>, payload: Bytes, waiter: W::Propose },
    Reserve { id: Option<RequestId>, waiter: W::Reserve },
}

impl<W: Waiters> Queued<W> {
    /// The call's answer, if it is not to be sent.
    pub(super) fn refused(self, propose: ProposeError, reserve: ReserveError) -> Event<W> {
        match self {
            Self::Propose { ticket, waiter, .. } => Event::Proposed { waiter, request: ticket, result: Err(propose) },
            Self::Reserve { waiter, .. } => Event::Reserved { waiter, result: Err(reserve) },
        }
    }
}

/// What a proposal does if the window is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// Waits for room until its deadline.
    Wait,
    /// Is refused at once.
    Refuse,
}

impl<W: Waiters> Core<W> {
    /// Proposes a command, under a ticket or the next id. The answer comes as an event.
    pub fn propose(
        &mut self,
        payload: Bytes,
        ticket: Option<Ticket>,
        when_full: WhenFull,
        deadline: Time,
        waiter: W::Propose,
    ) -> CallId {
        let call = self.new_call(deadline, Place::Queue);
        let refusal = if let Some(why) = &self.closed {
            Some(ProposeError::NotSent { reason: NotSent::Closed(why.clone()) })
        } else if let Session::Ended(_, why) = self.session {
            Some(why.unsent())
        } else if payload.len() > self.payload_bytes_max {
            Some(ProposeError::NotSent { reason: NotSent::TooLarge { bytes: payload.len(), max: self.payload_bytes_max } })
        } else if ticket.is_some_and(|ticket| self.session.id() != Some(ticket.session) || !ID.contains(&ticket.request.0)) {
            Some(ProposeError::ForeignTicket)
        } else if when_full == WhenFull::Refuse && (!self.queue.is_empty() || !self.window.has_room()) {
            Some(ProposeError::NotSent { reason: NotSent::WindowFull })
        } else if self.queue.len() >= self.options.limits.queue_max {
            Some(ProposeError::NotSent { reason: NotSent::QueueFull })
        } else {
            None
        };
        if let Some(error) = refusal {
            self.forget_call(call);
            self.events.push_back(Event::Proposed { waiter, request: None, result: Err(error) });
            return call;
        }
        self.queue.insert(call, Queued::Propose { ticket, payload, waiter });
        self.fill();
        call
    }

    /// Reserves an id: the one given, or the next one.
    pub fn reserve(&mut self, id: Option<RequestId>, deadline: Time, waiter: W::Reserve) -> CallId {
        let call = self.new_call(deadline, Place::Queue);
        let refusal = if let Some(why) = &self.closed {
            Some(ReserveError::Closed(why.clone()))
        } else if let Session::Ended(_, why) = self.session {
            Some(why.reserve())
        } else if id.is_some_and(|id| !ID.contains(&id.0)) {
            Some(ReserveError::BadId)
        } else if self.queue.len() >= self.options.limits.queue_max {
            Some(ReserveError::QueueFull)
        } else {
            None
        };
        if let Some(error) = refusal {
            self.forget_call(call);
            self.events.push_back(Event::Reserved { waiter, result: Err(error) });
            return call;
        }
        self.queue.insert(call, Queued::Reserve { id, waiter });
        self.fill();
        call
    }

    /// Waits for what becomes of a request that was proposed before.
    pub fn outcome(&mut self, ticket: Ticket, deadline: Time, waiter: W::Propose) -> CallId {
        let call = self.new_call(deadline, Place::Request(ticket.request));
        let result = match self.outcomes.remove(&ticket) {
            Some(result) => result,
            None if self.session.id() != Some(ticket.session) => Err(ProposeError::ForeignTicket),
            None => match self.window.requests.get_mut(&ticket.request) {
                Some(request) if matches!(request.stage, Stage::Open | Stage::Replied(..)) => {
                    if self.closed.is_none() {
                        request.waiters.push((call, waiter));
                        return call;
                    }
                    Err(ProposeError::Unknown { ticket, reason: Unresolved::Closed })
                }
                _ => Err(ProposeError::NoSuchRequest),
            },
        };
        self.forget_call(call);
        self.events.push_back(Event::Proposed { waiter, request: None, result });
        call
    }

    /// Gives back an outcome that nobody took: `outcome` asks for it.
    pub fn keep_outcome(&mut self, ticket: Ticket, result: Result<Answer, ProposeError>) {
        if matches!(result, Err(ProposeError::Unknown { reason: Unresolved::Deadline, .. } | ProposeError::NotSent { .. })) {
            return;
        }
        self.outcomes.insert(ticket, result);
        if self.outcomes.len() > self.options.limits.outcomes_max {
            self.outcomes.pop_first();
        }
    }

    /// Gives up a ticket that was reserved and never proposed under.
    ///
    /// # Errors
    /// [`GiveUpError`]; nothing has changed.
    pub fn release(&mut self, ticket: Ticket) -> Result<(), GiveUpError> {
        if self.session.id() != Some(ticket.session) {
            return Err(GiveUpError::ForeignTicket);
        }
        match self.window.requests.get(&ticket.request).map(|request| &request.stage) {
            Some(Stage::Reserved) => {}
            Some(Stage::Open | Stage::Replied(..)) => return Err(GiveUpError::InFlight),
            Some(Stage::Done) | None => return Err(GiveUpError::NoSuchRequest),
        }
        self.give_up(ticket.request);
        self.fill();
        Ok(())
    }

    /// Gives up a request whatever has become of it: it is not sent again, and may have been applied.
    ///
    /// # Errors
    /// [`GiveUpError`]; nothing has changed.
    pub fn abandon(&mut self, ticket: Ticket) -> Result<(), GiveUpError> {
        if self.session.id() != Some(ticket.session) {
            return Err(GiveUpError::ForeignTicket);
        }
        let request = self.window.requests.get_mut(&ticket.request).filter(|request| !matches!(request.stage, Stage::Done));
        let Some(request) = request else { return Err(GiveUpError::NoSuchRequest) };
        for (call, waiter) in std::mem::take(&mut request.waiters) {
            self.forget_call(call);
            let result = Err(ProposeError::Unknown { ticket, reason: Unresolved::Abandoned });
            self.events.push_back(Event::Proposed { waiter, request: None, result });
        }
        self.give_up(ticket.request);
        self.fill();
        Ok(())
    }

    /// Requests and tickets that are open: with their command, or without one if only reserved.
    #[must_use]
    pub fn unanswered(&self) -> Vec<(Ticket, Option<Bytes>)> {
        let requests = self.window.requests.iter().filter_map(|(id, request)| {
            let payload = match request.stage {
                Stage::Open | Stage::Replied(..) => Some(request.payload.clone()),
                Stage::Reserved => None,
                Stage::Done => return None,
            };
            Some((self.ticket(*id)?, payload))
        });
        requests.collect()
    }

    /// Takes a waiter off its request, with what it is told, and whether that must be journaled first. A request that nobody waits
    /// for and that no server can have seen is given up.
    pub(super) fn drop_waiter(&mut self, id: RequestId, call: CallId) -> Option<(W::Propose, ProposeError, bool)> {
        let ticket = self.ticket(id)?;
        let request = self.window.requests.get_mut(&id)?;
        let at = request.waiters.iter().position(|(other, _)| *other == call)?;
        let (_, waiter) = request.waiters.swap_remove(at);
        if request.waiters.is_empty() && !request.sent() && matches!(request.stage, Stage::Open) {
            self.unsend(id);
            return Some((waiter, ProposeError::NotSent { reason: NotSent::Deadline }, true));
        }
        Some((waiter, ProposeError::Unknown { ticket, reason: Unresolved::Deadline }, false))
    }

    /// A request that no server has seen is forgotten; a ticket that the application holds stays reserved.
    pub(super) fn unsend(&mut self, id: RequestId) {
        match self.window.requests.get_mut(&id).filter(|request| request.reserved) {
            Some(request) => {
                *request = Request::new(Stage::Reserved, Bytes::new());
                self.records.push(Record::Reserved(id));
            }
            None => self.give_up(id),
        }
    }

    fn give_up(&mut self, id: RequestId) {
        self.records.push(Record::Answered(id));
        self.window.done(id);
    }

    /// Moves calls from the queue into the window while there is room.
    pub(super) fn fill(&mut self) {
        if self.queue.is_empty() || self.closed.is_some() {
            return;
        }
        if !self.session.is_live() {
            self.pursue_session();
            return;
        }
        while let Some((&call, queued)) = self.queue.first_key_value() {
            let placed = match queued {
                Queued::Propose { ticket: Some(ticket), .. } => self.window.requests.contains_key(&ticket.request),
                _ => false,
            };
            if !placed && !self.window.has_room() {
                return;
            }
            let Some((_, queued)) = self.queue.pop_first() else { return };
            match queued {
                Queued::Propose { ticket, payload, waiter } => {
                    let id = ticket.map_or(self.window.next, |ticket| ticket.request);
                    self.open_request(call, id, ticket.is_some(), payload, waiter);
                }
                Queued::Reserve { id, waiter } => {
                    self.forget_call(call);
                    let id = id.unwrap_or(self.window.next);
                    self.issue(id);
                    self.window.requests.entry(id).or_insert_with(|| Request::new(Stage::Reserved, Bytes::new()));
                    self.records.push(Record::Reserved(id));
                    let Some(ticket) = self.ticket(id) else { return };
                    self.after.push(After::Tell(Event::Reserved { waiter, result: Ok(ticket) }));
                }
            }
        }
    }

    /// Marks an id as issued: never again by this journal. A new block is journaled before anything that uses it.
    fn issue(&mut self, id: RequestId) {
        if id >= self.window.next {
            self.window.next = RequestId(id.0.saturating_add(1));
        }
        if self.window.next > self.window.block_end {
            self.window.block_end = RequestId((self.window.next.0 / ID_BLOCK + 1).saturating_mul(ID_BLOCK));
            if !mutant!("ids_not_journaled") {
                self.records.push(Record::IdEnd(self.window.block_end));
                self.records_durable = true;
            }
        }
    }

    fn open_request(&mut self, call: CallId, id: RequestId, reserved: bool, payload: Bytes, waiter: W::Propose) {
        self.issue(id);
        let request = self.window.requests.entry(id).or_insert_with(|| Request::new(Stage::Reserved, Bytes::new()));
        match request.stage {
            Stage::Open | Stage::Replied(..) if request.payload != payload => {
                self.forget_call(call);
                self.events.push_back(Event::Proposed { waiter, request: None, result: Err(ProposeError::Conflict) });
                return;
            }
            Stage::Open | Stage::Replied(..) => {}
            Stage::Reserved | Stage::Done => {
                *request = Request::new(Stage::Open, payload.clone());
                request.reserved = reserved;
                self.records.push(Record::Request(id, payload));
                self.after.push(After::Send(id));
            }
        }
        request.waiters.push((call, waiter));
        if let Some((_, place)) = self.calls.get_mut(&call) {
            *place = Place::Request(id);
        }
    }

    /// After a change of link, everything that is unanswered goes out again.
    pub(super) fn requeue_requests(&mut self) {
        if mutant!("retry_under_a_new_id") {
            self.rename_requests();
        }
        self.retries.clear();
        self.window.to_send = self
            .window
            .requests
            .iter()
            .filter(|(_, request)| matches!(request.stage, Stage::Open) && request.journaled)
            .map(|(id, _)| *id)
            .collect();
    }

    pub(super) fn requests_refused(&mut self, link: LinkId, ids: &[RequestId], code: Code, retry_after_ms: Option<u32>, now: Time) {
        if self.first != Some(link) {
            return;
        }
        // The server has forgotten whose link this is: it is told again before anything is sent again.
        if let (Code::Auth, Some(link)) = (code, self.links.get_mut(&link)) {
            link.session = LinkSession::Unknown;
            self.pursue_session();
        }
        for id in ids {
            let Some(ticket) = self.ticket(*id) else { return };
            let Some(request) = self.window.requests.get_mut(id).filter(|request| matches!(request.stage, Stage::Open)) else {
                continue;
            };
            request.refusals += 1;
            // No server will ever take it.
            if matches!(code, Code::TooLarge | Code::Malformed) {
                let result = if request.copies == 1 {
                    ProposeError::NotSent { reason: NotSent::Refused(code) }
                } else {
                    ProposeError::Unknown { ticket, reason: Unresolved::Abandoned }
                };
                self.finish(*id, Err(result));
                continue;
            }
            let ceiling_ms = (REQUEST_RETRY_MS << request.refusals.min(6)).max(1);
            let wait_us = ms(u64::from(retry_after_ms.unwrap_or(0)).min(60_000)) + self.randomness.below(ms(ceiling_ms));
            self.retries.insert((now.monotonic_us + wait_us, *id));
        }
    }

    /// A seeded bug: what was sent and not answered is proposed again as something new.
    fn rename_requests(&mut self) {
        let sent = self.window.requests.iter().filter(|(_, request)| matches!(request.stage, Stage::Open) && request.sent());
        for old in sent.map(|(id, _)| *id).collect::<Vec<_>>() {
            let new = self.window.next;
            let Some(request) = self.window.requests.get_mut(&old) else { continue };
            let mut renamed = Request::new(Stage::Open, request.payload.clone());
            renamed.waiters = std::mem::take(&mut request.waiters);
            for (call, _) in &renamed.waiters {
                if let Some((_, place)) = self.calls.get_mut(call) {
                    *place = Place::Request(new);
                }
            }
            self.issue(new);
            self.records.push(Record::Request(new, renamed.payload.clone()));
            self.after.push(After::Send(new));
            self.window.requests.insert(new, renamed);
            self.give_up(old);
        }
    }

    pub(super) fn retry_requests(&mut self, now: Time) {
        while let Some(&(at, id)) = self.retries.first().filter(|(at, _)| *at <= now.monotonic_us) {
            self.retries.remove(&(at, id));
            self.window.to_send.push_back(id);
        }
    }

    pub(super) fn take_reply(&mut self, reply: WireReply) {
        let WireReply { id, index, term, payload_crc, repeat, outcome } = reply;
        let Some(request) = self.window.requests.get_mut(&id).filter(|request| matches!(request.stage, Stage::Open)) else {
            return;
        };
        self.acknowledged = self.acknowledged.max(index);
        let is_its_own = payload_crc == crc32c::crc32c(&request.payload);
        let result = match outcome {
            // What became of another command under the same id, and with that of this one.
            Outcome::Applied(_) | Outcome::Elided(_) | Outcome::Undecodable if !is_its_own => Err(ProposeError::Conflict),
            // The other command had no effect because of what came before it. That may be this one.
            Outcome::Conflict if !is_its_own => return,
            Outcome::Applied(reply) => Ok(Answer { index, term, repeat, reply }),
            Outcome::Elided(hash) => Err(ProposeError::Elided { index, term, hash }),
            Outcome::Undecodable => Err(ProposeError::Undecodable),
            Outcome::Conflict => Err(ProposeError::Conflict),
            Outcome::Stale => Err(ProposeError::Stale),
            Outcome::WindowBroken => Err(ProposeError::WindowBroken),
            Outcome::SessionExpired => return self.end_session(Ended::Expired),
            Outcome::Superseded(current) => return self.end_session(Ended::Superseded(current)),
        };
        request.stage = Stage::Replied(result);
        let applied = self.position.is_some_and(|(applied, _)| applied >= index);
        if applied || self.options.feed == FeedMode::Thin || mutant!("answered_before_applied") {
            self.settle(id);
        } else {
            self.replied.insert((index, id));
        }
    }

    /// The reply is there and its index is applied.
    pub(super) fn settle(&mut self, id: RequestId) {
        let Some(request) = self.window.requests.get_mut(&id) else { return };
        if let Stage::Replied(result) = std::mem::replace(&mut request.stage, Stage::Open) {
            self.finish(id, result);
        }
    }

    fn finish(&mut self, id: RequestId, result: ProposeResult) {
        let Some(ticket) = self.ticket(id) else { return };
        let Some(request) = self.window.requests.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut request.waiters);
        self.give_up(id);
        self.tell(ticket, waiters, result);
    }

    /// Tells everyone who waits for a request; if nobody does, keeps it for who asks.
    pub(super) fn tell(&mut self, ticket: Ticket, mut waiters: Vec<(CallId, W::Propose)>, result: ProposeResult) {
        let Some((last, waiter)) = waiters.pop() else { return self.keep_outcome(ticket, result) };
        for (call, waiter) in waiters {
            self.forget_call(call);
            self.events.push_back(Event::Proposed { waiter, request: Some(ticket), result: result.clone() });
        }
        self.forget_call(last);
        self.events.push_back(Event::Proposed { waiter, request: Some(ticket), result });
    }
}
