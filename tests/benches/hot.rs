//! The hot parts of a command's way, one by one: `cargo bench -p tests --bench hot`. Appending writes and syncs in the system's
//! directory for temporary files; set `TMPDIR` to choose the disk.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use cluster_server::disk::{Batch, DataDir, Log, LogOptions};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use relay::feed::{Feed, FeedLimits};
use relay::wire::{ClientFrame, Proposal, ServerFrame, WireReply, kind};
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{Entries, EntryKind, EntrySpec, entry, put_entry};
use voter_mesh::ids::{
    ClusterId, Epoch, Identity, LogIndex, Opening, RaftId, RequestId, RoomId, RunIndex, Seat, SessionId, Term, TimeMs,
};
use voter_mesh::learner::Learner;
use voter_mesh::machine::kv::KvCommand;
use voter_mesh::machine::{MachineFactory, kv, log, to_cbor};
use voter_mesh::outcome::Outcome;
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::{Run, Tail, Verdicts, chain_zero};
use voter_mesh::session::secret_hash;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

/// Entries of a run and proposals of a frame, and bytes of each command.
const COUNT: u64 = 64;
const PAYLOAD: [u8; 64] = [7; 64];

/// Commands of a session that are in flight: the floor follows so far behind.
const WINDOW: u64 = 64;

fn command(session: u64, request: u64, payload: &[u8]) -> Bytes {
    let (session, opening) = (SessionId(session), Opening(session));
    let (request, floor) = (RequestId(request), RequestId(request.saturating_sub(WINDOW).max(1)));
    entry(&EntrySpec { kind: EntryKind::Command, room: RoomId(0), session, opening, request, floor }, payload).unwrap()
}

/// Seals runs, one behind the other.
struct Leader(Tail);

impl Leader {
    fn new() -> Self {
        Self(Tail::zero(&IDENTITY))
    }

    fn seal(&mut self, entries: &[Bytes]) -> Run {
        let entries: Vec<&[u8]> = entries.iter().map(AsRef::as_ref).collect();
        let run = Run::seal(&self.0, Term(1), TimeMs(1), IDENTITY.epoch, IDENTITY.room, &entries).unwrap();
        self.0 = run.header().tail();
        run
    }
}

fn commands() -> Vec<Bytes> {
    (1..=COUNT).map(|request| command(1, request, &PAYLOAD)).collect()
}

fn entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entries");
    group.throughput(Throughput::Elements(COUNT));
    let spec = EntrySpec::internal(EntryKind::Command);
    group.bench_function("encode 64", |bencher| {
        bencher.iter(|| {
            let mut to = BytesMut::with_capacity(8 << 10);
            (0..COUNT).for_each(|_| put_entry(&mut to, &spec, black_box(&PAYLOAD)).unwrap());
            to
        });
    });
    let together = commands().concat();
    group.bench_function("verify 64", |bencher| {
        bencher.iter(|| Entries::checked(black_box(&together)).filter(|entry| entry.is_ok()).count());
    });
    let (commands, mut leader) = (commands(), Leader::new());
    group.bench_function("seal a run of 64", |bencher| bencher.iter(|| leader.seal(black_box(&commands))));
    let run = Leader::new().seal(&commands);
    group.bench_function("verify a run of 64 and its chain", |bencher| {
        bencher.iter(|| Run::split_from(&mut black_box(run.bytes().clone())).unwrap());
    });
    group.finish();
}

/// Applies runs of 64 commands that go round all sessions.
fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(COUNT));
    let put = to_cbor(&KvCommand::Put { key: b"key".to_vec(), value: PAYLOAD.to_vec() }).unwrap();
    let cases: [(&str, MachineFactory, &[u8], u64); 3] = [
        ("64 to log, 1 session", log::factory(), &PAYLOAD, 1),
        ("64 to log, 100,000 sessions", log::factory(), &PAYLOAD, 100_000),
        ("64 to kv, 64 sessions", kv::factory(), &put, 64),
    ];
    for (name, factory, payload, sessions) in cases {
        let mut leader = Leader::new();
        let mut replica = Replica::form(IDENTITY, Configuration::default(), &factory, ReplicaLimits::default());
        for first in (0..sessions).step_by(COUNT as usize) {
            let open = |session: u64| {
                let secret: [u8; 32] = [&session.to_le_bytes()[..]; 4].concat().try_into().unwrap();
                entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&secret)).unwrap()
            };
            let opens: Vec<Bytes> = (first..sessions.min(first + COUNT)).map(open).collect();
            replica.apply(&leader.seal(&opens)).unwrap();
        }
        let mut proposed = 0;
        let mut next = || {
            let mut one = || {
                let (session, request) = (proposed % sessions + 1, proposed / sessions + 1);
                proposed += 1;
                command(session, request, payload)
            };
            let entries: Vec<Bytes> = (0..COUNT).map(|_| one()).collect();
            leader.seal(&entries)
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(&mut next, |run| replica.apply(&run).unwrap(), BatchSize::SmallInput);
        });
    }
    group.finish();
}

