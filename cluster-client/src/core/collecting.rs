//! A snapshot that comes in pieces: in order, bounded, and believed only when its hash is right. What came on a link that broke is
//! kept: another server may go on with the same state where that one ended.

use bytes::Bytes;
use relay::wire::{PartialState, SnapshotChunk};
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
    bytes_max: u64,
    /// The next piece is the first one on its link: it may begin anew.
    rejoins: bool,
}

impl Collecting {
    /// Begins with the first piece, which is not taken in yet.
    pub(super) fn begin(first: &SnapshotChunk, keep: bool, bytes_max: u64) -> Result<Self, LinkError> {
        if keep && first.total > bytes_max {
            return Err(LinkError::SnapshotTooLarge(first.total));
        }
        let first = SnapshotChunk { bytes: Bytes::new(), ..first.clone() };
        Ok(Self { first, state: Vec::new(), received: 0, hash: Sha256::new(), keep, bytes_max, rejoins: false })
    }

    /// What is there of it, for a server that may have the rest.
    pub(super) fn partial(&self) -> PartialState {
        PartialState { index: self.first.index, hash: self.first.hash, bytes: self.received }
    }

    /// The next piece comes from another link, or behind another `Start`.
    pub(super) fn rejoin(&mut self) {
        self.rejoins = true;
    }

    /// Takes a piece in; the last one makes it whole.
    pub(super) fn take(&mut self, chunk: &SnapshotChunk) -> Result<Option<Snapshot>, LinkError> {
        if std::mem::take(&mut self.rejoins) && chunk.offset == 0 {
            // The server does not have this state, or not what came of it: what came is void.
            *self = Self::begin(chunk, self.keep, self.bytes_max)?;
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STATE: &[u8] = b"a state of some length";

    fn chunk(index: u64, offset: usize, bytes: usize) -> SnapshotChunk {
        SnapshotChunk {
            index: LogIndex(index),
            chain: Chain(7),
            offset: offset as u64,
            total: STATE.len() as u64,
            hash: Sha256::digest(STATE).into(),
            bytes: Bytes::copy_from_slice(&STATE[offset..offset + bytes]),
        }
    }

    fn begun() -> Collecting {
        let mut collecting = Collecting::begin(&chunk(5, 0, 6), true, 100).unwrap();
        assert_eq!(collecting.take(&chunk(5, 0, 6)), Ok(None));
        assert_eq!(collecting.partial().bytes, 6);
        collecting
    }

    fn is_whole(collecting: &mut Collecting, from: usize) -> bool {
        let snapshot = collecting.take(&chunk(5, from, STATE.len() - from)).unwrap();
        snapshot.is_some_and(|snapshot| snapshot.state == STATE && snapshot.index == LogIndex(5))
    }

    #[test]
    fn another_link_goes_on_where_the_last_one_ended_or_begins_anew() {
        let mut collecting = begun();
        collecting.rejoin();
        assert!(is_whole(&mut collecting, 6));

        let mut collecting = begun();
        collecting.rejoin();
        assert_eq!(collecting.take(&chunk(9, 0, 3)), Ok(None));
        assert_eq!((collecting.partial().index, collecting.partial().bytes), (LogIndex(9), 3));

        let mut collecting = begun();
        collecting.rejoin();
        assert_eq!(collecting.take(&chunk(5, 0, 3)), Ok(None));
        assert!(is_whole(&mut collecting, 3));
    }

    #[test]
    fn a_link_neither_goes_on_elsewhere_nor_with_another_state_nor_begins_twice() {
        for wrong in [chunk(5, 5, 3), chunk(5, 7, 3), chunk(9, 6, 3), SnapshotChunk { hash: [0; 32], ..chunk(5, 6, 3) }] {
            let mut collecting = begun();
            collecting.rejoin();
            assert!(matches!(collecting.take(&wrong), Err(LinkError::Malformed(_))));
        }
        assert!(matches!(begun().take(&chunk(5, 0, 6)), Err(LinkError::Malformed(_))));
        let mut collecting = begun();
        collecting.rejoin();
        let larger = SnapshotChunk { total: 101, ..chunk(9, 0, 3) };
        assert_eq!(collecting.take(&larger), Err(LinkError::SnapshotTooLarge(101)));
    }
}
