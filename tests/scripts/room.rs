//! A room over a replica that stands for the whole cluster: what is proposed commits at once unless it is held, a client hears at once
//! what there is for it unless it is slow, and the disk answers at once unless it stalls.

pub(crate) mod say;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use relay::feed::FeedLimits;
use relay::room::{ClientState, LinkId, Room, RoomEvent, RoomLimits, RoomOptions, STATE_PIECE_BYTES, Transmit};
use relay::wire::{
    ClientFrame, Code, FeedMode, Hello, PROTOCOL_VERSION, PartialState, Proposal, ResumePoint, ServerEntry, ServerFrame,
    SessionProof, SessionSecret,
};
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    Chain, ClusterId, Epoch, Identity, LogIndex, Opening, RaftId, ReadId, RequestId, RoomId, Seat, SessionId, Term, Time, TimeMs,
};
use voter_mesh::replica::{Applied, Replica, ReplicaLimits};
use voter_mesh::run::{Run, Tail, Verdicts};

use crate::words::Words;
use crate::{Runner, ledger};

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

pub(crate) struct World {
    limits: RoomLimits,
    room: Option<Room>,
    replica: Replica,
    now: Time,
    term: Term,
    held: Option<Vec<Bytes>>,
    /// All that was applied: the log on disk.
    log: Vec<(Run, Verdicts)>,
    states: BTreeMap<LogIndex, Bytes>,
    /// Runs in one answer of the disk.
    chunk_runs: usize,
    stalls: bool,
    wanted: Vec<RoomEvent>,
    links: BTreeSet<LinkId>,
    /// Links whose sockets take nothing by themselves.
    slow: BTreeSet<LinkId>,
    out: Vec<String>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            limits: RoomLimits::default(),
            room: None,
            replica: Replica::form(IDENTITY, Configuration::default(), &ledger::factory(), ReplicaLimits::default()),
            now: Time { monotonic_us: 1_000_000, unix_ms: TimeMs(0) },
            term: Term(1),
            held: None,
            log: Vec::new(),
            states: BTreeMap::new(),
            chunk_runs: 2,
            stalls: false,
            wanted: Vec::new(),
            links: BTreeSet::new(),
            slow: BTreeSet::new(),
            out: Vec::new(),
        }
    }
}

fn code(words: &mut Words<'_>) -> Code {
    match words.word() {
        "closing" => Code::Closing,
        "overloaded" => Code::Overloaded,
        _ => words.wrong("a code"),
    }
}

fn ids(words: &mut Words<'_>) -> Vec<RequestId> {
    words.after::<String>("unanswered").map_or(Vec::new(), |all| all.split(',').map(|id| RequestId(id.parse().unwrap())).collect())
}

fn feed_mode(words: &mut Words<'_>) -> FeedMode {
    match words.word() {
        "full" => FeedMode::Full,
        "thin" => FeedMode::Thin,
        "standby" => FeedMode::Standby,
        _ => words.wrong("a feed"),
    }
}

impl World {
    fn room(&mut self) -> &mut Room {
        let (limits, now, tail) = (self.limits, self.now, self.replica.tail());
        let (tail, machine) = ((tail.last, tail.chain), (ledger::factory().name.to_owned(), 1));
        let server = |seat: u16| ServerEntry { id: RaftId::new(Seat(seat), 1), endpoints: vec![format!("ws://{seat}:7400")] };
        self.room.get_or_insert_with(|| {
            let options = RoomOptions {
                identity: IDENTITY,
                name: "main".into(),
                server: RaftId::new(Seat(1), 1),
                machine,
                limits,
                endpoints: vec![server(1), server(2)],
            };
            Room::new(options, tail, now)
        })
    }

    /// Where the history stood at an index, or will if runs of one entry follow; inside a run is a chain that is nobody's.
    fn chain(&self, index: LogIndex) -> Chain {
        let mut tail = Tail::zero(&IDENTITY);
        let mut log = self.log.iter().map(|(run, _)| run.clone());
        while tail.last < index {
            tail = log.next().unwrap_or_else(|| self.noops(&tail, 1)).header().tail();
        }
        if tail.last == index { tail.chain } else { Chain(0) }
    }

    /// A run of so many entries that mean nothing.
    fn noops(&self, tail: &Tail, count: usize) -> Run {
        let noop = entry(&EntrySpec::internal(EntryKind::Noop), &[]).unwrap();
        Run::seal(tail, self.term, TimeMs(0), IDENTITY.epoch, IDENTITY.room, &vec![&noop[..]; count]).unwrap()
    }

