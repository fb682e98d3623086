//! The lives that the fixtures are of: fixed inputs, and the server's own code that makes files of them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cluster_server::disk::{Batch, DataDir, Log, LogOptions, NodeRecord, OsFiles, SnapshotStore, VerdictStore};
use voter_mesh::configuration::{ConfigPayload, Configuration, Member, Role, SeatRecord};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, DirectoryId, Epoch, Identity, LogIndex, Opening, RaftId, RequestId, RoomId, RunIndex, Seat, SessionId, Term, TimeMs,
};
use voter_mesh::log::{MARK_AT, RECORDS_AT, empty_tail};
use voter_mesh::machine::kv::{self, KvCommand, KvExpected};
use voter_mesh::machine::to_cbor;
use voter_mesh::mesh::forming::FormState;
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::{Run, Tail};
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, secret_hash};
use voter_mesh::snapshot::SnapshotMeta;
use voter_mesh::verdicts::VerdictBook;

pub(super) const IDENTITY: Identity = Identity { cluster: ClusterId([0x51; 16]), epoch: Epoch(1), room: RoomId(0) };
pub(super) const OPTIONS: LogOptions = LogOptions { segment_bytes: RECORDS_AT + 1024, spares_max: 1 };
pub(super) const VERDICT_BYTES_MAX: usize = 1 << 20;

const SECOND: RaftId = RaftId::new(Seat(2), 1);

/// Who lives in which directory.
pub(super) fn node(name: &str) -> NodeRecord {
    let (seat, life, state) = match name {
        "member" => (1, 1, FormState::Formed),
        "installed" => (2, 3, FormState::Newcomer),
        _ => (3, 1, FormState::Formed),
    };
    NodeRecord {
        directory: DirectoryId([seat as u8; 16]),
        seat: Seat(seat),
        id: Some(RaftId::new(Seat(seat), life)),
        identity: Some(IDENTITY),
        configuration: configuration(1),
        machine: ("kv".into(), 1),
        state,
    }
}

fn configuration(life_of_the_second: u16) -> Configuration {
    let member =
        |seat, life| Member { id: RaftId::new(Seat(seat), life), directory: DirectoryId([seat as u8; 16]), role: Role::Voter };
    let seat = |seat: u16, life| SeatRecord {
        address: format!("server-{seat}:4201"),
        priority: i32::from(seat == 1),
        failure_domain: format!("rack-{seat}"),
        highest_life: life,
        member: Some(member(seat, life)),
        incoming: None,
    };
    let seats = [(Seat(1), seat(1, 1)), (Seat(2), seat(2, life_of_the_second)), (Seat(3), seat(3, 1))];
    Configuration { seats: seats.into(), outgoing: Vec::new(), retired: [(Seat(4), 2)].into() }
}

fn internal(kind: EntryKind, session: u64, payload: &[u8]) -> Bytes {
    entry(&EntrySpec { session: SessionId(session), ..EntrySpec::internal(kind) }, payload).unwrap()
}

fn open(secret: u8) -> Bytes {
    internal(EntryKind::SessionOpen, 0, &secret_hash(&[secret; 32]))
}

fn command(session: u64, opening: u64, request: u64, floor: u64, payload: &[u8]) -> Bytes {
    let (session, opening) = (SessionId(session), Opening(opening));
    let (request, floor) = (RequestId(request), RequestId(floor));
    entry(&EntrySpec { kind: EntryKind::Command, room: RoomId(0), session, opening, request, floor }, payload).unwrap()
}

fn put(key: &str, value: &str) -> Bytes {
    to_cbor(&KvCommand::Put { key: key.into(), value: value.into() }).unwrap()
}

/// A leader that seals one run after the other, half a second apart.
struct Leader {
    tail: Tail,
    term: u64,
}

impl Leader {
    fn seal(&mut self, entries: &[Bytes]) -> Run {
        let entries: Vec<&[u8]> = entries.iter().map(|entry| &entry[..]).collect();
        let now = TimeMs(1_700_000_000_000 + self.tail.run.0 * 500);
        let run = Run::seal(&self.tail, Term(self.term), now, IDENTITY.epoch, IDENTITY.room, &entries).unwrap();
        self.tail = run.header().tail();
        run
    }
}

