//! Format version 1, frozen: files that were committed with it are read to the last field, and the same inputs still give the same
//! bytes. A change of these files is a new format version, which gets fixtures of its own and keeps reading these.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::{env, fs};

use bytes::Bytes;
use cluster_server::disk::{DataDir, Log, NodeRecord, SnapshotFile, SnapshotStore, VerdictStore};
use cluster_server::{DamagePolicy, StartError, tools};
use voter_mesh::ids::{LogIndex, RequestId};
use voter_mesh::log::{END_BYTES, MARK_AT, Mark, RECORDS_AT, SECTOR_BYTES, SegmentHeader, Step, step};
use voter_mesh::machine::kv::{self, Kv, KvReply};
use voter_mesh::machine::{MachineFactory, StateMachine, from_cbor, log};
use voter_mesh::outcome::Outcome;
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::Tail;
use voter_mesh::session::secret_hash;

use crate::here::{lone_voter, mesh_addresses};

mod expected;
mod writer;

use expected::{INSTALLED, MEMBER, SUSPECT};
use writer::{IDENTITY, OPTIONS, VERDICT_BYTES_MAX};

/// Where this is set, the fixtures are written instead of compared.
const REWRITE: &str = "QUORATE_WRITE_FIXTURES";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1")
}

/// All files below a directory, by their names from there.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Copies a fixture, for a server to use.
fn copy(name: &str, to: &Path) {
    for (path, bytes) in files(&fixtures().join(name)) {
        fs::create_dir_all(to.join(&path).parent().unwrap()).unwrap();
        fs::write(to.join(path), bytes).unwrap();
    }
}

#[test]
fn the_same_inputs_still_give_the_bytes_of_format_1() {
    if env::var_os(REWRITE).is_some() {
        let _ = fs::remove_dir_all(fixtures());
        return writer::write_all(&fixtures());
    }
    let temporary = tempfile::tempdir().unwrap();
    writer::write_all(temporary.path());
    let (ours, frozen) = (files(temporary.path()), files(&fixtures()));
    assert_eq!(ours.keys().collect::<Vec<_>>(), frozen.keys().collect::<Vec<_>>());
    for (path, bytes) in &frozen {
        if path.extension().is_some_and(|extension| extension == "snap") {
            // Another version of the compressor may find other bytes for the same content.
            let read = |root: &Path| {
                let file = SnapshotFile::open(root.join(path)).unwrap();
                (all(file.state().unwrap()), all(file.sessions().unwrap()), file.meta().clone())
            };
            assert_eq!(read(temporary.path()), read(&fixtures()), "{}", path.display());
            assert_eq!(ours[path][..64], bytes[..64], "header of {}", path.display());
        } else {
            let differs = ours[path].iter().zip(bytes).position(|(ours, frozen)| ours != frozen);
            assert_eq!((differs, ours[path].len()), (None, bytes.len()), "{}", path.display());
        }
    }
}

fn all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What today's code reads in a fixture.
fn read(name: &str) -> String {
    let mut text = String::new();
    for (path, bytes) in files(&fixtures().join(name).join("log")) {
        segment(&mut text, &path, &bytes);
    }
    let directory = tempfile::tempdir().unwrap();
    copy(name, directory.path());
    verified(&mut text, directory.path());
    let dir = DataDir::open(directory.path()).unwrap();
    let node: &NodeRecord = dir.node().unwrap();
    assert_eq!(*node, writer::node(name));

    let store = SnapshotStore::open(&dir, IDENTITY).unwrap();
    let replicas: Vec<_> = store
        .all()
        .iter()
        .map(|meta| {
            let (mut state, mut sessions) = (store.open_state(meta).unwrap(), store.open_sessions(meta).unwrap());
            Replica::restore(meta, &mut state, &mut sessions, &kv::factory(), ReplicaLimits::default()).unwrap()
        })
        .collect();
    for restored in &replicas {
        replica(&mut text, "snapshot", restored);
    }
    let newest = store.newest().map(|meta| meta.tail);
    let mut behind = Vec::new();
    let (log, found) =
        Log::recover(&dir, IDENTITY, node.id.unwrap(), newest.as_ref(), OPTIONS, &mut |run, _| behind.push(run.clone())).unwrap();
    let (first, last) = log.reader().range();
    let held = log.reader().read(first, last, usize::MAX).unwrap();
    assert!(held.ends_with(&behind));
    let must_reach = found.must_reach.map(|tail| tail.run.0);
    let (term, vote, commit, verdict, lost) = (found.term, found.vote, found.commit, found.verdict, found.vote_lost);
    writeln!(
        text,
        "log: runs {first} to {last}, {} of them behind the snapshot; term {term}, vote {vote}, commit {commit}; {verdict:?}, \
         must reach {must_reach:?}, vote lost {lost}",
        behind.len()
    )
    .unwrap();
    if let Some(mut server) = replicas.into_iter().next_back() {
        behind.iter().for_each(|run| drop(server.apply(run).unwrap()));
        replica(&mut text, "applied", &server);
    }
    let through = newest.map_or(LogIndex::ZERO, |tail| tail.last);
    let (_, book) = VerdictStore::open(&dir, IDENTITY, through, VERDICT_BYTES_MAX).unwrap();
    let bits = (book.after().0 + 1..=book.through().0).map(|index| u8::from(book.get(LogIndex(index), 1).unwrap().get(0)));
    let bits = bits.map(|bit| bit.to_string()).collect::<String>();
    writeln!(text, "verdicts behind {} to {}: [{bits}]", book.after(), book.through()).unwrap();
    text
}

