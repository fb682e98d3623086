//! A client's core against servers that say what the script says. Its links are `a`, `b`, `c` in the order that it dials them; its journal is
//! written at once unless it stalls; its learner applies the feed, which the script cuts from one history.

mod say;

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use cluster_client::core::{
    CallId, Core, CoreLimits, CoreOptions, Event, JournalBatch, LinkId, Randomness, ReadAfter, Waiters, WhenFull,
};
use cluster_client::journal::record::JournalState;
use cluster_client::{CloseReason, LinkError, Ticket};
use relay::wire::{Admit, Code, FeedMode, ServerFrame, SessionStatus, SnapshotChunk, Start, WireLimits, WireReply};
use sha2::{Digest, Sha256};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    Chain, ClusterId, Epoch, Identity, LogIndex, Opening, RaftId, RequestId, RoomId, Seat, SessionId, Term, Time, TimeMs,
};
use voter_mesh::learner::Learner;
use voter_mesh::outcome::Outcome;
use voter_mesh::run::{Run, Tail, Verdicts, chain_zero};

use crate::Runner;
use crate::words::Words;

/// Calls are told apart by their names.
struct Named;

impl Waiters for Named {
    type Propose = String;
    type Reserve = String;
    type Read = String;
    type Fetch = String;
}

pub(crate) struct World {
    options: CoreOptions,
    core: Option<Core<Named>>,
    journal: JournalState,
    /// The journal's disk does not answer; this is what waits.
    stalls: bool,
    writing: Option<JournalBatch>,
    links: BTreeMap<LinkId, bool>,
    learner: Option<Learner>,
    calls: BTreeMap<String, CallId>,
    epoch: Epoch,
    window: u32,
    now: Time,
    out: Vec<String>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            options: CoreOptions {
                endpoints: Vec::new(),
                start: 0,
                links: 1,
                room: "main".to_owned(),
                feed: FeedMode::Full,
                machine: Some(("ledger".to_owned(), 1)),
                journal_kept: true,
                limits: CoreLimits::default(),
            },
            core: None,
            journal: JournalState::default(),
            stalls: false,
            writing: None,
            links: BTreeMap::new(),
            learner: None,
            calls: BTreeMap::new(),
            epoch: Epoch(1),
            window: 256,
            now: Time { monotonic_us: 1_000_000, unix_ms: TimeMs(0) },
            out: Vec::new(),
        }
    }
}

/// A source that repeats itself.
fn randomness() -> Randomness {
    let mut state = 1_u64;
    Randomness::new(move |bytes| {
        for byte in bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
    })
}

fn link(word: &str) -> LinkId {
    LinkId(u64::from(word.as_bytes()[0] - b'a') + 1)
}

fn code(words: &mut Words<'_>) -> Code {
    let word = words.word();
    let all = [
        Code::Version,
        Code::Cluster,
        Code::Epoch,
        Code::StateMachine,
        Code::Auth,
        Code::Behind,
        Code::Diverged,
        Code::Recovering,
        Code::Overloaded,
        Code::Closing,
        Code::Malformed,
        Code::TooLarge,
        Code::Leaderless,
    ];
    all.into_iter().find(|code| format!("{code:?}") == word).unwrap_or_else(|| words.wrong("a code"))
}

impl World {
    fn identity(&self) -> Identity {
        Identity { cluster: ClusterId([7; 16]), epoch: self.epoch, room: RoomId(0) }
    }

    fn core(&mut self) -> &mut Core<Named> {
        self.core.as_mut().expect("a script begins with a client")
    }

    /// Runs of one entry each, from the beginning of the epoch's history.
    fn run(&self, index: LogIndex) -> Run {
        let noop = entry(&EntrySpec::internal(EntryKind::Noop), &[]).unwrap();
        let mut tail = Tail::zero(&self.identity());
        loop {
            let run = Run::seal(&tail, Term(1), TimeMs(0), self.epoch, RoomId(0), &[&noop]).unwrap();
            if run.header().first == index {
                return run;
            }
            tail = run.header().tail();
        }
    }

    fn chain(&self, index: LogIndex) -> Chain {
        if index == LogIndex::ZERO { chain_zero(&self.identity()) } else { self.run(index).header().chain_after }
    }

