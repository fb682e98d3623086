//! A cluster of voters in virtual time: links that tear, disks that take their time and lose what was not synced, one seed.
//!
//! It checks as it goes: one leader per term, leaders that have all that is committed, one committed history, a disk whose fences
//! hold, terms and commits that never fall, reads that see all that was committed when they began.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

use bytes::Bytes;

use super::super::*;
use crate::configuration::{Member, SeatRecord};
use crate::entry::EntryKind;
use crate::ids::{DirectoryId, LogIndex, Opening, SessionId, TimeMs};
use crate::log::{Intent, Mark, empty_tail};
use crate::testing::{IDENTITY, command};

pub(super) fn id(seat: u16) -> RaftId {
    RaftId::new(Seat(seat), 1)
}

/// A configuration of voters with the first life on seats 1 to `seats`.
pub(super) fn formed(seats: u16) -> Configuration {
    let record = |seat: u16| SeatRecord {
        address: format!("server-{seat}"),
        priority: 0,
        failure_domain: String::new(),
        highest_life: 1,
        member: Some(Member { id: id(seat), directory: DirectoryId([seat as u8; 16]), role: Role::Voter }),
        incoming: None,
    };
    Configuration { seats: (1..=seats).map(|seat| (Seat(seat), record(seat))).collect(), ..Configuration::default() }
}

/// What a server's disk holds, and what is on its way there.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) term: Term,
    pub(super) vote: RaftId,
    pub(super) commit: RunIndex,
    /// The log begins behind this.
    pub(super) before: Tail,
    pub(super) runs: Vec<Run>,
    pub(super) snapshot: Option<SnapshotMeta>,
    pub(super) suspect: Option<Tail>,
    pub(super) vote_lost: bool,
    pending: VecDeque<Write>,
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
            pending: VecDeque::new(),
        }
    }

    pub(super) fn formed(configuration: &Configuration) -> Self {
        let before = Tail::zero(&IDENTITY);
        let snapshot = Some(meta(before, configuration, RunIndex(1)));
        Self { term: Term(1), commit: RunIndex(1), before, snapshot, ..Self::empty() }
    }

    pub(super) fn tail(&self) -> Tail {
        self.runs.last().map_or(self.before, |run| run.header().tail())
    }

    /// Makes a write durable, as the log on disk would, with its fences.
    fn take(&mut self, write: Write) {
        let last = self.tail();
        let cut = write.keep_through.filter(|keep| *keep < last.run);
        let writes = write.install.is_some() || cut.is_some() || !write.runs.is_empty();
        let mark = Mark {
            sequence: 0,
            segment: 0,
            term: self.term,
            vote: self.vote,
            commit: self.commit,
            last,
            synced_through: last.run,
            must_reach: None,
            vote_lost: false,
        };
        mark.admit(&Intent {
            term: write.term,
            vote: write.vote,
            writer: writes.then_some(write.writer_term),
            cut_above: cut,
            restart_behind: write.install.as_ref().map(|meta| meta.tail.run),
        })
        .unwrap();
        if let Some(meta) = &write.install {
            self.before = meta.tail;
            self.runs.clear();
        } else if let Some(keep) = cut {
            self.runs.truncate((keep.0 - self.before.run.0) as usize);
        }
        for run in write.runs {
            assert!(self.tail().continues(run.header()), "a write leaves a gap: {:?} then {run:?}", self.tail());
            self.runs.push(run);
        }
        (self.term, self.vote, self.commit) = (write.term, write.vote, self.commit.max(write.commit));
        assert!(self.commit <= self.tail().run, "more is committed than there is");
        if self.suspect.is_some_and(|goal| (self.tail().term, self.tail().run) >= (goal.term, goal.run)) {
            self.suspect = None;
        }
    }
}

fn meta(tail: Tail, configuration: &Configuration, configuration_run: RunIndex) -> SnapshotMeta {
    SnapshotMeta {
        tail,
        identity: IDENTITY,
        configuration: configuration.clone(),
        configuration_run,
        machine_name: "tail".into(),
        machine_version: 1,
        state_hash: [0; 32],
        sessions_hash: [0; 32],
    }
}

/// A server: its disk, and while it runs its voter and its replica.
pub(super) struct Server {
    pub(super) disk: Disk,
    pub(super) voter: Option<Voter>,
    pub(super) life: u64,
    /// What its replica has applied.
    pub(super) applied: Tail,
    pub(super) configuration: Configuration,
    configuration_run: RunIndex,
    linked: BTreeSet<RaftId>,
    seen: (Term, RunIndex),
    disk_free: u64,
    pub(super) overloaded: bool,
    /// Its disk takes no runs; what waits behind them waits too.
    full: bool,
    stuck: VecDeque<u64>,
    pub(super) vote_settled: u32,
    pub(super) installed: u32,
    pub(super) fetched: u32,
    /// This run cannot be read back from its disk.
    pub(super) rotten: Option<RunIndex>,
}

