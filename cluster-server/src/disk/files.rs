//! What the directory's code does with files, made of a [`FileSystem`]'s operations. Errors name the file and the deed.

use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use voter_mesh::mutant;

use super::error::{At, DiskError, SYNC};
use super::file_system::{DiskFile, FileSystem, Open};

/// Slices that one system call takes (Linux' `IOV_MAX`).
const SLICES_MAX: usize = 1024;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes all slices one behind the other from `offset` on.
pub(super) fn write_slices_at(
    file: &dyn DiskFile,
    path: &Path,
    mut slices: &mut [IoSlice<'_>],
    mut offset: u64,
) -> Result<(), DiskError> {
    while slices.iter().any(|slice| !slice.is_empty()) {
        match file.write_vectored_at(&slices[..slices.len().min(SLICES_MAX)], offset) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)).at("write", path),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("write", path),
        }
    }
    Ok(())
}

/// Slices of zeros, `bytes` together.
pub(super) fn zeros<'a>(bytes: u64) -> impl Iterator<Item = IoSlice<'a>> {
    let whole = (bytes / ZEROS.len() as u64) as usize;
    let rest = (bytes % ZEROS.len() as u64) as usize;
    std::iter::repeat_n(IoSlice::new(&ZEROS), whole).chain((rest > 0).then(|| IoSlice::new(&ZEROS[..rest])))
}

/// Reads up to `bytes` from `offset` on; less only at the end of the file.
pub(super) fn read_at(file: &dyn DiskFile, offset: u64, bytes: usize) -> io::Result<Bytes> {
    let there = file.len()?.saturating_sub(offset);
    let mut buffer = vec![0; bytes.min(usize::try_from(there).unwrap_or(bytes))];
    let mut filled = 0;
    while filled < buffer.len() {
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

pub(super) fn sync_data(file: &dyn DiskFile, path: &Path) -> Result<(), DiskError> {
    file.sync_data().at(SYNC, path)
}

pub(super) fn sync_directory(files: &dyn FileSystem, path: &Path) -> Result<(), DiskError> {
    files.sync_directory(path).at(SYNC, path)
}

/// Gives a synced file its real name, durably.
pub(super) fn rename(files: &dyn FileSystem, from: &Path, to: &Path) -> Result<(), DiskError> {
    files.rename(from, to).at("rename", from)?;
    if mutant!("rename_without_directory_sync") {
        return Ok(());
    }
    sync_directory(files, parent(to))
}

pub(super) fn remove(files: &dyn FileSystem, path: &Path) -> Result<(), DiskError> {
    files.remove(path).at("remove", path)
}

/// Copies a file, unless there is one of that name already; as a whole or not at all.
pub(super) fn copy(files: &dyn FileSystem, from: &Path, to: &Path) -> Result<(), DiskError> {
    const COPY_BYTES: usize = 1 << 20;
    match files.open(to, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.map(drop).at("open", to),
    }
    let making = to.with_extension("tmp");
    let (source, target) = (open(files, from, Open::Read)?, open(files, &making, Open::New)?);
    let mut at = 0;
    loop {
        let bytes = read_at(&*source, at, COPY_BYTES).at("read", from)?;
        if bytes.is_empty() {
            break;
        }
        write_slices_at(&*target, &making, &mut [IoSlice::new(&bytes)], at)?;
        at += bytes.len() as u64;
    }
    sync_data(&*target, &making)?;
    rename(files, &making, to)
}

/// Creates a directory, with those that it is in, and makes its name durable: also one that is there already, because whoever created
/// it may have died before its name was.
pub(super) fn create_directory(files: &dyn FileSystem, path: &Path) -> Result<(), DiskError> {
    let parent = parent(path);
    if !files.is_directory(path) {
        if !files.is_directory(parent) {
            create_directory(files, parent)?;
        }
        files.create_directory(path).at("create", path)?;
    }
    sync_directory(files, parent)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Puts `bytes` in the place of the file, as a whole or not at all.
pub(super) fn replace(files: &dyn FileSystem, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = path.with_extension("tmp");
    let file = open(files, &temporary, Open::New)?;
    write_slices_at(&*file, &temporary, &mut [IoSlice::new(bytes)], 0)?;
    sync_data(&*file, &temporary)?;
    rename(files, &temporary, path)
}

pub(super) fn open(files: &dyn FileSystem, path: &Path, how: Open) -> Result<Arc<dyn DiskFile>, DiskError> {
    files.open(path, how).at(if how == Open::New { "create" } else { "open" }, path)
}

/// The files of a directory, by name.
pub(super) fn list(files: &dyn FileSystem, directory: &Path) -> Result<Vec<(String, PathBuf)>, DiskError> {
    let names = files.list(directory).at("list", directory)?;
    Ok(names.into_iter().map(|name| (directory.join(&name), name)).map(|(path, name)| (name, path)).collect())
}

/// A file read or written from some place on to its end.
#[derive(Debug)]
pub(super) struct Stream {
    file: Arc<dyn DiskFile>,
    at: u64,
}

impl Stream {
    pub(super) fn new(file: Arc<dyn DiskFile>, at: u64) -> Self {
        Self { file, at }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_vectored_at(&[IoSlice::new(bytes)], self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
