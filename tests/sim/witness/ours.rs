//! A voter of ours: the facade, fed and polled as its contract says, and a disk under it that takes its time and, when the process
//! ends, has a prefix of what was on its way.

use std::collections::VecDeque;

use bytes::Bytes;
use voter_mesh::ids::{Incarnation, RaftId, RunIndex, Term, Time};
use voter_mesh::mesh::message::AdminRequest;
use voter_mesh::raft::{Event, Recovered, Timing, Transmit, Voter, VoterLimits, VoterOptions, VoterStatus, Write, Written};
use voter_mesh::run::{Run, RunHeader, Tail};

use super::node::{APPENDS_IN_FLIGHT_MAX, IDENTITY, Node, Standing, Told, Wants, configuration};
use crate::sim::random::Random;

/// Applied runs in memory: few, so that older ones are read from the disk.
const MEMORY_BYTES_MAX: usize = 3_000;

pub(super) struct Ours {
    id: RaftId,
    append_bytes_max: u64,
    seed: u64,
    voter: Option<Voter>,
    disk: Disk,
}

#[derive(Clone)]
struct Disk {
    term: Term,
    vote: RaftId,
    commit: RunIndex,
    runs: Vec<Run>,
    /// On their way.
    pending: VecDeque<Write>,
}

impl Disk {
    fn tail(&self) -> Tail {
        self.runs.last().map_or(Tail::zero(&IDENTITY), |run| run.header().tail())
    }

    /// The first write on its way arrives. What a log must never do is an error.
    fn take(&mut self) -> Result<(), String> {
        let Some(write) = self.pending.pop_front() else { return Ok(()) };
        let Write { term, vote, commit, writer_term, keep_through, runs, install, .. } = write;
        let votes_again = term == self.term && self.vote != RaftId::NONE && vote != self.vote;
        if term < self.term || votes_again || writer_term > term || install.is_some() {
            return Err(format!("term {term} vote {vote} is written over term {} vote {}", self.term, self.vote));
        }
        if let Some(keep) = keep_through {
            if keep < self.commit && keep < self.tail().run {
                return Err(format!("what is committed up to {} is cut above {keep}", self.commit));
            }
            self.runs.truncate(keep.0.saturating_sub(1) as usize);
        }
        for run in runs {
            if !self.tail().continues(run.header()) {
                return Err(format!("{run:?} is written behind {:?}", self.tail()));
            }
            self.runs.push(run);
        }
        (self.term, self.vote, self.commit) = (term, vote, self.commit.max(commit));
        if self.commit <= self.tail().run { Ok(()) } else { Err(format!("{} is committed behind the end", self.commit)) }
    }
}

impl Ours {
    pub(super) fn new(id: RaftId, append_bytes_max: u64, seed: u64) -> Self {
        let Tail { term, run: commit, .. } = Tail::zero(&IDENTITY);
        let disk = Disk { term, vote: RaftId::NONE, commit, runs: Vec::new(), pending: VecDeque::new() };
        Self { id, append_bytes_max, seed, voter: None, disk }
    }

    fn recovered(&self) -> Recovered {
        let Disk { term, vote, commit, runs, .. } = &self.disk;
        let (zero, tail) = (Tail::zero(&IDENTITY), self.disk.tail());
        let mut terms: Vec<(RunIndex, Term)> = runs.iter().map(|run| (run.header().run, run.header().term)).collect();
        terms.dedup_by_key(|(_, term)| *term);
        Recovered {
            term: *term,
            vote: *vote,
            commit: *commit,
            applied: zero,
            configuration: configuration(),
            configuration_run: zero.run,
            before_first: (zero.run, zero.term),
            terms,
            recent: runs.clone(),
            tail,
            snapshot: None,
            suspect: None,
            vote_lost: false,
        }
    }

