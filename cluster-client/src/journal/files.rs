//! The file system as a file journal uses it: the few operations, and nothing of `std::fs` beside them. Clients run on [`OsFiles`];
//! tests run the same code on one that forgets, tears and fails.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

/// Names and the files behind them. Files are made readable by their owner only: a journal holds its session's secret. Errors are the
/// system's own.
pub trait JournalFiles: Send + Sync + Debug {
    /// Creates an empty file if there is none, and locks it until what is returned is dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` if it is locked already, by whomever; the system's.
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>>;

    /// Opens a file to read and write it, and creates it if there is none.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>>;

    /// Gives a file another name; a file that had that name is gone. At no time is there neither of them.
    ///
    /// # Errors
    /// The system's; the names are as they were.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable, as they are now.
    ///
    /// # Errors
    /// The system's. It is never tried again: the system may have forgotten what it did not write.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// An open file. It stays what it is when its name goes or passes to another one.
pub trait JournalFile: Send + Sync + Debug {
    /// All that it holds.
    ///
    /// # Errors
    /// The system's.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Writes all of these bytes from `offset` on, and makes the file longer if need be.
    ///
    /// # Errors
    /// The system's; a part may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what the file holds durable, and its length; not its name.
    ///
    /// # Errors
    /// The system's. It is never tried again: the system may have forgotten what it did not write.
    fn sync(&self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Clone, Copy, Default, Debug)]
pub struct OsFiles;

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

impl JournalFiles for OsFiles {
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        let file = private(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(private(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl JournalFile for File {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.metadata()?.len()).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }
}
