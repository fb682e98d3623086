//! Snapshots of this replica: written out elsewhere, held against the other servers', streamed to followers that lag, and taken in
//! from a leader.
//!
//! The server's thread only takes images, which costs next to nothing. Writing, reading, unpacking, and letting go of what is large
//! happen on other threads.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::task::AbortHandle;
use tracing::{error, info, warn};
use voter_mesh::ids::{RaftId, Seat, Term, Time};
use voter_mesh::mesh::message::Message;
use voter_mesh::replica::{Replica, ReplicaImage};
use voter_mesh::run::Tail;
use voter_mesh::snapshot::{Agreement, Difference, SnapshotHashes, SnapshotMeta};

use super::archive::Unsaved;
use super::running::{Running, send};
use super::status::hex;
use super::{Node, NodeError, NodeOptions, Stage};
use crate::disk::{DiskError, Pin, Receiving, SnapshotFile, SnapshotStore};
use crate::host::{Host, elsewhere};
use crate::mesh::{Link, SinkFuture, SnapshotError, SnapshotOffer, SnapshotSink, SnapshotSource};
use crate::throttle::{CpuShare, Throttled};

/// How long the log behind a snapshot stays after its transfer ended, well or not: the follower goes on there, or tries again.
const PIN_MS: u64 = 60_000;

/// How long after a snapshot that failed another is tried.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(10);

/// What a replica keeps for its snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// The one that is being written, by what it may take.
    writing: Option<CpuShare>,
    /// The newest image that fell due since.
    next: Option<ReplicaImage>,
    /// One failed, and will be tried again.
    again: bool,
    /// What is to be told to the other members.
    unsaid: Option<SnapshotHashes>,
    pub(super) agreement: Agreement,
    /// What a leader's snapshot holds, until the log has restarted behind it.
    restored: Option<Replica>,
    /// The end of the last one that was read through again because a follower refused it.
    checked: Option<Tail>,
    /// To followers; one each.
    transfers: BTreeMap<RaftId, Transfer>,
}

impl Drop for Snapshots {
    /// A server that ends does not wait until a large state is written at a slow pace.
    fn drop(&mut self) {
        if let Some(share) = &self.writing {
            share.stop();
        }
    }
}

/// A snapshot that travels to a follower, or did until lately.
#[derive(Debug)]
struct Transfer {
    /// Keeps the log behind the snapshot: the follower goes on there.
    _pin: Option<Pin>,
    task: AbortHandle,
    /// Since when it does not travel any more.
    ended: Option<Time>,
}

impl Running {
    /// A snapshot is due at the end of what is applied. Here and not a run later: all servers hash at the same index.
    pub(super) fn snapshot_due(&mut self, node: &Rc<Node>) {
        let image = self.replica.image();
        match &self.snapshots.writing {
            None => self.write_snapshot(image, CpuShare::new(node.options.limits.snapshot_cpu_percent), node),
            Some(share) => {
                // The log grows faster than it is written out at this pace.
                share.hurry();
                drop_elsewhere(&*node.host, self.snapshots.next.replace(image));
            }
        }
    }

    /// A follower waits for a newer snapshot than there is: one is written now, at full speed. If the one that is under way will not
    /// do, this is asked again.
    pub(super) fn snapshot_wanted(&mut self, node: &Rc<Node>) {
        match &self.snapshots.writing {
            None => self.write_snapshot(self.replica.image(), CpuShare::whole(), node),
            Some(share) => share.hurry(),
        }
    }

    fn write_snapshot(&mut self, image: ReplicaImage, share: CpuShare, node: &Rc<Node>) {
        self.snapshots.writing = Some(share.clone());
        let (store, node) = (Arc::clone(&self.store), Rc::clone(node));
        let verdicts = self.archive.unsaved(image.meta.tail.last);
        tokio::task::spawn_local(async move {
            let result = attempt(&*node.host, move || save(verdicts, &store, image, &share)).await;
            node.with_running(|running, node, now| running.snapshot_taken(result, node, now));
        });
    }

