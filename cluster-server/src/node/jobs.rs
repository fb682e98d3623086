//! What takes too long for the server's own thread: reading old runs for followers. It runs elsewhere and hands its result back to the
//! pump. (Snapshots are in [`super::snapshots`], what clients are served from the disk in [`super::archive`].)

use std::rc::Rc;

use tracing::warn;
use voter_mesh::ids::{RunIndex, Time};

use super::running::Running;
use super::{Node, Stage};
use crate::disk::ReadError;
use crate::host::elsewhere;

/// Bytes of runs that are read from disk at once for a lagging follower.
const FETCH_BYTES_MAX: usize = 4 << 20;

impl Running {
    /// Reads old runs for a follower that lags behind the runs in memory.
    pub(super) fn fetch(&mut self, first: RunIndex, last: RunIndex, node: &Rc<Node>) {
        let (reader, node) = (self.reader.clone(), Rc::clone(node));
        tokio::task::spawn_local(async move {
            let read = elsewhere(&*node.host, move || reader.read(first, last, FETCH_BYTES_MAX)).await;
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
}

impl Node {
    /// Runs `change` on the replica, if there still is one, and wakes the pump.
    pub(super) fn with_running(self: &Rc<Self>, change: impl FnOnce(&mut Running, &Rc<Self>, Time)) {
        if let Stage::Running(running) = &mut self.core.borrow_mut().stage {
            change(running, self, self.now());
        }
        self.wake.notify_one();
    }
}
