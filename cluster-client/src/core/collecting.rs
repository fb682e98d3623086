//! A snapshot that comes in pieces: in order, bounded, and believed only when its hash is right.

use bytes::Bytes;
use relay::wire::SnapshotChunk;
use sha2::{Digest, Sha256};
use voter_mesh::ids::{Chain, LogIndex};

use crate::status::LinkError;

/// A whole snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The entry at which the state stands.
    pub index: LogIndex,
    /// The chain after it.
    pub chain: Chain,
    /// The state as the machine wrote it; empty for a client that holds none.
    pub state: Bytes,
}

pub(super) struct Collecting {
    first: SnapshotChunk,
    state: Vec<u8>,
    received: u64,
    hash: Sha256,
    /// Whether the bytes are needed, or only the place.
    keep: bool,
}

impl Collecting {
    /// Begins with the first piece, which is not taken in yet.
    pub(super) fn begin(first: &SnapshotChunk, keep: bool, bytes_max: u64) -> Result<Self, LinkError> {
        if keep && first.total > bytes_max {
            return Err(LinkError::SnapshotTooLarge(first.total));
        }
        Ok(Self { first: first.clone(), state: Vec::new(), received: 0, hash: Sha256::new(), keep })
    }

    /// Takes a piece in; the last one makes it whole.
    pub(super) fn take(&mut self, chunk: &SnapshotChunk) -> Result<Option<Snapshot>, LinkError> {
        let same = (chunk.index, chunk.chain, chunk.total, chunk.hash)
            == (self.first.index, self.first.chain, self.first.total, self.first.hash);
        let end = self.received.saturating_add(chunk.bytes.len() as u64);
        if !same || chunk.offset != self.received || end > chunk.total || (chunk.bytes.is_empty() && end < chunk.total) {
            return Err(LinkError::Malformed("snapshot pieces do not fit together"));
        }
        self.received = end;
        self.hash.update(&chunk.bytes);
        if self.keep {
            self.state.extend_from_slice(&chunk.bytes);
        }
        if end < chunk.total {
            return Ok(None);
        }
        if self.hash.clone().finalize().as_slice() != self.first.hash {
            return Err(LinkError::Malformed("the snapshot's hash is wrong"));
        }
        Ok(Some(Snapshot { index: self.first.index, chain: self.first.chain, state: std::mem::take(&mut self.state).into() }))
    }
}
