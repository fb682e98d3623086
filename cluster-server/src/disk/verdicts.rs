//! The verdict bits of the runs that the log keeps below the newest snapshot. What was applied since then is applied again at a start,
//! and gives its bits anew; what lies before is in these files, one for each stretch between two snapshots, synced before the snapshot
//! that covers it has its name.
//!
//! A file is believed as a whole or not at all, and the files count only as far back as they lead without a gap from the newest
//! snapshot: bits that are missing are never guessed, the runs are just not served to clients any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;
use voter_mesh::ids::{ClusterId, Epoch, Identity, LogIndex, RoomId};
use voter_mesh::verdicts::{VerdictBook, span_bytes};

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{FileSystem, Open};
use super::files;

/// The version of the format that this code writes. It reads no newer one.
const VERDICTS_FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"QUORVERD";
const HEADER_BYTES: usize = 64;
/// Bytes of bits before each checksum.
const BLOCK_BYTES: usize = 4092;

/// The verdict files of a server. Clones are the same store; it may be used from several threads.
#[derive(Clone, Debug)]
pub struct VerdictStore {
    files: Arc<dyn FileSystem>,
    directory: PathBuf,
    identity: Identity,
}

impl VerdictStore {
    /// Opens the store and reads what leads without a gap to `through`, the newest snapshot's last entry. All other files go: they
    /// are damaged, behind a gap, or hold what is about to be applied again. The book holds at most `bytes_max` bytes of bits.
    ///
    /// # Errors
    /// `Foreign` and `Newer`, with nothing changed; `Io`.
    pub fn open(dir: &DataDir, identity: Identity, through: LogIndex, bytes_max: usize) -> Result<(Self, VerdictBook), DiskError> {
        let store = Self { files: Arc::clone(dir.files()), directory: dir.verdicts_path(), identity };
        let (mut found, mut void) = (Vec::new(), Vec::new());
        for (name, path) in files::list(&*store.files, &store.directory)? {
            if name.ends_with(".tmp") {
                void.push(path);
                continue;
            }
            match store.read(&path, bytes_max) {
                Ok(file) => found.push((file, path)),
                Err(error @ DiskError::Damaged { .. }) => {
                    warn!(%error, "verdicts passed over: runs before them are not served to clients");
                    void.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        found.sort_by_key(|(file, _)| file.through);
        let (mut after, mut chain) = (through, Vec::new());
        for (file, path) in found.into_iter().rev() {
            if file.through == after && file.after < after {
                after = file.after;
                chain.push(file);
            } else {
                void.push(path);
            }
        }
        for path in void {
            files::remove(&*store.files, &path)?;
        }
        let mut book = VerdictBook::new(after, bytes_max);
        for file in chain.into_iter().rev() {
            // Its length was compared with its range when it was read.
            let _ = book.append(file.through, &file.bits);
        }
        Ok((store, book))
    }

    /// What is wrong with the files of a server, each read through. Nothing is changed.
    ///
    /// # Errors
    /// `Foreign`, `Newer`, `Io`.
    pub fn check(dir: &DataDir, identity: Identity, bytes_max: usize) -> Result<Vec<DiskError>, DiskError> {
        let store = Self { files: Arc::clone(dir.files()), directory: dir.verdicts_path(), identity };
        let mut damaged = Vec::new();
        for (_, path) in files::list(&*store.files, &store.directory)?.into_iter().filter(|(name, _)| name.ends_with(".bits")) {
            match store.read(&path, bytes_max) {
                Err(error @ DiskError::Damaged { .. }) => damaged.push(error),
                result => drop(result?),
            }
        }
        Ok(damaged)
    }

    /// Writes the bits of the entries behind `after` up to `through`, as [`VerdictBook::copy`] gives them, durably. It blocks for as
    /// long as the disk takes; use a thread for it.
    ///
    /// # Errors
    /// `Io`: nothing is left of it that would be believed.
    pub fn write(&self, after: LogIndex, through: LogIndex, bits: &[u8]) -> Result<(), DiskError> {
        let path = self.path(after, through);
        files::replace(&*self.files, &path, &encode(&self.identity, after, through, bits))
    }

    /// Removes the files that hold no entry at or behind `first`.
    ///
    /// # Errors
    /// `Io`: some may be gone.
    pub fn trim(&self, first: LogIndex) -> Result<(), DiskError> {
        for (_, path) in files::list(&*self.files, &self.directory)? {
            if range(&path).is_some_and(|(_, through)| through < first) {
                files::remove(&*self.files, &path)?;
            }
        }
        Ok(())
    }

    fn path(&self, after: LogIndex, through: LogIndex) -> PathBuf {
        self.directory.join(format!("{:016x}-{:016x}.bits", after.0, through.0))
    }

    fn read(&self, path: &Path, bytes_max: usize) -> Result<VerdictFile, DiskError> {
        let damaged = |why: &str| DiskError::Damaged { path: path.into(), why: why.into() };
        let Some((after, through)) = range(path).filter(|(after, through)| self.path(*after, *through) == path) else {
            return Err(damaged("it is not named as verdicts are"));
        };
        let file = files::open(&*self.files, path, Open::Read)?;
        let bits_bytes = span_bytes(after, through);
        let whole = HEADER_BYTES + bits_bytes + bits_bytes.div_ceil(BLOCK_BYTES) * 4;
        if bits_bytes > bytes_max {
            return Err(damaged("it is over the limit"));
        }
        // One more than there should be.
        let bytes = files::read_at(&*file, 0, whole + 1).at("read", path)?;
        decode(&bytes, path, &self.identity, after, through)
    }
}

/// What a file holds.
struct VerdictFile {
    after: LogIndex,
    through: LogIndex,
    bits: Vec<u8>,
}

/// The entries that a file's name speaks of.
fn range(path: &Path) -> Option<(LogIndex, LogIndex)> {
    let (after, through) = path.file_name()?.to_str()?.strip_suffix(".bits")?.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok().map(LogIndex);
    Some((number(after)?, number(through)?))
}

fn encode(identity: &Identity, after: LogIndex, through: LogIndex, bits: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + bits.len() + bits.len().div_ceil(BLOCK_BYTES) * 4);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERDICTS_FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(&identity.cluster.0);
    bytes.extend_from_slice(&identity.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&identity.room.0.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&after.0.to_le_bytes());
    bytes.extend_from_slice(&through.0.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let header_crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&header_crc.to_le_bytes());
    for (number, block) in bits.chunks(BLOCK_BYTES).enumerate() {
        bytes.extend_from_slice(block);
        bytes.extend_from_slice(&block_crc(header_crc, number, block).to_le_bytes());
    }
    bytes
}

/// A block's checksum is that of its place in this very file, too.
fn block_crc(header_crc: u32, number: usize, block: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(header_crc, &(number as u32).to_le_bytes());
    crc32c::crc32c_append(place, block)
}

fn decode(bytes: &[u8], path: &Path, identity: &Identity, after: LogIndex, through: LogIndex) -> Result<VerdictFile, DiskError> {
    let damaged = |why: &str| DiskError::Damaged { path: path.into(), why: why.into() };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let Some((header, blocks)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Err(damaged("it is too short")) };
    let header_crc = crc32c::crc32c(&header[..60]);
    if header[..8] != MAGIC || number(&header[60..]) != u64::from(header_crc) {
        return Err(damaged("its header does not check"));
    }
    let version = number(&header[8..12]) as u32;
    if version != VERDICTS_FORMAT_VERSION || number(&header[12..16]) != BLOCK_BYTES as u64 {
        return Err(DiskError::Newer { path: path.into(), found: version, known: VERDICTS_FORMAT_VERSION });
    }
    let mut cluster = [0; 16];
    cluster.copy_from_slice(&header[16..32]);
    let (epoch, room) = (Epoch(number(&header[32..36]) as u32), RoomId(number(&header[36..38]) as u16));
    let found = Identity { cluster: ClusterId(cluster), epoch, room };
    if found != *identity {
        let name = |identity: &Identity| format!("cluster {}, epoch {}, room {}", identity.cluster, identity.epoch, identity.room);
        return Err(DiskError::Foreign { path: path.into(), found: name(&found), expected: name(identity) });
    }
    if (number(&header[40..48]), number(&header[48..56])) != (after.0, through.0) {
        return Err(damaged("it is named as another"));
    }
    let mut bits = Vec::with_capacity(blocks.len());
    for (number, block) in blocks.chunks(BLOCK_BYTES + 4).enumerate() {
        match block.split_last_chunk::<4>() {
            Some((block, crc)) if block_crc(header_crc, number, block) == u32::from_le_bytes(*crc) => bits.extend_from_slice(block),
            _ => return Err(damaged(&format!("block {number} does not have its checksum"))),
        }
    }
    if bits.len() != span_bytes(after, through) {
        return Err(damaged("it is too short or too long"));
    }
    Ok(VerdictFile { after, through, bits })
}
