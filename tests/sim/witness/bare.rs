//! The witness: the crate's own loop over its own storage in memory, where everything is durable before anything that depends on it is
//! said, and all is kept over crashes. What it does not know it does not do: batches that it forwards are its clients' to repeat.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, Message as Theirs, MessageType, Snapshot};
use raft::storage::MemStorage;
use raft::{Config, GetEntriesContext, RawNode, StateRole, Storage};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{RaftId, RunIndex, Term, Time, TimeMs};
use voter_mesh::mesh::message::{BatchId, ForwardRefusal, Message, ReadNonce, ReadRefusal};
use voter_mesh::raft::RaftRole;
use voter_mesh::run::{Run, RunError, RunHeader, Tail};

use super::node::{APPENDS_IN_FLIGHT_MAX, IDENTITY, Node, Standing, Told, Wants, ids};
use super::translate;
use crate::sim::random::Random;

const TICK_MS: u64 = 50;
const HEARTBEAT_TICKS: usize = 4;
const ELECTION_TICKS: (usize, usize) = (20, 40);

pub(super) struct Bare {
    id: RaftId,
    append_bytes_max: u64,
    disk: MemStorage,
    random: Random,
    process: Option<Process>,
    batches: u64,
    rounds: u64,
}

struct Process {
    raw: RawNode<MemStorage>,
    next_tick: Time,
    /// Term, role and leader when the election timeout was drawn.
    drawn_in: (u64, StateRole, u64),
    timeout_ticks: usize,
    /// Who waits for a read round.
    asking: BTreeMap<u64, (RaftId, ReadNonce)>,
    wants: Wants,
}

fn seal(disk: &MemStorage, term: u64, now: TimeMs, entries: &[u8]) -> Result<Run, RunError> {
    let tail = runs(disk).last().map_or(Tail::zero(&IDENTITY), |run| run.header().tail());
    Run::seal(&tail, Term(term), now, IDENTITY.epoch, IDENTITY.room, &[entries])
}

fn runs(disk: &MemStorage) -> impl DoubleEndedIterator<Item = Run> {
    let last = disk.last_index().unwrap_or(1);
    let entries = if last > 1 { disk.entries(2, last + 1, None, GetEntriesContext::empty(false)) } else { Ok(Vec::new()) };
    entries.unwrap_or_default().into_iter().map(|entry| translate::run(&entry).expect("only runs are written"))
}

impl Bare {
    pub(super) fn new(id: RaftId, append_bytes_max: u64, seed: u64) -> Self {
        let mut formed = Snapshot::default();
        let metadata = formed.mut_metadata();
        let tail = Tail::zero(&IDENTITY);
        (metadata.index, metadata.term) = (tail.run.0, tail.term.0);
        metadata.set_conf_state(ConfState { voters: ids().map(|id| id.0).into(), ..ConfState::default() });
        let disk = MemStorage::new();
        disk.wl().apply_snapshot(formed).expect("there is nothing that it could contradict");
        Self { id, append_bytes_max, disk, random: Random::new(seed), process: None, batches: 0, rounds: 0 }
    }
}

impl Process {
    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn say(&mut self, to: RaftId, message: Message) {
        self.wants.messages.push((to, message));
    }

    fn send(&mut self, messages: Vec<Theirs>) {
        for message in messages {
            match translate::to_ours(&message) {
                Ok(ours) => self.say(RaftId(message.to), ours),
                Err(wrong) => self.wants.wrongs.push(wrong),
            }
        }
    }

    fn apply(&mut self, entries: &[Entry]) {
        for entry in entries {
            match translate::run(entry) {
                Ok(run) => self.wants.committed.push(run),
                Err(wrong) => self.wants.wrongs.push(wrong),
            }
        }
    }

    /// Seals a batch behind all that is in the log.
    fn lead_in(&mut self, disk: &MemStorage, entries: &[u8], now: Time) -> Result<RunHeader, ForwardRefusal> {
        if !self.leads() {
            return Err(ForwardRefusal::NotLeader);
        }
        let run = seal(disk, self.raw.raft.term, now.unix_ms, entries).map_err(|_| ForwardRefusal::Malformed)?;
        // It leads, so this is a hand-over under way.
        self.raw.propose(Vec::new(), run.bytes().to_vec()).map_err(|_| ForwardRefusal::Transferring)?;
        Ok(*run.header())
    }

