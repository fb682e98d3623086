//! What a server does to its disk, as a list of steps, and what the disk must hold after each.

use std::sync::Arc;

use bytes::Bytes;
use cluster_server::disk::{
    Batch, DataDir, DiskError, Log, LogOptions, LogRecovered, NodeRecord, SnapshotStore, VerdictStore, WriteFailed,
};
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{ClusterId, DirectoryId, Epoch, Identity, LogIndex, RaftId, RoomId, RunIndex, Seat, Term, TimeMs};
use voter_mesh::log::Verdict;
use voter_mesh::mesh::forming::FormState;
use voter_mesh::run::{Run, Tail, Verdicts};
use voter_mesh::snapshot::SnapshotMeta;
use voter_mesh::verdicts::VerdictBook;

use super::disk::SimDisk;
use super::random::Random;

/// The history that all scripts are of.
pub const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };
/// The server whose disk it is.
pub const ID: RaftId = RaftId::new(Seat(1), 1);
/// The server's data directory.
pub const DIRECTORY: &str = "/data";
/// Bytes of verdicts that are kept: all.
const VERDICT_BYTES_MAX: usize = 1 << 20;

/// One step. Each is done when it returns, and only then is its effect promised.
#[derive(Clone, Debug)]
enum Step {
    /// Batches under one sync.
    Write(Vec<Batch>),
    /// The log loses what is below a run.
    Trim(RunIndex),
    /// The server's own snapshot, and before it the verdicts up to it.
    Snapshot(SnapshotMeta),
    /// A leader's snapshot: its file and the file's hash.
    Receive(SnapshotMeta, Bytes, [u8; 32]),
    /// The node record.
    Node(NodeRecord),
}

/// What the disk holds when a step, or one batch of one, is done.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    /// Where the log began when it last restarted.
    begin: Tail,
    /// All runs since then.
    runs: Vec<Run>,
    /// How many of them stood there before; a step that is under way may have got any number above that.
    stood: usize,
    /// Runs below this one may be gone.
    trim: RunIndex,
    term: Term,
    vote: RaftId,
    commit: RunIndex,
    /// The newest snapshot and the one before it.
    snapshots: Vec<Tail>,
    /// The verdicts from behind this entry to the newest snapshot are there.
    verdicts_after: LogIndex,
    node: NodeRecord,
}

impl Promise {
    fn tail(&self) -> Tail {
        self.runs.last().map_or(self.begin, |run| run.header().tail())
    }

    fn tail_at(&self, run: RunIndex) -> Option<Tail> {
        let at = run.0.checked_sub(self.begin.run.0)? as usize;
        at.checked_sub(1).map_or(Some(self.begin), |at| self.runs.get(at).map(|run| run.header().tail()))
    }
}

/// A list of steps that begins with an empty disk.
#[derive(Clone, Debug)]
pub struct Script {
    steps: Vec<(Step, usize)>,
    promises: Vec<Promise>,
    options: LogOptions,
}

impl Script {
    /// The script that only forms the server. Its segments have room for `room_bytes` of records.
    #[must_use]
    pub fn new(room_bytes: u64) -> Self {
        let zero = Tail::zero(&IDENTITY);
        let promise = Promise {
            begin: zero,
            runs: Vec::new(),
            stood: 0,
            trim: RunIndex::ZERO,
            term: zero.term,
            vote: RaftId::NONE,
            commit: zero.run,
            snapshots: vec![zero],
            verdicts_after: zero.last,
            node: node_record(0),
        };
        let options = LogOptions { segment_bytes: voter_mesh::log::RECORDS_AT + room_bytes, spares_max: 1 };
        Self { steps: Vec::new(), promises: vec![promise], options }
    }

    fn last(&self) -> &Promise {
        self.promises.last().expect("a script begins with one")
    }

    fn then(mut self, step: Step, promises: Vec<Promise>) -> Self {
        self.steps.push((step, promises.len()));
        self.promises.extend(promises);
        self
    }

    /// Batches of so many runs each, with entries of about `bytes` bytes, under one sync.
    #[must_use]
    pub fn append(self, batches: &[usize], bytes: usize) -> Self {
        let mut now = self.last().clone();
        let (mut written, mut promises) = (Vec::new(), Vec::new());
        for count in batches {
            let new = runs(now.tail(), now.term, *count, bytes);
            now.stood = now.runs.len();
            // What is acknowledged here may be committed elsewhere a moment later.
            now.commit = now.commit.max(RunIndex(now.tail().run.0.saturating_sub(2)));
            now.runs.extend_from_slice(&new);
            written.push(batch(&now, new));
            promises.push(now.clone());
        }
        self.then(Step::Write(written), promises)
    }

