//! What happens between the three, and in which order: one queue in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{Incarnation, Opening, RaftId, ReadId, RequestId, RoomId, RunIndex, SessionId, Term, Time, TimeMs};
use voter_mesh::mesh::codec::{FRAME_BYTES_MAX, MeshMessage, decode, encode, split_frame};
use voter_mesh::mesh::message::Message;
use voter_mesh::raft::{Disconnect, Peer, RaftRole};
use voter_mesh::run::Run;

use super::bare::Bare;
use super::node::{Node, Standing, Told, Wants, ids};
use super::ours::Ours;
use crate::sim::random::Random;
use crate::sim::record::{DiskFound, End, Phase, Recorder, Violation, What};
use crate::sim::run::Outcome;

/// Milliseconds since 1970 when a world begins.
const BEGAN_MS: u64 = 1_700_000_000_000;

/// Runs that a disk loses at most, which it had confirmed.
const LOST_MAX: u64 = 8;

/// How much later than itself a message may come once more, in microseconds.
const LATE_US: u64 = 40_000;

/// How far apart the voters' wall clocks are, at most.
const SKEW_MS: u64 = 5_000;

enum Happening {
    /// A message arrives, if its link stands still.
    Arrive { from: RaftId, to: RaftId, link: u64, message: Message },
    /// To a process, if it lives still.
    Tell { at: RaftId, life: u64, told: Told },
    /// Two processes link up, if they can.
    Link { ends: [RaftId; 2] },
    /// One end learns that its link is gone.
    Torn { at: RaftId, peer: RaftId, link: u64 },
    /// A process ends where it hurts, and comes back.
    Ambush { at: RaftId, life: u64 },
    /// See there.
    Start { at: RaftId },
}

/// When an end hurts most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// It has just given its vote.
    Voted,
    /// It has just said that it has runs.
    Acknowledged,
    /// It has just come to lead.
    Led,
    /// It has just been the first to call a run committed.
    Committed,
}

struct Machine {
    node: Box<dyn Node>,
    life: u64,
    up: bool,
    skew_ms: u64,
    /// When its disk is done with all it was given.
    disk_free_us: u64,
    /// To whom it believes that a link stands.
    linked: BTreeSet<RaftId>,
    /// The highest term and commit index of this life.
    seen: (Term, RunIndex),
    /// What this life has told as committed.
    told: usize,
}

/// What else befalls a world. It is drawn apart from all else, and most of it is in some worlds alone.
struct Baits {
    random: Random,
    /// Whose disk loses what it had confirmed; one of ours, and never another one: the rest is a majority.
    forgetful: Option<RaftId>,
    /// Appends that come once more, late, in a thousand.
    late_permille: u64,
    /// Whether those who elected a leader end as it is cut off.
    all_end: bool,
}

impl Baits {
    fn drawn(seed: u64, witness: RaftId) -> Self {
        let mut random = Random::apart(seed, "baits");
        let ours: Vec<RaftId> = ids().into_iter().filter(|id| *id != witness).collect();
        let forgetful = pick(&mut random, &[None, None, Some(ours[0]), Some(ours[1])]);
        let late_permille = pick(&mut random, &[0, 0, 50, 300]);
        let all_end = random.below(2) == 0;
        Self { random, forgetful, late_permille, all_end }
    }
}

