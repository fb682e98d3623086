//! The log: batches go in, and after [`Log::sync`] they are durable.
//!
//! Nothing that a sync has confirmed is ever overwritten. Where raft cuts an uncommitted tail, or a snapshot takes the log's place, a
//! new segment says so in its header, and its rename is the moment at which it is so; the files that it voids go afterwards.
//!
//! What is taken becomes steps, and each step that finds no room has changed nothing: it is done later, when there is room. The next
//! segment is made ahead, so that a full disk shows while the present one still has room for votes and for handing over.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use voter_mesh::ids::{Identity, RaftId, RunIndex, Term};
use voter_mesh::log::{END_BYTES, Intent, MARK_AT, Mark, RECORDS_AT, SegmentHeader, SegmentKind, reaches};
use voter_mesh::mutant;
use voter_mesh::run::{Run, Tail};

use super::data_dir::DataDir;
use super::error::{At, DiskError, WriteFailed};
use super::file_system::{DiskFile, FileSystem, Open};
use super::files;
use super::index::{Extent, Index, Shared, seek};
use super::reader::LogReader;
use super::recovery;

/// Zeros that are written ahead into a segment that was never written to its end. One sync in so many bytes then pays for new blocks,
/// and all others overwrite, which is faster.
const AHEAD_BYTES: u64 = 1 << 20;

/// How large the log's files are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Bytes of a segment file. Default 64 MiB. Smaller: more files, finer trimming; a run that does not fit gets a larger one.
    pub segment_bytes: u64,
    /// Trimmed segments that are kept to be overwritten, instead of making new files. Default 2.
    pub spares_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, spares_max: 2 }
    }
}

/// What is to become durable together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Named in the answer; rises.
    pub number: u64,
    /// Raft's term.
    pub term: Term,
    /// Who has this server's vote in it, or [`RaftId::NONE`].
    pub vote: RaftId,
    /// Raft's commit index.
    pub commit: RunIndex,
    /// The term of the leader that the append, cut or install obeys.
    pub writer_term: Term,
    /// The log restarts behind this snapshot, which is durable; runs follow it then.
    pub install: Option<Tail>,
    /// Runs above this one are cut before `runs` are appended.
    pub keep_through: Option<RunIndex>,
    /// What is appended.
    pub runs: Vec<Run>,
    /// Sync even if there is nothing to write. A commit index alone needs no sync.
    pub must_sync: bool,
}

impl Batch {
    /// Bytes of its runs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.bytes().len()).sum()
    }
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    /// Where the next run goes; the bytes of `pending` are still to be written before it.
    pub(super) next: u64,
    /// Up to here the file has been written before, so that overwriting needs no new blocks.
    pub(super) written_through: u64,
}

/// A file that waits to become a segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    /// Its blocks were written before, not only reserved.
    pub(super) was_written: bool,
}

/// What leads from what was taken to what is written.
#[derive(Debug)]
enum Step {
    Segment {
        kind: SegmentKind,
        before: Tail,
    },
    Append(Run),
    /// The file held runs that are cut.
    Cut {
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        bytes: u64,
    },
    /// The file is void.
    Remove(PathBuf),
}

/// A server's log. Used by one thread; [`Log::reader`] is for all others.
#[derive(Debug)]
pub struct Log {
    pub(super) files: Arc<dyn FileSystem>,
    pub(super) directory: PathBuf,
    pub(super) identity: Identity,
    pub(super) id: RaftId,
    pub(super) options: LogOptions,
    /// As the disk has it, except for what was taken since the last sync. `last` and `must_reach` are set when it is written.
    pub(super) mark: Mark,
    /// The end of the log, with all that was taken.
    tail: Tail,
    /// The same as far as the steps were done.
    done: Tail,
    pub(super) active: Active,
    spares: Vec<Spare>,
    pub(super) shared: Arc<Shared>,
    steps: VecDeque<Step>,
    pending: Vec<Bytes>,
    /// Something was taken that needs a mark and a sync.
    unsynced: bool,
}

