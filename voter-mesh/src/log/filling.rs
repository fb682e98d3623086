//! Filling holes from peers, before the replica starts: whom to ask for what, what to believe, and when to give up.
//!
//! One question is under way at a time. Peers may each have only a part, for they may be recovering too: what is still missing is
//! asked of one after the other. Nothing is believed before the whole hole is filled and its far side fits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::holes::Hole;
use crate::configuration::Configuration;
use crate::ids::{RaftId, RunIndex, Time};
use crate::run::{Run, Tail};

/// Bounds of a filling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FillLimits {
    /// Milliseconds without progress, once a quorum is linked, after which what is left is given up. Default 10,000. Shorter: a peer
    /// with the only other copy may come too late, and raft has to heal what could have been read. Longer: a hole that nobody can fill
    /// delays the start by so much.
    pub fill_ms: u64,
    /// Milliseconds that a peer may take to answer. Default 5,000.
    pub answer_ms: u64,
    /// Milliseconds after which a peer that is still reading its own log is asked again. Default 50.
    pub again_ms: u64,
    /// Bytes of runs that are held until they are written. Default 128 MiB: two segments. A larger hole is given up; what several
    /// holes have beyond it waits for another round.
    pub bytes_max: usize,
}

impl Default for FillLimits {
    fn default() -> Self {
        Self { fill_ms: 10_000, answer_ms: 5_000, again_ms: 50, bytes_max: 128 << 20 }
    }
}

/// Why a peer has no runs for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRuns {
    /// Its log begins later.
    Trimmed {
        /// The first run that it holds.
        first: RunIndex,
    },
    /// It does not hold them, or they are damaged there too.
    Absent,
    /// It cannot say yet: it is reading its log, or busy with another question. Or it could not be asked.
    NotYet,
}

/// A question for a peer: runs `first` to `last`, as many of them as fit one answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchRuns {
    /// Whom.
    pub to: RaftId,
    /// From here on.
    pub first: RunIndex,
    /// Up to here.
    pub last: RunIndex,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filled {
    /// Holes, by their place in the list, and all the runs that were missing in each.
    pub holes: Vec<(usize, Vec<Run>)>,
    /// Others may be filled after these are written; without it, what is left cannot be.
    pub more: bool,
}

/// Fills a log's holes. Feed it with `handle_*`; after each, send what [`Filling::poll_transmit`] gives and look at
/// [`Filling::poll_filled`]; call [`Filling::handle_timeout`] when [`Filling::poll_timeout`] says so.
#[derive(Debug)]
pub struct Filling {
    limits: FillLimits,
    /// Who else is in the configuration, as far as it is known.
    members: BTreeSet<RaftId>,
    /// Linked voters that, with this server if it votes, make a quorum.
    quorum: usize,
    voters: BTreeSet<RaftId>,
    linked: BTreeSet<RaftId>,
    waiting: VecDeque<(usize, Hole)>,
    attempt: Attempt,
    asked: Option<(FetchRuns, Time)>,
    filled: Filled,
    filled_bytes: usize,
    deadline: Option<Time>,
    now: Time,
}

/// What there is of the hole that is being filled.
#[derive(Debug, Default)]
struct Attempt {
    runs: Vec<Run>,
    bytes: usize,
    /// Who gave the last of them.
    from: Option<RaftId>,
    /// Who does not have the next one.
    without: BTreeSet<RaftId>,
    /// Whose runs led nowhere.
    excluded: BTreeSet<RaftId>,
    /// Who said to ask again, and from when on.
    later: BTreeMap<RaftId, Time>,
}

impl Filling {
    /// For the holes of server `id`; `configuration` as its log knows it.
    #[must_use]
    pub fn new(id: RaftId, configuration: &Configuration, holes: &[Hole], limits: FillLimits, now: Time) -> Self {
        let mut voters: BTreeSet<_> = configuration.voters().into_iter().collect();
        let majority = if voters.is_empty() { 0 } else { voters.len() / 2 + 1 };
        let quorum = majority - usize::from(voters.remove(&id));
        let standbys = configuration.standbys();
        let members = voters.iter().chain(&configuration.outgoing).chain(&standbys).copied().filter(|other| *other != id).collect();
        let mut filling = Self {
            limits,
            members,
            quorum,
            voters,
            linked: BTreeSet::new(),
            waiting: holes.iter().copied().enumerate().collect(),
            attempt: Attempt::default(),
            asked: None,
            filled: Filled::default(),
            filled_bytes: 0,
            deadline: None,
            now,
        };
        filling.look_for_quorum();
        filling.move_on();
        filling
    }

    /// A link to a member of this cluster stands. What it did not have before it may have now.
    pub fn handle_connected(&mut self, peer: RaftId, now: Time) {
        self.now = now;
        self.linked.insert(peer);
        self.attempt.without.remove(&peer);
        self.attempt.later.remove(&peer);
        self.look_for_quorum();
    }

    /// The link to a peer is gone.
    pub fn handle_disconnected(&mut self, peer: RaftId, now: Time) {
        self.now = now;
        self.linked.remove(&peer);
        self.asked.take_if(|(asked, _)| asked.to == peer);
    }

