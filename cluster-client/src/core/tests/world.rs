//! One client in virtual time against servers that are real but for their consensus: rooms and replicas over one shared log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use relay::room::{ClientState, LinkId as RoomLink, Room, RoomEvent, RoomLimits, RoomOptions, STATE_PIECE_BYTES, Transmit};
use relay::wire::{Code, FeedMode, ServerFrame};
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{Chain, ClusterId, Epoch, Identity, LogIndex, RaftId, ReadId, RoomId, Seat, Term, Time, TimeMs};
use voter_mesh::machine::kv::{self, Kv, KvCommand};
use voter_mesh::machine::{StateMachine, to_cbor};
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::{Run, Tail};

use super::super::*;
use super::randomness;
use crate::follower::{Follower, Stateful, lock};
use crate::history::History;
use crate::journal::record::JournalState;

pub(super) struct Asking;

impl Waiters for Asking {
    type Propose = u32;
    type Reserve = u32;
    type Read = u32;
    type Fetch = u32;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Up,
    /// Connections are refused.
    Down,
    /// Connections are accepted, nothing is read or said.
    Stopped,
}

pub(super) struct Server {
    pub(super) room: Room,
    pub(super) replica: Replica,
    pub(super) health: Health,
    /// Does not apply what is committed.
    pub(super) lags: bool,
    /// Runs that it has applied.
    applied: usize,
    /// States that clients may read, by index.
    states: BTreeMap<LogIndex, Bytes>,
    inbox: VecDeque<(RoomLink, Bytes)>,
}

/// The cluster, which outlives clients.
pub(super) struct Cluster {
    pub(super) identity: Identity,
    pub(super) servers: Vec<Server>,
    pub(super) log: Vec<Run>,
    tail: Tail,
    pub(super) term: Term,
    /// Without it nothing commits and no read is confirmed.
    pub(super) quorum: bool,
    pub(super) parked: Vec<Bytes>,
    reads: Vec<(usize, ReadId)>,
    /// Every command that took effect, in order.
    pub(super) effective: Vec<Bytes>,
    /// Runs whose effects are counted.
    judged: usize,
}

impl Cluster {
    pub(super) fn new(servers: usize) -> Self {
        Self::of(servers, Epoch(1), RoomLimits::default())
    }

    pub(super) fn of(servers: usize, epoch: Epoch, limits: RoomLimits) -> Self {
        let identity = Identity { cluster: ClusterId([7; 16]), epoch, room: RoomId(0) };
        let server = |number: usize| {
            let replica = Replica::form(identity, Configuration::default(), &kv::factory(), ReplicaLimits::default());
            let options = RoomOptions {
                identity,
                name: "main".to_owned(),
                server: RaftId::new(Seat(number as u16 + 1), 1),
                machine: (Kv::NAME.to_owned(), Kv::VERSION),
                limits,
                endpoints: Vec::new(),
            };
            let tail = (replica.tail().last, replica.tail().chain);
            let room = Room::new(options, tail, Time::default());
            Server { room, replica, health: Health::Up, lags: false, applied: 0, states: BTreeMap::new(), inbox: VecDeque::new() }
        };
        Self {
            identity,
            servers: (0..servers).map(server).collect(),
            log: Vec::new(),
            tail: Tail::zero(&identity),
            term: Term(1),
            quorum: true,
            parked: Vec::new(),
            reads: Vec::new(),
            effective: Vec::new(),
            judged: 0,
        }
    }

    fn commit(&mut self, entries: &Bytes) {
        let run = Run::seal(&self.tail, self.term, TimeMs(0), self.identity.epoch, RoomId(0), &[entries]).unwrap();
        self.tail = run.header().tail();
        self.log.push(run);
    }

