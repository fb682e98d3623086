use std::io::Read;

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
    let (mut from, length) = store.open_raw(meta).unwrap();
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
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
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, flipped).unwrap();
        assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().newest().as_ref(), Some(&first), "byte {at}");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().newest().as_ref(), Some(&first), "{length} bytes");
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(SnapshotStore::open(&dir, IDENTITY).unwrap().newest(), Some(second));
    let elsewhere = Identity { epoch: Epoch(2), ..IDENTITY };
    assert!(matches!(SnapshotStore::open(&dir, elsewhere), Err(DiskError::Foreign { .. })));
}

#[test]
fn a_peers_snapshot_becomes_ours_only_when_every_byte_of_it_is_right() {
    let (_theirs_dir, _dir, theirs) = opened();
    let (temporary, _dir, ours) = opened();
    let sent = store_one(&theirs, 7, &noise(2_500_000));
    let bytes = raw(&theirs, &sent);
    let receive = |bytes: &[u8], said: &SnapshotMeta| {
        let mut receiving = ours.begin_receive(said, bytes.len() as u64)?;
        for chunk in bytes.chunks(64 << 10) {
            let at = receiving.received();
            assert!(receiving.chunk(at + 1, chunk).is_err() && receiving.chunk(at.wrapping_sub(1), chunk).is_err());
            receiving.chunk(at, chunk)?;
        }
        assert!(receiving.chunk(receiving.received(), b"more").is_err());
        receiving.finish()
    };
    let mut flipped = bytes.clone();
    flipped[1_700_000] ^= 4;
    let lied = SnapshotMeta { machine_version: 2, ..sent.clone() };
    let elsewhere = SnapshotMeta { identity: Identity { epoch: Epoch(2), ..IDENTITY }, ..sent.clone() };
    assert!(matches!(receive(&flipped, &sent), Err(DiskError::Damaged { .. })));
    assert!(matches!(receive(&bytes[..bytes.len() - 1], &sent), Err(DiskError::Damaged { .. })));
    assert!(matches!(receive(&bytes, &lied), Err(DiskError::Damaged { .. })));
    assert!(matches!(receive(&bytes, &elsewhere), Err(DiskError::Foreign { .. })));
    assert!(matches!(ours.begin_receive(&sent, SNAPSHOT_BYTES_MAX + 1), Err(DiskError::Damaged { .. })));
    drop(ours.begin_receive(&sent, 100).unwrap());
    assert!(ours.newest().is_none() && names(&temporary.path().join("snapshots")).is_empty());

    assert_eq!(receive(&bytes, &sent).unwrap(), sent);
    assert_eq!(ours.newest(), Some(sent.clone()));
    assert_eq!(raw(&ours, &sent), bytes);
}