    /// A peer answered the question for the runs from `first` on. Answers to any other mean nothing.
    pub fn handle_answer(&mut self, from: RaftId, first: RunIndex, answer: Result<Vec<Run>, NoRuns>, now: Time) {
        self.now = now;
        if self.asked.take_if(|(asked, _)| asked.to == from && asked.first == first).is_none() {
            return;
        }
        match answer {
            Ok(runs) => self.take(from, runs),
            Err(NoRuns::NotYet) => drop(self.attempt.later.insert(from, now.plus_ms(self.limits.again_ms))),
            Err(NoRuns::Trimmed { .. } | NoRuns::Absent) => drop(self.attempt.without.insert(from)),
        }
        self.move_on();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        if let Some((late, _)) = self.asked.take_if(|(_, until)| *until <= now) {
            self.attempt.later.insert(late.to, now.plus_ms(self.limits.again_ms));
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.waiting.clear();
        }
        self.move_on();
    }

    /// The next question.
    pub fn poll_transmit(&mut self) -> Option<FetchRuns> {
        let (_, hole) = self.waiting.front().filter(|_| self.asked.is_none())?;
        let Attempt { without, excluded, later, from, .. } = &self.attempt;
        let may = |peer: &RaftId| {
            self.linked.contains(peer)
                && !without.contains(peer)
                && !excluded.contains(peer)
                && later.get(peer).is_none_or(|at| *at <= self.now)
        };
        // Who had the runs before probably has these.
        let to = from.filter(may).or_else(|| self.linked.iter().copied().find(may))?;
        let question = FetchRuns { to, first: self.end(hole).run.next(), last: hole.last() };
        self.attempt.later.remove(&to);
        self.asked = Some((question, self.now.plus_ms(self.limits.answer_ms)));
        Some(question)
    }

    /// What came of it, once, when there is nothing left to ask.
    pub fn poll_filled(&mut self) -> Option<Filled> {
        self.waiting.is_empty().then(|| std::mem::take(&mut self.filled))
    }

    /// When to call [`Filling::handle_timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let answer = self.asked.map(|(_, until)| (until, "a peer owes an answer"));
        let later = self.attempt.later.iter().filter(|(peer, _)| self.asked.is_none() && self.linked.contains(peer));
        let again = later.map(|(_, at)| (*at, "a peer is to be asked again"));
        let give_up = self.deadline.map(|at| (at, "the rest is given up"));
        answer.into_iter().chain(again).chain(give_up).min()
    }

    /// Holes that are not filled yet.
    #[must_use]
    pub fn open(&self) -> usize {
        self.waiting.len()
    }

    fn look_for_quorum(&mut self) {
        let linked = self.voters.intersection(&self.linked).count();
        if linked >= self.quorum && self.deadline.is_none() {
            self.deadline = Some(self.now.plus_ms(self.limits.fill_ms));
        }
    }

    /// Where the hole is filled up to.
    fn end(&self, hole: &Hole) -> Tail {
        self.attempt.runs.last().map_or(hole.after, |run| run.header().tail())
    }

    /// Takes in what a peer gave, as far as it goes on from what there is.
    fn take(&mut self, from: RaftId, runs: Vec<Run>) {
        let Some((_, hole)) = self.waiting.front().copied() else { return };
        let (mut end, before) = (self.end(&hole), self.attempt.runs.len());
        for run in runs {
            if run.header().run > hole.last() || !end.continues(run.header()) {
                break;
            }
            end = run.header().tail();
            self.attempt.bytes += run.bytes().len();
            self.attempt.runs.push(run);
        }
        if self.attempt.runs.len() == before {
            self.attempt.without.insert(from);
            return;
        }
        self.attempt.from = Some(from);
        self.attempt.without.clear();
        self.deadline = self.deadline.map(|_| self.now.plus_ms(self.limits.fill_ms));
    }

    /// Goes to the next hole where this one is filled, or cannot be.
    fn move_on(&mut self) {
        while let Some((number, hole)) = self.waiting.front().copied() {
            let Attempt { runs, bytes, without, excluded, from, .. } = &mut self.attempt;
            let is_filled = hole.is_filled_by(runs);
            let too_large = self.filled_bytes + *bytes > self.limits.bytes_max;
            if too_large && !self.filled.holes.is_empty() {
                self.filled.more = true;
                self.waiting.clear();
            } else if is_filled && !too_large {
                self.filled_bytes += *bytes;
                self.filled.holes.push((number, std::mem::take(runs)));
                self.next_hole();
            } else if too_large {
                self.next_hole();
            } else {
                let complete = runs.last().is_some_and(|run| run.header().run == hole.last());
                let nobody_has_more = self.members.iter().all(|peer| without.contains(peer) || excluded.contains(peer));
                if !complete && !nobody_has_more {
                    return;
                }
                match *from {
                    // A dead end: the last who led there is not believed, and it begins anew.
                    Some(misled) => {
                        let mut excluded = std::mem::take(excluded);
                        excluded.insert(misled);
                        self.attempt = Attempt { excluded, ..Attempt::default() };
                    }
                    None => self.next_hole(),
                }
            }
        }
    }

    fn next_hole(&mut self) {
        self.attempt = Attempt::default();
        self.waiting.pop_front();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
