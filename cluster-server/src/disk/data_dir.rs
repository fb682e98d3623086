//! The directory, its lock, and who the server in it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{DirectoryId, Identity, RaftId, Seat};
use voter_mesh::mesh::forming::FormState;

use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open, OsFiles};
use super::files;
use super::read_only::ReadOnlyFiles;

/// The version of the node record's format that this code writes.
const NODE_FORMAT_VERSION: u32 = 1;

/// Bytes of a node record that are read: far more than any configuration has. A longer file does not have its checksum.
const NODE_BYTES_MAX: usize = 1 << 20;

const NODE_MAGIC: [u8; 8] = *b"QUORNODE";

/// Who the server in a directory is. Stored as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The directory's own identity.
    pub directory: DirectoryId,
    /// The seat it was started for.
    pub seat: Seat,
    /// Its id, once it has one.
    pub id: Option<RaftId>,
    /// Its history, once it has one.
    pub identity: Option<Identity>,
    /// The configuration that it was formed with or offered.
    pub configuration: Configuration,
    /// Name and version of its state machine.
    pub machine: (String, u32),
    /// How far it has come.
    pub state: FormState,
}

/// A data directory that this process alone uses. The lock goes with the value.
#[derive(Debug)]
pub struct DataDir {
    files: Arc<dyn FileSystem>,
    path: PathBuf,
    node: Option<NodeRecord>,
    directory: DirectoryId,
    _lock: Arc<dyn DiskFile>,
}

impl DataDir {
    /// Creates the directory if need be, locks it, and reads its node record.
    ///
    /// # Errors
    /// [`DiskError::Locked`] if another process (or another value in this one) has it: then nothing was written. `Newer`, `Damaged`,
    /// `Io`: the lock is free again.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let mint = mint().at("draw an identity for", path.as_ref())?;
        Self::open_on(Arc::new(OsFiles), path, mint)
    }

    /// [`Self::open`] on any file system, with the identity that the directory gets if it has none yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(files: Arc<dyn FileSystem>, path: impl AsRef<Path>, mint: DirectoryId) -> Result<Self, DiskError> {
        let path = path.as_ref().to_path_buf();
        files::create_directory(&*files, &path)?;
        let lock_path = path.join("LOCK");
        let lock = match files.lock(&lock_path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(DiskError::Locked { path: lock_path }),
            result => result.at("lock", &lock_path)?,
        };
        files::create_directory(&*files, &path.join("log"))?;
        files::create_directory(&*files, &path.join("snapshots"))?;
        files::create_directory(&*files, &path.join("verdicts"))?;
        let node = read_node(&*files, &path.join("node"))?;
        let directory = node.as_ref().map_or(mint, |node| node.directory);
        Ok(Self { files, path, node, directory, _lock: lock })
    }

    /// The node record, if one was ever stored.
    #[must_use]
    pub const fn node(&self) -> Option<&NodeRecord> {
        self.node.as_ref()
    }

    /// Stores the node record durably, as a whole or not at all.
    ///
    /// # Errors
    /// `Io`: the one before it stands.
    pub fn store_node(&mut self, node: &NodeRecord) -> Result<(), DiskError> {
        let path = self.path.join("node");
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(&NODE_MAGIC);
        bytes.extend_from_slice(&NODE_FORMAT_VERSION.to_le_bytes());
        ciborium::into_writer(node, &mut bytes).map_err(io::Error::other).at("encode", &path)?;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        files::replace(&*self.files, &path, &bytes)?;
        self.directory = node.directory;
        self.node = Some(node.clone());
        Ok(())
    }

    /// The directory's own identity: that of the node record, or one drawn just now, durable with the first record that is stored.
    #[must_use]
    pub const fn directory(&self) -> DirectoryId {
        self.directory
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory that exists to look at it: nothing in it is created or changed through this value. What is read is added to
    /// `read`, in bytes.
    ///
    /// # Errors
    /// As [`Self::open`]; `Io` if there is no such directory.
    pub fn look(path: impl AsRef<Path>, read: Arc<AtomicU64>) -> Result<Self, DiskError> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory)).at("look into", path);
        }
        Self::open_on(Arc::new(ReadOnlyFiles::counting(read)), path, DirectoryId::default())
    }

    /// Sets a file of the directory that is damaged aside, by giving it `.damaged` for its ending; returns its new name.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, DiskError> {
        let aside = path.with_extension("damaged");
        files::rename(&*self.files, path, &aside)?;
        Ok(aside)
    }

    pub(super) fn files(&self) -> &Arc<dyn FileSystem> {
        &self.files
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn snapshots_path(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub(super) fn verdicts_path(&self) -> PathBuf {
        self.path.join("verdicts")
    }
}

fn mint() -> io::Result<DirectoryId> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(DirectoryId(bytes))
}

fn read_node(files: &dyn FileSystem, path: &Path) -> Result<Option<NodeRecord>, DiskError> {
    let file = match files.open(path, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.at("open", path)?,
    };
    let bytes = files::read_at(&*file, 0, NODE_BYTES_MAX).at("read", path)?;
    let damaged = |why: &str| DiskError::Damaged { path: path.into(), why: why.into() };
    let Some((sealed, crc)) = bytes.split_last_chunk::<4>() else { return Err(damaged("it is too short")) };
    let (Some(magic), Some(version), Some(mut body)) = (sealed.get(..8), sealed.get(8..12), sealed.get(12..)) else {
        return Err(damaged("it is too short"));
    };
    if magic != NODE_MAGIC {
        return Err(damaged("it is not a node record"));
    }
    if crc32c::crc32c(sealed) != u32::from_le_bytes(*crc) {
        return Err(damaged("its checksum does not match"));
    }
    let found = version.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    if found != NODE_FORMAT_VERSION {
        return Err(DiskError::Newer { path: path.into(), found, known: NODE_FORMAT_VERSION });
    }
    ciborium::from_reader(&mut body).map(Some).map_err(|error| damaged(&error.to_string()))
}
