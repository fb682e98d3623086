//! A small record in which all is well, made with the product's own replica, and the means to spoil it.

use bytes::Bytes;
use cluster_client::Consistency;
use cluster_server::{Phase as ServerPhase, ServerStatus};
use voter_mesh::configuration::{Configuration, Member, Role, SeatRecord};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, DirectoryId, Epoch, Identity, LogIndex, Opening, RaftId, RequestId, RoomId, RunIndex, Seat, SessionId, Term, TimeMs,
};
use voter_mesh::machine::kv::{KvCommand, KvReply, KvValue, factory};
use voter_mesh::machine::{from_cbor, to_cbor};
use voter_mesh::mesh::message::Message;
use voter_mesh::outcome::{Outcome, Reply};
use voter_mesh::replica::{Replica, ReplicaLimits, SessionEvent};
use voter_mesh::run::{Run, Tail};
use voter_mesh::session::secret_hash;

use crate::sim::record::{CallId, ClientId, DiskFound, LearnerId, Operation, Phase, Returned, What};

pub(super) const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

pub(super) fn id(seat: u16) -> RaftId {
    RaftId::new(Seat(seat), 1)
}

fn three_voters() -> Configuration {
    let seat = |seat| {
        let member = Member { id: id(seat), directory: DirectoryId([seat as u8; 16]), role: Role::Voter };
        let (address, failure_domain) = (String::new(), String::new());
        (Seat(seat), SeatRecord { address, priority: 0, failure_domain, highest_life: 1, member: Some(member), incoming: None })
    };
    Configuration { seats: (1..=3).map(seat).collect(), ..Configuration::default() }
}

pub(super) fn seat(seat: u16) -> Seat {
    Seat(seat)
}

pub(super) fn put(key: &str, value: &str) -> KvCommand {
    KvCommand::Put { key: key.into(), value: value.into() }
}

pub(super) fn delete(key: &str) -> KvCommand {
    KvCommand::Delete { key: key.into() }
}

pub(super) fn read(value: &'static str, version: u64) -> Option<KvValue> {
    Some(KvValue { value: value.into(), version: LogIndex(version) })
}

/// The runs of a history with what came of them, and the events of its record.
pub(super) struct Story {
    pub(super) events: Vec<What>,
    pub(super) replica: Replica,
    /// Runs that are committed, with their verdict bits; the first is run 2.
    runs: Vec<(Run, Bytes)>,
    replies: Vec<Reply>,
    calls: u64,
}

impl Story {
    pub(super) fn empty() -> Self {
        let replica = Replica::form(IDENTITY, Configuration::default(), &factory(), ReplicaLimits::default());
        Self { events: Vec::new(), replica, runs: Vec::new(), replies: Vec::new(), calls: 0 }
    }

