//! A member that has no part in consensus yet: it reads its directory on a thread of its own, and mends its log from its peers if it
//! is damaged. Meanwhile its ports are open, and every request is answered that it is recovering; what it can read of its log, it
//! gives to peers that mend theirs.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{debug, info, warn};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{Identity, RaftId, RunIndex, Seat, Term, Time};
use voter_mesh::log::{FetchRuns, FillLimits, Filling, Hole, NoRuns};
use voter_mesh::mesh::bulk::RUNS_BYTES_MAX;
use voter_mesh::mesh::handshake::PeerHello;
use voter_mesh::mesh::message::{AdminFailure, ForwardRefusal, Message, ReadRefusal};
use voter_mesh::run::Run;

use super::stage::{self, Opened};
use super::{Core, Node, NodeError, Stage};
use crate::disk::{Damage, DataDir, LogReader, ReadError};
use crate::host::elsewhere;
use crate::mesh::{Link, MeshMessage, RunsAnswer, SelfHello};
use crate::status::{RecoveryStatus, ServerStatus};

/// Who this server is, as far as it knows before its log is read.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) id: RaftId,
    pub(super) identity: Identity,
    pub(super) formed: Configuration,
    pub(super) may_campaign: bool,
}

/// What reading the directory led to.
pub(super) enum Read {
    /// The replica may begin.
    Opened(Box<Opened>),
    /// Peers may have what is missing.
    Damaged(Damaged),
}

/// A log with holes that peers may fill.
pub(super) struct Damaged {
    /// What is damaged, holes and all else, in order.
    pub(super) damage: Vec<Damage>,
    /// Reads all that is good.
    pub(super) reader: LogReader,
    /// As this server knows it.
    pub(super) configuration: Configuration,
    /// The log's last good run and its term.
    pub(super) last: (Term, RunIndex),
}

/// Runs that fill a hole.
pub(super) type Fill = (Damage, Vec<Run>);

/// A member that reads or mends its log.
pub(super) struct Recovering {
    pub(super) membership: Membership,
    runs_read: Arc<AtomicU64>,
    /// What the last reading led to, until it is looked at.
    read: Option<Result<Read, NodeError>>,
    mending: Option<Mending>,
    /// Holes that were filled in this start, and their runs.
    filled: (u64, u64),
}

struct Mending {
    damaged: Damaged,
    /// The place in `damaged.damage` of each hole that the filling knows.
    places: Vec<usize>,
    filling: Filling,
}

impl Recovering {
    /// Begins to read.
    pub(super) fn begin(membership: Membership, data: &Arc<DataDir>, node: &Rc<Node>) -> Self {
        let recovering = Self { membership, runs_read: Arc::default(), read: None, mending: None, filled: (0, 0) };
        recovering.read(data, Vec::new(), true, node);
        recovering
    }

    /// Reads the directory elsewhere, after `fills` were written into it. `fillable`: peers may be asked for what is missing then.
    fn read(&self, data: &Arc<DataDir>, fills: Vec<Fill>, fillable: bool, node: &Rc<Node>) {
        let (membership, data, runs_read) = (self.membership.clone(), Arc::clone(data), Arc::clone(&self.runs_read));
        let (options, now, node) = (Arc::clone(&node.options), node.now(), Rc::clone(node));
        runs_read.store(0, Ordering::Relaxed);
        tokio::task::spawn_local(async move {
            let reading = move || stage::read(&options, &data, &membership, &fills, fillable, &runs_read, now);
            let read = elsewhere(&*node.host, reading).await.unwrap_or_else(|why| Err(NodeError::Fatal(why)));
            node.with_recovering(|recovering, _| recovering.read = Some(read));
        });
    }

    /// Whether its disk is still being read.
    pub(super) fn is_reading(&self) -> bool {
        self.read.is_none() && self.mending.is_none()
    }

    /// Whether it waits for peers, and not for its own disk.
    pub(super) fn is_mending(&self) -> bool {
        self.mending.is_some()
    }

