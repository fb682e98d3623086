//! What a snapshot says of itself. Its bytes are the machine's state and the session table; where they lie is the disk's business.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::configuration::Configuration;
use crate::ids::{Identity, RunIndex};
use crate::run::Tail;

mod agreement;

pub use agreement::{Agreement, Difference, HASHES_KEPT, SnapshotHashes};

/// Where a snapshot stands and what it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The end of the history that it replaces: a run's end.
    pub tail: Tail,
    /// The history.
    pub identity: Identity,
    /// The configuration at that point.
    pub configuration: Configuration,
    /// The run of the last configuration entry at or before that point; 1 where only forming configured.
    pub configuration_run: RunIndex,
    /// The state machine's name.
    pub machine_name: String,
    /// Its version.
    pub machine_version: u32,
    /// SHA-256 of the machine's state as it writes it. All zero in an image that is not written yet.
    pub state_hash: [u8; 32],
    /// SHA-256 of the session table as it writes it. All zero in an image that is not written yet.
    pub sessions_hash: [u8; 32],
}

/// How much the log has grown since a snapshot was last due. Counted from the log alone, so that all servers find one due at the
/// same run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LogGrowth {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// A writer or reader that hashes what passes through it.
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> fmt::Debug for Hashing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hashing(..)")
    }
}

impl<T> Hashing<T> {
    /// Hashes what passes to or from `inner`.
    #[must_use]
    pub fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// SHA-256 of all that passed.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(bytes.get(..read).unwrap_or(&[]));
        Ok(read)
    }
}
