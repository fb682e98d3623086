//! The client, pure: which server to be attached to, what to send, what a frame means, who is answered. Sockets, the journal's
//! file, the learner's state and the clock belong to its owner.
//!
//! # Driving contract
//! Feed it with `handle_*` and the calls of the application (`propose`, `read`, ...). After any of them:
//! 1. drain [`Core::poll_event`] and do what it says; an event that changes the learner (`Begin`, `Feed`, `Install`, `Reset`) is done
//!    and, but for `Reset`, answered by [`Core::handle_applied`] or [`Core::handle_apply_failed`] before anything else is polled:
//!    what is sent next says how far the learner is;
//! 2. write what [`Core::poll_journal`] gives and answer with [`Core::handle_journaled`]: what depends on it stays inside until then;
//! 3. send what [`Core::poll_transmit`] gives for each open link, as fast as its socket takes it, and no faster;
//! 4. call [`Core::handle_timeout`] at [`Core::poll_timeout`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use relay::wire::{ClientFrame, FeedMode, ServerFrame};
use voter_mesh::ids::{Chain, Identity, LogIndex, RequestId, Term, Time};

use crate::error::{ProposeError, ReadError, ReserveError, StreamError};
use crate::journal::record::{JournalState, Record};
use crate::status::{CloseReason, LinkError, Status};
use crate::ticket::Ticket;

mod calls;
mod collecting;
mod fetches;
mod link;
mod links;
mod reads;
mod receive;
mod requests;
mod rotation;
mod session;
#[cfg(test)]
pub(crate) mod tests;
mod transmit;
mod window;

pub use collecting::Snapshot;
pub use reads::ReadAfter;
pub use requests::WhenFull;

use calls::Place;
use collecting::Collecting;
use fetches::{Collected, Fetching};
use link::Link;
use reads::Reads;
use requests::Queued;
use rotation::Rotation;
use session::Session;
use window::Window;

/// Request ids that may be open from the oldest unanswered one on (design §6.4).
pub const WINDOW_MAX: usize = 256;

const fn ms(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}

/// Names a link for as long as it lives; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Names a call of the application, so that it can be cancelled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

/// How the owner's waiting calls look; the core only hands them back.
pub trait Waiters {
    /// Waits for what became of a proposal.
    type Propose;
    /// Waits for a ticket.
    type Reserve;
    /// Waits until a read may run.
    type Read;
    /// Waits for committed runs.
    type Fetch;
}

/// Where randomness comes from: fills the slice.
pub struct Randomness(Source);

type Source = Box<dyn FnMut(&mut [u8]) + Send>;

impl fmt::Debug for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Randomness")
    }
}

impl Randomness {
    /// Draws from `source`, which must be fit for secrets.
    pub fn new(source: impl FnMut(&mut [u8]) + Send + 'static) -> Self {
        Self(Box::new(source))
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.0)(&mut bytes);
        bytes
    }

    /// A number below `ceiling`; 0 for 0.
    fn below(&mut self, ceiling: u64) -> u64 {
        u64::from_le_bytes(self.bytes()).checked_rem(ceiling).unwrap_or(0)
    }
}

/// What the core needs to know at its making. Times in milliseconds.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Where servers are; not empty.
    pub endpoints: Vec<String>,
    /// The endpoint to dial first.
    pub start: usize,
    /// Links to hold: 1, or 2 with the second one as a standby.
    pub links: usize,
    /// The room, as in the endpoints' paths.
    pub room: String,
    /// `Full` or `Thin`.
    pub feed: FeedMode,
    /// The learner's state machine; `None` for a client without state.
    pub machine: Option<(String, u32)>,
    /// Whether the journal outlives the client. If not, closing the client ends its session.
    pub journal_kept: bool,
    /// Limits.
    pub limits: CoreLimits,
}

/// The client's limits. All have defaults that are safe on a local network and across an ocean alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreLimits {
    /// From dialling to admission. Default 5000. Longer: a silent server costs more before the next one is tried.
    pub handshake_ms: u64,
    /// Silence of the first link after which the second takes over. Default 250; should be well over a round trip.
    pub stall_ms: u64,
    /// The back-off's first ceiling. Default 50.
    pub backoff_ms_base: u64,
    /// The back-off's last ceiling. Default 5000.
    pub backoff_ms_max: u64,
    /// Calls that wait for room, or reads that wait. Default 65,536 each.
    pub queue_max: usize,
    /// Outcomes that nobody has asked for yet. Default 1024; the oldest go first.
    pub outcomes_max: usize,
    /// Bytes of a snapshot. Default 1 GiB.
    pub snapshot_bytes_max: u64,
    /// Bytes of payload put into one frame of proposals; one larger is sent alone. Default 64 KiB.
    pub frame_bytes_max: usize,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            handshake_ms: 5_000,
            stall_ms: 250,
            backoff_ms_base: 50,
            backoff_ms_max: 5_000,
            queue_max: 65_536,
            outcomes_max: 1_024,
            snapshot_bytes_max: 1 << 30,
            frame_bytes_max: 64 << 10,
        }
    }
}

