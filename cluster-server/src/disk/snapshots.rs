//! Snapshots: the newest and the one before it, each one file that proves itself.
//!
//! A file is written, or received from a peer, under a temporary name; it gets its real one when it is whole, checked and synced. So
//! whatever stands under a real name was good once, and opening the store checks that it still is.
//!
//! What has come of a peer's file outlives the transfer and the process: its name holds the hash of the whole, so that the next
//! transfer of the same file goes on behind it, from whichever server. There is one such part at most.

use std::io::{self, BufReader, BufWriter, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use voter_mesh::ids::{ClusterId, Epoch, Identity, RoomId, RunIndex, Term};
use voter_mesh::mutant;
use voter_mesh::run::Tail;
use voter_mesh::snapshot::{Hashing, SnapshotMeta};

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open};
use super::files::{self, Stream};
use super::snapshot_file::SnapshotFile;

/// Bytes that a snapshot's file may have. It bounds what a peer can make this server write.
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// The version of the snapshot format that this code writes. It reads no newer one.
const SNAPSHOT_FORMAT_VERSION: u32 = 1;

/// Snapshots that are kept: the newest, and the one before it in case the newest turns out to be damaged.
const KEPT: usize = 2;

/// Bytes under one hash.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of the index at most: hashes for [`SNAPSHOT_BYTES_MAX`], and the meta.
const INDEX_BYTES_MAX: u64 = (SNAPSHOT_BYTES_MAX / CHUNK_BYTES as u64) * 32 + (4 << 20);

const ZSTD_LEVEL: i32 = 1;
pub(super) const HEADER_BYTES: usize = 64;
const TRAILER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"QUORSNAP";
const END_MAGIC: [u8; 8] = *b"QUOREND\n";

/// What stands between the sections and the trailer, as CBOR.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotIndex {
    pub(super) meta: SnapshotMeta,
    /// Compressed bytes of the state, which begins behind the header.
    pub(super) state_bytes: u64,
    /// Compressed bytes of the session table, which begins behind the state.
    pub(super) sessions_bytes: u64,
    /// SHA-256 of each [`CHUNK_BYTES`] of the file from its beginning to where this index begins, end to end.
    #[serde(with = "serde_bytes")]
    pub(super) chunks: Vec<u8>,
}

/// The snapshots of a server. Clones are the same store; it may be used from several threads.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Arc<dyn FileSystem>,
    directory: PathBuf,
    identity: Identity,
    /// The whole ones, oldest first.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    metas: Vec<SnapshotMeta>,
    temporary_ever: u64,
    /// What has come of a peer's file.
    part: Option<PathBuf>,
    /// Counts what was begun to be received; only the last may write.
    receiving: u64,
}

impl SnapshotStore {
    /// Opens the store: removes what interrupted writes left, keeps the newest part of a peer's file, and reads every snapshot
    /// through once to check it. A damaged one is passed over with an error in the log, and goes when the next is written.
    ///
    /// # Errors
    /// `Foreign` and `Newer`, with nothing changed; `Io`.
    pub fn open(dir: &DataDir, identity: Identity) -> Result<Self, DiskError> {
        let (files, directory) = (Arc::clone(dir.files()), dir.snapshots_path());
        // A name that was given just before the process ended may not be durable: the log must not restart behind such a snapshot.
        files::sync_directory(&*files, &directory)?;
        let (mut metas, mut parts) = (Vec::new(), Vec::new());
        for (name, path) in files::list(&*files, &directory)? {
            match name.rsplit_once('.') {
                Some((_, "tmp")) => files::remove(&*files, &path)?,
                Some((_, "part")) => parts.push(path),
                Some((_, "snap")) => {
                    let file = files::open(&*files, &path, Open::Read)?;
                    let whole = SnapshotFile::new(file, path.clone(), Some(&identity))
                        .and_then(|file| file.check_chunks(&mut |_| ()).map(|()| file.meta().clone()));
                    match whole {
                        Ok(meta) if path == snapshot_path(&directory, &meta.tail) => metas.push(meta),
                        Ok(_) => tracing::error!(path = %path.display(), "snapshot is named as another; passed over"),
                        Err(error @ DiskError::Damaged { .. }) => tracing::error!(%error, "snapshot passed over"),
                        Err(error) => return Err(error),
                    }
                }
                _ => {}
            }
        }
        metas.sort_by_key(|meta| meta.tail.run);
        // Names sort as their runs do.
        let part = parts.pop().filter(|part| metas.last().is_none_or(|newest| *part > snapshot_path(&directory, &newest.tail)));
        let kept = Mutex::new(Kept { metas, part, ..Kept::default() });
        let store = Self { inner: Arc::new(Inner { files, directory, identity, kept }) };
        store.tidy(&store.kept(), "part")?;
        Ok(store)
    }