    /// `resume 7`, or `resume 7 elsewhere` with a chain of another history.
    fn resume(&self, words: &mut Words<'_>) -> Option<ResumePoint> {
        let applied = LogIndex(words.after("resume")?);
        let elsewhere = words.is("elsewhere");
        let chain = self.chain(applied);
        Some(ResumePoint { applied, chain: if elsewhere { Chain(!chain.0) } else { chain } })
    }

    fn partial(&self, words: &mut Words<'_>) -> Option<PartialState> {
        let index = LogIndex(words.after("partial")?);
        let bytes = words.after("bytes").unwrap_or(0);
        let hash = self.states.get(&index).map_or([0; 32], |state| <sha2::Sha256 as sha2::Digest>::digest(state).into());
        Some(PartialState { index, hash, bytes })
    }

    fn commit(&mut self, run: Run) -> Applied {
        let applied = self.replica.apply(&run).unwrap();
        self.log.push((run, applied.verdicts.clone()));
        applied
    }

    /// Commits a run, and the room sees it.
    fn apply(&mut self, run: Run) {
        let applied = self.commit(run);
        let now = self.now;
        self.room().handle_applied(&applied, now);
    }

    fn seal(&self, entries: &[u8]) -> Run {
        Run::seal(self.replica.tail(), self.term, TimeMs(0), IDENTITY.epoch, IDENTITY.room, &[entries]).unwrap()
    }

    fn answer(&mut self, event: RoomEvent) {
        let now = self.now;
        match event {
            RoomEvent::RunsWanted { from } => {
                let at = self.log.partition_point(|(run, _)| run.header().last() < from);
                let runs = self.log.iter().skip(at).take(self.chunk_runs).cloned().collect();
                self.room().handle_runs(from, runs, now);
            }
            RoomEvent::StateWanted { .. } => {
                let mut bytes = Vec::new();
                let meta = self.replica.image().write(&mut bytes, &mut Vec::new()).unwrap();
                let (index, chain) = (meta.tail.last, meta.tail.chain);
                let state = ClientState { index, chain, hash: meta.state_hash, bytes: bytes.len() as u64 };
                self.states.insert(index, bytes.into());
                self.room().handle_state(Some(Arc::new(state)), now);
            }
            RoomEvent::PieceWanted { index, offset } => {
                let (from, state) = (offset as usize, &self.states[&index]);
                let piece = state.slice(from..state.len().min(from + STATE_PIECE_BYTES));
                self.room().handle_piece(index, offset, Some(piece), now);
            }
            _ => unreachable!("nothing else is asked of the disk"),
        }
    }

    /// Does what is due now and all that follows from it, and lets every link that is not slow hear what there is.
    fn settle(&mut self) {
        loop {
            let now = self.now;
            let mut progress = false;
            self.room();
            let World { room, replica, .. } = self;
            let room = room.as_mut().unwrap();
            if room.poll_timeout().is_some_and(|(at, _)| at <= now) {
                room.handle_timeout(replica.sessions(), now);
                progress = true;
            }
            while let Some(event) = self.room().poll_event() {
                progress = true;
                match event {
                    RoomEvent::Propose(entries) => {
                        self.out.push(format!("room proposes {}", say::entries(&entries)));
                        match &mut self.held {
                            Some(held) => held.push(entries),
                            None => self.apply(self.seal(&entries)),
                        }
                    }
                    event @ (RoomEvent::RunsWanted { .. } | RoomEvent::StateWanted { .. } | RoomEvent::PieceWanted { .. }) => {
                        self.out.push(say::event(&event));
                        if self.stalls { self.wanted.push(event) } else { self.answer(event) }
                    }
                    event => self.out.push(say::event(&event)),
                }
            }
            let mut woken = BTreeSet::new();
            let now = self.now;
            while let Some(link) = self.room().poll_wake(now) {
                woken.insert(link);
            }
            for link in &woken - &self.slow {
                progress = true;
                self.hear(link, 1 << 20);
            }
            while let Some(link) = self.room().poll_abort() {
                self.out.push(format!("room drops {}", link.0));
                self.gone(link);
            }
            if !progress {
                return;
            }
        }
    }

    /// A link's socket takes about so many bytes, at least one message.
    fn hear(&mut self, link: LinkId, bytes_max: usize) {
        let now = self.now;
        let mut messages = Vec::new();
        let transmit = self.room().poll_transmit(link, bytes_max, &mut messages, now);
        for message in messages {
            let frame = ServerFrame::decode(&message).unwrap();
            self.out.push(format!("→{} {}", link.0, say::server_frame(&frame)));
        }
        match transmit {
            Transmit::CloseAfter => {
                self.out.push(format!("→{} (closed)", link.0));
                self.gone(link);
            }
            Transmit::More if self.slow.contains(&link) => self.out.push(format!("→{} (there is more)", link.0)),
            Transmit::More => self.hear(link, bytes_max),
            Transmit::Idle => {}
        }
    }

