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

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{JournalError, JournalFile, JournalFiles, JournalStore};

const MAGIC: &[u8; 8] = b"QRJRNL01";
const HEAD_BYTES: usize = 8;

/// Bytes of one record's body: a request of the largest payload, and room.
const RECORD_BYTES_MAX: usize = 2 << 20;

pub(super) struct FileStore {
    files: Arc<dyn JournalFiles>,
    path: PathBuf,
    file: Arc<dyn JournalFile>,
    /// Where the next record goes.
    end: u64,
    /// Held for its lock.
    _lock: Arc<dyn JournalFile>,
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
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
    pub(super) fn open(files: Arc<dyn JournalFiles>, path: &Path) -> Result<Self, JournalError> {
        let lock = files.lock(&suffixed(path, ".lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => JournalError::JournalBusy(path.to_owned()),
            _ => JournalError::Io(error),
        })?;
        let file = files.open(path)?;
        Ok(Self { files, path: path.to_owned(), file, end: 0, _lock: lock })
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        self.files.sync_directory(directory.unwrap_or(Path::new(".")))
    }
}

impl JournalStore for FileStore {
    fn load(&mut self) -> Result<Vec<Bytes>, JournalError> {
        let bytes = Bytes::from(self.file.read()?);
        if bytes.len() < MAGIC.len() {
            // New, or torn while it was made: nothing was sent yet.
            if !MAGIC.starts_with(&bytes) {
                return Err(JournalError::Damaged { offset: 0 });
            }
            self.file.write_at(MAGIC, 0)?;
            self.file.sync()?;
            self.sync_directory()?;
            self.end = MAGIC.len() as u64;
            return Ok(Vec::new());
        }
        if !bytes.starts_with(MAGIC) {
            return Err(JournalError::Damaged { offset: 0 });
        }
        let (mut records, mut good) = (Vec::new(), MAGIC.len());
        while let Some(body) = unframe(&bytes[good..]) {
            records.push(bytes.slice_ref(body));
            good += HEAD_BYTES + body.len();
        }
        if (good + 1..bytes.len()).any(|at| unframe(&bytes[at..]).is_some()) {
            return Err(JournalError::Damaged { offset: good as u64 });
        }
        self.end = good as u64;
        self.file.set_len(self.end)?;
        Ok(records)
    }

    fn append(&mut self, records: &[Bytes], durable: bool) -> Result<(), JournalError> {
        let mut bytes = BytesMut::with_capacity(records.iter().map(|body| body.len() + HEAD_BYTES).sum());
        for body in records {
            frame(&mut bytes, body);
        }
        self.file.write_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        if durable {
            self.file.sync()?;
        }
        Ok(())
    }

    fn rewrite(&mut self, records: &[Bytes]) -> Result<(), JournalError> {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        for body in records {
            frame(&mut bytes, body);
        }
        let temporary = suffixed(&self.path, ".new");
        let file = self.files.open(&temporary)?;
        // One that was begun before a crash may lie there.
        file.set_len(0)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        self.files.rename(&temporary, &self.path)?;
        self.sync_directory()?;
        (self.file, self.end) = (file, bytes.len() as u64);
        Ok(())
    }
}
