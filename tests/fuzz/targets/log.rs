//! The log: entries, runs, and what a segment's file holds.

use std::sync::Arc;

use bytes::Bytes;
use cluster_server::disk::{DataDir, Log, LogOptions};
use voter_mesh::entry::{ENTRY_HEADER_BYTES, Entries, EntryKind, EntryRef, EntrySpec, entry};
use voter_mesh::ids::{DirectoryId, Epoch, LogIndex, RaftId, RoomId, RunIndex, Seat, Term, TimeMs};
use voter_mesh::log::{Mark, RECORDS_AT, SECTOR_BYTES, SegmentHeader, Step, empty_tail, find_run, step};
use voter_mesh::run::{RUN_HEADER_BYTES, Run, Tail, chain_next};

use super::frames::IDENTITY;
use super::{Target, fixture, seal};
use crate::fuzz::kind;
use crate::sim::disk::{Image, SimDisk};

pub(super) const ENTRIES: Target = Target { name: "entries", run: entries, repair: Some(repair_entries), golden: entries_golden };
pub(super) const RUN: Target = Target { name: "run", run: a_run, repair: Some(repair_run), golden: run_golden };
pub(super) const RECORDS: Target = Target { name: "records", run: records, repair: Some(repair_run), golden: records_golden };
pub(super) const HEADER: Target =
    Target { name: "segment-header", run: header, repair: Some(repair_sector), golden: header_golden };
pub(super) const MARK: Target = Target { name: "mark", run: mark, repair: Some(repair_sector), golden: mark_golden };
pub(super) const SEGMENT: Target = Target { name: "segment", run: segment, repair: Some(repair_segment), golden: segment_golden };

/// An entry, laid out again from what was read of it.
fn again(one: &EntryRef<'_>) -> Bytes {
    let header = one.header;
    let spec = EntrySpec {
        kind: header.kind,
        room: header.room,
        session: header.session,
        opening: header.opening,
        request: header.request,
        floor: header.floor,
    };
    entry(&spec, one.payload).unwrap()
}

fn entries(input: &[u8]) -> String {
    let (mut count, mut end) = (0, "end".to_owned());
    for one in Entries::checked(input) {
        match one {
            Ok(one) => assert_eq!(again(&one), one.bytes),
            Err(error) => end = kind(&error),
        }
        count += 1;
        assert!(count <= input.len(), "it does not come to an end");
    }
    // Whoever trusts the payloads reads the same entries.
    let shallow = Entries::verified(input).take_while(Result::is_ok).count();
    assert!(shallow >= Entries::checked(input).take_while(Result::is_ok).count());
    format!("{} {end}", count.min(3))
}

/// Where each entry begins, as far as its header's length leads.
fn entry_places(bytes: &[u8], from: usize) -> Vec<usize> {
    let (mut at, mut places) = (from, Vec::new());
    while bytes.len() >= at + ENTRY_HEADER_BYTES && places.len() < 64 {
        places.push(at);
        let length = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        at = at.saturating_add(ENTRY_HEADER_BYTES).saturating_add(length);
    }
    places
}