    /// A vote in the next term, for the server of a seat.
    #[must_use]
    pub fn vote(self, seat: u16) -> Self {
        let mut now = self.last().clone();
        (now.term, now.vote, now.stood) = (now.term.next(), RaftId::new(Seat(seat), 1), now.runs.len());
        let written = Batch { must_sync: true, ..batch(&now, Vec::new()) };
        self.then(Step::Write(vec![written]), vec![now])
    }

    /// A new leader replaces the last `gone` runs by `count` others, as far as they are not committed.
    #[must_use]
    pub fn cut(self, gone: usize, count: usize, bytes: usize) -> Self {
        let mut now = self.last().clone();
        let keep = RunIndex(now.tail().run.0.saturating_sub(gone as u64)).max(now.commit).max(now.begin.run);
        (now.term, now.vote, now.stood) = (now.term.next(), RaftId::NONE, (keep.0 - now.begin.run.0) as usize);
        now.runs.truncate(now.stood);
        let new = runs(now.tail(), now.term, count, bytes);
        now.runs.extend_from_slice(&new);
        let written = Batch { keep_through: Some(keep), ..batch(&now, new) };
        self.then(Step::Write(vec![written]), vec![now])
    }

    /// A snapshot of all that is committed.
    #[must_use]
    pub fn snapshot(self) -> Self {
        let mut now = self.last().clone();
        now.stood = now.runs.len();
        match now.tail_at(now.commit) {
            Some(tail) if now.snapshots.last().is_some_and(|newest| newest.run < tail.run) => {
                now.snapshots.push(tail);
                self.then(Step::Snapshot(meta(tail)), vec![now])
            }
            _ => self,
        }
    }

    /// A leader's snapshot, `ahead` runs beyond the log, is received and takes the log's place; `count` runs follow in the same batch.
    #[must_use]
    pub fn install(self, ahead: usize, count: usize, bytes: usize) -> Self {
        let mut now = self.last().clone();
        (now.term, now.vote, now.stood) = (now.term.next(), RaftId::NONE, 0);
        let far = runs(now.tail(), now.term, ahead.max(1), 3).last().map_or(now.begin, |run| run.header().tail());
        let (meta, file, hash) = leaders_file(far);
        // Received, but not yet in the log's place.
        let received = Promise { snapshots: [self.last().snapshots.clone(), vec![far]].concat(), ..self.last().clone() };
        let received = Promise { stood: received.runs.len(), verdicts_after: far.last, ..received };
        (now.begin, now.commit, now.snapshots, now.verdicts_after) = (far, far.run, received.snapshots.clone(), far.last);
        now.runs = runs(far, now.term, count, bytes);
        let written = Batch { install: Some(far), ..batch(&now, now.runs.clone()) };
        self.then(Step::Receive(meta, file, hash), vec![received]).then(Step::Write(vec![written]), vec![now])
    }

    /// The log loses what the older of its two snapshots stands for.
    #[must_use]
    pub fn trim(self) -> Self {
        let mut now = self.last().clone();
        now.stood = now.runs.len();
        let oldest = now.snapshots.len().saturating_sub(2);
        now.trim = now.snapshots.get(oldest).map_or(RunIndex::ZERO, |tail| tail.run).max(now.trim);
        self.then(Step::Trim(now.trim), vec![now])
    }

    /// The node record is replaced.
    #[must_use]
    pub fn node(self) -> Self {
        let mut now = self.last().clone();
        (now.stood, now.node) = (now.runs.len(), node_record(now.node.machine.1 + 1));
        self.then(Step::Node(now.node.clone()), vec![now])
    }

