//! Opening the log again: what is there, where it ends, and what that is worth.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use voter_mesh::ids::{Identity, RaftId, RunIndex, Term};
use voter_mesh::log::{
    LOG_FORMAT_VERSION, MARK_AT, Mark, MarkSlots, NoMark, RECORDS_AT, SECTOR_BYTES, SegmentError, SegmentHeader, SegmentKind,
    Verdict, judge, reaches,
};
use voter_mesh::run::{Run, Tail};

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open};
use super::files;
use super::index::{Extent, Index, Shared};
use super::log::{Active, Log, LogOptions, Spare, segment_path};
use super::reader::LogReader;
use super::walk::{Damage, Walk, Walked};

/// What a log that was opened holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecovered {
    /// The highest durable term.
    pub term: Term,
    /// The vote in it.
    pub vote: RaftId,
    /// A commit index that was true; not above the log's end.
    pub commit: RunIndex,
    /// The run before the log's first one, and its term.
    pub before_first: (RunIndex, Term),
    /// The first run of each term in the log, ascending.
    pub terms: Vec<(RunIndex, Term)>,
    /// The log's end.
    pub tail: Tail,
    /// What it is worth.
    pub verdict: Verdict,
    /// With [`Verdict::Suspect`] and [`Verdict::Doubtful`]: the end that the log must reach before it counts as whole.
    pub must_reach: Option<Tail>,
    /// A mark was unreadable, and a vote may be forgotten with it: vote in no term at or below the highest heard from a quorum, then
    /// say [`Log::settle_vote`].
    pub vote_lost: bool,
}

/// A segment whose header is good.
struct Segment {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

impl Log {
    /// Opens the log, checks every run in it, and shows `visit` those behind `snapshot`, the newest that is durable, in order, each with
    /// whether it is known to be committed. A torn end is cut. If the log does not reach the snapshot (a crash came between the
    /// snapshot's rename and the log's restart), it restarts behind it, with its term, vote and doubts. What was read is durable when
    /// this returns: it may be acknowledged.
    ///
    /// # Errors
    /// `NoLog`, `Foreign`, `Newer`, `Damaged` (a header, or both marks), `Gap` and `Diverged`: nothing was changed. `Io`.
    pub fn recover(
        dir: &DataDir,
        identity: Identity,
        id: RaftId,
        snapshot: Option<&Tail>,
        options: LogOptions,
        visit: &mut dyn FnMut(&Run, bool),
    ) -> Result<(Self, LogRecovered), DiskError> {
        Self::look(dir, identity, id, snapshot, options, visit)?.open()
    }