    fn blocks(&self, from: u64, to: u64) -> Bytes {
        let mut bytes = BytesMut::new();
        for run in (from..=to).map(|index| self.run(LogIndex(index))) {
            bytes.put_slice(run.bytes());
            bytes.put_slice(Verdicts::clear(1).as_bytes());
        }
        bytes.freeze()
    }

    fn start(words: &mut Words<'_>) -> Start {
        match words.word() {
            "tail" => Start::Tail(LogIndex(words.parse())),
            "snapshot" => Start::Snapshot(LogIndex(words.parse())),
            _ => words.wrong("where the feed begins"),
        }
    }

    /// What a server says on a link.
    fn frame(&mut self, words: &mut Words<'_>) -> ServerFrame {
        match words.word() {
            "admit" => {
                let start = Self::start(words);
                let commit = words.after("commit").unwrap_or(match start {
                    Start::Tail(next) => next.0 - 1,
                    Start::Snapshot(at) => at.0,
                });
                let session = if words.is("expired") {
                    SessionStatus::Expired
                } else {
                    words.after("attached").map_or(SessionStatus::None, |opening| SessionStatus::Attached(Opening(opening)))
                };
                ServerFrame::Admit(Admit {
                    cluster: ClusterId([words.after("cluster").unwrap_or(7); 16]),
                    epoch: self.epoch,
                    server: RaftId::new(Seat(1), 1),
                    servers: Vec::new(),
                    leader: None,
                    commit: LogIndex(commit),
                    state_machine: (words.after("machine").unwrap_or_else(|| "ledger".to_owned()), 1),
                    start,
                    session,
                    limits: WireLimits {
                        message_bytes_max: 1 << 20,
                        payload_bytes_max: 1 << 19,
                        window_max: self.window,
                        ping_ms: 10_000,
                    },
                })
            }
            "refuse" => ServerFrame::Refuse { code: code(words), retry_after_ms: words.after("retry") },
            "opened" => ServerFrame::SessionOpened { session: SessionId(words.parse()), opening: Opening(words.parse()) },
            "superseded" => ServerFrame::Superseded { current: Opening(words.parse()) },
            "feed" => ServerFrame::Feed(self.blocks(words.parse(), words.parse())),
            "reply" => {
                let id = RequestId(words.parse());
                let outcome = match words.word() {
                    "applied" => Outcome::Applied(Bytes::copy_from_slice(words.word().as_bytes())),
                    "elided" => Outcome::Elided([0xee; 32]),
                    "conflict" => Outcome::Conflict,
                    "stale" => Outcome::Stale,
                    "undecodable" => Outcome::Undecodable,
                    "window-broken" => Outcome::WindowBroken,
                    "expired" => Outcome::SessionExpired,
                    "superseded" => Outcome::Superseded(Opening(words.parse())),
                    _ => words.wrong("an outcome"),
                };
                let index = LogIndex(words.after("at").unwrap_or(0));
                // Of the command that waits under this id, unless another one is named.
                let other = words.after::<String>("for").map(Bytes::from);
                let own = || {
                    self.core().unanswered().into_iter().find(|(ticket, _)| ticket.request == id).and_then(|(_, payload)| payload)
                };
                let payload_crc = crc32c::crc32c(&other.or_else(own).unwrap_or_default());
                let repeat = words.is("repeat");
                ServerFrame::Replies(vec![WireReply { id, index, term: Term(1), payload_crc, repeat, outcome }])
            }
            // A piece of a state of 10 bytes.
            "snapshot" => {
                let (index, from, to) = (LogIndex(words.parse()), words.parse::<u64>(), words.parse::<u64>());
                let state: Vec<u8> = (0..10).map(|byte| byte + index.0 as u8).collect();
                ServerFrame::Snapshot(SnapshotChunk {
                    index,
                    chain: self.chain(index),
                    offset: from,
                    total: 10,
                    hash: Sha256::digest(&state).into(),
                    bytes: state[from as usize..to as usize].to_vec().into(),
                })
            }
            "start" => ServerFrame::Start(Self::start(words)),
            "commit" => {
                let index = LogIndex(words.parse());
                ServerFrame::Commit { index, chain: self.chain(index) }
            }
            "read" => ServerFrame::Read { id: words.parse(), index: LogIndex(words.parse()) },
            "read-refused" => ServerFrame::ReadRefused { id: words.parse(), code: code(words) },
            "propose-refused" => {
                let ids = words.word();
                let ids = if ids == "-" { Vec::new() } else { ids.split(',').map(|id| RequestId(id.parse().unwrap())).collect() };
                ServerFrame::ProposeRefused { ids, code: code(words), retry_after_ms: words.after("retry") }
            }
            "pong" => ServerFrame::Pong { nonce: 0 },
            "close" => {
                let (code, retry_after_ms) = (code(words), words.after("retry"));
                let endpoints = words.after::<String>("go-to").into_iter().collect();
                ServerFrame::Close { code, retry_after_ms, endpoints }
            }
            _ => words.wrong("a server's frame"),
        }
    }