    /// A script of so many steps.
    #[must_use]
    pub fn random(random: &mut Random, steps: usize) -> Self {
        let mut script = Self::new(512 * (1 + random.below(5)));
        for _ in 0..steps {
            let bytes_max = if random.below(3) == 0 { 4000 } else { 400 };
            let bytes = 4 + random.below(bytes_max) as usize;
            let count = |random: &mut Random| random.below(5) as usize;
            script = match random.below(16) {
                0..=5 => script.append(&[1 + count(random)], bytes),
                6..=7 => script.append(&[1, 1 + count(random), 1], bytes),
                8 => script.vote(1 + random.below(3) as u16),
                9..=11 => script.cut(1 + count(random), count(random), bytes),
                12..=13 => script.snapshot(),
                14 if random.below(2) == 0 => script.install(1 + count(random), count(random), bytes),
                14 => script.node(),
                _ => script.trim(),
            };
        }
        script
    }

    /// How large its log's files are.
    #[must_use]
    pub const fn options(&self) -> LogOptions {
        self.options
    }

    /// Does all of it on `disk`, and tells `progress` before each step and after it how many promises are kept and how many may be.
    ///
    /// # Errors
    /// The disk's, at which the server stops.
    pub fn perform(&self, disk: &SimDisk, mut progress: impl FnMut(usize, usize)) -> Result<(), WriteFailed> {
        progress(0, 0);
        let Started { mut dir, store, verdicts, mut log, .. } = start(disk, self.options)?;
        let mut kept = 0;
        for (step, promises) in &self.steps {
            progress(kept, kept + promises);
            match step {
                Step::Write(batches) => {
                    batches.iter().try_for_each(|batch| log.take(batch))?;
                    log.sync()?;
                }
                Step::Trim(below) => drop(log.trim(*below)?),
                Step::Snapshot(meta) => {
                    let (after, through) = (store.newest().map_or(LogIndex::ZERO, |newest| newest.tail.last), meta.tail.last);
                    verdicts.write(after, through, &book(after, through).copy(after, through).expect("it holds just these"))?;
                    drop(write_snapshot(&store, meta)?);
                }
                Step::Receive(meta, file, hash) => {
                    let mut receiving = store.begin_receive(meta, file.len() as u64, *hash)?;
                    let mut received = receiving.received() as usize;
                    while received < file.len() {
                        receiving.write(&[file.slice(received..file.len().min(received + 400))])?;
                        received = receiving.received() as usize;
                    }
                    drop(receiving.finish()?);
                }
                Step::Node(record) => dir.store_node(record)?,
            }
            kept += promises;
            progress(kept, kept);
        }
        Ok(())
    }

    /// Whether what was found is what a server may find that had kept the first `kept` promises, when it may have been about to keep
    /// those up to `under_way`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, found: &Started, kept: usize, under_way: usize) -> Result<(), String> {
        let may = &self.promises[kept..=under_way];
        let LogRecovered { term, vote, commit, tail, .. } = found.recovered;
        if found.recovered.verdict == Verdict::Suspect || found.recovered.vote_lost {
            return Err(format!("a power cut made {:?}", found.recovered));
        }
        if !may.iter().any(|promise| promise.node == *found.dir.node().unwrap_or(&node_record(u32::MAX))) {
            return Err(format!("node record {:?}", found.dir.node()));
        }
        if !found.damage.is_empty() {
            return Err(format!("a power cut looks like damage: {:?}", found.damage));
        }
        let of_snapshot = || may.iter().filter(|promise| promise.snapshots.last() == Some(&found.snapshot));
        if of_snapshot().next().is_none() {
            return Err(format!("snapshot {:?}", found.snapshot));
        }
        let (after, through) = (found.book.after(), found.snapshot.last);
        if !of_snapshot().any(|promise| promise.verdicts_after == after)
            || found.book.copy(after, through) != book(after, through).copy(after, through)
        {
            return Err(format!("verdicts behind {after} up to {}, with a snapshot at {through}", found.book.through()));
        }
        // Runs, or a snapshot, of a term whose mark is not there show that the term began; nobody has this server's vote in it.
        let is_new = vote == RaftId::NONE && term == tail.term && term > may[0].term;
        if !is_new && !may.iter().any(|promise| (promise.term, promise.vote) == (term, vote)) || term < tail.term {
            return Err(format!("term {term} and vote {vote}, in a log that ends {tail:?}"));
        }
        if commit > may[may.len() - 1].commit || commit > tail.run {
            return Err(format!("commit {commit}"));
        }
        let fits = |number: usize, promise: &Promise| {
            let least = if number == 0 { promise.runs.len() } else { promise.stood };
            (least..=promise.runs.len()).any(|count| found.is(promise.begin, &promise.runs[..count], promise.trim))
        };
        if may.iter().enumerate().any(|(number, promise)| fits(number, promise)) {
            return Ok(());
        }
        let held: Vec<_> = found.held.iter().map(|run| (run.header().run.0, run.header().term.0)).collect();
        Err(format!("the log ends {tail:?} and holds (run, term) {held:?}; {may:?}"))
    }
}

