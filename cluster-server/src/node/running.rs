//! A replica at work: the voter core, the applier, the room and the disk, wired together. Nothing is decided here that a core could
//! decide; this is the order in which their outputs become each other's inputs.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use relay::room::{Room, RoomEvent};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use voter_mesh::entry::{EntryKind, EntrySpec, put_entry};
use voter_mesh::ids::{Opening, RaftId, ReadId, RequestId, RunIndex, Seat, SessionId, Term, Time};
use voter_mesh::mesh::message::Message;
use voter_mesh::mutant;
use voter_mesh::raft::{DiskState, Event, HandOver, RaftRole, Voter, Write, Written};
use voter_mesh::replica::{Replica, ReplicaImage};
use voter_mesh::run::Run;
use voter_mesh::session::liveness::Liveness;
use voter_mesh::session::{EndPayload, EndReason, SessionEvent};

use super::admin::AdminAsk;
use super::archive::Archive;
use super::snapshots::Snapshots;
use super::{Node, NodeError};
use crate::disk::{Batch, LogEvent, LogReader, LogWriter, SnapshotStore, SubmitRefused};
use crate::mesh::{Link, MeshMessage};

/// How often a leader looks for sessions to end, and servers report theirs, at most; a short time to live shortens it.
const LIVENESS_MS: u64 = voter_mesh::session::liveness::ACTIVITY_MS;

/// The same for this time to live: a session must be reported well before it could be taken for a detached one.
pub(super) fn liveness_every_ms(session_ttl_ms: u64) -> u64 {
    LIVENESS_MS.min(session_ttl_ms / 4).max(50)
}

/// The read whose index the next image must hold; the room counts its own from 1 on.
const IMAGE_READ: ReadId = ReadId(u64::MAX);

/// What the log's writer thread has said since the pump last looked: at most one word for each batch that waits, which is bounded.
pub(super) type WrittenSlot = Arc<Mutex<VecDeque<LogEvent>>>;

/// A replica and everything that feeds it.
pub(super) struct Running {
    pub(super) voter: Voter,
    pub(super) replica: Replica,
    pub(super) room: Room,
    pub(super) log: LogWriter,
    pub(super) reader: LogReader,
    pub(super) store: Arc<SnapshotStore>,
    pub(super) snapshots: Snapshots,
    pub(super) written: WrittenSlot,
    /// A batch for which the log's writer had no room.
    unwritten: Option<Batch>,
    pub(super) to_apply: VecDeque<Run>,
    /// A batch that the voter could not take; it goes first when it can.
    pub(super) stash: Option<Bytes>,
    pub(super) waiting_reads: Vec<(RunIndex, ReadId)>,
    /// Who waits for an image that holds all that was acknowledged before it was asked for.
    pub(super) image_wanted: Option<oneshot::Sender<ReplicaImage>>,
    pub(super) liveness: Liveness,
    pub(super) liveness_every_ms: u64,
    pub(super) session_ttl_ms: u64,
    pub(super) next_liveness: Time,
    pub(super) admin: Vec<AdminAsk>,
    pub(super) next_admin: u64,
    pub(super) role: RaftRole,
    pub(super) leader: Option<RaftId>,
    pub(super) term: Term,
    /// What clients are served from the disk.
    pub(super) archive: Archive,
    /// The configuration has changed since the owner last looked.
    pub(super) configured: bool,
    /// A report of sessions was lost.
    report_again: bool,
    /// What was found damaged and not repaired, in words, until the log is whole.
    pub(super) damage: Vec<String>,
}

impl Running {
    /// A replica that was recovered, and what it works with from now on.
    pub(super) fn new(
        (voter, replica, room): (Voter, Replica, Room),
        (log, written): (LogWriter, WrittenSlot),
        reader: LogReader,
        (store, archive): (Arc<SnapshotStore>, Archive),
        session_ttl_ms: u64,
        now: Time,
    ) -> Self {
        let liveness_every_ms = liveness_every_ms(session_ttl_ms);
        let mut running = Self {
            voter,
            replica,
            room,
            log,
            reader,
            store,
            snapshots: Snapshots::default(),
            written,
            unwritten: None,
            to_apply: VecDeque::new(),
            stash: None,
            waiting_reads: Vec::new(),
            image_wanted: None,
            liveness: Liveness::default(),
            liveness_every_ms,
            session_ttl_ms,
            next_liveness: now.plus_ms(liveness_every_ms),
            admin: Vec::new(),
            next_admin: 1,
            role: RaftRole::Follower,
            leader: None,
            term: Term::ZERO,
            archive,
            configured: true,
            report_again: false,
            damage: Vec::new(),
        };
        running.say_kept();
        running.room.handle_leader(None, now);
        running
    }

