//! The first sector of a segment file.

use thiserror::Error;

use super::{SECTOR_BYTES, is_sealed, put_tail, seal, tail_at};
use crate::entry::{u32_at, u64_at};
use crate::ids::{ClusterId, Epoch, Identity, RaftId, RoomId};
use crate::run::Tail;

/// The version of the segment format that this code writes. It reads no newer one.
pub const LOG_FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"QUORLOG\n";

/// What a segment is to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SegmentKind {
    /// It goes on after run `before.run` of the segments before it; what they hold beyond that run is void.
    Continues = 1,
    /// The log begins anew here (it is the first, or follows a snapshot): all segments before it are void.
    Restarts = 2,
}

/// Whose segment it is and what it continues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// What it is to the segments before it.
    pub kind: SegmentKind,
    /// The history.
    pub identity: Identity,
    /// The life of the seat whose log this is.
    pub id: RaftId,
    /// Rises by one with each new segment; also the file's name.
    pub sequence: u64,
    /// The end of the log before this segment's first record: its first run is `before.run + 1`, its first entry `before.last + 1`.
    pub before: Tail,
}

/// Why a sector is not the header of a segment of this log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SegmentError {
    /// It does not begin as a segment does.
    #[error("not a segment of the log")]
    Magic,
    /// A newer version wrote it.
    #[error("segment format {found} is newer than {LOG_FORMAT_VERSION}, the newest that this version reads")]
    Newer {
        /// The file's version.
        found: u32,
    },
    /// The checksum does not match.
    #[error("segment header checksum does not match")]
    Checksum,
    /// The kind is none of ours.
    #[error("segment kind {0} is unknown")]
    Kind(u32),
}

impl SegmentHeader {
    /// The header's sector. See `docs/formats.md` for the drawing.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[0..8].copy_from_slice(&MAGIC);
        sector[8..12].copy_from_slice(&LOG_FORMAT_VERSION.to_le_bytes());
        sector[12..16].copy_from_slice(&(self.kind as u32).to_le_bytes());
        sector[16..32].copy_from_slice(&self.identity.cluster.0);
        sector[32..36].copy_from_slice(&self.identity.epoch.0.to_le_bytes());
        sector[36..38].copy_from_slice(&self.identity.room.0.to_le_bytes());
        sector[40..48].copy_from_slice(&self.id.0.to_le_bytes());
        sector[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        put_tail(&mut sector[56..], &self.before);
        seal(&mut sector);
        sector
    }

    /// Decodes and checks a header's sector.
    ///
    /// # Errors
    /// [`SegmentError`]; a newer version is told from damage by its version alone, whose place never changes.
    pub fn decode(sector: &[u8; SECTOR_BYTES]) -> Result<Self, SegmentError> {
        if sector[0..8] != MAGIC {
            return Err(SegmentError::Magic);
        }
        let version = u32_at(sector, 8);
        let sealed = is_sealed(sector);
        if version != LOG_FORMAT_VERSION {
            return Err(if sealed { SegmentError::Newer { found: version } } else { SegmentError::Checksum });
        }
        if !sealed {
            return Err(SegmentError::Checksum);
        }
        let kind = match u32_at(sector, 12) {
            1 => SegmentKind::Continues,
            2 => SegmentKind::Restarts,
            other => return Err(SegmentError::Kind(other)),
        };
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&sector[16..32]);
        Ok(Self {
            kind,
            identity: Identity {
                cluster: ClusterId(cluster),
                epoch: Epoch(u32_at(sector, 32)),
                room: RoomId(u16::from_le_bytes([sector[36], sector[37]])),
            },
            id: RaftId(u64_at(sector, 40)),
            sequence: u64_at(sector, 48),
            before: tail_at(sector, 56),
        })
    }
}