/// A command's reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Where the command was applied.
    pub index: LogIndex,
    /// In which term.
    pub term: Term,
    /// Whether an earlier copy of the request did it.
    pub repeat: bool,
    /// What the machine answered.
    pub reply: Bytes,
}

/// What became of a proposal.
pub type ProposeResult = Result<Answer, ProposeError>;

/// What the owner does.
pub enum Event<W: Waiters> {
    /// Connect to this endpoint, then say `handle_link_up` or `handle_link_down`.
    Dial {
        /// The new link.
        link: LinkId,
        /// Where to.
        endpoint: String,
    },
    /// Drop this link, in whatever state it is, without a further word.
    Hangup {
        /// The link.
        link: LinkId,
    },
    /// The learner begins here, with the state that it was made with.
    Begin {
        /// Before every entry.
        index: LogIndex,
        /// The chain there.
        chain: Chain,
    },
    /// Apply these blocks of the feed.
    Feed {
        /// Where they came from.
        link: LinkId,
        /// The blocks.
        blocks: Bytes,
    },
    /// Replace the state.
    Install(Snapshot),
    /// Another epoch: back to the state that the learner was made with. Not answered; a `Begin` or `Install` follows.
    Reset,
    /// What became of a proposal.
    Proposed {
        /// Who waits.
        waiter: W::Propose,
        /// The request, once it had an id: hand the result to [`Core::keep_outcome`] if nobody takes it.
        request: Option<Ticket>,
        /// The result.
        result: Result<Answer, ProposeError>,
    },
    /// A reserved ticket. If nobody takes it, [`Core::release`] it.
    Reserved {
        /// Who waits.
        waiter: W::Reserve,
        /// The result.
        result: Result<Ticket, ReserveError>,
    },
    /// A read may run now.
    Read {
        /// Who waits.
        waiter: W::Read,
        /// The result.
        result: Result<(), ReadError>,
    },
    /// Blocks of committed runs, in one or more pieces; the first run holds the entry asked for. Empty: ask again a little later.
    Fetched {
        /// Who waits.
        waiter: W::Fetch,
        /// The result.
        result: Result<Vec<Bytes>, StreamError>,
    },
}

/// Records to journal, in order and before anything else that is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalBatch {
    /// The records.
    pub records: Vec<Record>,
    /// Whether they must survive the machine.
    pub durable: bool,
}

/// Why the learner could not go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApplyFailed {
    /// The blocks are not blocks, or out of place: the link is bad, not the history.
    Malformed {
        /// The link that they came from.
        link: LinkId,
    },
    /// The blocks do not continue this learner's history.
    Diverged,
    /// The state machine refuses what the servers' one took.
    Machine(String),
}

/// What happens once a journal batch is written.
enum After<W: Waiters> {
    Send(RequestId),
    /// The session's state of this number is written.
    Pursue(u64),
    Tell(Event<W>),
}

/// The client's core. The module's page has the contract.
pub struct Core<W: Waiters> {
    options: CoreOptions,
    randomness: Randomness,
    events: VecDeque<Event<W>>,

    rotation: Rotation,
    links: BTreeMap<LinkId, Link>,
    /// The admitted link that the learner follows and proposals leave on.
    first: Option<LinkId>,
    next_link: u64,
    /// When the next dial is due, if a link is missing and the rotation says wait.
    dial_at_us: Option<u64>,
    /// The next hello names no epoch, no session and no place: the last server had another epoch.
    probe_epoch: bool,
    /// The standby link has been ahead of the silent first one since.
    ahead_since_us: Option<u64>,
    last_error: Option<LinkError>,

    identity: Option<Identity>,
    position: Option<(LogIndex, Chain)>,
    collecting: Option<Collecting>,
    /// What the entry server had applied when it let us in.
    target: LogIndex,
    was_live: bool,
    ack: Ack,
    closed: Option<CloseReason>,

