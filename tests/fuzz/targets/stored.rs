//! Whole files, on a disk in memory.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use cluster_client::RequestJournal;
use cluster_client::journal::record::{Record, SessionRecord};
use cluster_server::disk::{DataDir, SnapshotFile, VerdictStore};
use sha2::{Digest, Sha256};
use voter_mesh::ids::{ClusterId, DirectoryId, Epoch, Identity, LogIndex, Opening, RequestId, RoomId, SessionId};
use voter_mesh::machine::{MachineFactory, kv, log};
use voter_mesh::replica::{Replica, ReplicaLimits};

use super::{Target, fixture, seal};
use crate::fuzz::kind;
use crate::sim::disk::{Image, SimDisk};

pub(super) const NODE: Target = Target { name: "node-record", run: node, repair: Some(repair_node), golden: node_golden };
pub(super) const VERDICTS: Target =
    Target { name: "verdicts", run: verdicts, repair: Some(repair_verdicts), golden: verdicts_golden };
pub(super) const SNAPSHOT: Target =
    Target { name: "snapshot", run: snapshot, repair: Some(repair_snapshot), golden: snapshot_golden };
pub(super) const JOURNAL: Target = Target { name: "journal", run: journal, repair: Some(repair_journal), golden: journal_golden };

/// A disk with one file.
fn disk(path: &str, content: &[u8]) -> SimDisk {
    let mut image = Image::default();
    image.put(path, content.to_vec());
    SimDisk::on(image.into())
}

fn open(disk: &SimDisk) -> Result<DataDir, cluster_server::disk::DiskError> {
    DataDir::open_on(Arc::new(disk.clone()), "/d", DirectoryId([1; 16]))
}

fn node(input: &[u8]) -> String {
    let read = open(&disk("/d/node", input)).map(|dir| dir.node().cloned());
    if let Ok(Some(record)) = &read {
        let fresh = SimDisk::new();
        open(&fresh).unwrap().store_node(record).unwrap();
        assert_eq!(open(&fresh).unwrap().node(), Some(record));
    }
    kind(&read)
}

fn repair_node(bytes: &mut [u8]) {
    if let Some(at) = bytes.len().checked_sub(4) {
        seal(bytes, at);
    }
}

fn node_golden() -> Vec<(String, Vec<u8>)> {
    ["member", "installed", "suspect"].map(|life| (life.to_owned(), fixture(&format!("{life}/node")))).to_vec()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Header bytes of a verdict file, and bytes of bits before each checksum in it.
const VERDICT_HEADER_BYTES: usize = 64;
const VERDICT_BLOCK_BYTES: usize = 4092;

/// The file is named as its header says, and its owner is who the header says.
fn verdicts(input: &[u8]) -> String {
    let field = |from: usize, to: usize| input.get(from..to).map_or(0, number);
    let (after, through) = (LogIndex(field(40, 48)), LogIndex(field(48, 56)));
    let cluster = input.get(16..32).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    let identity = Identity { cluster: ClusterId(cluster), epoch: Epoch(field(32, 36) as u32), room: RoomId(field(36, 38) as u16) };
    let disk = disk(&format!("/d/verdicts/{:016x}-{:016x}.bits", after.0, through.0), input);
    let dir = open(&disk).unwrap();
    let book = VerdictStore::open(&dir, identity, through, 1 << 20).map(|(store, book)| {
        if let Some(bits) = book.copy(after, through).filter(|bits| !bits.is_empty()) {
            store.write(after, through, &bits).unwrap();
            let (_, again) = VerdictStore::open(&dir, identity, through, 1 << 20).unwrap();
            assert_eq!(again.copy(after, through), Some(bits));
        }
        (book.after() < through, book.through() == through)
    });
    match book {
        Ok(book) => format!("{book:?}"),
        Err(error) => kind(&error),
    }
}

fn repair_verdicts(bytes: &mut [u8]) {
    seal(bytes, VERDICT_HEADER_BYTES - 4);
    let Some((header, mut blocks)) = bytes.split_at_mut_checked(VERDICT_HEADER_BYTES) else { return };
    let header_crc = crc32c::crc32c(&header[..VERDICT_HEADER_BYTES - 4]);
    let mut place = 0_u32;
    while !blocks.is_empty() {
        let (block, rest) = blocks.split_at_mut(blocks.len().min(VERDICT_BLOCK_BYTES + 4));
        if let Some(at) = block.len().checked_sub(4) {
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(header_crc, &place.to_le_bytes()), &block[..at]);
            block[at..].copy_from_slice(&crc.to_le_bytes());
        }
        (blocks, place) = (rest, place + 1);
    }
}

