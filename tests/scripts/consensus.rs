//! Voters, their disks and the wires between them. Time, timers, deliveries and syncs happen only as the script says, except that a
//! disk syncs at once unless it is held and a replica applies at once what is committed.

mod say;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use voter_mesh::configuration::{ConfigPayload, Configuration, Member, Role, SeatRecord};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, DirectoryId, Epoch, Identity, Incarnation, Opening, RaftId, ReadId, RequestId, RoomId, RunIndex, Seat, SessionId,
    Term, Time, TimeMs,
};
use voter_mesh::log::empty_tail;
use voter_mesh::mesh::message::{AdminRequest, Message};
use voter_mesh::raft::{
    Disconnect, DiskState, Event, Peer, Recovered, Timing, Transmit, Voter, VoterLimits, VoterOptions, Write, Written,
};
use voter_mesh::run::{Run, Tail};
use voter_mesh::snapshot::SnapshotMeta;

use crate::Runner;
use crate::words::Words;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

/// Every wall clock at the beginning.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// What a server's disk holds, and what waits for it.
struct Disk {
    term: Term,
    vote: RaftId,
    commit: RunIndex,
    before: Tail,
    runs: Vec<Run>,
    snapshot: Option<SnapshotMeta>,
    suspect: Option<Tail>,
    vote_lost: bool,
    waiting: VecDeque<Write>,
    held: bool,
}

struct Server {
    disk: Disk,
    voter: Option<Voter>,
    life: u64,
    now: Time,
    applied: Tail,
    configuration: Configuration,
    configuration_run: RunIndex,
}

/// What is on its way between two servers.
enum Parcel {
    Message(Message),
    Snapshot(Term, SnapshotMeta),
}

#[derive(Default)]
pub(crate) struct World {
    servers: BTreeMap<RaftId, Server>,
    links: BTreeSet<(RaftId, RaftId)>,
    /// Directions in which everything is lost without a word.
    cut: BTreeSet<(RaftId, RaftId)>,
    wire: VecDeque<(RaftId, RaftId, Parcel)>,
    limits: VoterLimits,
    requests: u64,
    out: Vec<String>,
}

fn meta(tail: Tail, configuration: &Configuration, configuration_run: RunIndex) -> SnapshotMeta {
    SnapshotMeta {
        tail,
        identity: IDENTITY,
        configuration: configuration.clone(),
        configuration_run,
        machine_name: "none".into(),
        machine_version: 1,
        state_hash: [0; 32],
        sessions_hash: [0; 32],
    }
}

impl Disk {
    fn empty() -> Self {
        Self {
            term: Term::ZERO,
            vote: RaftId::NONE,
            commit: RunIndex::ZERO,
            before: empty_tail(&IDENTITY),
            runs: Vec::new(),
            snapshot: None,
            suspect: None,
            vote_lost: false,
            waiting: VecDeque::new(),
            held: false,
        }
    }

    fn tail(&self) -> Tail {
        self.runs.last().map_or(self.before, |run| run.header().tail())
    }

    fn take(&mut self, write: Write) {
        if let Some(meta) = write.install {
            self.before = meta.tail;
            self.runs.clear();
        } else if let Some(keep) = write.keep_through {
            self.runs.retain(|run| run.header().run <= keep);
        }
        for run in write.runs {
            assert!(self.tail().continues(run.header()), "a write leaves a gap behind {:?}", self.tail());
            self.runs.push(run);
        }
        (self.term, self.vote, self.commit) = (write.term, write.vote, self.commit.max(write.commit));
        let end = self.tail();
        self.suspect = self.suspect.filter(|goal| (end.term, end.run) < (goal.term, goal.run));
    }
}

impl Server {
    fn apply(&mut self, run: &Run) {
        assert!(self.applied.continues(run.header()), "{run:?} is applied after {:?}", self.applied);
        self.applied = run.header().tail();
        if let Some(payload) = run.config_payload() {
            let ConfigPayload { base, configuration } = ConfigPayload::decode(payload).unwrap();
            if base == self.configuration_run {
                (self.configuration, self.configuration_run) = (configuration, run.header().run);
            }
        }
    }
}

fn ends(a: RaftId, b: RaftId) -> (RaftId, RaftId) {
    (a.min(b), a.max(b))
}

