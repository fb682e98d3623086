//! Reading runs back: for a follower that lags, and for the feed's cold path.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use voter_mesh::ids::{LogIndex, RunIndex};
use voter_mesh::run::{Run, RunError, RunHeader};

use super::file_system::DiskFile;
use super::files;
use super::index::{Shared, seek, seek_entry};

/// Bytes that one read asks the file for.
const READ_BYTES: usize = 256 << 10;

/// Why runs cannot be read. The log is unharmed.
#[derive(Debug, Error)]
pub enum ReadError {
    /// They are gone: the log begins later. A snapshot stands for them.
    #[error("the log begins at run {first}")]
    Trimmed {
        /// The first run that the log holds.
        first: RunIndex,
    },
    /// The file holds something else where the run stood: damage, found before it was served; or the run was cut meanwhile.
    #[error("run {run} cannot be read back: {why}")]
    Damaged {
        /// The first run that is bad.
        run: RunIndex,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read.
    #[error("cannot read run {run}: {source}")]
    Io {
        /// The run.
        run: RunIndex,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads what is durable in the log, on any thread, while its writer appends, cuts and trims. Every run is checked again.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The first run that the log holds, and the last one that may be read; the first is above the last if it holds none.
    #[must_use]
    pub fn range(&self) -> (RunIndex, RunIndex) {
        let index = self.shared.lock();
        (index.before_first().map_or(index.durable, |before| before.run).next(), index.durable)
    }

    /// The runs from `first` on: as many as fit into `bytes_max`, but at least one; none above `last` or above what is durable.
    ///
    /// # Errors
    /// [`ReadError`]; it concerns the first run that would have been returned, for a later one ends the answer before it.
    pub fn read(&self, first: RunIndex, last: RunIndex, bytes_max: usize) -> Result<Vec<Run>, ReadError> {
        let (mut runs, mut bytes) = (Vec::new(), 0);
        let mut next = first;
        while let Some(place) = self.find(next, last)? {
            match place.read(&mut runs, next, &mut bytes, bytes_max) {
                Err(error) if runs.is_empty() => return Err(error),
                Ok(Progress::EndOfSegment) => {}
                Ok(Progress::Full) | Err(_) => break,
            }
            next = runs.last().map_or(first, |run| run.header().run.next());
        }
        Ok(runs)
    }

    /// The first entry that the log holds.
    #[must_use]
    pub fn first_entry(&self) -> LogIndex {
        self.shared.lock().before_first().map_or(LogIndex::FIRST, |before| before.last.next())
    }

    /// The runs from the one that holds the entry at `from` on, as [`LogReader::read`] gives them; none while that entry is not
    /// durable here.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn read_entries(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<Run>, ReadError> {
        let (file, at, run) = {
            let index = self.shared.lock();
            if let Some(before) = index.before_first().filter(|before| from <= before.last) {
                return Err(ReadError::Trimmed { first: before.run.next() });
            }
            let holder = index.extents.partition_point(|extent| extent.before.last < from).checked_sub(1);
            match holder.and_then(|holder| index.extents.get(holder)) {
                Some(extent) if from <= index.durable_entry => {
                    (Arc::clone(&extent.file), extent.at_or_before_entry(from), extent.before.run.next())
                }
                _ => return Ok(Vec::new()),
            }
        };
        let (header, _) = seek_entry(&*file, at, from).map_err(|source| ReadError::Io { run, source })?;
        self.read(header.run, RunIndex(u64::MAX), bytes_max)
    }

    /// Keeps the runs from `from` on until the pin is dropped; `None` if some of them are gone already.
    #[must_use]
    pub fn pin(&self, from: RunIndex) -> Option<Pin> {
        let mut index = self.shared.lock();
        if index.before_first().is_some_and(|before| before.run >= from) {
            return None;
        }
        let id = index.pins_ever;
        index.pins_ever += 1;
        index.pins.insert(id, from);
        drop(index);
        Some(Pin { shared: Arc::clone(&self.shared), id })
    }

    /// Where the log may be trimmed so that, counted in whole segments, at least `retain_bytes` stay below `snapshot`.
    #[must_use]
    pub fn trim_point(&self, snapshot: RunIndex, retain_bytes: u64) -> RunIndex {
        let index = self.shared.lock();
        let mut kept = 0;
        for extent in index.extents.iter().rev().filter(|extent| extent.before.run < snapshot) {
            kept += extent.bytes_below(snapshot);
            if kept >= retain_bytes {
                return extent.before.run.next();
            }
        }
        index.before_first().map_or(RunIndex::FIRST, |before| before.run.next())
    }

    /// Where run `first` stands, unless it is above `last` or not durable.
    fn find(&self, first: RunIndex, last: RunIndex) -> Result<Option<Place>, ReadError> {
        let index = self.shared.lock();
        let last = last.min(index.durable);
        if first > last {
            return Ok(None);
        }
        let Some((holder, extent)) = index.holder(first).and_then(|at| Some((at, index.extents.get(at)?))) else {
            return Err(ReadError::Trimmed { first: index.before_first().map_or(RunIndex::FIRST, |before| before.run.next()) });
        };
        // Past the segment's last run the next one goes on.
        let last = index.extents.get(holder + 1).map_or(last, |next| last.min(next.before.run));
        Ok(Some(Place { file: Arc::clone(&extent.file), at: extent.at_or_before(first), last }))
    }
}

/// Keeps runs from being trimmed, for as long as it lives: while a snapshot travels, the log behind it must stay.
#[derive(Debug)]
pub struct Pin {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.lock().pins.remove(&self.id);
    }
}

