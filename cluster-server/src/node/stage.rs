//! From a data directory to a replica at work: forming or joining, then recovery.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use relay::feed::FeedLimits;
use relay::room::{Room, RoomLimits, RoomOptions};
use relay::wire::ServerEntry;
use tracing::{info, warn};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{ClusterId, Identity, RaftId, RoomId, RunIndex, Time};
use voter_mesh::log::{Verdict, empty_tail};
use voter_mesh::mesh::forming::{FormEvent, FormOptions, FormRecord, Forming};
use voter_mesh::mesh::message::{AdminRequest, Message};
use voter_mesh::raft::{Recovered, Voter, VoterOptions};
use voter_mesh::replica::Replica;
use voter_mesh::run::Run;

use super::running::{Running, liveness_every_ms};
use super::{Core, Node, NodeError, NodeOptions, Stage, fill_random, jobs, random_u64};
use crate::disk::{DataDir, DiskError, Log, LogOptions, LogWriter, NodeRecord, SnapshotStore, WriterLimits};
use crate::mesh::MeshMessage;

/// How often a newcomer asks the formed servers that it is linked to.
const JOIN_EVERY_MS: u64 = 300;

/// A server that belongs to no cluster, or does not know it yet.
pub(super) struct Unformed {
    forming: Forming,
    /// It met a formed cluster: when to ask to be let in.
    join_at: Option<Time>,
}

impl Unformed {
    /// Goes on from the directory's record, which must be this seat's and this state machine's.
    pub(super) fn new(options: &NodeOptions, data: &DataDir) -> Result<Self, NodeError> {
        if let Some(record) = data.node() {
            let (seat, (name, version)) = (record.seat, &record.machine);
            if seat != options.seat {
                return Err(NodeError::OtherSeat { found: seat, asked: options.seat });
            }
            if record.machine != options.machine_name() {
                let (asked, asked_version) = options.machine_name();
                return Err(NodeError::OtherMachine {
                    found: format!("{name} v{version}"),
                    asked: format!("{asked} v{asked_version}"),
                });
            }
        }
        let mut mint = ClusterId::default();
        fill_random(&mut mint.0);
        let options = FormOptions {
            seat: options.seat,
            directory: data.directory(),
            machine: options.machine_name(),
            seats: options.peers.clone(),
            room: RoomId(0),
            mint,
        };
        let record = data.node().map(form_record).unwrap_or_default();
        Ok(Self { forming: Forming::new(options, record), join_at: None })
    }

    pub(super) fn forming(&mut self) -> &mut Forming {
        &mut self.forming
    }

    pub(super) fn joins(&self) -> bool {
        self.join_at.is_some()
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.join_at
    }
}

fn form_record(node: &NodeRecord) -> FormRecord {
    FormRecord { state: node.state, id: node.id, identity: node.identity, configuration: node.configuration.clone() }
}

impl Core {
    /// Moves forming on, and begins the replica when this server belongs to a cluster; whether it does since now.
    pub(super) fn drive_forming(&mut self, node: &Node, now: Time) -> Result<bool, NodeError> {
        let mut begun = false;
        loop {
            let Stage::Unformed(unformed) = &mut self.stage else { return Ok(begun) };
            let forming = &mut unformed.forming;
            if let Some(store) = forming.poll_store() {
                self.data.store_node(&node_record(node, &self.data, store.record))?;
                forming.handle_stored(store.number);
                continue;
            }
            if let Some((seat, message)) = forming.poll_transmit() {
                if let Some(link) = self.links.get(&seat)
                    && link.send(MeshMessage::Form(message)).is_err()
                {
                    link.close("it takes no forming message");
                }
                continue;
            }
            match forming.poll_event() {
                Some(FormEvent::Formed { id, identity, configuration, may_campaign }) => {
                    info!(%id, cluster = %identity.cluster, may_campaign, "member of a cluster");
                    let running = open(node, &self.data, id, identity, configuration, may_campaign, now)?;
                    self.stage = Stage::Running(Box::new(running));
                    begun = true;
                }
                Some(FormEvent::Join { identity }) => {
                    info!(cluster = %identity.cluster, "met a formed cluster: asking to be let in");
                    unformed.join_at = Some(now);
                }
                Some(FormEvent::Refused { from, why }) => warn!(%from, %why, "forming"),
                None => {
                    if unformed.join_at.is_some_and(|at| at <= now) {
                        unformed.join_at = Some(now.plus_ms(JOIN_EVERY_MS));
                        let request = AdminRequest::Join { seat: node.options.seat, directory: self.data.directory() };
                        for link in self.links.values().filter(|link| link.peer().identity.is_some()) {
                            // One that does not take it is asked again.
                            let _ = link.send(MeshMessage::Raft(Message::Admin { nonce: 0, request: request.clone() }));
                        }
                    }
                    return Ok(begun);
                }
            }
        }
    }
}

fn node_record(node: &Node, data: &DataDir, record: FormRecord) -> NodeRecord {
    let FormRecord { state, id, identity, configuration } = record;
    let machine = node.options.machine_name();
    NodeRecord { directory: data.directory(), seat: node.options.seat, id, identity, configuration, machine, state }
}