/// `3` is the first life of seat 3, `3.2` its second.
fn server(word: &str) -> RaftId {
    let (seat, life) = word.split_once('.').unwrap_or((word, "1"));
    match (seat.parse(), life.parse()) {
        (Ok(seat), Ok(life)) => RaftId::new(Seat(seat), life),
        _ => panic!("{word} is no server"),
    }
}

/// All that is left of a line: `1>2`, with `*` for every server.
fn directions(words: &mut Words<'_>) -> impl Fn(RaftId, RaftId) -> bool + use<> {
    let end = |word: &str| (word != "*").then(|| server(word));
    let ends = |word: &str| word.split_once('>').map(|(from, to)| (end(from), end(to)));
    let all: Vec<_> = words.rest().into_iter().map(|word| ends(word).unwrap_or_else(|| panic!("{word} is no direction"))).collect();
    move |a, b| all.iter().any(|(from, to)| from.is_none_or(|from| from == a) && to.is_none_or(|to| to == b))
}

impl World {
    fn say(&mut self, line: String) {
        self.out.push(line);
    }

    fn at(&mut self, id: RaftId) -> &mut Server {
        self.servers.get_mut(&id).unwrap_or_else(|| panic!("there is no server {id}"))
    }

    fn voter(&mut self, id: RaftId) -> (&mut Voter, Time) {
        let server = self.at(id);
        (server.voter.as_mut().unwrap_or_else(|| panic!("{id} does not run")), server.now)
    }

    fn up(&self, id: RaftId) -> bool {
        self.servers.get(&id).is_some_and(|server| server.voter.is_some())
    }

    fn all_up(&self) -> Vec<RaftId> {
        self.servers.keys().copied().filter(|id| self.up(*id)).collect()
    }

    /// A server, or `*` for all that run.
    fn some(&self, word: &str) -> Vec<RaftId> {
        if word == "*" { self.all_up() } else { vec![server(word)] }
    }

    fn place(&mut self, id: RaftId, disk: Disk) {
        let now = Time { monotonic_us: 1_000_000, unix_ms: TimeMs(BEGIN_MS) };
        let (applied, configuration, configuration_run) = (disk.before, Configuration::default(), RunIndex::ZERO);
        self.servers.insert(id, Server { disk, voter: None, life: 0, now, applied, configuration, configuration_run });
    }

    fn start(&mut self, id: RaftId) {
        assert!(!self.links.iter().any(|(a, b)| *a == id || *b == id), "the links of {id}'s old process still stand");
        let limits = self.limits.clone();
        let server = self.at(id);
        server.life += 1;
        (server.applied, server.configuration, server.configuration_run) = match &server.disk.snapshot {
            Some(meta) => (meta.tail, meta.configuration.clone(), meta.configuration_run),
            None => (empty_tail(&IDENTITY), Configuration::default(), RunIndex::ZERO),
        };
        let disk = &mut server.disk;
        disk.commit = disk.commit.min(disk.tail().run);
        let (commit, applied) = (disk.commit, server.applied.run);
        let recent: Vec<Run> = disk.runs.iter().filter(|run| run.header().run > applied).cloned().collect();
        recent.iter().filter(|run| run.header().run <= commit).for_each(|run| server.apply(run));
        let disk = &server.disk;
        let mut terms: Vec<(RunIndex, Term)> = Vec::new();
        for header in disk.runs.iter().map(Run::header) {
            if terms.last().is_none_or(|(_, term)| *term != header.term) {
                terms.push((header.run, header.term));
            }
        }
        let recovered = Recovered {
            term: disk.term,
            vote: disk.vote,
            commit,
            applied: server.applied,
            configuration: server.configuration.clone(),
            configuration_run: server.configuration_run,
            before_first: (disk.before.run, disk.before.term),
            terms,
            recent,
            tail: disk.tail(),
            snapshot: disk.snapshot.clone(),
            suspect: disk.suspect,
            vote_lost: disk.vote_lost,
        };
        let options = VoterOptions {
            id,
            incarnation: Incarnation(server.life),
            identity: IDENTITY,
            timing: Timing::default(),
            limits,
            seed: id.0 ^ (server.life << 50),
        };
        server.voter = Some(Voter::new(options, recovered, server.now).unwrap());
        self.drain(id);
    }