fn verdicts_golden() -> Vec<(String, Vec<u8>)> {
    let all = ["0000000000000000-000000000000000c", "000000000000000c-0000000000000011"];
    all.map(|name| (name.to_owned(), fixture(&format!("member/verdicts/{name}.bits")))).to_vec()
}

fn read(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

fn factory(name: &str) -> MachineFactory {
    if name == "kv" { kv::factory() } else { log::factory() }
}

fn snapshot(input: &[u8]) -> String {
    let disk = disk("/d/s.snap", input);
    let file = match SnapshotFile::open_on(&disk, "/d/s.snap") {
        Ok(file) => file,
        Err(error) => return kind(&error),
    };
    if let Err(error) = file.check(&mut |_| {}) {
        return format!("checked: {}", kind(&error));
    }
    let factory = factory(&file.meta().machine_name);
    let (mut state, mut sessions) = (file.state().unwrap(), file.sessions().unwrap());
    let replica = Replica::restore(file.meta(), &mut state, &mut sessions, &factory, ReplicaLimits::default());
    if let Ok(replica) = &replica {
        let (mut state, mut sessions) = (Vec::new(), Vec::new());
        let meta = replica.image().write(&mut state, &mut sessions).unwrap();
        assert_eq!(&meta, file.meta(), "what was read writes itself otherwise");
        assert_eq!((state, sessions), (read(file.state().unwrap()), read(file.sessions().unwrap())));
    }
    replica.map_or_else(|error| kind(&error), |_| "restored".to_owned())
}

/// The trailer names the index by its place and its hash; header and trailer are sealed.
fn repair_snapshot(bytes: &mut [u8]) {
    let Some(trailer) = bytes.len().checked_sub(64).filter(|at| *at >= 64) else { return };
    seal(&mut bytes[..64], 60);
    let at = (number(&bytes[trailer + 8..trailer + 16]) as usize).clamp(64, trailer);
    let index = (trailer - at) as u64;
    let hash = Sha256::digest(&bytes[at..trailer]);
    bytes[trailer + 8..trailer + 16].copy_from_slice(&(at as u64).to_le_bytes());
    bytes[trailer + 16..trailer + 24].copy_from_slice(&index.to_le_bytes());
    bytes[trailer + 24..trailer + 56].copy_from_slice(&hash);
    seal(&mut bytes[trailer..], 60);
}

fn snapshot_golden() -> Vec<(String, Vec<u8>)> {
    let all = ["member/snapshots/0000000000000007-0000000000000001", "installed/snapshots/000000000000000a-0000000000000002"];
    all.iter().enumerate().map(|(number, name)| (format!("{number}"), fixture(&format!("{name}.snap")))).collect()
}

/// What a client finds at its start, and finds again at the next.
fn journal(input: &[u8]) -> String {
    let disk = disk("/j", input);
    let open = || RequestJournal::file_on(Arc::new(disk.clone()), "/j").map(drop);
    let content = || disk.state().cached().file(Path::new("/j")).map(<[u8]>::to_vec);
    let first = open();
    if first.is_ok() {
        let kept = content();
        open().unwrap();
        assert_eq!(content(), kept, "the next start finds another journal");
    } else {
        assert_eq!(content().as_deref(), Some(input), "a journal that is refused is left as it was");
    }
    kind(&first)
}

/// The places of the records, as their lengths lead.
fn repair_journal(bytes: &mut [u8]) {
    let mut at = 8;
    while bytes.len() >= at + 8 {
        let length = number(&bytes[at..at + 4]) as usize;
        let end = bytes.len().min((at + 8).saturating_add(length));
        let crc = crc32c::crc32c(&bytes[at + 8..end]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at = (at + 8).saturating_add(length);
    }
}

fn journal_golden() -> Vec<(String, Vec<u8>)> {
    let session = SessionRecord { cluster: ClusterId([7; 16]), epoch: Epoch(1), session: SessionId(3), opening: Opening(3) };
    let records = [
        Record::Secret([1; 32]),
        Record::Session(session),
        Record::Nonce([2; 16]),
        Record::IdEnd(RequestId(1024)),
        Record::Request(RequestId(1), b"command".to_vec().into()),
        Record::Reserved(RequestId(2)),
        Record::Answered(RequestId(1)),
        Record::Ended,
    ];
    let mut bodies: Vec<Vec<u8>> = records.iter().map(|record| record.encode().to_vec()).collect();
    // A mark: all before this offset was durable.
    bodies.insert(4, [&[0][..], &8_u64.to_le_bytes()].concat());
    let framed = |magic: &[u8; 8], bodies: &[Vec<u8>]| {
        let mut bytes = magic.to_vec();
        for body in bodies {
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        bytes
    };
    let old = bodies[..4].to_vec();
    vec![("2".into(), framed(b"QRJRNL02", &bodies)), ("1".into(), framed(b"QRJRNL01", &old))]
}