    /// Drains every core until none has anything left, or a turn's worth was applied.
    pub(super) fn pump(&mut self, node: &Rc<Node>, links: &BTreeMap<Seat, Link>, now: Time) -> Result<(), NodeError> {
        self.take_written(node, now)?;
        if self.voter.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.voter.handle_timeout(now);
        }
        if self.room.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.room.handle_timeout(self.replica.sessions(), now);
        }
        if now >= self.next_liveness {
            self.next_liveness = now.plus_ms(self.liveness_every_ms);
            self.end_sessions(now);
            if std::mem::take(&mut self.report_again) {
                self.room.report_all_sessions();
            }
        }
        self.drive_admin(links, now);
        self.tell_hashes(links);
        let mut budget = node.options.limits.apply_bytes_max;
        loop {
            let mut progress = self.drain_room(node, links, now);
            progress |= self.drain_voter(node, links, now)?;
            progress |= self.apply(&mut budget, node, now)?;
            if !progress {
                return Ok(());
            }
        }
    }

    /// When this replica must be pumped although nothing came in.
    pub(super) fn next_timeout(&self, now: Time) -> Time {
        if !self.to_apply.is_empty() {
            return now;
        }
        let cores = [self.voter.poll_timeout(), self.room.poll_timeout()].into_iter().flatten().map(|(at, _)| at);
        cores.chain(self.admin.iter().map(AdminAsk::next_timeout)).chain([self.next_liveness]).min().unwrap_or(now)
    }

    fn take_written(&mut self, node: &Node, now: Time) -> Result<(), NodeError> {
        let said = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        for event in said {
            match event {
                LogEvent::Written { number } => self.voter.handle_written(Ok(Written { number }), now),
                LogEvent::Trimmed { first, term_before } => {
                    self.voter.handle_trimmed(first, term_before);
                    self.runs_trimmed(node);
                }
                LogEvent::Full { why } => {
                    warn!(%why, "no room for the log: waiting for some");
                    node.count("disk_full");
                    self.voter.handle_disk(DiskState::Full, now);
                }
                LogEvent::Room => {
                    info!("there is room for the log again");
                    self.voter.handle_disk(DiskState::Good, now);
                }
                // After a failed sync nobody knows what the disk holds; a retry would lie. The next start reads what is there.
                LogEvent::Failed(failed) => {
                    return Err(NodeError::Fatal(format!(
                        "the log cannot be written: {failed}. Nothing was acknowledged that is not durable. Look at the device and its \
                         file system, then start this server again: it goes on from what is on the disk"
                    )));
                }
            }
        }
        Ok(())
    }

    fn drain_room(&mut self, node: &Rc<Node>, links: &BTreeMap<Seat, Link>, now: Time) -> bool {
        self.archive.prune();
        let mut progress = false;
        if let Some(entries) = self.stash.take() {
            self.propose(entries, now);
            progress |= self.stash.is_none();
        }
        while let Some(event) = self.room.poll_event() {
            progress = true;
            match event {
                RoomEvent::Propose(entries) => self.propose(entries, now),
                RoomEvent::Read(read) => {
                    if self.voter.handle_read(read, now).is_err() {
                        self.room.handle_read_refused(read, now);
                    }
                }
                RoomEvent::ReadCancelled(read) => {
                    self.voter.cancel_read(read);
                    self.waiting_reads.retain(|(_, waiting)| *waiting != read);
                }
                RoomEvent::RunsWanted { from } => self.runs_for_clients(from, node),
                RoomEvent::StateWanted { least, partial } => self.state_for_clients(least, partial, node, now),
                RoomEvent::PieceWanted { index, offset } => self.piece_for_clients(index, offset, node, now),
                RoomEvent::Activity { attached, detached } => self.report(attached, detached, links, now),
            }
        }
        progress
    }

    /// Gives laid-out entries to the voter, or keeps them until it takes them.
    fn propose(&mut self, entries: Bytes, now: Time) {
        if let Some(stashed) = self.stash.take() {
            // Only where the room had laid out two batches before it heard that the first one was not taken.
            let mut both = BytesMut::from(stashed);
            both.extend_from_slice(&entries);
            self.stash = Some(both.freeze());
        } else if self.voter.handle_propose(entries.clone(), now).is_err() {
            self.stash = Some(entries);
        }
        self.room.handle_overloaded(self.stash.is_some());
    }

    fn drain_voter(&mut self, node: &Rc<Node>, links: &BTreeMap<Seat, Link>, now: Time) -> Result<bool, NodeError> {
        let mut progress = false;
        // What may leave leaves before the disk is asked: followers write while we do.
        while let Some(transmit) = self.voter.poll_transmit() {
            progress = true;
            send(links, transmit.to, transmit.message);
        }
        while let Some(batch) = self.unwritten.take().or_else(|| self.voter.poll_write().map(batch)) {
            match self.log.submit(batch) {
                Ok(()) => progress = true,
                // Its next word wakes the pump.
                Err((SubmitRefused::Full, batch)) => {
                    self.unwritten = Some(*batch);
                    break;
                }
                // It has said why, or is about to.
                Err((SubmitRefused::Stopped, _)) => break,
            }
        }
        while let Some(event) = self.voter.poll_event() {
            progress = true;
            match event {
                Event::Committed(runs) => self.to_apply.extend(runs),
                Event::Installed(meta) => self.reload(&meta, node, now)?,
                Event::Role { term, role, leader } => self.change_role(term, role, leader, now),
                Event::SendSnapshot { to, term, meta } => self.send_snapshot(to, term, meta, node, links, now),
                Event::SnapshotWanted => self.snapshot_wanted(node),
                Event::Fetch { first, last } => self.fetch(first, last, node),
                Event::ReadReady { read, run } => {
                    self.waiting_reads.push((run, read));
                    self.serve_reads(now);
                }
                Event::Admin { request, result } => self.admin_ended(&request, &result, links),
                Event::Overloaded(overloaded) => self.room.handle_overloaded(overloaded || self.stash.is_some()),
                Event::HandsOver { to, why } => {
                    warn!(%to, ?why, "handing leadership over because of the disk");
                    node.count(match why {
                        HandOver::DiskFull => "hand_overs_disk_full",
                        HandOver::SlowDisk => "hand_overs_slow_disk",
                    });
                }
                Event::VoteSettled => self.log.settle_vote(),
                Event::Fatal(error) => return Err(NodeError::Fatal(error.to_string())),
            }
        }
        Ok(progress)
    }

    fn change_role(&mut self, term: Term, role: RaftRole, leader: Option<RaftId>, now: Time) {
        let (led, leads) = (self.role == RaftRole::Leader, role == RaftRole::Leader);
        if (self.term, self.leader) != (term, leader) {
            info!(%term, leader = leader.map(|id| id.to_string()), ?role, "leadership");
        }
        if leads && !led {
            self.liveness.lead(now);
        } else if led && !leads {
            self.liveness.resign();
            self.stop_transfers(now);
        }
        if leader != self.leader {
            self.room.handle_leader(leader, now);
            // A new leader knows nothing of who is attached here.
            self.room.report_all_sessions();
            self.admin.iter_mut().for_each(|ask| ask.ask_again(now));
        }
        (self.term, self.role, self.leader) = (term, role, leader);
    }

    /// Applies committed runs until none are left or the turn's budget is used up.
    fn apply(&mut self, budget: &mut usize, node: &Rc<Node>, now: Time) -> Result<bool, NodeError> {
        let mut progress = false;
        while *budget > 0 {
            let Some(run) = self.to_apply.pop_front() else { break };
            *budget = budget.saturating_sub(run.bytes().len());
            #[cfg(mutants)]
            voter_mesh::mutants::set_local_ms(now.unix_ms.0);
            let applied = self.replica.apply(&run).map_err(|error| NodeError::Fatal(error.to_string()))?;
            if self.liveness.leads() {
                for event in &applied.events {
                    if let SessionEvent::Opened { session, .. } | SessionEvent::Attached { session, .. } = event {
                        self.liveness.seen(*session, now);
                    }
                }
            }
            // Before a snapshot is taken that covers them.
            self.archive.verdicts.push(run.header().first, run.header().count, &applied.verdicts);
            if applied.snapshot_due {
                self.snapshot_due(node);
            }
            self.room.handle_applied(&applied, now);
            self.configured |= applied.configuration.is_some();
            progress = true;
        }
        if progress {
            self.voter.handle_applied(self.replica.tail().run, now);
            self.serve_reads(now);
        }
        Ok(progress)
    }

    fn serve_reads(&mut self, now: Time) {
        let tail = *self.replica.tail();
        let mut image_ready = false;
        let room = &mut self.room;
        self.waiting_reads.retain(|(run, read)| {
            let ready = *run <= tail.run || mutant!("read_before_applied");
            if ready && *read == IMAGE_READ {
                image_ready = true;
            } else if ready {
                room.handle_read(*read, tail.last, now);
            }
            !ready
        });
        if image_ready && let Some(answer) = self.image_wanted.take() {
            // Whoever wanted it may have gone.
            let _ = answer.send(self.replica.image());
        }
    }

    /// Somebody wants an image that holds all that was acknowledged before now. One that waited before is given up.
    pub(super) fn image_asked(&mut self, answer: oneshot::Sender<ReplicaImage>, now: Time) {
        self.voter.cancel_read(IMAGE_READ);
        self.waiting_reads.retain(|(_, read)| *read != IMAGE_READ);
        // Where too many reads wait already, the answer is that there is none.
        self.image_wanted = self.voter.handle_read(IMAGE_READ, now).is_ok().then_some(answer);
    }

    /// Tells the leader which sessions came and went here.
    fn report(&mut self, attached: Vec<SessionId>, detached: Vec<SessionId>, links: &BTreeMap<Seat, Link>, now: Time) {
        match (self.role, self.leader) {
            (RaftRole::Leader, Some(own)) => self.liveness.report(own, &attached, &detached, now),
            // What the link does not take is told again with everything else.
            (_, Some(leader)) => self.report_again |= !send(links, leader, Message::SessionActivity { attached, detached }),
            // Everything is reported to the next leader anyway.
            (_, None) => {}
        }
    }

    /// The leader proposes the end of sessions that were detached for too long or broke their window.
    fn end_sessions(&mut self, now: Time) {
        if !self.liveness.leads() || self.stash.is_some() {
            return;
        }
        let sessions = self.replica.sessions();
        let due = self.liveness.due(sessions.activity().map(|(session, _)| session), self.session_ttl_ms, now);
        let expired = due.into_iter().map(|session| (session, EndReason::Expired));
        let broken = sessions.needs_end().map(|session| (session, EndReason::WindowBroken));
        let mut entries = BytesMut::new();
        for (session, why) in expired.chain(broken) {
            let Some(last_activity) = sessions.last_activity(session) else { continue };
            let spec =
                EntrySpec { session, opening: Opening(0), request: RequestId(0), ..EntrySpec::internal(EntryKind::SessionEnd) };
            let _ = put_entry(&mut entries, &spec, &EndPayload { why, last_activity }.encode());
        }
        if !entries.is_empty() {
            self.propose(entries.freeze(), now);
        }
    }
}

/// Sends to a peer if there is a link to this very life of it; whether the link took it. Lost messages are raft's to repeat.
pub(super) fn send(links: &BTreeMap<Seat, Link>, to: RaftId, message: Message) -> bool {
    let link = links.get(&to.seat()).filter(|link| link.peer().id == Some(to));
    let sent = link.is_some_and(|link| link.send(MeshMessage::Raft(message)).is_ok());
    if !sent {
        debug!(%to, "no link, or a full one: message dropped");
    }
    sent
}

fn batch(write: Write) -> Batch {
    let Write { number, term, vote, commit, writer_term, keep_through, runs, install, must_sync } = write;
    Batch { number, term, vote, commit, writer_term, install: install.map(|meta| meta.tail), keep_through, runs, must_sync }
}