fn batch(term: u64, vote: RaftId, commit: u64, runs: &[&Run]) -> Batch {
    Batch {
        number: 0,
        term: Term(term),
        vote,
        commit: RunIndex(commit),
        writer_term: Term(term),
        install: None,
        keep_through: None,
        runs: runs.iter().map(|run| (*run).clone()).collect(),
        must_sync: runs.is_empty(),
    }
}

fn write(log: &mut Log, batch: &Batch) {
    log.take(batch).unwrap();
    log.sync().unwrap();
}

fn directory(root: &Path, name: &str) -> DataDir {
    let node = node(name);
    let mut dir = DataDir::open_on(Arc::new(OsFiles), root.join(name), node.directory).unwrap();
    dir.store_node(&node).unwrap();
    dir
}

/// A replica, with what a server writes out of it.
struct Applier {
    replica: Replica,
    book: VerdictBook,
    snapshots: SnapshotStore,
    verdicts: VerdictStore,
    written: LogIndex,
}

impl Applier {
    fn apply(&mut self, run: &Run) {
        let applied = self.replica.apply(run).unwrap();
        self.book.push(run.header().first, run.header().count, &applied.verdicts);
    }

    fn snapshot(&mut self) -> SnapshotMeta {
        let last = self.replica.tail().last;
        self.verdicts.write(self.written, last, &self.book.copy(self.written, last).unwrap()).unwrap();
        self.written = last;
        let image = self.replica.image();
        let (machine, sessions) = (image.machine, image.sessions);
        self.snapshots.write(image.meta, |to| machine.write(to), |to| sessions.write(to)).unwrap()
    }
}

/// Writes all of them.
pub(super) fn write_all(root: &Path) {
    fs::create_dir_all(root).unwrap();
    let (snapshots, snapshot, next) = member(root);
    installed(root, &snapshots, &snapshot, &next);
    suspect(root);
    for name in ["member", "installed", "suspect"] {
        fs::remove_file(root.join(name).join("LOCK")).unwrap();
    }
}

/// A log that was rotated, cut at a conflict, trimmed, and went on in the trimmed file; two snapshots and their verdicts.
fn member(root: &Path) -> (SnapshotStore, SnapshotMeta, Vec<Run>) {
    let dir = directory(root, "member");
    let zero = Tail::zero(&IDENTITY);
    let mut log = Log::create(&dir, IDENTITY, node("member").id.unwrap(), zero, OPTIONS).unwrap();
    let (verdicts, book) = VerdictStore::open(&dir, IDENTITY, LogIndex::ZERO, VERDICT_BYTES_MAX).unwrap();
    let replica = Replica::form(IDENTITY, configuration(1), &kv::factory(), ReplicaLimits::default());
    let snapshots = SnapshotStore::open(&dir, IDENTITY).unwrap();
    let mut applier = Applier { replica, book, snapshots, verdicts, written: LogIndex::ZERO };
    let mut leader = Leader { tail: zero, term: 1 };

    let delete = to_cbor(&KvCommand::Delete { key: b"b".into() }).unwrap();
    let absent =
        to_cbor(&KvCommand::CompareAndSet { key: b"c".into(), expected: KvExpected::Absent, value: b"first".into() }).unwrap();
    let attach = AttachPayload { nonce: [0x77; 16], previous: Opening(3) }.encode();
    let payload = ConfigPayload { base: RunIndex(1), configuration: configuration(3) }.encode();
    let first: Vec<Run> = [
        vec![internal(EntryKind::Noop, 0, &[])],
        vec![open(0xa1), open(0xb2)],
        vec![command(2, 2, 1, 1, &put("a", "one")), command(2, 2, 2, 1, &put("b", "two")), command(3, 3, 1, 1, &absent)],
        // A retry, what the machine cannot decode, and a request under an opening that never was.
        vec![command(2, 2, 1, 1, &put("a", "one")), command(3, 3, 2, 1, b"\xff"), command(3, 9, 3, 1, &delete)],
        vec![internal(EntryKind::Config, 0, &payload)],
        vec![internal(EntryKind::SessionAttach, 3, &attach), command(3, 11, 4, 2, &delete)],
    ]
    .iter()
    .map(|entries| leader.seal(entries))
    .collect();
    for run in &first {
        write(&mut log, &batch(1, RaftId::NONE, run.header().run.0 - 1, &[run]));
        applier.apply(run);
    }
    applier.snapshot();

    // Two runs that were never committed; the leader of the next term has others.
    let kept = leader.tail;
    let lost = [leader.seal(&[command(2, 2, 3, 3, &put("a", "lost"))]), leader.seal(&[internal(EntryKind::Noop, 0, &[])])];
    write(&mut log, &batch(1, RaftId::NONE, kept.run.0, &[&lost[0], &lost[1]]));
    leader = Leader { tail: kept, term: 2 };
    write(&mut log, &batch(2, SECOND, kept.run.0, &[]));
    let noop = leader.seal(&[internal(EntryKind::Noop, 0, &[])]);
    write(&mut log, &Batch { keep_through: Some(kept.run), ..batch(2, SECOND, kept.run.0, &[&noop]) });
    applier.apply(&noop);

    let close = EndPayload { why: EndReason::Closed, last_activity: LogIndex(5) }.encode();
    let second = [
        leader.seal(&[command(3, 11, 5, 4, &put("d", "four")), internal(EntryKind::SessionEnd, 2, &close)]),
        leader.seal(&[command(2, 2, 3, 3, &put("a", "too late")), open(0xc3)]),
    ];
    for run in &second {
        write(&mut log, &batch(2, SECOND, run.header().run.0, &[run]));
        applier.apply(run);
    }
    let snapshot = applier.snapshot();
    log.trim(RunIndex(7)).unwrap();

    let mut next = Vec::new();
    for number in 1..=3 {
        let value = number.to_string().repeat(60);
        let run =
            leader.seal(&[command(17, 17, number, number, &put("e", &value)), command(3, 11, 5 + number, 5, &put("f", &value))]);
        write(&mut log, &batch(2, SECOND, run.header().run.0 - 1, &[&run]));
        next.push(run);
    }
    (applier.snapshots, snapshot, next)
}

