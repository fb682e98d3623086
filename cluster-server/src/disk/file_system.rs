//! The file system as this directory's code uses it: the few operations, and nothing of `std::fs` beside them. The server runs on
//! [`OsFiles`]; tests run the same code on one that forgets, tears and fails.
//!
//! Each method is one system call or so. What a whole deed is made of (temporary name, sync, rename, sync of the directory) is not
//! here, because that is what a crash cuts into pieces.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// To read it. It must exist.
    Read,
    /// To read and write it. It must exist.
    Write,
    /// To read and write it, empty: it is created, or loses what it held.
    New,
}

/// Names and the files behind them. Errors are the system's own: `NotFound`, `StorageFull`, and so on.
pub trait FileSystem: Send + Sync + Debug {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's; nothing was created then.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file if there is none, and locks it until what is returned is dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` if it is locked already, by whomever; the system's.
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name; a file that had that name is gone. At no time is there neither of them.
    ///
    /// # Errors
    /// The system's; the names are as they were.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away. Whoever has it open still has it whole.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, ascending.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory in one that exists; one that exists itself is no error.
    ///
    /// # Errors
    /// The system's.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Whether there is a directory of this name.
    fn is_directory(&self, path: &Path) -> bool;

    /// Makes the names in a directory durable, as they are now.
    ///
    /// # Errors
    /// The system's. It is never tried again: the system may have forgotten what it did not write.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// An open file. It stays what it is when its name goes or passes to another one.
#[expect(clippy::len_without_is_empty, reason = "a length that can fail to be read is no collection's")]
pub trait DiskFile: Send + Sync + Debug {
    /// Reads into `buffer` from `offset` on; returns how many bytes there were, 0 only at the end of the file or for no buffer.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes the slices one behind the other from `offset` on, and makes the file longer if need be; returns how many bytes it took.
    ///
    /// # Errors
    /// The system's.
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Makes what the file holds durable, and its length; not its name.
    ///
    /// # Errors
    /// The system's. It is never tried again: the system may have forgotten what it did not write.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Makes the file at least `bytes` long and reserves room for them, as far as the file system can reserve.
    ///
    /// # Errors
    /// The system's; `StorageFull` if there is not that much room.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// How long the file is.
    ///
    /// # Errors
    /// The system's.
    fn len(&self) -> io::Result<u64>;

    /// Asks that the next reads come from the disk, not from a cache. Advice: it may be ignored.
    fn forget_cache(&self);
}

/// The operating system's files.
#[derive(Clone, Copy, Default, Debug)]
pub struct OsFiles;

impl FileSystem for OsFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Read).create(how == Open::New).truncate(how == Open::New);
        Ok(Arc::new(options.open(path)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(_) if path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, slices, offset)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // A file system that cannot reserve: the length alone still spares each sync the length's own write.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if self.metadata()?.len() < bytes => Self::set_len(self, bytes),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn forget_cache(&self) {
        let _ = rustix::fs::fadvise(self, 0, None, Advice::DontNeed);
    }
}
