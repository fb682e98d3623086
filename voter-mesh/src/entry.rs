//! One entry: a command or an internal record, laid out once by the server that takes it and immutable from then on.
//!
//! An entry carries no term, index or time: those belong to the run that seals it, so the same bytes can be proposed again under
//! another leader. All integers are little-endian.
//!
//! ```text
//!  0  u32  payload length          20  u64  opening
//!  4  u32  payload CRC32C          28  u64  request id
//!  8  u8   kind                    36  u64  floor
//!  9  u8   flags (0)               44  u32  CRC32C of bytes 0..44
//! 10  u16  room                    48  payload
//! 12  u64  session
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::ids::{Opening, RequestId, RoomId, SessionId};

#[cfg(test)]
mod tests;

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 48;

/// Bytes of payload that one entry may carry: the client protocol's message limit less room for its envelope.
pub const PAYLOAD_BYTES_MAX: usize = (1 << 20) - 1024;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// An application's command.
    Command = 1,
    /// Opens a session; the payload is the SHA-256 of its secret.
    SessionOpen = 2,
    /// A later opening of a session's journal; the payload is a [`crate::session::AttachPayload`].
    SessionAttach = 3,
    /// Ends a session; the payload is a [`crate::session::EndPayload`].
    SessionEnd = 4,
    /// A configuration; always alone in its run.
    Config = 5,
    /// Nothing: a new leader's first entry.
    Noop = 6,
}

impl EntryKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Command,
            2 => Self::SessionOpen,
            3 => Self::SessionAttach,
            4 => Self::SessionEnd,
            5 => Self::Config,
            6 => Self::Noop,
            _ => return None,
        })
    }
}

/// An entry's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// Bytes of payload behind the header.
    pub payload_bytes: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// What the entry is.
    pub kind: EntryKind,
    /// The room it belongs to.
    pub room: RoomId,
    /// The session it belongs to; 0 for entries of no session.
    pub session: SessionId,
    /// The opening of the session's journal that proposed it; 0 for entries of no session.
    pub opening: Opening,
    /// The request id; 0 for internal records.
    pub request: RequestId,
    /// All lower request ids of the session are answered or given up.
    pub floor: RequestId,
    /// CRC32C of the header itself.
    pub header_crc: u32,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EntryError {
    /// The bytes end before the header or the payload does.
    #[error("entry is truncated")]
    Truncated,
    /// The header's checksum does not match.
    #[error("entry header checksum does not match")]
    HeaderChecksum,
    /// The payload's checksum does not match.
    #[error("entry payload checksum does not match")]
    PayloadChecksum,
    /// The kind is none of ours (a newer version's, or damage that the checksum missed).
    #[error("entry kind {0} is unknown")]
    Kind(u8),
    /// Flags that this version does not know.
    #[error("entry flags {0:#x} are unknown")]
    Flags(u8),
    /// The payload is over [`PAYLOAD_BYTES_MAX`].
    #[error("entry payload of {0} bytes is over the limit")]
    TooLarge(u32),
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl EntryHeader {
    /// Decodes and checks the header at the front of `bytes`; the payload is not looked at.
    ///
    /// # Errors
    /// Any [`EntryError`] except `PayloadChecksum`.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        match bytes.get(..ENTRY_HEADER_BYTES) {
            Some(head) if crc32c::crc32c(&head[..44]) != u32_at(head, 44) => Err(EntryError::HeaderChecksum),
            _ => Self::decode_verified(bytes),
        }
    }

    /// As [`EntryHeader::decode`] of a header whose checksum was verified before.
    fn decode_verified(bytes: &[u8]) -> Result<Self, EntryError> {
        let Some(head) = bytes.first_chunk::<ENTRY_HEADER_BYTES>() else { return Err(EntryError::Truncated) };
        let kind = EntryKind::from_byte(head[8]).ok_or(EntryError::Kind(head[8]))?;
        if head[9] != 0 {
            return Err(EntryError::Flags(head[9]));
        }
        let payload_bytes = u32_at(head, 0);
        if payload_bytes as usize > PAYLOAD_BYTES_MAX {
            return Err(EntryError::TooLarge(payload_bytes));
        }
        Ok(Self {
            payload_bytes,
            payload_crc: u32_at(head, 4),
            kind,
            room: RoomId(u16_at(head, 10)),
            session: SessionId(u64_at(head, 12)),
            opening: Opening(u64_at(head, 20)),
            request: RequestId(u64_at(head, 28)),
            floor: RequestId(u64_at(head, 36)),
            header_crc: u32_at(head, 44),
        })
    }

    /// Bytes of the whole entry, header and payload.
    #[must_use]
    pub const fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.payload_bytes as usize
    }
}