/// A newcomer's log that a leader's snapshot has replaced.
fn installed(root: &Path, theirs: &SnapshotStore, snapshot: &SnapshotMeta, next: &[Run]) {
    let dir = directory(root, "installed");
    let mut log = Log::create(&dir, IDENTITY, node("installed").id.unwrap(), empty_tail(&IDENTITY), OPTIONS).unwrap();
    write(&mut log, &batch(1, RaftId::NONE, 0, &[]));
    let file = theirs.open_file(snapshot).unwrap();
    let ours = SnapshotStore::open(&dir, IDENTITY).unwrap();
    let mut receiving = ours.begin_receive(snapshot, file.bytes(), file.hash()).unwrap();
    receiving.write(&[file.read_at(0, file.bytes() as usize).unwrap()]).unwrap();
    receiving.finish().unwrap();
    let install = Some(snapshot.tail);
    write(&mut log, &Batch { install, ..batch(2, RaftId::NONE, snapshot.tail.run.0, &[&next[0], &next[1]]) });
}

/// A log that lost a run which it had acknowledged and, with a mark, the certainty of a vote; then it heard of later terms.
fn suspect(root: &Path) {
    let dir = directory(root, "suspect");
    let (zero, id) = (Tail::zero(&IDENTITY), node("suspect").id.unwrap());
    let mut log = Log::create(&dir, IDENTITY, id, zero, OPTIONS).unwrap();
    let mut leader = Leader { tail: zero, term: 1 };
    let runs = [1, 2, 3].map(|secret| leader.seal(&[open(secret)]));
    for run in &runs {
        write(&mut log, &batch(1, id, run.header().run.0 - 1, &[run]));
    }
    drop(log);
    let path = root.join("suspect/log/0000000000000001.seg");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"rot", RECORDS_AT + runs[0].bytes().len() as u64 + 100).unwrap();
    file.write_all_at(b"rot", MARK_AT[0] + 60).unwrap();
    drop(file);
    let (mut log, _) = Log::recover(&dir, IDENTITY, id, None, OPTIONS, &mut |_, _| {}).unwrap();
    write(&mut log, &batch(4, RaftId::NONE, 2, &[]));
    write(&mut log, &batch(5, SECOND, 2, &[]));
}
