//! Whether the servers agree: the same run must have the same hashes everywhere.
//!
//! Snapshots are due at the same runs on all servers, so each one's hashes can be held against all others'. Which of two servers is wrong
//! cannot be told from two hashes: a difference is for people, and nothing here acts on one.

use std::collections::VecDeque;

use super::SnapshotMeta;
use crate::ids::{RaftId, RunIndex};

/// Own snapshots that are remembered, and others' that wait for an own one of the same run. A server that is further behind is not
/// compared until it has caught up.
pub const HASHES_KEPT: usize = 8;

/// Others' hashes that wait, of all servers together.
const WAITING_MAX: usize = 8 * HASHES_KEPT;

/// What a server holds at the end of a run, in two hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHashes {
    /// The run.
    pub run: RunIndex,
    /// [`SnapshotMeta::state_hash`].
    pub state: [u8; 32],
    /// [`SnapshotMeta::sessions_hash`].
    pub sessions: [u8; 32],
}

impl From<&SnapshotMeta> for SnapshotHashes {
    fn from(meta: &SnapshotMeta) -> Self {
        Self { run: meta.tail.run, state: meta.state_hash, sessions: meta.sessions_hash }
    }
}

/// Two servers' hashes of one run that are not the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The other server.
    pub peer: RaftId,
    /// This server's.
    pub own: SnapshotHashes,
    /// The other's.
    pub theirs: SnapshotHashes,
}

/// The hashes that are known, compared as they come.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    own: VecDeque<SnapshotHashes>,
    waiting: VecDeque<(RaftId, SnapshotHashes)>,
    equal: u64,
    differ: u64,
}

impl Agreement {
    /// This server has written a snapshot. Returns the servers that said something else of it.
    pub fn handle_own(&mut self, own: SnapshotHashes) -> Vec<Difference> {
        push(&mut self.own, own, HASHES_KEPT);
        let (same_run, others) = self.waiting.drain(..).partition::<VecDeque<_>, _>(|(_, theirs)| theirs.run == own.run);
        // Whatever this server has passed without a snapshot of that run is not compared any more.
        self.waiting = others.into_iter().filter(|(_, theirs)| theirs.run > own.run).collect();
        same_run.into_iter().filter_map(|(peer, theirs)| self.compare(peer, own, theirs)).collect()
    }

    /// A peer has written one. If this server has one of that run, and it is another, that is returned; if not, it waits for it.
    pub fn handle_peer(&mut self, peer: RaftId, theirs: SnapshotHashes) -> Option<Difference> {
        if let Some(own) = self.own.iter().find(|own| own.run == theirs.run).copied() {
            return self.compare(peer, own, theirs);
        }
        if self.own.back().is_none_or(|newest| newest.run < theirs.run) {
            push(&mut self.waiting, (peer, theirs), WAITING_MAX);
        }
        None
    }

    /// How many comparisons found the same, and how many did not.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        (self.equal, self.differ)
    }

    fn compare(&mut self, peer: RaftId, own: SnapshotHashes, theirs: SnapshotHashes) -> Option<Difference> {
        if own == theirs {
            self.equal += 1;
            return None;
        }
        self.differ += 1;
        Some(Difference { peer, own, theirs })
    }
}

fn push<T>(to: &mut VecDeque<T>, what: T, count_max: usize) {
    if to.len() >= count_max {
        to.pop_front();
    }
    to.push_back(what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Seat;

    fn hashes(run: u64, state: u8) -> SnapshotHashes {
        SnapshotHashes { run: RunIndex(run), state: [state; 32], sessions: [0; 32] }
    }

    #[test]
    fn hashes_of_one_run_are_compared_whichever_server_is_first_and_a_difference_names_both() {
        let (second, third) = (RaftId::new(Seat(2), 1), RaftId::new(Seat(3), 1));
        let mut agreement = Agreement::default();
        assert_eq!(agreement.handle_peer(second, hashes(10, 1)), None);
        assert_eq!(agreement.handle_peer(second, hashes(20, 2)), None);
        assert_eq!(agreement.handle_own(hashes(10, 1)), []);
        assert_eq!(
            agreement.handle_peer(third, hashes(10, 7)).map(|found| (found.peer, found.own.run)),
            Some((third, RunIndex(10)))
        );
        let difference = Difference { peer: second, own: hashes(20, 3), theirs: hashes(20, 2) };
        assert_eq!(agreement.handle_own(hashes(20, 3)), [difference]);
        assert_eq!(
            agreement.handle_peer(second, SnapshotHashes { sessions: [1; 32], ..hashes(20, 3) }).map(|found| found.peer),
            Some(second)
        );
        assert_eq!(agreement.counts(), (1, 3));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_was_passed_is_forgotten() {
        let peer = RaftId::new(Seat(2), 1);
        let mut agreement = Agreement::default();
        (1..=1000).for_each(|run| assert_eq!(agreement.handle_peer(peer, hashes(run, 1)), None));
        assert_eq!(agreement.waiting.len(), WAITING_MAX);
        assert_eq!(agreement.handle_own(hashes(999, 1)), []);
        assert_eq!(agreement.waiting, [(peer, hashes(1000, 1))]);
        (1000..1100).for_each(|run| drop(agreement.handle_own(hashes(run, 1))));
        assert_eq!(agreement.own.len(), HASHES_KEPT);
        assert_eq!(agreement.handle_peer(peer, hashes(5, 9)), None, "too old to be known");
        assert_eq!((agreement.waiting.len(), agreement.counts()), (0, (2, 0)));
    }
}