/// What is needed to lay out an entry, besides its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntrySpec {
    /// What the entry is.
    pub kind: EntryKind,
    /// The room it belongs to.
    pub room: RoomId,
    /// The session, or 0.
    pub session: SessionId,
    /// The opening, or 0.
    pub opening: Opening,
    /// The request id, or 0.
    pub request: RequestId,
    /// The session's floor, or 0.
    pub floor: RequestId,
}

impl EntrySpec {
    /// An entry of no session.
    #[must_use]
    pub const fn internal(kind: EntryKind) -> Self {
        Self { kind, room: RoomId(0), session: SessionId(0), opening: Opening(0), request: RequestId(0), floor: RequestId(0) }
    }
}

/// Lays an entry out at the end of `to`.
///
/// # Errors
/// [`EntryError::TooLarge`] if the payload is over [`PAYLOAD_BYTES_MAX`]; `to` is then unchanged.
pub fn put_entry(to: &mut BytesMut, spec: &EntrySpec, payload: &[u8]) -> Result<(), EntryError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(EntryError::TooLarge(u32::try_from(payload.len()).unwrap_or(u32::MAX)));
    }
    let mut head = [0_u8; ENTRY_HEADER_BYTES];
    head[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[4..8].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    head[8] = spec.kind as u8;
    head[10..12].copy_from_slice(&spec.room.0.to_le_bytes());
    head[12..20].copy_from_slice(&spec.session.0.to_le_bytes());
    head[20..28].copy_from_slice(&spec.opening.0.to_le_bytes());
    head[28..36].copy_from_slice(&spec.request.0.to_le_bytes());
    head[36..44].copy_from_slice(&spec.floor.0.to_le_bytes());
    let crc = crc32c::crc32c(&head[..44]);
    head[44..48].copy_from_slice(&crc.to_le_bytes());
    to.reserve(ENTRY_HEADER_BYTES + payload.len());
    to.put_slice(&head);
    to.put_slice(payload);
    Ok(())
}

/// Lays out one entry by itself.
///
/// # Errors
/// As [`put_entry`].
pub fn entry(spec: &EntrySpec, payload: &[u8]) -> Result<Bytes, EntryError> {
    let mut bytes = BytesMut::new();
    put_entry(&mut bytes, spec, payload)?;
    Ok(bytes.freeze())
}

/// An entry inside a larger buffer, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRef<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// Its payload.
    pub payload: &'a [u8],
    /// Header and payload as they travel.
    pub bytes: &'a [u8],
}

/// Walks entries laid end to end, checking header and payload checksums or trusting them. Stops after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    verify: bool,
}

impl<'a> Entries<'a> {
    /// Entries that come from outside: every checksum is verified.
    #[must_use]
    pub const fn checked(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, verify: true }
    }

    /// Entries whose checksums this process has verified before (they are inside a [`crate::run::Run`]).
    #[must_use]
    pub const fn verified(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, verify: false }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<EntryRef<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = if self.verify { EntryHeader::decode(self.rest) } else { EntryHeader::decode_verified(self.rest) };
        let item = header.and_then(|header| {
            let bytes = self.rest.get(..header.entry_bytes()).ok_or(EntryError::Truncated)?;
            let payload = &bytes[ENTRY_HEADER_BYTES..];
            if self.verify && crc32c::crc32c(payload) != header.payload_crc {
                return Err(EntryError::PayloadChecksum);
            }
            Ok(EntryRef { header, payload, bytes })
        });
        self.rest = match &item {
            Ok(entry) => &self.rest[entry.bytes.len()..],
            Err(_) => &[],
        };
        Some(item)
    }
}