pub(super) struct World {
    pub(super) random: Random,
    baits: Baits,
    recorder: Recorder,
    violations: Vec<Violation>,
    witness: RaftId,
    machines: BTreeMap<RaftId, Machine>,
    now_us: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    /// Links that stand, by their ends, with a number of their own.
    links: BTreeMap<[RaftId; 2], u64>,
    /// When the last message of a direction arrives: the order is kept.
    arrivals: BTreeMap<(RaftId, RaftId), u64>,
    severed: BTreeSet<[RaftId; 2]>,
    /// Directions in which everything is lost without a word.
    cut: BTreeSet<(RaftId, RaftId)>,
    net_us: (u64, u64),
    disk_us: (u64, u64),
    loss_permille: u64,
    /// How often something befalls whoever has come to such a moment, in a thousand times.
    ambushes: BTreeMap<Moment, u64>,
    /// The committed history, and in which term its runs were known to be.
    history: Vec<(Run, Term)>,
    leaders: BTreeMap<Term, RaftId>,
    commands: u64,
    /// Commands that a life promised to see committed.
    promised: BTreeMap<u64, (RaftId, u64)>,
    committed: BTreeSet<u64>,
    /// Reads under way: who waits, in which life, and what was committed when it began.
    reads: BTreeMap<ReadId, (RaftId, u64, RunIndex)>,
    reads_begun: u64,
    faults: BTreeMap<&'static str, u64>,
    counts: BTreeMap<&'static str, u64>,
}

fn ends(a: RaftId, b: RaftId) -> [RaftId; 2] {
    [a.min(b), a.max(b)]
}

/// What a message is when it has been on the wire.
fn travelled(message: Message) -> Result<Message, String> {
    let mut pieces: Vec<Bytes> = Vec::new();
    encode(&MeshMessage::Raft(message), &mut pieces).map_err(|error| error.to_string())?;
    let mut received = BytesMut::from(pieces.concat().as_slice());
    let frame = split_frame(&mut received, FRAME_BYTES_MAX).map_err(|error| error.to_string())?.ok_or("no whole frame")?;
    match decode(frame).map_err(|error| error.to_string())? {
        MeshMessage::Raft(message) if received.is_empty() => Ok(message),
        _ => Err("another frame".to_owned()),
    }
}

/// The commands in a run, by number.
fn commands(run: &Run) -> Vec<u64> {
    let commands = run.entries().filter(|(_, entry)| entry.header.kind == EntryKind::Command);
    commands.map(|(_, entry)| entry.header.request.0).collect()
}

fn pick<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len() as u64) as usize]
}