impl Log {
    /// Begins the log of a new life behind `begin`: [`Tail::zero`] when a cluster forms,
    /// [`empty_tail`](voter_mesh::log::empty_tail) for a newcomer. Replaces a log that an interrupted attempt left.
    ///
    /// # Errors
    /// [`DiskError::LogExists`] if the log there has held a run, a term or a vote; `Io`.
    pub fn create(dir: &DataDir, identity: Identity, id: RaftId, begin: Tail, options: LogOptions) -> Result<Self, DiskError> {
        let (files, directory) = (Arc::clone(dir.files()), dir.log_path());
        if recovery::is_used(&*files, &directory)? {
            return Err(DiskError::LogExists { path: directory });
        }
        for (name, path) in files::list(&*files, &directory)? {
            // What an operator was left with is his.
            if !name.ends_with(".damaged") {
                files::remove(&*files, &path)?;
            }
        }
        let mark = Mark {
            sequence: 1,
            segment: 0,
            term: Term(0),
            vote: RaftId::NONE,
            commit: RunIndex::ZERO,
            last: begin,
            synced_through: begin.run,
            must_reach: None,
            vote_lost: false,
        };
        let header = SegmentHeader { kind: SegmentKind::Restarts, identity, id, sequence: 1, before: begin };
        let (active, mark) = make_segment(&*files, &directory, &header, mark, options.segment_bytes, None)?;
        let extent = Extent::new(Arc::clone(&active.file), active.path.clone(), begin);
        let shared =
            Shared::new(Index { extents: [extent].into(), durable: begin.run, durable_entry: begin.last, ..Index::default() });
        Ok(Self::opened((files, directory), (identity, id), options, mark, begin, active, Vec::new(), shared))
    }

    pub(super) fn opened(
        (files, directory): (Arc<dyn FileSystem>, PathBuf),
        (identity, id): (Identity, RaftId),
        options: LogOptions,
        mark: Mark,
        tail: Tail,
        active: Active,
        spares: Vec<Spare>,
        shared: Arc<Shared>,
    ) -> Self {
        let (steps, pending) = (VecDeque::new(), Vec::new());
        Self {
            files,
            directory,
            identity,
            id,
            options,
            mark,
            tail,
            done: tail,
            active,
            spares,
            shared,
            steps,
            pending,
            unsynced: false,
        }
    }

    /// The end of the log, with all that was taken.
    #[must_use]
    pub const fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The end that the log must reach before this replica counts as whole, if it has lost something.
    #[must_use]
    pub fn must_reach(&self) -> Option<Tail> {
        self.mark.must_reach.filter(|goal| !reaches(&self.done, goal))
    }

    /// Accepts what is lost: nobody else can have what is missing, so the end stands, and the replica counts as whole. A lone voter's
    /// answer to [`Verdict::Doubtful`](voter_mesh::log::Verdict); after `Suspect`, only its operator's. Durable with the next sync.
    pub fn accept_end(&mut self) {
        self.mark.must_reach = None;
        // Whatever comes to stand where the lost runs stood is not committed because they were.
        self.mark.commit = self.mark.commit.min(self.tail.run);
        self.unsynced = true;
    }

    /// A quorum was heard, and this server's term is at least the highest among it: a vote that a lost mark may have held binds
    /// nothing any more. Durable with the next sync.
    pub fn settle_vote(&mut self) {
        self.unsynced |= self.mark.vote_lost;
        self.mark.vote_lost = false;
    }

    /// Reads of what is durable, from any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Begins again behind a snapshot that the log does not reach, durably.
    pub(super) fn restart(&mut self, behind: Tail) -> Result<(), DiskError> {
        self.steps.push_back(Step::Segment { kind: SegmentKind::Restarts, before: behind });
        self.tail = behind;
        self.unsynced = true;
        self.sync()
    }

