//! Linearizable reads (thesis §6.4). They do not travel as raft messages, because two requests with one context lose one.
//!
//! An entry server has one question at the leader for all reads that wait. Where the two are a majority, as among three voters, the
//! question is its own confirmation: it says that the asker still followed this leader after the reads had begun. Otherwise the leader
//! runs one heartbeat round at a time, and reads that come during a round share the next. There are no lease reads: a follower may give
//! up the leader's lease at any time.

use crate::ids::{Incarnation, RaftId, ReadId, Time};
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