fn tail(tail: &Tail) -> String {
    format!("run {} term {} entry {} time {} chain {:08x}", tail.run, tail.term, tail.last, tail.time, tail.chain.0)
}

/// Header, marks and runs of a segment, and what stands behind them.
fn segment(text: &mut String, path: &Path, bytes: &[u8]) {
    let sector = |at: u64| <&[u8; SECTOR_BYTES]>::try_from(&bytes[at as usize..][..SECTOR_BYTES]).unwrap();
    let header = SegmentHeader::decode(sector(0)).unwrap();
    let SegmentHeader { kind, id, sequence, before, .. } = &header;
    assert_eq!(header.identity, IDENTITY);
    writeln!(text, "{}: {kind:?} {sequence} of {id} behind {}", path.display(), tail(before)).unwrap();
    for slot in [0, 1] {
        let Mark { sequence, term, vote, commit, last, synced_through, must_reach, vote_lost, .. } =
            Mark::decode(sector(MARK_AT[slot]), *sequence, slot).unwrap();
        let goal = must_reach.map_or_else(|| "none".into(), |goal| tail(&goal));
        let (state, last) = (format!("term {term} vote {vote} commit {commit}"), tail(&last));
        writeln!(text, "  mark {sequence}: {state}, last {last}, synced {synced_through}, goal {goal}, lost {vote_lost}").unwrap();
    }
    let (mut rest, mut at) = (Bytes::copy_from_slice(&bytes[RECORDS_AT as usize..]), *before);
    while let Step::Run(run) = step(&at, &IDENTITY, &mut rest) {
        at = run.header().tail();
        let entries: Vec<_> = run.entries().map(|(_, entry)| format!("{:?} {}", entry.header.kind, entry.payload.len())).collect();
        writeln!(text, "  {}: {}", tail(&at), entries.join(", ")).unwrap();
    }
    let old = rest.iter().skip(END_BYTES).any(|byte| *byte != 0);
    let end = rest.iter().take(END_BYTES).any(|byte| *byte != 0);
    let behind = if end {
        "damage"
    } else if old {
        "old bytes"
    } else if rest.is_empty() {
        "nothing"
    } else {
        "zeros"
    };
    writeln!(text, "  {behind}").unwrap();
}

fn verified(text: &mut String, directory: &Path) {
    let found = tools::verify(directory, &Arc::new(AtomicU64::new(0))).unwrap();
    let what = (found.records, found.first_index.0, found.last_index.0, found.term.0, found.snapshots, found.suspect);
    writeln!(text, "verify: (records, first, last, term, snapshots, suspect) {what:?}").unwrap();
    for line in found.errors.iter().chain(&found.notes) {
        writeln!(text, "  {}", line.replace(&directory.display().to_string(), "DIR")).unwrap();
    }
    assert_eq!(found.ok(), found.errors.is_empty());
}