    fn link(&mut self, a: RaftId, b: RaftId) {
        if !self.links.insert(ends(a, b)) {
            return;
        }
        for (at, peer) in [(a, b), (b, a)] {
            let incarnation = Incarnation(self.at(peer).life);
            let (voter, now) = self.voter(at);
            voter.handle_connected(Peer { id: peer, incarnation }, now);
            self.drain(at);
        }
    }

    fn unlink(&mut self, a: RaftId, b: RaftId, how: Disconnect) {
        if self.links.remove(&ends(a, b)) {
            self.wire.retain(|(from, to, _)| ends(*from, *to) != ends(a, b));
            for (at, peer) in [(a, b), (b, a)] {
                if self.up(at) {
                    let (voter, now) = self.voter(at);
                    voter.handle_disconnected(peer, how, now);
                    self.drain(at);
                }
            }
        }
    }

    fn others(&self, id: RaftId) -> Vec<RaftId> {
        self.all_up().into_iter().filter(|other| *other != id).collect()
    }

    /// Takes all that a voter puts out.
    fn drain(&mut self, id: RaftId) {
        let name = say::server(id);
        loop {
            let mut progress = false;
            let mut transmits: Vec<Transmit> = std::iter::from_fn(|| self.voter(id).0.poll_transmit()).collect();
            // To whom first is nobody's business; in which order to one is.
            transmits.sort_by_key(|transmit| transmit.to);
            for Transmit { to, message } in transmits {
                progress = true;
                let line = format!("{name}→{} {}", say::server(to), say::message(&message));
                let fate = if !self.links.contains(&ends(id, to)) {
                    " (no link)"
                } else if self.cut.contains(&(id, to)) {
                    " (lost)"
                } else {
                    self.wire.push_back((id, to, Parcel::Message(message)));
                    ""
                };
                self.say(format!("{line}{fate}"));
            }
            while let Some(write) = self.voter(id).0.poll_write() {
                progress = true;
                let server = self.at(id);
                let line = say::write(
                    &write,
                    server.disk.waiting.back().map_or(server.disk.tail().run, |last| {
                        last.runs.last().map_or(server.disk.tail().run, |run| run.header().run)
                    }),
                );
                server.disk.waiting.push_back(write);
                let held = if server.disk.held { " (held)" } else { "" };
                self.say(format!("{name} writes {line}{held}"));
                if held.is_empty() {
                    self.sync(id);
                }
            }
            while let Some(event) = self.voter(id).0.poll_event() {
                progress = true;
                self.told(id, event);
            }
            if !progress {
                return;
            }
        }
    }

    fn sync(&mut self, id: RaftId) {
        let disk = &mut self.at(id).disk;
        let mut number = None;
        for write in std::mem::take(&mut disk.waiting) {
            number = Some(write.number);
            disk.take(write);
        }
        if let Some(number) = number {
            let (voter, now) = self.voter(id);
            voter.handle_written(Ok(Written { number }), now);
        }
    }

    fn told(&mut self, id: RaftId, event: Event) {
        self.say(format!("{} {}", say::server(id), say::event(&event)));
        match event {
            Event::Committed(runs) => {
                runs.iter().for_each(|run| self.at(id).apply(run));
                let last = runs.last().unwrap().header().run;
                let (voter, now) = self.voter(id);
                voter.handle_applied(last, now);
            }
            Event::Installed(meta) => {
                let server = self.at(id);
                let run = meta.tail.run;
                (server.applied, server.configuration) = (meta.tail, meta.configuration.clone());
                server.configuration_run = meta.configuration_run;
                server.disk.snapshot = Some(meta);
                let (voter, now) = self.voter(id);
                voter.handle_applied(run, now);
            }
            Event::SendSnapshot { to, term, meta } => self.wire.push_back((id, to, Parcel::Snapshot(term, meta))),
            Event::Fetch { first, last } => {
                let server = self.at(id);
                let wanted = server.disk.runs.iter().filter(|run| (first..=last).contains(&run.header().run));
                let runs = wanted.cloned().collect();
                let (voter, now) = self.voter(id);
                voter.handle_fetched(runs, now);
            }
            Event::VoteSettled => self.at(id).disk.vote_lost = false,
            _ => {}
        }
    }