    /// Drains the core as its contract says.
    fn settle(&mut self) {
        loop {
            let now = self.now;
            let mut progress = false;
            while let Some(event) = self.core().poll_event() {
                progress = true;
                self.told(event);
            }
            if self.writing.is_none()
                && let Some(batch) = self.core().poll_journal()
            {
                progress = true;
                if !batch.records.is_empty() {
                    let held = if self.stalls { " (not yet)" } else { "" };
                    self.out.push(format!("journal {}{held}", say::batch(&batch)));
                }
                self.writing = Some(batch);
            }
            if !self.stalls && self.writing.is_some() {
                self.written();
                progress = true;
            }
            let up: Vec<LinkId> = self.links.iter().filter(|(_, up)| **up).map(|(link, _)| *link).collect();
            for link in up {
                while let Some(frame) = self.core().poll_transmit(link, now) {
                    progress = true;
                    self.out.push(format!("{}→ {}", say::link(link), say::client_frame(&frame)));
                }
            }
            if !progress {
                return;
            }
        }
    }

    fn written(&mut self) {
        if let Some(batch) = self.writing.take() {
            batch.records.iter().for_each(|record| self.journal.fold(record));
            self.core().handle_journaled(Ok(()));
        }
    }

    fn told(&mut self, event: Event<Named>) {
        let now = self.now;
        self.out.push(say::event(&event));
        let at = match event {
            Event::Dial { link, .. } => {
                self.links.insert(link, false);
                return;
            }
            Event::Hangup { link } => {
                self.links.remove(&link);
                return;
            }
            Event::Begin { index, chain } => Learner::at(index, chain),
            Event::Install(snapshot) => Learner::at(snapshot.index, snapshot.chain),
            Event::Feed { link: from, mut blocks } => {
                let mut learner = self.learner.expect("a feed has a beginning");
                if let Err(error) = learner.apply_blocks(&mut blocks, &mut (), &mut |_| {}) {
                    self.out.push(format!("the learner refuses it: {error}"));
                    let failed = match error {
                        voter_mesh::learner::LearnerError::Diverged { .. } => cluster_client::core::ApplyFailed::Diverged,
                        _ => cluster_client::core::ApplyFailed::Malformed { link: from },
                    };
                    return self.core().handle_apply_failed(failed, now);
                }
                learner
            }
            _ => return,
        };
        self.learner = Some(at);
        self.core().handle_applied(at.applied(), at.chain());
    }

    fn client(&mut self) {
        self.links.clear();
        self.learner = None;
        self.writing = None;
        self.core = Some(Core::new(self.options.clone(), &self.journal, randomness(), self.now));
    }

