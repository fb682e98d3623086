//! From a data directory to a replica at work: forming or joining, then reading what is there.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use relay::feed::FeedLimits;
use relay::room::{Room, RoomLimits, RoomOptions};
use relay::wire::ServerEntry;
use tracing::{info, warn};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{ClusterId, Identity, LogIndex, RaftId, RoomId, RunIndex, Time};
use voter_mesh::log::{DamagePolicy, Decision, Findings, Verdict, decide, empty_tail};
use voter_mesh::mesh::forming::{FormEvent, FormOptions, FormRecord, Forming};
use voter_mesh::mesh::message::{AdminRequest, Message};
use voter_mesh::mutant;
use voter_mesh::raft::{Recovered, Voter, VoterOptions};
use voter_mesh::replica::Replica;
use voter_mesh::run::{Run, Tail};
use voter_mesh::snapshot::SnapshotMeta;

use super::archive::Archive;
use super::recovering::{Damaged, Fill, Membership, Read, Recovering};
use super::replay::{Replay, Replayed};
use super::running::{Running, liveness_every_ms};
use super::{Core, Node, NodeError, NodeOptions, Stage, snapshots};
use crate::disk::{
    DataDir, DiskError, Log, LogOptions, LogRecovered, LogWriter, NodeRecord, SnapshotStore, StateFiles, VerdictStore, WriterLimits,
};
use crate::host::{Host, random_u64};
use crate::mesh::MeshMessage;
use crate::throttle::CpuShare;

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
    pub(super) fn new(options: &NodeOptions, data: &DataDir, host: &dyn Host) -> Result<Self, NodeError> {
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
        host.fill_random(&mut mint.0);
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
    /// Moves forming on, and begins to recover when this server belongs to a cluster; whether it does since now.
    pub(super) fn drive_forming(&mut self, node: &Rc<Node>, now: Time) -> Result<bool, NodeError> {
        let mut begun = false;
        loop {
            let Stage::Unformed(unformed) = &mut self.stage else { return Ok(begun) };
            let forming = &mut unformed.forming;
            if let Some(store) = forming.poll_store() {
                let record = node_record(node, &self.data, store.record);
                let data = Arc::get_mut(&mut self.data).expect("nobody reads the directory before this server is a member");
                data.store_node(&record)?;
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
                    let membership = Membership { id, identity, formed: configuration, may_campaign };
                    self.stage = Stage::Recovering(Recovering::begin(membership, &self.data, node));
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

/// A replica that was read from its directory.
pub(super) struct Opened {
    store: Arc<SnapshotStore>,
    newest: Option<SnapshotMeta>,
    log: Log,
    recovered: LogRecovered,
    /// The runs that are not applied yet, and the last of those that are.
    recent: Vec<Run>,
    replica: Replica,
    archive: Archive,
    room: Room,
    /// What is damaged and shown until the log is whole.
    alert: Vec<String>,
}

/// Reads the replica of this directory, or begins it, after `fills` were written into its log's holes; where peers may have what is
/// missing, and are still to be asked (`fillable`), that is said instead. Takes as long as the disk does.
pub(super) fn read(
    options: &NodeOptions,
    data: &DataDir,
    membership: &Membership,
    fills: &[Fill],
    fillable: bool,
    progress: &AtomicU64,
    now: Time,
) -> Result<Read, NodeError> {
    let Membership { id, identity, formed, may_campaign } = membership.clone();
    let started = Instant::now();
    for (damage, runs) in fills {
        damage.fill(runs)?;
    }
    let store = Arc::new(SnapshotStore::open(data, identity)?);
    let fresh = || Replica::form(identity, formed.clone(), &options.machine, options.replica_limits);
    let log_options = LogOptions { segment_bytes: options.limits.segment_bytes, ..LogOptions::default() };
    let mut newest = store.newest();
    if newest.is_none() {
        // The beginning of a life, or an attempt at it. The log comes first: where there is a snapshot there was a log, and if that is
        // gone, what it had acknowledged has gone with it, and its votes.
        let begin = if may_campaign { Tail::zero(&identity) } else { empty_tail(&identity) };
        match Log::create(data, identity, id, begin, log_options) {
            Ok(_) | Err(DiskError::LogExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if may_campaign {
            // Snapshot zero: every replica that forms begins with it, so that an empty log is always one that a snapshot must start.
            newest = Some(snapshots::write(&store, fresh().image(), &CpuShare::whole())?);
        }
    }
    let after = newest.as_ref().map_or(LogIndex::ZERO, |meta| meta.tail.last);
    let (replayed, look) = thread::scope(|scope| {
        // A newcomer's is fresh: the leader's snapshot replaces it before anything is applied.
        let restore = || newest.as_ref().map_or_else(|| Ok(fresh()), |meta| snapshots::restore(&store, meta, options));
        let mut replay = Replay::begin(scope, restore, after, options.limits.verdict_bytes_max);
        let look = Log::look(data, identity, id, newest.as_ref().map(|meta| &meta.tail), log_options, &mut |run, committed| {
            progress.fetch_add(1, Ordering::Relaxed);
            // What is known to be committed is applied at once; the rest when a leader says so.
            replay.take(run, committed || mutant!("uncommitted_applied_at_start"));
        });
        (replay.finish(), look)
    });
    let Replayed { replica, applied, verdicts: replayed, recent, unapplied } = replayed?;
    let look = look?;
    let (before, _) = look.recovered().before_first;
    if before > replica.tail().run {
        return Err(NodeError::Fatal(format!(
            "no snapshot in {} can be read, and the log begins behind run {before}: what came before is in this directory no more. Among \
             others this server comes back by itself on an empty directory; alone it needs a backup",
            data.path().display()
        )));
    }
    applied.map_err(|error| NodeError::Fatal(error.to_string()))?;
    let (files, verdicts) = VerdictStore::open(data, identity, after, options.limits.verdict_bytes_max)?;
    let mut archive = Archive::new(files, verdicts, StateFiles::new(data));
    archive.verdicts.extend(replayed);
    let begin = recent.front().map_or((replica.tail().last, replica.tail().chain), |applied| {
        let header = applied.run.header();
        (header.first.previous(), header.chain_before)
    });
    let mut room = Room::new(room_options(options, id, identity), begin, now);
    for applied in &recent {
        room.handle_applied(applied, now);
    }
    let recent = recent.into_iter().map(|applied| applied.run).chain(unapplied).collect();
    let configuration = replica.configuration();
    let sole_voter = newest.is_some() && configuration.voters() == [id] && !configuration.is_joint();
    let found = Findings {
        verdict: look.recovered().verdict,
        damaged: !look.damage().is_empty(),
        holes: look.damage().iter().any(|damage| damage.hole.is_some()),
        peers: !sole_voter || !configuration.standbys().is_empty(),
        sole_voter,
    };
    let decision = decide(options.on_damage, &found, fillable);
    let mut alert = Vec::new();
    match decision {
        Decision::Fill => {
            let LogRecovered { tail, .. } = *look.recovered();
            return Ok(Read::Damaged(Damaged {
                damage: look.damage().to_vec(),
                reader: look.reader(),
                configuration: configuration.clone(),
                last: (tail.term, tail.run),
            }));
        }
        Decision::Refuse => {
            let damage: Vec<_> = look.damage().iter().map(ToString::to_string).collect();
            return Err(NodeError::Fatal(format!(
                "the log is damaged, and the policy is not to start then: {}",
                damage.join("; ")
            )));
        }
        Decision::Lost => {
            let LogRecovered { tail, must_reach, .. } = look.recovered();
            let (end, lost) = (tail.run, must_reach.map_or(RunIndex::ZERO, |goal| goal.run));
            return Err(NodeError::Fatal(format!(
                "the log ends at run {end} and acknowledged runs up to {lost} are gone; no other server has them, so this one does not \
                 start. `quorate recover {} --accept-loss` accepts the loss",
                data.path().display()
            )));
        }
        Decision::Start | Decision::AcceptEnd => {}
    }
    if options.on_damage == DamagePolicy::AlertAndContinue && found.damaged {
        alert = look.damage().iter().map(ToString::to_string).collect();
        for kept in look.keep_damaged()? {
            warn!(path = %kept.display(), "the damaged segment is kept here");
        }
    }
    for damage in look.damage() {
        warn!("damage that stays: {damage}");
    }
    let (mut log, mut recovered) = look.open()?;
    match recovered.verdict {
        Verdict::Clean | Verdict::Torn => {}
        Verdict::Doubtful if decision == Decision::AcceptEnd => {
            warn!(run = %recovered.tail.run, must_reach = ?recovered.must_reach, "the last batch was incomplete and is cut; it may have been acknowledged");
            log.accept_end();
            recovered.must_reach = None;
        }
        verdict => warn!(?verdict, must_reach = ?recovered.must_reach, "the log lost its end: following until it is whole again"),
    }
    if recovered.vote_lost {
        warn!("a vote may be forgotten: none is given until all other voters were heard");
    }
    info!(
        %id, index = %replica.tail().last, run = %replica.tail().run, tail = %recovered.tail.run, term = %recovered.term,
        ms = started.elapsed().as_millis() as u64, "recovered"
    );
    Ok(Read::Opened(Box::new(Opened { store, newest, log, recovered, recent, replica, archive, room, alert })))
}

/// Begins the replica that was read.
pub(super) fn begin(node: &Node, opened: Opened, membership: &Membership, now: Time) -> Result<Running, NodeError> {
    let Opened { store, newest, log, recovered, recent, replica, archive, room, alert } = opened;
    let (options, &Membership { id, identity, .. }) = (&node.options, membership);
    match recovered.verdict {
        Verdict::Clean | Verdict::Torn => {}
        Verdict::Doubtful => node.count("log_doubtful"),
        Verdict::Suspect => node.count("log_suspect"),
    }
    let applied = if newest.is_some() { *replica.tail() } else { empty_tail(&identity) };
    let voter_options = VoterOptions {
        id,
        incarnation: node.incarnation,
        identity,
        timing: options.timing.clone(),
        limits: options.voter_limits.clone(),
        seed: random_u64(&*node.host),
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
    let reader = log.reader();
    let written = Arc::new(Mutex::new(VecDeque::new()));
    let (slot, wake) = (Arc::clone(&written), Arc::clone(&node.wake));
    let log = LogWriter::start(log, WriterLimits::default(), &*node.host, move |event| {
        slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_back(event);
        wake.notify_one();
    })?;
    let session_ttl_ms = options.session_ttl.as_millis() as u64;
    let mut running = Running::new((voter, replica, room), (log, written), reader, (store, archive), session_ttl_ms, now);
    running.damage = alert;
    Ok(running)
}

fn room_options(options: &NodeOptions, id: RaftId, identity: Identity) -> RoomOptions {
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
