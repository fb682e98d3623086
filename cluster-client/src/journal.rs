//! The request journal: what a client must not forget if its commands are to apply exactly once across its own crashes.
//!
//! It holds the session's secret, which ids may have been issued, and every request that is not answered yet. All of it is written
//! before anything that depends on it is sent. It never holds outcomes or state.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

mod file;
mod files;
pub mod record;

pub use files::{JournalFile, JournalFiles, OsFiles};
use record::{JournalState, Record};

/// Bytes appended since the last rewrite above which a journal is rewritten, if most of them are void.
const REWRITE_BYTES_MIN: usize = 1 << 20;

/// Why a journal cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another client, in this process or another one, holds the journal. Nothing was written.
    #[error("journal {0} is in use")]
    JournalBusy(PathBuf),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Bytes in the middle are bad: requests may be missing, so it is not used. Nothing was written.
    #[error("the journal is damaged at byte {offset}")]
    Damaged {
        /// Where, in bytes; for the application's own store, the number of the record.
        offset: u64,
    },
}

/// An application's own place for a journal. Records are opaque; each is at most 2 MiB. Called on a thread that may block.
pub trait JournalStore: Send {
    /// All records that were appended since the last `rewrite`, and those that it wrote, in order. Called once, first.
    ///
    /// # Errors
    /// Any; the client is not made then.
    fn load(&mut self) -> Result<Vec<Bytes>, JournalError>;

    /// Appends records. When it returns, they survive this process; with `durable`, the machine too.
    ///
    /// # Errors
    /// Any; the client closes then, because it cannot keep its promise any more.
    fn append(&mut self, records: &[Bytes], durable: bool) -> Result<(), JournalError>;

    /// Replaces everything by these records, in one step that a crash cannot halve.
    ///
    /// # Errors
    /// As `append`.
    fn rewrite(&mut self, records: &[Bytes]) -> Result<(), JournalError>;
}

/// Where a client keeps what its exactly-once promise needs.
pub struct RequestJournal {
    store: Option<Box<dyn JournalStore>>,
    /// Every append is durable.
    synced: bool,
    /// Appends that need not be durable do not block for long.
    quick: bool,
    state: JournalState,
    appended_bytes: usize,
}

impl fmt::Debug for RequestJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestJournal").field("kept", &self.store.is_some()).field("synced", &self.synced).finish_non_exhaustive()
    }
}

impl RequestJournal {
    /// Keeps nothing: exactly once while this process lives. The default.
    #[must_use]
    pub fn memory() -> Self {
        Self { store: None, synced: false, quick: true, state: JournalState::default(), appended_bytes: 0 }
    }

    /// A file, made if it is missing, readable by its owner only. Survives a crash of the process; with [`Self::synced`], of the
    /// machine. Blocks the caller while it reads the file
    /// and syncs what it found.
    ///
    /// # Errors
    /// `JournalBusy` if someone else has it open, `Damaged`, or `Io`. The file is unchanged then.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        Self::file_on(Arc::new(OsFiles), path)
    }

    /// As [`Self::file`], on a file system of the caller's.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn file_on(files: Arc<dyn JournalFiles>, path: impl AsRef<Path>) -> Result<Self, JournalError> {
        Self::load(Box::new(file::FileStore::open(files, path.as_ref())?), true)
    }

    /// The application's own store. Keeping others out of it is the store's business; a copy is detected all the same.
    ///
    /// # Errors
    /// What `load` says, or `Damaged`.
    pub fn custom(store: Box<dyn JournalStore>) -> Result<Self, JournalError> {
        Self::load(store, false)
    }

    /// Makes every record survive a crash of the machine too, at the price of a disk write before each batch of requests. Without
    /// it only secrets, id blocks and what was said to be not sent do: a machine crash may then forget requests, but no id is ever
    /// issued twice, and nothing is sent after all.
    #[must_use]
    pub fn synced(mut self) -> Self {
        self.synced = true;
        self
    }

    fn load(mut store: Box<dyn JournalStore>, quick: bool) -> Result<Self, JournalError> {
        let (mut state, mut appended_bytes) = (JournalState::default(), 0);
        for (number, bytes) in store.load()?.iter().enumerate() {
            let record = Record::decode(bytes).ok_or(JournalError::Damaged { offset: number as u64 })?;
            state.fold(&record);
            appended_bytes += bytes.len();
        }
        Ok(Self { store: Some(store), synced: false, quick, state, appended_bytes })
    }

    /// What the journal holds.
    pub(crate) fn state(&self) -> &JournalState {
        &self.state
    }

    /// Whether it outlives the process.
    pub(crate) fn is_kept(&self) -> bool {
        self.store.is_some()
    }

    /// Whether `write` may be called where blocking for a disk would hurt.
    pub(crate) fn is_quick(&self, durable: bool) -> bool {
        self.store.is_none() || (self.quick && !self.synced && !durable && self.appended_bytes < REWRITE_BYTES_MIN)
    }

    /// Writes records, in order.
    pub(crate) fn write(&mut self, records: &[Record], durable: bool) -> Result<(), JournalError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        for record in records {
            self.state.fold(record);
        }
        let bytes: Vec<Bytes> = records.iter().map(Record::encode).collect();
        store.append(&bytes, durable || self.synced)?;
        self.appended_bytes += bytes.iter().map(Bytes::len).sum::<usize>();
        if self.appended_bytes >= REWRITE_BYTES_MIN {
            let live: Vec<Bytes> = self.state.records().iter().map(Record::encode).collect();
            let live_bytes = live.iter().map(Bytes::len).sum::<usize>();
            if live_bytes < self.appended_bytes / 2 {
                store.rewrite(&live)?;
                self.appended_bytes = live_bytes;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
