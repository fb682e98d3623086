//! The walk over all runs of a log: what is good, where it ends, and what is damaged in its midst.

use std::fmt;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use voter_mesh::ids::{Identity, RunIndex, Term};
use voter_mesh::log::{END_BYTES, FarSide, Hole, Mark, Step, find_run, step};
use voter_mesh::run::{RUN_WHOLE_BYTES_MAX, Run, Tail};

use super::error::{At, DiskError};
use super::file_system::DiskFile;
use super::files;
use super::index::Extent;

/// Bytes read at once: more than any run has. Whoever keeps a run keeps as much memory, shared with its neighbours.
const READ_BYTES: usize = 2 << 20;
const _: () = assert!(READ_BYTES > RUN_WHOLE_BYTES_MAX);

/// Runs that an earlier sync has confirmed and that cannot be read any more.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Where in it the first of them should stand.
    pub at: u64,
    /// The first of them.
    pub first: RunIndex,
    /// What is known of the place, if something good stands behind it.
    pub hole: Option<Hole>,
    file: Arc<dyn DiskFile>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, at, first, hole, .. } = self;
        match hole {
            Some(hole) => write!(f, "{} at byte {at}: runs {first} to {} cannot be read", path.display(), hole.last()),
            None => write!(f, "{} at byte {at}: run {first} and all behind it cannot be read", path.display()),
        }
    }
}

impl Damage {
    /// Writes the missing runs into the hole. They are durable when this returns; a crash on the way leaves a hole that is as damaged
    /// as it was. Returns whether they are the missing ones: otherwise nothing was written.
    ///
    /// # Errors
    /// `Io`: look again.
    pub fn fill(&self, runs: &[Run]) -> Result<bool, DiskError> {
        if !self.hole.is_some_and(|hole| hole.is_filled_by(runs)) {
            return Ok(false);
        }
        let mut slices: Vec<_> = runs.iter().map(|run| IoSlice::new(run.bytes())).collect();
        files::write_slices_at(&*self.file, &self.path, &mut slices, self.at)?;
        files::sync_data(&*self.file, &self.path)?;
        Ok(true)
    }
}

/// What the walk has found.
#[derive(Debug)]
pub(super) struct Walked {
    /// The end of the log before its first run.
    pub(super) begin: Tail,
    /// The log's end: before the first hole that no snapshot covers, or where nothing good stands any more.
    pub(super) tail: Tail,
    /// Something else than zeros stands behind it.
    pub(super) torn: bool,
    /// The first run of each term.
    pub(super) terms: Vec<(RunIndex, Term)>,
    /// The log stands at the snapshot's end, or has passed it.
    pub(super) at_snapshot: bool,
    /// Where log and snapshot contradict each other.
    pub(super) diverged: Option<RunIndex>,
    pub(super) damage: Vec<Damage>,
    /// The segments, with all that is good in them.
    pub(super) extents: Vec<Extent>,
    /// The last good run, wherever the log ends.
    pub(super) reached: RunIndex,
    /// The extent in which the log ends, and where in it.
    end: (usize, u64),
}

impl Walked {
    /// Leaves in the extents only what belongs to the log.
    pub(super) fn cut(&mut self) {
        let (last, end) = self.end;
        for (number, extent) in self.extents.iter_mut().enumerate().skip(last) {
            if number == last { extent.cut(self.tail.run, end) } else { extent.clear() }
        }
    }
}