impl World {
    /// Three voters that start, on good links.
    pub(super) fn new(seed: u64, recorder: Recorder) -> Self {
        let mut random = Random::new(seed);
        let witness = ids()[random.below(3) as usize];
        let net_us = pick(&mut random, &[(50, 400), (50, 400), (1_000, 30_000)]);
        let disk_us = pick(&mut random, &[(100, 1_500), (100, 20_000), (10_000, 100_000)]);
        let loss_permille = pick(&mut random, &[0, 0, 50]);
        let moments = [(Moment::Voted, 400), (Moment::Acknowledged, 20), (Moment::Led, 300), (Moment::Committed, 300)];
        let ambushes = moments.map(|(moment, permille)| (moment, pick(&mut random, &[0, permille / 4, permille]))).into();
        let append_bytes_max = pick(&mut random, &[100, 2_000]);
        let machine = |id: RaftId, random: &mut Random| Machine {
            node: match id == witness {
                true => Box::new(Bare::new(id, append_bytes_max, random.next())),
                false => Box::new(Ours::new(id, append_bytes_max, random.next())),
            },
            life: 0,
            up: false,
            skew_ms: random.below(SKEW_MS),
            disk_free_us: 0,
            linked: BTreeSet::new(),
            seen: Default::default(),
            told: 0,
        };
        let machines = ids().map(|id| (id, machine(id, &mut random))).into();
        let mut world = Self {
            random,
            baits: Baits::drawn(seed, witness),
            recorder,
            violations: Vec::new(),
            witness,
            machines,
            now_us: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            severed: BTreeSet::new(),
            cut: BTreeSet::new(),
            net_us,
            disk_us,
            loss_permille,
            ambushes,
            history: Vec::new(),
            leaders: BTreeMap::new(),
            commands: 0,
            promised: BTreeMap::new(),
            committed: BTreeSet::new(),
            reads: BTreeMap::new(),
            reads_begun: 0,
            faults: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        world.enter(Phase::Forming);
        world.ids().into_iter().for_each(|id| world.start(id));
        world
    }

    pub(super) fn ids(&self) -> [RaftId; 3] {
        ids()
    }

    /// Two of the three.
    pub(super) fn two(&mut self) -> (RaftId, RaftId) {
        let (first, step) = (self.random.below(3) as usize, 1 + self.random.below(2) as usize);
        (ids()[first], ids()[(first + step) % 3])
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.recorder.record(What::Phase(phase));
    }

    pub(super) fn wrong(&mut self, checker: &'static str, text: String) {
        self.violations.push(Violation { checker, sequence: 0, at_us: self.now_us, text });
    }

    fn fault(&mut self, kind: &'static str, detail: String) {
        *self.faults.entry(kind).or_default() += 1;
        self.recorder.record(What::Fault { kind, detail });
    }

    fn within(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.random.below(most - least + 1)
    }

    fn after(&mut self, us: u64, happening: Happening) {
        self.at(self.now_us + us, happening);
    }

    fn at(&mut self, us: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((us, self.sequence), happening);
    }

    fn machine(&mut self, id: RaftId) -> &mut Machine {
        self.machines.get_mut(&id).expect("the three are there for ever")
    }

    /// The present, as a voter sees it.
    fn clock(&self, id: RaftId) -> Time {
        let skew_ms = self.machines.get(&id).map_or(0, |machine| machine.skew_ms);
        Time { monotonic_us: self.now_us, unix_ms: TimeMs(BEGAN_MS + self.now_us / 1_000 + skew_ms) }
    }

    // ---- processes

    pub(super) fn start(&mut self, id: RaftId) {
        let now = self.clock(id);
        let machine = self.machine(id);
        if std::mem::replace(&mut machine.up, true) {
            return;
        }
        machine.life += 1;
        let life = machine.life as u32;
        machine.node.start(machine.life, now);
        machine.linked.clear();
        (machine.disk_free_us, machine.seen, machine.told) = Default::default();
        self.recorder.record(What::Started { server: id.seat(), life });
        for other in ids().into_iter().filter(|other| *other != id) {
            let us = self.within((100, 500));
            self.after(us, Happening::Link { ends: ends(id, other) });
        }
        self.settle(id);
    }

    /// Ends a process; by chance, nobody is told.
    pub(super) fn crash(&mut self, id: RaftId) {
        let mut random = Random::new(self.random.next());
        let machine = self.machine(id);
        if !std::mem::take(&mut machine.up) {
            return;
        }
        let result = machine.node.crash(&mut random);
        *self.faults.entry("crash").or_default() += 1;
        self.recorder.record(What::Ended { server: id.seat(), how: End::PowerCut });
        if let Err(text) = result {
            self.wrong("disk", format!("{id}: {text}"));
        }
        let is_silent = random.below(2) == 0;
        for peer in ids().into_iter().filter(|peer| *peer != id) {
            let link = self.links.remove(&ends(id, peer)).filter(|_| !is_silent);
            if let Some(link) = link {
                let us = self.within((50, 350));
                self.after(us, Happening::Torn { at: peer, peer: id, link });
            }
        }
    }

    /// By chance, a disk loses runs that it had confirmed; whoever leads is cut off with what it has.
    pub(super) fn bait(&mut self) {
        let Some(id) = self.baits.forgetful.filter(|_| self.baits.random.below(12) == 0) else { return };
        if self.baits.random.below(3) > 0 {
            self.depose();
        }
        self.forget(id);
    }

    /// A process ends, and comes back without the last runs that its disk had confirmed.
    fn forget(&mut self, id: RaftId) {
        self.crash(id);
        let lost = 1 + self.baits.random.below(LOST_MAX);
        self.fault("runs lost", format!("{lost} of {id}"));
        self.machine(id).node.lose(lost as usize);
        let us = self.baits.random.below(100_000);
        self.after(us, Happening::Start { at: id });
    }

    /// In a world at rest that one of ours leads, the other one forgets. Whether it did.
    pub(super) fn forget_at_rest(&mut self) -> bool {
        let leader = self.leader();
        let follower = ids().into_iter().find(|id| *id != self.witness && Some(*id) != leader);
        let Some(id) = follower.filter(|_| leader.is_some_and(|leader| leader != self.witness)) else { return false };
        self.forget(id);
        true
    }

    // ---- links

    /// Breaks a link; it comes back by itself, unless it is severed.
    pub(super) fn tear(&mut self, a: RaftId, b: RaftId) {
        self.fault("tear", format!("{a} {b}"));
        if let Some(link) = self.links.remove(&ends(a, b)) {
            for (at, peer) in [(a, b), (b, a)] {
                let us = self.random.below(200);
                self.after(us, Happening::Torn { at, peer, link });
            }
        }
        let us = self.within((300, 1_000));
        self.after(us, Happening::Link { ends: ends(a, b) });
    }

    /// Severs one from both others, which are linked.
    pub(super) fn isolate(&mut self, id: RaftId) {
        self.mend_links();
        ids().into_iter().filter(|other| *other != id).for_each(|other| self.sever(id, other));
    }

    pub(super) fn sever(&mut self, a: RaftId, b: RaftId) {
        self.severed.insert(ends(a, b));
        self.tear(a, b);
    }

    /// Isolates whoever leads.
    pub(super) fn depose(&mut self) {
        if let Some(leader) = self.leader() {
            self.isolate(leader);
        }
    }

    /// From now on nothing that `from` says reaches `to`.
    pub(super) fn deafen(&mut self, from: RaftId, to: RaftId) {
        self.fault("deafen", format!("{from} to {to}"));
        self.cut.insert((from, to));
    }

    /// What was cut or severed works again.
    pub(super) fn mend_links(&mut self) {
        self.cut.clear();
        self.severed.clear();
        let [a, b, c] = ids();
        for ends in [[a, b], [b, c], [a, c]] {
            let us = self.within((200, 700));
            self.after(us, Happening::Link { ends });
        }
    }

    /// Everything is as it should be from now on.
    pub(super) fn heal(&mut self) {
        self.loss_permille = 0;
        self.ambushes.clear();
        self.mend_links();
        ids().into_iter().for_each(|id| self.start(id));
    }

    fn link(&mut self, ends: [RaftId; 2]) {
        let can = |id: &RaftId| self.machines.get(id).is_some_and(|machine| machine.up);
        if !ends.iter().all(can) || self.severed.contains(&ends) || self.links.contains_key(&ends) {
            return;
        }
        self.sequence += 1;
        self.links.insert(ends, self.sequence);
        let [a, b] = ends;
        for (at, peer) in [(a, b), (b, a)] {
            if !self.machine(at).linked.insert(peer) {
                self.tell(at, Told::Disconnected(peer, Disconnect::Closed));
            }
            let incarnation = Incarnation(self.machine(peer).life);
            self.tell(at, Told::Connected(Peer { id: peer, incarnation }));
        }
    }

    fn send(&mut self, from: RaftId, to: RaftId, message: Message) {
        let Some(link) = self.links.get(&ends(from, to)).copied() else { return };
        self.recorder.record(What::Mesh { from, to, message: message.clone() });
        if self.cut.contains(&(from, to)) || self.random.below(1_000) < self.loss_permille {
            return;
        }
        let arrives = self.now_us + self.within(self.net_us);
        let last = self.arrivals.entry((from, to)).or_default();
        *last = arrives.max(*last + 1);
        let at = *last;
        match travelled(message) {
            Ok(message) => {
                if matches!(message, Message::Append { .. }) && self.baits.random.below(1_000) < self.baits.late_permille {
                    let late = at + self.baits.random.below(LATE_US);
                    self.at(late, Happening::Arrive { from, to, link, message: message.clone() });
                }
                self.at(at, Happening::Arrive { from, to, link, message });
            }
            Err(text) => self.wrong("wire", format!("{from} to {to}: {text}")),
        }
    }

    // ---- what the three are asked

    /// A few commands, each by itself.
    pub(super) fn propose_some(&mut self, at: RaftId) {
        for _ in 0..1 + self.random.below(4) {
            self.commands += 1;
            let number = self.commands;
            let spec = EntrySpec {
                kind: EntryKind::Command,
                room: RoomId(0),
                session: SessionId(1),
                opening: Opening(1),
                request: RequestId(number),
                floor: RequestId(0),
            };
            let payload = vec![number as u8; self.random.below(300) as usize];
            let entries = entry(&spec, &payload).expect("a small payload");
            let now = self.clock(at);
            let machine = self.machine(at);
            let life = machine.life;
            if machine.node.propose(entries, now) {
                self.promised.insert(number, (at, life));
            }
            self.settle(at);
        }
    }

    /// A linearizable read. The witness serves none itself.
    pub(super) fn read(&mut self, at: RaftId) {
        if at == self.witness || !self.machine(at).up {
            return;
        }
        self.reads_begun += 1;
        let (read, life) = (ReadId(self.reads_begun), self.machine(at).life);
        self.reads.insert(read, (at, life, self.last()));
        self.tell(at, Told::Read(read));
    }

    /// Whoever leads is to hand over to this one.
    pub(super) fn hand_over(&mut self, to: RaftId) {
        if let Some(leader) = self.leader().filter(|leader| *leader != to) {
            self.fault("hand over", format!("{leader} to {to}"));
            self.tell(leader, Told::HandOver(to));
        }
    }

    /// The witness stands for election.
    pub(super) fn campaign(&mut self) {
        self.tell(self.witness, Told::Campaign);
    }

    // ---- time

    pub(super) async fn run_ms(&mut self, ms: u64) {
        self.run_until(ms, |_| false).await;
    }

    /// Runs until something holds, for at most so long; whether it does.
    pub(super) async fn run_until(&mut self, ms: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let until = self.now_us + ms * 1_000;
        while !holds(self) {
            let timer = self.machines.iter().filter_map(|(id, machine)| Some((machine.node.due_us()?, *id))).min();
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = timer.map(|(at, _)| at).into_iter().chain(event).min().unwrap_or(u64::MAX);
            let at = next.clamp(self.now_us, until);
            tokio::time::advance(Duration::from_micros(at - self.now_us)).await;
            self.now_us = at;
            if next > until {
                return holds(self);
            }
            match timer.filter(|(due, _)| event.is_none_or(|event| *due <= event)) {
                Some((_, id)) => self.time_out(id),
                None => {
                    if let Some((_, happening)) = self.queue.pop_first() {
                        self.happen(happening);
                    }
                }
            }
        }
        true
    }

    fn time_out(&mut self, id: RaftId) {
        self.tell(id, Told::Timeout);
        let now_us = self.now_us;
        assert!(self.machine(id).node.due_us().is_none_or(|due| due > now_us), "{id} does nothing about its timeout");
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive { from, to, link, message } => {
                if self.links.get(&ends(from, to)) == Some(&link) {
                    self.tell(to, Told::Said(from, message));
                }
            }
            Happening::Tell { at, life, told } => {
                if self.machine(at).life == life {
                    self.tell(at, told);
                }
            }
            Happening::Link { ends } => self.link(ends),
            Happening::Start { at } => self.start(at),
            Happening::Ambush { at, life } => {
                if self.machine(at).life == life && !self.ambushes.is_empty() {
                    self.crash(at);
                    let us = self.random.below(100_000);
                    self.after(us, Happening::Start { at });
                }
            }
            Happening::Torn { at, peer, link } => {
                let is_newer = self.links.get(&ends(at, peer)).is_some_and(|now| *now > link);
                if !is_newer && self.machine(at).up && self.machine(at).linked.remove(&peer) {
                    self.tell(at, Told::Disconnected(peer, Disconnect::Torn));
                }
            }
        }
    }