    /// The configuration that its log knows, once that was read.
    pub(super) fn configuration(&self) -> Option<&Configuration> {
        self.mending.as_ref().map(|mending| &mending.damaged.configuration)
    }

    /// Reads of what is good, once that is known.
    pub(super) fn reader(&self) -> Option<LogReader> {
        self.mending.as_ref().map(|mending| mending.damaged.reader.clone())
    }

    pub(super) fn hello(&self, endpoints: Vec<String>) -> SelfHello {
        let Membership { id, identity, .. } = self.membership;
        let log = self.mending.as_ref().map(|mending| (mending.damaged.reader.range().0, mending.damaged.last));
        let (first, last) = log.unwrap_or_default();
        SelfHello { id: Some(id), identity: Some(identity), first, last, suspect: self.is_mending(), endpoints }
    }

    pub(super) fn describe(&self, status: &mut ServerStatus) {
        let Membership { id, identity, formed, .. } = &self.membership;
        (status.id, status.cluster, status.epoch) = (Some(*id), Some(identity.cluster), identity.epoch);
        status.configuration = self.configuration().unwrap_or(formed).clone();
        let (holes_filled, runs_filled) = self.filled;
        let mut recovery =
            RecoveryStatus { runs_read: self.runs_read.load(Ordering::Relaxed), holes_open: 0, holes_filled, runs_filled };
        if let Some(Mending { damaged, filling, .. }) = &self.mending {
            recovery.holes_open = filling.open() as u64;
            status.damage = damaged.damage.iter().map(ToString::to_string).collect();
        }
        status.recovery = Some(recovery);
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        Some(self.mending.as_ref()?.filling.poll_timeout()?.0)
    }

    pub(super) fn link_up(&mut self, peer: &PeerHello, now: Time) {
        if let (Some(mending), Some(id)) = (&mut self.mending, peer.id)
            && peer.identity == Some(self.membership.identity)
        {
            mending.filling.handle_connected(id, now);
        }
    }

    pub(super) fn link_down(&mut self, peer: RaftId, now: Time) {
        if let Some(mending) = &mut self.mending {
            mending.filling.handle_disconnected(peer, now);
        }
    }

    /// Sends the questions that are due and takes in what came of them.
    fn mend(&mut self, data: &Arc<DataDir>, node: &Rc<Node>, links: &BTreeMap<Seat, Link>, now: Time) {
        let Some(Mending { damaged, places, filling }) = &mut self.mending else { return };
        filling.handle_timeout(now);
        while let Some(question) = filling.poll_transmit() {
            let link = links.get(&question.to.seat()).filter(|link| link.peer().id == Some(question.to));
            match link.cloned() {
                Some(link) => ask(question, link, node),
                None => filling.handle_answer(question.to, question.first, Err(NoRuns::NotYet), now),
            }
        }
        let Some(filled) = filling.poll_filled() else { return };
        let mut fills = Vec::with_capacity(filled.holes.len());
        for (number, runs) in filled.holes {
            if let Some(damage) = places.get(number).and_then(|place| damaged.damage.get(*place)) {
                info!(path = %damage.path.display(), at = damage.at, runs = runs.len(), "hole filled from peers");
                self.filled.0 += 1;
                self.filled.1 += runs.len() as u64;
                fills.push((damage.clone(), runs));
            }
        }
        let open = places.len() - fills.len();
        if open > 0 && !filled.more {
            warn!(holes = open, "no peer has what is missing: going on as a suspect until the leader has given it back");
        }
        self.mending = None;
        self.read(data, fills, filled.more, node);
    }
}

/// Asks a peer, elsewhere, and brings its answer back.
fn ask(question: FetchRuns, link: Link, node: &Rc<Node>) {
    let (node, deadline) = (Rc::clone(node), Duration::from_millis(FillLimits::default().answer_ms));
    debug!(to = %question.to, first = %question.first, last = %question.last, "asking for runs");
    tokio::task::spawn_local(async move {
        let answer = link.fetch_runs(question.first, question.last, deadline).await;
        node.with_recovering(|recovering, now| {
            if let Some(mending) = &mut recovering.mending {
                mending.filling.handle_answer(question.to, question.first, answer, now);
            }
        });
    });
}