    /// The crate's first entry as a leader is empty: it becomes a run before anybody sees it.
    fn seal_noop(&mut self, disk: &MemStorage, now: Time) {
        let raft = &mut self.raw.raft;
        let Some(noop) = raft.raft_log.unstable.entries.iter_mut().find(|entry| entry.data.is_empty()) else { return };
        let laid_out = entry(&EntrySpec::internal(EntryKind::Noop), &[]).expect("nothing is not too much");
        let run = seal(disk, noop.term, now.unix_ms, &laid_out).expect("a sound entry");
        noop.data = run.bytes().clone();
        let sent = raft.msgs.iter_mut().flat_map(|message| message.mut_entries().iter_mut());
        sent.filter(|entry| entry.data.is_empty()).for_each(|entry| entry.data = run.bytes().clone());
    }

    /// The crate draws its timeouts from the thread's randomness: the seed's take their place.
    fn draw(&mut self, random: &mut Random) {
        let raft = &mut self.raw.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if now != self.drawn_in {
            self.drawn_in = now;
            self.timeout_ticks = ELECTION_TICKS.0 + random.below((ELECTION_TICKS.1 - ELECTION_TICKS.0) as u64) as usize;
        }
        raft.set_randomized_election_timeout(self.timeout_ticks);
    }

    /// The loop of the crate's documentation.
    fn take_ready(&mut self, disk: &MemStorage) {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages());
        for read in ready.take_read_states() {
            let round = read.request_ctx.as_slice().try_into().map_or(0, u64::from_le_bytes);
            if let Some((asker, nonce)) = self.asking.remove(&round) {
                self.say(asker, Message::ReadAnswer { nonce, answer: Ok(RunIndex(read.index)) });
            }
        }
        self.apply(&ready.take_committed_entries());
        disk.wl().append(ready.entries()).expect("the storage takes what continues it");
        if let Some(hard) = ready.hs() {
            disk.wl().set_hardstate(hard.clone());
        }
        self.send(ready.take_persisted_messages());
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            disk.wl().mut_hard_state().commit = commit;
        }
        self.send(light.take_messages());
        self.apply(&light.take_committed_entries());
        self.raw.advance_apply();
    }

    /// How far must `asker` have applied?
    fn read(&mut self, asker: RaftId, nonce: ReadNonce, round: u64) {
        let refusal = match (self.leads(), self.raw.raft.commit_to_current_term()) {
            (true, true) => {
                self.asking.insert(round, (asker, nonce));
                return self.raw.read_index(round.to_le_bytes().to_vec());
            }
            (true, false) => ReadRefusal::NotReady,
            (false, _) => ReadRefusal::NotLeader,
        };
        self.say(asker, Message::ReadAnswer { nonce, answer: Err(refusal) });
    }
}

impl Node for Bare {
    fn start(&mut self, _life: u64, now: Time) {
        let config = Config {
            id: self.id.0,
            election_tick: ELECTION_TICKS.0,
            min_election_tick: ELECTION_TICKS.0,
            max_election_tick: ELECTION_TICKS.1,
            heartbeat_tick: HEARTBEAT_TICKS,
            // What it applied is gone with its process.
            applied: Tail::zero(&IDENTITY).run.0,
            max_size_per_msg: self.append_bytes_max,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, self.disk.clone(), &logger).expect("the storage holds what the crate left there");
        let mut process = Process {
            raw,
            next_tick: now.plus_ms(TICK_MS),
            drawn_in: (u64::MAX, StateRole::Follower, 0),
            timeout_ticks: 0,
            asking: BTreeMap::new(),
            wants: Wants::default(),
        };
        process.draw(&mut self.random);
        self.process = Some(process);
    }

    fn crash(&mut self, _random: &mut Random) -> Result<(), String> {
        self.process = None;
        Ok(())
    }