    fn tell(&mut self, id: RaftId, told: Told) {
        let now = self.clock(id);
        let machine = self.machine(id);
        if machine.up
            && let Err(text) = machine.node.tell(told.clone(), now)
        {
            self.wrong("refused", format!("{id}, told {told:?}: {text}"));
        }
        self.settle(id);
    }

    /// Does what a voter wants, and looks at what it has come to.
    fn settle(&mut self, id: RaftId) {
        let now = self.clock(id);
        let Wants { messages, writes, committed, reads, wrongs } = self.machine(id).node.wants(now);
        for (to, message) in messages {
            let moment = match &message {
                Message::VoteReply { pre: false, granted: true, .. } => Some(Moment::Voted),
                Message::AppendReply { reject: None, .. } => Some(Moment::Acknowledged),
                _ => None,
            };
            self.send(id, to, message);
            moment.into_iter().for_each(|moment| self.ambush(id, moment));
        }
        for number in writes {
            let us = self.within(self.disk_us);
            let now_us = self.now_us;
            let machine = self.machine(id);
            machine.disk_free_us = machine.disk_free_us.max(now_us) + us;
            let (at, life) = (machine.disk_free_us, machine.life);
            self.at(at, Happening::Tell { at: id, life, told: Told::Written(number) });
        }
        if let Some(last) = committed.last() {
            let (life, run) = (self.machine(id).life, last.header().run);
            let us = self.random.below(300);
            self.after(us, Happening::Tell { at: id, life, told: Told::Applied(run) });
        }
        self.stands(id);
        for run in committed {
            self.commits(id, run);
        }
        for (read, run) in reads {
            self.answered(id, read, run);
        }
        for text in wrongs {
            self.wrong("facade", format!("{id}: {text}"));
        }
    }

