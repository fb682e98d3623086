use std::io::Read;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use voter_mesh::configuration::Configuration;
use voter_mesh::snapshot::SnapshotMeta;

use super::*;

fn meta(run: u64) -> SnapshotMeta {
    SnapshotMeta {
        tail: Tail { run: RunIndex(run), ..Tail::zero(&IDENTITY) },
        identity: IDENTITY,
        configuration: Configuration::default(),
        configuration_run: RunIndex(1),
        machine_name: "kv".into(),
        machine_version: 1,
        state_hash: [0; 32],
        sessions_hash: [0; 32],
    }
}

/// Bytes that hardly compress, so that the file has several chunks.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(32) as u64).flat_map(|block| <[u8; 32]>::from(Sha256::digest(block.to_le_bytes()))).take(bytes).collect()
}

fn opened() -> (TempDir, DataDir, SnapshotStore) {
    let temporary = temporary();
    let dir = DataDir::open(temporary.path()).unwrap();
    let store = SnapshotStore::open(&dir, IDENTITY).unwrap();
    (temporary, dir, store)
}

fn store_one(store: &SnapshotStore, run: u64, state: &[u8]) -> SnapshotMeta {
    store.write(meta(run), |to| to.write_all(state), |to| to.write_all(b"sessions")).unwrap()
}

fn raw(store: &SnapshotStore, meta: &SnapshotMeta) -> Vec<u8> {
    let file = store.open_file(meta).unwrap();
    let bytes = file.read_at(0, file.bytes() as usize + 1).unwrap();
    assert_eq!(bytes.len() as u64, file.bytes());
    bytes.into()
}

#[test]
fn a_snapshot_is_read_back_as_written_and_the_one_before_it_stays() {
    let (temporary, dir, store) = opened();
    assert!(store.newest().is_none());
    let state = noise(3 << 20);
    store_one(&store, 5, b"old");
    let second = store_one(&store, 6, b"newer");
    let third = store_one(&store, 9, &state);
    assert_eq!(third.state_hash, <[u8; 32]>::from(Sha256::digest(&state)));
    assert_eq!(third.sessions_hash, <[u8; 32]>::from(Sha256::digest(b"sessions")));
    assert_eq!(names(&temporary.path().join("snapshots")).len(), 2);
    let store = {
        drop(store);
        SnapshotStore::open(&dir, IDENTITY).unwrap()
    };
    assert_eq!((store.newest(), store.oldest()), (Some(third.clone()), Some(second)));
    let mut bytes = Vec::new();
    store.open_state(&third).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, state);
    bytes.clear();
    store.open_sessions(&third).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"sessions");
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let (temporary, _dir, store) = opened();
    let result = store.write(meta(5), |_| Err(std::io::Error::other("no")), |_| Ok(()));
    assert!(matches!(result, Err(DiskError::Io { .. })));
    assert!(store.newest().is_none() && names(&temporary.path().join("snapshots")).is_empty());
}

#[test]
fn no_flipped_bit_passes_and_the_snapshot_before_stands_in() {
    let (temporary, dir, store) = opened();
    let first = store_one(&store, 5, b"first");
    let second = store_one(&store, 6, b"second");
    let bytes = raw(&store, &second);
    let path = temporary.path().join("snapshots/0000000000000006-0000000000000001.snap");
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, flipped).unwrap();
        assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().all(), std::slice::from_ref(&first), "bit {bit}");
        // The server that wrote it, and whoever restores it from a backup.
        assert!(
            matches!(store.open_file(&second).and_then(|file| file.check(&mut |_| ())), Err(DiskError::Damaged { .. })),
            "bit {bit}"
        );
        let restoring = SnapshotFile::open(&path).and_then(|file| file.check(&mut |_| ()));
        assert!(matches!(restoring, Err(DiskError::Damaged { .. })), "bit {bit}");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().newest().as_ref(), Some(&first), "{length} bytes");
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().newest(), Some(second));
}

#[test]
fn snapshots_of_a_newer_format_or_another_history_are_refused() {
    let (temporary, dir, store) = opened();
    store_one(&store, 5, b"first");
    let second = store_one(&store, 6, b"second");
    let path = temporary.path().join("snapshots/0000000000000006-0000000000000001.snap");
    let whole = raw(&store, &second);
    let altered = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] += 1;
        let crc = crc32c::crc32c(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
        fs::write(&path, &bytes).unwrap();
        let refused = SnapshotStore::open(&dir, IDENTITY).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was changed");
        refused
    };
    let newer = altered(8);
    assert!(matches!(newer, DiskError::Newer { found: 2, known: 1, .. }));
    assert!(newer.to_string().contains("format 2") && newer.to_string().contains('1'), "{newer}");
    assert!(matches!(SnapshotFile::open(&path), Err(DiskError::Newer { found: 2, known: 1, .. })), "restored");
    for (at, found) in [(16, "0807"), (32, "epoch 2"), (36, "room 1")] {
        let foreign = altered(at);
        assert!(matches!(foreign, DiskError::Foreign { .. }) && foreign.to_string().contains(found), "{foreign}");
    }
    assert_eq!(names(&temporary.path().join("snapshots")).len(), 2);
}

/// A snapshot of a peer, on its way to our store.
struct Coming {
    bytes: Vec<u8>,
    meta: SnapshotMeta,
    hash: [u8; 32],
}

impl Coming {
    fn of(state: &[u8], run: u64) -> Self {
        let (_temporary, _dir, theirs) = opened();
        let meta = store_one(&theirs, run, state);
        Self { bytes: raw(&theirs, &meta), hash: theirs.open_file(&meta).unwrap().hash(), meta }
    }