/// A run with all verdicts set, as learners get it.
fn block(run: &Run) -> Bytes {
    let mut verdicts = Verdicts::clear(run.header().count);
    (0..run.header().count as usize).for_each(|offset| verdicts.set(offset));
    [run.bytes(), verdicts.as_bytes()].concat().into()
}

fn feed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("feed");
    let chain = chain_zero(&IDENTITY);
    let (commands, leader) = (commands(), RefCell::new(Leader::new()));
    let mut ring = Feed::new(FeedLimits::default(), LogIndex::ZERO, chain);
    let seal = || leader.borrow_mut().seal(&commands);
    group.bench_function("push a run of 64", |bencher| {
        let push = |run: Run| {
            let verdicts = Verdicts::clear(run.header().count);
            ring.push(run, verdicts);
        };
        bencher.iter_batched(seal, push, BatchSize::SmallInput);
    });
    let cursors = 10_000;
    group.throughput(Throughput::Elements(cursors));
    group.bench_function("a new run to 10,000 cursors", |bencher| {
        bencher.iter(|| {
            let run = seal();
            let (cursor, verdicts) = (run.header().first, Verdicts::clear(run.header().count));
            ring.push(run, verdicts);
            (0..cursors).for_each(|_| drop(black_box(ring.frame_at(kind::FEED, cursor, LogIndex(u64::MAX)).unwrap())));
        });
    });
    group.throughput(Throughput::Elements(COUNT));
    let blocks = block(&Leader::new().seal(&commands));
    group.bench_function("a learner applies a run of 64", |bencher| {
        bencher.iter(|| {
            let mut learner = Learner::new(&IDENTITY);
            learner.apply_blocks(&mut black_box(blocks.clone()), &mut (), &mut |command| drop(black_box(command))).unwrap();
        });
    });
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Elements(COUNT));
    let proposal = |id| Proposal { id: RequestId(1_000 + id), floor: RequestId(1_000), payload: Bytes::from_static(&PAYLOAD) };
    let reply = |id| WireReply {
        id: RequestId(1_000 + id),
        index: LogIndex(70_000 + id),
        term: Term(3),
        payload_crc: 0xFEDC_BA98,
        repeat: false,
        outcome: Outcome::Applied(Bytes::from_static(&PAYLOAD[..16])),
    };
    let propose = ClientFrame::Propose((0..COUNT).map(proposal).collect());
    let replies = ServerFrame::Replies((0..COUNT).map(reply).collect());
    group.bench_function("encode 64 proposals", |bencher| bencher.iter(|| black_box(&propose).encode()));
    let bytes = propose.encode();
    group.bench_function("decode 64 proposals", |bencher| bencher.iter(|| ClientFrame::decode(black_box(&bytes)).unwrap()));
    group.bench_function("encode 64 replies", |bencher| bencher.iter(|| black_box(&replies).encode()));
    let bytes = replies.encode();
    group.bench_function("decode 64 replies", |bencher| bencher.iter(|| ServerFrame::decode(black_box(&bytes)).unwrap()));
    group.finish();
}

fn append(criterion: &mut Criterion) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temporary.path()).unwrap();
    let id = RaftId::new(Seat(1), 1);
    let log = Log::create(&dir, IDENTITY, id, Tail::zero(&IDENTITY), LogOptions::default()).unwrap();
    let (log, leader) = (RefCell::new(log), RefCell::new(Leader::new()));
    let batch = |entries: &[Bytes]| {
        // Segments are recycled, as below a snapshot.
        if leader.borrow().0.run.0.is_multiple_of(4_096) {
            let tail = log.borrow().tail().run;
            log.borrow_mut().trim(tail).unwrap();
        }
        Batch {
            number: 0,
            term: Term(1),
            vote: RaftId::NONE,
            commit: RunIndex::ZERO,
            writer_term: Term(1),
            install: None,
            keep_through: None,
            runs: vec![leader.borrow_mut().seal(entries)],
            must_sync: false,
        }
    };
    let write = |batch: Batch| {
        log.borrow_mut().take(&batch).unwrap();
        log.borrow_mut().sync().unwrap();
    };
    let mut group = criterion.benchmark_group("append");
    let commands = commands();
    for count in [1, COUNT as usize] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("a run of {count}, synced"), |bencher| {
            bencher.iter_batched(|| batch(&commands[..count]), write, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(hot, entries, apply, feed, frames, append);
criterion_main!(hot);
