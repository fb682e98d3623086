//! The consensus facade: TiKV's raft crate, made safe to feed with bytes from others, and completed with what the crate leaves to
//! its user — sealing, forwarding, reads, membership, the torn-link hint. No type of the crate leaves this module.
//!
//! # Driving contract
//! Feed [`Voter`] with `handle_*` as things happen. After any number of them, drain, in any order and until all give `None`:
//! * [`Voter::poll_transmit`]: may be sent at once. Lost messages are repeated; the order per peer should be kept.
//! * [`Voter::poll_write`]: make durable in order, then [`Voter::handle_written`] with the number of the last one that is.
//! * [`Voter::poll_event`]: see [`Event`].
//! * [`Voter::poll_timeout`]: when to call [`Voter::handle_timeout`] at the latest, and why.
//!
//! Proposals are sealed when the outputs are drained: all that waits becomes one run, so batches come from draining inputs first.

mod change;
mod convert;
mod disk;
mod forward;
mod membership;
mod reads;
mod ready;
mod seal;
mod step;
mod storage;
mod types;
mod vote;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{EntryType, Message as RaftMessage, MessageType};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use self::disk::OwnDisk;
use self::forward::Book;
pub use self::membership::AdminRefused;
use self::reads::{Asking, Rounds};
use self::storage::Store;
pub use self::types::*;
use self::vote::LostVote;
use crate::configuration::{ConfigPayload, Configuration, Role};
use crate::entry::{Entries, EntryKind, EntrySpec, entry};
use crate::ids::{Incarnation, RaftId, ReadId, RunIndex, Seat, Term, Time};
pub use crate::mesh::links::Disconnect;
use crate::mesh::message::{AdminRequest, BatchId, ForwardRefusal, Message, ReadRefusal};
use crate::mutant;
use crate::run::{RUN_BYTES_MAX, RUN_HEADER_BYTES, RUN_WHOLE_BYTES_MAX, Run, Tail};
use crate::snapshot::SnapshotMeta;

/// How far behind the commit index a newcomer may be to be called caught up, in runs.
const CAUGHT_UP_RUNS: u64 = 256;

/// Tries of a (pre-)vote after a torn link, while no leader is heard.
const HINT_TRIES: u32 = 5;

/// Milliseconds for which a candidate that just got this server's vote is given time to say that it leads: until then no rival of it
/// is encouraged, or one whose own try came a little later would drive the new leader out again.
const VOTE_REST_MS: u64 = 30;

/// No term and no index is ever above this: the numbers end, and the crate counts on.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// Where a batch that waits for sealing came from.
#[derive(PartialEq, Eq)]
enum Origin {
    Own(BatchId),
    Peer(RaftId, BatchId),
}

/// A pre-vote that a torn link asks for.
struct Hint {
    at: Time,
    tries: u32,
}

/// Messages that wait until a write is durable.
struct Held {
    write: u64,
    ready: u64,
    term: Term,
    messages: Vec<RaftMessage>,
    installed: Option<SnapshotMeta>,
}

/// A change that this leader has begun.
struct Changing {
    request: AdminRequest,
    /// For a transfer: to whom, and until when.
    transfer: Option<(RaftId, Time)>,
}

