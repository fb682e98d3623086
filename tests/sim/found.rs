//! What lies on a server's disk at the end of a run, read with the server's own eyes, on a copy.

use std::sync::Arc;

use cluster_server::disk::{DataDir, DiskError, FileSystem, Log, LogOptions, SnapshotStore};
use voter_mesh::ids::{DirectoryId, Seat};
use voter_mesh::mesh::forming::FormState;
use voter_mesh::run::Tail;

use super::disk::SimDisk;
use super::record::DiskFound;

/// Reads the directory `path` of a disk on which no server runs. None if it belongs to no member yet.
///
/// # Errors
/// Why a server could not start on it.
pub fn read(disk: &SimDisk, path: &str, server: Seat) -> Result<Option<DiskFound>, DiskError> {
    let files: Arc<dyn FileSystem> = Arc::new(SimDisk::on(disk.state()));
    let dir = DataDir::open_on(files, path, DirectoryId::default())?;
    let Some((node, id, identity)) = dir.node().and_then(|node| Some((node, node.id?, node.identity?))) else { return Ok(None) };
    let snapshot = SnapshotStore::open(&dir, identity)?.newest().map(|meta| meta.tail);
    let begin = snapshot.or_else(|| (node.state == FormState::Formed).then(|| Tail::zero(&identity)));
    let mut runs = Vec::new();
    let look = Log::look(&dir, identity, id, begin.as_ref(), LogOptions::default(), &mut |run, _| runs.push(*run.header()))?;
    let vote = (look.recovered().term, look.recovered().vote);
    Ok(Some(DiskFound { server, snapshot, runs, vote }))
}
