use std::io;

use voter_mesh::configuration::Configuration;
use voter_mesh::ids::DirectoryId;
use voter_mesh::log::{SECTOR_BYTES, SegmentHeader};
use voter_mesh::mesh::forming::FormState;

use super::*;

fn record(dir: &DataDir) -> NodeRecord {
    NodeRecord {
        directory: dir.directory(),
        seat: Seat(1),
        id: Some(ID),
        identity: Some(IDENTITY),
        configuration: Configuration::default(),
        machine: ("kv".into(), 1),
        state: FormState::Offered,
    }
}

#[test]
fn a_second_user_is_refused_and_has_written_nothing() {
    let (temporary, dir, log) = formed();
    let before = copied(temporary.path());
    assert!(matches!(DataDir::open(temporary.path()), Err(DiskError::Locked { .. })));
    assert_eq!(names(temporary.path()), names(before.path()));
    drop((dir, log));
    DataDir::open(temporary.path()).unwrap();
}

#[test]
fn the_node_record_is_stored_whole_and_no_flipped_bit_of_it_passes() {
    let temporary = temporary();
    let path = temporary.path().join("made/on/the/way");
    let mut dir = DataDir::open(&path).unwrap();
    assert!(dir.node().is_none());
    let record = record(&dir);
    dir.store_node(&record).unwrap();
    drop(dir);
    let dir = DataDir::open(&path).unwrap();
    assert_eq!((dir.node(), dir.directory()), (Some(&record), record.directory));
    drop(dir);
    let bytes = fs::read(path.join("node")).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(path.join("node"), flipped).unwrap();
        assert!(matches!(DataDir::open(&path), Err(DiskError::Damaged { .. })), "bit {bit}");
    }
    let mut newer = bytes[..bytes.len() - 4].to_vec();
    newer[8] = 2;
    newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
    fs::write(path.join("node"), newer).unwrap();
    assert!(matches!(DataDir::open(&path), Err(DiskError::Newer { found: 2, known: 1, .. })));
}

#[test]
fn the_node_record_has_these_bytes() {
    let temporary = temporary();
    let mut dir = DataDir::open(temporary.path()).unwrap();
    let record = NodeRecord { directory: DirectoryId([3; 16]), ..record(&dir) };
    dir.store_node(&record).unwrap();
    let bytes: String = fs::read(temporary.path().join("node")).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        bytes,
        "51554f524e4f444501000000a7696469726563746f727950030303030303030303030303030303036473656174016269641a\
         00010001686964656e74697479a367636c757374657250070707070707070707070707070707076565706f63680164726f6f\
         6d006d636f6e66696775726174696f6ea3657365617473a0686f7574676f696e67806772657469726564a0676d616368696e\
         6582626b7601657374617465674f6666657265642927018f"
    );
}

#[test]
fn segments_of_another_node_life_history_or_version_are_refused_with_both_named() {
    let (temporary, dir, log) = formed();
    drop(log);
    for (elsewhere, id, named) in [
        (IDENTITY, RaftId::new(Seat(1), 2), "server 1.2"),
        (IDENTITY, OTHER, "server 2.1"),
        (Identity { cluster: ClusterId([8; 16]), ..IDENTITY }, ID, "cluster 0808"),
        (Identity { epoch: Epoch(2), ..IDENTITY }, ID, "epoch 2"),
        (Identity { room: RoomId(1), ..IDENTITY }, ID, "room 1"),
    ] {
        let error = Log::recover(&dir, elsewhere, id, None, SMALL, &mut |_, _| {}).unwrap_err();
        let (found, expected) = error.to_string().split_once("not to").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(matches!(error, DiskError::Foreign { .. }) && found.contains("server 1.1 of cluster 0707"), "{error}");
        assert!(expected.contains(named), "{error}");
    }

    let path = temporary.path().join("log/0000000000000001.seg");
    let bytes = fs::read(&path).unwrap();
    fs::rename(&path, temporary.path().join("log/0000000000000002.seg")).unwrap();
    assert!(matches!(recover(&dir), Err(DiskError::Damaged { .. })), "misnamed");
    fs::remove_file(temporary.path().join("log/0000000000000002.seg")).unwrap();
    let mut newer = bytes;
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..SECTOR_BYTES - 4]).to_le_bytes();
    newer[SECTOR_BYTES - 4..SECTOR_BYTES].copy_from_slice(&crc);
    assert!(SegmentHeader::decode(newer[..SECTOR_BYTES].try_into().unwrap()).is_err());
    fs::write(&path, newer).unwrap();
    let error = recover(&dir).unwrap_err();
    assert!(matches!(error, DiskError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("format 2") && error.to_string().ends_with('1'), "{error}");
}

#[test]
fn a_full_disk_is_told_from_a_broken_one() {
    let error = |number| DiskError::Io { path: "x".into(), doing: "write", source: io::Error::from_raw_os_error(number) };
    assert!(error(28).is_full(), "ENOSPC");
    assert!(!error(5).is_full(), "EIO");
}
