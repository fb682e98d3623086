//! A room over a real replica that stands for the whole cluster: what is proposed commits at once, unless the story holds it back.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;

use voter_mesh::configuration::Configuration;
use voter_mesh::ids::*;
use voter_mesh::learner::{Learner, LearnerState};
use voter_mesh::machine::{Machine, MachineFactory, Position, log};
use voter_mesh::replica::{Applied, Replica, ReplicaLimits};
use voter_mesh::run::{Run, Verdicts};
use voter_mesh::snapshot::SnapshotMeta;

use crate::room::*;
use crate::wire::*;

pub(super) const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };
pub(super) const SECRET: SessionSecret = SessionSecret([1; 32]);
pub(super) const BYTES: usize = 64 << 10;

pub(super) struct World {
    pub(super) room: Room,
    pub(super) replica: Replica,
    pub(super) now: Time,
    pub(super) term: Term,
    /// Proposals are kept here instead of being committed.
    pub(super) held: Option<Vec<Bytes>>,
    pub(super) reads: Vec<ReadId>,
    pub(super) cancelled: Vec<ReadId>,
    /// The least index and the part that each was wanted for.
    pub(super) states_wanted: Vec<(LogIndex, Option<PartialState>)>,
    /// The states that can be read, by index.
    pub(super) states: BTreeMap<LogIndex, Bytes>,
    /// Everything applied: the log on disk, which is read in chunks of so many runs.
    pub(super) log: Vec<(Run, Verdicts)>,
    pub(super) chunk_runs: usize,
    /// Entries from which on reads of the log were asked for.
    pub(super) runs_wanted: Vec<LogIndex>,
    /// The disk does not answer.
    pub(super) disk_stalls: bool,
    pub(super) activity: Vec<(Vec<SessionId>, Vec<SessionId>)>,
    pub(super) woken: Vec<LinkId>,
}

pub(super) fn factory() -> MachineFactory {
    log::factory()
}

pub(super) fn options(limits: RoomLimits) -> RoomOptions {
    let server = |seat: u16| ServerEntry { id: RaftId::new(Seat(seat), 1), endpoints: vec![format!("ws://server-{seat}:7400")] };
    RoomOptions {
        identity: IDENTITY,
        name: "main".into(),
        server: RaftId::new(Seat(1), 1),
        machine: (factory().name.into(), factory().version),
        limits,
        endpoints: vec![server(1), server(2), server(3)],
    }
}

pub(super) fn hello(feed: FeedMode) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster: None,
        epoch: None,
        room: "main".into(),
        auth: Vec::new(),
        state_machine: None,
        session: None,
        resume: None,
        feed,
        unanswered: Vec::new(),
        partial: None,
    }
}