    /// The newest whole snapshot.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotMeta> {
        self.kept().metas.last().cloned()
    }

    /// The oldest whole snapshot that is kept. Trim the log below this one, so that it can stand in for the newest.
    #[must_use]
    pub fn oldest(&self) -> Option<SnapshotMeta> {
        self.kept().metas.first().cloned()
    }

    /// The whole snapshots, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<SnapshotMeta> {
        self.kept().metas.clone()
    }

    /// Writes a snapshot and returns its meta with both hashes. It blocks for as long as the disk takes; use a thread for it.
    ///
    /// # Errors
    /// `Io`, of the file or of the closures: nothing is left of it. `Foreign` if `meta` is of another history.
    pub fn write(
        &self,
        meta: SnapshotMeta,
        state: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        sessions: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<SnapshotMeta, DiskError> {
        let mut temporary = self.temporary(&meta.tail)?;
        check_identity(&temporary.path, &meta.identity, &self.inner.identity)?;
        let mut to = BufWriter::with_capacity(256 << 10, Stream::new(Arc::clone(&temporary.file), 0));
        let meta = write_snapshot(&mut to, meta, state, sessions)
            .and_then(|meta| to.flush().map(|()| meta))
            .at("write", &temporary.path)?;
        drop(to);
        if !mutant!("snapshot_without_sync") {
            files::sync_data(&*temporary.file, &temporary.path)?;
        }
        let meta = self.adopt(&temporary.path, meta)?;
        temporary.keep = true;
        Ok(meta)
    }

    /// The state of a snapshot, as its machine wrote it. Whoever reads it compares its hash with the meta's.
    ///
    /// # Errors
    /// `Io` if it is gone meanwhile; `Damaged`.
    pub fn open_state(&self, meta: &SnapshotMeta) -> Result<Box<dyn Read + Send>, DiskError> {
        self.open_section(meta, |index| (HEADER_BYTES as u64, index.state_bytes))
    }

    /// The session table of a snapshot, as it wrote itself. Whoever reads it compares its hash with the meta's.
    ///
    /// # Errors
    /// `Io` if it is gone meanwhile; `Damaged`.
    pub fn open_sessions(&self, meta: &SnapshotMeta) -> Result<Box<dyn Read + Send>, DiskError> {
        self.open_section(meta, |index| (HEADER_BYTES as u64 + index.state_bytes, index.sessions_bytes))
    }

    /// The whole file, for a peer. It can be read to its end even if it is removed meanwhile.
    ///
    /// # Errors
    /// `Io` if it is gone already; `Damaged`.
    pub fn open_file(&self, meta: &SnapshotMeta) -> Result<SnapshotFile, DiskError> {
        let path = snapshot_path(&self.inner.directory, &meta.tail);
        let file = files::open(&*self.inner.files, &path, Open::Read)?;
        SnapshotFile::new(file, path, Some(&self.inner.identity))
    }

    /// Reads a snapshot through again, as [`SnapshotStore::open`] does. A damaged one does not count any more from then on. It blocks for
    /// as long as the disk takes; use a thread for it.
    ///
    /// # Errors
    /// `Damaged`; `Io`.
    pub fn check(&self, meta: &SnapshotMeta) -> Result<(), DiskError> {
        let checked = self.open_file(meta).and_then(|file| file.check_chunks(&mut |_| ()));
        if let Err(DiskError::Damaged { .. }) = &checked {
            self.kept().metas.retain(|other| other.tail != meta.tail);
        }
        checked
    }

    /// Begins to take a peer's snapshot file of `total` bytes that is said to hold `meta` and to have this hash
    /// ([`SnapshotFile::hash`]), or goes on where an earlier attempt at the same file ended. What was being received before, or was
    /// left of another file, is given up.
    ///
    /// # Errors
    /// `Foreign` if it is of another history; `Damaged` if it is over [`SNAPSHOT_BYTES_MAX`]; `Io`.
    pub fn begin_receive(&self, meta: &SnapshotMeta, total: u64, hash: [u8; 32]) -> Result<Receiving, DiskError> {
        let name = hash
            .iter()
            .fold(format!("{:016x}-{:016x}-", meta.tail.run.0, meta.tail.term.0), |name, byte| name + &format!("{byte:02x}"));
        let path = self.inner.directory.join(name + ".part");
        check_identity(&path, &meta.identity, &self.inner.identity)?;
        if total > SNAPSHOT_BYTES_MAX {
            let why = format!("{total} bytes are over the limit of {SNAPSHOT_BYTES_MAX}");
            return Err(DiskError::Damaged { path, why });
        }
        let mut kept = self.kept();
        kept.receiving += 1;
        let again = kept.part.take().filter(|part| *part == path);
        let how = if again.is_some() { Open::Write } else { Open::New };
        kept.part = again;
        self.tidy(&kept, "part")?;
        let file = files::open(&*self.inner.files, &path, how)?;
        kept.part = Some(path.clone());
        let mut received = file.len().at("inspect", &path)?;
        if received > total {
            file.set_len(0).at("truncate", &path)?;
            received = 0;
        }
        Ok(Receiving { store: self.clone(), number: kept.receiving, file, path, hash, meta: meta.clone(), total, received })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self, tail: &Tail) -> Result<Temporary, DiskError> {
        let number = {
            let mut kept = self.kept();
            kept.temporary_ever += 1;
            kept.temporary_ever
        };
        let path = snapshot_path(&self.inner.directory, tail).with_extension(format!("{number}.tmp"));
        let files = Arc::clone(&self.inner.files);
        Ok(Temporary { file: files::open(&*files, &path, Open::New)?, files, path, keep: false })
    }

    /// Gives a whole, synced file its real name, and lets the oldest go.
    fn adopt(&self, from: &Path, meta: SnapshotMeta) -> Result<SnapshotMeta, DiskError> {
        // Held over the rename: two that end at once keep the same two.
        let mut kept = self.kept();
        let name = snapshot_path(&self.inner.directory, &meta.tail);
        files::rename(&*self.inner.files, from, &name)?;
        kept.metas.retain(|other| other.tail.run != meta.tail.run || other.tail.term != meta.tail.term);
        kept.metas.push(meta.clone());
        kept.metas.sort_by_key(|meta| meta.tail.run);
        // Names sort as their runs do.
        kept.part = kept.part.take().filter(|part| *part > name);
        let excess = kept.metas.len().saturating_sub(KEPT);
        kept.metas.drain(..excess);
        self.tidy(&kept, "snap")?;
        self.tidy(&kept, "part")?;
        Ok(meta)
    }

    /// Removes the files of this kind that do not count.
    fn tidy(&self, kept: &Kept, kind: &str) -> Result<(), DiskError> {
        let directory = &self.inner.directory;
        for (_, path) in files::list(&*self.inner.files, directory)? {
            let counts =
                kept.part.as_ref() == Some(&path) || kept.metas.iter().any(|meta| snapshot_path(directory, &meta.tail) == path);
            if !counts && path.extension().is_some_and(|extension| extension == kind) {
                files::remove(&*self.inner.files, &path)?;
            }
        }
        Ok(())
    }

    fn open_section(
        &self,
        meta: &SnapshotMeta,
        place: impl FnOnce(&SnapshotIndex) -> (u64, u64),
    ) -> Result<Box<dyn Read + Send>, DiskError> {
        let path = snapshot_path(&self.inner.directory, &meta.tail);
        let file = files::open(&*self.inner.files, &path, Open::Read)?;
        let ReadIndex { index, .. } = read_index(&*file, &path, Some(&self.inner.identity))?;
        let (at, bytes) = place(&index);
        Ok(Box::new(section(&file, at, bytes).at("read", &path)?))
    }
}