    fn lose(&mut self, _runs: usize) {
        // Its disk loses nothing.
    }

    fn tell(&mut self, told: Told, now: Time) -> Result<(), String> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let raw = &mut process.raw;
        match told {
            Told::Disconnected(peer, _) => raw.report_unreachable(peer.0),
            Told::Said(from, Message::Forward { batch, entries }) => {
                let (term, leader) = (Term(raw.raft.term), RaftId(raw.raft.leader_id).some());
                let answer = match process.lead_in(&self.disk, &entries, now) {
                    Ok(header) => Message::Taken { batch, term, first: header.first },
                    Err(why) => Message::Refused { batch, why, leader },
                };
                process.say(from, answer);
            }
            Told::Said(from, Message::ReadIndex { nonce }) => {
                self.rounds += 1;
                process.read(from, nonce, self.rounds);
            }
            Told::Said(_, Message::Taken { .. } | Message::Refused { .. }) => {}
            Told::Said(from, message) => {
                let commit_only = matches!(message, Message::Commit { .. });
                let theirs = translate::to_theirs(from, self.id, message).ok_or("a message that is not for raft")?;
                let said = raw.raft.msgs.len();
                raw.step(theirs).map_err(|error| error.to_string())?;
                // That it matches is not said.
                let is_yes = |message: &Theirs| message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject;
                if commit_only && raw.raft.msgs.len() > said && raw.raft.msgs.last().is_some_and(is_yes) {
                    raw.raft.msgs.pop();
                }
            }
            Told::HandOver(to) if raw.raft.state == StateRole::Leader => raw.transfer_leader(to.0),
            Told::Campaign => raw.campaign().map_err(|error| error.to_string())?,
            Told::Timeout => {
                raw.tick();
                process.next_tick = now.plus_ms(TICK_MS);
            }
            Told::Connected(_) | Told::HandOver(_) | Told::Read(_) | Told::Written(_) | Told::Applied(_) => {}
        }
        Ok(())
    }

    fn propose(&mut self, entries: Bytes, now: Time) -> bool {
        let Some(process) = &mut self.process else { return false };
        let leader = RaftId(process.raw.raft.leader_id).some().filter(|leader| *leader != self.id);
        match leader {
            Some(leader) => {
                self.batches += 1;
                process.say(leader, Message::Forward { batch: BatchId(self.batches), entries });
            }
            None => drop(process.lead_in(&self.disk, &entries, now)),
        }
        false
    }

    fn wants(&mut self, now: Time) -> Wants {
        let Some(process) = &mut self.process else { return Wants::default() };
        process.draw(&mut self.random);
        process.seal_noop(&self.disk, now);
        while process.raw.has_ready() {
            process.take_ready(&self.disk);
        }
        if !process.leads() {
            for (asker, nonce) in std::mem::take(&mut process.asking).into_values() {
                process.say(asker, Message::ReadAnswer { nonce, answer: Err(ReadRefusal::NotLeader) });
            }
        }
        std::mem::take(&mut process.wants)
    }

    fn due_us(&self) -> Option<u64> {
        self.process.as_ref().map(|process| process.next_tick.monotonic_us)
    }

    fn standing(&self) -> Option<Standing> {
        let raft = &self.process.as_ref()?.raw.raft;
        let role = match raft.state {
            StateRole::Leader => RaftRole::Leader,
            StateRole::Follower => RaftRole::Follower,
            StateRole::Candidate | StateRole::PreCandidate => RaftRole::Candidate,
        };
        let (leader, commit) = (RaftId(raft.leader_id).some(), RunIndex(raft.raft_log.committed));
        Some(Standing { term: Term(raft.term), role, leader, commit, last: RunIndex(raft.raft_log.last_index()) })
    }

    fn log(&self) -> Vec<RunHeader> {
        runs(&self.disk).map(|run| *run.header()).collect()
    }

    fn vote(&self) -> (Term, RaftId) {
        let disk = self.disk.rl();
        (Term(disk.hard_state().term), RaftId(disk.hard_state().vote))
    }
}