    fn snapshot_taken(&mut self, result: Result<SnapshotMeta, String>, node: &Rc<Node>, now: Time) {
        self.snapshots.writing = None;
        match result {
            Ok(meta) => {
                info!(run = %meta.tail.run, index = %meta.tail.last, "snapshot taken");
                self.archive.saved(meta.tail.last);
                let hashes = SnapshotHashes::from(&meta);
                let differing = self.snapshots.agreement.handle_own(hashes);
                differing.iter().for_each(|difference| self.shout(difference));
                self.snapshots.unsaid = Some(hashes);
                let newest = meta.tail.run;
                self.voter.handle_snapshot_taken(meta, now);
                self.snapshots.transfers.retain(|_, transfer| transfer.ended.is_none_or(|at| at.plus_ms(PIN_MS) > now));
                // Only what two durable snapshots cover goes, and of that the newest part stays for followers that lag.
                let keep = self.store.oldest().map_or(newest, |oldest| oldest.tail.run);
                self.log.trim(self.reader.trim_point(keep, node.options.limits.log_retain_bytes));
            }
            Err(error) => {
                warn!(%error, "snapshot not taken");
                node.count("snapshots_failed");
                self.write_again_later(node);
            }
        }
        if let Some(image) = self.snapshots.next.take() {
            self.write_snapshot(image, CpuShare::new(node.options.limits.snapshot_cpu_percent), node);
        }
    }

    /// A snapshot failed, for want of room perhaps: without one the log is not trimmed, so another is written before the next is due.
    /// It is of what is applied then; the image that failed would hold its memory meanwhile.
    fn write_again_later(&mut self, node: &Rc<Node>) {
        if std::mem::replace(&mut self.snapshots.again, true) {
            return;
        }
        let node = Rc::clone(node);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(SNAPSHOT_AGAIN).await;
            node.with_running(|running, node, _| {
                running.snapshots.again = false;
                if running.snapshots.writing.is_none() {
                    let share = CpuShare::new(node.options.limits.snapshot_cpu_percent);
                    running.write_snapshot(running.replica.image(), share, node);
                }
            });
        });
    }

    /// Tells the other members what the newest snapshot hashes to. Whoever does not hear it hears of the next.
    pub(super) fn tell_hashes(&mut self, links: &BTreeMap<Seat, Link>) {
        let Some(hashes) = self.snapshots.unsaid.take() else { return };
        let configuration = self.replica.configuration();
        for id in links.values().filter_map(|link| link.peer().id).filter(|id| configuration.contains(*id)) {
            send(links, id, Message::SnapshotHashes(hashes));
        }
    }

    /// A peer said what its snapshot hashes to.
    pub(super) fn hear_hashes(&mut self, peer: RaftId, hashes: SnapshotHashes) {
        if self.replica.configuration().contains(peer)
            && let Some(difference) = self.snapshots.agreement.handle_peer(peer, hashes)
        {
            self.shout(&difference);
        }
    }

    /// Two servers applied the same log and do not hold the same: a machine that is not deterministic, or memory that lies. Nobody here
    /// can tell whose state is the right one.
    fn shout(&self, Difference { peer, own, theirs }: &Difference) {
        let id = self.voter.status().id;
        error!(
            run = %own.run, server = %id, state = hex(&own.state), sessions = hex(&own.sessions),
            peer = %peer, peer_state = hex(&theirs.state), peer_sessions = hex(&theirs.sessions),
            "SERVERS HOLD DIFFERENT STATES at the same run: the state machine is not deterministic, or a server's memory is bad"
        );
    }

    /// Streams a snapshot to a follower whose log ends below ours.
    pub(super) fn send_snapshot(
        &mut self,
        to: RaftId,
        term: Term,
        meta: SnapshotMeta,
        node: &Rc<Node>,
        links: &BTreeMap<Seat, Link>,
        now: Time,
    ) {
        if self.snapshots.transfers.get(&to).is_some_and(|transfer| transfer.ended.is_none()) {
            // Whatever comes of that one is the answer to this one too.
            return;
        }
        let Some(link) = links.get(&to.seat()).filter(|link| link.peer().id == Some(to)).cloned() else {
            return self.voter.handle_snapshot_sent(to, false, now);
        };
        let pin = self.reader.pin(meta.tail.run.next());
        let (store, node) = (Arc::clone(&self.store), Rc::clone(node));
        let task = tokio::task::spawn_local(async move {
            let run = meta.tail.run;
            let sent = stream(&store, &link, term, meta, &node).await;
            match &sent {
                Ok(()) => info!(%to, %run, "snapshot sent"),
                Err(error) => warn!(%to, %run, %error, "snapshot not sent"),
            }
            node.with_running(|running, _, now| {
                if let Some(transfer) = running.snapshots.transfers.get_mut(&to) {
                    transfer.ended = Some(now);
                }
                running.voter.handle_snapshot_sent(to, sent.is_ok(), now);
            });
        });
        self.snapshots.transfers.insert(to, Transfer { _pin: pin, task: task.abort_handle(), ended: None });
    }

    /// This server does not lead any more: what it still sends would be refused at its end.
    pub(super) fn stop_transfers(&mut self, now: Time) {
        for transfer in self.snapshots.transfers.values_mut().filter(|transfer| transfer.ended.is_none()) {
            transfer.task.abort();
            transfer.ended = Some(now);
        }
    }

    /// The log restarted behind a snapshot that a leader sent: so does the replica.
    pub(super) fn reload(&mut self, meta: &SnapshotMeta, node: &Rc<Node>, now: Time) -> Result<(), NodeError> {
        self.to_apply.clear();
        let restored = match self.snapshots.restored.take().filter(|replica| *replica.tail() == meta.tail) {
            Some(replica) => replica,
            None => restore(&self.store, meta, &node.options)?,
        };
        // What waits to be written is below what is durable now.
        drop_elsewhere(&*node.host, (std::mem::replace(&mut self.replica, restored), self.snapshots.next.take()));
        let tail = self.replica.tail();
        info!(run = %tail.run, index = %tail.last, "replica restored from a leader's snapshot");
        self.room.handle_restored((tail.last, tail.chain), self.replica.sessions(), now);
        self.voter.handle_applied(tail.run, now);
        self.archive.restart(tail.last);
        self.runs_trimmed(node);
        Ok(())
    }
}