/// A snapshot that is coming in from a peer. Dropped before [`Receiving::finish`], what has come stays for the next attempt.
#[derive(Debug)]
pub struct Receiving {
    store: SnapshotStore,
    number: u64,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    hash: [u8; 32],
    meta: SnapshotMeta,
    total: u64,
    received: u64,
}

impl Receiving {
    /// How many bytes have come: the offset of those that come next.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes. It blocks for as long as the disk takes; use a thread for it.
    ///
    /// # Errors
    /// `Damaged` if they go past the total, or another transfer has begun since: nothing was taken. `Io`.
    pub fn write(&mut self, chunks: &[Bytes]) -> Result<(), DiskError> {
        self.check_current()?;
        let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if bytes > self.total - self.received {
            return Err(self.damaged(format!("{bytes} bytes came when {} of {} were there", self.received, self.total)));
        }
        let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        files::write_slices_at(&*self.file, &self.path, &mut slices, self.received)?;
        self.received += bytes;
        Ok(())
    }

    /// Checks the file through, every hash of it and that it holds what was said, and makes it the store's, durably. It blocks for as
    /// long as the disk takes; use a thread for it.
    ///
    /// # Errors
    /// `Damaged`: what is good of it, up to the first bad chunk, stays for the next attempt. `Foreign`, `Newer`: nothing stays. `Io`.
    pub fn finish(self) -> Result<SnapshotMeta, DiskError> {
        self.check_current()?;
        files::sync_data(&*self.file, &self.path)?;
        match self.good_bytes() {
            Ok(None) => self.store.adopt(&self.path, self.meta.clone()),
            Ok(Some(good)) => {
                self.file.set_len(good).at("truncate", &self.path)?;
                Err(self.damaged(format!("the MiB at byte {good} does not have its hash")))
            }
            Err(error @ DiskError::Io { .. }) => Err(error),
            Err(error) => {
                self.store.kept().part = None;
                files::remove(&*self.store.inner.files, &self.path)?;
                Err(error)
            }
        }
    }

