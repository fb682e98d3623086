//! A voter of ours: the facade, fed and polled as its contract says, and a disk under it that takes its time and, when the process
//! ends, has a prefix of what was on its way. Marks stand on it as on a server's, and by the same rules they say at a start what the
//! log's end is worth: runs that the disk had confirmed may be gone.

use std::collections::VecDeque;

use bytes::Bytes;
use voter_mesh::ids::{Incarnation, RaftId, RunIndex, Term, Time};
use voter_mesh::log::{Mark, MarkSlots, SECTOR_BYTES, Verdict, judge, reaches};
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
    /// The newest mark, as the process knows it, and both slots, as they are.
    mark: Mark,
    slots: [[u8; SECTOR_BYTES]; 2],
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
        let mark = self.mark;
        let votes_again = term == mark.term && mark.vote != RaftId::NONE && vote != mark.vote;
        if term < mark.term || votes_again || writer_term > term || install.is_some() {
            return Err(format!("term {term} vote {vote} is written over term {} vote {}", mark.term, mark.vote));
        }
        if let Some(keep) = keep_through {
            if keep < mark.commit && keep < self.tail().run {
                return Err(format!("what is committed up to {} is cut above {keep}", mark.commit));
            }
            self.runs.truncate(keep.0.saturating_sub(1) as usize);
        }
        let synced_through = self.tail().run;
        for run in runs {
            if !self.tail().continues(run.header()) {
                return Err(format!("{run:?} is written behind {:?}", self.tail()));
            }
            self.runs.push(run);
        }
        let (last, commit) = (self.tail(), mark.commit.max(commit));
        let must_reach = mark.must_reach.filter(|goal| !reaches(&last, goal));
        self.write(Mark { sequence: mark.sequence + 1, term, vote, commit, last, synced_through, must_reach, ..mark });
        if commit <= last.run { Ok(()) } else { Err(format!("{commit} is committed behind the end")) }
    }

    fn write(&mut self, mark: Mark) {
        self.slots[mark.slot()] = mark.encode();
        self.mark = mark;
    }

    /// What a process finds that starts on it.
    fn recover(&mut self) {
        let slot = |at: usize| Mark::decode(&self.slots[at], self.mark.segment, at);
        let mark = MarkSlots([slot(0), slot(1)]).newest().expect("both were written");
        let tail = self.tail();
        let must_reach = match judge(&tail, false, &mark) {
            Verdict::Clean | Verdict::Torn => None,
            Verdict::Doubtful | Verdict::Suspect => mark.must_reach.filter(|goal| reaches(goal, &mark.last)).or(Some(mark.last)),
        };
        self.mark = Mark { must_reach, commit: mark.commit.min(tail.run), ..mark };
    }
}

impl Ours {
    pub(super) fn new(id: RaftId, append_bytes_max: u64, seed: u64) -> Self {
        let last = Tail::zero(&IDENTITY);
        let mark = Mark {
            sequence: 0,
            segment: 1,
            term: last.term,
            vote: RaftId::NONE,
            commit: last.run,
            last,
            synced_through: last.run,
            must_reach: None,
            vote_lost: false,
        };
        let mut disk = Disk { mark, slots: [[0; SECTOR_BYTES]; 2], runs: Vec::new(), pending: VecDeque::new() };
        (0..2).for_each(|sequence| disk.write(Mark { sequence, ..mark }));
        Self { id, append_bytes_max, seed, voter: None, disk }
    }

    fn recovered(&self) -> Recovered {
        let Disk { mark: Mark { term, vote, commit, must_reach, .. }, runs, .. } = &self.disk;
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
            suspect: *must_reach,
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
        self.disk.recover();
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

    fn lose(&mut self, runs: usize) {
        self.disk.runs.truncate(self.disk.runs.len().saturating_sub(runs));
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
        (self.disk.mark.term, self.disk.mark.vote)
    }
}
