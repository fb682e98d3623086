//! The room of one server: its links from the handshake to the last frame. Pure: time comes in as an argument, frames leave through
//! polls; it never learns what a command means, and decides nothing about consensus.
//!
//! # Driving it
//! * Call `handle_*` as things happen. After any of them, and when [`Room::poll_timeout`] is due: [`Room::handle_timeout`] if it is,
//!   then [`Room::poll_event`] until it is empty, and [`Room::poll_wake`]: some at a time where there are many, but soon.
//! * A woken link has something to write: when its socket takes bytes, call [`Room::poll_transmit`], write all of `out`, and call
//!   again while it says [`Transmit::More`]. After [`Transmit::Idle`] wait for the next wake; after [`Transmit::CloseAfter`] close
//!   the socket. Where [`Room::is_asking`] then, something is to be read for it: poll the events soon. A socket that takes nothing is simply not polled: what it misses is bounded here.
//! * Drop the sockets of [`Room::poll_abort`]: half-open ones never take their goodbye.
//! * Every link that was connected is disconnected once, however it ends; that releases all that it held.
//! * [`Room::handle_applied`] gets every run that the replica applies, in order, and [`Room::handle_restored`] each jump;
//!   [`Room::handle_kept`] how far back the owner's log reaches, whenever that changes.
//! * What the room asks its owner to read ([`RoomEvent::RunsWanted`], [`RoomEvent::PieceWanted`]) is always answered, if only with
//!   nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use voter_mesh::ids::{Chain, Identity, LogIndex, RaftId, ReadId, SessionId, Time};
use voter_mesh::replica::Applied;
use voter_mesh::session::Sessions;

use crate::feed::Feed;
use crate::wire::{ClientFrame, Code, FeedMode, PartialState, ServerEntry, ServerFrame, WireError};

mod admission;
mod cold;
mod limits;
mod link;
mod proposals;
mod reads;
mod shelf;
mod states;
mod transmit;

pub use limits::RoomLimits;
pub use link::LinkId;
pub use states::{ClientState, STATE_PIECE_BYTES};
pub use transmit::Transmit;

use link::{Delivery, Links, List, NumberMap, Phase, Wanted};
use reads::Reads;
use shelf::Shelf;
use states::States;

/// What makes a room this server's.
#[derive(Clone, Debug)]
pub struct RoomOptions {
    /// The history that it serves.
    pub identity: Identity,
    /// The room's name, as clients ask for it.
    pub name: String,
    /// This server.
    pub server: RaftId,
    /// The state machine's name and version.
    pub machine: (String, u32),
    /// Its bounds.
    pub limits: RoomLimits,
    /// All servers that clients may go to.
    pub endpoints: Vec<ServerEntry>,
}

/// What the owner of a room must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RoomEvent {
    /// Bring these entries, laid out end to end, to the leader.
    Propose(Bytes),
    /// Find an index for this read and answer with [`Room::handle_read`].
    Read(ReadId),
    /// Nobody waits for this read any more.
    ReadCancelled(ReadId),
    /// Read the runs from the one that holds `from` on, about a mebibyte of them, and answer with [`Room::handle_runs`].
    RunsWanted {
        /// The first entry that a client needs.
        from: LogIndex,
    },
    /// Have a state ready that stands at `least` or later, and answer with [`Room::handle_state`]. Best one at which all servers have
    /// the same, because a client that loses its link then goes on elsewhere; best of all the one that `partial` is a part of.
    StateWanted {
        /// Behind this entry the feed can go on.
        least: LogIndex,
        /// What the client has of a state.
        partial: Option<PartialState>,
    },
    /// Read [`STATE_PIECE_BYTES`] of the state that stands at `index`, from `offset` on, and answer with [`Room::handle_piece`].
    PieceWanted {
        /// The state.
        index: LogIndex,
        /// Where the piece begins.
        offset: u64,
    },
    /// Tell the leader which sessions came and went here. A session in both lists came and went, or just went: apply `attached` first.
    Activity {
        /// Sessions that have, or had, a link here since the last report.
        attached: Vec<SessionId>,
        /// Those of them that have none now.
        detached: Vec<SessionId>,
    },
}