    /// How much is good of a file that is otherwise what was announced, if not all.
    fn good_bytes(&self) -> Result<Option<u64>, DiskError> {
        let file = SnapshotFile::new(Arc::clone(&self.file), self.path.clone(), Some(&self.store.inner.identity))?;
        if (file.hash(), file.meta()) != (self.hash, &self.meta) {
            let tail = &file.meta().tail;
            return Err(self.damaged(format!("it holds run {} of term {}, or not what was announced", tail.run, tail.term)));
        }
        let bad = file.bad_chunk(&mut |_| ())?;
        if bad.is_none() {
            file.check_sections(&mut |_| ())?;
        }
        Ok(bad)
    }

    fn check_current(&self) -> Result<(), DiskError> {
        let current = self.store.kept().receiving == self.number;
        if current { Ok(()) } else { Err(self.damaged("another transfer has begun since".into())) }
    }

    fn damaged(&self, why: String) -> DiskError {
        DiskError::Damaged { path: self.path.clone(), why }
    }
}

/// A file under a temporary name, removed unless it gets a real one.
#[derive(Debug)]
struct Temporary {
    files: Arc<dyn FileSystem>,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Opening the store removes it otherwise.
            let _ = self.files.remove(&self.path);
        }
    }
}

/// Hashes what passes, a chunk at a time.
pub(super) struct Chunked<W> {
    to: W,
    hash: Sha256,
    chunks: Vec<u8>,
    bytes: u64,
}