impl Core {
    /// Moves recovery on; whether the replica has begun since now, or what is known of the members has changed.
    pub(super) fn drive_recovery(&mut self, node: &Rc<Node>, now: Time) -> Result<bool, NodeError> {
        let Stage::Recovering(recovering) = &mut self.stage else { return Ok(false) };
        match recovering.read.take().transpose()? {
            None => {
                recovering.mend(&self.data, node, &self.links, now);
                Ok(false)
            }
            Some(Read::Damaged(damaged)) => {
                let places = (0..damaged.damage.len()).filter(|place| damaged.damage[*place].hole.is_some()).collect::<Vec<_>>();
                let holes: Vec<Hole> = damaged.damage.iter().filter_map(|damage| damage.hole).collect();
                for damage in &damaged.damage {
                    warn!("the log is damaged: {damage}");
                }
                let limits = FillLimits { fill_ms: node.options.limits.fill_ms, ..FillLimits::default() };
                let filling = Filling::new(recovering.membership.id, &damaged.configuration, &holes, limits, now);
                recovering.mending = Some(Mending { damaged, places, filling });
                for link in self.links.values() {
                    recovering.link_up(link.peer(), now);
                }
                recovering.mend(&self.data, node, &self.links, now);
                Ok(true)
            }
            Some(Read::Opened(opened)) => {
                let (holes, runs) = recovering.filled;
                node.count_by("log_holes_filled", holes);
                node.count_by("log_runs_filled", runs);
                let mut running = stage::begin(node, *opened, &recovering.membership, now)?;
                for link in self.links.values() {
                    running.link_up(link.peer(), now);
                }
                self.stage = Stage::Running(Box::new(running));
                self.learn_endpoints(node);
                Ok(true)
            }
        }
    }
}

impl Node {
    /// Runs `change` on the recovery, if it goes on, and wakes the pump.
    fn with_recovering(self: &Rc<Self>, change: impl FnOnce(&mut Recovering, Time)) {
        if let Stage::Recovering(recovering) = &mut self.core.borrow_mut().stage {
            change(recovering, self.now());
        }
        self.wake.notify_one();
    }
}

/// What a recovering server answers to a peer's message; nothing to those that need none.
pub(super) fn answer(message: &Message) -> Option<Message> {
    match message {
        Message::Forward { batch, .. } => Some(Message::Refused { batch: *batch, why: ForwardRefusal::Recovering, leader: None }),
        Message::ReadIndex { nonce } => Some(Message::ReadAnswer { nonce: *nonce, answer: Err(ReadRefusal::Recovering) }),
        Message::Admin { nonce, .. } => Some(Message::AdminReply { nonce: *nonce, result: Err(AdminFailure::Recovering) }),
        _ => None,
    }
}

/// Answers a peer's message, or drops and counts it.
pub(super) fn refuse(message: &Message, link: &Link, node: &Node) {
    match answer(message) {
        // One that the link does not take is asked again.
        Some(answer) => drop(link.send(MeshMessage::Raft(answer))),
        None => node.count("mesh_dropped_recovering"),
    }
}

/// Reads runs for a peer that mends its log; without a reader, this server cannot say yet what it holds. Every run is checked as it is
/// read, so nothing that is damaged here is passed on.
pub(super) async fn read_for_peer(node: Rc<Node>, first: RunIndex, last: RunIndex) -> RunsAnswer {
    let Some(reader) = node.core.borrow().reader() else { return Err(NoRuns::NotYet) };
    match elsewhere(&*node.host, move || reader.read(first, last, RUNS_BYTES_MAX)).await {
        Ok(Ok(runs)) => Ok(runs),
        Ok(Err(ReadError::Trimmed { first })) => Err(NoRuns::Trimmed { first }),
        Ok(Err(error)) => {
            debug!(%error, "runs not read for a peer");
            Err(NoRuns::Absent)
        }
        Err(_) => Err(NoRuns::NotYet),
    }
}
