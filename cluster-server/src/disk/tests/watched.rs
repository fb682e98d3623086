//! The operating system's files, with someone who may refuse an operation before anything has changed.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::disk::{DiskFile, FileSystem, Open, OsFiles};

type Refuse = Box<dyn FnMut(&'static str) -> io::Result<()> + Send>;

#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Option<Refuse>>>);

impl Watched {
    /// `refuse`'s error keeps the operation from happening.
    pub(super) fn refuse(&self, refuse: impl FnMut(&'static str) -> io::Result<()> + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(refuse));
    }

    pub(super) fn stop(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn may(&self, what: &'static str) -> io::Result<()> {
        self.0.lock().unwrap().as_mut().map_or(Ok(()), |refuse| refuse(what))
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl FileSystem for Watched {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        if how == Open::New {
            self.may("create")?;
        }
        Ok(Arc::new(WatchedFile { watched: self.clone(), file: OsFiles.open(path, how)? }))
    }

    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        OsFiles.lock(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may("rename")?;
        OsFiles.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.may("remove")?;
        OsFiles.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        OsFiles.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        OsFiles.create_directory(path)
    }

    fn is_directory(&self, path: &Path) -> bool {
        OsFiles.is_directory(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.may("sync directory")?;
        OsFiles.sync_directory(path)
    }
}

#[derive(Debug)]
struct WatchedFile {
    watched: Watched,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        if let Err(error) = self.watched.may("write") {
            // As a disk does that runs out of room on the way: some of it is there.
            let some = slices.first().map_or(&[][..], |slice| slice.get(..slice.len() / 2).unwrap_or_default());
            self.file.write_vectored_at(&[IoSlice::new(some)], offset)?;
            return Err(error);
        }
        self.file.write_vectored_at(slices, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.watched.may("sync")?;
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.watched.may("truncate")?;
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.watched.may("allocate")?;
        self.file.allocate(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn forget_cache(&self) {
        self.file.forget_cache();
    }
}