/// One replica's part in consensus; see the module for how it is driven.
pub struct Voter {
    raw: RawNode<Store>,
    options: VoterOptions,
    now: Time,
    rng: u64,
    next_tick: Time,
    /// Who is linked.
    peers: BTreeSet<RaftId>,
    /// The process of each peer that was linked last.
    incarnations: BTreeMap<RaftId, Incarnation>,
    /// Terms far above ours, as peers claimed them.
    high_terms: BTreeMap<RaftId, u64>,
    /// What was applied, as far as configurations go: advanced when a run is handed out as committed.
    configuration: Configuration,
    configuration_run: RunIndex,
    /// The tail of what was handed out as committed.
    handed: Tail,
    suspect: Option<Tail>,
    lost_vote: Option<LostVote>,
    /// The highest term that is durable here.
    durable_term: Term,
    to_seal: VecDeque<(Origin, Bytes)>,
    to_seal_bytes: usize,
    book: Book,
    asking: Asking,
    rounds: Rounds,
    /// Who got the last vote, and when.
    voted: Option<(RaftId, Time)>,
    hint: Option<Hint>,
    hinted_term: u64,
    /// The pre-vote at the start was asked for.
    started: bool,
    /// A configuration that is in the log and not applied.
    config_pending: Option<RunIndex>,
    changing: Option<Changing>,
    disk: OwnDisk,
    /// The leader refused for want of room, and has sealed nothing of ours since.
    leader_is_full: bool,
    appends_dropped: u64,
    role: (Term, RaftRole, Option<RaftId>),
    overloaded: bool,
    last_write: u64,
    written: u64,
    held: VecDeque<Held>,
    writes: VecDeque<Write>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// Something was told since the outputs were brought up to date.
    unsettled: bool,
    fatal: bool,
}

impl std::fmt::Debug for Voter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Voter").field(&self.status()).finish()
    }
}

impl Voter {
    /// A replica that goes on from what its disk knew.
    ///
    /// # Errors
    /// [`VoterError`]: timing or state that cannot be.
    pub fn new(options: VoterOptions, recovered: Recovered, now: Time) -> Result<Self, VoterError> {
        options.timing.check()?;
        let Recovered {
            term,
            vote,
            commit,
            applied,
            configuration,
            configuration_run,
            before_first,
            terms,
            recent,
            tail,
            snapshot,
            suspect,
            vote_lost,
        } = recovered;
        let first_recent = recent.first().map_or(tail.run.0 + 1, |run| run.header().run.0);
        if first_recent > applied.run.0 + 1 || applied.run > tail.run || before_first.0 > applied.run {
            return Err(VoterError::State("the runs above the applied one are not all there"));
        }
        let connected = recent.windows(2).all(|pair| pair[0].header().tail().continues(pair[1].header()));
        if !connected || recent.last().is_some_and(|run| run.header().tail() != tail) {
            return Err(VoterError::State("the recent runs do not end the log"));
        }
        if !membership::is_sound(&configuration) {
            return Err(VoterError::State("the configuration contradicts itself"));
        }
        let commit = commit.max(applied.run).min(tail.run);
        let store = Store::new((term, vote, commit), &configuration, before_first, &terms, recent, tail, snapshot);
        let timing = &options.timing;
        let config = raft::Config {
            id: options.id.0,
            election_tick: timing.election_ticks,
            min_election_tick: timing.election_ticks,
            max_election_tick: timing.election_ticks_max,
            heartbeat_tick: timing.heartbeat_ticks,
            applied: applied.run.0,
            max_size_per_msg: options.limits.append_bytes_max,
            max_inflight_msgs: options.limits.appends_in_flight_max,
            max_uncommitted_size: options.limits.uncommitted_bytes_max,
            max_committed_size_per_ready: options.limits.append_bytes_max,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, store, &logger).map_err(|error| VoterError::Crate(error.to_string()))?;
        let last_config = raw.store().last_config_above(applied.run.0);
        let mut voter = Self {
            raw,
            now,
            rng: options.seed | 1,
            next_tick: now.plus_ms(options.timing.tick_ms),
            peers: BTreeSet::new(),
            incarnations: BTreeMap::new(),
            high_terms: BTreeMap::new(),
            configuration,
            configuration_run,
            handed: applied,
            suspect,
            lost_vote: vote_lost.then(|| LostVote::new(term)),
            durable_term: term,
            to_seal: VecDeque::new(),
            to_seal_bytes: 0,
            book: Book::default(),
            asking: Asking::new(options.id, options.incarnation),
            rounds: Rounds::default(),
            voted: None,
            hint: None,
            hinted_term: 0,
            started: false,
            config_pending: last_config,
            changing: None,
            disk: OwnDisk::default(),
            leader_is_full: false,
            appends_dropped: 0,
            role: (term, RaftRole::Follower, None),
            overloaded: false,
            last_write: 0,
            written: 0,
            held: VecDeque::new(),
            writes: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            unsettled: true,
            fatal: false,
            options,
        };
        voter.take_priority();
        voter.randomise();
        if voter.configuration.voters() == [voter.options.id] && !voter.configuration.is_joint() && voter.may_campaign() {
            // Nobody else could object.
            let _ = voter.raw.campaign();
        }
        voter.stepped();
        Ok(voter)
    }