    /// Gives a server what was sent to it.
    fn arrive(&mut self, from: RaftId, to: RaftId, parcel: Parcel) {
        if !self.up(to) {
            return;
        }
        let (voter, now) = self.voter(to);
        match parcel {
            Parcel::Message(message) => {
                if let Err(error) = voter.handle_message(from, message, now) {
                    self.say(format!("{} refuses it: {error}", say::server(to)));
                }
            }
            Parcel::Snapshot(term, meta) => {
                let said = voter.handle_snapshot(from, term, meta, now);
                let ok = said.is_ok();
                match said {
                    Ok(true) => {}
                    Ok(false) => self.say(format!("{} does not need it", say::server(to))),
                    Err(error) => self.say(format!("{} refuses it: {error}", say::server(to))),
                }
                self.drain(to);
                let (voter, now) = self.voter(from);
                voter.handle_snapshot_sent(to, ok, now);
                self.drain(from);
            }
        }
        self.drain(to);
    }

    /// Delivers the first `count` parcels of a direction.
    fn deliver(&mut self, goes: &dyn Fn(RaftId, RaftId) -> bool, count: usize) {
        let mut taken = Vec::new();
        let mut kept = VecDeque::new();
        for (from, to, parcel) in std::mem::take(&mut self.wire) {
            if goes(from, to) && taken.len() < count {
                taken.push((from, to, parcel));
            } else {
                kept.push_back((from, to, parcel));
            }
        }
        self.wire = kept;
        if taken.is_empty() {
            self.say("nothing is under way".into());
        }
        for (from, to, parcel) in taken {
            self.arrive(from, to, parcel);
        }
    }

    /// Lets a server's time pass, timer by timer, until `done`.
    fn pass(&mut self, id: RaftId, ms: u64, done: impl Fn(&Self) -> bool) {
        let end = self.at(id).now.plus_ms(ms);
        while !done(self) {
            let due = self.voter(id).0.poll_timeout().map(|(at, _)| at).filter(|at| at.monotonic_us <= end.monotonic_us);
            let server = self.at(id);
            let Some(due) = due else { return server.now = end };
            server.now = server.now.plus_us(due.since_us(server.now));
            let (voter, now) = self.voter(id);
            voter.handle_timeout(now);
            self.drain(id);
            let again = self.voter(id).0.poll_timeout();
            assert!(again.is_none_or(|(at, _)| at > now), "{id} does nothing about {again:?}");
        }
    }

