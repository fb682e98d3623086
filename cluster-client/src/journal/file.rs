//! A journal in a file that only grows, and is rewritten when most of it is void.
//!
//! ```text
//! 0  8 bytes  "QRJRNL02"
//! then records:  u32 length | u32 CRC32C of the body | body
//! a body is one of `record`'s, or a mark:  0 | u64 offset    all before this offset was durable when the mark was written
//! ```
//!
//! A crash can leave any part of what was not synced, with holes in it: the file is cut at the first bad record, because nothing was
//! confirmed of what is behind. But a bad record before an offset that a later mark names was confirmed once: that is damage, and
//! refused, because ids that it named could be issued again. What is found at opening is synced before anything is built on it: the
//! process that wrote it may have been killed before it could. The lock lies beside the file (`.lock`), so that it outlives the file's
//! replacement. A file of version 1, which has no marks, is refused where a bad record has good ones behind it, and rewritten.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::record::Record;
use super::{JournalError, JournalFile, JournalFiles, JournalStore};

const MAGIC: &[u8; 8] = b"QRJRNL02";
const MAGIC_1: &[u8; 8] = b"QRJRNL01";
const HEAD_BYTES: usize = 8;

/// Bytes of one record's body: a request of the largest payload, and room.
const RECORD_BYTES_MAX: usize = 2 << 20;

pub(super) struct FileStore {
    files: Arc<dyn JournalFiles>,
    path: PathBuf,
    file: Arc<dyn JournalFile>,
    /// Where the next record goes.
    end: u64,
    /// All before this is durable.
    synced: u64,
    /// What the last mark says of it.
    marked: u64,
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

/// A mark's body: a kind that no record has, and the offset.
fn mark(synced: u64) -> [u8; 9] {
    let mut body = [0; 9];
    body[1..].copy_from_slice(&synced.to_le_bytes());
    body
}

/// What a body says if it is a mark.
fn marked(body: &[u8]) -> Option<u64> {
    let (&kind, offset) = body.split_first()?;
    (kind == 0).then_some(u64::from_le_bytes(offset.try_into().ok()?))
}

impl FileStore {
    /// Opens or creates the file, having locked it.
    pub(super) fn open(files: Arc<dyn JournalFiles>, path: &Path) -> Result<Self, JournalError> {
        let lock = files.lock(&suffixed(path, ".lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => JournalError::JournalBusy(path.to_owned()),
            _ => JournalError::Io(error),
        })?;
        let file = files.open(path)?;
        Ok(Self { files, path: path.to_owned(), file, end: 0, synced: 0, marked: 0, _lock: lock })
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        self.files.sync_directory(directory.unwrap_or(Path::new(".")))
    }

    /// Makes the file durable as it is, up to its end and with its name.
    fn keep(&mut self, end: u64) -> io::Result<()> {
        self.file.sync()?;
        self.sync_directory()?;
        (self.end, self.synced) = (end, end);
        Ok(())
    }
}

impl JournalStore for FileStore {
    fn load(&mut self) -> Result<Vec<Bytes>, JournalError> {
        let bytes = Bytes::from(self.file.read()?);
        if bytes.len() <= MAGIC.len() && bytes.iter().zip(MAGIC).all(|(byte, magic)| *byte == *magic || *byte == 0) {
            // New, or torn while it was made: nothing was sent yet.
            self.file.write_at(MAGIC, 0)?;
            self.keep(MAGIC.len() as u64)?;
            return Ok(Vec::new());
        }
        let is_old = bytes.starts_with(MAGIC_1);
        if !is_old && !bytes.starts_with(MAGIC) {
            return Err(JournalError::Damaged { offset: 0 });
        }
        let (mut records, mut good) = (Vec::new(), MAGIC.len());
        while let Some(body) = unframe(&bytes[good..]) {
            if marked(body).is_none() {
                // What this version cannot read is left as it is: nothing is cut or rewritten behind its back.
                if Record::decode(body).is_none() {
                    return Err(JournalError::Damaged { offset: good as u64 });
                }
                records.push(bytes.slice_ref(body));
            }
            good += HEAD_BYTES + body.len();
        }
        let mut behind = (good + 1..bytes.len()).filter_map(|at| unframe(&bytes[at..]));
        if behind.any(|body| is_old || marked(body).is_some_and(|synced| synced > good as u64)) {
            return Err(JournalError::Damaged { offset: good as u64 });
        }
        if is_old {
            self.rewrite(&records)?;
        } else {
            self.file.set_len(good as u64)?;
            self.keep(good as u64)?;
        }
        Ok(records)
    }

    fn append(&mut self, records: &[Bytes], durable: bool) -> Result<(), JournalError> {
        let mut bytes = BytesMut::with_capacity(records.iter().map(|body| body.len() + HEAD_BYTES).sum());
        if self.synced > self.marked {
            frame(&mut bytes, &mark(self.synced));
            self.marked = self.synced;
        }
        for body in records {
            frame(&mut bytes, body);
        }
        self.file.write_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        if durable {
            self.file.sync()?;
            self.synced = self.end;
        }
        Ok(())
    }

    fn rewrite(&mut self, records: &[Bytes]) -> Result<(), JournalError> {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        for body in records {
            frame(&mut bytes, body);
        }
        // It has no name before it is durable, so it may say so itself.
        let end = (bytes.len() + HEAD_BYTES + mark(0).len()) as u64;
        frame(&mut bytes, &mark(end));
        let temporary = suffixed(&self.path, ".new");
        let file = self.files.open(&temporary)?;
        // One that was begun before a crash may lie there.
        file.set_len(0)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        self.files.rename(&temporary, &self.path)?;
        self.sync_directory()?;
        (self.file, self.end, self.synced, self.marked) = (file, end, end, end);
        Ok(())
    }
}