/// A server that has started.
#[derive(Debug)]
pub struct Started {
    /// Its directory.
    pub dir: DataDir,
    /// Its snapshots.
    pub store: SnapshotStore,
    /// Its verdict files.
    pub verdicts: VerdictStore,
    /// What they held.
    pub book: VerdictBook,
    /// What of that which a sync had confirmed cannot be read.
    pub damage: Vec<String>,
    /// Its log.
    pub log: Log,
    /// What recovery said of it.
    pub recovered: LogRecovered,
    /// Where the newest snapshot ends.
    pub snapshot: Tail,
    /// The runs that recovery showed: those behind the snapshot.
    pub shown: Vec<Run>,
    /// The runs that can be read back: all that the log holds.
    pub held: Vec<Run>,
}

impl Started {
    /// Whether the log is the one that began behind `begin` with these runs, perhaps without those below `trim`; or, if that one does not
    /// hold the snapshot, an empty one behind the snapshot.
    fn is(&self, begin: Tail, runs: &[Run], trim: RunIndex) -> bool {
        let mut tails = std::iter::once(begin).chain(runs.iter().map(|run| run.header().tail()));
        let Some(at) = tails.position(|tail| tail == self.snapshot) else {
            return self.held.is_empty() && self.recovered.tail == self.snapshot;
        };
        let Some(trimmed) = runs.len().checked_sub(self.held.len()) else { return false };
        let end = runs.last().map_or(begin, |run| run.header().tail());
        let before = trimmed.checked_sub(1).map_or(begin, |last| runs[last].header().tail());
        self.recovered.tail == end
            && self.shown == runs[at..]
            && self.held == runs[trimmed..]
            && self.recovered.before_first == (before.run, before.term)
            && (trimmed == 0 || before.run < trim)
    }

    /// Writes more, as a server of the next term would, and returns what the log holds then.
    pub(super) fn append(&mut self, count: usize) -> Result<Vec<Run>, WriteFailed> {
        let term = self.recovered.term.next();
        let new = runs(*self.log.tail(), term, count, 60);
        self.log.take(&Batch { term, writer_term: term, runs: new.clone(), ..empty_batch() })?;
        self.log.sync()?;
        Ok([self.held.clone(), new].concat())
    }

    /// What it found, as a promise: all of it may be acknowledged now.
    #[must_use]
    pub fn as_script(&self, options: LogOptions) -> Script {
        // Only run and term of it are compared, unless it is the snapshot's.
        let (run, term) = self.recovered.before_first;
        let begin = Tail { run, term, ..self.snapshot };
        let promise = Promise {
            begin,
            runs: self.held.clone(),
            stood: self.held.len(),
            trim: begin.run.next(),
            term: self.recovered.term,
            vote: self.recovered.vote,
            commit: self.recovered.commit,
            snapshots: vec![self.snapshot],
            verdicts_after: self.book.after(),
            node: self.dir.node().cloned().unwrap_or_else(|| node_record(0)),
        };
        Script { steps: Vec::new(), promises: vec![promise], options }
    }
}

/// Starts a server on a disk as `node` does: the directory, its record, the newest snapshot, the log; each is made if it is not there
/// yet. It is the only voter: a doubtful end stands.
///
/// # Errors
/// What the disk says.
pub fn start(disk: &SimDisk, options: LogOptions) -> Result<Started, DiskError> {
    let mut dir = DataDir::open_on(Arc::new(disk.clone()), DIRECTORY, DirectoryId([3; 16]))?;
    if dir.node().is_none() {
        dir.store_node(&node_record(0))?;
    }
    let store = SnapshotStore::open(&dir, IDENTITY)?;
    let snapshot = match store.newest() {
        Some(newest) => newest.tail,
        None => write_snapshot(&store, &meta(Tail::zero(&IDENTITY)))?.tail,
    };
    let (verdicts, book) = VerdictStore::open(&dir, IDENTITY, snapshot.last, VERDICT_BYTES_MAX)?;
    let (mut shown, mut damage) = (Vec::new(), Vec::new());
    let mut recover = |dir: &DataDir| {
        shown.clear();
        let look = Log::look(dir, IDENTITY, ID, Some(&snapshot), options, &mut |run, _| shown.push(run.clone()))?;
        damage = look.damage().iter().map(ToString::to_string).collect();
        look.open()
    };
    let (mut log, recovered) = match recover(&dir) {
        Err(DiskError::NoLog { .. }) => {
            drop(Log::create(&dir, IDENTITY, ID, snapshot, options)?);
            recover(&dir)?
        }
        result => result?,
    };
    if recovered.verdict == Verdict::Doubtful {
        log.accept_end();
        log.sync()?;
    }
    let (first, last) = log.reader().range();
    let held = log.reader().read(first, last, usize::MAX).map_err(|error| DiskError::Damaged {
        path: DIRECTORY.into(),
        why: format!("what recovery found cannot be read back: {error}"),
    })?;
    Ok(Started { dir, store, verdicts, book, damage, log, recovered, snapshot, shown, held })
}