    /// Does all that servers do at once. Whether anything happened.
    fn step(&mut self, now: Time) -> bool {
        let mut moved = false;
        for number in 0..self.servers.len() {
            let server = &mut self.servers[number];
            if server.health != Health::Up {
                continue;
            }
            while let Some((link, bytes)) = server.inbox.pop_front() {
                let _ = server.room.handle_frame(link, bytes, server.replica.sessions(), now);
                moved = true;
            }
            if server.room.poll_timeout().is_some_and(|(at, _)| at <= now) {
                server.room.handle_timeout(server.replica.sessions(), now);
                moved = true;
            }
            while let Some(event) = server.room.poll_event() {
                match event {
                    RoomEvent::Propose(entries) => self.parked.push(entries),
                    RoomEvent::Read(read) => self.reads.push((number, read)),
                    RoomEvent::StateWanted { .. } => {
                        let image = server.replica.image();
                        let (mut bytes, mut sessions) = (Vec::new(), Vec::new());
                        let meta = image.write(&mut bytes, &mut sessions).unwrap();
                        let (index, chain) = (meta.tail.last, meta.tail.chain);
                        let state = ClientState { index, chain, hash: meta.state_hash, bytes: bytes.len() as u64 };
                        server.states.insert(index, bytes.into());
                        server.room.handle_state(Some(Arc::new(state)), now);
                    }
                    RoomEvent::PieceWanted { index, offset } => {
                        let bytes = &server.states[&index];
                        let end = bytes.len().min(offset as usize + STATE_PIECE_BYTES);
                        server.room.handle_piece(index, offset, Some(bytes.slice(offset as usize..end)), now);
                    }
                    RoomEvent::RunsWanted { from } => server.room.handle_runs(from, Vec::new(), now),
                    RoomEvent::ReadCancelled(_) | RoomEvent::Activity { .. } => {}
                }
                moved = true;
            }
        }
        if self.quorum {
            for entries in std::mem::take(&mut self.parked) {
                self.commit(&entries);
            }
            for (number, read) in std::mem::take(&mut self.reads) {
                self.servers[number].room.handle_read(read, self.tail.last, now);
            }
        }
        for server in self.servers.iter_mut().filter(|server| server.health == Health::Up && !server.lags) {
            while let Some(run) = self.log.get(server.applied) {
                let applied = server.replica.apply(run).unwrap();
                server.applied += 1;
                if server.applied > self.judged {
                    self.judged = server.applied;
                    let commands = run.entries().enumerate().filter(|(_, (_, entry))| entry.header.kind == EntryKind::Command);
                    let effective = commands.filter(|(offset, _)| applied.verdicts.get(*offset));
                    self.effective.extend(effective.map(|(_, (_, entry))| run.payload(&entry)));
                }
                server.room.handle_applied(&applied, now);
                moved = true;
            }
        }
        moved
    }
}

/// A client and what it told its callers.
pub(super) struct Client {
    pub(super) core: Core<Asking>,
    follower: Follower,
    pub(super) state: Arc<Mutex<Kv>>,
    pub(super) history: Arc<History>,
    connections: BTreeMap<LinkId, (usize, RoomLink)>,
    pub(super) proposed: BTreeMap<u32, ProposeResult>,
    pub(super) reserved: BTreeMap<u32, Result<Ticket, ReserveError>>,
    pub(super) reads: BTreeMap<u32, Result<(), ReadError>>,
    pub(super) fetched: BTreeMap<u32, Result<Vec<Bytes>, StreamError>>,
    /// Endpoints in the order dialled.
    pub(super) dialled: Vec<usize>,
    next: u32,
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) cluster: Cluster,
    pub(super) client: Client,
    pub(super) journal: JournalState,
    /// What a power cut may leave of it: what it held after each batch since the last durable one.
    pub(super) after_power_cut: Vec<JournalState>,
    /// Servers whose words do not reach the client.
    pub(super) mute: BTreeSet<usize>,
    /// The journal's disk does not answer.
    pub(super) journal_stalls: bool,
    next_link: u64,
}

pub(super) fn options(servers: usize) -> CoreOptions {
    CoreOptions {
        endpoints: (0..servers).map(|number| format!("ws://{number}/rooms/main")).collect(),
        start: 0,
        links: 1,
        room: "main".to_owned(),
        feed: FeedMode::Full,
        machine: Some((Kv::NAME.to_owned(), Kv::VERSION)),
        journal_kept: true,
        limits: CoreLimits::default(),
    }
}