impl<W> Chunked<W> {
    /// Hashes what is written to `to`.
    pub(super) fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), chunks: Vec::new(), bytes: 0 }
    }

    /// The hashes, end to end.
    pub(super) fn finish(mut self) -> (W, Vec<u8>) {
        if !self.bytes.is_multiple_of(CHUNK_BYTES as u64) {
            self.chunks.extend_from_slice(&self.hash.finalize());
        }
        (self.to, self.chunks)
    }
}

impl<W: Write> Write for Chunked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - (self.bytes % CHUNK_BYTES as u64) as usize;
        let written = self.to.write(bytes.get(..room).unwrap_or(bytes))?;
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes += written as u64;
        if written == room {
            self.chunks.extend_from_slice(&self.hash.finalize_reset());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a snapshot from its header to its trailer, never going back, and returns its meta with both hashes.
pub(crate) fn write_snapshot(
    to: &mut impl Write,
    mut meta: SnapshotMeta,
    state: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    sessions: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<SnapshotMeta> {
    let mut to = Chunked::new(to);
    to.write_all(&encode_header(&meta))?;
    meta.state_hash = write_section(&mut to, state)?;
    let state_bytes = to.bytes - HEADER_BYTES as u64;
    meta.sessions_hash = write_section(&mut to, sessions)?;
    let sessions_bytes = to.bytes - HEADER_BYTES as u64 - state_bytes;

    let at = to.bytes;
    let (to, chunks) = to.finish();
    let index = SnapshotIndex { meta, state_bytes, sessions_bytes, chunks };
    let mut bytes = Vec::new();
    ciborium::into_writer(&index, &mut bytes).map_err(io::Error::other)?;
    to.write_all(&bytes)?;
    to.write_all(&encode_trailer(at, &bytes))?;
    Ok(index.meta)
}

/// Writes one section and returns the hash of what is in it, uncompressed.
fn write_section(to: &mut impl Write, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<[u8; 32]> {
    let mut encoder = zstd::Encoder::new(to, ZSTD_LEVEL)?;
    let mut hashing = BufWriter::with_capacity(64 << 10, Hashing::new(&mut encoder));
    content(&mut hashing)?;
    let hash = hashing.into_inner().map_err(io::IntoInnerError::into_error)?.finish();
    encoder.finish()?;
    Ok(hash)
}

pub(super) fn section(
    file: &Arc<dyn DiskFile>,
    at: u64,
    bytes: u64,
) -> io::Result<zstd::Decoder<'static, BufReader<io::Take<Stream>>>> {
    zstd::Decoder::new(Stream::new(Arc::clone(file), at).take(bytes))
}

pub(super) fn snapshot_path(directory: &Path, tail: &Tail) -> PathBuf {
    directory.join(format!("{:016x}-{:016x}.snap", tail.run.0, tail.term.0))
}

fn encode_header(meta: &SnapshotMeta) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&SNAPSHOT_FORMAT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
    header[16..32].copy_from_slice(&meta.identity.cluster.0);
    header[32..36].copy_from_slice(&meta.identity.epoch.0.to_le_bytes());
    header[36..38].copy_from_slice(&meta.identity.room.0.to_le_bytes());
    header[40..48].copy_from_slice(&meta.tail.run.0.to_le_bytes());
    header[48..56].copy_from_slice(&meta.tail.term.0.to_le_bytes());
    seal(&mut header);
    header
}

fn encode_trailer(index_at: u64, index: &[u8]) -> [u8; TRAILER_BYTES] {
    let mut trailer = [0; TRAILER_BYTES];
    trailer[0..8].copy_from_slice(&END_MAGIC);
    trailer[8..16].copy_from_slice(&index_at.to_le_bytes());
    trailer[16..24].copy_from_slice(&(index.len() as u64).to_le_bytes());
    trailer[24..56].copy_from_slice(&Sha256::digest(index));
    seal(&mut trailer);
    trailer
}

fn seal(block: &mut [u8; 64]) {
    let crc = crc32c::crc32c(&block[..60]);
    block[60..].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(block: &[u8; 64]) -> bool {
    crc32c::crc32c(&block[..60]).to_le_bytes() == block[60..]
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn check_identity(path: &Path, found: &Identity, expected: &Identity) -> Result<(), DiskError> {
    if found == expected {
        return Ok(());
    }
    let name = |identity: &Identity| format!("cluster {}, epoch {}, room {}", identity.cluster, identity.epoch, identity.room);
    Err(DiskError::Foreign { path: path.into(), found: name(found), expected: name(expected) })
}

/// What stands behind a file's sections.
pub(super) struct ReadIndex {
    pub(super) index: SnapshotIndex,
    /// Where it begins, and the sections end.
    pub(super) at: u64,
    /// SHA-256 of its bytes, and so of the whole file.
    pub(super) hash: [u8; 32],
    /// The file's.
    pub(super) bytes: u64,
}

/// Reads and checks header, trailer and index, which must be `identity`'s where that is given; the
/// sections are not looked at.
pub(super) fn read_index(file: &dyn DiskFile, path: &Path, identity: Option<&Identity>) -> Result<ReadIndex, DiskError> {
    let damaged = |why: &str| DiskError::Damaged { path: path.into(), why: why.into() };
    let bytes = file.len().at("inspect", path)?;
    if bytes < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(damaged("it is too short"));
    }
    let header: [u8; HEADER_BYTES] = read_block(file, path, 0)?;
    if header[..8] != MAGIC || !is_sealed(&header) {
        return Err(damaged("its header does not check"));
    }
    let version = number(&header[8..12]) as u32;
    if version != SNAPSHOT_FORMAT_VERSION || number(&header[12..16]) != CHUNK_BYTES as u64 {
        return Err(DiskError::Newer { path: path.into(), found: version, known: SNAPSHOT_FORMAT_VERSION });
    }
    let mut cluster = [0; 16];
    cluster.copy_from_slice(&header[16..32]);
    let (epoch, room) = (Epoch(number(&header[32..36]) as u32), RoomId(number(&header[36..38]) as u16));
    let found = Identity { cluster: ClusterId(cluster), epoch, room };
    check_identity(path, &found, identity.unwrap_or(&found))?;

    let trailer_at = bytes - TRAILER_BYTES as u64;
    let trailer: [u8; TRAILER_BYTES] = read_block(file, path, trailer_at)?;
    let (at, index_bytes) = (number(&trailer[8..16]), number(&trailer[16..24]));
    if trailer[..8] != END_MAGIC || !is_sealed(&trailer) || at.checked_add(index_bytes) != Some(trailer_at) {
        return Err(damaged("its trailer does not check"));
    }
    if index_bytes > INDEX_BYTES_MAX {
        return Err(damaged("its index is over the limit"));
    }
    let index = files::read_at(file, at, index_bytes as usize).at("read", path)?;
    let hash = <[u8; 32]>::from(Sha256::digest(&index));
    if hash[..] != trailer[24..56] {
        return Err(damaged("its index's hash does not match"));
    }
    let index: SnapshotIndex = ciborium::from_reader(index.as_ref()).map_err(|error| damaged(&error.to_string()))?;
    let sections = (HEADER_BYTES as u64).checked_add(index.state_bytes).and_then(|end| end.checked_add(index.sessions_bytes));
    if sections != Some(at) || index.chunks.len() as u64 != at.div_ceil(CHUNK_BYTES as u64) * 32 {
        return Err(damaged("its index does not fit its sections"));
    }
    check_identity(path, &index.meta.identity, &found)?;
    let named = (RunIndex(number(&header[40..48])), Term(number(&header[48..56])));
    if named != (index.meta.tail.run, index.meta.tail.term) {
        return Err(damaged("header and index name different runs"));
    }
    Ok(ReadIndex { index, at, hash, bytes })
}

/// Reads a block; one that the file is too short for is zeros, which no checksum matches.
fn read_block<const BYTES: usize>(file: &dyn DiskFile, path: &Path, at: u64) -> Result<[u8; BYTES], DiskError> {
    Ok(files::read_at(file, at, BYTES).at("read", path)?.as_ref().try_into().unwrap_or([0; BYTES]))
}