enum Progress {
    EndOfSegment,
    Full,
}

/// A place in a segment. The file stays what it is while this holds it: a trimmed one is removed then, not overwritten.
struct Place {
    file: Arc<dyn DiskFile>,
    at: u64,
    last: RunIndex,
}

impl Place {
    /// Appends the runs from `next` on.
    fn read(&self, runs: &mut Vec<Run>, mut next: RunIndex, bytes: &mut usize, bytes_max: usize) -> Result<Progress, ReadError> {
        let (_, mut at) = seek(&*self.file, self.at, next).map_err(|source| ReadError::Io { run: next, source })?;
        let mut want = READ_BYTES.min(bytes_max.max(1));
        while next <= self.last {
            let mut chunk = files::read_at(&*self.file, at, want).map_err(|source| ReadError::Io { run: next, source })?;
            let read = chunk.len();
            loop {
                match Run::split_from(&mut chunk) {
                    Ok(run) if run.header().run != next => {
                        return Err(ReadError::Damaged { run: next, why: format!("run {} stands there", run.header().run) });
                    }
                    Ok(run) => {
                        if !runs.is_empty() && *bytes + run.bytes().len() > bytes_max {
                            return Ok(Progress::Full);
                        }
                        *bytes += run.bytes().len();
                        next = next.next();
                        runs.push(run);
                        if next > self.last {
                            return Ok(Progress::EndOfSegment);
                        }
                    }
                    Err(RunError::Truncated) => break,
                    Err(error) => return Err(ReadError::Damaged { run: next, why: error.to_string() }),
                }
            }
            if chunk.len() == read {
                // Not even one run: read as much as it says it has.
                let whole = RunHeader::decode(&chunk).map_or(READ_BYTES, |header| header.whole_bytes());
                if read < want || want >= whole.max(READ_BYTES) {
                    return Err(ReadError::Damaged { run: next, why: "the file ends before it does".into() });
                }
                want = whole.max(READ_BYTES);
            } else {
                at += (read - chunk.len()) as u64;
                want = READ_BYTES;
            }
        }
        Ok(Progress::EndOfSegment)
    }
}