/// Recovers the replica of this directory, or begins it.
fn open(
    node: &Node,
    data: &DataDir,
    id: RaftId,
    identity: Identity,
    formed: Configuration,
    may_campaign: bool,
    now: Time,
) -> Result<Running, NodeError> {
    let (options, started) = (&node.options, Instant::now());
    let snapshots = Arc::new(SnapshotStore::open(data, identity)?);
    let fresh = || Replica::form(identity, formed.clone(), &options.machine, options.replica_limits);
    let newest = match snapshots.newest() {
        // Snapshot zero: every replica that forms begins with it, so that an empty log is always one that a snapshot must start.
        None if may_campaign => Some(jobs::write(&snapshots, fresh().image())?),
        newest => newest,
    };
    let mut replica = match &newest {
        Some(meta) => jobs::restore(&snapshots, meta, node)?,
        // A newcomer: the leader's snapshot replaces this before anything is applied.
        None => fresh(),
    };
    let begin = newest.as_ref().map_or_else(|| empty_tail(&identity), |meta| meta.tail);
    let log_options = LogOptions { segment_bytes: options.limits.segment_bytes, ..LogOptions::default() };
    let mut runs = VecDeque::new();
    let mut keep = |run: &Run| runs.push_back(run.clone());
    let (mut log, mut recovered) =
        match Log::recover(data, identity, id, newest.as_ref().map(|meta| &meta.tail), log_options, &mut keep) {
            Err(DiskError::NoLog { .. }) => {
                let log = Log::create(data, identity, id, begin, log_options)?;
                drop(log);
                Log::recover(data, identity, id, newest.as_ref().map(|meta| &meta.tail), log_options, &mut keep)?
            }
            result => result?,
        };
    let mut room = Room::new(room_options(node, id, identity), (replica.tail().last, replica.tail().chain), now);
    // What is known to be committed is applied at once; the rest when a leader says so.
    let mut recent = Vec::with_capacity(runs.len());
    for run in runs {
        if run.header().run <= recovered.commit {
            let applied = replica.apply(&run).map_err(|error| NodeError::Fatal(error.to_string()))?;
            room.handle_applied(&applied, now);
        }
        recent.push(run);
    }
    let applied = if newest.is_some() { *replica.tail() } else { begin };
    let alone = newest.is_some() && replica.configuration().voters() == [id] && !replica.configuration().is_joint();
    match recovered.verdict {
        Verdict::Clean | Verdict::Torn => {}
        Verdict::Doubtful if alone => {
            warn!(run = %recovered.tail.run, must_reach = ?recovered.must_reach, "the last batch was incomplete and is cut; it may have been acknowledged");
            log.accept_end();
            recovered.must_reach = None;
        }
        Verdict::Suspect if alone => {
            let (end, lost) = (recovered.tail.run, recovered.must_reach.map_or(RunIndex::ZERO, |goal| goal.run));
            return Err(NodeError::Fatal(format!(
                "the log ends at run {end} and acknowledged runs up to {lost} are gone; no other voter has them, so this one does not start"
            )));
        }
        verdict => warn!(?verdict, must_reach = ?recovered.must_reach, "the log lost its end: following until it is whole again"),
    }
    if recovered.vote_lost {
        warn!("a vote may be forgotten: none is given until all other voters were heard");
    }
    let voter_options = VoterOptions {
        id,
        incarnation: node.incarnation,
        identity,
        timing: options.timing.clone(),
        limits: options.voter_limits.clone(),
        seed: random_u64(),
    };
    let configuration = if newest.is_some() { replica.configuration().clone() } else { Configuration::default() };
    let configuration_run = if newest.is_some() { replica.configuration_run() } else { RunIndex::ZERO };
    let voter = Voter::new(
        voter_options,
        Recovered {
            term: recovered.term,
            vote: recovered.vote,
            commit: recovered.commit.max(applied.run),
            applied,
            configuration,
            configuration_run,
            before_first: recovered.before_first,
            terms: recovered.terms,
            recent,
            tail: recovered.tail,
            snapshot: newest,
            suspect: recovered.must_reach,
            vote_lost: recovered.vote_lost,
        },
        now,
    )
    .map_err(|error| NodeError::Fatal(error.to_string()))?;
    info!(
        %id, index = %applied.last, run = %applied.run, tail = %recovered.tail.run, term = %recovered.term,
        ms = started.elapsed().as_millis() as u64, "recovered"
    );
    let reader = log.reader();
    let written = Arc::new(Mutex::new(VecDeque::new()));
    let (slot, wake) = (Arc::clone(&written), Arc::clone(&node.wake));
    let log = LogWriter::spawn(log, WriterLimits::default(), move |event| {
        slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_back(event);
        wake.notify_one();
    })?;
    let session_ttl_ms = options.session_ttl.as_millis() as u64;
    Ok(Running::new((voter, replica, room), (log, written), reader, snapshots, session_ttl_ms, now))
}

fn room_options(node: &Node, id: RaftId, identity: Identity) -> RoomOptions {
    let options = &node.options;
    let feed = FeedLimits { feed_ring_bytes_max: options.limits.ring_bytes_max, ..FeedLimits::default() };
    RoomOptions {
        identity,
        name: options.room.clone(),
        server: id,
        machine: options.machine_name(),
        limits: RoomLimits {
            feed,
            message_bytes_max: options.limits.message_bytes_max,
            handshake_ms: options.limits.handshake_ms,
            activity_ms: liveness_every_ms(options.session_ttl.as_millis() as u64),
            ..options.room_limits
        },
        endpoints: vec![ServerEntry { id, endpoints: options.endpoints.clone() }],
    }
}