    /// Takes a batch: after the next [`Log::sync`] it is durable.
    ///
    /// # Errors
    /// `Fenced` or `NotNext`: nothing of it was taken, and the log goes on without it. `Disk`: drop the log, and recover; unless
    /// [`DiskError::is_full`]: then nothing of it was taken, and it may be offered again.
    pub fn take(&mut self, batch: &Batch) -> Result<(), WriteFailed> {
        self.advance()?;
        let cut = batch.keep_through.filter(|keep| *keep < self.done.run);
        let writes = batch.install.is_some() || cut.is_some() || !batch.runs.is_empty();
        self.next_mark().admit(&Intent {
            term: batch.term,
            vote: batch.vote,
            writer: writes.then_some(batch.writer_term),
            cut_above: cut,
            restart_behind: batch.install.map(|tail| tail.run),
        })?;
        let mut end = match (batch.install, cut) {
            (Some(tail), _) => tail,
            (None, Some(keep)) => self.tail_at(keep)?,
            (None, None) => self.done,
        };
        let base = end;
        for run in &batch.runs {
            let header = run.header();
            if !end.continues(header) || header.epoch != self.identity.epoch || header.room != self.identity.room {
                return Err(WriteFailed::NotNext { last: end.run, found: header.run });
            }
            end = header.tail();
        }

        if batch.install.is_some() {
            self.steps.push_back(Step::Segment { kind: SegmentKind::Restarts, before: base });
        } else if cut.is_some() {
            self.steps.push_back(Step::Segment { kind: SegmentKind::Continues, before: base });
        }
        self.steps.extend(batch.runs.iter().cloned().map(Step::Append));
        self.tail = end;
        self.unsynced |= writes || batch.must_sync || batch.term > self.mark.term || batch.vote != self.mark.vote;
        self.mark.term = batch.term;
        self.mark.vote = batch.vote;
        // Not above what is there: where a segment begins before these runs, its mark says less.
        self.mark.commit = self.mark.commit.max(batch.commit);
        Ok(())
    }

    /// Makes durable what was taken: one pass of writes, the mark among them, and one sync. Does nothing if nothing needs it.
    ///
    /// # Errors
    /// `Io`: drop the log, and recover; what is durable is unknown until then. Unless [`DiskError::is_full`]: then nothing was synced,
    /// and the same may be tried again, at the same places.
    pub fn sync(&mut self) -> Result<(), DiskError> {
        if !self.unsynced {
            return Ok(());
        }
        self.advance()?;
        self.write_pending()?;
        let mark = self.next_mark();
        let sector = mark.encode();
        files::write_slices_at(&*self.active.file, &self.active.path, &mut [IoSlice::new(&sector)], MARK_AT[mark.slot()])?;
        if !mutant!("log_without_sync") {
            files::sync_data(&*self.active.file, &self.active.path)?;
        }
        // Only now is it confirmed; the next mark says so.
        self.mark = Mark { synced_through: self.done.run, ..mark };
        self.unsynced = false;
        self.shared.lock().confirm(&self.done);
        Ok(())
    }

    /// Drops the segments that hold only runs below `below`, as far as no [`Pin`](super::Pin) holds them. Returns the log's first run
    /// and the term of the run before it.
    ///
    /// # Errors
    /// `Io`: some of them may be gone; the log is whole.
    pub fn trim(&mut self, below: RunIndex) -> Result<(RunIndex, Term), DiskError> {
        loop {
            let mut index = self.shared.lock();
            let below = index.pins.values().fold(below, |below, pin| below.min(*pin)).min(index.durable.next());
            let before = index.before_first().unwrap_or(self.done);
            match index.extents.get(1) {
                Some(second) if second.before.run < below => {}
                _ => return Ok((before.run.next(), before.term)),
            }
            let Some(extent) = index.extents.pop_front() else { return Ok((before.run.next(), before.term)) };
            drop(index);
            // Each removal is durable before the next: a log never has a hole because of an order that the file system chose.
            self.retire(extent)?;
            files::sync_directory(&*self.files, &self.directory)?;
        }
    }

    /// Makes the next segment's file once the present segment is half full, if none waits. It needs no sync: a crash may lose it.
    ///
    /// # Errors
    /// `Io`; if [`DiskError::is_full`], nothing has changed, and the log goes on in what is left of its segment.
    pub fn reserve(&mut self) -> Result<(), DiskError> {
        let half = RECORDS_AT + (self.active.bytes - RECORDS_AT) / 2;
        if !self.spares.is_empty() || self.active.next < half {
            return Ok(());
        }
        let path = segment_path(&self.directory, self.active.sequence + 1).with_extension("spare");
        make_file(&*self.files, &path, self.options.segment_bytes)?;
        self.spares.push(Spare { path, was_written: false });
        Ok(())
    }