    /// The first half of [`Log::recover`]: checks every run and changes nothing. Runs that an earlier sync has confirmed and that cannot
    /// be read are named in [`LogLook::damage`]; with good ones behind them they are a hole, which can be filled before the log is
    /// opened. A hole that `snapshot` covers costs nothing: the log begins behind it. At any other one, it ends.
    ///
    /// # Errors
    /// As [`Log::recover`].
    pub fn look(
        dir: &DataDir,
        identity: Identity,
        id: RaftId,
        snapshot: Option<&Tail>,
        options: LogOptions,
        visit: &mut dyn FnMut(&Run, bool),
    ) -> Result<LogLook, DiskError> {
        let (files, directory) = (Arc::clone(dir.files()), dir.log_path());
        let found = Found::list(&*files, &directory)?;
        let (segments, void) = select(found.read_headers(&*files, Some((identity, id)))?);
        let Some(newest) = segments.last() else { return Err(DiskError::NoLog { path: directory }) };
        // What the process before this one wrote may not be synced, and after a sync that failed the cache may hold what the disk
        // does not: sync, forget, read.
        files::sync_data(&*newest.file, &newest.path)?;
        files::sync_directory(&*files, &directory)?;
        newest.file.forget_cache();
        let ((mark, unreadable_mark), sequence) = (read_mark(newest)?, newest.header.sequence);

        let first = segments[0].header.before;
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.run < first.run) {
            return Err(DiskError::Gap { snapshot: snapshot.run, first: first.run.next() });
        }
        let mut walk = Walk::new(identity, snapshot.copied(), first, &mark, visit);
        let mut segments = segments.into_iter().peekable();
        while let Some(Segment { header, file, path }) = segments.next() {
            let until = segments.peek().map(|next| next.header.before.run);
            walk.segment(Extent::new(file, path, header.before), until)?;
        }
        let walked = walk.finish();
        // What is committed here cannot be missing from a snapshot's history.
        let missing = snapshot
            .filter(|snapshot| walked.damage.is_empty() && !walked.at_snapshot && snapshot.run <= mark.commit.min(walked.tail.run));
        if let Some(run) = walked.diverged.or(missing.map(|snapshot| snapshot.run)) {
            return Err(DiskError::Diverged { run });
        }
        let verdict = judge(&walked.tail, walked.torn, &mark);
        let must_reach = match verdict {
            Verdict::Clean | Verdict::Torn => None,
            // The higher of what it lost now and what it had lost before.
            Verdict::Doubtful | Verdict::Suspect => match mark.must_reach {
                Some(goal) if reaches(&goal, &mark.last) => Some(goal),
                _ => Some(mark.last),
            },
        };
        let tail = walked.tail;
        let (term, vote) = if tail.term > mark.term { (tail.term, RaftId::NONE) } else { (mark.term, mark.vote) };
        let recovered = LogRecovered {
            term,
            vote,
            commit: mark.commit.min(tail.run),
            before_first: (walked.begin.run, walked.begin.term),
            terms: walked.terms.clone(),
            tail,
            verdict,
            must_reach,
            vote_lost: mark.vote_lost,
        };
        let mark = Mark { term, vote, must_reach, synced_through: tail.run, ..mark };
        let stale = void.into_iter().chain(found.temporary).collect();
        let (snapshot, spares) = (snapshot.copied(), found.spares);
        Ok(LogLook {
            files,
            directory,
            identity,
            id,
            options,
            snapshot,
            mark,
            sequence,
            unreadable_mark,
            walked,
            recovered,
            stale,
            spares,
        })
    }

    /// Sets a segment that cannot be believed aside, with all later ones, or all of them; returns their new names.
    ///
    /// # Errors
    /// `Io`: some may be renamed, the newest first.
    pub fn set_aside(dir: &DataDir, from: Option<&Path>) -> Result<Vec<PathBuf>, DiskError> {
        let (files, directory) = (dir.files(), dir.log_path());
        let mut aside = Vec::new();
        for (_, path) in Found::list(&**files, &directory)?.segments.into_iter().rev() {
            if from.is_none_or(|from| *path >= *from) {
                aside.push(dir.set_aside(&path)?);
            }
        }
        Ok(aside)
    }
}

/// A log that was looked at and not changed.
#[derive(Debug)]
pub struct LogLook {
    files: Arc<dyn FileSystem>,
    directory: PathBuf,
    identity: Identity,
    id: RaftId,
    options: LogOptions,
    snapshot: Option<Tail>,
    /// The next mark will be made from this one.
    mark: Mark,
    /// Of the newest segment.
    sequence: u64,
    /// Where in it a mark cannot be read.
    unreadable_mark: Option<u64>,
    walked: Walked,
    recovered: LogRecovered,
    /// Files that hold nothing of the log.
    stale: Vec<PathBuf>,
    spares: Vec<PathBuf>,
}

impl LogLook {
    /// What the log holds up to the first hole that no snapshot covers, and what that is worth.
    #[must_use]
    pub const fn recovered(&self) -> &LogRecovered {
        &self.recovered
    }