pub(super) fn proposal(id: u64, payload: &'static [u8]) -> Proposal {
    Proposal { id: RequestId(id), floor: RequestId(0), payload: Bytes::from_static(payload) }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(RoomLimits::default())
    }

    pub(super) fn with(limits: RoomLimits) -> Self {
        let replica = Replica::form(IDENTITY, Configuration::default(), &factory(), ReplicaLimits::default());
        let now = Time { monotonic_us: 1_000_000_000, unix_ms: TimeMs(1_700_000_000_000) };
        let tail = (replica.tail().last, replica.tail().chain);
        Self {
            room: Room::new(options(limits), tail, now),
            replica,
            now,
            term: Term(1),
            held: None,
            reads: Vec::new(),
            cancelled: Vec::new(),
            states_wanted: Vec::new(),
            states: BTreeMap::new(),
            log: Vec::new(),
            chunk_runs: 10,
            runs_wanted: Vec::new(),
            disk_stalls: false,
            activity: Vec::new(),
            woken: Vec::new(),
        }
    }

    /// Commits laid-out entries as one run, on the replica only.
    pub(super) fn commit(&mut self, entries: &[u8]) -> Applied {
        let run = Run::seal(self.replica.tail(), self.term, self.now.unix_ms, IDENTITY.epoch, IDENTITY.room, &[entries]).unwrap();
        let applied = self.replica.apply(&run).unwrap();
        self.log.push((run, applied.verdicts.clone()));
        applied
    }

    /// Commits laid-out entries, and the room sees it.
    pub(super) fn apply(&mut self, entries: &[u8]) {
        let applied = self.commit(entries);
        self.room.handle_applied(&applied, self.now);
    }

    /// A run of one entry that means nothing.
    pub(super) fn noop(&mut self) {
        self.apply_noop();
        self.settle();
    }

    /// The same, and nobody looks yet what follows from it.
    pub(super) fn apply_noop(&mut self) {
        use voter_mesh::entry::{EntryKind, EntrySpec, entry};
        let entry = entry(&EntrySpec::internal(EntryKind::Noop), &[]).unwrap();
        self.apply(&entry);
    }

    /// Does what is due now, and everything that follows from it.
    pub(super) fn settle(&mut self) {
        loop {
            let mut progress = false;
            if self.room.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                self.room.handle_timeout(self.replica.sessions(), self.now);
                progress = true;
            }
            while let Some(event) = self.room.poll_event() {
                progress = true;
                match event {
                    RoomEvent::Propose(entries) => match &mut self.held {
                        Some(held) => held.push(entries),
                        None => self.apply(&entries),
                    },
                    RoomEvent::Read(read) => self.reads.push(read),
                    RoomEvent::ReadCancelled(read) => self.cancelled.push(read),
                    RoomEvent::StateWanted { least, partial } => self.states_wanted.push((least, partial)),
                    RoomEvent::PieceWanted { .. } if self.disk_stalls => {}
                    RoomEvent::PieceWanted { index, offset } => self.read_piece(index, offset),
                    RoomEvent::RunsWanted { from } => {
                        self.runs_wanted.push(from);
                        if !self.disk_stalls {
                            self.read_runs(from);
                        }
                    }
                    RoomEvent::Activity { attached, detached } => self.activity.push((attached, detached)),
                }
            }
            while let Some(link) = self.room.poll_wake(self.now) {
                self.woken.push(link);
            }
            if !progress {
                return;
            }
        }
    }

    /// Lets virtual time pass, stopping at each timeout.
    pub(super) fn pass_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        self.settle();
        while let Some((at, _)) = self.room.poll_timeout()
            && at <= end
        {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    pub(super) fn connect(&mut self, link: u64) -> LinkId {
        let link = LinkId(link);
        self.room.handle_connected(link, IpAddr::V4(Ipv4Addr::LOCALHOST), self.now).unwrap();
        link
    }

    /// Connects, says hello, and returns what came back.
    pub(super) fn join(&mut self, link: u64, hello: Hello) -> (LinkId, Vec<ServerFrame>) {
        let link = self.connect(link);
        let _ = self.say(link, ClientFrame::Hello(hello));
        let heard = self.hear(link);
        (link, heard)
    }

    pub(super) fn join_full(&mut self, link: u64) -> LinkId {
        let (link, heard) = self.join(link, hello(FeedMode::Full));
        assert!(matches!(heard[0], ServerFrame::Admit(_)), "{heard:?}");
        link
    }

    pub(super) fn say(&mut self, link: LinkId, frame: ClientFrame) -> Result<(), Code> {
        let said = self.room.handle_frame(link, frame.encode(), self.replica.sessions(), self.now);
        self.settle();
        said
    }

    pub(super) fn propose(&mut self, link: LinkId, proposals: Vec<Proposal>) {
        self.say(link, ClientFrame::Propose(proposals)).unwrap();
    }

    /// Opens a session on a link; the session and its opening.
    pub(super) fn open(&mut self, link: LinkId) -> (SessionId, Opening) {
        self.say(link, ClientFrame::SessionOpen { secret: SECRET }).unwrap();
        let opened = self.hear(link).into_iter().find_map(|frame| match frame {
            ServerFrame::SessionOpened { session, opening } => Some((session, opening)),
            _ => None,
        });
        opened.unwrap()
    }

    /// One poll of a link.
    pub(super) fn poll(&mut self, link: LinkId, bytes_max: usize) -> (Vec<Bytes>, Transmit) {
        let mut out = Vec::new();
        let transmit = self.room.poll_transmit(link, bytes_max, &mut out, self.now);
        self.woken.retain(|woken| *woken != link);
        (out, transmit)
    }

    /// Everything that a link has to be told now.
    pub(super) fn hear(&mut self, link: LinkId) -> Vec<ServerFrame> {
        let mut frames = Vec::new();
        loop {
            let (out, transmit) = self.poll(link, BYTES);
            frames.extend(out.iter().map(|message| ServerFrame::decode(message).unwrap()));
            if transmit != Transmit::More {
                return frames;
            }
        }
    }

    /// Everything that a link has to be told now and after all that it makes the owner read.
    pub(super) fn hear_all(&mut self, link: LinkId) -> Vec<ServerFrame> {
        let mut all = Vec::new();
        loop {
            all.extend(self.hear(link));
            self.settle();
            if !self.woken.contains(&link) {
                return all;
            }
        }
    }

    /// The disk answers with a chunk of the log.
    pub(super) fn read_runs(&mut self, from: LogIndex) {
        let at = self.log.partition_point(|(run, _)| run.header().last() < from);
        let runs = self.log.iter().skip(at).take(self.chunk_runs).cloned().collect();
        self.room.handle_runs(from, runs, self.now);
    }

    pub(super) fn read_piece(&mut self, index: LogIndex, offset: u64) {
        let offset_bytes = offset as usize;
        let piece =
            self.states.get(&index).map(|bytes| bytes.slice(offset_bytes..bytes.len().min(offset_bytes + STATE_PIECE_BYTES)));
        self.room.handle_piece(index, offset, piece, self.now);
    }

    /// The replica's state written out.
    pub(super) fn state(&self) -> (SnapshotMeta, Bytes) {
        let mut bytes = Vec::new();
        let meta = self.replica.image().write(&mut bytes, &mut Vec::new()).unwrap();
        (meta, bytes.into())
    }

    /// The replica's state as clients get it, ready to be read.
    pub(super) fn client_state(&mut self) -> Arc<ClientState> {
        let (meta, bytes) = self.state();
        self.state_of(meta.tail.last, meta.tail.chain, bytes)
    }

    pub(super) fn state_of(&mut self, index: LogIndex, chain: Chain, bytes: Bytes) -> Arc<ClientState> {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(&bytes).into();
        let state = ClientState { index, chain, hash, bytes: bytes.len() as u64 };
        self.states.insert(index, bytes);
        Arc::new(state)
    }

    /// Everything that its log holds can be served.
    pub(super) fn keep_from(&mut self, first: u64) {
        self.room.handle_kept(LogIndex(first));
    }
}