    session: Session,
    /// Counts what was journaled about the session, so that an old write vouches for nothing new.
    session_writes: u64,
    window: Window<W::Propose>,
    /// The highest index that this session has seen acknowledged.
    acknowledged: LogIndex,
    /// Replies whose index the learner has yet to apply.
    replied: BTreeSet<(LogIndex, RequestId)>,
    /// Refused requests, by when they are sent again.
    retries: BTreeSet<(u64, RequestId)>,
    /// Outcomes that nobody has taken, oldest id first.
    outcomes: BTreeMap<Ticket, Result<Answer, ProposeError>>,
    payload_bytes_max: usize,

    queue: BTreeMap<CallId, Queued<W>>,
    calls: BTreeMap<CallId, (u64, Place)>,
    deadlines: BTreeSet<(u64, CallId)>,
    next_call: u64,
    reads: Reads<W::Read>,
    fetches: VecDeque<Fetching<W::Fetch>>,
    fetching: Option<Collected>,

    records: Vec<Record>,
    records_durable: bool,
    after: Vec<After<W>>,
    /// What waits for the batch that is being written.
    writing: Option<Vec<After<W>>>,
}

impl<W: Waiters> fmt::Debug for Core<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("position", &self.position).field("status", &self.status()).finish_non_exhaustive()
    }
}

/// When the server was last told how far the learner is.
#[derive(Default)]
struct Ack {
    told: LogIndex,
    next_us: u64,
}

/// How often the server is told how far the learner is.
const ACK_MS: u64 = 1_000;

impl<W: Waiters> Core<W> {
    /// A client that has just started, with what its journal held. It dials at once.
    #[must_use]
    pub fn new(options: CoreOptions, journal: &JournalState, randomness: Randomness, now: Time) -> Self {
        let session = Session::recovered(journal);
        let mut window = Window::new(journal.id_end, WINDOW_MAX);
        window.recover(&journal.open);
        let limits = options.limits;
        let identity = journal.session.map(|record| session::identity(&record));
        let mut core = Self {
            rotation: Rotation::new(options.endpoints.clone(), options.start, limits.backoff_ms_base, limits.backoff_ms_max),
            options,
            randomness,
            events: VecDeque::new(),
            links: BTreeMap::new(),
            first: None,
            next_link: 1,
            dial_at_us: None,
            probe_epoch: false,
            ahead_since_us: None,
            last_error: None,
            identity,
            position: None,
            collecting: None,
            target: LogIndex::ZERO,
            was_live: false,
            ack: Ack::default(),
            closed: None,
            session,
            session_writes: 0,
            window,
            acknowledged: LogIndex::ZERO,
            replied: BTreeSet::new(),
            retries: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            payload_bytes_max: voter_mesh::entry::PAYLOAD_BYTES_MAX,
            queue: BTreeMap::new(),
            calls: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_call: 1,
            reads: Reads::default(),
            fetches: VecDeque::new(),
            fetching: None,
            records: Vec::new(),
            records_durable: false,
            after: Vec::new(),
            writing: None,
        };
        core.pursue_session();
        core.balance(now);
        core
    }