    /// What an earlier sync has confirmed and cannot be read, in the order of the log.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.walked.damage
    }

    /// The newest segment, if one of the two places for its mark cannot be read, and where in it that is.
    #[must_use]
    pub fn unreadable_mark(&self) -> Option<(&Path, u64)> {
        self.unreadable_mark.map(|at| (self.walked.extents.last().map_or(&*self.directory, |newest| &newest.path), at))
    }

    /// Reads all that is good in the log, behind holes too.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        let extents = self.walked.extents.iter().cloned().collect();
        LogReader::new(Shared::new(Index { extents, durable: self.walked.reached, ..Index::default() }))
    }

    /// Copies the segments that are damaged to files beside them, named `SEQUENCE.damaged`, as far as there is no such copy yet.
    ///
    /// # Errors
    /// `Io`; the log is unchanged.
    pub fn keep_damaged(&self) -> Result<Vec<PathBuf>, DiskError> {
        let mut kept = Vec::new();
        for damage in &self.walked.damage {
            let copy = damage.path.with_extension("damaged");
            if kept.last() != Some(&copy) {
                files::copy(&*self.files, &damage.path, &copy)?;
                kept.push(copy);
            }
        }
        Ok(kept)
    }

    /// Copies every segment beside itself that holds something which the log loses when it is opened and its end accepted: what is
    /// damaged, and what is good behind it. Named and bounded as by [`Self::keep_damaged`].
    ///
    /// # Errors
    /// `Io`; the log is unchanged.
    pub fn keep_lost(&self) -> Result<Vec<PathBuf>, DiskError> {
        let mut kept = self.keep_damaged()?;
        for extent in self.walked.extents.iter().filter(|extent| extent.before.run >= self.walked.tail.run) {
            let copy = extent.path.with_extension("damaged");
            if !kept.contains(&copy) && self.walked.reached > self.walked.tail.run {
                files::copy(&*self.files, &extent.path, &copy)?;
                kept.push(copy);
            }
        }
        Ok(kept)
    }

    /// Opens the log as it was found: files that it has left behind are removed, and if it does not reach the snapshot it restarts
    /// there.
    ///
    /// # Errors
    /// `Io`: the next look finds what this one found.
    pub fn open(self) -> Result<(Log, LogRecovered), DiskError> {
        let Self {
            files,
            directory,
            identity,
            id,
            options,
            snapshot,
            mark,
            sequence,
            mut walked,
            mut recovered,
            stale,
            spares,
            ..
        } = self;
        walked.cut();
        let Some(newest) = walked.extents.last() else { return Err(DiskError::NoLog { path: directory }) };
        let active = Active {
            file: Arc::clone(&newest.file),
            path: newest.path.clone(),
            sequence,
            bytes: newest.file.len().at("inspect", &newest.path)?,
            next: newest.end,
            written_through: newest.end,
        };
        for path in &stale {
            files::remove(&*files, path)?;
        }
        if !stale.is_empty() {
            // Before any segment goes that says that they are void.
            files::sync_directory(&*files, &directory)?;
        }
        let Walked { tail, begin, at_snapshot, extents, .. } = walked;
        let mut index = Index { extents: extents.into(), begin: Some(begin), ..Index::default() };
        index.confirm(&tail);
        let shared = Shared::new(index);
        let spares = spares.into_iter().map(|path| Spare { path, was_written: true }).collect();
        let mut log = Log::opened((files, directory), (identity, id), options, mark, tail, active, spares, shared);
        if let Some(snapshot) = snapshot.filter(|_| !at_snapshot) {
            if snapshot.term > mark.term {
                // It came before any write of its leader's term: in that one nothing was voted.
                (log.mark.term, log.mark.vote) = (snapshot.term, RaftId::NONE);
                (recovered.term, recovered.vote) = (snapshot.term, RaftId::NONE);
            }
            log.restart(snapshot)?;
            recovered.commit = mark.commit.min(snapshot.run);
            recovered.before_first = (snapshot.run, snapshot.term);
            recovered.terms.clear();
            recovered.tail = snapshot;
            recovered.must_reach = log.must_reach();
            if recovered.must_reach.is_none() && recovered.verdict != Verdict::Clean {
                recovered.verdict = Verdict::Torn;
            }
        }
        Ok((log, recovered))
    }
}