pub(super) enum Happening {
    Deliver { from: RaftId, to: RaftId, link: u64, message: Message },
    Written { at: RaftId, life: u64, number: u64 },
    Link { ends: (RaftId, RaftId) },
    Torn { at: RaftId, peer: RaftId, link: u64 },
    Applied { at: RaftId, life: u64, run: RunIndex },
    Snapshot { from: RaftId, to: RaftId, link: u64, term: Term, meta: SnapshotMeta },
    SnapshotTaken { at: RaftId, life: u64 },
    Fetched { at: RaftId, life: u64, first: RunIndex, last: RunIndex },
}

/// How fast and how faithful the world is.
#[derive(Clone)]
pub(super) struct WorldOptions {
    pub(super) net_us: (u64, u64),
    pub(super) disk_us: (u64, u64),
    pub(super) apply_us: (u64, u64),
    pub(super) loss_permille: u64,
    pub(super) limits: VoterLimits,
}

impl Default for WorldOptions {
    fn default() -> Self {
        let limits = VoterLimits::default();
        Self { net_us: (50, 400), disk_us: (100, 1_500), apply_us: (0, 300), loss_permille: 0, limits }
    }
}

pub(super) struct Cluster {
    pub(super) now: Time,
    seed: u64,
    rng: u64,
    pub(super) options: WorldOptions,
    pub(super) servers: BTreeMap<RaftId, Server>,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    links: BTreeMap<(RaftId, RaftId), u64>,
    fifo: BTreeMap<(RaftId, RaftId), u64>,
    /// Directions in which everything is lost without a word.
    pub(super) cut: BTreeSet<(RaftId, RaftId)>,
    severed: BTreeSet<(RaftId, RaftId)>,
    /// All that is committed, from run 2 on.
    pub(super) log: Vec<Run>,
    pub(super) leaders: BTreeMap<Term, RaftId>,
    pub(super) trace: u64,
    reads: BTreeMap<ReadId, RunIndex>,
    pub(super) answers: BTreeMap<ReadId, RunIndex>,
    /// Servers whose disks take other times than the world's.
    pub(super) disk_us: BTreeMap<RaftId, (u64, u64)>,
    /// Who handed over because of its disk.
    pub(super) hand_overs: Vec<(RaftId, RaftId, HandOver)>,
    pub(super) admin: Vec<(AdminRequest, Result<(), String>)>,
    pub(super) messages: BTreeMap<&'static str, u64>,
    pub(super) fatal: Option<(RaftId, FatalError)>,
}

impl Cluster {
    pub(super) fn new(seats: u16, seed: u64) -> Self {
        Self::with(seats, seed, WorldOptions::default())
    }

    pub(super) fn with(seats: u16, seed: u64, options: WorldOptions) -> Self {
        let mut cluster = Self {
            now: Time { monotonic_us: 1_000_000, unix_ms: TimeMs(1_700_000_000_000) },
            seed,
            rng: seed ^ 0x005e_ed00_u64,
            options,
            servers: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            links: BTreeMap::new(),
            fifo: BTreeMap::new(),
            cut: BTreeSet::new(),
            severed: BTreeSet::new(),
            log: Vec::new(),
            leaders: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            reads: BTreeMap::new(),
            answers: BTreeMap::new(),
            disk_us: BTreeMap::new(),
            hand_overs: Vec::new(),
            admin: Vec::new(),
            messages: BTreeMap::new(),
            fatal: None,
        };
        let configuration = formed(seats);
        for seat in 1..=seats {
            cluster.place(id(seat), Disk::formed(&configuration));
            cluster.start(id(seat));
        }
        cluster
    }

    /// A server that has nothing and waits to be let in.
    pub(super) fn newcomer(&mut self, id: RaftId) {
        self.place(id, Disk::empty());
        self.start(id);
    }

    pub(super) fn place(&mut self, id: RaftId, disk: Disk) {
        let server = Server {
            disk,
            voter: None,
            life: 0,
            applied: empty_tail(&IDENTITY),
            configuration: Configuration::default(),
            configuration_run: RunIndex::ZERO,
            linked: BTreeSet::new(),
            seen: (Term::ZERO, RunIndex::ZERO),
            disk_free: 0,
            overloaded: false,
            full: false,
            stuck: VecDeque::new(),
            vote_settled: 0,
            installed: 0,
            fetched: 0,
            rotten: None,
        };
        self.servers.insert(id, server);
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }

