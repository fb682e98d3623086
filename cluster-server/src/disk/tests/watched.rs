//! The operating system's files, with someone who watches: told after each operation that changes something, and free to fail it; and
//! with someone who may refuse an operation before anything has changed.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::disk::{DiskFile, FileSystem, Open, OsFiles};

type OnStep = Box<dyn FnMut(&'static str) -> io::Result<()> + Send>;

#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Option<OnStep>>>, Arc<Mutex<Option<OnStep>>>);

impl Watched {
    /// `on_step`'s error becomes the operation's.
    pub(super) fn watch(&self, on_step: impl FnMut(&'static str) -> io::Result<()> + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(on_step));
    }

    /// `refuse`'s error keeps the operation from happening.
    pub(super) fn refuse(&self, refuse: impl FnMut(&'static str) -> io::Result<()> + Send + 'static) {
        *self.1.lock().unwrap() = Some(Box::new(refuse));
    }

    pub(super) fn stop(&self) {
        (*self.0.lock().unwrap(), *self.1.lock().unwrap()) = (None, None);
    }

    fn may(&self, what: &'static str) -> io::Result<()> {
        self.1.lock().unwrap().as_mut().map_or(Ok(()), |refuse| refuse(what))
    }

    fn step<T>(&self, what: &'static str, done: T) -> io::Result<T> {
        self.0.lock().unwrap().as_mut().map_or(Ok(()), |on_step| on_step(what)).map(|()| done)
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
        let file: Arc<dyn DiskFile> = Arc::new(WatchedFile { watched: self.clone(), file: OsFiles.open(path, how)? });
        if how == Open::New { self.step("create", file) } else { Ok(file) }
    }

    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        OsFiles.lock(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may("rename")?;
        OsFiles.rename(from, to).and_then(|done| self.step("rename", done))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.may("remove")?;
        OsFiles.remove(path).and_then(|done| self.step("remove", done))
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
        OsFiles.sync_directory(path).and_then(|done| self.step("sync directory", done))
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
        self.file.write_vectored_at(slices, offset).and_then(|done| self.watched.step("write", done))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.watched.may("sync")?;
        self.file.sync_data().and_then(|done| self.watched.step("sync", done))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.watched.may("truncate")?;
        self.file.set_len(bytes).and_then(|done| self.watched.step("truncate", done))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.watched.may("allocate")?;
        self.file.allocate(bytes).and_then(|done| self.watched.step("allocate", done))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn forget_cache(&self) {
        self.file.forget_cache();
    }
}
