//! The application's calls: proposals, tickets, reads and fetches, each with a deadline and an answer.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use relay::wire::{Code, FeedMode, WireReply};
use voter_mesh::ids::{LogIndex, RequestId, Time};
use voter_mesh::outcome::Outcome;
use voter_mesh::run::RunHeader;

use super::links::{LinkSession, Say};
use super::session::{Ended, Session};
use super::window::{Request, Stage, Window};
use super::{After, Answer, CallId, Core, Event, LinkId, Waiters, ms};
use crate::error::{GiveUpError, NotSent, ProposeError, ReadError, ReserveError, StreamError, Unresolved};
use crate::journal::record::Record;
use crate::status::{CloseReason, LinkError};
use crate::ticket::Ticket;

/// Request ids per block: one durable journal write for so many.
const ID_BLOCK: u64 = 1_024;

/// Ids that a request can have. 0 marks internal records; the upper half leaves room to count on from any of them.
const ID: std::ops::Range<u64> = 1..1 << 63;

/// How soon a refused read is asked again, at most.
const READ_RETRY_MS: u64 = 50;

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

/// Where a call waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Queue,
    Request(RequestId),
    Read,
    Fetch,
}

pub(super) struct Reads<R> {
    waiting: BTreeMap<CallId, R>,
    asked: Option<(u64, BTreeMap<CallId, R>)>,
    next: u64,
    pub(super) retry_at_us: Option<u64>,
    /// By the index that must be applied first.
    at: BTreeMap<(LogIndex, CallId), R>,
}

impl<R> Default for Reads<R> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), asked: None, next: 1, retry_at_us: None, at: BTreeMap::new() }
    }
}

impl<R> Reads<R> {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.asked.as_ref().map_or(0, |(_, reads)| reads.len()) + self.at.len()
    }

    /// What was asked on another link is asked anew.
    pub(super) fn link_changed(&mut self) {
        if let Some((_, mut reads)) = self.asked.take() {
            self.waiting.append(&mut reads);
        }
        self.retry_at_us = None;
    }

    fn remove(&mut self, call: CallId) -> Option<R> {
        if let Some(read) = self.waiting.remove(&call) {
            return Some(read);
        }
        if let Some(read) = self.asked.as_mut().and_then(|(_, reads)| reads.remove(&call)) {
            return Some(read);
        }
        let key = self.at.keys().find(|(_, other)| *other == call).copied()?;
        self.at.remove(&key)
    }

    fn drain(&mut self) -> impl Iterator<Item = (CallId, R)> + use<R> {
        let asked = self.asked.take().map(|(_, reads)| reads).unwrap_or_default();
        let at = std::mem::take(&mut self.at).into_iter().map(|((_, call), read)| (call, read));
        std::mem::take(&mut self.waiting).into_iter().chain(asked).chain(at)
    }
}

/// Bytes of committed runs that are collected for one answer, about.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// The answer to the fetch that is asked, as far as it came.
pub(super) struct Collected {
    next: LogIndex,
    to: LogIndex,
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Enough came; the rest is dropped.
    answered: bool,
}

/// The first and last entry of blocks of runs and verdicts.
fn span(blocks: &Bytes) -> Option<(LogIndex, LogIndex)> {
    let (mut rest, mut span) = (&blocks[..], None);
    while !rest.is_empty() {
        let header = RunHeader::decode(rest).ok()?;
        rest = rest.get(header.whole_bytes() + header.verdict_bytes()..)?;
        let first = span.map_or(header.first, |(first, _)| first);
        span = Some((first, header.last()));
    }
    span
}

pub(super) struct Fetching<F> {
    call: CallId,
    from: LogIndex,
    to: LogIndex,
    waiter: F,
}

/// What a proposal does if the window is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// Waits for room until its deadline.
    Wait,
    /// Is refused at once.
    Refuse,
}

/// What a read must see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadAfter {
    /// Everything that this session has seen acknowledged.
    Session,
    /// Everything that anyone has seen acknowledged.
    Linearizable,
}

impl<P> Window<P> {
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
}