/// Whether the directory holds a log that ever held anything, or one that cannot be read.
pub(super) fn is_used(files: &dyn FileSystem, directory: &Path) -> Result<bool, DiskError> {
    let segments = Found::list(files, directory)?.read_headers(files, None)?;
    for segment in &segments {
        let (mark, _) = read_mark(segment)?;
        if segments.len() > 1 || mark.term > Term(0) || mark.last != segment.header.before {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files of a log's directory.
struct Found {
    segments: Vec<(u64, PathBuf)>,
    spares: Vec<PathBuf>,
    temporary: Vec<PathBuf>,
}

impl Found {
    fn list(files: &dyn FileSystem, directory: &Path) -> Result<Self, DiskError> {
        let mut found = Self { segments: Vec::new(), spares: Vec::new(), temporary: Vec::new() };
        for (name, path) in files::list(files, directory)? {
            match name.split_once('.') {
                Some((sequence, "seg")) => match u64::from_str_radix(sequence, 16) {
                    Ok(sequence) if path == segment_path(directory, sequence) => found.segments.push((sequence, path)),
                    _ => return Err(DiskError::Damaged { path, why: "it is not named as a segment is".into() }),
                },
                Some((_, "spare")) => found.spares.push(path),
                Some((_, "tmp")) => found.temporary.push(path),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Opens the segments, oldest first, and checks their headers; `owner` is whose they must be.
    fn read_headers(&self, files: &dyn FileSystem, owner: Option<(Identity, RaftId)>) -> Result<Vec<Segment>, DiskError> {
        let mut segments = Vec::with_capacity(self.segments.len());
        for (sequence, path) in &self.segments {
            let path = path.clone();
            let file = files::open(files, &path, Open::Write)?;
            let header = match SegmentHeader::decode(&read_sector(&*file, &path, 0)?) {
                Ok(header) => header,
                Err(SegmentError::Newer { found }) => return Err(DiskError::Newer { path, found, known: LOG_FORMAT_VERSION }),
                Err(error) => return Err(DiskError::Damaged { path, why: error.to_string() }),
            };
            if let Some((identity, id)) = owner.filter(|owner| *owner != (header.identity, header.id)) {
                let (found, expected) = (whose(&header.identity, header.id), whose(&identity, id));
                return Err(DiskError::Foreign { path, found, expected });
            }
            if file.len().at("inspect", &path)? < RECORDS_AT {
                return Err(DiskError::Damaged { path, why: "it is too short".into() });
            }
            if header.sequence != *sequence {
                return Err(DiskError::Damaged {
                    path,
                    why: format!("it is named otherwise than its sequence {}", header.sequence),
                });
            }
            segments.push(Segment { header, file, path });
        }
        Ok(segments)
    }
}

fn whose(identity: &Identity, id: RaftId) -> String {
    format!("server {id} of cluster {}, epoch {}, room {}", identity.cluster, identity.epoch, identity.room)
}

fn read_sector(file: &dyn DiskFile, path: &Path, at: u64) -> Result<[u8; SECTOR_BYTES], DiskError> {
    let bytes = files::read_at(file, at, SECTOR_BYTES).at("read", path)?;
    // Too short to hold one: no checksum will match.
    Ok(bytes.as_ref().try_into().unwrap_or([0; SECTOR_BYTES]))
}

/// The newer mark of a segment, and where in it the other one cannot be read.
fn read_mark(segment: &Segment) -> Result<(Mark, Option<u64>), DiskError> {
    let mut slots = [None; 2];
    for (slot, (mark, at)) in slots.iter_mut().zip(MARK_AT).enumerate() {
        *mark = Mark::decode(&read_sector(&*segment.file, &segment.path, at)?, segment.header.sequence, slot);
    }
    let unreadable = slots.iter().zip(MARK_AT).find(|(mark, _)| mark.is_none()).map(|(_, at)| at);
    let damaged = |error: NoMark| DiskError::Damaged { path: segment.path.clone(), why: error.to_string() };
    Ok((MarkSlots(slots).newest().map_err(damaged)?, unreadable))
}

/// The segments that make up the log, and the files that newer ones have voided.
fn select(segments: Vec<Segment>) -> (Vec<Segment>, Vec<PathBuf>) {
    let (mut live, mut void) = (Vec::<Segment>::new(), Vec::new());
    for segment in segments.into_iter().rev() {
        let is_live = live
            .last()
            .is_none_or(|newer| newer.header.kind == SegmentKind::Continues && segment.header.before.run < newer.header.before.run);
        if is_live { live.push(segment) } else { void.push(segment.path) }
    }
    live.reverse();
    // Oldest first: a crash in between leaves what the next start voids again.
    void.reverse();
    (live, void)
}