    fn gone(&mut self, link: LinkId) {
        let now = self.now;
        self.room().handle_disconnected(link, now);
        self.links.remove(&link);
        self.slow.remove(&link);
    }

    fn say(&mut self, link: LinkId, message: Bytes) {
        let now = self.now;
        self.room();
        let World { room, replica, .. } = self;
        let said = room.as_mut().unwrap().handle_frame(link, message, replica.sessions(), now);
        if let Err(code) = said {
            self.out.push(format!("room ends {}: {code:?}", link.0));
        }
    }

    fn frame(&self, verb: &str, words: &mut Words<'_>) -> ClientFrame {
        match verb {
            "hello" => {
                let feed = feed_mode(words);
                let mut hello = Hello {
                    version: words.after("version").unwrap_or(PROTOCOL_VERSION),
                    cluster: words.after("cluster").map(|byte| ClusterId([byte; 16])),
                    epoch: words.after("epoch").map(Epoch),
                    room: words.after("room").unwrap_or_else(|| "main".to_owned()),
                    auth: Vec::new(),
                    state_machine: words.after("machine").map(|name| (name, 1)),
                    session: None,
                    resume: self.resume(words),
                    feed,
                    unanswered: Vec::new(),
                    partial: self.partial(words),
                };
                if let Some(session) = words.after("session") {
                    let opening = words.after("opening").map(Opening);
                    let secret = words.after::<String>("secret").unwrap_or_else(|| "A".into());
                    hello.session = Some(SessionProof {
                        session: SessionId(session),
                        secret: SessionSecret([secret.as_bytes()[0]; 32]),
                        opening,
                    });
                }
                hello.unanswered = ids(words);
                ClientFrame::Hello(hello)
            }
            "open" => ClientFrame::SessionOpen { secret: SessionSecret([words.word().as_bytes()[0]; 32]) },
            "attach" => {
                let nonce = [words.parse(); 16];
                ClientFrame::SessionAttach { nonce, previous: words.after("previous").map_or(Opening(0), Opening) }
            }
            "close-session" => ClientFrame::SessionClose,
            "propose" => {
                let mut proposals = Vec::new();
                loop {
                    let (id, payload) = (RequestId(words.parse()), Bytes::from(words.payload()));
                    proposals.push(Proposal { id, floor: words.after("floor").map_or(RequestId(1), RequestId), payload });
                    if !words.is(";") {
                        return ClientFrame::Propose(proposals);
                    }
                }
            }
            "read-index" => ClientFrame::ReadIndex { id: words.parse() },
            "fetch" => ClientFrame::Fetch { from: LogIndex(words.parse()), to: LogIndex(words.parse()) },
            "resume-as" => {
                let feed = feed_mode(words);
                let resume = self.resume(words);
                let partial = self.partial(words);
                ClientFrame::Resume { resume, feed, unanswered: ids(words), partial }
            }
            "ack" => ClientFrame::Ack { applied: LogIndex(words.parse()) },
            "ping" => ClientFrame::Ping { nonce: words.parse() },
            _ => words.wrong("a client's frame"),
        }
    }