    fn line(&mut self, words: &mut Words<'_>) {
        let now = self.now;
        let verb = words.word();
        match verb {
            // A client with so many endpoints, its journal empty.
            "client" => {
                let endpoints: u64 = words.parse();
                self.options.endpoints = (1..=endpoints).map(|number| format!("ws://{number}")).collect();
                self.options.links = words.after("links").unwrap_or(1);
                if words.is("thin") {
                    self.options.feed = FeedMode::Thin;
                }
                if words.is("memory") {
                    self.options.journal_kept = false;
                }
                self.client();
            }
            // Its process dies; another one opens the journal as it was written.
            "restart" => self.client(),
            "servers-window" => self.window = words.parse(),
            "servers-epoch" => self.epoch = Epoch(words.parse()),
            "up" => {
                let link = link(words.word());
                *self.links.get_mut(&link).unwrap_or_else(|| words.wrong("a link that is dialled")) = true;
                self.core().handle_link_up(link);
            }
            "down" => {
                let link = link(words.word());
                let was_up = self.links.remove(&link).unwrap_or_else(|| words.wrong("a link that stands"));
                let error = if was_up { LinkError::Torn("eof".into()) } else { LinkError::Unreachable("refused".into()) };
                self.core().handle_link_down(link, error, now);
            }
            "stall-journal" => self.stalls = true,
            "write-journal" => {
                self.stalls = false;
                self.written();
            }
            "fail-journal" => {
                self.stalls = false;
                self.writing = None;
                self.core().handle_journaled(Err("no space".into()));
            }
            // Calls of the application, by name.
            verb @ ("propose" | "try-propose") => {
                let (name, payload) = (words.word().to_owned(), Bytes::from(words.payload()));
                let ticket = words.after::<Ticket>("as");
                let deadline = self.now.plus_ms(words.after("deadline").unwrap_or(10_000));
                let when_full = if verb == "propose" { WhenFull::Wait } else { WhenFull::Refuse };
                let call = self.core().propose(payload, ticket, when_full, deadline, name.clone());
                self.calls.insert(name, call);
            }
            "propose-many" => {
                let (count, deadline): (u64, Time) = (words.parse(), self.now.plus_ms(10_000));
                for number in 1..=count {
                    self.core().propose(Bytes::from_static(b"x"), None, WhenFull::Wait, deadline, format!("many-{number}"));
                }
            }
            "reserve" => {
                let name = words.word().to_owned();
                let (id, deadline) = (words.after("id").map(RequestId), self.now.plus_ms(10_000));
                self.core().reserve(id, deadline, name);
            }
            "outcome" => {
                let (name, ticket, deadline) = (words.word().to_owned(), words.parse(), self.now.plus_ms(10_000));
                self.core().outcome(ticket, deadline, name);
            }
            "read" => {
                let name = words.word().to_owned();
                let after = if words.is("session") { ReadAfter::Session } else { ReadAfter::Linearizable };
                let deadline = self.now.plus_ms(10_000);
                let call = self.core().read(after, deadline, name.clone(), now);
                self.calls.insert(name, call);
            }
            "cancel" => {
                let call = self.calls.remove(words.word()).unwrap_or_else(|| words.wrong("a call"));
                self.core().cancel(call);
            }
            verb @ ("release" | "abandon") => {
                let ticket = words.parse();
                let done = if verb == "release" { self.core().release(ticket) } else { self.core().abandon(ticket) };
                if let Err(error) = done {
                    self.out.push(format!("refused: {error}"));
                }
            }
            "renew" => {
                let renewed = self.core().renew_session(now);
                self.out.push(if renewed { "renewed" } else { "the session has not ended" }.to_owned());
            }
            "close" => self.core().close(CloseReason::Application),
            "open-requests" => {
                let open = self.core().unanswered();
                let open: Vec<String> = open.iter().map(|(ticket, payload)| say::open(ticket, payload.as_ref())).collect();
                self.out.push(format!("[{}]", open.join(", ")));
            }
            "status" => {
                let line = say::status(&self.core().status());
                self.out.push(line);
            }
            "pass" => {
                let end = self.now.plus_ms(words.parse());
                self.settle();
                while let Some((at, _)) = self.core().poll_timeout().filter(|(at, _)| *at <= end) {
                    self.now = self.now.plus_us(at.since_us(self.now));
                    let now = self.now;
                    self.core().handle_timeout(now);
                    self.settle();
                    let again = self.core().poll_timeout();
                    assert!(again.is_none_or(|(at, _)| at > now), "nothing is done about {again:?}");
                }
                self.now = end;
            }
            name => {
                let link = link(name);
                let frame = self.frame(words);
                self.core().handle_frame(link, frame, now);
            }
        }
        self.settle();
    }
}

impl Runner for World {
    fn command(&mut self, words: &mut Words<'_>) -> Vec<String> {
        self.line(words);
        std::mem::take(&mut self.out)
    }

    fn unread(&mut self) -> Vec<String> {
        self.writing.iter().map(say::batch).collect()
    }
}