/// Sends a snapshot. If it cannot be read or is refused, it may be that the file has rotted: it is read through once, and if so, another is
/// taken.
async fn stream(store: &Arc<SnapshotStore>, link: &Link, term: Term, meta: SnapshotMeta, node: &Rc<Node>) -> Result<(), String> {
    let (files, wanted) = (Arc::clone(store), meta.clone());
    let why = match attempt(&*node.host, move || files.open_file(&wanted)).await {
        Ok(file) => {
            let offer = SnapshotOffer { term, total: file.bytes(), hash: file.hash(), meta: meta.clone() };
            match link.send_snapshot(offer, Arc::new(file)).await {
                Ok(()) => return Ok(()),
                Err(SnapshotError::Refused(why)) => why,
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(why) => why,
    };
    let mut known = true;
    node.with_running(|running, _, _| known = running.snapshots.checked.replace(meta.tail) == Some(meta.tail));
    if !known {
        let store = Arc::clone(store);
        if let Err(damage) = attempt(&*node.host, move || store.check(&meta)).await {
            error!(%damage, "a snapshot of this server is damaged; another is taken");
            node.with_running(|running, node, _| running.snapshot_wanted(node));
        }
    }
    Err(why)
}

impl SnapshotSource for SnapshotFile {
    fn read(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        self.read_at(offset, bytes)
    }
}

/// A snapshot that is being received.
struct Sink {
    node: Rc<Node>,
    store: Arc<SnapshotStore>,
    sender: RaftId,
    term: Term,
    receiving: Receiving,
}

/// Begins to take in, or goes on with, what `sender` offers.
pub(super) fn receive(node: Rc<Node>, sender: RaftId, offer: SnapshotOffer) -> SinkFuture {
    async move {
        let store = {
            let core = node.core.borrow();
            let running = match &core.stage {
                Stage::Running(running) => running,
                Stage::Recovering(_) => return Err("the server is recovering".into()),
                Stage::Unformed(_) => return Err("the server is not a member yet".into()),
            };
            let known = running.voter.status().term;
            if offer.term < known {
                return Err(format!("term {} is over, this is {known}", offer.term));
            }
            Arc::clone(&running.store)
        };
        let SnapshotOffer { term, total, hash, meta } = offer;
        let run = meta.tail.run;
        let begun = Arc::clone(&store);
        let receiving = attempt(&*node.host, move || begun.begin_receive(&meta, total, hash)).await?;
        info!(%sender, %run, bytes = total, from = receiving.received(), "receiving a snapshot");
        Ok(Box::new(Sink { node, store, sender, term, receiving }) as Box<dyn SnapshotSink>)
    }
    .boxed_local()
}

impl SnapshotSink for Sink {
    fn offset(&self) -> u64 {
        self.receiving.received()
    }

    fn write(self: Box<Self>, chunks: Vec<Bytes>) -> SinkFuture {
        async move {
            let mut receiving = self.receiving;
            let receiving = attempt(&*self.node.host, move || receiving.write(&chunks).map(|()| receiving)).await?;
            Ok(Box::new(Self { receiving, ..*self }) as Box<dyn SnapshotSink>)
        }
        .boxed_local()
    }

    fn finish(self: Box<Self>) -> LocalBoxFuture<'static, Result<(), String>> {
        async move {
            let Self { node, store, sender, term, receiving } = *self;
            let options = Arc::clone(&node.options);
            let finished = attempt(&*node.host, move || receiving.finish()).await?;
            let meta = finished.clone();
            // Here and not when the log has restarted: unpacking a large state would hold the server's thread up.
            let restored = attempt(&*node.host, move || restore(&store, &meta, &options)).await?;
            let mut result = Err("the server is stopping".into());
            node.with_running(|running, _, now| {
                result = running.voter.handle_snapshot(sender, term, finished, now).map_err(|error| error.to_string());
                running.snapshots.restored = (result == Ok(true)).then_some(restored);
            });
            result.map(drop)
        }
        .boxed_local()
    }
}

/// Reads the replica that a snapshot of this server holds.
pub(super) fn restore(store: &SnapshotStore, meta: &SnapshotMeta, options: &NodeOptions) -> Result<Replica, NodeError> {
    let (mut state, mut sessions) = (store.open_state(meta)?, store.open_sessions(meta)?);
    Replica::restore(meta, &mut state, &mut sessions, &options.machine, options.replica_limits)
        .map_err(|error| NodeError::Fatal(format!("snapshot at run {}: {error}", meta.tail.run)))
}

/// Writes the verdicts that no file holds and then the snapshot that covers them: where the power goes in between, files that nobody
/// looks at are left, and not a snapshot that old runs do not lead to.
fn save(verdicts: Unsaved, store: &SnapshotStore, image: ReplicaImage, share: &CpuShare) -> Result<SnapshotMeta, DiskError> {
    verdicts.write()?;
    write(store, image, share)
}

/// Writes an image to the disk, in no more than this share of a core; the last sync aside, which takes none.
pub(super) fn write(store: &SnapshotStore, image: ReplicaImage, share: &CpuShare) -> Result<SnapshotMeta, DiskError> {
    let ReplicaImage { meta, machine, sessions } = image;
    store.write(meta, |to| machine.write(&mut Throttled::new(to, share)), |to| sessions.write(&mut Throttled::new(to, share)))
}

/// Runs on another thread what may take its time.
async fn attempt<T: Send + 'static, E: ToString + Send + 'static>(
    host: &dyn Host,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    elsewhere(host, work).await?.map_err(|error| error.to_string())
}

/// Lets go of what may be large on another thread.
fn drop_elsewhere<T: Send + 'static>(host: &dyn Host, what: T) {
    host.run(Box::new(move || drop(what)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use voter_mesh::configuration::Configuration;
    use voter_mesh::ids::{ClusterId, Epoch, Identity, LogIndex, RoomId};
    use voter_mesh::machine::kv;
    use voter_mesh::replica::ReplicaLimits;
    use voter_mesh::run::Verdicts;

    use super::super::archive::Archive;
    use super::*;
    use crate::disk::{DataDir, StateFiles, VerdictStore};

    const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

    #[test]
    fn a_snapshot_gets_its_name_only_behind_the_verdicts_that_lead_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let dir = DataDir::open(directory.path()).unwrap();
        let store = SnapshotStore::open(&dir, IDENTITY).unwrap();
        let (files, book) = VerdictStore::open(&dir, IDENTITY, LogIndex::ZERO, 1 << 20).unwrap();
        let mut archive = Archive::new(files, book, StateFiles::new(&dir));
        archive.verdicts.push(LogIndex(1), 3, &Verdicts::clear(3));
        let replica = Replica::form(IDENTITY, Configuration::default(), &kv::factory(), ReplicaLimits::default());
        let save = || save(archive.unsaved(LogIndex(3)), &store, replica.image(), &CpuShare::whole());

        let in_the_way = directory.path().join("verdicts/0000000000000000-0000000000000003.tmp");
        fs::create_dir(&in_the_way).unwrap();
        save().unwrap_err();
        assert_eq!(store.newest(), None);

        fs::remove_dir(&in_the_way).unwrap();
        let meta = save().unwrap();
        assert_eq!((store.newest(), in_the_way.with_extension("bits").exists()), (Some(meta), true));
    }
}