    fn line(&mut self, words: &mut Words<'_>) {
        let now = self.now;
        match words.word() {
            "limits" => {
                let mut limits = RoomLimits::default();
                let feed = &mut limits.feed;
                *feed = FeedLimits {
                    feed_ring_bytes_max: words.after("ring").unwrap_or(feed.feed_ring_bytes_max),
                    feed_frame_bytes_max: words.after("frame").unwrap_or(feed.feed_frame_bytes_max),
                };
                limits.session_frames_max = words.after("session-frames").unwrap_or(limits.session_frames_max);
                limits.links_per_address_max = words.after("links-per-address").unwrap_or(limits.links_per_address_max);
                limits.outbox_bytes_max = words.after("outbox").unwrap_or(limits.outbox_bytes_max);
                limits.fetches_per_link_max = words.after("fetches").unwrap_or(limits.fetches_per_link_max);
                self.limits = limits;
            }
            // A client says something on its link; `connect` first, unless it is its hello.
            "connect" => {
                let link = LinkId(words.parse());
                match self.room().handle_connected(link, IpAddr::V4(Ipv4Addr::LOCALHOST), now) {
                    Ok(()) => drop(self.links.insert(link)),
                    Err(code) => self.out.push(format!("room does not take {}: {code:?}", link.0)),
                }
            }
            "gone" => self.gone(LinkId(words.parse())),
            "raw" => {
                let link = LinkId(words.parse());
                let bytes: Vec<u8> = words.rest().iter().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
                self.say(link, bytes.into());
            }
            // Its socket takes nothing until `hear`.
            "slow" => drop(self.slow.insert(LinkId(words.parse()))),
            "hear" => {
                let link = LinkId(words.parse());
                let bytes_max = words.after("bytes").unwrap_or(1);
                self.settle();
                self.hear(link, bytes_max);
            }
            "quick" => {
                let link = LinkId(words.parse());
                self.slow.remove(&link);
                self.settle();
                self.hear(link, 1 << 20);
            }
            // So many runs are committed, each of so many entries that mean nothing.
            "commit" => {
                let (runs, entries): (u64, usize) = (words.parse(), words.after("of").unwrap_or(1));
                for _ in 0..runs {
                    self.apply(self.noops(self.replica.tail(), entries));
                }
            }
            "term" => self.term = Term(words.parse()),
            // What is proposed waits, until it is committed or lost.
            "hold" => self.held = Some(Vec::new()),
            "release" => {
                for entries in self.held.take().unwrap_or_default() {
                    self.apply(self.seal(&entries));
                }
            }
            "lose" => self.held = None,
            "stall" => self.stalls = true,
            "answer" => {
                self.stalls = false;
                for event in std::mem::take(&mut self.wanted) {
                    self.answer(event);
                    self.settle();
                }
            }
            "kept" => {
                let first = LogIndex(words.parse());
                self.room().handle_kept(first);
            }
            // The replica has jumped to a snapshot behind what was held, and the room saw nothing of it.
            "jump" => {
                for entries in self.held.take().unwrap_or_default() {
                    let run = self.seal(&entries);
                    self.commit(run);
                }
                let (last, chain) = (self.replica.tail().last, self.replica.tail().chain);
                let World { room, replica, .. } = self;
                room.as_mut().unwrap().handle_restored((last, chain), replica.sessions(), now);
            }
            "read" => {
                let read = ReadId(words.parse());
                match words.after("at") {
                    Some(index) => self.room().handle_read(read, LogIndex(index), now),
                    None => self.room().handle_read_refused(read, now),
                }
            }
            "leader" => {
                let leader = match words.word() {
                    "none" => None,
                    seat => Some(RaftId::new(Seat(seat.parse().unwrap()), 1)),
                };
                self.room().handle_leader(leader, now);
                if leader.is_some() {
                    self.room().report_all_sessions();
                }
            }
            "overloaded" => self.room().handle_overloaded(true),
            "relieved" => self.room().handle_overloaded(false),
            "recovering" => self.room().handle_recovering(true),
            "recovered" => self.room().handle_recovering(false),
            "close" => {
                let code = code(words);
                let retry_after_ms = words.after("retry");
                self.room().handle_close(code, retry_after_ms);
            }
            "pass" => {
                let end = self.now.plus_ms(words.parse());
                self.settle();
                while let Some((at, _)) = self.room().poll_timeout().filter(|(at, _)| *at <= end) {
                    self.now = self.now.plus_us(at.since_us(self.now));
                    self.settle();
                }
                self.now = end;
            }
            "feed" => {
                let feed = self.room().feed();
                let line = format!("ring {} to {}", feed.first(), feed.tail().0);
                self.out.push(line);
            }
            link => {
                let link = LinkId(link.parse().unwrap_or_else(|_| words.wrong("a verb of rooms, or a link")));
                let verb = words.word();
                if verb == "hello" && !self.links.contains(&link) {
                    self.room().handle_connected(link, IpAddr::V4(Ipv4Addr::LOCALHOST), now).unwrap();
                    self.links.insert(link);
                }
                let frame = self.frame(verb, words);
                self.say(link, frame.encode());
                if words.is("|") {
                    // Before anybody looks what the room has to say.
                    return self.line(words);
                }
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
        for link in self.slow.clone() {
            let mut unheard = Vec::new();
            self.room().poll_transmit(link, 1, &mut unheard, Time::default());
            if !unheard.is_empty() {
                self.out.push(format!("{} has not heard all", link.0));
            }
        }
        let held = self.held.iter().flatten().map(|entries| format!("held: {}", say::entries(entries)));
        let unread: Vec<String> = held.chain(self.wanted.iter().map(say::event)).collect();
        self.out.drain(..).chain(unread).collect()
    }
}