    /// By chance, a process ends within the time that a message takes, or is cut off at once, with all that it has just said.
    fn ambush(&mut self, id: RaftId, moment: Moment) {
        if self.random.below(1_000) >= self.ambushes.get(&moment).copied().unwrap_or(0) {
            return;
        }
        if self.random.below(2) == 0 {
            self.isolate(id);
            if moment == Moment::Led && self.baits.all_end {
                for other in ids().into_iter().filter(|other| *other != id) {
                    self.crash(other);
                    let us = self.baits.random.below(100_000);
                    self.after(us, Happening::Start { at: other });
                }
            }
            return;
        }
        let (life, us) = (self.machine(id).life, self.within(self.net_us));
        self.after(us, Happening::Ambush { at: id, life });
    }

    // ---- what must hold

    /// Terms and commits never fall, a term has one leader, and it holds all that was committed in earlier terms.
    fn stands(&mut self, id: RaftId) {
        let machine = self.machine(id);
        let Some(Standing { term, role, commit, .. }) = machine.node.standing() else { return };
        let before = std::mem::replace(&mut machine.seen, (term, commit));
        if term < before.0 || commit < before.1 {
            self.wrong("going back", format!("{id} goes from {before:?} to term {term} commit {commit}"));
        }
        if role != RaftRole::Leader || self.leaders.get(&term) == Some(&id) {
            return;
        }
        let first = *self.leaders.entry(term).or_insert(id);
        if first != id {
            return self.wrong("election safety", format!("{first} and {id} both lead term {term}"));
        }
        let log = self.machine(id).node.log();
        let lacks = self
            .history
            .iter()
            .enumerate()
            .find(|(at, (run, known_in))| *known_in < term && log.get(*at).is_none_or(|held| held != run.header()));
        if let Some(text) = lacks.map(|(_, (run, known_in))| format!("{id} leads term {term} without {run:?}, of {known_in}")) {
            self.wrong("leader completeness", text);
        }
        self.ambush(id, Moment::Led);
    }