    fn campaign(&mut self, id: RaftId) {
        let (from, asks, leads) = (self.out.len(), format!("{}→", say::server(id)), format!("{} is leader", say::server(id)));
        self.pass(id, 5_000, |world| {
            world.out[from..].iter().any(|line| line.starts_with(&leads) || line.starts_with(&asks) && line.contains("vote t"))
        });
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "they do not come to rest");
            let Some((from, to, parcel)) = self.wire.pop_front() else { break };
            self.arrive(from, to, parcel);
        }
    }

    fn command(&mut self, words: &mut Words<'_>) {
        match words.word() {
            // Servers, formed and linked to each other. `priorities` follow their order.
            "voters" => {
                let count: u16 = words.parse();
                let priorities: Vec<i32> = if words.is("priorities") {
                    words.rest().iter().map(|word| word.parse().unwrap()).collect()
                } else {
                    Vec::new()
                };
                let record = |seat: u16| SeatRecord {
                    address: format!("server-{seat}"),
                    priority: priorities.get(usize::from(seat) - 1).copied().unwrap_or(0),
                    failure_domain: String::new(),
                    highest_life: 1,
                    member: Some(Member {
                        id: RaftId::new(Seat(seat), 1),
                        directory: DirectoryId([seat as u8; 16]),
                        role: Role::Voter,
                    }),
                    incoming: None,
                };
                let seats = (1..=count).map(|seat| (Seat(seat), record(seat))).collect();
                let configuration = Configuration { seats, ..Configuration::default() };
                let before = Tail::zero(&IDENTITY);
                for seat in 1..=count {
                    let snapshot = Some(meta(before, &configuration, RunIndex(1)));
                    let disk = Disk { term: Term(1), commit: RunIndex(1), before, snapshot, ..Disk::empty() };
                    self.place(RaftId::new(Seat(seat), 1), disk);
                }
                for id in self.servers.keys().copied().collect::<Vec<_>>() {
                    self.start(id);
                    for other in self.others(id) {
                        self.link(id, other);
                    }
                }
            }
            "newcomer" => {
                let id = server(words.word());
                self.place(id, Disk::empty());
                self.start(id);
            }
            // One run, or one vote, per message.
            "one-run-per-message" => self.limits.append_bytes_max = 1,
            // A server's timers run until it campaigns, or leads.
            "campaign" => self.campaign(server(words.word())),
            // It campaigns, and everything is delivered.
            "lead" => {
                let id = server(words.word());
                self.campaign(id);
                self.settle();
            }
            "pass" => {
                let ids = self.some(words.word());
                let ms = words.parse();
                ids.into_iter().for_each(|id| self.pass(id, ms, |_| false));
            }
            // What is under way in these directions now; `only`: the first so many.
            "deliver" => {
                let count = words.after("only").unwrap_or(usize::MAX);
                let goes = directions(words);
                self.deliver(&goes, count);
            }
            "drop" => {
                let goes = directions(words);
                let before = self.wire.len();
                self.wire.retain(|(from, to, _)| !goes(*from, *to));
                if self.wire.len() == before {
                    self.say("nothing is under way".into());
                }
            }
            // Everything is delivered, and what comes of it, until nothing is under way.
            "settle" => self.settle(),
            "propose" => {
                let id = server(words.word());
                let mut batch = Vec::new();
                for payload in words.rest() {
                    self.requests += 1;
                    let spec = EntrySpec {
                        kind: EntryKind::Command,
                        room: RoomId(0),
                        session: SessionId(1),
                        opening: Opening(1),
                        request: RequestId(self.requests),
                        floor: RequestId(0),
                    };
                    batch.extend_from_slice(&entry(&spec, payload.as_bytes()).unwrap());
                }
                let (voter, now) = self.voter(id);
                if let Err(refused) = voter.handle_propose(Bytes::from(batch), now) {
                    self.say(format!("refused: {refused}"));
                }
                self.drain(id);
            }
            "read" => {
                let id = server(words.word());
                let read = ReadId(words.parse());
                let (voter, now) = self.voter(id);
                voter.handle_read(read, now).unwrap();
                self.drain(id);
            }
            "admin" => {
                let id = server(words.word());
                let request = match words.word() {
                    "add" => {
                        let seat = words.parse();
                        let address = format!("server-{seat}");
                        AdminRequest::AddSeat { seat: Seat(seat), address, priority: 0, failure_domain: String::new() }
                    }
                    "join" => AdminRequest::Join { seat: Seat(words.parse()), directory: DirectoryId([words.parse(); 16]) },
                    "promote" => AdminRequest::Promote { seat: Seat(words.parse()) },
                    "remove" => AdminRequest::RemoveSeat { seat: Seat(words.parse()) },
                    "transfer" => AdminRequest::Transfer { seat: Seat(words.parse()) },
                    _ => words.wrong("a request"),
                };
                let (voter, now) = self.voter(id);
                let said = match voter.handle_admin(request, now) {
                    Ok(progress) => format!("{progress:?}").to_lowercase(),
                    Err(refused) => format!("refused: {refused}"),
                };
                self.say(said);
                self.drain(id);
            }
            "hold" => self.at(server(words.word())).disk.held = true,
            // What waits is durable; `release`: and whatever comes, at once.
            verb @ ("sync" | "release") => {
                let id = server(words.word());
                self.at(id).disk.held &= verb == "sync";
                self.sync(id);
                self.drain(id);
            }
            "disk" => {
                let id = server(words.word());
                let state = if words.word() == "full" { DiskState::Full } else { DiskState::Good };
                let (voter, now) = self.voter(id);
                voter.handle_disk(state, now);
                self.drain(id);
            }
            // A process ends, with what waited for its disk. Nobody is told: its links are half open until they are torn.
            "crash" => {
                let id = server(words.word());
                self.at(id).voter = None;
                self.at(id).disk.waiting.clear();
                self.wire.retain(|(from, to, _)| *from != id && *to != id);
            }
            "start" => self.start(server(words.word())),
            "link" => {
                let (a, b) = (server(words.word()), words.word());
                let peers = if b == "*" { self.others(a) } else { vec![server(b)] };
                peers.into_iter().for_each(|b| self.link(a, b));
            }
            verb @ ("tear" | "close") => {
                let (a, b) = (server(words.word()), words.word());
                let how = if verb == "tear" { Disconnect::Torn } else { Disconnect::Closed };
                let peers = if b == "*" { self.servers.keys().copied().filter(|b| *b != a).collect() } else { vec![server(b)] };
                peers.into_iter().for_each(|b| self.unlink(a, b, how));
            }
            "cut" => {
                let goes = directions(words);
                let ids: Vec<RaftId> = self.servers.keys().copied().collect();
                let pairs = ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b && goes(*a, *b));
                self.cut.extend(pairs);
            }
            "heal" => self.cut.clear(),
            // A stopped server's disk has lost the runs from this one on; `silently`: it does not know.
            "lose" => {
                let disk = &mut self.at(server(words.word())).disk;
                let first = RunIndex(words.parse());
                let tail = disk.tail();
                disk.suspect = if words.is("silently") { None } else { Some(tail) };
                disk.runs.retain(|run| run.header().run < first);
            }
            "lose-vote" => {
                let disk = &mut self.at(server(words.word())).disk;
                (disk.vote, disk.vote_lost) = (RaftId::NONE, true);
            }
            // Takes a snapshot of what is applied, and keeps so many runs below it.
            "snapshot" => {
                let id = server(words.word());
                let keep: u64 = words.after("keep").unwrap_or(0);
                let server = self.at(id);
                let meta = meta(server.applied, &server.configuration, server.configuration_run);
                let (run, disk) = (meta.tail.run, &mut server.disk);
                disk.snapshot = Some(meta.clone());
                let before = RunIndex(run.0.saturating_sub(keep)).max(disk.before.run);
                if let Some(last) = disk.runs.iter().find(|run| run.header().run == before) {
                    disk.before = last.header().tail();
                }
                disk.runs.retain(|run| run.header().run > before);
                let term_before = disk.before.term;
                let (voter, now) = self.voter(id);
                voter.handle_snapshot_taken(meta, now);
                voter.handle_trimmed(before.next(), term_before);
                self.drain(id);
            }
            // A message that no honest server sent.
            "forge" => {
                let (from, to) = words.word().split_once('>').unwrap();
                let (from, to) = (server(from), server(to));
                let message = say::forged(words);
                self.arrive(from, to, Parcel::Message(message));
            }
            "status" => {
                let word = words.next().unwrap_or("*");
                for id in self.some(word) {
                    let line = say::status(&self.voter(id).0.status());
                    self.say(line);
                }
            }
            "log" => {
                let id = server(words.word());
                let disk = &self.at(id).disk;
                let (behind, runs) = (disk.before.run, say::runs(&disk.runs));
                self.say(format!("{} holds, behind {behind}: [{runs}]", say::server(id)));
            }
            // The wall clock of a server is set, to so many milliseconds after the beginning.
            "clock" => {
                let id = server(words.word());
                self.at(id).now.unix_ms = TimeMs(BEGIN_MS + words.parse::<u64>());
            }
            "times" => {
                let id = server(words.word());
                let times = self.at(id).disk.runs.iter().map(|run| (run.header().run, run.header().time.0 - BEGIN_MS));
                let times: Vec<String> = times.map(|(run, ms)| format!("{run} at {ms} ms")).collect();
                self.say(times.join(", "));
            }
            _ => words.wrong("a verb of consensus"),
        }
    }
}

impl Runner for World {
    fn command(&mut self, words: &mut Words<'_>) -> Vec<String> {
        // What was shown elsewhere: only how much it was, and who leads.
        let quietly = words.is("quietly");
        World::command(self, words);
        let lines = std::mem::take(&mut self.out);
        if !quietly {
            return lines;
        }
        let mut told: Vec<String> = lines.iter().filter(|line| line.contains(" is leader ")).cloned().collect();
        told.push(format!("({} lines)", lines.len()));
        told
    }

    fn unread(&mut self) -> Vec<String> {
        let wire = self.wire.iter().map(|(from, to, parcel)| {
            let what = match parcel {
                Parcel::Message(message) => say::message(message),
                Parcel::Snapshot(..) => "a snapshot".to_owned(),
            };
            format!("{}→{} {what}", say::server(*from), say::server(*to))
        });
        let waiting = self.servers.iter().filter(|(_, server)| !server.disk.waiting.is_empty());
        wire.chain(waiting.map(|(id, _)| format!("{} waits for its disk", say::server(*id)))).collect()
    }
}