/// What a room has seen, for the operator.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Links let in.
    pub admitted: u64,
    /// Links refused before they were let in, by code.
    pub refused: BTreeMap<Code, u64>,
    /// Links closed by this server after they were let in, by code.
    pub closed: BTreeMap<Code, u64>,
    /// Messages of a kind that no client of any version sends: another protocol's, such as the mesh's.
    pub unknown_kinds: u64,
    /// Messages that did not decode.
    pub malformed: u64,
    /// Proposals laid out for the leader.
    pub proposals: u64,
    /// Proposals refused.
    pub proposals_refused: u64,
    /// Outcomes sent.
    pub replies: u64,
    /// Reads that asked for an index.
    pub reads: u64,
    /// Reads refused.
    pub reads_refused: u64,
    /// Snapshots begun.
    pub snapshots: u64,
    /// Snapshots that went on where another link had ended.
    pub snapshots_resumed: u64,
    /// Chunks of old runs that were read.
    pub chunks_read: u64,
    /// Pieces of states that were read.
    pub pieces_read: u64,
}

/// A link, for the operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    /// Which.
    pub link: LinkId,
    /// Where it comes from.
    pub address: IpAddr,
    /// What it receives.
    pub feed: FeedMode,
    /// The session that it speaks for.
    pub session: Option<SessionId>,
    /// How far its learner said it has applied.
    pub acked: LogIndex,
}

/// How much longer than others those who only follow the feed stay at a server that knows of no leader: they may be very many.
const FOLLOWERS_STAY: u32 = 4;

/// No log below the ring.
const NOTHING_KEPT: LogIndex = LogIndex(u64::MAX);

/// All clients of one server. How to drive it: see the module.
#[derive(Debug)]
pub struct Room {
    options: RoomOptions,
    feed: Feed,
    links: Links,
    addresses: BTreeMap<IpAddr, usize>,
    /// Links by the session that they speak for.
    attached: NumberMap<SessionId, Vec<LinkId>>,
    /// Links by the hash of the secret of their unanswered `SessionOpen`.
    opening: BTreeMap<[u8; 32], Vec<LinkId>>,
    /// Sessions that came or went since the last report.
    activity: BTreeSet<SessionId>,
    activity_due: Option<Time>,
    /// Entries laid out end to end, for the owner to take.
    batch: BytesMut,
    reads: Reads,
    events: VecDeque<RoomEvent>,
    leader: Option<RaftId>,
    /// While no leader is known: when those that wait are sent elsewhere, and how often that was done.
    leaderless_due: Option<Time>,
    leaderless_rounds: u32,
    overloaded: bool,
    recovering: bool,
    closing: Option<(Code, Option<u32>)>,
    /// The lowest index that a waiting link waits for.
    awaited: Option<LogIndex>,
    /// Waiting links may be able to go on.
    revisit: bool,
    /// The first entry that the owner's log holds with its verdicts.
    kept_first: LogIndex,
    /// Chunks of runs that lie below the ring.
    runs: Shelf<LogIndex, Feed>,
    states: States,
    /// Before this, no pass over the feed's cursors begins.
    feed_next: Time,
    feed_due: Option<Time>,
    /// How far the feed went when the last pass began.
    passed: LogIndex,
    /// When the pass began that is under way.
    passing: Option<Time>,
    commit_next: Time,
    commit_due: Option<Time>,
    /// What standby links are told.
    commit: (LogIndex, Chain),
    aborts: VecDeque<LinkId>,
    counters: Counters,
}

