//! Where in which segment a run stands: shared between the one writer and all readers.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use voter_mesh::ids::{LogIndex, RunIndex};
use voter_mesh::log::RECORDS_AT;
use voter_mesh::run::{RunHeader, Tail};

use super::file_system::DiskFile;
use super::files;

/// Bytes between two points of a segment's index: what a reader skips at most, beside one run, before it is where it wants to be.
const POINT_BYTES: u64 = 64 << 10;

/// Where a run begins.
#[derive(Clone, Copy, Debug)]
struct Point {
    run: RunIndex,
    first: LogIndex,
    at: u64,
}

/// One segment as readers see it.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// More than one holder: a reader is in it, and its file must not be overwritten.
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) before: Tail,
    /// Some of its runs and where they begin, ascending; the first one always.
    points: Vec<Point>,
    /// Where its last run ends.
    pub(super) end: u64,
}

impl Extent {
    pub(super) fn new(file: Arc<dyn DiskFile>, path: PathBuf, before: Tail) -> Self {
        Self { file, path, before, points: Vec::new(), end: RECORDS_AT }
    }

    /// Notes the next run.
    pub(super) fn push(&mut self, header: &RunHeader) {
        if self.points.last().is_none_or(|point| self.end - point.at >= POINT_BYTES) {
            self.points.push(Point { run: header.run, first: header.first, at: self.end });
        }
        self.end += header.whole_bytes() as u64;
    }

    /// Goes on behind a hole, at `at`, where the run with this header stands.
    pub(super) fn skip_to(&mut self, header: &RunHeader, at: u64) {
        self.points.push(Point { run: header.run, first: header.first, at });
        self.end = at;
    }

    /// Forgets all its runs.
    pub(super) fn clear(&mut self) {
        self.points.clear();
        self.end = RECORDS_AT;
    }

    /// Forgets the runs above `keep`, which ends at `end`.
    pub(super) fn cut(&mut self, keep: RunIndex, end: u64) {
        self.points.retain(|point| point.run <= keep);
        self.end = end;
    }

    /// About how many bytes its runs below `run` have.
    pub(super) fn bytes_below(&self, run: RunIndex) -> u64 {
        let end = self.points.iter().find(|point| point.run >= run).map_or(self.end, |point| point.at);
        end - RECORDS_AT
    }

    /// Where a run at or before `run` begins.
    pub(super) fn at_or_before(&self, run: RunIndex) -> u64 {
        self.point_before(self.points.partition_point(|point| point.run <= run))
    }

    /// Where a run at or before the one that holds `index` begins.
    pub(super) fn at_or_before_entry(&self, index: LogIndex) -> u64 {
        self.point_before(self.points.partition_point(|point| point.first <= index))
    }

    fn point_before(&self, after: usize) -> u64 {
        after.checked_sub(1).and_then(|point| self.points.get(point)).map_or(RECORDS_AT, |point| point.at)
    }
}

/// All segments, oldest first. The last one is the writer's; there is always one.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) extents: VecDeque<Extent>,
    /// The end of the log before its first run, if that is not in the first segment: what stands before it is behind a hole.
    pub(super) begin: Option<Tail>,
    /// The last run that a reader may see.
    pub(super) durable: RunIndex,
    /// The last entry of that run.
    pub(super) durable_entry: LogIndex,
    /// Runs from which on nothing may be trimmed, by who said so.
    pub(super) pins: BTreeMap<u64, RunIndex>,
    pub(super) pins_ever: u64,
}

impl Index {
    /// Which extent holds `run`, if the log does.
    pub(super) fn holder(&self, run: RunIndex) -> Option<usize> {
        self.extents.partition_point(|extent| extent.before.run < run).checked_sub(1)
    }

    /// Readers may see the log up to `tail`.
    pub(super) fn confirm(&mut self, tail: &Tail) {
        (self.durable, self.durable_entry) = (tail.run, tail.last);
    }

    /// The end of the log before its first run.
    pub(super) fn before_first(&self) -> Option<Tail> {
        let front = self.extents.front()?.before;
        Some(self.begin.filter(|begin| begin.run > front.run).unwrap_or(front))
    }
}

#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Index>);

impl Shared {
    pub(super) fn new(index: Index) -> Arc<Self> {
        Arc::new(Self(Mutex::new(index)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Index> {
        // Nothing panics while it holds the index, and every change to it is whole before anything else can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Walks the headers of the runs in `file` from `at` on to run `run`; returns where it begins. Bodies are not looked at.
pub(super) fn seek(file: &dyn DiskFile, at: u64, run: RunIndex) -> io::Result<(RunHeader, u64)> {
    walk(file, at, &|header| header.run.cmp(&run), &run)
}

/// As [`seek`], to the run that holds the entry at `index`.
pub(super) fn seek_entry(file: &dyn DiskFile, at: u64, index: LogIndex) -> io::Result<(RunHeader, u64)> {
    let compare = |header: &RunHeader| match (header.last() < index, header.first > index) {
        (true, _) => Ordering::Less,
        (_, true) => Ordering::Greater,
        _ => Ordering::Equal,
    };
    walk(file, at, &compare, &index)
}

/// Walks to the run that compares as equal with what is `sought`.
fn walk(
    file: &dyn DiskFile,
    mut at: u64,
    compare: &dyn Fn(&RunHeader) -> Ordering,
    sought: &dyn Debug,
) -> io::Result<(RunHeader, u64)> {
    /// Much more than the index skips in small runs; a large one costs a read of its own.
    const SEEK_BYTES: usize = 2 * POINT_BYTES as usize;
    loop {
        let bytes = files::read_at(file, at, SEEK_BYTES)?;
        let mut offset = 0;
        while let Some(Ok(header)) = bytes.get(offset..).map(RunHeader::decode) {
            match compare(&header) {
                Ordering::Less => offset += header.whole_bytes(),
                Ordering::Equal => return Ok((header, at + offset as u64)),
                Ordering::Greater => break,
            }
        }
        // No progress: the next header is bad, or beyond what is sought.
        if offset == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{sought:?} does not stand where it should")));
        }
        at += offset as u64;
    }
}