    /// One history, the same bytes at all three, in order in each life.
    fn commits(&mut self, id: RaftId, run: Run) {
        let (witness, term) = (self.witness, self.machine(id).seen.0);
        let machine = self.machine(id);
        let at = machine.told;
        machine.told += 1;
        let known = self.history.get(at).map(|(known, _)| known.clone());
        let before = at.checked_sub(1).and_then(|before| self.history.get(before)).map_or(RunIndex(1), |(run, _)| run.header().run);
        if run.header().run != before.next() || known.as_ref().is_some_and(|known| known.bytes() != run.bytes()) {
            return self.wrong("state-machine safety", format!("{id} commits {run:?} behind run {before}, known is {known:?}"));
        }
        self.recorder.record(What::Feed { server: id.seat(), run: run.clone(), verdicts: Bytes::new() });
        let sealer = self.leaders.get(&run.header().term).copied();
        let sealed_by = match (id == witness, sealer == Some(witness)) {
            (false, true) => Some("led_by_witness"),
            (true, false) => Some("led_by_ours"),
            _ => None,
        };
        if let Some(count) = sealed_by {
            *self.counts.entry(count).or_default() += commands(&run).len() as u64;
        }
        if known.is_none() {
            self.committed.extend(commands(&run));
            self.history.push((run, term));
            self.ambush(id, Moment::Committed);
        }
    }

