#![allow(clippy::unwrap_used)]

use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{ClusterId, Epoch, Identity, RoomId, Term, TimeMs};
use voter_mesh::run::{Tail, chain_zero};

use super::*;

const IDENTITY: Identity = Identity { cluster: ClusterId([1; 16]), epoch: Epoch(1), room: RoomId(0) };
const ALL: LogIndex = LogIndex(u64::MAX);

struct Source {
    feed: Feed,
    tail: Tail,
}

impl Source {
    fn new(ring: usize, frame: usize) -> Self {
        let limits = FeedLimits { feed_ring_bytes_max: ring, feed_frame_bytes_max: frame };
        Self { feed: Feed::new(limits, LogIndex::ZERO, chain_zero(&IDENTITY)), tail: Tail::zero(&IDENTITY) }
    }

    /// A run of `count` entries with payloads of `bytes`.
    fn run(&mut self, count: usize, bytes: usize) -> Run {
        let one = entry(&EntrySpec::internal(EntryKind::Noop), &vec![3; bytes]).unwrap();
        let run = Run::seal(&self.tail, Term(1), TimeMs(5), Epoch(1), RoomId(0), &vec![&one[..]; count]).unwrap();
        self.tail = run.header().tail();
        run
    }

    fn push(&mut self, count: usize, bytes: usize) -> usize {
        let run = self.run(count, bytes);
        let verdicts = Verdicts::clear(run.header().count);
        let size = run.bytes().len() + verdicts.as_bytes().len();
        self.feed.push(run, verdicts);
        size
    }

    fn push_many(&mut self, runs: usize, bytes: usize) {
        for _ in 0..runs {
            self.push(1, bytes);
        }
    }

    fn frame(&mut self, cursor: u64) -> Option<(Bytes, LogIndex)> {
        self.feed.frame_at(0x45, LogIndex(cursor), ALL).unwrap()
    }
}

#[test]
fn a_frame_holds_as_many_blocks_as_fit_and_one_larger_block_alone() {
    let mut source = Source::new(1 << 20, 1_000);
    let small = source.push(1, 100);
    source.push_many(9, 100);
    let (frame, next) = source.frame(1).unwrap();
    let fit = 1_000 / small;
    assert_eq!((frame.len(), next.0), (1 + fit * small, 1 + fit as u64));
    assert_eq!(frame[0], 0x45);
    let large = source.push(2, 2_000);
    let (frame, next) = source.frame(11).unwrap();
    assert_eq!((frame.len(), next), (1 + large, LogIndex(13)));
    assert_eq!(source.frame(13), None);
}

#[test]
fn cursors_at_one_place_share_a_frame_until_more_fits_into_it() {
    let mut source = Source::new(1 << 20, 1_000);
    source.push(1, 100);
    let first = source.frame(1).unwrap().0;
    assert_eq!(source.frame(1).unwrap().0.as_ptr(), first.as_ptr());
    source.push_many(9, 100);
    let longer = source.frame(1).unwrap().0;
    assert!(longer.len() > first.len());
    // A full frame stays what it is, however much comes.
    source.push(1, 100);
    assert_eq!(source.frame(1).unwrap().0.as_ptr(), longer.as_ptr());
}

#[test]
fn the_ring_is_bounded_in_bytes_and_says_where_it_begins() {
    let mut source = Source::new(10_000, 1_000);
    source.push_many(100, 500);
    assert!(source.feed.kept_bytes() <= 10_000);
    let first = source.feed.first();
    assert!(first > LogIndex(80) && first < LogIndex(100));
    assert_eq!(source.feed.frame_at(0x45, first.previous(), ALL), Err(Behind { first }));
    assert!(source.feed.frame_at(0x45, first, ALL).unwrap().is_some());
    // Even a run over the whole bound is kept while it is the latest.
    source.push(1, 50_000);
    assert_eq!(source.feed.first(), source.tail.last);
    assert!(source.frame(source.tail.last.0).is_some());
}

#[test]
fn a_cursor_inside_a_run_gets_that_run() {
    let mut source = Source::new(1 << 20, 1_000);
    source.push(1, 10);
    source.push(10, 10);
    assert_eq!(source.frame(7).unwrap().1, LogIndex(12));
    assert_eq!(source.feed.frame_at(0x4d, LogIndex(1), LogIndex(1)).unwrap().unwrap().1, LogIndex(2));
}

#[test]
fn the_chain_is_known_where_runs_end() {
    let mut source = Source::new(10_000, 1_000);
    let runs: Vec<_> = (0..30).map(|_| source.run(2, 200)).collect();
    for run in &runs {
        source.feed.push(run.clone(), Verdicts::clear(2));
    }
    let first = source.feed.first();
    assert_eq!(source.feed.chain_at(first.previous().previous()), ChainAt::Below);
    assert_eq!(source.feed.chain_at(LogIndex(61)), ChainAt::Above);
    for run in runs.iter().filter(|run| run.header().first >= first) {
        let header = run.header();
        assert_eq!(source.feed.chain_at(header.first.previous()), ChainAt::Known(header.chain_before));
        assert_eq!(source.feed.chain_at(header.first), ChainAt::Inside);
        assert_eq!(source.feed.chain_at(header.last()), ChainAt::Known(header.chain_after));
    }
}

#[test]
fn nothing_is_served_across_a_gap() {
    let mut source = Source::new(1 << 20, 1_000);
    source.push(1, 10);
    let _missed = source.run(1, 10);
    source.push(1, 10);
    assert_eq!(source.feed.first(), LogIndex(3));
    assert_eq!(source.feed.frame_at(0x45, LogIndex(1), ALL), Err(Behind { first: LogIndex(3) }));
}
