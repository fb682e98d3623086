//! What this replica's own disk lets it do.
//!
//! Without room it neither campaigns nor takes leadership over, and as a leader it hands over to a voter that keeps up; where there is
//! none, it goes on leading, serves reads, and seals nothing until there is room. It votes all the same: a vote needs no room.
//! A leader whose own writes take far longer than the followers' answers hands over too: nobody waits for a slow follower, but
//! everything on a leader's own server waits for its disk.

use super::*;

/// How much longer than the followers' median the own writes must take to count as slow.
const SLOW_TIMES: u64 = 10;

/// Microseconds that a write may take however fast the followers are: on fast disks, ten times nothing is still nothing.
const SLOW_US_MIN: u64 = 50_000;

/// Milliseconds for which it must have been slow.
const SLOW_FOR_MS: u64 = 1_000;

/// Milliseconds after a hand-over for slowness in which this server does not begin another: leadership does not go to and fro.
const SLOW_AGAIN_MS: u64 = 30_000;

/// Milliseconds between two tries of a leader without room to hand over; a try itself takes an election timeout at most.
const FULL_AGAIN_MS: u64 = 1_000;

/// Runs whose times are taken at once.
const TIMED_MAX: usize = 1_024;

/// How long runs take until they are durable, here and at the followers.
#[derive(Default)]
struct Times {
    /// Ends of writes that were begun, and when; oldest first.
    begun: VecDeque<(u64, Time)>,
    members: BTreeMap<RaftId, Member>,
}

/// One replica's times, seen from the leader.
#[derive(Default)]
struct Member {
    durable: u64,
    took_us: u64,
    /// When the last of them was confirmed.
    at: Time,
    /// Since when something is not.
    waits_since: Option<Time>,
}

impl Times {
    fn begin(&mut self, last: u64, members: impl Iterator<Item = RaftId>, now: Time) {
        if self.begun.len() >= TIMED_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back((last, now));
        for id in members {
            self.members.entry(id).or_default().waits_since.get_or_insert(now);
        }
    }

    fn confirmed(&mut self, id: RaftId, through: u64, now: Time) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.durable < through) else { return };
        let after = self.begun.partition_point(|(last, _)| *last <= through);
        if let Some((_, begun)) = after.checked_sub(1).and_then(|last| self.begun.get(last)) {
            (member.took_us, member.at) = (now.since_us(*begun), now);
        }
        member.durable = through;
        member.waits_since = self.begun.get(after).map(|(_, begun)| *begun);
    }

    /// Now, if it has something to do; else when it last had.
    fn busy_until(&self, id: RaftId, now: Time) -> Time {
        let member = self.members.get(&id);
        member.filter(|member| member.waits_since.is_none()).map_or(now, |member| member.at)
    }

    /// What its last write took, or its present one so far; `None` if it has had nothing to do for long, unless that is because
    /// `own`, whose times are looked at, keeps everybody waiting.
    fn took_us(&self, id: RaftId, own: RaftId, now: Time) -> Option<u64> {
        let member = self.members.get(&id)?;
        let hangs_since = self.members.get(&own).and_then(|own| own.waits_since);
        let has_written = member.durable > 0;
        let fresh = now.since_us(member.at) < SLOW_FOR_MS * 1000 || hangs_since.is_some_and(|since| member.at >= since);
        let waits = member.waits_since.map(|since| now.since_us(since));
        (has_written && fresh).then_some(member.took_us).max(waits)
    }
}

/// What is known of the own disk.
#[derive(Default)]
pub(super) struct OwnDisk {
    full: bool,
    times: Times,
    slow_since: Option<Time>,
    /// Before this, leadership is not handed over for slowness, or for want of room.
    not_before: (Time, Time),
    /// How often leadership was offered to whom for want of room: what came to nothing is tried with the next one.
    offers: BTreeMap<RaftId, u32>,
}

impl OwnDisk {
    /// Another term or another role: times of before say nothing.
    pub(super) fn forget_times(&mut self) {
        (self.times, self.slow_since) = (Times::default(), None);
    }

    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    /// Whether time alone may be a reason to hand leadership over.
    pub(super) const fn is_watched(&self) -> bool {
        self.full || self.slow_since.is_some()
    }
}

impl Voter {
    /// The log's writer has run out of room, or has found some again.
    pub fn handle_disk(&mut self, state: DiskState, now: Time) {
        self.begin(now);
        self.disk.full = state == DiskState::Full;
        self.disk.offers.clear();
        self.drive_disk();
        self.stepped();
    }