impl<W: Waiters> Core<W> {
    fn new_call(&mut self, deadline: Time, place: Place) -> CallId {
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

    fn ticket(&self, request: RequestId) -> Option<Ticket> {
        self.session.id().map(|session| Ticket { session, request })
    }

    /// Proposes a command, under a ticket or the next id. The answer comes as an event.
    pub fn propose(
        &mut self,
        payload: Bytes,
        ticket: Option<Ticket>,
        when_full: WhenFull,
        deadline: Time,
        waiter: W::Propose,
        now: Time,
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
        self.fill(now);
        call
    }

    /// Reserves an id: the one given, or the next one.
    pub fn reserve(&mut self, id: Option<RequestId>, deadline: Time, waiter: W::Reserve, now: Time) -> CallId {
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
        self.fill(now);
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
    pub fn release(&mut self, ticket: Ticket, now: Time) -> Result<(), GiveUpError> {
        if self.session.id() != Some(ticket.session) {
            return Err(GiveUpError::ForeignTicket);
        }
        match self.window.requests.get(&ticket.request).map(|request| &request.stage) {
            Some(Stage::Reserved) => {}
            Some(Stage::Open | Stage::Replied(..)) => return Err(GiveUpError::InFlight),
            Some(Stage::Done) | None => return Err(GiveUpError::NoSuchRequest),
        }
        self.give_up(ticket.request);
        self.fill(now);
        Ok(())
    }

    /// Gives up a request whatever has become of it: it is not sent again, and may have been applied.
    ///
    /// # Errors
    /// [`GiveUpError`]; nothing has changed.
    pub fn abandon(&mut self, ticket: Ticket, now: Time) -> Result<(), GiveUpError> {
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
        self.fill(now);
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

    /// Waits until the learner has what a read must see.
    pub fn read(&mut self, after: ReadAfter, deadline: Time, waiter: W::Read, now: Time) -> CallId {
        let call = self.new_call(deadline, Place::Read);
        let refusal = if let Some(why) = &self.closed {
            Some(ReadError::Closed(why.clone()))
        } else if self.reads.len() >= self.options.limits.queue_max {
            Some(ReadError::QueueFull)
        } else {
            None
        };
        if let Some(error) = refusal {
            self.forget_call(call);
            self.events.push_back(Event::Read { waiter, result: Err(error) });
            return call;
        }
        match after {
            ReadAfter::Session => {
                self.reads.at.insert((self.acknowledged, call), waiter);
                let (applied, _) = self.position.unwrap_or_default();
                self.answer_reads(applied);
            }
            ReadAfter::Linearizable => {
                self.reads.waiting.insert(call, waiter);
                self.ask_reads(now);
            }
        }
        call
    }

    /// Asks the entry server for committed runs that the client does not keep. Waits as long as it takes.
    pub fn fetch(&mut self, from: LogIndex, to: LogIndex, waiter: W::Fetch) -> CallId {
        let never = Time { monotonic_us: u64::MAX, ..Time::default() };
        let call = self.new_call(never, Place::Fetch);
        if let Some(why) = &self.closed {
            let result = Err(StreamError::Closed(why.clone()));
            self.events.push_back(Event::Fetched { waiter, result });
            self.forget_call(call);
            return call;
        }
        self.fetches.push_back(Fetching { call, from, to, waiter });
        self.ask_fetch();
        call
    }

    /// Nobody waits for this call any more: the same as its deadline, without an answer.
    pub fn cancel(&mut self, call: CallId, now: Time) {
        match self.forget_call(call) {
            Some(Place::Queue) => {
                self.queue.remove(&call);
            }
            Some(Place::Request(id)) => {
                self.drop_waiter(id, call);
                self.fill(now);
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
                        if kept { self.after.push(After::Tell(event)) } else { self.events.push_back(event) }
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

    /// Takes a waiter off its request, with what it is told, and whether that must be journaled first. A request that nobody waits
    /// for and that no server can have seen is given up.
    fn drop_waiter(&mut self, id: RequestId, call: CallId) -> Option<(W::Propose, ProposeError, bool)> {
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
    fn unsend(&mut self, id: RequestId) {
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
    pub(super) fn fill(&mut self, _now: Time) {
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
            self.records.push(Record::IdEnd(self.window.block_end));
            self.records_durable = true;
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

    pub(super) fn retry_requests(&mut self, now: Time) {
        while let Some(&(at, id)) = self.retries.first().filter(|(at, _)| *at <= now.monotonic_us) {
            self.retries.remove(&(at, id));
            self.window.to_send.push_back(id);
        }
    }

    pub(super) fn take_reply(&mut self, reply: WireReply) {
        let WireReply { id, index, term, repeat, outcome } = reply;
        let Some(request) = self.window.requests.get_mut(&id).filter(|request| matches!(request.stage, Stage::Open)) else {
            return;
        };
        self.acknowledged = self.acknowledged.max(index);
        let result = match outcome {
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
        if applied || self.options.feed == FeedMode::Thin {
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

    fn finish(&mut self, id: RequestId, result: super::ProposeResult) {
        let Some(ticket) = self.ticket(id) else { return };
        let Some(request) = self.window.requests.get_mut(&id) else { return };
        let waiters = std::mem::take(&mut request.waiters);
        self.give_up(id);
        self.tell(ticket, waiters, result);
    }

    /// Tells everyone who waits for a request; if nobody does, keeps it for who asks.
    pub(super) fn tell(&mut self, ticket: Ticket, mut waiters: Vec<(CallId, W::Propose)>, result: super::ProposeResult) {
        let Some((last, waiter)) = waiters.pop() else { return self.keep_outcome(ticket, result) };
        for (call, waiter) in waiters {
            self.forget_call(call);
            self.events.push_back(Event::Proposed { waiter, request: Some(ticket), result: result.clone() });
        }
        self.forget_call(last);
        self.events.push_back(Event::Proposed { waiter, request: Some(ticket), result });
    }

    /// Asks for one read index on behalf of all reads that wait, one question at a time.
    pub(super) fn ask_reads(&mut self, now: Time) {
        if self.reads.retry_at_us.is_some_and(|at| at > now.monotonic_us) {
            return;
        }
        self.reads.retry_at_us = None;
        if self.reads.asked.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) else { return };
        let id = self.reads.next;
        self.reads.next += 1;
        self.reads.asked = Some((id, std::mem::take(&mut self.reads.waiting)));
        link.say(Say::ReadIndex(id));
    }

    pub(super) fn take_read(&mut self, id: u64, index: LogIndex, now: Time) {
        if let Some((_, reads)) = self.reads.asked.take_if(|(asked, _)| *asked == id) {
            self.reads.at.extend(reads.into_iter().map(|(call, read)| ((index, call), read)));
            let (applied, _) = self.position.unwrap_or_default();
            self.answer_reads(applied);
            self.ask_reads(now);
        }
    }

    pub(super) fn read_refused(&mut self, id: u64, now: Time) {
        if let Some((_, mut reads)) = self.reads.asked.take_if(|(asked, _)| *asked == id) {
            self.reads.waiting.append(&mut reads);
            self.reads.retry_at_us = Some(now.monotonic_us + ms(1) + self.randomness.below(ms(READ_RETRY_MS)));
        }
    }

    pub(super) fn answer_reads(&mut self, applied: LogIndex) {
        while let Some(entry) = self.reads.at.first_entry().filter(|entry| entry.key().0 <= applied) {
            let ((_, call), waiter) = entry.remove_entry();
            self.forget_call(call);
            self.events.push_back(Event::Read { waiter, result: Ok(()) });
        }
    }

    pub(super) fn ask_fetch(&mut self) {
        if self.fetching.is_some() {
            return;
        }
        let Some(fetch) = self.fetches.front() else { return };
        let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) else { return };
        link.say(Say::Fetch(fetch.from, fetch.to));
        self.fetching = Some(Collected { next: fetch.from, to: fetch.to, pieces: Vec::new(), bytes: 0, answered: false });
    }

    /// A piece of the answer to a fetch: blocks up to the last one asked for, or none if the server has no more.
    pub(super) fn fetched(&mut self, blocks: Bytes) -> Result<(), LinkError> {
        let Some(fetching) = &mut self.fetching else { return Ok(()) };
        let mut done = blocks.is_empty();
        if !done {
            let (first, last) = span(&blocks).ok_or(LinkError::Malformed("runs"))?;
            if !(first..=last).contains(&fetching.next) {
                return Err(LinkError::Malformed("runs out of place"));
            }
            fetching.next = last.next();
            done = last >= fetching.to;
            if !fetching.answered {
                fetching.bytes += blocks.len();
                fetching.pieces.push(blocks);
            }
        }
        if (done || fetching.bytes >= FETCH_BYTES_MAX) && !fetching.answered {
            fetching.answered = true;
            let pieces = std::mem::take(&mut fetching.pieces);
            self.answer_fetch(Ok(pieces));
        }
        if done {
            self.fetching = None;
            self.ask_fetch();
        }
        Ok(())
    }

    /// The server does not keep what comes next.
    pub(super) fn trimmed(&mut self, first: LogIndex) {
        let Some(fetching) = self.fetching.take() else { return };
        if !fetching.answered {
            let none = fetching.pieces.is_empty();
            self.answer_fetch(if none { Err(StreamError::Trimmed { first }) } else { Ok(fetching.pieces) });
        }
        self.ask_fetch();
    }

    fn answer_fetch(&mut self, result: Result<Vec<Bytes>, StreamError>) {
        if let Some(fetch) = self.fetches.pop_front()
            && self.forget_call(fetch.call).is_some()
        {
            self.events.push_back(Event::Fetched { waiter: fetch.waiter, result });
        }
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
                if unsent { self.after.push(After::Tell(event)) } else { self.events.push_back(event) }
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
