//! What the directory's tests share: runs from a made-up leader, and logs with files small enough to damage everywhere.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{ClusterId, DirectoryId, Epoch, Identity, RaftId, RoomId, RunIndex, Seat, Term, TimeMs};
use voter_mesh::run::{Run, Tail};

use super::*;

mod crash;
mod damage;
mod directory;
mod every_bit;
mod full;
mod holes;
mod log;
mod snapshots;
mod speed;
mod verdicts;
mod watched;
mod writer;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };
const ID: RaftId = RaftId::new(Seat(1), 1);
const OTHER: RaftId = RaftId::new(Seat(2), 1);

/// Room for a few small runs in each segment.
const SMALL: LogOptions = LogOptions { segment_bytes: 12288 + 1024, spares_max: 2 };

/// A directory in memory where there is one: these tests sync thousands of times, and none of them pulls a plug.
fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// `count` runs behind `tail`, each with one entry of `bytes` bytes that no other term's has.
fn runs(mut tail: Tail, term: u64, count: usize, bytes: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    for _ in 0..count {
        let mut payload = vec![term as u8; bytes];
        payload[0] = tail.run.0 as u8;
        let entry: Bytes = entry(&EntrySpec::internal(EntryKind::Command), &payload).unwrap();
        let run = Run::seal(&tail, Term(term), TimeMs(tail.run.0), IDENTITY.epoch, IDENTITY.room, &[entry.as_ref()]).unwrap();
        tail = run.header().tail();
        runs.push(run);
    }
    runs
}

fn batch(term: u64, runs: &[Run]) -> Batch {
    Batch {
        number: 0,
        term: Term(term),
        vote: RaftId::NONE,
        commit: RunIndex::ZERO,
        writer_term: Term(term),
        install: None,
        keep_through: None,
        runs: runs.to_vec(),
        must_sync: false,
    }
}

/// A new directory with an empty log behind snapshot zero.
fn formed() -> (TempDir, DataDir, Log) {
    formed_on(Arc::new(OsFiles))
}

fn formed_on(files: Arc<dyn FileSystem>) -> (TempDir, DataDir, Log) {
    let temporary = temporary();
    let dir = DataDir::open_on(files, temporary.path(), DirectoryId([3; 16])).unwrap();
    let log = Log::create(&dir, IDENTITY, ID, Tail::zero(&IDENTITY), SMALL).unwrap();
    (temporary, dir, log)
}

fn write(log: &mut Log, batch: &Batch) {
    log.take(batch).unwrap();
    log.sync().unwrap();
}

fn recover(dir: &DataDir) -> Result<(Log, LogRecovered, Vec<Run>), DiskError> {
    let mut runs = Vec::new();
    let (log, recovered) = Log::recover(dir, IDENTITY, ID, None, SMALL, &mut |run, _| runs.push(run.clone()))?;
    Ok((log, recovered, runs))
}

fn flip(file: &fs::File, at: usize, bit: usize) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn copied(from: &Path) -> TempDir {
    let to = temporary();
    copy(from, to.path());
    to
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
