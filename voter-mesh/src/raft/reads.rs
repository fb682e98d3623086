//! Linearizable reads (thesis §6.4). They do not travel as raft messages, because two requests with one context lose one.
//!
//! An entry server has one question at the leader for all reads that wait. Where the two are a majority, as among three voters, the
//! question is its own confirmation: it says that the asker still followed this leader after the reads had begun. Otherwise the leader
//! runs one heartbeat round at a time, and reads that come during a round share the next. There are no lease reads: a follower may give
//! up the leader's lease at any time.

use super::*;
use crate::mesh::message::ReadNonce;

/// Who waits for a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// This server's own reads.
    Own(ReadNonce),
    /// Another server's.
    Peer(RaftId, ReadNonce),
}

/// The entry server's side.
pub(super) struct Asking {
    server: RaftId,
    incarnation: Incarnation,
    counter: u64,
    waiting: Vec<ReadId>,
    asked: Vec<ReadId>,
    /// The question under way, and when it was put; `None`: it is to be put again.
    outstanding: Option<(ReadNonce, Option<Time>)>,
    not_before: Time,
}

impl Asking {
    pub(super) fn new(server: RaftId, incarnation: Incarnation) -> Self {
        let (waiting, asked) = (Vec::new(), Vec::new());
        Self { server, incarnation, counter: 0, waiting, asked, outstanding: None, not_before: Time::default() }
    }

    /// How many reads wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.asked.len()
    }

    pub(super) fn add(&mut self, read: ReadId) {
        self.waiting.push(read);
    }

    pub(super) fn cancel(&mut self, read: ReadId) {
        self.waiting.retain(|waiting| *waiting != read);
        self.asked.retain(|asked| *asked != read);
    }

    /// The next question, if there is something to ask and nothing is being asked; or the last one, if it is to be put again.
    pub(super) fn question(&mut self, now: Time) -> Option<ReadNonce> {
        if let Some((nonce, put @ None)) = &mut self.outstanding {
            *put = Some(now);
            return Some(*nonce);
        }
        if self.outstanding.is_some() || self.waiting.is_empty() || now < self.not_before {
            return None;
        }
        self.counter += 1;
        let nonce = ReadNonce { server: self.server, incarnation: self.incarnation, counter: self.counter };
        self.asked = std::mem::take(&mut self.waiting);
        self.outstanding = Some((nonce, Some(now)));
        Some(nonce)
    }

    /// The reads that an answer serves; an answer to any other question serves none.
    pub(super) fn answer(&mut self, nonce: ReadNonce) -> Vec<ReadId> {
        if self.outstanding.is_none_or(|(asked, _)| asked != nonce) {
            return Vec::new();
        }
        self.outstanding = None;
        std::mem::take(&mut self.asked)
    }

    /// The question led to nothing: ask again, not before `at`.
    pub(super) fn refused(&mut self, nonce: ReadNonce, at: Time) {
        let reads = self.answer(nonce);
        if !reads.is_empty() {
            self.waiting.splice(0..0, reads);
            self.not_before = at;
        }
    }

    /// Another leader, or no answer for too long: put the same question again. Whoever answers it was the leader after it was first
    /// put, so a late answer is as good; a question with a new name each time would never be answered where every round takes
    /// longer than the patience.
    pub(super) fn ask_again(&mut self) {
        if self.asked.is_empty() {
            self.outstanding = None;
        }
        if let Some((_, put)) = &mut self.outstanding {
            *put = None;
        }
        self.not_before = Time::default();
    }

    /// Asks again if an answer has not come within `patience_us`.
    pub(super) fn tick(&mut self, now: Time, patience_us: u64) {
        if matches!(self.outstanding, Some((_, Some(at))) if now.since_us(at) >= patience_us) {
            self.ask_again();
        }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        (self.outstanding.is_none() && !self.waiting.is_empty()).then_some(self.not_before)
    }
}

/// The leader's side.
#[derive(Default)]
pub(super) struct Rounds {
    counter: u64,
    running: Vec<Asker>,
    next: Vec<Asker>,
}