    /// The mark as it would be written now.
    fn next_mark(&self) -> Mark {
        self.mark_at(self.done)
    }

    fn mark_at(&self, last: Tail) -> Mark {
        let must_reach = self.mark.must_reach.filter(|goal| !reaches(&last, goal));
        Mark { sequence: self.mark.sequence + 1, last, commit: self.mark.commit.min(last.run), must_reach, ..self.mark }
    }

    /// Does the steps that are left. The one that fails stays.
    fn advance(&mut self) -> Result<(), DiskError> {
        while let Some(step) = self.steps.pop_front() {
            let done = match &step {
                Step::Segment { kind, before } => self.new_segment(*kind, *before, 0),
                Step::Append(run) => self.append(run),
                Step::Cut { file, path, bytes } => file.set_len(*bytes).at("truncate", path),
                Step::Remove(path) => files::remove(&*self.files, path),
            };
            if let Err(error) = done {
                self.steps.push_front(step);
                return Err(error);
            }
        }
        Ok(())
    }

    fn append(&mut self, run: &Run) -> Result<(), DiskError> {
        let bytes = run.bytes().len() as u64;
        // After a loss the log may end in a segment before the newest one.
        let behind = self.shared.lock().extents.back().is_none_or(|newest| newest.before.run > self.done.run);
        if behind || self.active.next + bytes > self.active.bytes {
            self.new_segment(SegmentKind::Continues, self.done, bytes)?;
        }
        if let Some(extent) = self.shared.lock().extents.back_mut() {
            extent.push(run.header());
        }
        self.active.next += bytes;
        self.pending.push(run.bytes().clone());
        self.done = run.header().tail();
        Ok(())
    }

    /// Writes the pending runs, and zeros behind them.
    fn write_pending(&mut self) -> Result<(), DiskError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let Active { next, bytes, .. } = self.active;
        let start = next - self.pending.iter().map(|run| run.len() as u64).sum::<u64>();
        let mut end = (next + END_BYTES as u64).min(bytes);
        if end > self.active.written_through {
            end = (next.next_multiple_of(4096) + AHEAD_BYTES).min(bytes);
        }
        let mut slices: Vec<_> = self.pending.iter().map(|run| IoSlice::new(run)).collect();
        slices.extend(files::zeros(end - next));
        files::write_slices_at(&*self.active.file, &self.active.path, &mut slices, start)?;
        self.active.written_through = self.active.written_through.max(end);
        self.pending.clear();
        Ok(())
    }

    /// Goes on in a new segment behind `before`; those that it voids go next. All that was taken up to `before` is durable then.
    fn new_segment(&mut self, kind: SegmentKind, before: Tail, room_bytes: u64) -> Result<(), DiskError> {
        self.write_pending()?;
        if self.unsynced {
            files::sync_data(&*self.active.file, &self.active.path)?;
        }
        // Nothing of the log stands before it: so says the header, in the place of a segment that said so and is void now.
        let stays = self.shared.lock().extents.iter().any(|extent| extent.before.run < before.run);
        let kind = if stays { kind } else { SegmentKind::Restarts };
        let header = SegmentHeader { kind, identity: self.identity, id: self.id, sequence: self.active.sequence + 1, before };
        let mark = Mark { synced_through: before.run, ..self.mark_at(before) };
        let bytes = self.options.segment_bytes.max(RECORDS_AT + room_bytes);
        let spare = self.spares.last().filter(|_| bytes == self.options.segment_bytes);
        let commit = self.mark.commit;
        // Where nothing is cut nothing is read: what has rotted in an old run is for whoever asks for that run to find.
        let cuts = before.run < self.done.run;
        (self.active, self.mark) = make_segment(&*self.files, &self.directory, &header, mark, bytes, spare)?;
        self.mark.commit = commit;
        if bytes == self.options.segment_bytes {
            self.spares.pop();
        }
        self.done = before;

        let mut index = self.shared.lock();
        let kept = match kind {
            SegmentKind::Restarts => 0,
            SegmentKind::Continues => index.extents.partition_point(|extent| extent.before.run < before.run),
        };
        let void = index.extents.split_off(kept);
        for extent in void.into_iter().rev() {
            self.steps.push_front(Step::Remove(extent.path));
        }
        if let Some(last) = index.extents.back_mut().filter(|_| cuts && kind == SegmentKind::Continues) {
            let (header, at) = seek(&*last.file, last.at_or_before(before.run), before.run).at("read", &last.path)?;
            let end = at + header.whole_bytes() as u64;
            if end < last.end {
                last.cut(before.run, end);
                self.steps.push_front(Step::Cut { file: Arc::clone(&last.file), path: last.path.clone(), bytes: end });
            }
        }
        index.extents.push_back(Extent::new(Arc::clone(&self.active.file), self.active.path.clone(), before));
        index.confirm(&before);
        Ok(())
    }

    /// Keeps a trimmed segment's file for later, if nobody reads it and it has the common size.
    fn retire(&mut self, extent: Extent) -> Result<(), DiskError> {
        let bytes = extent.file.len().at("inspect", &extent.path)?;
        let wanted = bytes == self.options.segment_bytes && self.spares.len() < self.options.spares_max;
        let path = extent.path.with_extension("spare");
        // A file that was reserved for this segment, which another spare then became, may wait under that name.
        let free = self.spares.iter().all(|spare| spare.path != path);
        if wanted && free && Arc::strong_count(&extent.file) == 1 {
            files::rename(&*self.files, &extent.path, &path)?;
            self.spares.push(Spare { path, was_written: true });
            return Ok(());
        }
        files::remove(&*self.files, &extent.path)
    }

    /// The end of the log if it ended with run `run`, which it holds.
    fn tail_at(&mut self, run: RunIndex) -> Result<Tail, WriteFailed> {
        self.write_pending()?;
        let index = self.shared.lock();
        if let Some(extent) = index.extents.iter().find(|extent| extent.before.run == run) {
            return Ok(extent.before);
        }
        let Some(extent) = index.holder(run).and_then(|holder| index.extents.get(holder)) else {
            return Err(WriteFailed::NotNext { last: self.done.run, found: run });
        };
        let (header, _) = seek(&*extent.file, extent.at_or_before(run), run).at("read", &extent.path)?;
        Ok(header.tail())
    }
}

