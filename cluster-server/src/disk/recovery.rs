//! Opening the log again: what is there, where it ends, and what that is worth.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use voter_mesh::ids::{Identity, RaftId, RunIndex, Term};
use voter_mesh::log::{
    END_BYTES, LOG_FORMAT_VERSION, MARK_AT, Mark, MarkSlots, RECORDS_AT, SECTOR_BYTES, SegmentError, SegmentHeader, SegmentKind,
    Step, Verdict, judge, reaches, step,
};
use voter_mesh::run::{RUN_WHOLE_BYTES_MAX, Run, Tail};

use super::data_dir::DataDir;
use super::error::{At, DiskError};
use super::file_system::{DiskFile, FileSystem, Open};
use super::files;
use super::index::{Extent, Index, Shared};
use super::log::{Active, Log, LogOptions, segment_path};

/// Bytes read at once: more than any run has. Whoever keeps a run keeps as much memory, shared with its neighbours.
const READ_BYTES: usize = 2 << 20;
const _: () = assert!(READ_BYTES > RUN_WHOLE_BYTES_MAX);

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
    /// Opens the log, checks every run in it, and shows `visit` those behind `snapshot`, the newest that is durable, in order. A torn
    /// end is cut. If the log does not reach the snapshot (a crash came between the snapshot's rename and the log's restart), it
    /// restarts behind it, with its term, vote and doubts. What was read is durable when this returns: it may be acknowledged.
    ///
    /// # Errors
    /// `NoLog`, `Foreign`, `Newer`, `Damaged` (a header, or both marks), `Gap` and `Diverged`: nothing was changed. `Io`.
    pub fn recover(
        dir: &DataDir,
        identity: Identity,
        id: RaftId,
        snapshot: Option<&Tail>,
        options: LogOptions,
        visit: &mut dyn FnMut(&Run),
    ) -> Result<(Self, LogRecovered), DiskError> {
        let (files, directory) = (Arc::clone(dir.files()), dir.log_path());
        let found = Found::list(&*files, &directory)?;
        let (segments, void) = select(found.read_headers(&*files, Some((identity, id)))?);
        let Some(newest) = segments.last() else { return Err(DiskError::NoLog { path: directory }) };
        // What the process before this one wrote may not be synced, and after a sync that failed the cache may hold what the disk
        // does not: sync, forget, read.
        files::sync_data(&*newest.file, &newest.path)?;
        files::sync_directory(&*files, &directory)?;
        newest.file.forget_cache();
        let mark = read_mark(newest)?;

        let mut walk = Walk::new(identity, snapshot.copied(), segments[0].header.before, visit);
        let begin = walk.tail;
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.run < begin.run) {
            return Err(DiskError::Gap { snapshot: snapshot.run, first: begin.run.next() });
        }
        let mut extents = Vec::with_capacity(segments.len());
        let mut whole = true;
        let mut torn = false;
        let mut segments = segments.into_iter().peekable();
        let mut active = None;
        while let Some(Segment { header, file, path }) = segments.next() {
            let until = segments.peek().map(|next| next.header.before);
            let mut extent = Extent::new(file, path, header.before);
            whole &= walk.tail == header.before;
            if whole {
                torn = walk.segment(&mut extent, until.map(|before| before.run))?;
            }
            if until.is_none() {
                let bytes = extent.file.len().at("inspect", &extent.path)?;
                active = Some(Active {
                    file: Arc::clone(&extent.file),
                    path: extent.path.clone(),
                    sequence: header.sequence,
                    bytes,
                    next: extent.end,
                    written_through: extent.end,
                });
            }
            extents.push(extent);
        }
        let Walk { tail, terms, diverged, at_snapshot, .. } = walk;
        // What is committed here cannot be missing from a snapshot's history.
        let missing = snapshot.filter(|snapshot| !at_snapshot && snapshot.run <= mark.commit.min(tail.run));
        if let Some(run) = diverged.or(missing.map(|snapshot| snapshot.run)) {
            return Err(DiskError::Diverged { run });
        }
        let Some(active) = active else { return Err(DiskError::NoLog { path: directory }) };

        for path in void.into_iter().chain(found.temporary) {
            files::remove(&*files, &path)?;
        }
        let verdict = judge(&tail, torn, &mark);
        let must_reach = match verdict {
            Verdict::Clean | Verdict::Torn => None,
            // The higher of what it lost now and what it had lost before.
            Verdict::Doubtful | Verdict::Suspect => match mark.must_reach {
                Some(goal) if reaches(&goal, &mark.last) => Some(goal),
                _ => Some(mark.last),
            },
        };
        let (term, vote) = if tail.term > mark.term { (tail.term, RaftId::NONE) } else { (mark.term, mark.vote) };
        let mark = Mark { term, vote, must_reach, synced_through: tail.run, ..mark };
        let shared = Shared::new(Index { extents: extents.into(), durable: tail.run, ..Index::default() });
        let (spares, pending) = (found.spares, Vec::new());
        let mut log =
            Self { files, directory, identity, id, options, mark, tail, active, spares, shared, pending, unsynced: false };
        let mut recovered = LogRecovered {
            term,
            vote,
            commit: mark.commit.min(tail.run),
            before_first: (begin.run, begin.term),
            terms,
            tail,
            verdict,
            must_reach,
            vote_lost: mark.vote_lost,
        };
        if let Some(snapshot) = snapshot.filter(|_| !at_snapshot) {
            log.unsynced = true;
            log.new_segment(SegmentKind::Restarts, *snapshot, 0)?;
            log.sync()?;
            recovered.commit = mark.commit.min(snapshot.run);
            recovered.before_first = (snapshot.run, snapshot.term);
            recovered.terms.clear();
            recovered.tail = *snapshot;
            recovered.must_reach = log.must_reach();
            if recovered.must_reach.is_none() && verdict != Verdict::Clean {
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
        let mark = read_mark(segment)?;
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

fn read_mark(segment: &Segment) -> Result<Mark, DiskError> {
    let mut slots = [None; 2];
    for (slot, (mark, at)) in slots.iter_mut().zip(MARK_AT).enumerate() {
        *mark = Mark::decode(&read_sector(&*segment.file, &segment.path, at)?, segment.header.sequence, slot);
    }
    MarkSlots(slots).newest().map_err(|error| DiskError::Damaged { path: segment.path.clone(), why: error.to_string() })
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

/// The walk over all runs.
struct Walk<'a> {
    identity: Identity,
    snapshot: Option<Tail>,
    tail: Tail,
    terms: Vec<(RunIndex, Term)>,
    /// The log stands at the snapshot's end, or has passed it.
    at_snapshot: bool,
    diverged: Option<RunIndex>,
    visit: &'a mut dyn FnMut(&Run),
}

impl<'a> Walk<'a> {
    fn new(identity: Identity, snapshot: Option<Tail>, begin: Tail, visit: &'a mut dyn FnMut(&Run)) -> Self {
        let mut walk =
            Self { identity, snapshot, tail: begin, terms: Vec::new(), at_snapshot: snapshot.is_none(), diverged: None, visit };
        walk.compare();
        walk
    }

    /// Compares the log with the snapshot where they meet.
    fn compare(&mut self) {
        match self.snapshot {
            Some(snapshot) if snapshot.run == self.tail.run && snapshot.term == self.tail.term => {
                self.at_snapshot = true;
                if snapshot != self.tail {
                    self.diverged = Some(snapshot.run);
                }
            }
            // Another term there: the log beyond is an uncommitted branch that the snapshot voids.
            _ => {}
        }
    }

    /// Walks one segment up to run `until`, or to where the log ends; whether something else than zeros stands there.
    fn segment(&mut self, extent: &mut Extent, until: Option<RunIndex>) -> Result<bool, DiskError> {
        loop {
            let mut bytes = files::read_at(&*extent.file, extent.end, READ_BYTES).at("read", &extent.path)?;
            let at_end_of_file = bytes.len() < READ_BYTES;
            loop {
                if until.is_some_and(|until| self.tail.run >= until) {
                    return Ok(false);
                }
                // Too little to tell a header from zeros.
                if bytes.len() < END_BYTES && !at_end_of_file {
                    break;
                }
                match step(&self.tail, &self.identity, &mut bytes) {
                    Step::Run(run) => {
                        extent.push(run.header().run, run.bytes().len());
                        self.pass(&run);
                    }
                    Step::More if at_end_of_file => return Ok(true),
                    Step::More => break,
                    Step::End { torn } => return Ok(torn),
                }
            }
        }
    }

    fn pass(&mut self, run: &Run) {
        if run.header().term > self.tail.term || self.terms.is_empty() {
            self.terms.push((run.header().run, run.header().term));
        }
        self.tail = run.header().tail();
        if self.at_snapshot {
            (self.visit)(run);
        } else {
            self.compare();
        }
    }
}
