//! A directory that is looked at and not touched, so that what decides at a start can be asked beforehand what it would decide.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;

use super::file_system::{DiskFile, FileSystem, Open, OsFiles};

/// The operating system's files, to be read only. Syncs do nothing; a directory that is created only seems to be there, and a file that
/// is renamed or removed only seems to be gone; all else that would change something is refused.
#[derive(Debug, Default)]
pub struct ReadOnlyFiles {
    read: Arc<AtomicU64>,
    gone: Mutex<BTreeSet<PathBuf>>,
}

impl ReadOnlyFiles {
    /// Adds to `read` the bytes that are read.
    #[must_use]
    pub fn counting(read: Arc<AtomicU64>) -> Self {
        Self { read, gone: Mutex::default() }
    }

    fn gone(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, file: Option<File>) -> Arc<dyn DiskFile> {
        Arc::new(ReadOnlyFile { file, read: Arc::clone(&self.read) })
    }
}

impl FileSystem for ReadOnlyFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        if how == Open::New {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        if self.gone().contains(path) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(self.file(Some(File::open(path)?)))
    }

    /// Shared, so that others may look too; a server does not start meanwhile. Where there is no lock's file, nobody can hold it.
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match File::open(path) {
            Ok(file) => {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
                Ok(self.file(Some(file)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(self.file(None)),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &Path, _to: &Path) -> io::Result<()> {
        self.remove(from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.gone().insert(path.into());
        Ok(())
    }

    /// A directory that is not there has no files: a server would create it.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = match OsFiles.list(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            result => result?,
        };
        names.retain(|name| !self.gone().contains(&directory.join(name)));
        Ok(names)
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        OsFiles.is_directory(path)
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct ReadOnlyFile {
    file: Option<File>,
    read: Arc<AtomicU64>,
}

impl DiskFile for ReadOnlyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.as_ref().map_or(Ok(0), |file| FileExt::read_at(file, buffer, offset))?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }

    fn write_vectored_at(&self, _slices: &[IoSlice<'_>], _offset: u64) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| Ok(file.metadata()?.len()))
    }

    fn forget_cache(&self) {}
}