fn repair_entries_from(bytes: &mut [u8], from: usize) {
    for at in entry_places(bytes, from) {
        let length = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let payload = bytes.len().min((at + ENTRY_HEADER_BYTES).saturating_add(length));
        let crc = crc32c::crc32c(&bytes[at + ENTRY_HEADER_BYTES..payload]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[at..at + ENTRY_HEADER_BYTES - 4]);
        bytes[at + ENTRY_HEADER_BYTES - 4..at + ENTRY_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

fn repair_entries(bytes: &mut [u8]) {
    repair_entries_from(bytes, 0);
}

fn some_entries() -> Vec<Bytes> {
    let spec = EntrySpec::internal(EntryKind::Command);
    vec![
        entry(&spec, b"first").unwrap(),
        entry(&EntrySpec::internal(EntryKind::Noop), b"").unwrap(),
        entry(&EntrySpec { request: voter_mesh::ids::RequestId(9), ..spec }, &[7; 90]).unwrap(),
    ]
}

fn entries_golden() -> Vec<(String, Vec<u8>)> {
    vec![("three".into(), some_entries().concat())]
}

fn a_run(input: &[u8]) -> String {
    let mut rest = Bytes::copy_from_slice(input);
    let split = Run::split_from(&mut rest);
    if let Ok(run) = &split {
        let header = *run.header();
        assert_eq!(run.bytes(), &input[..header.whole_bytes()]);
        assert_eq!(run.entries().count(), header.count as usize);
        let parts: Vec<Bytes> = run.entries().map(|(_, one)| again(&one)).collect();
        let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
        let before = Tail {
            run: header.run.previous(),
            term: Term(0),
            last: header.first.previous(),
            chain: header.chain_before,
            time: TimeMs(0),
        };
        let sealed = Run::seal(&before, header.term, header.time, header.epoch, header.room, &parts).unwrap();
        assert_eq!(sealed.bytes(), run.bytes(), "sealed again it is another run");
        let _ = run.config_payload();
    }
    format!("{} {}", kind(&split), split.map_or(0, |run| run.header().count.min(3)))
}

/// Makes entries, chain and header of the run at the front right.
fn repair_run(bytes: &mut [u8]) {
    if bytes.len() < RUN_HEADER_BYTES {
        return;
    }
    let number = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let length = (u32::from_le_bytes(bytes[..4].try_into().unwrap_or_default()) as usize).min(bytes.len() - RUN_HEADER_BYTES);
    repair_entries_from(&mut bytes[..RUN_HEADER_BYTES + length], RUN_HEADER_BYTES);
    let (term, time) = (Term(number(bytes, 24)), TimeMs(number(bytes, 36)));
    let mut chain = voter_mesh::ids::Chain(u32::from_le_bytes(bytes[52..56].try_into().unwrap_or_default()));
    let mut count = 0_u32;
    for one in Entries::checked(&bytes[RUN_HEADER_BYTES..RUN_HEADER_BYTES + length]).map_while(Result::ok) {
        let crc = |at: usize| u32::from_le_bytes(one.bytes[at..at + 4].try_into().unwrap_or_default());
        chain = chain_next(chain, term, time, crc(ENTRY_HEADER_BYTES - 4), crc(4));
        count += 1;
    }
    bytes[4..8].copy_from_slice(&count.to_le_bytes());
    bytes[56..60].copy_from_slice(&chain.0.to_le_bytes());
    seal(bytes, 60);
}

fn some_runs() -> Vec<Run> {
    let mut tail = Tail::zero(&IDENTITY);
    let batches = [vec![some_entries()[0].clone()], some_entries(), vec![some_entries()[1].clone()]];
    let mut all = Vec::new();
    for batch in batches {
        let parts: Vec<&[u8]> = batch.iter().map(AsRef::as_ref).collect();
        let run = Run::seal(&tail, Term(2), TimeMs(7), Epoch(1), RoomId(0), &parts).unwrap();
        tail = run.header().tail();
        all.push(run);
    }
    all
}

fn run_golden() -> Vec<(String, Vec<u8>)> {
    some_runs().iter().enumerate().map(|(number, run)| (format!("{number}"), run.bytes().to_vec())).collect()
}

/// A walk over a segment's records.
fn records(input: &[u8]) -> String {
    let mut tail = Tail::zero(&IDENTITY);
    let mut bytes = Bytes::copy_from_slice(input);
    let mut runs = 0;
    let end = loop {
        match step(&tail, &IDENTITY, &mut bytes) {
            Step::Run(run) => {
                assert!(tail.continues(run.header()));
                tail = run.header().tail();
                runs += 1;
            }
            end => break end,
        }
    };
    let found = find_run(&empty_tail(&IDENTITY), RunIndex(u64::MAX), &IDENTITY, &Bytes::copy_from_slice(input), true);
    format!("{} {} {}", runs.min(4), kind(&end), found.is_ok())
}

fn records_golden() -> Vec<(String, Vec<u8>)> {
    let mut bytes: Vec<u8> = some_runs().iter().flat_map(|run| run.bytes().to_vec()).collect();
    bytes.extend_from_slice(&[0; 100]);
    vec![("three".into(), bytes)]
}

/// A sector of the input, filled up with zeros.
fn sector(input: &[u8]) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let bytes = input.len().min(SECTOR_BYTES);
    sector[..bytes].copy_from_slice(&input[..bytes]);
    sector
}

fn repair_sector(bytes: &mut [u8]) {
    seal(bytes, SECTOR_BYTES - 4);
}

fn header(input: &[u8]) -> String {
    let decoded = SegmentHeader::decode(&sector(input));
    if let Ok(header) = &decoded {
        assert_eq!(SegmentHeader::decode(&header.encode()).as_ref(), Ok(header));
    }
    kind(&decoded.map(|header| header.kind))
}

fn header_golden() -> Vec<(String, Vec<u8>)> {
    let all = ["member/log/0000000000000002.seg", "member/log/0000000000000003.seg", "suspect/log/0000000000000001.seg"];
    all.iter().enumerate().map(|(number, path)| (format!("{number}"), fixture(path)[..SECTOR_BYTES].to_vec())).collect()
}

fn mark(input: &[u8]) -> String {
    let sector = sector(input);
    let segment = u64::from_le_bytes(sector[16..24].try_into().unwrap_or_default());
    let decoded = [0, 1].map(|slot| Mark::decode(&sector, segment, slot));
    for mark in decoded.iter().flatten() {
        assert_eq!(Mark::decode(&mark.encode(), mark.segment, mark.slot()).as_ref(), Some(mark));
    }
    assert!(decoded.iter().flatten().count() <= 1, "a mark belongs into one slot");
    let found = decoded.iter().flatten().next();
    format!("{:?}", found.map(|mark| (mark.must_reach.is_some(), mark.vote_lost)))
}

fn mark_golden() -> Vec<(String, Vec<u8>)> {
    let of = |path: &str, at: usize| fixture(path)[at..at + SECTOR_BYTES].to_vec();
    vec![
        ("0".into(), of("member/log/0000000000000004.seg", 4096)),
        ("1".into(), of("member/log/0000000000000004.seg", 8192)),
        ("suspect".into(), of("suspect/log/0000000000000001.seg", 4096)),
    ]
}

/// The only segment of a log: header, both marks and records, without the room between them.
fn segment(input: &[u8]) -> String {
    let mut file = Vec::with_capacity(RECORDS_AT as usize + input.len());
    let mut rest = input;
    for page in [4096, 8192, RECORDS_AT as usize] {
        let (sector, behind) = rest.split_at(rest.len().min(SECTOR_BYTES));
        file.extend_from_slice(sector);
        file.resize(page, 0);
        rest = behind;
    }
    file.extend_from_slice(rest);
    let header = SegmentHeader::decode(&sector(input));
    let (identity, id, sequence) =
        header.map_or((IDENTITY, RaftId::new(Seat(1), 1), 1), |header| (header.identity, header.id, header.sequence));
    let mut image = Image::default();
    image.put(format!("/d/log/{sequence:016x}.seg"), file);
    let disk = SimDisk::on(image.into());
    let options = LogOptions { segment_bytes: 16 << 10, ..LogOptions::default() };
    let start = |disk: &SimDisk| {
        let dir = DataDir::open_on(Arc::new(disk.clone()), "/d", DirectoryId([1; 16]))?;
        let mut runs = 0_u32;
        let (log, recovered) = Log::recover(&dir, identity, id, None, options, &mut |_, _| runs += 1)?;
        drop(log);
        Ok::<_, cluster_server::disk::DiskError>((recovered.tail, runs))
    };
    let first = start(&disk);
    if let Ok((tail, _)) = &first {
        // What was found once is found again.
        let (again, _) = start(&disk).unwrap();
        assert_eq!(again, *tail);
    }
    match first {
        Ok((tail, runs)) => format!("{} {}", tail.last > LogIndex::ZERO, runs > 0),
        Err(error) => kind(&error),
    }
}

fn repair_segment(bytes: &mut [u8]) {
    for at in (0..3).map(|page| page * SECTOR_BYTES) {
        if bytes.len() >= at + SECTOR_BYTES {
            seal(&mut bytes[at..at + SECTOR_BYTES], SECTOR_BYTES - 4);
        }
    }
}

fn segment_golden() -> Vec<(String, Vec<u8>)> {
    let all = ["member/log/0000000000000002.seg", "installed/log/0000000000000002.seg", "suspect/log/0000000000000001.seg"];
    let packed = |path: &str| {
        let file = fixture(path);
        let sectors = [0, 4096, 8192].map(|at| &file[at..at + SECTOR_BYTES]).concat();
        let records = &file[RECORDS_AT as usize..];
        let used = records.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        [&sectors[..], &records[..used]].concat()
    };
    all.iter().enumerate().map(|(number, path)| (format!("{number}"), packed(path))).collect()
}
