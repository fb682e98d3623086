//! What clients are served from the disk: old runs with their verdicts, and states in pieces. The room decides what is read and when;
//! here it is read, on other threads, and handed back.

use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use relay::room::{ClientState, STATE_PIECE_BYTES};
use relay::wire::PartialState;
use tracing::{info, warn};
use voter_mesh::ids::{LogIndex, Time};
use voter_mesh::replica::ReplicaImage;
use voter_mesh::run::{Run, Tail, Verdicts};
use voter_mesh::snapshot::SnapshotMeta;
use voter_mesh::verdicts::VerdictBook;

use super::Node;
use super::running::Running;
use crate::disk::{DiskError, LogReader, ReadError, SnapshotStore, StateFile, StateFiles, VerdictStore};
use crate::host::{Host, elsewhere};

/// Bytes of old runs that are read at once for clients.
const RUNS_BYTES_MAX: usize = 1 << 20;

/// What is applied may not be durable here yet, because a quorum of other disks was faster: it is looked for again after so long...
const UNWRITTEN_WAIT: Duration = Duration::from_millis(5);

/// ... and so many times.
const UNWRITTEN_TRIES: u32 = 200;

/// Old runs' verdicts, and the states that clients read.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) verdicts: VerdictBook,
    store: VerdictStore,
    /// The files hold the verdicts up to this entry.
    saved: LogIndex,
    /// Nothing below is read from the log: it was damaged when it was tried.
    floor: LogIndex,
    writer: Arc<StateFiles>,
    /// The states that the room still names.
    states: Vec<(Weak<ClientState>, Arc<StateFile>)>,
}

/// Verdicts on their way to a file.
pub(super) struct Unsaved {
    store: VerdictStore,
    after: LogIndex,
    through: LogIndex,
    bits: Option<Vec<u8>>,
}

impl Unsaved {
    /// Writes them durably, if there are any. They must be before the snapshot that covers them has its name.
    pub(super) fn write(self) -> Result<(), DiskError> {
        match self.bits.filter(|bits| !bits.is_empty()) {
            Some(bits) => self.store.write(self.after, self.through, &bits),
            None => Ok(()),
        }
    }
}

impl Archive {
    /// With what the files held: the verdicts up to the newest snapshot.
    pub(super) fn new(store: VerdictStore, verdicts: VerdictBook, writer: StateFiles) -> Self {
        let saved = verdicts.through();
        Self { verdicts, store, saved, floor: LogIndex::ZERO, writer: Arc::new(writer), states: Vec::new() }
    }

    /// The verdicts up to `through` that no file holds.
    pub(super) fn unsaved(&self, through: LogIndex) -> Unsaved {
        let after = self.saved.max(self.verdicts.after());
        Unsaved { store: self.store.clone(), after, through, bits: self.verdicts.copy(after, through) }
    }

    /// Files hold the verdicts up to here.
    pub(super) fn saved(&mut self, through: LogIndex) {
        self.saved = self.saved.max(through);
    }

    /// The log restarts behind `last`.
    pub(super) fn restart(&mut self, last: LogIndex) {
        self.verdicts.restart(last);
        (self.saved, self.floor) = (last, LogIndex::ZERO);
    }

    /// Lets go of the states that the room names no more.
    pub(super) fn prune(&mut self) {
        self.states.retain(|(state, _)| state.strong_count() > 0);
    }

    fn state(&self, index: LogIndex) -> Option<(Arc<ClientState>, &Arc<StateFile>)> {
        self.states.iter().find_map(|(state, file)| Some((state.upgrade().filter(|state| state.index == index)?, file)))
    }
}

impl Running {
    /// Tells the room how far back clients can be served from the log.
    pub(super) fn say_kept(&mut self) {
        let first = self.reader.first_entry().max(self.archive.verdicts.after().next()).max(self.archive.floor);
        self.room.handle_kept(first);
    }

    /// The log begins later than it did: verdicts of what is gone are of no use.
    pub(super) fn runs_trimmed(&mut self, node: &Node) {
        let first = self.reader.first_entry();
        self.archive.verdicts.trim(first);
        self.say_kept();
        let store = self.archive.store.clone();
        node.host.run(Box::new(move || {
            if let Err(error) = store.trim(first) {
                warn!(%error, "old verdicts not removed");
            }
        }));
    }

    /// Reads old runs for clients.
    pub(super) fn runs_for_clients(&mut self, from: LogIndex, node: &Rc<Node>) {
        let (reader, node) = (self.reader.clone(), Rc::clone(node));
        tokio::task::spawn_local(async move {
            let runs = read_runs(&*node.host, reader, from).await;
            node.with_running(|running, _, now| running.runs_read(from, runs, now));
        });
    }