impl Rounds {
    /// One question waits for each server, its last one. A round that is under way for it already is its answer.
    pub(super) fn ask(&mut self, asker: Asker) {
        if self.running.contains(&asker) {
            return;
        }
        let server = |asker: &Asker| match asker {
            Asker::Own(nonce) => nonce.server,
            Asker::Peer(peer, _) => *peer,
        };
        self.next.retain(|waiting| server(waiting) != server(&asker));
        self.next.push(asker);
    }

    /// The number of a round to begin, if one is due.
    pub(super) fn begin(&mut self) -> Option<u64> {
        if !self.running.is_empty() || self.next.is_empty() {
            return None;
        }
        self.counter += 1;
        self.running = std::mem::take(&mut self.next);
        Some(self.counter)
    }

    /// Who is served by the round that was confirmed.
    pub(super) fn confirmed(&mut self, round: u64) -> Vec<Asker> {
        if round == self.counter { std::mem::take(&mut self.running) } else { Vec::new() }
    }

    /// Everybody who waits, when nothing can be confirmed any more.
    pub(super) fn give_up(&mut self) -> Vec<Asker> {
        let mut askers = std::mem::take(&mut self.running);
        askers.append(&mut self.next);
        askers
    }
}

impl Voter {
    /// Asks the leader for what waits here, and as leader sees to a round for what waits there.
    pub(super) fn drive_reads(&mut self) {
        let Some(leader) = self.leader() else { return };
        if let Some(nonce) = self.asking.question(self.now) {
            if self.is_leader() {
                self.rounds.ask(Asker::Own(nonce));
            } else {
                self.transmit(leader, Message::ReadIndex { nonce });
            }
        }
        if !self.is_leader() {
            return;
        }
        let unasked =
            if mutant!("read_before_noop") { !self.raw.raft.commit_to_current_term() } else { mutant!("stale_leader_reads") };
        if unasked {
            return self.answer_all_reads(Ok(self.committed_run()));
        }
        if !self.raw.raft.commit_to_current_term() {
            return self.answer_all_reads(Err(ReadRefusal::NotReady));
        }
        if let Some(round) = self.rounds.begin() {
            self.raw.read_index(round.to_le_bytes().to_vec());
        }
    }

    /// Whether this leader and a voter that follows it are a majority, so that the voter's question is all that a round could bring:
    /// when it was asked, neither had elected anybody else. Not before an entry of the term is committed.
    fn is_confirmed_by(&self, follower: RaftId) -> bool {
        let pair = [self.options.id, follower];
        let is_majority = |voters: &[RaftId]| voters.iter().filter(|id| pair.contains(id)).count() * 2 > voters.len();
        let Configuration { outgoing, .. } = &self.configuration;
        self.is_leader()
            && self.raw.raft.commit_to_current_term()
            && is_majority(&self.configuration.voters())
            && (outgoing.is_empty() || is_majority(outgoing))
    }

    /// A peer asks how far it must have applied.
    pub(super) fn asked(&mut self, from: RaftId, nonce: ReadNonce) {
        let asker = Asker::Peer(from, nonce);
        if self.is_confirmed_by(from) {
            self.answer_read(asker, Ok(self.committed_run()));
        } else if self.is_leader() {
            self.rounds.ask(asker);
        } else {
            self.answer_read(asker, Err(ReadRefusal::NotLeader));
        }
    }

    fn committed_run(&self) -> RunIndex {
        RunIndex(self.raw.raft.raft_log.committed)
    }

    /// Answers everybody who waits for a round.
    pub(super) fn answer_all_reads(&mut self, answer: Result<RunIndex, ReadRefusal>) {
        for asker in self.rounds.give_up() {
            self.answer_read(asker, answer);
        }
    }

    pub(super) fn answer_read(&mut self, asker: Asker, answer: Result<RunIndex, ReadRefusal>) {
        match (asker, answer) {
            (Asker::Peer(peer, nonce), answer) => self.transmit(peer, Message::ReadAnswer { nonce, answer }),
            (Asker::Own(nonce), Ok(run)) => self.reads_ready(nonce, run),
            (Asker::Own(nonce), Err(_)) => self.asking.refused(nonce, self.now.plus_ms(self.options.timing.tick_ms)),
        }
    }

    pub(super) fn reads_ready(&mut self, nonce: ReadNonce, run: RunIndex) {
        let ready = self.asking.answer(nonce).into_iter().map(|read| Event::ReadReady { read, run });
        self.events.extend(ready);
    }
}