    /// Whether proposals cannot be sealed anywhere for want of room, as far as is known.
    pub(super) fn waits_for_room(&self) -> bool {
        if self.is_leader() { self.disk.full && !self.is_transferring() } else { self.leader_is_full }
    }

    /// Whether memory holds more unapplied runs than it may.
    pub(super) fn is_stuffed(&self) -> bool {
        let limits = &self.options.limits;
        self.raw.store().bytes() as u64 > limits.memory_bytes_max as u64 + limits.uncommitted_bytes_max
    }

    /// Whether runs would go from memory if this server's disk or its applier caught up. Where they would not, only a leader's next
    /// runs can move it on, and it takes them whatever it holds.
    pub(super) fn lags_itself(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.persisted < log.last_index() || log.applied < log.committed
    }

    /// A leader's own write has begun; its followers' began with it.
    pub(super) fn time_write(&mut self, last: u64) {
        if self.is_leader() {
            let voters = self.configuration.voters();
            self.disk.times.begin(last, voters.into_iter(), self.now);
        }
    }

    /// A member has made durable what a leader sent it, or a leader its own.
    pub(super) fn time_confirmed(&mut self, id: RaftId) {
        if !self.is_leader() {
            return;
        }
        let through = if id == self.options.id {
            self.raw.raft.raft_log.persisted
        } else {
            self.raw.raft.prs().get(id.0).map_or(0, |progress| progress.matched)
        };
        self.disk.times.confirmed(id, through, self.now);
    }

    /// Hands leadership over where the own disk is a reason to.
    pub(super) fn drive_disk(&mut self) {
        if !self.is_leader() || self.is_transferring() {
            return;
        }
        let is_slow = self.is_slow();
        let since = is_slow.then(|| self.disk.slow_since.unwrap_or(self.now));
        self.disk.slow_since = since;
        // From the first slow write to the end of the last one: what was not written took no time.
        let until = self.disk.times.busy_until(self.options.id, self.now);
        let slow_for_long = since.is_some_and(|since| until.since_us(since) >= SLOW_FOR_MS * 1000);
        let (slow_not_before, full_not_before) = self.disk.not_before;
        let election_ms = self.options.timing.tick_ms * self.options.timing.election_ticks as u64;
        let why = if self.disk.full && self.now >= full_not_before {
            HandOver::DiskFull
        } else if slow_for_long && self.now >= slow_not_before {
            HandOver::SlowDisk
        } else {
            return;
        };
        let Some(to) = self.successor() else { return };
        match why {
            HandOver::DiskFull => {
                self.disk.not_before.1 = self.now.plus_ms(election_ms + FULL_AGAIN_MS);
                *self.disk.offers.entry(to).or_default() += 1;
            }
            HandOver::SlowDisk => self.disk.not_before.0 = self.now.plus_ms(SLOW_AGAIN_MS),
        }
        self.raw.transfer_leader(to.0);
        if self.is_transferring() {
            self.events.push_back(Event::HandsOver { to, why });
        }
    }

    /// Whether the own writes take far longer than the followers'. Only with traffic: nothing else takes time.
    fn is_slow(&self) -> bool {
        let times = &self.disk.times;
        let took_us = |id| times.took_us(id, self.options.id, self.now);
        let Some(own_us) = took_us(self.options.id).filter(|own_us| *own_us > SLOW_US_MIN) else { return false };
        let mut others: Vec<u64> = self.others_linked().filter_map(took_us).collect();
        others.sort_unstable();
        // Of two middle ones the slower: where half of the others are no better, nobody gains.
        others.get(others.len() / 2).is_some_and(|median_us| own_us > SLOW_TIMES * median_us)
    }

    /// The other voters that are linked.
    fn others_linked(&self) -> impl Iterator<Item = RaftId> {
        self.configuration.voters().into_iter().filter(|id| *id != self.options.id && self.peers.contains(id))
    }

    /// Who should lead in this server's place: of those that keep up, whoever was tried least, and of these the quickest.
    fn successor(&self) -> Option<RaftId> {
        let progress = |id: RaftId| self.raw.raft.prs().get(id.0);
        let answers = |id: RaftId| progress(id).is_some_and(|progress| progress.recent_active);
        self.others_linked().filter(|id| answers(*id) && self.caught_up(*id)).min_by_key(|id| {
            let matched = progress(*id).map_or(0, |progress| progress.matched);
            let took_us = self.disk.times.took_us(*id, self.options.id, self.now).unwrap_or(0);
            (self.disk.offers.get(id).copied(), took_us / SLOW_US_MIN, std::cmp::Reverse(matched))
        })
    }
}
