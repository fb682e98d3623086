//! The few file operations that everything here is made of. Each that changes something tells the tests, which then take the
//! directory's picture, or let it fail: a crash may happen between any two of them, and an error at each.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::error::{At, DiskError};

/// Slices that one system call takes (Linux' `IOV_MAX`).
const SLICES_MAX: usize = 1024;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes all slices one behind the other from `offset` on.
pub(super) fn write_slices_at(file: &File, path: &Path, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> Result<(), DiskError> {
    while slices.iter().any(|slice| !slice.is_empty()) {
        match rustix::io::pwritev(file, &slices[..slices.len().min(SLICES_MAX)], offset) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)).at("write", path),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).at("write", path),
        }
    }
    step("write").at("write", path)
}

/// Slices of zeros, `bytes` together.
pub(super) fn zeros<'a>(bytes: u64) -> impl Iterator<Item = IoSlice<'a>> {
    let whole = (bytes / ZEROS.len() as u64) as usize;
    let rest = (bytes % ZEROS.len() as u64) as usize;
    std::iter::repeat_n(IoSlice::new(&ZEROS), whole).chain((rest > 0).then(|| IoSlice::new(&ZEROS[..rest])))
}

/// Reads up to `bytes` from `offset` on; less only at the end of the file.
pub(super) fn read_at(file: &File, offset: u64, bytes: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.into())
}

/// Gives a new file its length and its blocks, so that a later write into it cannot run out of room.
pub(super) fn allocate(file: &File, path: &Path, bytes: u64) -> Result<(), DiskError> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // A file system that cannot reserve: the length alone still spares each sync the length's own write.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes).at("extend", path)?,
        result => result.at("allocate", path)?,
    }
    step("allocate").at("allocate", path)
}

pub(super) fn sync_data(file: &File, path: &Path) -> Result<(), DiskError> {
    file.sync_data().at("sync", path)?;
    step("sync").at("sync", path)
}

pub(super) fn sync_directory(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)?;
    step("sync directory").at("sync", path)
}

/// Gives a synced file its real name, durably.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::rename(from, to).at("rename", from)?;
    step("rename").at("rename", from)?;
    sync_directory(to.parent().unwrap_or(Path::new(".")))
}

pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    fs::remove_file(path).at("remove", path)?;
    step("remove").at("remove", path)
}

pub(super) fn truncate(file: &File, path: &Path, bytes: u64) -> Result<(), DiskError> {
    file.set_len(bytes).at("truncate", path)?;
    step("truncate").at("truncate", path)
}

/// Creates a directory and makes its name durable.
pub(super) fn create_directory(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).at("create", path)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Puts `bytes` in the place of the file, as a whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = path.with_extension("tmp");
    let mut file = open_new(&temporary)?;
    file.write_all(bytes).and_then(|()| step("write")).at("write", &temporary)?;
    sync_data(&file, &temporary)?;
    rename(&temporary, path)
}

/// Opens a file to read and write it, empty.
pub(super) fn open_new(path: &Path) -> Result<File, DiskError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).at("create", path)?;
    step("create").at("create", path)?;
    Ok(file)
}

pub(super) fn open(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new().read(true).write(true).open(path).at("open", path)
}

/// The files of a directory, by name.
pub(super) fn list(directory: &Path) -> Result<Vec<(String, PathBuf)>, DiskError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    files.sort();
    Ok(files)
}

#[cfg(not(test))]
const fn step(_what: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
type OnStep = Box<dyn FnMut(&'static str) -> io::Result<()>>;

#[cfg(test)]
thread_local! {
    /// Called on this thread after each operation that changes a file; its error becomes the operation's.
    pub(super) static ON_STEP: std::cell::RefCell<Option<OnStep>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
fn step(what: &'static str) -> io::Result<()> {
    ON_STEP.with_borrow_mut(|on_step| on_step.as_mut().map_or(Ok(()), |on_step| on_step(what)))
}