    fn begin(&self, ours: &SnapshotStore) -> Receiving {
        ours.begin_receive(&self.meta, self.bytes.len() as u64, self.hash).unwrap()
    }

    /// Sends what is missing, up to this byte.
    fn send(&self, receiving: &mut Receiving, to: usize) {
        while (receiving.received() as usize) < to {
            let at = receiving.received() as usize;
            receiving.write(&[Bytes::copy_from_slice(&self.bytes[at..to.min(at + (64 << 10))])]).unwrap();
        }
    }

    fn receive(&self, ours: &SnapshotStore) -> Result<SnapshotMeta, DiskError> {
        let mut receiving = self.begin(ours);
        self.send(&mut receiving, self.bytes.len());
        assert!(receiving.write(&[Bytes::from_static(b"more")]).is_err());
        receiving.finish()
    }
}

#[test]
fn a_peers_snapshot_becomes_ours_only_when_every_byte_of_it_is_right() {
    let (temporary, _dir, ours) = opened();
    let sent = Coming::of(&noise(2_500_000), 7);
    let receive = |bytes: &[u8], said: &SnapshotMeta| {
        let coming = Coming { bytes: bytes.into(), meta: said.clone(), hash: sent.hash };
        coming.receive(&ours)
    };
    let lied = SnapshotMeta { machine_version: 2, ..sent.meta.clone() };
    assert!(matches!(receive(&sent.bytes[..sent.bytes.len() - 1], &sent.meta), Err(DiskError::Damaged { .. })));
    assert!(matches!(receive(&sent.bytes, &lied), Err(DiskError::Damaged { .. })));
    let another = Coming { hash: [1; 32], ..Coming::of(&noise(2_500_000), 7) };
    assert!(matches!(another.receive(&ours), Err(DiskError::Damaged { .. })));
    assert!(ours.newest().is_none() && names(&temporary.path().join("snapshots")).is_empty());
    let elsewhere = SnapshotMeta { identity: Identity { epoch: Epoch(2), ..IDENTITY }, ..sent.meta.clone() };
    assert!(matches!(ours.begin_receive(&elsewhere, 100, sent.hash), Err(DiskError::Foreign { .. })));
    assert!(matches!(ours.begin_receive(&sent.meta, SNAPSHOT_BYTES_MAX + 1, sent.hash), Err(DiskError::Damaged { .. })));

    // Two bad bytes on the way: the good beginning stays, and only the rest is sent again.
    let mut flipped = sent.bytes.clone();
    flipped[1_700_000] ^= 4;
    flipped[2_300_000] ^= 1;
    assert!(matches!(receive(&flipped, &sent.meta), Err(DiskError::Damaged { .. })));
    assert!(ours.newest().is_none());
    assert_eq!(sent.begin(&ours).received(), 1 << 20);
    assert_eq!(sent.receive(&ours).unwrap(), sent.meta);
    assert_eq!(ours.newest(), Some(sent.meta.clone()));
    assert_eq!(raw(&ours, &sent.meta), sent.bytes);
    assert_eq!(names(&temporary.path().join("snapshots")).len(), 1);
}

#[test]
fn what_has_come_of_a_peers_snapshot_outlives_transfers_and_processes_until_another_is_wanted() {
    let (temporary, dir, mut ours) = opened();
    let parts = || names(&temporary.path().join("snapshots")).into_iter().filter(|name| name.ends_with("part")).count();
    let sent = Coming::of(&noise(1_300_000), 7);
    for to in [0, 1, 70_000, 600_000, 600_000, 1_100_000] {
        let mut receiving = sent.begin(&ours);
        sent.send(&mut receiving, to);
        drop(receiving);
        ours = SnapshotStore::open(&dir, IDENTITY).unwrap();
        assert_eq!(sent.begin(&ours).received(), to as u64);
    }
    // A sender that was replaced writes no more.
    let (mut old, mut new) = (sent.begin(&ours), sent.begin(&ours));
    assert!(old.write(&[Bytes::from_static(b"late")]).is_err() && old.finish().is_err());
    sent.send(&mut new, sent.bytes.len());
    assert_eq!(new.finish().unwrap(), sent.meta);
    assert_eq!(parts(), 0);

    // One part at most, and none that a whole snapshot has overtaken.
    let (ninth, tenth) = (Coming::of(b"nine", 9), Coming::of(b"ten", 10));
    for coming in [&ninth, &tenth] {
        coming.send(&mut coming.begin(&ours), 100);
        assert_eq!(parts(), 1);
    }
    assert_eq!(ninth.begin(&ours).received(), 0);
    ninth.send(&mut ninth.begin(&ours), 100);
    ours = SnapshotStore::open(&dir, IDENTITY).unwrap();
    store_one(&ours, 8, b"older");
    assert_eq!(parts(), 1);
    store_one(&ours, 9, b"own");
    assert_eq!(parts(), 0);
}

#[test]
fn a_snapshot_that_rots_under_a_running_server_is_found_and_written_again() {
    let (temporary, _dir, store) = opened();
    let first = store_one(&store, 5, b"first");
    let second = store_one(&store, 6, b"second");
    assert!(store.check(&second).is_ok());
    let path = temporary.path().join("snapshots/0000000000000006-0000000000000001.snap");
    let mut rotten = raw(&store, &second);
    rotten[70] ^= 1;
    fs::write(&path, rotten).unwrap();
    assert!(matches!(store.check(&second), Err(DiskError::Damaged { .. })));
    assert_eq!(store.newest(), Some(first));
    assert_eq!(store_one(&store, 6, b"second"), second);
    assert!(store.check(&second).is_ok());
}