/// State, sessions and configuration of a replica.
fn replica(text: &mut String, what: &str, replica: &Replica) {
    let (mut state, image) = (Vec::new(), replica.image());
    let configuration_run = image.meta.configuration_run;
    image.write(&mut state, &mut Vec::new()).unwrap();
    let second = replica.configuration().voters()[1];
    writeln!(text, "{what} at {}; configuration of run {configuration_run} with {second}", tail(replica.tail())).unwrap();
    for (key, found) in Kv::restore(&mut &state[..]).unwrap().range::<'_>(..) {
        let (key, value) = (key.escape_ascii(), found.value.escape_ascii());
        writeln!(text, "  {key} = {value}, version {}", found.version).unwrap();
    }
    let sessions = replica.sessions();
    for (session, last) in sessions.activity() {
        let opening = sessions.opening(session).unwrap();
        let attached = sessions.attached(session, &[0x77; 16]).is_some();
        writeln!(text, "  session {session}, opening {opening}, attached {attached}, last active {last}").unwrap();
        for request in 1..=9 {
            let Some(reply) = sessions.recorded(session, RequestId(request)) else { continue };
            let outcome = match &reply.outcome {
                Outcome::Applied(reply) => format!("{:?}", from_cbor::<KvReply>(reply).unwrap()),
                other => format!("{other:?}"),
            };
            writeln!(text, "    request {request} at {} term {}: {outcome}", reply.index, reply.term).unwrap();
        }
    }
    for secret in [0xa1, 0xb2, 0xc3] {
        let session = sessions.opened(&secret_hash(&[secret; 32])).map(|(session, _)| session.0);
        writeln!(text, "  secret {secret:x}: session {session:?}").unwrap();
    }
}

#[test]
fn a_members_files_of_format_1_are_read_to_the_last_field() {
    assert_eq!(read("member"), MEMBER);
}

#[test]
fn a_newcomers_files_of_format_1_are_read_to_the_last_field() {
    assert_eq!(read("installed"), INSTALLED);
}

#[test]
fn a_suspects_files_of_format_1_are_read_to_the_last_field() {
    assert_eq!(read("suspect"), SUSPECT);
}

#[tokio::test]
async fn a_server_does_not_start_on_another_ones_files_or_on_newer_ones_and_leaves_them_as_they_are() {
    let refused = async |seat: u16, machine: MachineFactory, change: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join(seat.to_string());
        copy("member", &data);
        change(&data);
        let before = files(&data);
        let voter = lone_voter(seat, mesh_addresses(3), directory.path()).machine(machine);
        let Err(StartError::Stopped { why, .. }) = voter.on_damage(DamagePolicy::TruncateToLastGood).start().await else {
            panic!("it starts")
        };
        let mut after = files(&data);
        after.remove(Path::new("LOCK"));
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{why}");
        assert!(after == before, "{why}");
        why
    };
    let why = refused(2, kv::factory(), &|_| ()).await;
    assert!(why.contains("belongs to seat 1, not to seat 2"), "{why}");
    let why = refused(1, log::factory(), &|_| ()).await;
    assert!(why.contains("kv v1, not for log v1"), "{why}");

    let (segment, snapshot) = ("log/0000000000000003.seg", "snapshots/0000000000000007-0000000000000001.snap");
    let verdicts = "verdicts/000000000000000c-0000000000000011.bits";
    // Where a file's checksum stands, behind what it covers.
    let sealed = |name: &str, bytes: &[u8]| match name {
        "node" => bytes.len() - 4,
        name if name == segment => SECTOR_BYTES - 4,
        _ => 60,
    };
    let alter = |data: &Path, name: &str, at: usize| {
        let mut bytes = fs::read(data.join(name)).unwrap();
        bytes[at] += 1;
        let end = sealed(name, &bytes);
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..end + 4].copy_from_slice(&crc);
        fs::write(data.join(name), bytes).unwrap();
    };
    for name in ["node", segment, snapshot, verdicts] {
        let why = refused(1, kv::factory(), &|data| alter(data, name, 8)).await;
        assert!(why.ends_with(&format!("{name} has format 2; this version reads up to 1")), "{why}");
    }
    for name in [segment, snapshot, verdicts] {
        for (what, at) in [("cluster 52515151", 16), ("epoch 2", 32), ("room 1", 36)] {
            let why = refused(1, kv::factory(), &|data| alter(data, name, at)).await;
            assert!(why.contains(&format!("{name} belongs to")) && why.contains(what), "{why}");
        }
    }
    for (what, at) in [("server 1.2", 40), ("server 2.1", 42)] {
        let why = refused(1, kv::factory(), &|data| alter(data, segment, at)).await;
        assert!(why.contains(&format!("{segment} belongs to {what}")), "{why}");
    }
}
