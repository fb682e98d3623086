//! What takes too long for the server's own thread: writing snapshots, reading old runs, sending snapshots.
//! Each runs elsewhere, one of a kind at a time, and hands its result back to the pump.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tracing::{info, warn};
use voter_mesh::ids::{RaftId, RunIndex, Seat, Term, Time};
use voter_mesh::replica::{Replica, ReplicaImage};
use voter_mesh::snapshot::SnapshotMeta;

use super::running::Running;
use super::{Node, NodeError, NodeOptions, Stage, panic_text};
use crate::disk::{DiskError, ReadError, SnapshotStore};
use crate::mesh::Link;

/// Bytes of runs that are read from disk at once for a lagging follower.
const FETCH_BYTES_MAX: usize = 4 << 20;

impl Running {
    /// Takes an image now and writes it out elsewhere. While one is being written, one more is remembered.
    pub(super) fn take_snapshot(&mut self, node: &Rc<Node>) {
        if let Some(again) = &mut self.taking {
            *again = true;
            return;
        }
        self.taking = Some(false);
        let (image, store, node) = (self.replica.image(), Arc::clone(&self.snapshots), Rc::clone(node));
        let verdicts = self.archive.unsaved(image.meta.tail.last);
        tokio::task::spawn_local(async move {
            let written = tokio::task::spawn_blocking(move || {
                verdicts.write()?;
                write(&store, image)
            });
            let written = written.await;
            let result = match written {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(panic) => Err(panic_text(panic.into_panic().as_ref())),
            };
            node.with_running(|running, node, now| running.snapshot_taken(result, node, now));
        });
    }

    fn snapshot_taken(&mut self, result: Result<SnapshotMeta, String>, node: &Rc<Node>, now: Time) {
        let again = self.taking.take().unwrap_or(false);
        match result {
            Ok(meta) => {
                info!(run = %meta.tail.run, index = %meta.tail.last, "snapshot taken");
                self.archive.saved(meta.tail.last);
                self.voter.handle_snapshot_taken(meta.clone(), now);
                // Only what two durable snapshots cover goes, and of that the newest part stays for followers that lag.
                let keep = self.snapshots.oldest().map_or(meta.tail.run, |oldest| oldest.tail.run);
                self.log.trim(self.reader.trim_point(keep, node.options.limits.log_retain_bytes));
            }
            Err(error) => warn!(%error, "snapshot not taken"),
        }
        if again {
            self.take_snapshot(node);
        }
    }

    /// Reads old runs for a follower that lags behind the runs in memory.
    pub(super) fn fetch(&mut self, first: RunIndex, last: RunIndex, node: &Rc<Node>) {
        let (reader, node) = (self.reader.clone(), Rc::clone(node));
        tokio::task::spawn_local(async move {
            let read = tokio::task::spawn_blocking(move || reader.read(first, last, FETCH_BYTES_MAX)).await;
            node.with_running(|running, node, now| match read {
                Ok(Ok(runs)) => running.voter.handle_fetched(runs, now),
                Ok(Err(ReadError::Damaged { run, .. } | ReadError::Io { run, .. })) => {
                    warn!(%run, "damaged in the log: followers that need it get a snapshot");
                    node.count("log_runs_unreadable");
                    running.voter.handle_unreadable(run, now);
                }
                // The log was trimmed meanwhile, and will say so.
                Ok(Err(ReadError::Trimmed { .. })) | Err(_) => running.voter.handle_fetched(Vec::new(), now),
            });
        });
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
        let Some(link) = links.get(&to.seat()).filter(|link| link.peer().id == Some(to)).cloned() else {
            return self.voter.handle_snapshot_sent(to, false, now);
        };
        let (store, node) = (Arc::clone(&self.snapshots), Rc::clone(node));
        tokio::task::spawn_local(async move {
            let sent = async {
                let (file, total) = store.open_raw(&meta).map_err(|error| error.to_string())?;
                link.send_snapshot(term, meta.clone(), total, file).await.map_err(|error| error.to_string())
            }
            .await;
            match &sent {
                Ok(()) => info!(%to, run = %meta.tail.run, "snapshot sent"),
                Err(error) => warn!(%to, %error, "snapshot not sent"),
            }
            node.with_running(|running, _, now| running.voter.handle_snapshot_sent(to, sent.is_ok(), now));
        });
    }

    /// The log restarted behind a snapshot that a leader sent: so does the replica.
    pub(super) fn reload(&mut self, meta: &SnapshotMeta, node: &Rc<Node>, now: Time) -> Result<(), NodeError> {
        self.to_apply.clear();
        self.replica = restore(&self.snapshots, meta, &node.options)?;
        let tail = self.replica.tail();
        info!(run = %tail.run, index = %tail.last, "replica restored from a leader's snapshot");
        self.room.handle_restored((tail.last, tail.chain), self.replica.sessions(), now);
        self.voter.handle_applied(tail.run, now);
        self.archive.restart(tail.last);
        self.runs_trimmed();
        Ok(())
    }
}

/// Reads the replica that a snapshot of this server holds.
pub(super) fn restore(store: &SnapshotStore, meta: &SnapshotMeta, options: &NodeOptions) -> Result<Replica, NodeError> {
    let (mut state, mut sessions) = (store.open_state(meta)?, store.open_sessions(meta)?);
    Replica::restore(meta, &mut state, &mut sessions, &options.machine, options.replica_limits)
        .map_err(|error| NodeError::Fatal(format!("snapshot at run {}: {error}", meta.tail.run)))
}

/// Writes an image to the disk.
pub(super) fn write(store: &SnapshotStore, image: ReplicaImage) -> Result<SnapshotMeta, DiskError> {
    let ReplicaImage { meta, machine, sessions } = image;
    store.write(meta, |to| machine.write(to), |to| sessions.write(to))
}

impl Node {
    /// Runs `change` on the replica, if there still is one, and wakes the pump.
    pub(super) fn with_running(self: &Rc<Self>, change: impl FnOnce(&mut Running, &Rc<Self>, Time)) {
        if let Stage::Running(running) = &mut self.core.borrow_mut().stage {
            change(running, self, self.clock.now());
        }
        self.wake.notify_one();
    }
}