/// A client's learner of the `log` machine.
pub(super) struct Follower {
    pub(super) learner: Learner,
    pub(super) machine: Box<dyn Machine>,
    pub(super) payloads: Vec<Bytes>,
    pub(super) snapshot: Vec<u8>,
}

pub(super) struct State<'a>(&'a mut dyn Machine);

impl LearnerState for State<'_> {
    fn apply(&mut self, payload: &[u8], at: &Position) -> Result<(), voter_mesh::machine::Undecodable> {
        self.0.apply(payload, at).map(|_| ())
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        self.0.session_ended(session, at);
    }
}

impl Follower {
    pub(super) fn new() -> Self {
        let machine = factory().fresh();
        Self { learner: Learner::new(&IDENTITY), machine, payloads: Vec::new(), snapshot: Vec::new() }
    }

    pub(super) fn follow(&mut self, frames: &[ServerFrame]) {
        for frame in frames {
            match frame {
                ServerFrame::Feed(blocks) => {
                    let payloads = &mut self.payloads;
                    let mut each = |committed: voter_mesh::learner::Committed| payloads.push(committed.payload);
                    self.learner.apply_blocks(&mut blocks.clone(), &mut State(self.machine.as_mut()), &mut each).unwrap();
                }
                ServerFrame::Snapshot(chunk) => {
                    assert_eq!(chunk.offset, self.snapshot.len() as u64);
                    self.snapshot.extend_from_slice(&chunk.bytes);
                    if self.snapshot.len() as u64 == chunk.total {
                        self.machine = factory().restore(&mut &self.snapshot[..]).unwrap();
                        self.learner = Learner::at(chunk.index, chunk.chain);
                        self.snapshot.clear();
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn state(&mut self) -> State<'_> {
        State(self.machine.as_mut())
    }

    pub(super) fn point(&self) -> ResumePoint {
        ResumePoint { applied: self.learner.applied(), chain: self.learner.chain() }
    }

    pub(super) fn assert_equals(&self, world: &World) {
        let tail = world.replica.tail();
        assert_eq!((self.learner.applied(), self.learner.chain()), (tail.last, tail.chain));
        let mut own = Vec::new();
        self.machine.image().write(&mut own).unwrap();
        assert_eq!(own, world.state().1);
    }
}
