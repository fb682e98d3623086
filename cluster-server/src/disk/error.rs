//! What can go wrong with a directory.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use voter_mesh::ids::RunIndex;
use voter_mesh::log::Fenced;

/// What a failed sync was doing.
pub(super) const SYNC: &str = "sync";

/// Why the disk cannot do what was asked. Unless a variant says otherwise, files are as they were.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Another process uses the directory. Nothing was written.
    #[error("{path} is in use by another process")]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// A file operation failed. After a failed write or sync the file's contents are unknown: stop, and recover at the next start.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A newer version wrote the file. Start that version.
    #[error("{path} has format {found}; this version reads up to {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this version reads.
        known: u32,
    },
    /// The file belongs to another cluster, epoch, room, or life of a seat.
    #[error("{path} belongs to {found}, not to {expected}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The file is damaged where nothing can be believed without it.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no log where one must be: it was removed, and with it what this server had acknowledged.
    #[error("{path} holds no log, though this server has had one")]
    NoLog {
        /// The log's directory.
        path: PathBuf,
    },
    /// A log that has been used stands where a new one should begin.
    #[error("{path} already holds a log that has been used")]
    LogExists {
        /// The log's directory.
        path: PathBuf,
    },
    /// The log begins after the newest snapshot that is whole: the runs between them are gone.
    #[error("the newest whole snapshot ends at run {snapshot}, but the log begins at run {first}")]
    Gap {
        /// Where the snapshot ends.
        snapshot: RunIndex,
        /// Where the log begins.
        first: RunIndex,
    },
    /// Log and snapshot hold two histories: same run and term, other contents.
    #[error("log and snapshot differ at run {run}")]
    Diverged {
        /// The run.
        run: RunIndex,
    },
}

impl DiskError {
    /// Whether the disk is full, over quota or read-only for now: nothing is broken, and there may be room later. A sync that fails
    /// for want of room is no such case: what it should have made durable is lost.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let Self::Io { doing, source, .. } = self else { return false };
        *doing != SYNC && matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
    }
}

/// Why a batch was not written. The writer has stopped: nothing after it was written either, and nothing will be.
#[derive(Debug, Error)]
pub enum WriteFailed {
    /// Storage refused it before touching anything; what came before it is durable.
    #[error("refused: {0}")]
    Fenced(#[from] Fenced),
    /// Its runs do not continue the log; nothing of it was written, and what came before it is durable.
    #[error("run {found} does not continue the log, which ends at run {last}")]
    NotNext {
        /// Where the log ends.
        last: RunIndex,
        /// What was to follow.
        found: RunIndex,
    },
    /// The disk failed. What is durable of it is unknown: end the process, and recover. Unless [`DiskError::is_full`].
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Names the file and the deed in a system's error.
pub(super) trait At<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|error| DiskError::Io { path: path.into(), doing, source: error.into() })
    }
}
