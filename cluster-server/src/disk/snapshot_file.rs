//! A snapshot's file, wherever it lies: a server's own, one that has just come from a peer, a backup.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use voter_mesh::ids::Identity;
use voter_mesh::snapshot::{Hashing, SnapshotMeta};

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open, OsFiles};
use super::files::{self, Stream};
use super::snapshots::{CHUNK_BYTES, Chunked, HEADER_BYTES, ReadIndex, SnapshotIndex, read_index, snapshot_path};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// A snapshot's file whose header, index and trailer are good.
pub struct SnapshotFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    index: SnapshotIndex,
    /// Where the index begins, and the sections end.
    index_at: u64,
    hash: [u8; 32],
    bytes: u64,
}

/// A file among a server's snapshots, and what opening it came to.
pub type SnapshotFound = (PathBuf, Result<SnapshotFile, DiskError>);

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotFile").field("path", &self.path).field("tail", &self.index.meta.tail).finish_non_exhaustive()
    }
}

impl SnapshotFile {
    /// Opens a file of any cluster. Its sections are not looked at before [`Self::check`].
    ///
    /// # Errors
    /// `Damaged`, also for what is no snapshot at all; `Newer`; `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        Self::open_on(&OsFiles, path)
    }

    /// [`Self::open`] on any file system.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(files: &dyn FileSystem, path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let path = path.as_ref();
        Self::new(files::open(files, path, Open::Read)?, path.into(), None)
    }

    /// The snapshots of a server, damaged ones too, each with what opening it came to.
    ///
    /// # Errors
    /// `Io`, of the directory.
    pub fn of(dir: &DataDir, identity: &Identity) -> Result<Vec<SnapshotFound>, DiskError> {
        let (files, directory) = (dir.files(), dir.snapshots_path());
        let mut found = files::list(&**files, &directory)?;
        found.retain(|(name, _)| name.ends_with(".snap"));
        let open = |path: PathBuf| {
            let file = Self::new(files::open(&**files, &path, Open::Read)?, path.clone(), Some(identity))?;
            let named = path == snapshot_path(&directory, &file.meta().tail);
            if named { Ok(file) } else { Err(file.damaged("it is named as another".into())) }
        };
        Ok(found.into_iter().map(|(_, path)| (path.clone(), open(path))).collect())
    }

    /// Reads what must be right before anything else is believed; it must be of `identity` where that is given.
    pub(super) fn new(file: Arc<dyn DiskFile>, path: PathBuf, identity: Option<&Identity>) -> Result<Self, DiskError> {
        let ReadIndex { index, at: index_at, hash, bytes } = read_index(&*file, &path, identity)?;
        Ok(Self { file, path, index, index_at, hash, bytes })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    #[must_use]
    pub const fn meta(&self) -> &SnapshotMeta {
        &self.index.meta
    }

    /// Names the file: files of equal hashes are equal, on any server.
    #[must_use]
    pub const fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// How long it is.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its bytes from `offset` on: so many, or less at the end. It can be read to its end even if it is removed meanwhile.
    ///
    /// # Errors
    /// The system's.
    pub fn read_at(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        files::read_at(&*self.file, offset, bytes)
    }

    /// Bytes that [`Self::check`] reads.
    #[must_use]
    pub const fn check_bytes(&self) -> u64 {
        2 * self.index_at
    }

    /// Reads it through twice: every chunk against its hash, and both sections, unpacked, against theirs. `progress` is told how many
    /// bytes more were read.
    ///
    /// # Errors
    /// `Damaged` names the place; `Io`.
    pub fn check(&self, progress: &mut dyn FnMut(u64)) -> Result<(), DiskError> {
        self.check_chunks(progress)?;
        self.check_sections(progress)
    }

    /// Unpacks both sections and compares their hashes.
    pub(super) fn check_sections(&self, progress: &mut dyn FnMut(u64)) -> Result<(), DiskError> {
        let meta = &self.index.meta;
        self.check_section(self.state_place(), meta.state_hash, "state", progress)?;
        self.check_section(self.sessions_place(), meta.sessions_hash, "session table", progress)
    }

    /// Reads it through once, every chunk against its hash.
    pub(super) fn check_chunks(&self, progress: &mut dyn FnMut(u64)) -> Result<(), DiskError> {
        match self.bad_chunk(progress)? {
            None => Ok(()),
            Some(at) => Err(self.damaged(format!("the MiB at byte {at} does not have its hash"))),
        }
    }

    /// Reads it through once; where the first chunk begins that does not have its hash.
    pub(super) fn bad_chunk(&self, progress: &mut dyn FnMut(u64)) -> Result<Option<u64>, DiskError> {
        let mut hashes = Chunked::new(io::sink());
        io::copy(&mut self.read((0, self.index_at), progress), &mut hashes).at("read", &self.path)?;
        let (expected, (_, found)) = (&self.index.chunks, hashes.finish());
        let bad = expected.chunks(32).zip(found.chunks(32)).position(|(expected, found)| expected != found);
        let missing = (found.len() < expected.len()).then_some(found.len() / 32);
        Ok(bad.or(missing).map(|chunk| (chunk * CHUNK_BYTES) as u64))
    }

    /// The state, as its machine wrote it.
    ///
    /// # Errors
    /// The system's. What is read is worth no more than [`Self::check`] has said.
    pub fn state(&self) -> io::Result<impl Read + use<>> {
        unpacked(self.stream(self.state_place()))
    }

    /// The session table, as it wrote itself.
    ///
    /// # Errors
    /// The system's. What is read is worth no more than [`Self::check`] has said.
    pub fn sessions(&self) -> io::Result<impl Read + use<>> {
        unpacked(self.stream(self.sessions_place()))
    }

    fn check_section(&self, place: (u64, u64), hash: [u8; 32], name: &str, progress: &mut dyn FnMut(u64)) -> Result<(), DiskError> {
        let mut hashing = Hashing::new(unpacked(self.read(place, progress)).at("read", &self.path)?);
        io::copy(&mut hashing, &mut io::sink()).map_err(|error| self.damaged(format!("the {name} does not unpack: {error}")))?;
        if hashing.finish() == hash { Ok(()) } else { Err(self.damaged(format!("the {name}'s hash does not match"))) }
    }

    /// Where the state begins, and its bytes.
    const fn state_place(&self) -> (u64, u64) {
        (HEADER_BYTES as u64, self.index.state_bytes)
    }

    const fn sessions_place(&self) -> (u64, u64) {
        (HEADER_BYTES as u64 + self.index.state_bytes, self.index.sessions_bytes)
    }

    fn stream(&self, (at, bytes): (u64, u64)) -> io::Take<Stream> {
        Stream::new(Arc::clone(&self.file), at).take(bytes)
    }

    fn read<'a>(&self, place: (u64, u64), progress: &'a mut dyn FnMut(u64)) -> impl Read + use<'a> {
        BufReader::with_capacity(READ_BYTES, Watched { from: self.stream(place), progress })
    }

    fn damaged(&self, why: String) -> DiskError {
        DiskError::Damaged { path: self.path.clone(), why }
    }
}

fn unpacked<R: Read>(from: R) -> io::Result<zstd::Decoder<'static, BufReader<R>>> {
    zstd::Decoder::new(from)
}

/// Tells how much is read.
struct Watched<'a, R> {
    from: R,
    progress: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}