/// `count` runs behind `tail`, each with one entry of `bytes` bytes that no other term's has.
#[must_use]
pub fn runs(mut tail: Tail, term: Term, count: usize, bytes: usize) -> Vec<Run> {
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let mut payload = vec![term.0 as u8; bytes.max(1)];
        payload[0] = tail.run.0 as u8;
        let entry = entry(&EntrySpec::internal(EntryKind::Command), &payload).expect("a small entry");
        let time = TimeMs(tail.run.0);
        let run = Run::seal(&tail, term, time, IDENTITY.epoch, IDENTITY.room, &[entry.as_ref()]).expect("a small run");
        tail = run.header().tail();
        runs.push(run);
    }
    runs
}

/// Verdicts of the entries behind `after` up to `through`, another for each third.
fn book(after: LogIndex, through: LogIndex) -> VerdictBook {
    let mut book = VerdictBook::new(after, VERDICT_BYTES_MAX);
    for index in after.0 + 1..=through.0 {
        let mut verdicts = Verdicts::clear(1);
        if index.is_multiple_of(3) {
            verdicts.set(0);
        }
        book.push(LogIndex(index), 1, &verdicts);
    }
    book
}

fn empty_batch() -> Batch {
    Batch {
        number: 0,
        term: Term(0),
        vote: RaftId::NONE,
        commit: RunIndex::ZERO,
        writer_term: Term(0),
        install: None,
        keep_through: None,
        runs: Vec::new(),
        must_sync: false,
    }
}

fn batch(now: &Promise, runs: Vec<Run>) -> Batch {
    Batch { term: now.term, vote: now.vote, commit: now.commit, writer_term: now.term, runs, ..empty_batch() }
}

/// A node record; another one for each number.
fn node_record(number: u32) -> NodeRecord {
    NodeRecord {
        directory: DirectoryId([3; 16]),
        seat: Seat(1),
        id: Some(ID),
        identity: Some(IDENTITY),
        configuration: Configuration::default(),
        machine: ("kv".into(), number),
        state: FormState::Formed,
    }
}

fn meta(tail: Tail) -> SnapshotMeta {
    SnapshotMeta {
        tail,
        identity: IDENTITY,
        configuration: Configuration::default(),
        configuration_run: RunIndex(1),
        machine_name: "kv".into(),
        machine_version: 1,
        state_hash: [0; 32],
        sessions_hash: [0; 32],
    }
}

fn write_snapshot(store: &SnapshotStore, meta: &SnapshotMeta) -> Result<SnapshotMeta, DiskError> {
    let state = [meta.tail.run.0 as u8; 700];
    store.write(meta.clone(), |to| to.write_all(&state), |to| to.write_all(b"sessions"))
}

/// A snapshot as another server would send it.
fn leaders_file(tail: Tail) -> (SnapshotMeta, Bytes, [u8; 32]) {
    let dir = DataDir::open_on(Arc::new(SimDisk::new()), DIRECTORY, DirectoryId([4; 16])).expect("a disk without faults");
    let store = SnapshotStore::open(&dir, IDENTITY).expect("a disk without faults");
    let meta = write_snapshot(&store, &meta(tail)).expect("a disk without faults");
    let file = store.open_file(&meta).expect("it was just written");
    let bytes = file.read_at(0, file.bytes() as usize).expect("a disk without faults");
    (meta, bytes, file.hash())
}