fn client(options: CoreOptions, journal: &JournalState, seed: u64, now: Time) -> Client {
    let state = Arc::new(Mutex::new(Kv::default()));
    let history = Arc::new(History::new(1 << 20));
    Client {
        core: Core::new(options, journal, randomness(seed), now),
        follower: Follower::new(Box::new(Stateful::new(Arc::clone(&state)).unwrap()), Arc::clone(&history)),
        state,
        history,
        connections: BTreeMap::new(),
        proposed: BTreeMap::new(),
        reserved: BTreeMap::new(),
        reads: BTreeMap::new(),
        fetched: BTreeMap::new(),
        dialled: Vec::new(),
        next: 1,
    }
}

/// A command that sets a key of this name.
pub(super) fn put(name: &str) -> Bytes {
    to_cbor(&KvCommand::Put { key: name.as_bytes().to_vec(), value: b"v".to_vec() }).unwrap()
}

impl World {
    pub(super) fn new(servers: usize) -> Self {
        Self::with(Cluster::new(servers), options(servers))
    }

    pub(super) fn with(cluster: Cluster, options: CoreOptions) -> Self {
        let now = Time { monotonic_us: 1_000_000, unix_ms: TimeMs(0) };
        let journal = JournalState::default();
        let client = client(options, &journal, 1, now);
        let mut world = Self {
            now,
            cluster,
            client,
            journal,
            after_power_cut: Vec::new(),
            mute: BTreeSet::new(),
            journal_stalls: false,
            next_link: 1,
        };
        world.settle();
        world
    }

    /// The client's process dies; another one opens its journal.
    pub(super) fn restart_client(&mut self, options: CoreOptions) {
        let journal = self.journal.clone();
        self.open_client(options, &journal);
    }

    /// Another process opens this journal.
    pub(super) fn open_client(&mut self, options: CoreOptions, journal: &JournalState) -> Client {
        let seed = self.now.monotonic_us + self.next_link;
        let old = std::mem::replace(&mut self.client, client(options, journal, seed, self.now));
        for (server, link) in old.connections.values() {
            self.cluster.servers[*server].room.handle_disconnected(*link, self.now);
        }
        self.journal = journal.clone();
        self.settle();
        old
    }

    /// Kills a server: its connections are torn. Its replica comes back with `health = Up`.
    pub(super) fn kill(&mut self, number: usize) {
        self.cluster.servers[number].health = Health::Down;
        self.cluster.servers[number].inbox.clear();
        let torn: Vec<LinkId> =
            self.client.connections.iter().filter(|(_, (server, _))| *server == number).map(|(link, _)| *link).collect();
        for link in torn {
            self.disconnect(link);
            self.client.core.handle_link_down(link, LinkError::Torn(String::new()), self.now);
        }
        self.settle();
    }

    /// Cuts the connection to a server that lives on.
    pub(super) fn tear(&mut self, number: usize) {
        let torn = self.client.connections.iter().find(|(_, (server, _))| *server == number).map(|(link, _)| *link).unwrap();
        self.disconnect(torn);
        self.client.core.handle_link_down(torn, LinkError::Torn(String::new()), self.now);
        self.settle();
    }

    fn disconnect(&mut self, link: LinkId) {
        if let Some((server, room_link)) = self.client.connections.remove(&link) {
            self.cluster.servers[server].room.handle_disconnected(room_link, self.now);
        }
    }