    fn runs_read(&mut self, from: LogIndex, runs: Result<Vec<Run>, ReadError>, now: Time) {
        let runs = match runs {
            Ok(runs) => runs,
            Err(ReadError::Trimmed { .. }) => Vec::new(),
            Err(error) => {
                warn!(%error, %from, "old runs not read: clients get a state instead");
                self.archive.floor = self.room.feed().first();
                Vec::new()
            }
        };
        let verdicts = &self.archive.verdicts;
        let pair = |run: Run| -> Option<(Run, Verdicts)> {
            let verdicts = verdicts.get(run.header().first, run.header().count)?;
            Some((run, verdicts))
        };
        let blocks = runs.into_iter().map_while(pair).collect();
        self.say_kept();
        self.room.handle_runs(from, blocks, now);
    }

    /// Has a state ready for clients: the one that a client has a part of, or the newest that all servers have, or the present one.
    pub(super) fn state_for_clients(&mut self, least: LogIndex, partial: Option<PartialState>, node: &Rc<Node>, now: Time) {
        let fits =
            |meta: &SnapshotMeta| partial.is_some_and(|partial| (partial.index, partial.hash) == (meta.tail.last, meta.state_hash));
        let metas: Vec<_> = self.store.all().into_iter().filter(|meta| meta.tail.last >= least).collect();
        let meta = metas.iter().find(|meta| fits(meta)).or(metas.last()).cloned();
        if let Some((state, _)) = meta.as_ref().and_then(|meta| self.archive.state(meta.tail.last)) {
            return self.room.handle_state(Some(state), now);
        }
        let (writer, snapshots, node) = (Arc::clone(&self.archive.writer), Arc::clone(&self.store), Rc::clone(node));
        tokio::task::spawn_local(async move {
            if let Some(meta) = meta {
                let (writer, tail) = (Arc::clone(&writer), meta.tail);
                let unpacked = elsewhere(&*node.host, move || unpack(&writer, &snapshots, &meta)).await;
                match unpacked {
                    Ok(Ok(file)) => return node.with_running(|running, _, now| running.state_ready(&tail, file, now)),
                    Ok(Err(error)) => warn!(%error, "snapshot not unpacked for clients: they get the present state"),
                    Err(_) => warn!("snapshot not unpacked for clients: they get the present state"),
                }
            }
            let mut image = None;
            node.with_running(|running, _, _| image = Some(running.replica.image()));
            let Some(ReplicaImage { meta, machine, .. }) = image else { return };
            let written = elsewhere(&*node.host, move || writer.write(|to| machine.write(to))).await;
            node.with_running(|running, _, now| match written {
                Ok(Ok(file)) => running.state_ready(&meta.tail, file, now),
                Ok(Err(error)) => {
                    warn!(%error, "state for clients not written");
                    running.room.handle_state(None, now);
                }
                Err(_) => {
                    warn!("state for clients not written: the machine panicked");
                    running.room.handle_state(None, now);
                }
            });
        });
    }

    fn state_ready(&mut self, tail: &Tail, file: StateFile, now: Time) {
        info!(index = %tail.last, bytes = file.bytes(), "state ready for clients");
        let state = ClientState { index: tail.last, chain: tail.chain, hash: file.hash(), bytes: file.bytes() };
        let state = Arc::new(state);
        self.archive.prune();
        self.archive.states.push((Arc::downgrade(&state), Arc::new(file)));
        self.room.handle_state(Some(state), now);
    }

    /// Reads a piece of a state for clients.
    pub(super) fn piece_for_clients(&mut self, index: LogIndex, offset: u64, node: &Rc<Node>, now: Time) {
        let Some(file) = self.archive.state(index).map(|(_, file)| Arc::clone(file)) else {
            return self.room.handle_piece(index, offset, None, now);
        };
        let node = Rc::clone(node);
        tokio::task::spawn_local(async move {
            let read = elsewhere(&*node.host, move || file.read(offset, STATE_PIECE_BYTES)).await;
            let piece: Option<Bytes> = match read {
                Ok(Ok(piece)) => Some(piece),
                Ok(Err(error)) => {
                    warn!(%error, %index, offset, "a piece of a state not read");
                    None
                }
                Err(_) => None,
            };
            node.with_running(|running, _, now| running.room.handle_piece(index, offset, piece, now));
        });
    }
}

async fn read_runs(host: &dyn Host, reader: LogReader, from: LogIndex) -> Result<Vec<Run>, ReadError> {
    for _ in 0..UNWRITTEN_TRIES {
        let reader = reader.clone();
        match elsewhere(host, move || reader.read_entries(from, RUNS_BYTES_MAX)).await {
            Ok(Ok(runs)) if runs.is_empty() => tokio::time::sleep(UNWRITTEN_WAIT).await,
            Ok(result) => return result,
            Err(_) => break,
        }
    }
    Ok(Vec::new())
}

fn unpack(writer: &StateFiles, snapshots: &SnapshotStore, meta: &SnapshotMeta) -> Result<StateFile, String> {
    let mut state = snapshots.open_state(meta).map_err(|error| error.to_string())?;
    let file = writer.write(|to| std::io::copy(&mut state, to).map(drop)).map_err(|error| error.to_string())?;
    if file.hash() == meta.state_hash {
        Ok(file)
    } else {
        Err(format!("the state of run {} does not match its hash", meta.tail.run))
    }
}