    /// A read sees all that was committed when it began.
    fn answered(&mut self, id: RaftId, read: ReadId, run: RunIndex) {
        *self.counts.entry("reads").or_default() += 1;
        match self.reads.remove(&read) {
            Some((_, _, floor)) if run >= floor => {}
            began => self.wrong("read index", format!("{id} answers read {read} with {run}: {began:?}")),
        }
    }

    fn last(&self) -> RunIndex {
        self.history.last().map_or(RunIndex(1), |(run, _)| run.header().run)
    }

    fn standings(&self) -> Vec<Standing> {
        self.machines.values().filter_map(|machine| machine.node.standing()).collect()
    }

    /// Who leads the highest term, among those that run.
    fn leader(&self) -> Option<RaftId> {
        let leads = self.machines.iter().filter_map(|(id, machine)| {
            let standing = machine.node.standing()?;
            (standing.role == RaftRole::Leader).then_some((standing.term, *id))
        });
        leads.max().map(|(_, id)| id)
    }

    pub(super) fn is_led(&self) -> bool {
        self.leader().is_some()
    }

    /// What lives still and has promised or waits: commands that are not committed, reads that are not answered.
    fn open(&self) -> (Vec<u64>, Vec<ReadId>) {
        let lives = |id: &RaftId, life: &u64| self.machines.get(id).is_some_and(|machine| machine.up && machine.life == *life);
        let commands = self.promised.iter().filter(|(number, (id, life))| lives(id, life) && !self.committed.contains(number));
        let reads = self.reads.iter().filter(|(_, (id, life, _))| lives(id, life));
        (commands.map(|(number, _)| *number).collect(), reads.map(|(read, _)| *read).collect())
    }

    /// One leader, three equal logs, all of them committed and told, and nothing open.
    pub(super) fn is_at_rest(&self) -> bool {
        let (leader, last, standings) = (self.leader(), self.last(), self.standings());
        let alike = |standing: &Standing| (standing.leader, standing.commit, standing.last) == (leader, last, last);
        let told = self.machines.values().all(|machine| machine.told == self.history.len());
        leader.is_some() && standings.len() == 3 && standings.iter().all(alike) && told && self.open() == (Vec::new(), Vec::new())
    }

    pub(super) fn missing(&self) -> String {
        format!("{} is committed, {:?}, open {:?}", self.last(), self.standings(), self.open())
    }

    /// What lies on the disks is the history.
    pub(super) fn look_at_disks(&mut self) {
        for id in ids() {
            let machine = self.machine(id);
            let found = DiskFound { server: id.seat(), snapshot: None, runs: machine.node.log(), vote: machine.node.vote() };
            if !found.runs.iter().eq(self.history.iter().map(|(run, _)| run.header())) {
                self.wrong("durability", format!("the disk of {id} holds another history"));
            }
            self.recorder.record(What::Disk(found));
        }
    }

    pub(super) fn finish(mut self, seed: u64) -> Outcome {
        let mut report = self.recorder.finish();
        report.violations.append(&mut self.violations);
        report.counts.append(&mut self.counts);
        report.counts.insert("leaders", self.leaders.len() as u64);
        report.operations = self.commands + self.reads_begun;
        Outcome { seed, simulated: Duration::from_micros(self.now_us), faults: self.faults, report, ..Outcome::default() }
    }
}
