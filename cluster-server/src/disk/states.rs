//! States written out for clients, as their machine writes them, so that a piece can be read at any place. Such a file loses its name
//! as soon as it is open: when the last of its readers is gone, so is it, whatever becomes of the process.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use voter_mesh::snapshot::Hashing;

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open};
use super::files::{self, Stream};

/// Where states are written out. It may be used from several threads.
#[derive(Debug)]
pub struct StateFiles {
    files: Arc<dyn FileSystem>,
    directory: PathBuf,
    ever: AtomicU64,
}

impl StateFiles {
    /// Beside the snapshots: what a crash leaves there under a temporary name goes when the [`SnapshotStore`](super::SnapshotStore)
    /// is opened next.
    #[must_use]
    pub fn new(dir: &DataDir) -> Self {
        Self { files: Arc::clone(dir.files()), directory: dir.snapshots_path(), ever: AtomicU64::new(0) }
    }

    /// Writes a state out. Nothing is synced: it is of no use to another process. It blocks for as long as the disk takes; use a
    /// thread for it.
    ///
    /// # Errors
    /// `Io`, of the file or of `content`: nothing is left of it.
    pub fn write(&self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<StateFile, DiskError> {
        let path = self.directory.join(format!("state-{}.tmp", self.ever.fetch_add(1, Ordering::Relaxed)));
        let file = files::open(&*self.files, &path, Open::New)?;
        files::remove(&*self.files, &path)?;
        let mut to = Hashing::new(BufWriter::with_capacity(256 << 10, Stream::new(Arc::clone(&file), 0)));
        content(&mut to).and_then(|()| to.flush()).at("write", &path)?;
        let bytes = file.len().at("inspect", &path)?;
        Ok(StateFile { file, hash: to.finish(), bytes })
    }
}

/// A state that was written out.
#[derive(Debug)]
pub struct StateFile {
    file: Arc<dyn DiskFile>,
    hash: [u8; 32],
    bytes: u64,
}

impl StateFile {
    /// SHA-256 of the state.
    #[must_use]
    pub const fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Bytes of the state.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Up to `bytes` from `offset` on; less only at the state's end.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        files::read_at(&*self.file, offset, bytes)
    }
}
