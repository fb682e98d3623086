//! A journal in a file that only grows, and is rewritten when most of it is void.
//!
//! ```text
//! 0  8 bytes  "QRJRNL01"
//! then records:  u32 length | u32 CRC32C of the body | body
//! ```
//!
//! A crash can leave an incomplete last record: it is cut, because nothing was sent that depends on it. A bad record with good ones
//! behind it is damage, and refused: ids that it named could be issued again. The lock lies beside the file (`.lock`), so that it
//! outlives the file's replacement.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes, BytesMut};
use rustix::fs::{FlockOperation, flock};

use super::{JournalError, JournalStore};

const MAGIC: &[u8; 8] = b"QRJRNL01";
const HEAD_BYTES: usize = 8;

/// Bytes of one record's body: a request of the largest payload, and room.
const RECORD_BYTES_MAX: usize = 2 << 20;

pub(super) struct FileStore {
    path: PathBuf,
    file: File,
    /// Held for its lock.
    _lock: File,
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    // The journal holds the session's secret.
    options.read(true).write(true).create(true).mode(0o600);
    options
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn frame(to: &mut BytesMut, body: &[u8]) {
    to.put_u32_le(body.len() as u32);
    to.put_u32_le(crc32c::crc32c(body));
    to.put_slice(body);
}

/// The body of the good record at the front.
fn unframe(bytes: &[u8]) -> Option<&[u8]> {
    let length = u32::from_le_bytes(*bytes.first_chunk::<4>()?) as usize;
    let crc = u32::from_le_bytes(*bytes.get(4..)?.first_chunk::<4>()?);
    let body = bytes.get(HEAD_BYTES..)?.get(..length).filter(|body| !body.is_empty() && body.len() <= RECORD_BYTES_MAX)?;
    (crc32c::crc32c(body) == crc).then_some(body)
}

impl FileStore {
    /// Opens or creates the file, having locked it.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let lock = private().truncate(false).open(suffixed(path, ".lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::JournalBusy(path.to_owned())),
            Err(error) => return Err(JournalError::Io(error.into())),
        }
        let file = private().truncate(false).open(path)?;
        Ok(Self { path: path.to_owned(), file, _lock: lock })
    }
}

impl JournalStore for FileStore {
    fn load(&mut self) -> Result<Vec<Bytes>, JournalError> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        let mut good = MAGIC.len();
        if bytes.len() < MAGIC.len() {
            // New, or torn while it was made: nothing was sent yet.
            if !MAGIC.starts_with(&bytes) {
                return Err(JournalError::Damaged { offset: 0 });
            }
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(MAGIC)?;
            self.file.sync_all()?;
            sync_directory(&self.path)?;
            return Ok(Vec::new());
        }
        if !bytes.starts_with(MAGIC) {
            return Err(JournalError::Damaged { offset: 0 });
        }
        let bytes = Bytes::from(bytes);
        let mut records = Vec::new();
        while let Some(body) = unframe(&bytes[good..]) {
            records.push(bytes.slice_ref(body));
            good += HEAD_BYTES + body.len();
        }
        if (good + 1..bytes.len()).any(|at| unframe(&bytes[at..]).is_some()) {
            return Err(JournalError::Damaged { offset: good as u64 });
        }
        self.file.set_len(good as u64)?;
        self.file.seek(SeekFrom::Start(good as u64))?;
        Ok(records)
    }

    fn append(&mut self, records: &[Bytes], durable: bool) -> Result<(), JournalError> {
        let mut bytes = BytesMut::with_capacity(records.iter().map(|body| body.len() + HEAD_BYTES).sum());
        for body in records {
            frame(&mut bytes, body);
        }
        self.file.write_all(&bytes)?;
        if durable {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn rewrite(&mut self, records: &[Bytes]) -> Result<(), JournalError> {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        for body in records {
            frame(&mut bytes, body);
        }
        let temporary = suffixed(&self.path, ".new");
        let mut file = private().truncate(true).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        sync_directory(&self.path)?;
        self.file = file;
        Ok(())
    }
}