    /// The connection of `link` stands; its hello is next.
    pub fn handle_link_up(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link) {
            link.up();
        }
    }

    /// The connection of `link` did not come to be, or ended.
    pub fn handle_link_down(&mut self, link: LinkId, error: LinkError, now: Time) {
        self.lose(link, error, now);
    }

    /// A frame came on `link`. A frame that breaks the protocol costs the link.
    pub fn handle_frame(&mut self, link: LinkId, frame: ServerFrame, now: Time) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.heard(now);
        if self.first == Some(link) {
            self.ahead_since_us = None;
        }
        if let Err(error) = self.take_frame(link, frame, now) {
            self.hang_up(link, error, now);
        }
    }

    /// The learner stands here now.
    pub fn handle_applied(&mut self, index: LogIndex, chain: Chain) {
        self.position = Some((index, chain));
        while let Some(&(at, id)) = self.replied.first().filter(|(at, _)| *at <= index) {
            self.replied.remove(&(at, id));
            self.settle(id);
        }
        self.answer_reads(index);
        self.fill();
        self.notice_live();
    }

    /// The learner could not take what `Feed` or `Install` gave it; it stands where `handle_applied` last said.
    pub fn handle_apply_failed(&mut self, failed: ApplyFailed, now: Time) {
        match failed {
            ApplyFailed::Malformed { link } => self.hang_up(link, LinkError::Malformed("feed"), now),
            ApplyFailed::Diverged => self.close(CloseReason::Diverged),
            ApplyFailed::Machine(why) => self.close(CloseReason::Machine(why)),
        }
    }

    /// The last journal batch is written, or cannot be: then the client closes.
    pub fn handle_journaled(&mut self, result: Result<(), String>) {
        let after = self.writing.take().unwrap_or_default();
        if let Err(why) = result {
            for after in after {
                if let After::Tell(event) = after {
                    let event = self.journal_lost(event);
                    self.events.push_back(event);
                }
            }
            self.close(CloseReason::Journal(why));
            return;
        }
        for after in after {
            match after {
                After::Send(id) => {
                    if self.window.journaled(id) {
                        self.window.to_send.push_back(id);
                    }
                }
                After::Pursue(write) if write == self.session_writes => {
                    self.session.journaled();
                    self.pursue_session();
                }
                After::Pursue(_) => {}
                After::Tell(event) => self.events.push_back(event),
            }
        }
        self.fill();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.closed.is_some() {
            return;
        }
        self.expire_calls(now);
        self.retry_requests(now);
        self.watch_links(now);
        self.ask_reads(now);
        self.balance(now);
        self.fill();
    }

    /// When to call `handle_timeout`, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        if self.closed.is_some() {
            return None;
        }
        let deadline = self.deadlines.first().map(|(at, _)| (*at, "a call's deadline"));
        let retry = self.retries.first().map(|(at, _)| (*at, "a refused request is sent again"));
        let dial = self.dial_at_us.map(|at| (at, "the next dial"));
        let read = self.reads.retry_at_us.map(|at| (at, "a refused read is asked again"));
        [deadline, retry, dial, read]
            .into_iter()
            .flatten()
            .chain(self.link_timeouts())
            .min_by_key(|(at, _)| *at)
            .map(|(at, why)| (Time { monotonic_us: at, ..Time::default() }, why))
    }

    /// What to do.
    pub fn poll_event(&mut self) -> Option<Event<W>> {
        self.events.pop_front()
    }

    /// What to journal, if nothing is being written.
    pub fn poll_journal(&mut self) -> Option<JournalBatch> {
        if self.writing.is_some() || (self.records.is_empty() && self.after.is_empty()) {
            return None;
        }
        self.writing = Some(std::mem::take(&mut self.after));
        Some(JournalBatch { records: std::mem::take(&mut self.records), durable: std::mem::take(&mut self.records_durable) })
    }

    /// The next frame to send on `link`, which counts as sent.
    pub fn poll_transmit(&mut self, link: LinkId, now: Time) -> Option<ClientFrame> {
        self.next_frame(link, now)
    }

    /// How the client stands.
    #[must_use]
    pub fn status(&self) -> Status {
        if let Some(why) = &self.closed {
            return Status::Closed { why: why.clone() };
        }
        let (attempt, last_error) = (self.rotation.failures(), self.last_error.clone());
        let server = self.first.and_then(|first| self.links.get(&first)).and_then(Link::server);
        let applied = match self.options.feed {
            FeedMode::Thin => self.acknowledged,
            _ => self.position.map_or(LogIndex::ZERO, |(index, _)| index),
        };
        match server.zip(self.identity) {
            Some((server, identity)) if self.is_caught_up() => Status::Live { server, applied, epoch: identity.epoch },
            Some((_, identity)) => Status::CatchingUp { applied, target: self.target, epoch: identity.epoch },
            None if self.was_live => Status::FailingOver { attempt, last_error },
            None => Status::Connecting { attempt, last_error },
        }
    }

    fn is_caught_up(&self) -> bool {
        self.options.feed == FeedMode::Thin
            || (self.collecting.is_none() && self.position.is_some_and(|(index, _)| index >= self.target))
    }

    fn notice_live(&mut self) {
        if !self.was_live && self.first.is_some() && self.is_caught_up() {
            self.was_live = true;
        }
    }

    /// Whether the client has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Ends the client: every waiting call is answered. What is left to journal and to send may still be polled.
    pub fn close(&mut self, why: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        self.close_session();
        self.answer_all(&why);
        self.closed = Some(why);
        let first = self.first;
        for link in self.links.keys().filter(|link| first != Some(**link)) {
            self.events.push_back(Event::Hangup { link: *link });
        }
        self.links.retain(|link, _| first == Some(*link));
    }
}