    fn within(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.random(most - least + 1)
    }

    fn note(&mut self, what: &impl Debug) {
        for byte in format!("{} {what:?}", self.now.monotonic_us).bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn after(&mut self, us: u64, happening: Happening) {
        self.at(self.now.monotonic_us + us, happening);
    }

    fn at(&mut self, us: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((us, self.sequence), happening);
    }

    // ---- lives

    /// Starts a server from its disk and links it to all others.
    pub(super) fn start(&mut self, id: RaftId) {
        let (seed, now, limits) = (self.seed, self.now, self.options.limits.clone());
        let server = self.servers.get_mut(&id).unwrap();
        server.life += 1;
        let disk = &mut server.disk;
        if let Some(snapshot) = &disk.snapshot {
            let held = disk.runs.iter().any(|run| run.header().tail() == snapshot.tail) || disk.before == snapshot.tail;
            if !held && disk.before.run < snapshot.tail.run {
                disk.before = snapshot.tail;
                disk.runs.clear();
            }
            disk.commit = disk.commit.max(snapshot.tail.run);
        }
        let tail = disk.tail();
        disk.commit = disk.commit.min(tail.run);
        if tail.term > disk.term {
            (disk.term, disk.vote) = (tail.term, RaftId::NONE);
        }
        (server.applied, server.configuration, server.configuration_run) = match &disk.snapshot {
            Some(meta) => (meta.tail, meta.configuration.clone(), meta.configuration_run),
            None => (empty_tail(&IDENTITY), Configuration::default(), RunIndex::ZERO),
        };
        let recent: Vec<Run> = disk.runs.iter().filter(|run| run.header().run > server.applied.run).cloned().collect();
        let (commit, runs) = (disk.commit, recent.clone());
        for run in runs.iter().filter(|run| run.header().run <= commit) {
            server.apply(run);
        }
        let disk = &server.disk;
        let mut terms: Vec<(RunIndex, Term)> = Vec::new();
        for run in &disk.runs {
            if terms.last().is_none_or(|(_, term)| *term != run.header().term) {
                terms.push((run.header().run, run.header().term));
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
            tail,
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
            seed: seed ^ id.0.rotate_left(20) ^ (server.life << 50),
        };
        server.seen = (disk.term, commit);
        server.linked.clear();
        server.disk_free = 0;
        server.overloaded = false;
        server.stuck.clear();
        server.voter = Some(Voter::new(options, recovered, now).unwrap());
        self.note(&("start", id));
        let others: Vec<RaftId> = self.servers.keys().filter(|other| **other != id).copied().collect();
        for other in others {
            let us = 100 + self.random(400);
            self.after(us, Happening::Link { ends: ends(id, other) });
        }
        self.drain(id);
    }

    /// Ends a server's process. Of the writes that were on their way, some prefix is on the disk. Others see the tear, unless `silent`.
    pub(super) fn crash(&mut self, id: RaftId, silent: bool) {
        self.note(&("crash", id, silent));
        let pending = self.servers[&id].disk.pending.len() as u64;
        let kept = self.random(pending + 1);
        let server = self.servers.get_mut(&id).unwrap();
        server.voter = None;
        for number in 0..pending {
            let write = server.disk.pending.pop_front().unwrap();
            if number < kept {
                server.disk.take(write);
            }
        }
        let torn: Vec<_> =
            self.links.iter().filter(|((a, b), _)| *a == id || *b == id).map(|(ends, link)| (*ends, *link)).collect();
        for ((a, b), link) in torn {
            self.links.remove(&(a, b));
            let us = 50 + self.random(300);
            if !silent {
                self.after(us, Happening::Torn { at: if a == id { b } else { a }, peer: id, link });
            }
        }
    }

    pub(super) fn up(&self, id: RaftId) -> bool {
        self.servers.get(&id).is_some_and(|server| server.voter.is_some())
    }

    // ---- links

    /// Breaks the link between two servers; it comes back by itself, unless they are severed.
    pub(super) fn tear(&mut self, a: RaftId, b: RaftId) {
        self.note(&("tear", a, b));
        if let Some(link) = self.links.remove(&ends(a, b)) {
            for (at, peer) in [(a, b), (b, a)] {
                let us = self.random(200);
                self.after(us, Happening::Torn { at, peer, link });
            }
        }
        let us = 300 + self.random(700);
        self.after(us, Happening::Link { ends: ends(a, b) });
    }

    pub(super) fn sever(&mut self, a: RaftId, b: RaftId) {
        self.severed.insert(ends(a, b));
        self.tear(a, b);
    }

    /// Cuts a server off from all others.
    pub(super) fn isolate(&mut self, id: RaftId) {
        let others: Vec<RaftId> = self.servers.keys().filter(|other| **other != id).copied().collect();
        others.into_iter().for_each(|other| self.sever(id, other));
    }

    /// Everything that was cut or severed works again.
    pub(super) fn heal(&mut self) {
        self.note(&"heal");
        self.cut.clear();
        self.options.loss_permille = 0;
        self.severed.clear();
        let ids: Vec<RaftId> = self.servers.keys().copied().collect();
        for (number, a) in ids.iter().enumerate() {
            for b in &ids[number + 1..] {
                if !self.links.contains_key(&(*a, *b)) {
                    let us = 200 + self.random(500);
                    self.after(us, Happening::Link { ends: (*a, *b) });
                }
            }
        }
    }

    fn link(&mut self, (a, b): (RaftId, RaftId)) {
        if !self.up(a) || !self.up(b) || self.severed.contains(&(a, b)) || self.links.contains_key(&(a, b)) {
            return;
        }
        self.sequence += 1;
        self.links.insert((a, b), self.sequence);
        self.note(&("link", a, b));
        for (at, peer) in [(a, b), (b, a)] {
            let incarnation = Incarnation(self.servers[&peer].life);
            let now = self.now;
            let server = self.servers.get_mut(&at).unwrap();
            let voter = server.voter.as_mut().unwrap();
            if !server.linked.insert(peer) {
                voter.handle_disconnected(peer, Disconnect::Closed, now);
            }
            voter.handle_connected(Peer { id: peer, incarnation }, now);
            self.drain(at);
        }
    }

    // ---- what servers are asked

    pub(super) fn voter(&mut self, id: RaftId) -> &mut Voter {
        self.servers.get_mut(&id).unwrap().voter.as_mut().unwrap()
    }

    pub(super) fn status(&self, id: RaftId) -> VoterStatus {
        self.servers[&id].voter.as_ref().unwrap().status()
    }

    pub(super) fn entry(number: u64) -> Bytes {
        command(SessionId(1), Opening(1), number, 0, format!("command {number}").as_bytes())
    }

    /// Proposes command `number` at a server; whether it took it.
    pub(super) fn propose(&mut self, at: RaftId, number: u64) -> bool {
        let now = self.now;
        let taken = self.voter(at).handle_propose(Self::entry(number), now).is_ok();
        self.note(&("propose", at, number, taken));
        self.drain(at);
        taken
    }

    pub(super) fn propose_all(&mut self, at: RaftId, numbers: std::ops::Range<u64>) {
        for number in numbers {
            assert!(self.propose(at, number), "{at} takes no more than {number}");
        }
    }

    /// From now on nothing that `from` says reaches `to`.
    pub(super) fn deafen(&mut self, from: RaftId, to: RaftId) {
        self.cut.insert((from, to));
    }

    /// Begins a read; its answer must cover all that is committed by now.
    pub(super) fn read(&mut self, at: RaftId, number: u64) {
        let (now, floor) = (self.now, self.log.last().map_or(RunIndex(1), |run| run.header().run));
        self.reads.insert(ReadId(number), floor);
        self.voter(at).handle_read(ReadId(number), now).unwrap();
        self.drain(at);
    }

    pub(super) fn ask(&mut self, at: RaftId, request: AdminRequest) -> Result<AdminProgress, AdminRefused> {
        let now = self.now;
        let result = self.voter(at).handle_admin(request.clone(), now);
        self.note(&("admin", at, &request, &result));
        self.drain(at);
        result
    }

    /// Sees a request through, as an administrator would: asks whoever leads until it is done.
    pub(super) fn administer(&mut self, request: &AdminRequest) {
        let before = self.admin.len();
        for _ in 0..2_000 {
            if self.admin[before..].contains(&(request.clone(), Ok(()))) {
                return;
            }
            if let Some(leader) = self.leader() {
                match self.ask(leader, request.clone()) {
                    Ok(AdminProgress::Done) => return,
                    Ok(AdminProgress::Started) | Err(AdminRefused::Busy | AdminRefused::NotLeader(_) | AdminRefused::Behind(_)) => {
                    }
                    Err(refused) => panic!("{request:?} is refused: {refused}"),
                }
            }
            self.run_ms(10);
        }
        panic!("{request:?} did not come to its end");
    }

    /// How often a command stands in the committed log.
    pub(super) fn count(&self, number: u64) -> usize {
        let entries = self.log.iter().flat_map(|run| run.entries().map(|(_, entry)| entry.header));
        entries.filter(|header| header.kind == EntryKind::Command && header.request.0 == number).count()
    }

    pub(super) fn commands(&self) -> Vec<u64> {
        let entries = self.log.iter().flat_map(|run| run.entries().map(|(_, entry)| entry.header).collect::<Vec<_>>());
        entries.filter(|header| header.kind == EntryKind::Command).map(|header| header.request.0).collect()
    }

    /// The leader of the highest term among those that are up.
    pub(super) fn leader(&self) -> Option<RaftId> {
        let leaders = self.servers.iter().filter_map(|(id, server)| {
            let status = server.voter.as_ref()?.status();
            (status.role == RaftRole::Leader).then_some((status.term, *id))
        });
        leaders.max().map(|(_, id)| id)
    }

    pub(super) fn lead(&mut self) -> RaftId {
        assert!(
            self.run_until(5_000, |cluster| cluster.leader().is_some_and(|id| cluster.status(id).commit.0 > 1)),
            "nobody leads"
        );
        self.leader().unwrap()
    }

    /// A server that is up and does not lead.
    pub(super) fn follower(&self) -> RaftId {
        let leader = self.leader();
        *self.servers.keys().find(|id| self.up(**id) && Some(**id) != leader).unwrap()
    }

    /// Takes a snapshot at a server, and trims its log to `keep` runs below it.
    pub(super) fn compact(&mut self, at: RaftId, keep: u64) {
        let now = self.now;
        let server = self.servers.get_mut(&at).unwrap();
        let meta = meta(server.applied, &server.configuration, server.configuration_run);
        if server.disk.snapshot.as_ref().is_some_and(|known| known.tail.run > meta.tail.run) {
            // A leader's newer one is there, and not installed yet.
            return;
        }
        server.disk.snapshot = Some(meta.clone());
        let voter = server.voter.as_mut().unwrap();
        voter.handle_snapshot_taken(meta.clone(), now);
        let first = (meta.tail.run.0 + 1).saturating_sub(keep);
        if first > server.disk.before.run.0 + 1 {
            let gone = (first - 1 - server.disk.before.run.0) as usize;
            server.disk.before = server.disk.runs[gone - 1].header().tail();
            server.disk.runs.drain(..gone);
            voter.handle_trimmed(RunIndex(first), server.disk.before.term);
        }
        self.drain(at);
    }

    /// Moves a stopped server's snapshot to the end of what it knows to be committed, and its log behind it.
    pub(super) fn compact_down(&mut self, at: RaftId) {
        let server = self.servers.get_mut(&at).unwrap();
        assert!(server.voter.is_none());
        let snapshot = server.disk.snapshot.clone().unwrap();
        (server.applied, server.configuration) = (snapshot.tail, snapshot.configuration);
        server.configuration_run = snapshot.configuration_run;
        let commit = server.disk.commit;
        let runs = server.disk.runs.clone();
        let known = runs.iter().filter(|run| run.header().run <= commit && run.header().run > snapshot.tail.run);
        known.for_each(|run| server.apply(run));
        server.disk.snapshot = Some(meta(server.applied, &server.configuration, server.configuration_run));
        let applied = server.applied;
        server.disk.runs.retain(|run| run.header().run > applied.run);
        server.disk.before = applied;
    }

    // ---- time

    pub(super) fn run_ms(&mut self, ms: u64) {
        let until = self.now.plus_ms(ms);
        while self.step(until) {}
    }

    /// Runs until something holds, for at most so long; whether it does.
    pub(super) fn run_until(&mut self, ms: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let until = self.now.plus_ms(ms);
        while !holds(self) {
            if !self.step(until) {
                return holds(self);
            }
        }
        true
    }

    /// Everybody who is a member and up has applied all that is committed, a leader leads, and nobody waits for anything.
    pub(super) fn converged(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (status, configuration) = (self.status(leader), &self.servers[&leader].configuration);
        let last = self.log.last().map_or(RunIndex(1), |run| run.header().run);
        let members = self.servers.iter().filter(|(id, server)| configuration.contains(**id) && server.voter.is_some());
        !configuration.is_joint()
            && status.commit == last
            && status.last == last
            && members.into_iter().all(|(_, server)| server.applied.run == last && server.voter.as_ref().unwrap().book.bytes() == 0)
    }

    pub(super) fn converge(&mut self) {
        if !self.run_until(30_000, Self::converged) {
            let states: Vec<_> = self
                .servers
                .iter()
                .map(|(id, server)| {
                    let voter = server.voter.as_ref();
                    (*id, server.applied.run, voter.map(|voter| (voter.status(), voter.book.bytes())))
                })
                .collect();
            panic!("seed {}: no convergence: {} committed, {states:#?}", self.seed, self.log.len());
        }
        // Disks end alike too.
        self.run_ms(100);
        self.check_logs();
    }

    fn step(&mut self, until: Time) -> bool {
        let timers =
            self.servers.iter().filter_map(|(id, server)| Some((server.voter.as_ref()?.poll_timeout()?.0.monotonic_us, *id)));
        let timer = timers.min();
        let first = self.queue.first_key_value().map(|(key, _)| *key);
        let at = timer.map(|(at, _)| at).into_iter().chain(first.map(|(at, _)| at)).min().unwrap_or(u64::MAX);
        if at > until.monotonic_us {
            self.now = until;
            return false;
        }
        let at = at.max(self.now.monotonic_us);
        self.now = self.now.plus_us(at - self.now.monotonic_us);
        self.now.unix_ms = TimeMs(1_700_000_000_000 + self.now.monotonic_us / 1000);
        match timer.filter(|(due, _)| first.is_none_or(|(other, _)| *due <= other)) {
            Some((_, id)) => {
                let now = self.now;
                self.voter(id).handle_timeout(now);
                self.drain(id);
                let again = self.servers[&id].voter.as_ref().and_then(Voter::poll_timeout);
                assert!(again.is_none_or(|(at, _)| at > now), "{id} does nothing about {again:?} at {now:?}");
            }
            None => {
                let happening = self.queue.pop_first().unwrap().1;
                self.happen(happening);
            }
        }
        true
    }

    fn alive(&self, at: RaftId, life: u64) -> bool {
        self.up(at) && self.servers[&at].life == life
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now;
        match happening {
            Happening::Deliver { from, to, link, message } => {
                if self.links.get(&ends(from, to)) != Some(&link) || !self.up(to) {
                    return;
                }
                self.note(&(from, to, &message));
                if let Err(error) = self.voter(to).handle_message(from, message, now) {
                    // Its owner closes the link and dials anew.
                    assert!(matches!(error, MessageError::TermJump { .. }), "seed {}: {to} refuses {from}: {error}", self.seed);
                }
                self.drain(to);
            }
            Happening::Written { at, life, number } => {
                if !self.alive(at, life) {
                    return;
                }
                let server = self.servers.get_mut(&at).unwrap();
                while server.disk.pending.front().is_some_and(|write| write.number <= number) {
                    let write = server.disk.pending.pop_front().unwrap();
                    server.disk.take(write);
                }
                self.voter(at).handle_written(Ok(Written { number }), now);
                self.drain(at);
            }
            Happening::Link { ends } => self.link(ends),
            Happening::Torn { at, peer, link } => {
                let newer = self.links.get(&ends(at, peer)).is_some_and(|now| *now > link);
                if !newer && self.up(at) && self.servers.get_mut(&at).unwrap().linked.remove(&peer) {
                    self.voter(at).handle_disconnected(peer, Disconnect::Torn, now);
                    self.drain(at);
                }
            }
            Happening::Applied { at, life, run } => {
                if self.alive(at, life) {
                    self.voter(at).handle_applied(run, now);
                    self.drain(at);
                }
            }
            Happening::Snapshot { from, to, link, term, meta } => {
                let ok = self.links.get(&ends(from, to)) == Some(&link) && self.up(to);
                if ok {
                    let server = self.servers.get_mut(&to).unwrap();
                    let better = server.disk.snapshot.as_ref().is_none_or(|known| known.tail.run < meta.tail.run);
                    let newest = meta.clone();
                    server.voter.as_mut().unwrap().handle_snapshot(from, term, meta, now).unwrap();
                    if better {
                        server.disk.snapshot = Some(newest);
                    }
                    self.drain(to);
                }
                if self.up(from) {
                    self.voter(from).handle_snapshot_sent(to, ok, now);
                    self.drain(from);
                }
            }
            Happening::SnapshotTaken { at, life } => {
                if self.alive(at, life) {
                    self.compact(at, u64::MAX);
                }
            }
            Happening::Fetched { at, life, first, last } => {
                if self.alive(at, life) {
                    let server = self.servers.get_mut(&at).unwrap();
                    server.fetched += 1;
                    if let Some(rotten) = server.rotten.filter(|rotten| *rotten == first) {
                        self.voter(at).handle_unreadable(rotten, now);
                        return self.drain(at);
                    }
                    let wanted = server.disk.runs.iter().filter(|run| (first..=last).contains(&run.header().run));
                    // A read is bounded: only the first few come, and none from a bad one on.
                    let rotten = server.rotten;
                    let good = wanted.take_while(|run| Some(run.header().run) != rotten);
                    let runs: Vec<Run> = good.take(20).cloned().collect();
                    self.voter(at).handle_fetched(runs, now);
                    self.drain(at);
                }
            }
        }
    }

    /// Takes all that a voter puts out.
    pub(super) fn drain(&mut self, id: RaftId) {
        let Some(mut voter) = self.servers.get_mut(&id).and_then(|server| server.voter.take()) else { return };
        loop {
            let mut progress = false;
            while let Some(Transmit { to, message }) = voter.poll_transmit() {
                progress = true;
                self.carry(id, to, message);
            }
            while let Some(write) = voter.poll_write() {
                progress = true;
                let server = self.servers.get_mut(&id).unwrap();
                let number = write.number;
                if server.full && (!write.runs.is_empty() || !server.stuck.is_empty()) {
                    server.stuck.push_back(number);
                }
                let is_stuck = !server.stuck.is_empty();
                server.disk.pending.push_back(write);
                if !is_stuck {
                    self.write(id, number);
                }
            }
            while let Some(event) = voter.poll_event() {
                progress = true;
                self.told(id, &voter, event);
            }
            if !progress {
                break;
            }
        }
        let status = voter.status();
        let server = self.servers.get_mut(&id).unwrap();
        assert!(status.term >= server.seen.0 && status.commit >= server.seen.1, "{id} forgets: {:?} then {status:?}", server.seen);
        server.seen = (status.term, status.commit);
        if self.fatal.is_none_or(|(who, _)| who != id) {
            server.voter = Some(voter);
        }
    }

    /// A write will be durable. One sync comes after the other.
    fn write(&mut self, id: RaftId, number: u64) {
        let us = self.within(*self.disk_us.get(&id).unwrap_or(&self.options.disk_us));
        let server = self.servers.get_mut(&id).unwrap();
        server.disk_free = server.disk_free.max(self.now.monotonic_us) + us;
        let (at, life) = (server.disk_free, server.life);
        self.at(at, Happening::Written { at: id, life, number });
    }

    /// A server's disk writes no runs any more, and says nothing.
    pub(super) fn hang(&mut self, id: RaftId) {
        self.servers.get_mut(&id).unwrap().full = true;
    }

    /// What waited is written.
    pub(super) fn go_on(&mut self, id: RaftId) {
        let server = self.servers.get_mut(&id).unwrap();
        server.full = false;
        for number in std::mem::take(&mut server.stuck) {
            self.write(id, number);
        }
    }

    /// A server's disk has no room for runs any more.
    pub(super) fn fill(&mut self, id: RaftId) {
        self.hang(id);
        self.tell_disk(id, DiskState::Full);
    }

    /// A server's disk has room again.
    pub(super) fn free(&mut self, id: RaftId) {
        self.go_on(id);
        self.tell_disk(id, DiskState::Good);
    }

    fn tell_disk(&mut self, id: RaftId, state: DiskState) {
        self.note(&("disk", id, state));
        let now = self.now;
        self.voter(id).handle_disk(state, now);
        self.drain(id);
    }

    fn carry(&mut self, from: RaftId, to: RaftId, message: Message) {
        let kind = match &message {
            Message::Append { .. } => "Append",
            Message::AppendReply { .. } => "AppendReply",
            Message::Commit { .. } => "Commit",
            Message::Forward { .. } => "Forward",
            Message::VoteRequest { pre: true, .. } => "PreVote",
            Message::VoteRequest { .. } => "Vote",
            Message::HeartbeatReply { .. } => "HeartbeatReply",
            Message::ReadAnswer { .. } => "ReadAnswer",
            _ => "other",
        };
        *self.messages.entry(kind).or_default() += 1;
        let Some(link) = self.links.get(&ends(from, to)).copied() else { return };
        if self.cut.contains(&(from, to)) || (self.options.loss_permille > 0 && self.random(1000) < self.options.loss_permille) {
            return;
        }
        let us = self.within(self.options.net_us);
        let last = self.fifo.entry((from, to)).or_default();
        *last = (*last + 1).max(self.now.monotonic_us + us);
        let at = *last;
        self.at(at, Happening::Deliver { from, to, link, message });
    }

    fn told(&mut self, id: RaftId, voter: &Voter, event: Event) {
        let now = self.now;
        match event {
            Event::Committed(runs) => {
                for run in &runs {
                    self.commit(id, run);
                    self.servers.get_mut(&id).unwrap().apply(run);
                }
                let (life, run) = (self.servers[&id].life, runs.last().unwrap().header().run);
                let us = self.within(self.options.apply_us);
                self.after(us, Happening::Applied { at: id, life, run });
            }
            Event::Installed(meta) => {
                let run = self.log[meta.tail.run.0 as usize - 2].header();
                assert_eq!(run.tail(), meta.tail, "{id} installs another history");
                let server = self.servers.get_mut(&id).unwrap();
                assert!(server.applied.run <= meta.tail.run, "{id} goes back");
                server.installed += 1;
                (server.applied, server.configuration) = (meta.tail, meta.configuration);
                server.configuration_run = meta.configuration_run;
                let (life, run) = (server.life, meta.tail.run);
                let us = self.within(self.options.apply_us);
                self.after(us, Happening::Applied { at: id, life, run });
            }
            Event::Role { term, role, leader } => {
                self.note(&(id, term, role, leader));
                if role == RaftRole::Leader {
                    let first = *self.leaders.entry(term).or_insert(id);
                    assert_eq!(first, id, "seed {}: two leaders in term {term}", self.seed);
                    self.check_complete(id, voter);
                }
            }
            Event::SendSnapshot { to, term, meta } => {
                let link = self.links.get(&ends(id, to)).copied().unwrap_or(0);
                let us = 1_000 + self.random(5_000);
                self.after(us, Happening::Snapshot { from: id, to, link, term, meta });
            }
            Event::SnapshotWanted => {
                let life = self.servers[&id].life;
                let us = 500 + self.random(3_000);
                self.after(us, Happening::SnapshotTaken { at: id, life });
            }
            Event::Fetch { first, last } => {
                let life = self.servers[&id].life;
                let us = 100 + self.random(500);
                self.after(us, Happening::Fetched { at: id, life, first, last });
            }
            Event::ReadReady { read, run } => {
                self.note(&(id, read, run));
                assert!(run >= self.reads[&read], "seed {}: read {read} misses what was committed before it", self.seed);
                self.answers.insert(read, run);
            }
            Event::Admin { request, result } => self.admin.push((request, result)),
            Event::Overloaded(overloaded) => self.servers.get_mut(&id).unwrap().overloaded = overloaded,
            Event::HandsOver { to, why } => self.hand_overs.push((id, to, why)),
            Event::VoteSettled => {
                let server = self.servers.get_mut(&id).unwrap();
                server.vote_settled += 1;
                server.disk.vote_lost = false;
            }
            Event::Fatal(error) => self.fatal = Some((id, error)),
        }
        let _ = now;
    }

    fn commit(&mut self, id: RaftId, run: &Run) {
        let at = run.header().run.0 as usize - 2;
        match self.log.get(at) {
            Some(known) => assert_eq!(known.bytes(), run.bytes(), "seed {}: {id} commits another run", self.seed),
            None => {
                assert_eq!(at, self.log.len(), "seed {}: {id} commits beyond a gap", self.seed);
                self.log.push(run.clone());
            }
        }
    }

    // ---- checks

    /// A leader holds all that is committed.
    fn check_complete(&self, id: RaftId, voter: &Voter) {
        let store = voter.raw.store();
        for run in self.log.iter().map(Run::header).filter(|header| header.run.0 > store.before_first.0) {
            assert_eq!(store.term_at(run.run.0), run.term.0, "seed {}: {id} leads without run {}", self.seed, run.run);
        }
    }

    /// Where two logs agree in run and term, they agree in everything before (the chain proves it).
    pub(super) fn check_logs(&self) {
        let mut seen: BTreeMap<(RunIndex, Term), Bytes> = BTreeMap::new();
        for (id, server) in &self.servers {
            for run in &server.disk.runs {
                let known = seen.entry((run.header().run, run.header().term)).or_insert_with(|| run.bytes().clone());
                assert_eq!(known, run.bytes(), "seed {}: {id} has another run {}", self.seed, run.header().run);
            }
        }
    }
}

impl Server {
    fn apply(&mut self, run: &Run) {
        assert!(self.applied.continues(run.header()), "{:?} is applied after {:?}", run, self.applied);
        self.applied = run.header().tail();
        if let Some(payload) = run.config_payload() {
            let ConfigPayload { base, configuration } = ConfigPayload::decode(payload).unwrap();
            if base == self.configuration_run {
                (self.configuration, self.configuration_run) = (configuration, run.header().run);
            }
        }
    }
}

pub(super) fn ends(a: RaftId, b: RaftId) -> (RaftId, RaftId) {
    (a.min(b), a.max(b))
}

/// A tail that nobody reached.
pub(super) fn beyond(tail: Tail) -> Tail {
    Tail { run: tail.run.next(), last: LogIndex(tail.last.0 + 1), ..tail }
}