/// The walk over all runs.
pub(super) struct Walk<'a> {
    identity: Identity,
    snapshot: Option<Tail>,
    /// Up to here, what is missing is damage.
    synced_through: RunIndex,
    /// Beyond this run, nothing is the log's.
    through: RunIndex,
    /// Up to here, all is committed.
    commit: RunIndex,
    /// Where the walk stands.
    at: Tail,
    /// It has gone on behind a hole that ends the log.
    beyond: bool,
    walked: Walked,
    visit: &'a mut dyn FnMut(&Run, bool),
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        identity: Identity,
        snapshot: Option<Tail>,
        begin: Tail,
        mark: &Mark,
        visit: &'a mut dyn FnMut(&Run, bool),
    ) -> Self {
        let walked = Walked {
            begin,
            tail: begin,
            torn: false,
            terms: Vec::new(),
            at_snapshot: snapshot.is_none(),
            diverged: None,
            damage: Vec::new(),
            extents: Vec::new(),
            reached: begin.run,
            end: (0, 0),
        };
        let Mark { synced_through, commit, last: Tail { run: through, .. }, .. } = *mark;
        let mut walk = Self { identity, snapshot, synced_through, through, commit, at: begin, beyond: false, walked, visit };
        walk.compare();
        walk
    }

    pub(super) fn finish(mut self) -> Walked {
        if !self.beyond {
            self.walked.tail = self.at;
        }
        self.walked.reached = self.at.run;
        self.walked
    }

    /// Compares the log with the snapshot where they meet.
    fn compare(&mut self) {
        match self.snapshot {
            Some(snapshot) if snapshot.run == self.at.run && snapshot.term == self.at.term => {
                if snapshot == self.at {
                    self.walked.at_snapshot = true;
                } else if self.walked.damage.is_empty() {
                    self.walked.diverged = Some(snapshot.run);
                }
            }
            // Another term there: the log beyond is an uncommitted branch that the snapshot voids.
            _ => {}
        }
    }

    /// Walks the next segment, up to run `until` if another one follows.
    pub(super) fn segment(&mut self, mut extent: Extent, until: Option<RunIndex>) -> Result<(), DiskError> {
        if self.at != extent.before && self.at.run < extent.before.run {
            // The segment before this one ended too early.
            if let Some(previous) = self.walked.extents.last() {
                let (path, at, file) = (previous.path.clone(), previous.end, Arc::clone(&previous.file));
                let end = (self.walked.extents.len() - 1, at);
                self.damaged(path, at, file, Some(FarSide::Segment(extent.before)));
                self.go_on_behind(extent.before, end);
            }
        }
        if self.at == extent.before {
            while let Some(torn) = self.stretch(&mut extent, until)? {
                self.walked.torn |= torn && !self.beyond;
                let confirmed = self.at.run < until.unwrap_or(self.synced_through);
                if !confirmed || !self.find_far_side(&mut extent, until)? {
                    break;
                }
            }
            if !self.beyond {
                self.walked.end = (self.walked.extents.len(), extent.end);
            }
        }
        self.walked.extents.push(extent);
        Ok(())
    }

    /// Walks runs up to `until`, or to where they end; then, whether something else than zeros stands there.
    fn stretch(&mut self, extent: &mut Extent, until: Option<RunIndex>) -> Result<Option<bool>, DiskError> {
        loop {
            let mut bytes = files::read_at(&*extent.file, extent.end, READ_BYTES).at("read", &extent.path)?;
            let at_end_of_file = bytes.len() < READ_BYTES;
            loop {
                if until.is_some_and(|until| self.at.run >= until) {
                    return Ok(None);
                }
                // Too little to tell a header from zeros.
                if bytes.len() < END_BYTES && !at_end_of_file {
                    break;
                }
                match step(&self.at, &self.identity, &mut bytes) {
                    Step::Run(run) => {
                        extent.push(run.header());
                        self.pass(&run);
                    }
                    Step::More if at_end_of_file => return Ok(Some(true)),
                    Step::More => break,
                    Step::End { torn } => return Ok(Some(torn)),
                }
            }
        }
    }

    /// Looks in the rest of the segment for a run behind a hole, and goes on there; whether there is one.
    fn find_far_side(&mut self, extent: &mut Extent, until: Option<RunIndex>) -> Result<bool, DiskError> {
        let (begin, through) = (extent.end, until.unwrap_or(self.through));
        let mut at = begin;
        loop {
            let bytes = files::read_at(&*extent.file, at, READ_BYTES).at("read", &extent.path)?;
            let at_end_of_file = bytes.len() < READ_BYTES;
            match find_run(&self.at, through, &self.identity, &bytes, at_end_of_file) {
                Ok((offset, run)) => {
                    let header = *run.header();
                    at += offset as u64;
                    let far = FarSide::Run { header, bytes: at - begin };
                    self.damaged(extent.path.clone(), begin, Arc::clone(&extent.file), Some(far));
                    extent.skip_to(&header, at);
                    let end = (self.walked.extents.len(), begin);
                    match self.snapshot {
                        Some(snapshot) if !self.walked.at_snapshot && snapshot.continues(&header) => {
                            self.go_on_behind(snapshot, end);
                            extent.push(&header);
                            self.pass(&run);
                        }
                        _ => {
                            extent.push(&header);
                            self.go_on_behind(header.tail(), end);
                        }
                    }
                    return Ok(true);
                }
                Err(_) if at_end_of_file => {
                    // With a segment behind this one, that is where the far side stands.
                    if until.is_none() {
                        self.damaged(extent.path.clone(), begin, Arc::clone(&extent.file), None);
                    }
                    return Ok(false);
                }
                Err(offset) => at += offset as u64,
            }
        }
    }

    fn damaged(&mut self, path: PathBuf, at: u64, file: Arc<dyn DiskFile>, far: Option<FarSide>) {
        let hole = far.map(|far| Hole { after: self.at, far });
        self.walked.damage.push(Damage { path, at, first: self.at.run.next(), hole, file });
    }

    /// Goes on behind a hole, at `before`. If the snapshot covers it, the log begins there; otherwise it ended at `end`.
    fn go_on_behind(&mut self, before: Tail, end: (usize, u64)) {
        let covered = !self.walked.at_snapshot && self.snapshot.is_some_and(|snapshot| before.run <= snapshot.run);
        if covered && !self.beyond {
            (self.walked.begin, self.walked.torn) = (before, false);
            self.walked.terms.clear();
        } else if !self.beyond {
            self.beyond = true;
            (self.walked.tail, self.walked.end, self.walked.torn) = (self.at, end, true);
        }
        self.at = before;
        if !self.beyond {
            self.compare();
        }
    }

    fn pass(&mut self, run: &Run) {
        let (header, before) = (run.header(), self.at);
        self.at = header.tail();
        if self.beyond {
            return;
        }
        if header.term > before.term || self.walked.terms.is_empty() {
            self.walked.terms.push((header.run, header.term));
        }
        if self.walked.at_snapshot {
            (self.visit)(run, header.run <= self.commit);
        } else {
            self.compare();
        }
    }
}