    // ---- inputs

    /// A link to a peer stands. A new incarnation may have lost what the old one acknowledged: a leader forgets its progress.
    pub fn handle_connected(&mut self, peer: Peer, now: Time) {
        self.begin(now);
        self.peers.insert(peer.id);
        let known = self.incarnations.insert(peer.id, peer.incarnation);
        if known.is_some_and(|known| known != peer.incarnation) {
            // What was meant for the process before would be misread: its batches had the same names.
            self.transmits.retain(|transmit| transmit.to != peer.id);
            self.forget_batches(peer.id);
        }
        self.ask_for_term(peer.id);
        if self.raw.raft.state == StateRole::Leader {
            let last = self.raw.raft.raft_log.last_index();
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer.id.0) {
                progress.become_probe();
                progress.recent_active = true;
                if known != Some(peer.incarnation) && !mutant!("progress_not_reset") {
                    progress.matched = 0;
                }
                progress.next_idx = last + 1;
                progress.pending_snapshot = 0;
                self.raw.raft.send_append(peer.id.0);
            }
        } else if Some(peer.id) == self.leader() {
            // What was under way on the old link is gone.
            self.book.take_back_unanswered(0, now);
            self.asking.ask_again();
        } else {
            self.campaign_at_start();
        }
        self.stepped();
    }

    /// A process that has just started and can reach a quorum asks for a pre-vote soon instead of waiting out an election timeout:
    /// nobody grants it while a leader is heard, and a cluster that starts has a leader in a moment.
    fn campaign_at_start(&mut self) {
        let voters = self.configuration.voters();
        let linked = voters.iter().filter(|id| **id == self.options.id || self.peers.contains(id)).count();
        if self.started || self.leader().is_some() || linked * 2 <= voters.len() || !voters.contains(&self.options.id) {
            return;
        }
        self.started = true;
        let wait_us = 10_000 + self.random() % 50_000;
        self.hint = Some(Hint { at: self.now.plus_us(wait_us), tries: HINT_TRIES });
    }

    /// The link to a peer is gone. A torn one to the leader is a hint that the leader is: pre-vote soon, once per term.
    pub fn handle_disconnected(&mut self, peer: RaftId, how: Disconnect, now: Time) {
        self.begin(now);
        self.peers.remove(&peer);
        let raft = &mut self.raw.raft;
        let leads = raft.leader_id == peer.0 && raft.state == StateRole::Follower;
        if how == Disconnect::Torn && leads && raft.promotable() && self.hinted_term < raft.term {
            self.hinted_term = raft.term;
            // Gives up the lease: others may have our vote at once.
            raft.leader_id = raft::INVALID_ID;
            let wait_us = 1_000 + self.random() % 5_000;
            self.hint = Some(Hint { at: now.plus_us(wait_us), tries: HINT_TRIES });
        }
        if self.raw.raft.state == StateRole::Leader {
            self.raw.report_unreachable(peer.0);
        }
        self.stepped();
    }

    /// A message from a linked peer.
    ///
    /// # Errors
    /// [`MessageError`]: the message cannot be true; nothing has changed, and the link should be closed.
    pub fn handle_message(&mut self, from: RaftId, message: Message, now: Time) -> Result<(), MessageError> {
        self.begin(now);
        if !self.peers.contains(&from) || from == self.options.id {
            return Err(MessageError::Stranger(from));
        }
        if let Some(lost) = &mut self.lost_vote {
            lost.hear(from, &message);
        }
        match message {
            Message::Forward { batch, entries } => self.forwarded(from, batch, entries),
            // A leader that is deposed by now promised what the next one may not keep: that one was asked again.
            Message::Taken { term, .. } if term.0 < self.raw.raft.term => {}
            Message::Taken { batch, term, first } => {
                self.leader_is_full = false;
                self.book.taken(batch, term, first, &self.handed);
            }
            Message::Refused { batch, why: ForwardRefusal::Malformed, .. } => self.book.drop_batch(batch),
            Message::Refused { batch, why, .. } => {
                // It is offered again and again, and so finds out when there is room.
                self.leader_is_full = self.book.refused(batch, now) && why == ForwardRefusal::DiskFull;
            }
            Message::ReadIndex { nonce } => self.asked(from, nonce),
            Message::ReadAnswer { nonce, answer: Ok(run) } => self.reads_ready(nonce, run),
            Message::ReadAnswer { nonce, answer: Err(_) } => {
                self.asking.refused(nonce, now.plus_ms(self.options.timing.tick_ms));
            }
            Message::SessionActivity { .. } | Message::SnapshotHashes(_) | Message::Admin { .. } | Message::AdminReply { .. } => {
                return Err(MessageError::NotForConsensus);
            }
            message => self.step_message(from, message)?,
        }
        self.stepped();
        Ok(())
    }

    /// Entries of this server's clients, laid out end to end. They are kept until they are committed.
    ///
    /// # Errors
    /// [`ProposeRefused`]: nothing was kept; offer them again after [`Event::Overloaded`].
    pub fn handle_propose(&mut self, entries: Bytes, now: Time) -> Result<(), ProposeRefused> {
        self.begin(now);
        if self.waits_for_room() {
            self.overloaded = true;
            return Err(ProposeRefused::DiskFull);
        }
        if self.book.bytes() + entries.len() > self.options.limits.forward_bytes_max && self.book.bytes() > 0 {
            self.overloaded = true;
            return Err(ProposeRefused::Overloaded);
        }
        self.book.add(&entries, now);
        Ok(())
    }

    /// A linearizable read waits for its index: [`Event::ReadReady`] gives it. Its deadline is the owner's, with [`Voter::cancel_read`].
    ///
    /// # Errors
    /// [`ReadRefused`]: it does not wait; ask again later.
    pub fn handle_read(&mut self, read: ReadId, now: Time) -> Result<(), ReadRefused> {
        self.begin(now);
        if self.asking.len() >= self.options.limits.reads_max {
            return Err(ReadRefused::Overloaded);
        }
        self.asking.add(read);
        Ok(())
    }

    /// Nobody waits for this read any more.
    pub fn cancel_read(&mut self, read: ReadId) {
        self.asking.cancel(read);
    }

    /// Everything up to this write is durable. A failed one ends the server: this core then says nothing any more.
    pub fn handle_written(&mut self, written: Result<Written, WriteFailed>, now: Time) {
        self.begin(now);
        let Ok(Written { number }) = written else {
            self.fatal = true;
            return;
        };
        self.written = self.written.max(number);
        self.release();
        self.time_confirmed(self.options.id);
        self.stepped();
    }

    /// The owner has applied everything up to this run.
    pub fn handle_applied(&mut self, run: RunIndex, now: Time) {
        self.begin(now);
        let log = &self.raw.raft.raft_log;
        let run = run.0.min(log.committed).min(log.persisted);
        if run > log.applied {
            self.raw.advance_apply_to(run);
            let bytes_max = self.options.limits.memory_bytes_max;
            self.raw.mut_store().evict(run, bytes_max);
        }
        self.stepped();
    }

    /// The old runs that [`Event::Fetch`] asked for; empty if they cannot be read now.
    pub fn handle_fetched(&mut self, runs: Vec<Run>, now: Time) {
        self.begin(now);
        let usable = !runs.is_empty();
        let contexts = {
            let store = self.raw.mut_store();
            store.set_fetched(runs);
            let mut wants = store.wants.borrow_mut();
            wants.fetch = None;
            wants.fetching = false;
            std::mem::take(&mut wants.contexts)
        };
        if usable {
            contexts.into_iter().for_each(|context| self.raw.on_entries_fetched(context));
        }
        self.stepped();
    }

    /// The first of the runs that [`Event::Fetch`] asked for is damaged on the own disk: to peers, the log begins behind it, and whoever
    /// needs it gets a snapshot.
    pub fn handle_unreadable(&mut self, run: RunIndex, now: Time) {
        let store = self.raw.mut_store();
        let term = store.term_at(run.0);
        store.trim(run.0 + 1, term);
        let waiting = std::mem::take(&mut store.wants.borrow_mut().contexts);
        self.handle_fetched(Vec::new(), now);
        waiting.into_iter().for_each(|context| self.raw.on_entries_fetched(context));
        self.stepped();
    }

    /// A leader's snapshot has come and is durable. Returns whether the log restarts behind it: [`Event::Installed`] follows then.
    ///
    /// # Errors
    /// [`MessageError`]: it cannot be this replica's; nothing has changed.
    pub fn handle_snapshot(&mut self, from: RaftId, term: Term, meta: SnapshotMeta, now: Time) -> Result<bool, MessageError> {
        self.begin(now);
        if !self.peers.contains(&from) || from == self.options.id {
            return Err(MessageError::Stranger(from));
        }
        if meta.identity != self.options.identity
            || !meta.configuration.contains(self.options.id)
            || !membership::is_sound(&meta.configuration)
            || !(1..=NUMBER_MAX).contains(&meta.tail.run.0)
            || meta.tail.last.0 > NUMBER_MAX
            || !(1..=term.0).contains(&meta.tail.term.0)
        {
            return Err(MessageError::NotOurSnapshot);
        }
        self.check_leader(from, term)?;
        let (store, run) = (self.raw.store(), meta.tail.run);
        let known = store.term_at(run.0) == meta.tail.term.0;
        let differs = known && store.chain_after(run.0).is_some_and(|chain| chain != meta.tail.chain);
        if differs || !known && run.0 == self.raw.raft.raft_log.committed {
            self.stop(FatalError::Diverged { run });
            return Err(MessageError::Diverged { run });
        }
        let pending = |raw: &RawNode<Store>| raw.raft.raft_log.unstable_snapshot().as_ref().map(|known| known.get_metadata().index);
        let before = pending(&self.raw);
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (from.0, self.options.id.0, term.0);
        message.set_snapshot(storage::snapshot(&meta));
        self.step(message);
        let after = pending(&self.raw);
        let restarts = after != before && after == Some(run.0);
        if restarts {
            self.raw.mut_store().restart(&meta);
            self.handed = meta.tail;
            self.config_pending = None;
            self.configuration = meta.configuration.clone();
            self.configuration_run = meta.configuration_run;
            self.take_priority();
            // Whatever was promised a place may lie behind the snapshot's veil.
            self.book.send_all_again(now);
        }
        self.stepped();
        Ok(restarts)
    }

    /// The owner's own snapshot is durable: the newest one for peers.
    pub fn handle_snapshot_taken(&mut self, meta: SnapshotMeta, now: Time) {
        self.begin(now);
        let store = self.raw.mut_store();
        if store.snapshot.as_ref().is_none_or(|known| known.tail.run < meta.tail.run) {
            store.snapshot = Some(meta);
        }
        // Whoever waits for it hears from us again.
        self.raw.ping();
        self.stepped();
    }

    /// A snapshot that [`Event::SendSnapshot`] asked for has arrived, or has not.
    pub fn handle_snapshot_sent(&mut self, to: RaftId, ok: bool, now: Time) {
        self.begin(now);
        self.raw.report_snapshot(to.0, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
        self.stepped();
    }

    /// The disk has let go of the runs below `first`.
    pub fn handle_trimmed(&mut self, first: RunIndex, term_before: Term) {
        self.raw.mut_store().trim(first.0, term_before.0);
    }

    /// Hands leadership to the voter that has come furthest, as a shutdown does. Whether that is under way now.
    pub fn transfer_away(&mut self, now: Time) -> bool {
        self.begin(now);
        if !self.is_leader() {
            return false;
        }
        let own = self.options.id;
        let best = self
            .configuration
            .voters()
            .into_iter()
            .filter(|id| *id != own && self.peers.contains(id))
            .max_by_key(|id| self.raw.raft.prs().get(id.0).map_or(0, |progress| progress.matched));
        if let Some(best) = best {
            self.raw.transfer_leader(best.0);
        }
        self.stepped();
        self.is_transferring()
    }

    /// Time has come to what [`Voter::poll_timeout`] named.
    pub fn handle_timeout(&mut self, now: Time) {
        self.begin(now);
        if self.hint.as_ref().is_some_and(|hint| hint.at <= now) {
            self.take_hint();
        }
        self.stepped();
    }

    // ---- outputs

    /// What must become durable next.
    pub fn poll_write(&mut self) -> Option<Write> {
        self.settle();
        self.writes.pop_front()
    }

    /// What may be sent now.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.settle();
        self.transmits.pop_front()
    }

    /// What the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.settle();
        self.events.pop_front()
    }

    /// When [`Voter::handle_timeout`] is due at the latest, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let hint = self.hint.as_ref().map(|hint| (hint.at, "torn link"));
        let parked = self
            .destination()
            .and_then(|_| self.book.next_due(self.options.limits.forward_in_flight_bytes_max, self.now))
            .map(|at| (at, "parked proposals"));
        let reads = self.leader().and_then(|_| self.asking.next_due()).map(|at| (at, "reads to ask for again"));
        let tick = self.next_tick.plus_us((self.ticks_to_go() - 1) * self.tick_us());
        [Some((tick, "tick")), hint, parked, reads].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// How this replica stands.
    #[must_use]
    pub fn status(&self) -> VoterStatus {
        let raft = &self.raw.raft;
        let progress = |(id, progress): (&u64, &raft::Progress)| {
            (RaftId(*id), PeerProgress { matched: RunIndex(progress.matched), active: progress.recent_active })
        };
        VoterStatus {
            id: self.options.id,
            term: Term(raft.term),
            role: self.raft_role(),
            leader: self.leader(),
            commit: RunIndex(raft.raft_log.committed),
            applied: RunIndex(raft.raft_log.applied),
            last: self.raw.store().tail.run,
            last_term: self.raw.store().tail.term,
            suspect: self.suspect.is_some(),
            disk: if self.disk.is_full() { DiskState::Full } else { DiskState::Good },
            appends_dropped: self.appends_dropped,
            peers: if raft.state == StateRole::Leader { raft.prs().iter().map(progress).collect() } else { BTreeMap::new() },
        }
    }

    /// Whether leadership is being handed over.
    #[must_use]
    pub fn is_transferring(&self) -> bool {
        self.is_leader() && self.raw.raft.lead_transferee.is_some()
    }

    // ---- inside

    /// Something is told to this core: first it lives through the ticks until then; and its outputs are to be brought up to date.
    fn begin(&mut self, now: Time) {
        self.now = now;
        self.unsettled = true;
        if now < self.next_tick {
            return;
        }
        let due = now.since_us(self.next_tick) / self.tick_us() + 1;
        // A server that was stopped for long must not live through all of its timeouts at once.
        let lived = due.min(self.ticks_to_go() - 1 + u64::from(self.options.timing.catch_up_ticks_max));
        for _ in 0..lived {
            self.tick();
        }
        self.next_tick = if lived == due { self.next_tick.plus_us(due * self.tick_us()) } else { now.plus_us(self.tick_us()) };
    }

    const fn tick_us(&self) -> u64 {
        self.options.timing.tick_ms * 1000
    }

    /// How many ticks it takes until one may do something: an idle server need not wake for the others. Never more than half an
    /// election timeout's, so that one which slept through all of them still hears its leader before it stands for election.
    fn ticks_to_go(&self) -> u64 {
        let (raft, timing) = (&self.raw.raft, &self.options.timing);
        let waits = self.book.bytes() > 0
            || self.asking.len() > 0
            || self.lost_vote.is_some()
            || self.changing.is_some()
            || self.disk.is_watched()
            || raft.raft_log.persisted < raft.raft_log.last_index();
        let quiet_for = if waits {
            1
        } else if self.is_leader() {
            let heartbeat = timing.heartbeat_ticks.saturating_sub(raft.heartbeat_elapsed());
            heartbeat.min(timing.election_ticks.saturating_sub(raft.election_elapsed))
        } else {
            raft.randomized_election_timeout().min(timing.election_ticks_max).saturating_sub(raft.election_elapsed)
        };
        quiet_for.clamp(1, (timing.election_ticks / 2).max(1)) as u64
    }

    fn random(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The crate draws its election timeout from the thread's randomness: ours replaces it wherever a new one was drawn.
    fn randomise(&mut self) {
        let (min, max) = (self.options.timing.election_ticks, self.options.timing.election_ticks_max);
        let span = (max - min).max(1) as u64;
        let ticks = min + (self.random() % span) as usize;
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    /// A member's priority is its seat's, in the configuration; while it is suspect, nobody's is lower.
    fn take_priority(&mut self) {
        let seat = self.configuration.seats.get(&self.options.id.seat());
        let priority = if self.suspect.is_some() { i32::MIN } else { seat.map_or(0, |seat| seat.priority) };
        self.raw.set_priority(i64::from(priority));
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<RaftId> {
        RaftId(self.raw.raft.leader_id).some()
    }

    /// Who takes batches now: the leader, if it can be reached and is not handing over; this server not while it has no room.
    fn destination(&self) -> Option<RaftId> {
        let leader = self.leader()?;
        let takes = if self.is_leader() { !self.is_transferring() && !self.disk.is_full() } else { self.peers.contains(&leader) };
        takes.then_some(leader)
    }

    /// Whether this replica may ask for votes. Not as a standby; not while it lacks what it lost, or may vote twice in the next term;
    /// not without room for what a leader writes; not before a snapshot that it took is applied (the crate would look for the runs below it); and where its own vote is enough,
    /// only when its disk has everything (the crate counts on that at once).
    fn may_campaign(&self) -> bool {
        let (raft, log) = (&self.raw.raft, &self.raw.raft.raft_log);
        raft.promotable()
            && self.suspect.is_none()
            && !self.disk.is_full()
            && self.lost_vote_through().is_none_or(|term| term.is_some_and(|term| raft.term >= term.0))
            && log.applied + 1 >= log.first_index()
            && (!raft.prs().is_singleton() || log.persisted == log.last_index())
    }

    /// If a vote may be forgotten: the highest term that it may be in, or `None` inside while that is not known.
    fn lost_vote_through(&self) -> Option<Option<Term>> {
        let lost = self.lost_vote.as_ref()?;
        let voters = self.configuration.voters().into_iter().chain(self.configuration.outgoing.iter().copied());
        let others: Vec<RaftId> = voters.filter(|id| *id != self.options.id).collect();
        Some(lost.ceiling(&others))
    }

    /// Asks a peer for its term, if that matters and is not known.
    fn ask_for_term(&mut self, peer: RaftId) {
        if self.peers.contains(&peer) && self.lost_vote.as_ref().is_some_and(|lost| !lost.has_heard(peer)) {
            self.transmit(peer, LostVote::question());
        }
    }

    fn raft_role(&self) -> RaftRole {
        match self.raw.raft.state {
            StateRole::Leader => RaftRole::Leader,
            StateRole::Follower => RaftRole::Follower,
            StateRole::Candidate | StateRole::PreCandidate => RaftRole::Candidate,
        }
    }

    fn transmit(&mut self, to: RaftId, message: Message) {
        self.transmits.push_back(Transmit { to, message });
    }

    fn stop(&mut self, error: FatalError) {
        if !std::mem::replace(&mut self.fatal, true) {
            self.events.push_back(Event::Fatal(error));
        }
    }

    fn tick(&mut self) {
        if !self.is_leader() {
            // What it gave to itself is not lost.
            self.book.tick(self.now);
        }
        self.asking.tick(self.now, self.options.timing.heartbeat_us());
        if self.is_leader() || self.may_campaign() {
            self.raw.tick();
        } else {
            // It does not campaign, but a leader that fell silent loses its lease here too.
            let raft = &mut self.raw.raft;
            raft.election_elapsed = raft.election_elapsed.saturating_add(1);
            if raft.leader_id != raft::INVALID_ID && raft.election_elapsed >= self.options.timing.election_ticks_max {
                // And is followed no longer: a standby that was cut off or removed would wait for its answers for ever.
                raft.become_follower(raft.term, raft::INVALID_ID);
            }
        }
        if self.lost_vote.is_some() {
            self.peers.clone().into_iter().for_each(|peer| self.ask_for_term(peer));
        }
        self.drive_disk();
        self.stepped();
        if let Some((_, until)) = self.changing.as_ref().and_then(|changing| changing.transfer)
            && self.now >= until
        {
            self.end_change(Err("the other server did not take over in time".into()));
        }
    }

    fn take_hint(&mut self) {
        let Some(hint) = self.hint.take() else { return };
        if self.is_leader() || self.leader().is_some() {
            return;
        }
        if self.may_campaign() {
            let _ = self.raw.campaign();
        }
        let at = self.next_try();
        self.hint = (hint.tries > 1).then(|| Hint { at, tries: hint.tries - 1 });
    }

    /// When a vote that came to nothing is tried again.
    fn next_try(&mut self) -> Time {
        self.now.plus_us(5_000 + self.random() % 25_000)
    }

    /// After anything that may have moved the crate: the no-op of a new term is laid out, and what changed is told.
    fn stepped(&mut self) {
        self.seal_noop();
        let now = (Term(self.raw.raft.term), self.raft_role(), self.leader());
        if now == self.role {
            return;
        }
        let before = std::mem::replace(&mut self.role, now);
        self.randomise();
        self.disk.forget_times();
        self.leader_is_full = false;
        let (was_leader, is_leader) = (before.1 == RaftRole::Leader, now.1 == RaftRole::Leader);
        if now.2.is_some() {
            self.hint = None;
        } else if now.0 > before.0 && now.1 == RaftRole::Follower && self.hint.is_some() {
            // Another server stands for election. A pre-vote now could pass among those that have not heard of its victory yet, and
            // depose it for nothing: it gets the time of a vote.
            let later = self.next_try();
            self.hint = self.hint.take().map(|hint| Hint { at: hint.at.max(later), ..hint });
        }
        if was_leader && !is_leader {
            self.resign();
        }
        if (before.0, before.2) != (now.0, now.2) {
            self.book.take_back(now.0, self.now);
            self.asking.ask_again();
        }
        let handed_over = self.changing.as_ref().and_then(|changing| changing.transfer);
        if let Some((target, _)) = handed_over
            && now.2.is_some_and(|leader| leader != self.options.id)
        {
            let result = if now.2 == Some(target) { Ok(()) } else { Err("another server took over".to_owned()) };
            self.end_change(result);
        }
        self.events.push_back(Event::Role { term: now.0, role: now.1, leader: now.2 });
    }

    /// What a leader had promised to look after goes back to whoever asked.
    fn resign(&mut self) {
        self.to_seal_bytes = 0;
        for (origin, _) in std::mem::take(&mut self.to_seal) {
            if let Origin::Peer(peer, batch) = origin {
                let leader = self.leader();
                self.transmit(peer, Message::Refused { batch, why: ForwardRefusal::NotLeader, leader });
            }
        }
        self.answer_all_reads(Err(ReadRefusal::NotLeader));
        if self.changing.as_ref().is_some_and(|changing| changing.transfer.is_none()) {
            // Whether it happens is the next leader's to say; its asker asks again.
            self.changing = None;
        }
    }
}

/// Whether entries from outside may be sealed: no kind that only a leader makes, and no more than a run holds. Their payloads are
/// checked when they are sealed.
fn may_be_sealed(entries: &[u8]) -> bool {
    let fit = !entries.is_empty() && entries.len() + RUN_HEADER_BYTES <= RUN_WHOLE_BYTES_MAX;
    let made_by_leaders = |kind| matches!(kind, EntryKind::Config | EntryKind::Noop);
    fit && Entries::verified(entries).all(|entry| entry.is_ok_and(|entry| !made_by_leaders(entry.header.kind)))
}