impl Room {
    /// An empty room behind `tail`: the last applied entry and the chain after it.
    #[must_use]
    pub fn new(options: RoomOptions, tail: (LogIndex, Chain), now: Time) -> Self {
        Self {
            feed: Feed::new(options.limits.feed, tail.0, tail.1),
            runs: Shelf::new(options.limits.runs_kept_max, options.limits.reading_max),
            states: States::new(&options.limits),
            leaderless_due: None,
            leaderless_rounds: 0,
            options,
            links: Links::default(),
            addresses: BTreeMap::new(),
            attached: NumberMap::default(),
            opening: BTreeMap::new(),
            activity: BTreeSet::new(),
            activity_due: None,
            batch: BytesMut::new(),
            reads: Reads::default(),
            events: VecDeque::new(),
            leader: None,
            overloaded: false,
            recovering: false,
            closing: None,
            awaited: None,
            revisit: false,
            kept_first: NOTHING_KEPT,
            feed_next: now,
            feed_due: None,
            passed: tail.0,
            passing: None,
            commit_next: now,
            commit_due: None,
            commit: tail,
            aborts: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// A client has connected; its hello is awaited.
    ///
    /// # Errors
    /// `Overloaded` or the code of the shutdown: nothing was kept; tell the client with [`ServerFrame::Refuse`] and close.
    pub fn handle_connected(&mut self, link: LinkId, address: IpAddr, now: Time) -> Result<(), Code> {
        let limits = &self.options.limits;
        let from_here = self.addresses.get(&address).copied().unwrap_or(0);
        let refused = match self.closing {
            Some((code, _)) => Some(code),
            None if self.links.len() >= limits.links_max || from_here >= limits.links_per_address_max => Some(Code::Overloaded),
            None => None,
        };
        if let Some(code) = refused {
            *self.counters.refused.entry(code).or_default() += 1;
            return Err(code);
        }
        self.addresses.insert(address, from_here + 1);
        self.links.insert(link, address, now.plus_ms(limits.handshake_ms), now);
        Ok(())
    }

    /// A message from a client: the body of one binary WebSocket message.
    ///
    /// # Errors
    /// Why the link ends: its last frame is queued. An unknown link is told nothing.
    pub fn handle_frame(&mut self, id: LinkId, bytes: Bytes, sessions: &Sessions, now: Time) -> Result<(), Code> {
        let Some(link) = self.links.get(id) else { return Ok(()) };
        let phase = link.phase;
        if let Phase::Closing(code) = phase {
            return Err(code);
        }
        link.heard = now;
        if bytes.len() > self.options.limits.message_bytes_max {
            self.counters.malformed += 1;
            return self.close(id, Code::TooLarge, None, now);
        }
        let frame = match ClientFrame::decode(&bytes) {
            Ok(frame) => frame,
            Err(error) => {
                match error {
                    WireError::UnknownKind(_) => self.counters.unknown_kinds += 1,
                    WireError::Version(_) => {}
                    _ => self.counters.malformed += 1,
                }
                return self.close(id, error.code(), None, now);
            }
        };
        match (phase, frame) {
            (Phase::Handshaking(_), ClientFrame::Hello(hello)) => self.greet(id, hello, sessions, now),
            // Before it is admitted a client says nothing else, and afterwards no second hello.
            (Phase::Handshaking(_), _) | (_, ClientFrame::Hello(_)) => {
                self.counters.malformed += 1;
                self.close(id, Code::Malformed, None, now)
            }
            (_, ClientFrame::Propose(proposals)) => self.propose(id, &proposals, now),
            (_, ClientFrame::SessionOpen { secret }) => self.open_session(id, &secret, sessions, now),
            (_, ClientFrame::SessionAttach { nonce, previous }) => self.attach_session(id, nonce, previous, sessions, now),
            (_, ClientFrame::SessionClose) => self.close_session(id, now),
            (_, ClientFrame::Resume { resume, feed, unanswered, partial }) => {
                self.resume(id, feed, Wanted::Resume { resume, unanswered, partial }, sessions, now)
            }
            (_, ClientFrame::ReadIndex { id: question }) => self.read(id, question, now),
            (_, ClientFrame::Fetch { from, to }) => self.fetch(id, from, to, now),
            (_, ClientFrame::Ack { applied }) => {
                if let Some(link) = self.links.get(id) {
                    link.acked = applied;
                }
                Ok(())
            }
            (_, ClientFrame::Ping { nonce }) => self.send(id, &ServerFrame::Pong { nonce }, now),
        }
    }

    /// What came on the link is no message of ours, or is over the limit (`TooLarge`), as its socket already knows: it ends.
    pub fn handle_violation(&mut self, id: LinkId, code: Code, now: Time) {
        if self.links.get(id).is_some_and(|link| !matches!(link.phase, Phase::Closing(_))) {
            self.counters.malformed += 1;
            let _ = self.close(id, code, None, now);
        }
    }

    /// The link's socket is gone. Everything that it held is released.
    pub fn handle_disconnected(&mut self, id: LinkId, now: Time) {
        self.release(id, now);
        if let Some(link) = self.links.remove(id)
            && let Some(count) = self.addresses.get_mut(&link.address)
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&link.address);
            }
        }
    }

    /// The replica has applied a run: it enters the feed, and its outcomes go to the links that wait for them.
    pub fn handle_applied(&mut self, applied: &Applied, now: Time) {
        self.feed.push(applied.run.clone(), applied.verdicts.clone());
        for event in &applied.events {
            self.route(event, now);
        }
        self.tail_moved(now);
    }

    /// The replica has jumped to a snapshot: the feed begins anew behind `tail`. What was applied in between was never seen here, so
    /// all that links wait for is answered from the table. What the log keeps is to be said again.
    pub fn handle_restored(&mut self, tail: (LogIndex, Chain), sessions: &Sessions, now: Time) {
        self.feed.reset(tail.0, tail.1);
        self.kept_first = NOTHING_KEPT;
        self.runs.clear();
        self.answer_all(sessions, now);
        self.tail_moved(now);
    }

    fn tail_moved(&mut self, now: Time) {
        let tail = self.feed.tail().0;
        self.revisit |= self.awaited.is_some_and(|awaited| awaited <= tail);
        // The pass that is under way asks for the next one when it ends.
        if self.passing.is_none() && self.links.has(List::Parked) {
            if now >= self.feed_next {
                self.begin_pass(now);
            } else {
                self.feed_due = Some(self.feed_next);
            }
        }
        if self.links.has(List::Standby) && self.commit_due.is_none() {
            self.commit_due = Some(self.commit_next.max(now));
        }
    }

    /// Gives every feed cursor that has something to read its place in a pass.
    fn begin_pass(&mut self, now: Time) {
        self.feed_due = None;
        let tail = self.feed.tail().0;
        self.passed = tail;
        for _ in 0..self.links.listed(List::Parked) {
            let Some(id) = self.links.pop(List::Parked) else { break };
            let Some(link) = self.links.get(id) else { continue };
            match link.delivery {
                Delivery::Feed { cursor } if cursor > tail => self.links.enlist(List::Parked, id),
                Delivery::Feed { .. } => self.links.enlist(List::Passed, id),
                _ => {}
            }
        }
        self.passing = self.links.has(List::Passed).then_some(now);
    }

    /// The next one comes after a gap in which commands gather: a write costs as much for one as for many. A pass that took long is
    /// followed by as long a gap, so that it is not passes for which commands wait.
    fn end_pass(&mut self, begun: Time, now: Time) {
        self.passing = None;
        let limits = &self.options.limits;
        let took_us = now.monotonic_us.saturating_sub(begun.monotonic_us);
        let gap_us = took_us.min(limits.feed_gap_max_ms * 1_000).max(limits.feed_gap_ms * 1_000);
        self.feed_next = now.plus_us(gap_us);
        if self.passed < self.feed.tail().0 {
            self.feed_due = Some(self.feed_next);
        }
    }

    fn wake_standbys(&mut self, now: Time) {
        self.commit_due = None;
        self.commit_next = now.plus_ms(self.options.limits.commit_gap_ms);
        self.commit = self.feed.tail();
        while let Some(id) = self.links.pop(List::Standby) {
            self.links.enlist(List::Woken, id);
        }
    }

    /// Who leads, as far as this server knows. Where that is nobody for long, clients are sent elsewhere.
    pub fn handle_leader(&mut self, leader: Option<RaftId>, now: Time) {
        self.leader = leader;
        if leader.is_some() {
            (self.leaderless_due, self.leaderless_rounds) = (None, 0);
        } else {
            self.leaderless_due.get_or_insert(now.plus_ms(self.options.limits.leaderless_ms));
        }
    }

    /// Whoever waits for an answer that only a leader has may find one elsewhere; later, so may those that follow a feed in which nothing comes.
    fn send_elsewhere(&mut self, now: Time) {
        let limits = self.options.limits;
        self.leaderless_due = Some(now.plus_ms(limits.leaderless_ms));
        self.leaderless_rounds = self.leaderless_rounds.wrapping_add(1);
        let all = self.leaderless_rounds.is_multiple_of(FOLLOWERS_STAY);
        for id in self.links.ids() {
            if self.links.get(id).is_some_and(|link| link.phase == Phase::Live && (all || link.awaits_leader())) {
                let retry_after_ms = u32::try_from(limits.leaderless_ms).ok();
                let _ = self.close(id, Code::Leaderless, retry_after_ms, now);
            }
        }
    }

    /// Reports every attached session again: a new leader knows none of them.
    pub fn report_all_sessions(&mut self) {
        self.activity.extend(self.attached.keys());
        if !self.activity.is_empty() {
            self.activity_due = Some(Time::default());
        }
    }

    /// While overloaded, proposals are refused, and those already laid out wait.
    pub fn handle_overloaded(&mut self, overloaded: bool) {
        self.overloaded = overloaded;
    }

    /// While recovering, hellos are refused: the server cannot serve yet.
    pub fn handle_recovering(&mut self, recovering: bool) {
        self.recovering = recovering;
    }

    /// The servers that clients may go to have changed; links learn it when they are admitted or closed.
    pub fn handle_servers(&mut self, endpoints: Vec<ServerEntry>) {
        self.options.endpoints = endpoints;
    }

    /// The server shuts down: every link gets a `Close` with this code, and no new one is taken.
    pub fn handle_close(&mut self, code: Code, retry_after_ms: Option<u32>) {
        self.closing = Some((code, retry_after_ms));
        for id in self.links.ids() {
            // At no particular time: that its session went is to be reported at once, while there is someone to report it.
            let _ = self.close(id, code, retry_after_ms, Time::default());
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, sessions: &Sessions, now: Time) {
        if std::mem::take(&mut self.revisit) {
            self.revisit_waiting(sessions, now);
        }
        while let Some(id) = self.links.pop_timer(now) {
            self.expire(id, now);
        }
        self.expire_reads(now);
        self.states.expire(now);
        if self.leaderless_due.is_some_and(|due| due <= now) {
            self.send_elsewhere(now);
        }
        if self.feed_due.is_some_and(|due| due <= now) {
            self.begin_pass(now);
        }
        if self.commit_due.is_some_and(|due| due <= now) {
            self.wake_standbys(now);
        }
        if self.activity_due.is_some_and(|due| due <= now) {
            self.activity_due = None;
            let attached: Vec<_> = std::mem::take(&mut self.activity).into_iter().collect();
            let detached = attached.iter().copied().filter(|session| !self.attached.contains_key(session)).collect();
            self.events.push_back(RoomEvent::Activity { attached, detached });
        }
    }

    /// When [`Room::handle_timeout`] is due, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let revisit = self.revisit.then(Time::default);
        [
            (revisit, "a waiting client may go on"),
            (self.links.next_timer(), "a link's deadline"),
            (self.reads.next_deadline(), "a read's deadline"),
            (self.states.kept_until(), "a state that nobody came for"),
            (self.leaderless_due, "nobody leads for too long"),
            (self.feed_due, "the gap between feed passes"),
            (self.commit_due, "the gap between commits to standbys"),
            (self.activity_due, "sessions came or went"),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min_by_key(|(at, _)| *at)
    }

    /// What the owner must do next.
    pub fn poll_event(&mut self) -> Option<RoomEvent> {
        if !self.batch.is_empty() && !self.overloaded {
            return Some(RoomEvent::Propose(self.batch.split().freeze()));
        }
        if let Some(read) = self.reads.take() {
            return Some(RoomEvent::Read(read));
        }
        let lives = |link| self.links.contains(link);
        if let Some(from) = self.runs.poll(lives) {
            return Some(RoomEvent::RunsWanted { from });
        }
        if let Some((index, offset)) = self.states.pieces.poll(lives) {
            return Some(RoomEvent::PieceWanted { index, offset });
        }
        self.events.pop_front()
    }

    /// Whether [`Room::poll_transmit`] has made something for the owner to do at once: events to take, or a timeout that is due.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.revisit || self.runs.asks() || self.states.pieces.asks()
    }

    /// A link that has something to write: first those that wait for an answer, then those whose turn it is in the pass over the feed.
    pub fn poll_wake(&mut self, now: Time) -> Option<LinkId> {
        if let Some(answered) = self.links.pop(List::Woken) {
            return Some(answered);
        }
        let begun = self.passing?;
        let next = self.links.pop(List::Passed);
        if !self.links.has(List::Passed) {
            self.end_pass(begun, now);
        }
        next
    }

    /// A link whose socket has not taken its last frame in time: drop it as it is.
    pub fn poll_abort(&mut self) -> Option<LinkId> {
        self.aborts.pop_front()
    }

    /// How many links there are, those in their handshake included.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Every link, in no particular order.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> + '_ {
        self.links.iter().map(|(id, link)| LinkStatus {
            link: id,
            address: link.address,
            feed: link.mode,
            session: link.session.map(|session| session.session),
            acked: link.acked,
        })
    }

    /// What this room has seen.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The feed.
    #[must_use]
    pub const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Queues a frame for a link. One that does not read until its outbox is full is closed.
    fn send(&mut self, id: LinkId, frame: &ServerFrame, now: Time) -> Result<(), Code> {
        let Some(link) = self.links.get(id) else { return Ok(()) };
        link.push_frame(frame.encode());
        self.bound_outbox(id, now)?;
        self.links.enlist(List::Woken, id);
        Ok(())
    }

    fn bound_outbox(&mut self, id: LinkId, now: Time) -> Result<(), Code> {
        match self.links.get(id) {
            Some(link) if link.queued_bytes > self.options.limits.outbox_bytes_max => {
                link.silence();
                self.close(id, Code::Overloaded, Some(self.options.limits.retry_after_ms), now)
            }
            _ => Ok(()),
        }
    }

    /// Ends a link: `Refuse` before it is admitted, `Close` after. Returns the code as the error that ended it.
    fn close(&mut self, id: LinkId, code: Code, retry_after_ms: Option<u32>, now: Time) -> Result<(), Code> {
        self.release(id, now);
        let Some(link) = self.links.get(id) else { return Err(code) };
        let (frame, counts) = match link.phase {
            Phase::Closing(first) => return Err(first),
            Phase::Handshaking(_) => (ServerFrame::Refuse { code, retry_after_ms }, &mut self.counters.refused),
            Phase::Live => {
                let others = self.options.endpoints.iter().filter(|server| server.id != self.options.server);
                let endpoints = others.flat_map(|server| server.endpoints.iter().cloned()).collect();
                (ServerFrame::Close { code, retry_after_ms, endpoints }, &mut self.counters.closed)
            }
        };
        *counts.entry(code).or_default() += 1;
        link.phase = Phase::Closing(code);
        link.push_frame(frame.encode());
        // In a shutdown the owner has a deadline of its own.
        let abort = self.closing.is_none().then(|| now.plus_ms(self.options.limits.goodbye_ms));
        self.links.arm(id, abort);
        self.links.enlist(List::Woken, id);
        Err(code)
    }

    /// Takes from a link all that it holds in the room; its outbox stays.
    fn release(&mut self, id: LinkId, now: Time) {
        self.detach(id, now);
        self.forget_opening(id);
        let Some(link) = self.links.get(id) else { return };
        link.delivery = Delivery::Nothing;
        link.pending = None;
        link.attaching = None;
        link.fetches = VecDeque::new();
        link.expect_nothing();
    }
}

#[cfg(test)]
mod tests;