    fn settle(voter: &mut Voter, disk: &mut Disk, now: Time) -> Wants {
        let mut wants = Wants::default();
        loop {
            let mut idle = true;
            while let Some(Transmit { to, message }) = voter.poll_transmit() {
                idle = false;
                wants.messages.push((to, message));
            }
            while let Some(write) = voter.poll_write() {
                idle = false;
                wants.writes.push(write.number);
                disk.pending.push_back(write);
            }
            while let Some(event) = voter.poll_event() {
                idle = false;
                match event {
                    Event::Committed(runs) => wants.committed.extend(runs),
                    Event::ReadReady { read, run } => wants.reads.push((read, run)),
                    Event::Fetch { first, last } => {
                        let runs = disk.runs.iter().filter(|run| (first..=last).contains(&run.header().run));
                        voter.handle_fetched(runs.take(20).cloned().collect(), now);
                    }
                    Event::Role { .. } | Event::Admin { .. } | Event::Overloaded(_) | Event::HandsOver { .. } => {}
                    Event::Installed(_)
                    | Event::SendSnapshot { .. }
                    | Event::SnapshotWanted
                    | Event::VoteSettled
                    | Event::Fatal(_) => {
                        wants.wrongs.push(format!("{event:?}"));
                    }
                }
            }
            if idle {
                return wants;
            }
        }
    }
}

impl Node for Ours {
    fn start(&mut self, life: u64, now: Time) {
        let limits = VoterLimits {
            append_bytes_max: self.append_bytes_max,
            appends_in_flight_max: APPENDS_IN_FLIGHT_MAX,
            memory_bytes_max: MEMORY_BYTES_MAX,
            ..VoterLimits::default()
        };
        let options = VoterOptions {
            id: self.id,
            incarnation: Incarnation(life),
            identity: IDENTITY,
            timing: Timing::default(),
            limits,
            seed: self.seed ^ life << 32,
        };
        self.voter = Some(Voter::new(options, self.recovered(), now).expect("the disk holds what the voter left there"));
    }

    fn crash(&mut self, random: &mut Random) -> Result<(), String> {
        self.voter = None;
        let kept = random.below(self.disk.pending.len() as u64 + 1);
        let result = (0..kept).try_for_each(|_| self.disk.take());
        self.disk.pending.clear();
        result
    }

    fn tell(&mut self, told: Told, now: Time) -> Result<(), String> {
        let Some(voter) = &mut self.voter else { return Ok(()) };
        match told {
            Told::Connected(peer) => voter.handle_connected(peer, now),
            Told::Disconnected(peer, how) => voter.handle_disconnected(peer, how, now),
            Told::Said(from, message) => voter.handle_message(from, message, now).map_err(|error| error.to_string())?,
            Told::Read(read) => voter.handle_read(read, now).map_err(|error| error.to_string())?,
            Told::Written(number) => {
                while self.disk.pending.front().is_some_and(|write| write.number <= number) {
                    self.disk.take()?;
                }
                voter.handle_written(Ok(Written { number }), now);
            }
            Told::Applied(run) => voter.handle_applied(run, now),
            // Refused where it does not lead.
            Told::HandOver(to) => drop(voter.handle_admin(AdminRequest::Transfer { seat: to.seat() }, now)),
            Told::Timeout => voter.handle_timeout(now),
            // It knows best when.
            Told::Campaign => {}
        }
        Ok(())
    }

    fn propose(&mut self, entries: Bytes, now: Time) -> bool {
        self.voter.as_mut().is_some_and(|voter| voter.handle_propose(entries, now).is_ok())
    }

    fn wants(&mut self, now: Time) -> Wants {
        let Some(voter) = &mut self.voter else { return Wants::default() };
        let wants = Self::settle(voter, &mut self.disk, now);
        if !wants.wrongs.is_empty() {
            // It may have ended.
            self.voter = None;
        }
        wants
    }

    fn due_us(&self) -> Option<u64> {
        self.voter.as_ref()?.poll_timeout().map(|(at, _)| at.monotonic_us)
    }

    fn standing(&self) -> Option<Standing> {
        let VoterStatus { term, role, leader, commit, last, .. } = self.voter.as_ref()?.status();
        Some(Standing { term, role, leader, commit, last })
    }

    fn log(&self) -> Vec<RunHeader> {
        let mut disk = self.disk.clone();
        while !disk.pending.is_empty() && disk.take().is_ok() {}
        disk.runs.iter().map(|run| *run.header()).collect()
    }

    fn vote(&self) -> (Term, RaftId) {
        (self.disk.term, self.disk.vote)
    }
}
