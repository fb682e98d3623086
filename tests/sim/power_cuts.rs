//! Every way in which the power can go while a script runs, and what the next start makes of it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::{DiskState, Image, SimDisk};
use super::random::Random;
use super::script::{Script, Started, start};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Images of one crash point, at most; all that there are if they are not more.
    pub images_max: u64,
    /// Images of one crash point inside a start that follows a crash.
    pub again_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { images_max: 4096, again_max: 32 }
    }
}

/// What was tried, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Different images from which a server was started and checked.
    pub crash_states: u64,
    /// Starts that followed a kill without a power cut, each then cut off in every way.
    pub kills: u64,
    /// Starts at which the end was doubtful, and cut.
    pub doubtful: u64,
    /// Crash points that had more images than the bound, so that only some of them were tried.
    pub sampled: u64,
    /// What a start got wrong.
    pub violations: Vec<String>,
}

impl Report {
    /// Adds another one's.
    pub fn add(&mut self, other: Self) {
        self.crash_states += other.crash_states;
        self.kills += other.kills;
        self.doubtful += other.doubtful;
        self.sampled += other.sampled;
        self.violations.extend(other.violations);
    }
}

/// A moment of a script: the disk, and what it had promised and was about to promise.
struct Point {
    state: DiskState,
    kept: usize,
    under_way: usize,
}

/// Runs the script, and cuts the power after each operation that changes the disk, in every way; also while the start after such a cut
/// is under way; and kills the server at each of them, lets it start again, and then cuts the power.
#[must_use]
pub fn explore(script: &Script, bounds: Bounds, random: &mut Random) -> Report {
    let mut explorer = Explorer { script, bounds, seen: HashSet::new(), images: HashSet::new(), report: Report::default() };
    for point in record(script) {
        let Point { state, kept, under_way } = point;
        let mut shown = 0;
        state.images(bounds.images_max, random, &mut |image| {
            shown += 1;
            explorer.cut(image, kept, under_way, true);
        });
        explorer.report.sampled += u64::from(shown == bounds.images_max);
        explorer.kill(state, kept, under_way, random);
    }
    explorer.report.crash_states = explorer.images.len() as u64;
    explorer.report
}

fn record(script: &Script) -> Vec<Point> {
    let disk = SimDisk::new();
    let promised = Arc::new(Mutex::new((0, 0)));
    let points = Arc::new(Mutex::new(Vec::new()));
    let (seen, into) = (Arc::clone(&promised), Arc::clone(&points));
    disk.observe(Some(Box::new(move |state, _| {
        let (kept, under_way) = *seen.lock().unwrap_or_else(PoisonError::into_inner);
        into.lock().unwrap_or_else(PoisonError::into_inner).push(Point { state: state.clone(), kept, under_way });
    })));
    let end = |kept, under_way| {
        *promised.lock().unwrap_or_else(PoisonError::into_inner) = (kept, under_way);
        if kept == under_way {
            points.lock().unwrap_or_else(PoisonError::into_inner).push(Point { state: disk.state(), kept, under_way });
        }
    };
    script.perform(&disk, end).expect("a disk without faults takes everything");
    disk.observe(None);
    std::mem::take(&mut *points.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Explorer<'a> {
    script: &'a Script,
    bounds: Bounds,
    /// Images that were tried, with what was to be found on them.
    seen: HashSet<(u64, usize, usize)>,
    images: HashSet<u64>,
    report: Report,
}

impl Explorer<'_> {
    /// The power goes; this is left.
    fn cut(&mut self, image: Image, kept: usize, under_way: usize, again: bool) {
        let hash = image.hash();
        if !self.seen.insert((hash, kept, under_way)) {
            return;
        }
        self.images.insert(hash);
        let disk = SimDisk::on(image.into());
        let during = Arc::new(Mutex::new(Vec::new()));
        if again {
            let into = Arc::clone(&during);
            disk.observe(Some(Box::new(move |state: &DiskState, _| {
                if !state.is_settled() {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(state.clone());
                }
            })));
        }
        let started = self.start(&disk, "after a power cut", kept, under_way);
        disk.observe(None);
        // What a start leaves is what the next one begins with, so this proves little more with every image.
        if let Some(started) = started.filter(|_| hash.is_multiple_of(8)) {
            self.go_on(&disk, started);
        }
        let during = std::mem::take(&mut *during.lock().unwrap_or_else(PoisonError::into_inner));
        let mut random = Random::new(hash);
        for state in during {
            state.images(self.bounds.again_max, &mut random, &mut |image| self.cut(image, kept, under_way, false));
        }
    }

    /// The process is killed, but the cache lives on: the next one finds all that was written, and what it says that it found must be
    /// there after a power cut, because it may have acknowledged it by then.
    fn kill(&mut self, state: DiskState, kept: usize, under_way: usize, random: &mut Random) {
        let disk = SimDisk::on(state);
        let Some(started) = self.start(&disk, "after a kill", kept, under_way) else { return };
        self.report.kills += 1;
        let script = started.as_script(self.script.options());
        drop(started);
        let mut then = Explorer {
            script: &script,
            bounds: self.bounds,
            seen: HashSet::new(),
            images: HashSet::new(),
            report: Report::default(),
        };
        disk.state().images(self.bounds.again_max, random, &mut |image| then.cut(image, 0, 0, false));
        let violations = then.report.violations.iter().map(|what| format!("after a kill and a start, {what}"));
        self.report.violations.extend(violations);
        self.images.extend(then.images);
    }

    fn start(&mut self, disk: &SimDisk, when: &str, kept: usize, under_way: usize) -> Option<Started> {
        let found = start(disk, self.script.options()).map_err(|error| error.to_string());
        match found.and_then(|found| self.script.check(&found, kept, under_way).map(|()| found)) {
            Ok(found) => {
                self.report.doubtful += u64::from(found.recovered.must_reach.is_some());
                Some(found)
            }
            Err(why) => {
                self.report.violations.push(format!("{when}, promises {kept}..={under_way}: {why}"));
                None
            }
        }
    }

    /// The server goes on from what it found, and starts once more.
    fn go_on(&mut self, disk: &SimDisk, mut started: Started) {
        let expected = started.append(2);
        drop(started);
        let found = expected.map_err(|error| error.to_string()).and_then(|expected| {
            let found = start(disk, self.script.options()).map_err(|error| error.to_string())?;
            if found.held == expected { Ok(()) } else { Err(format!("{:?} instead of what was appended", found.recovered)) }
        });
        if let Err(why) = found {
            self.report.violations.push(format!("going on after a power cut: {why}"));
        }
    }
}