/// Where the segment of this sequence is.
pub(super) fn segment_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("{sequence:016x}.seg"))
}

/// Makes a file with room for so many bytes. Where there is not that much room, nothing is left of it.
fn make_file(files: &dyn FileSystem, path: &Path, bytes: u64) -> Result<Arc<dyn DiskFile>, DiskError> {
    let file = files::open(files, path, Open::New)?;
    match file.allocate(bytes).at("allocate", path) {
        Ok(()) => Ok(file),
        Err(error) => {
            // What it holds already may be all the room that others need. If it stays, the next start removes it or makes use of it.
            let _ = files.remove(path);
            Err(error)
        }
    }
}

/// Makes a segment under a temporary name, with `mark` in both slots, and gives it its real one. Returns the newer of the two marks.
fn make_segment(
    files: &dyn FileSystem,
    directory: &Path,
    header: &SegmentHeader,
    mark: Mark,
    bytes: u64,
    spare: Option<&Spare>,
) -> Result<(Active, Mark), DiskError> {
    let path = segment_path(directory, header.sequence);
    let making = spare.map_or_else(|| path.with_extension("tmp"), |spare| spare.path.clone());
    let file = match spare {
        Some(_) => files::open(files, &making, Open::Write)?,
        None => make_file(files, &making, bytes)?,
    };
    let written_through = if spare.is_some_and(|spare| spare.was_written) { bytes } else { RECORDS_AT };
    let first = Mark { segment: header.sequence, ..mark };
    let second = Mark { sequence: first.sequence + 1, ..first };
    for (sector, at) in [(header.encode(), 0), (first.encode(), MARK_AT[first.slot()]), (second.encode(), MARK_AT[second.slot()])] {
        files::write_slices_at(&*file, &making, &mut [IoSlice::new(&sector)], at)?;
    }
    files::write_slices_at(&*file, &making, &mut [IoSlice::new(&[0; END_BYTES])], RECORDS_AT)?;
    files::sync_data(&*file, &making)?;
    files::rename(files, &making, &path)?;
    let sequence = header.sequence;
    Ok((Active { file, path, sequence, bytes, next: RECORDS_AT, written_through }, second))
}
