//! From a backup to a directory that a server starts from, as the only voter of the next epoch.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use voter_mesh::epoch::{EpochRefused, NextEpoch};
use voter_mesh::ids::{RaftId, Seat};
use voter_mesh::mesh::forming::FormState;
use voter_mesh::snapshot::SnapshotMeta;

use crate::disk::{DataDir, DiskError, Log, LogOptions, NodeRecord, SnapshotFile, SnapshotStore};

/// Why nothing was restored. The directory is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Something is in the directory. It could be a log that holds the only copy of something.
    #[error("{path} is not empty: a backup is restored into an empty directory only")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The epoch cannot begin with this server.
    #[error(transparent)]
    Epoch(#[from] EpochRefused),
    /// A file cannot be read or written. `Damaged` names the backup if it is the backup that is.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What now stands in the directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The only voter.
    pub id: RaftId,
    /// Where the new epoch begins.
    pub meta: SnapshotMeta,
}

/// Makes `directory`, which must be empty or missing, a server's at `seat`: the only voter of the epoch after the backup's, with its
/// state and its sessions. The backup must have been [checked](SnapshotFile::check); both sections are compared with their hashes
/// again while they are copied.
///
/// The node record is written last. A directory that a crash left without it holds a log of a cluster that it does not name, and no
/// server starts on it.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(backup: &SnapshotFile, directory: &Path, seat: Seat, address: Option<String>) -> Result<Restored, RestoreError> {
    into_empty(directory, |dir| {
        let next = NextEpoch::after(backup.meta(), seat, address, dir.directory())?;
        let unpack = |source| DiskError::Io { path: backup.path().into(), doing: "unpack", source };
        let (mut state, mut sessions) = (backup.state().map_err(unpack)?, backup.sessions().map_err(unpack)?);
        let restored = begin(dir, next, |to| io::copy(&mut state, to).map(drop), |to| io::copy(&mut sessions, to).map(drop))?;
        let hashes = |meta: &SnapshotMeta| (meta.state_hash, meta.sessions_hash);
        if hashes(&restored.meta) != hashes(backup.meta()) {
            let why = "state or sessions do not have their hashes".into();
            return Err(DiskError::Damaged { path: backup.path().into(), why }.into());
        }
        Ok(restored)
    })
}

/// Lets `fill` make a server's directory of one that is empty or missing; where it fails, that is what the directory is again.
pub(super) fn into_empty(
    directory: &Path,
    fill: impl FnOnce(&mut DataDir) -> Result<Restored, RestoreError>,
) -> Result<Restored, RestoreError> {
    let made = match fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
        Ok(false) => false,
        Ok(true) => return Err(RestoreError::NotEmpty { path: directory.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(source) => return Err(DiskError::Io { path: directory.into(), doing: "list", source }.into()),
    };
    let result = DataDir::open(directory).map_err(RestoreError::from).and_then(|mut dir| fill(&mut dir));
    if result.is_err() && !matches!(result, Err(RestoreError::Disk(DiskError::Locked { .. }))) {
        empty(directory, made);
    }
    result
}

/// Writes the beginning of an epoch into a directory that holds no log. The node record comes last.
pub(super) fn begin(
    dir: &mut DataDir,
    next: NextEpoch,
    state: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    sessions: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> Result<Restored, RestoreError> {
    let NextEpoch { id, meta } = next;
    drop(Log::create(dir, meta.identity, id, meta.tail, LogOptions::default())?);
    let meta = SnapshotStore::open(dir, meta.identity)?.write(meta, state, sessions)?;
    dir.store_node(&NodeRecord {
        directory: dir.directory(),
        seat: id.seat(),
        id: Some(id),
        identity: Some(meta.identity),
        configuration: meta.configuration.clone(),
        machine: (meta.machine_name.clone(), meta.machine_version),
        state: FormState::Formed,
    })?;
    Ok(Restored { id, meta })
}

/// Takes back what a restore that failed has made of an empty directory, as far as that goes.
fn empty(directory: &Path, made: bool) {
    for name in ["log", "snapshots", "verdicts"] {
        let _ = fs::remove_dir_all(directory.join(name));
    }
    for name in ["node", "node.tmp", "LOCK"] {
        let _ = fs::remove_file(directory.join(name));
    }
    if made {
        let _ = fs::remove_dir(directory);
    }
}