    /// Entry 1 is a no-op, 2 opens session 2, 3 puts, 4 deletes, 5 puts, 6 deletes; run 2 holds 1, run 3 holds 2, run 4 holds 3 and 4,
    /// run 5 holds 5 and run 6 holds 6. One server crashes on the way.
    pub(super) fn good() -> Self {
        let mut story = Self::empty();
        story.push(What::Phase(Phase::Forming));
        (1..=3).for_each(|server| story.push(What::Started { server: Seat(server), life: 1 }));
        story.push(What::Phase(Phase::Faults));
        story.mesh(
            2,
            1,
            Message::VoteReply { term: Term(2), pre: false, granted: true, commit: RunIndex(1), commit_term: Term(1) },
        );
        let noop = story.seal(2, &[entry(&EntrySpec::internal(EntryKind::Noop), b"").unwrap()]);
        story.commit(&noop);
        let open = story.seal(2, &[entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&[1; 32])).unwrap()]);
        story.commit(&open);
        let propose = |command| Operation::Propose { ticket: None, command };
        let calls = [story.call(1, propose(put("k", "v1"))), story.call(1, propose(delete("other")))];
        let run = story.seal(2, &[story.command(1, &put("k", "v1")), story.command(2, &delete("other"))]);
        story.commit(&run);
        calls.into_iter().zip(3..).for_each(|(call, index)| story.answered(call, index));
        story.streamed(1, 2, 3);
        story.learnt(1, 1, 4);
        story.read(2, Consistency::Linearizable, "k", read("v1", 3), Some(LogIndex(4)));
        story.push(What::Fault { kind: "crash", detail: "server 3".into() });
        story.push(What::Ended { server: Seat(3), how: crate::sim::record::End::PowerCut });
        story.push(What::Started { server: Seat(3), life: 2 });
        story.push(What::Phase(Phase::Healed));
        let call = story.call(1, propose(put("k", "v2")));
        let run = story.seal(2, &[story.command(3, &put("k", "v2"))]);
        story.commit(&run);
        story.answered(call, 5);
        story.read(1, Consistency::Session, "k", read("v2", 5), Some(LogIndex(5)));
        story.call_applied(2, propose(delete("k")));
        story.read(1, Consistency::Linearizable, "k", None, None);
        story.read(1, Consistency::Local, "k", read("v2", 5), Some(LogIndex(5)));
        let lost = story.call(2, propose(put("k", "never sent")));
        story.returned(lost, Returned::NoEffect("not sent"));
        for index in [4, 5, 6] {
            story.streamed(1, 2, index);
        }
        story.learnt(1, 1, 6);
        story.push(What::Phase(Phase::Quiet));
        story.learnt(1, 1, 6);
        for server in 1..=3 {
            let status = Box::new(story.status(server));
            story.push(What::Status { server: Seat(server), status });
            let runs = story.runs.iter().map(|(run, _)| *run.header()).collect();
            story.push(What::Disk(DiskFound { server: Seat(server), snapshot: None, runs, vote: (Term(2), id(1)) }));
        }
        story.push(What::Phase(Phase::Over));
        story.learnt(1, 1, 6);
        story
    }

    pub(super) fn push(&mut self, what: What) {
        self.events.push(what);
    }

    /// While servers and learners still have to say their last words.
    pub(super) fn before_the_end(&mut self, what: What) {
        let end = self.events.len() - 2;
        self.events.insert(end, what);
    }

    pub(super) fn command(&self, request: u64, command: &KvCommand) -> Bytes {
        let (session, opening, request) = (SessionId(2), Opening(2), RequestId(request));
        let spec = EntrySpec { kind: EntryKind::Command, room: RoomId(0), session, opening, request, floor: RequestId(1) };
        entry(&spec, &to_cbor(command).unwrap()).unwrap()
    }

    /// The next run of the history; not committed yet.
    pub(super) fn seal(&self, term: u64, entries: &[Bytes]) -> Run {
        sealed(self.replica.tail(), term, entries)
    }

    /// A run in the place of another.
    pub(super) fn fork(&self, run: u64, term: u64, entries: &[Bytes]) -> Run {
        sealed(&self.run(run - 1).header().tail(), term, entries)
    }

    /// A run behind one that need not be committed.
    pub(super) fn next_of(&self, run: &Run) -> Run {
        sealed(&run.header().tail(), run.header().term.0, &[self.command(99, &put("k", "behind"))])
    }

    /// A run is committed: its leader sends it, all servers' feeds give it.
    pub(super) fn commit(&mut self, run: &Run) {
        let term = run.header().term;
        for to in [2, 3] {
            self.append(1, to, term.0, std::slice::from_ref(run));
        }
        self.mesh(1, 2, Message::Heartbeat { term, commit: run.header().run, round: 0 });
        let applied = self.replica.apply(run).unwrap();
        self.replies.extend(applied.events.into_iter().filter_map(|event| match event {
            SessionEvent::Replied(reply) => Some(reply),
            _ => None,
        }));
        self.runs.push((run.clone(), Bytes::copy_from_slice(applied.verdicts.as_bytes())));
        (1..=3).for_each(|server| self.feed(server, run));
    }

    pub(super) fn run(&self, run: u64) -> Run {
        self.runs[run as usize - 2].0.clone()
    }

    pub(super) fn last_run(&self) -> RunIndex {
        self.replica.tail().run
    }

    pub(super) fn last(&self) -> LogIndex {
        self.replica.tail().last
    }

    pub(super) fn feed(&mut self, server: u16, run: &Run) {
        let known = self.runs.iter().find(|(known, _)| known == run).map(|(_, verdicts)| verdicts.clone());
        let verdicts = known.unwrap_or_else(|| Bytes::from_static(&[1]));
        self.push(What::Feed { server: Seat(server), run: run.clone(), verdicts });
    }

    pub(super) fn mesh(&mut self, from: u16, to: u16, message: Message) {
        self.push(What::Mesh { from: id(from), to: id(to), message });
    }

    pub(super) fn append(&mut self, from: u16, to: u16, term: u64, runs: &[Run]) {
        let first = runs[0].header();
        let previous_term = if first.run.0 == 2 { Term(1) } else { self.run(first.run.0 - 1).header().term };
        let (previous, commit) = (first.run.previous(), RunIndex(1));
        self.mesh(from, to, Message::Append { term: Term(term), previous, previous_term, commit, runs: runs.to_vec() });
    }

    pub(super) fn call(&mut self, client: u32, operation: Operation) -> CallId {
        self.calls += 1;
        self.push(What::Called { call: CallId(self.calls), client: ClientId(client), operation });
        CallId(self.calls)
    }

    pub(super) fn returned(&mut self, call: CallId, outcome: Returned) {
        self.push(What::Returned { call, outcome });
    }

    /// The call returns with what the replica answered at this index.
    fn answered(&mut self, call: CallId, index: u64) {
        let reply = self.replies.iter().find(|reply| reply.index.0 == index).unwrap().clone();
        let Outcome::Applied(bytes) = &reply.outcome else { panic!("{reply:?}") };
        let outcome = Some(from_cbor::<KvReply>(bytes).unwrap());
        self.returned(call, Returned::Applied { index: reply.index, term: reply.term, repeat: false, reply: outcome });
    }

    /// A command from its call to its answer.
    pub(super) fn call_applied(&mut self, client: u32, operation: Operation) {
        let Operation::Propose { command, .. } = operation.clone() else { panic!("{operation}") };
        let call = self.call(client, operation);
        let (index, request) = (self.last().next(), 100 + self.calls);
        let run = self.seal(2, &[self.command(request, &command)]);
        self.commit(&run);
        self.answered(call, index.0);
    }

    pub(super) fn read(
        &mut self,
        client: u32,
        consistency: Consistency,
        key: &'static str,
        value: Option<KvValue>,
        applied: Option<LogIndex>,
    ) {
        let call = self.call(client, Operation::Read { consistency, key: key.into() });
        self.returned(call, Returned::Read { value, applied });
    }

    pub(super) fn replied(&mut self, reply: Reply) {
        self.push(What::Replied { client: ClientId(9), server: Seat(1), reply });
    }

    pub(super) fn learnt(&mut self, client: u32, learner: u32, index: u64) {
        let run = self.runs.iter().map(|(run, _)| run.header()).find(|run| run.last().0 == index);
        let (learner, chain) = (LearnerId(ClientId(client), learner), run.map(|run| run.chain_after));
        self.push(What::Learnt { learner, index: LogIndex(index), chain, state_hash: None });
    }

    pub(super) fn streamed(&mut self, client: u32, stream: u32, index: u64) {
        let (run, _) = self.runs.iter().find(|(run, _)| run.header().last().0 >= index).unwrap();
        let (_, entry) = run.entries().find(|(at, _)| at.0 == index).unwrap();
        let (term, session, payload) = (run.header().term, entry.header.session, run.payload(&entry));
        let stream = LearnerId(ClientId(client), stream);
        self.push(What::Streamed { stream, index: LogIndex(index), term, session, payload });
    }

    /// Where the command that puts this value stands.
    pub(super) fn place(&self, value: &str) -> (LogIndex, Term) {
        let command = to_cbor(&put("k", value)).unwrap();
        let mut entries =
            self.runs.iter().flat_map(|(run, _)| run.entries().map(|(index, entry)| (index, run.header().term, entry.payload)));
        entries.find(|(_, _, payload)| *payload == command).map(|(index, term, _)| (index, term)).unwrap()
    }

    pub(super) fn status(&self, server: u16) -> ServerStatus {
        ServerStatus {
            seat: Seat(server),
            id: Some(id(server)),
            phase: if server == 1 { ServerPhase::Leading } else { ServerPhase::Following },
            room: "main".into(),
            cluster: Some(IDENTITY.cluster),
            epoch: IDENTITY.epoch,
            state_machine: "kv".into(),
            state_machine_version: 1,
            term: Term(2),
            leader: Some(id(1)),
            commit: self.last_run(),
            applied: self.last(),
            disk_full: false,
            clients: 2,
            sessions: 1,
            configuration: three_voters(),
            recovery: None,
            suspect: false,
            damage: Vec::new(),
            state_hash: Some("aa".into()),
            sessions_hash: Some("bb".into()),
            counters: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn spoil_status(&mut self, server: u16, spoil: impl Fn(&mut ServerStatus)) {
        for event in &mut self.events {
            if let What::Status { server: known, status } = event
                && known.0 == server
            {
                spoil(status);
            }
        }
    }

    /// Spoils the first answer to a command.
    pub(super) fn spoil_applied(&mut self, spoil: impl FnOnce(&mut LogIndex, &mut Term, &mut Option<KvReply>)) {
        let applied = self.events.iter_mut().find_map(|event| match event {
            What::Returned { outcome: Returned::Applied { index, term, reply, .. }, .. } => Some((index, term, reply)),
            _ => None,
        });
        let (index, term, reply) = applied.unwrap();
        spoil(index, term, reply);
    }

    pub(super) fn spoil_disk(&mut self, server: u16, spoil: impl FnOnce(&mut DiskFound)) {
        let mut disks = self.events.iter_mut().filter_map(|event| if let What::Disk(disk) = event { Some(disk) } else { None });
        spoil(disks.find(|disk| disk.server.0 == server).unwrap());
    }

    /// Gives a run of one server's feed other verdict bits.
    pub(super) fn spoil_feed(&mut self, server: u16, run: u64, bits: u8) {
        for event in &mut self.events {
            if let What::Feed { server: known, run: fed, verdicts } = event
                && (known.0, fed.header().run.0) == (server, run)
            {
                *verdicts = vec![bits].into();
            }
        }
    }
}

fn sealed(tail: &Tail, term: u64, entries: &[Bytes]) -> Run {
    let entries: Vec<&[u8]> = entries.iter().map(|entry| &entry[..]).collect();
    Run::seal(tail, Term(term), TimeMs(1_000), IDENTITY.epoch, IDENTITY.room, &entries).unwrap()
}