    /// Runs everything that takes no time.
    pub(super) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "the world does not come to rest");
            let mut moved = self.client_events();
            moved |= self.client_journal();
            moved |= self.client_transmits();
            moved |= self.cluster.step(self.now);
            moved |= self.server_transmits();
            if !moved {
                return;
            }
        }
    }

    fn client_events(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.client.core.poll_event() {
            moved = true;
            let now = self.now;
            let client = &mut self.client;
            let told = match event {
                Event::Dial { link, endpoint } => {
                    let number: usize = endpoint["ws://".len()..].split('/').next().unwrap().parse().unwrap();
                    client.dialled.push(number);
                    match self.cluster.servers[number].health {
                        Health::Down => client.core.handle_link_down(link, LinkError::Unreachable(String::new()), now),
                        Health::Up | Health::Stopped => {
                            let room_link = RoomLink(self.next_link);
                            self.next_link += 1;
                            client.connections.insert(link, (number, room_link));
                            let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
                            self.cluster.servers[number].room.handle_connected(room_link, address, now).unwrap();
                            client.core.handle_link_up(link);
                        }
                    }
                    continue;
                }
                Event::Hangup { link } => {
                    self.disconnect(link);
                    continue;
                }
                Event::Proposed { waiter, request: _, result } => {
                    assert!(client.proposed.insert(waiter, result).is_none(), "answered twice");
                    continue;
                }
                Event::Reserved { waiter, result } => {
                    client.reserved.insert(waiter, result);
                    continue;
                }
                Event::Read { waiter, result } => {
                    client.reads.insert(waiter, result);
                    continue;
                }
                Event::Fetched { waiter, result } => {
                    client.fetched.insert(waiter, result);
                    continue;
                }
                Event::Begin { index, chain } => {
                    client.follower.begin(index, chain);
                    (Some((index, chain)), Ok(()))
                }
                Event::Feed { link, blocks } => client.follower.feed(link, blocks),
                Event::Install(snapshot) => {
                    let result = client.follower.install(&snapshot);
                    (Some((snapshot.index, snapshot.chain)), result)
                }
                Event::Reset => (None, client.follower.reset()),
            };
            let (position, result): (Option<(LogIndex, Chain)>, _) = told;
            if let Some((index, chain)) = position {
                client.core.handle_applied(index, chain);
            }
            if let Err(failed) = result {
                client.core.handle_apply_failed(failed, now);
            }
        }
        moved
    }

    fn client_journal(&mut self) -> bool {
        if self.journal_stalls {
            return false;
        }
        let Some(batch) = self.client.core.poll_journal() else { return false };
        for record in &batch.records {
            self.journal.fold(record);
        }
        if batch.durable {
            self.after_power_cut.clear();
        }
        self.after_power_cut.push(self.journal.clone());
        self.client.core.handle_journaled(Ok(()));
        true
    }

    fn client_transmits(&mut self) -> bool {
        let mut moved = false;
        for (link, (server, _)) in self.client.connections.clone() {
            while let Some(frame) = self.client.core.poll_transmit(link, self.now) {
                let (_, room_link) = self.client.connections[&link];
                self.cluster.servers[server].inbox.push_back((room_link, frame.encode()));
                moved = true;
            }
        }
        moved
    }

    fn server_transmits(&mut self) -> bool {
        let mut moved = false;
        for number in 0..self.cluster.servers.len() {
            if self.cluster.servers[number].health != Health::Up {
                continue;
            }
            while let Some(room_link) = self.cluster.servers[number].room.poll_wake(self.now) {
                moved = true;
                let mut out = Vec::new();
                let room = &mut self.cluster.servers[number].room;
                while room.poll_transmit(room_link, 1 << 16, &mut out, self.now) == Transmit::More {}
                let link = self.client.connections.iter().find(|(_, there)| **there == (number, room_link)).map(|(link, _)| *link);
                for message in out {
                    if let (Some(link), false) = (link, self.mute.contains(&number)) {
                        self.client.core.handle_frame(link, ServerFrame::decode(&message).unwrap(), self.now);
                        self.client_events();
                    }
                }
            }
        }
        moved
    }

    /// Lets time pass.
    pub(super) fn run_for(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        self.settle();
        loop {
            let rooms = self.cluster.servers.iter().filter(|server| server.health == Health::Up);
            let due = rooms.filter_map(|server| server.room.poll_timeout()).chain(self.client.core.poll_timeout());
            let next = due.map(|(at, _)| at.monotonic_us).min().unwrap_or(u64::MAX).max(self.now.monotonic_us + 1);
            if next > end.monotonic_us {
                break;
            }
            self.now = self.now.plus_us(next - self.now.monotonic_us);
            if self.client.core.poll_timeout().is_some_and(|(at, _)| at.monotonic_us <= self.now.monotonic_us) {
                self.client.core.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = end;
    }

    /// Proposes, waiting at most ten seconds.
    pub(super) fn propose(&mut self, payload: Bytes) -> u32 {
        self.propose_with(payload, None, WhenFull::Wait, 10_000)
    }

    pub(super) fn propose_as(&mut self, ticket: Ticket, payload: Bytes) -> u32 {
        self.propose_with(payload, Some(ticket), WhenFull::Wait, 10_000)
    }

    pub(super) fn propose_with(&mut self, payload: Bytes, ticket: Option<Ticket>, when_full: WhenFull, deadline_ms: u64) -> u32 {
        let waiter = self.waiter();
        self.client.core.propose(payload, ticket, when_full, self.now.plus_ms(deadline_ms), waiter);
        self.settle();
        waiter
    }

    pub(super) fn waiter(&mut self) -> u32 {
        self.client.next += 1;
        self.client.next
    }

    /// Reserves an id, which must succeed at once.
    pub(super) fn reserve(&mut self, id: Option<u64>) -> Ticket {
        let waiter = self.waiter();
        self.client.core.reserve(id.map(RequestId), self.now.plus_ms(10_000), waiter);
        self.run_for(10);
        self.client.reserved[&waiter].clone().unwrap()
    }

    pub(super) fn read(&mut self, after: ReadAfter, deadline_ms: u64) -> u32 {
        let waiter = self.waiter();
        self.client.core.read(after, self.now.plus_ms(deadline_ms), waiter, self.now);
        self.settle();
        waiter
    }

    pub(super) fn outcome(&mut self, ticket: Ticket) -> ProposeResult {
        let waiter = self.waiter();
        self.client.core.outcome(ticket, self.now.plus_ms(10_000), waiter);
        self.run_for(20_000);
        self.client.proposed.remove(&waiter).unwrap()
    }

    /// What a proposal was told; it must have been.
    pub(super) fn told(&self, waiter: u32) -> &ProposeResult {
        self.client.proposed.get(&waiter).expect("the call is answered")
    }

    /// How often a command took effect.
    pub(super) fn effects(&self, payload: &Bytes) -> usize {
        self.cluster.effective.iter().filter(|other| *other == payload).count()
    }

    /// Whether the client's replica is a server's.
    pub(super) fn is_replica_of(&self, number: usize) -> bool {
        let (mut theirs, mut sessions, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        self.cluster.servers[number].replica.image().write(&mut theirs, &mut sessions).unwrap();
        Kv::write(lock(&self.client.state).image(), &mut ours).unwrap();
        theirs == ours
    }

    /// A server says this to the client, on whatever link there is between them.
    pub(super) fn say(&mut self, number: usize, frame: ServerFrame) {
        let link = self.client.connections.iter().find(|(_, (server, _))| *server == number).map(|(link, _)| *link).unwrap();
        self.client.core.handle_frame(link, frame, self.now);
        self.settle();
    }

    pub(super) fn live_on(&self) -> Option<usize> {
        match self.client.core.status() {
            Status::Live { server, .. } => Some(usize::from(server.seat().0) - 1),
            _ => None,
        }
    }

    /// Restarts the log's history under another epoch.
    pub(super) fn restore_cluster(&mut self, epoch: u32) {
        let servers = self.cluster.servers.len();
        let links: Vec<LinkId> = self.client.connections.keys().copied().collect();
        for link in links {
            self.client.connections.remove(&link);
            self.client.core.handle_link_down(link, LinkError::Torn(String::new()), self.now);
        }
        self.cluster = Cluster::of(servers, Epoch(epoch), RoomLimits::default());
        self.run_for(100);
    }
}

pub(super) fn refused(code: Code) -> LinkError {
    LinkError::Refused(code)
}
