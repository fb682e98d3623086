#![allow(clippy::unwrap_used)]

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::entry::{EntryKind, EntrySpec, entry};
use crate::ids::{ClusterId, DirectoryId, Epoch, Identity, RoomId, Seat, TimeMs};
use crate::log::NoRuns;
use crate::mesh::bulk::{BulkFrame, SnapshotOffer, TransferId};
use crate::mesh::message::{AdminFailure, AdminRequest};
use crate::run::Tail;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

/// Runs of entries with these payload sizes, one entry each.
fn runs(sizes: &[usize]) -> Vec<Run> {
    let mut tail = Tail::zero(&IDENTITY);
    let seal = |size: &usize| {
        let entry = entry(&EntrySpec::internal(EntryKind::Command), &vec![9; *size]).unwrap();
        let run = Run::seal(&tail, Term(2), TimeMs(5), Epoch(1), RoomId(0), &[&entry]).unwrap();
        tail = run.header().tail();
        run
    };
    sizes.iter().map(seal).collect()
}

fn whole(message: &MeshMessage) -> Bytes {
    let mut pieces = Vec::new();
    let bytes = encode(message, &mut pieces).unwrap();
    let frame = pieces.concat();
    assert_eq!(frame.len(), bytes);
    frame.into()
}

fn received(bytes: &[u8]) -> Bytes {
    let mut buffer = BytesMut::from(bytes);
    let frame = split_frame(&mut buffer, FRAME_BYTES_MAX).unwrap().unwrap();
    assert!(buffer.is_empty());
    frame
}

fn every_message() -> Vec<MeshMessage> {
    let nonce = ReadNonce { server: RaftId::new(Seat(2), 1), incarnation: Incarnation(77), counter: 3 };
    let (term, commit, commit_term) = (Term(5), RunIndex(9), Term(4));
    let messages = [
        Message::Append { term, previous: RunIndex(1), previous_term: Term(1), commit, runs: runs(&[3, 2000, 40, 700, 700]) },
        Message::Append { term, previous: RunIndex(1), previous_term: Term(1), commit, runs: Vec::new() },
        Message::Commit { term, previous: RunIndex(8), previous_term: Term(1), commit },
        Message::AppendReply { term, run: RunIndex(8), reject: None, commit },
        Message::AppendReply { term, run: RunIndex(8), reject: Some(RejectHint { run: RunIndex(4), term: Term(2) }), commit },
        Message::Heartbeat { term, commit, round: 12 },
        Message::HeartbeatReply { term, commit, round: 12 },
        Message::VoteRequest {
            term,
            pre: true,
            last: RunIndex(10),
            last_term: Term(5),
            commit,
            commit_term,
            priority: -3,
            transfer: false,
        },
        Message::VoteReply { term, pre: false, granted: true, commit, commit_term },
        Message::TimeoutNow { term },
        Message::Forward { batch: BatchId(6), entries: Bytes::from_static(b"entries") },
        Message::Taken { batch: BatchId(6), term, first: LogIndex(31) },
        Message::Refused { batch: BatchId(6), why: ForwardRefusal::Transferring, leader: None },
        Message::Refused { batch: BatchId(6), why: ForwardRefusal::DiskFull, leader: None },
        Message::Refused { batch: BatchId(6), why: ForwardRefusal::NotLeader, leader: Some(RaftId::new(Seat(3), 2)) },
        Message::Refused { batch: BatchId(6), why: ForwardRefusal::Recovering, leader: None },
        Message::ReadIndex { nonce },
        Message::ReadAnswer { nonce, answer: Ok(RunIndex(44)) },
        Message::ReadAnswer { nonce, answer: Err(ReadRefusal::NotReady) },
        Message::ReadAnswer { nonce, answer: Err(ReadRefusal::Recovering) },
        Message::SessionActivity { attached: vec![SessionId(1), SessionId(2)], detached: vec![SessionId(3)] },
        Message::SnapshotHashes(SnapshotHashes { run: RunIndex(70), state: [3; 32], sessions: [4; 32] }),
        Message::Admin { nonce: 8, request: AdminRequest::Join { seat: Seat(4), directory: DirectoryId([1; 16]) } },
        Message::AdminReply { nonce: 8, result: Err(AdminFailure::Refused("no".into())) },
        Message::AdminReply { nonce: 8, result: Err(AdminFailure::Recovering) },
    ];
    let forms = [FormMessage::Confirm(ClusterId([2; 16])), FormMessage::Release(IDENTITY)];
    messages.into_iter().map(MeshMessage::Raft).chain(forms.into_iter().map(MeshMessage::Form)).collect()
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for message in every_message() {
        assert_eq!(decode(received(&whole(&message))), Ok(message));
    }
}

#[test]
fn the_bytes_of_the_hot_frames_are_fixed() {
    let hex = |message| whole(&MeshMessage::Raft(message)).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let heartbeat = Message::Heartbeat { term: Term(5), commit: RunIndex(9), round: 0x0102 };
    assert_eq!(hex(heartbeat), "1d000000031800000005000000000000000900000000000000020100000000_0000".replace('_', ""));
    let reply = Message::AppendReply { term: Term(1), run: RunIndex(2), reject: None, commit: RunIndex(3) };
    assert_eq!(
        hex(reply),
        "2e000000022900000001000000000000000200000000000000030000000000000000000000000000000000000000000000_00".replace('_', "")
    );
    let forward = Message::Forward { batch: BatchId(7), entries: Bytes::from_static(b"abc") };
    assert_eq!(hex(forward), "10000000080800000007_00000000000000616263".replace('_', ""));
    let hashes = Message::SnapshotHashes(SnapshotHashes { run: RunIndex(9), state: [0xaa; 32], sessions: [0xbb; 32] });
    assert_eq!(hex(hashes), format!("4d00000014480000000900000000000000{}{}", "aa".repeat(32), "bb".repeat(32)));
    let append =
        Message::Append { term: Term(4), previous: RunIndex(1), previous_term: Term(1), commit: RunIndex(2), runs: runs(&[0]) };
    assert!(hex(append).starts_with("95000000012000000004000000000000000100000000000000010000000000000002000000000000"));
    let vote = Message::VoteRequest {
        term: Term(1),
        pre: true,
        last: RunIndex(2),
        last_term: Term(3),
        commit: RunIndex(4),
        commit_term: Term(5),
        priority: -1,
        transfer: true,
    };
    assert!(hex(vote).ends_with("0500000000000000ffffffff03"));
}

#[test]
fn large_runs_are_shared_and_small_ones_gathered() {
    let runs = runs(&[10, 10, 5000, 10, 6000]);
    let append =
        Message::Append { term: Term(2), previous: RunIndex(1), previous_term: Term(1), commit: RunIndex(1), runs: runs.clone() };
    let mut pieces = Vec::new();
    encode(&MeshMessage::Raft(append), &mut pieces).unwrap();
    assert_eq!(pieces.len(), 4, "head and two runs, a run, a run, a run");
    assert_eq!(pieces[1].as_ptr(), runs[2].bytes().as_ptr(), "not copied");
    assert_eq!(pieces[3].as_ptr(), runs[4].bytes().as_ptr(), "not copied");
}

#[test]
fn received_runs_share_the_buffer_that_they_came_in() {
    let append =
        Message::Append { term: Term(2), previous: RunIndex(1), previous_term: Term(1), commit: RunIndex(1), runs: runs(&[9000]) };
    let frame = received(&whole(&MeshMessage::Raft(append)));
    let MeshMessage::Raft(Message::Append { runs, .. }) = decode(frame.clone()).unwrap() else { panic!("an append") };
    assert!(frame.as_ptr_range().contains(&runs[0].bytes().as_ptr()));
}

#[test]
fn frames_are_split_wherever_the_stream_was_cut() {
    let stream: Vec<u8> = every_message().iter().flat_map(|message| whole(message).to_vec()).collect();
    for step in [1, 7, 64, 4096] {
        let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
        for part in stream.chunks(step) {
            buffer.extend_from_slice(part);
            while let Some(frame) = split_frame(&mut buffer, FRAME_BYTES_MAX).unwrap() {
                messages.push(decode(frame).unwrap());
            }
        }
        assert_eq!(messages, every_message());
    }
}

#[test]
fn what_is_over_its_limit_is_refused_before_it_is_buffered() {
    let mut claim = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
    assert_eq!(split_frame(&mut claim, FRAME_BYTES_MAX), Err(CodecError::TooLarge(u32::MAX as usize)));
    let mut short = BytesMut::from(&[4, 0, 0, 0, 1, 0, 0, 0][..]);
    assert_eq!(split_frame(&mut short, FRAME_BYTES_MAX), Err(CodecError::Truncated));
    let huge = Message::Forward { batch: BatchId(1), entries: vec![0; FRAME_BYTES_MAX].into() };
    let mut pieces: Vec<Bytes> = Vec::new();
    assert!(matches!(encode(&MeshMessage::Raft(huge), &mut pieces), Err(CodecError::TooLarge(_))));
    assert!(pieces.is_empty());
    let mut head = BytesMut::from(&[1][..]);
    head.put_u32_le(u32::MAX);
    assert_eq!(decode(head.freeze()), Err(CodecError::HeadTooLarge(u32::MAX as usize)));
}

#[test]
fn nonsense_has_a_name() {
    let frame = |kind: u8, head: &[u8], tail: &[u8]| {
        let mut frame = BytesMut::new();
        frame.put_u8(kind);
        frame.put_u32_le(head.len() as u32);
        frame.extend_from_slice(head);
        frame.extend_from_slice(tail);
        frame.freeze()
    };
    assert_eq!(decode(frame(200, &[], &[])), Err(CodecError::Kind(200)));
    assert_eq!(decode(frame(kind::SNAPSHOT_CHUNK, &[0; 12], &[1])), Err(CodecError::Kind(kind::SNAPSHOT_CHUNK)));
    assert_eq!(decode(frame(kind::HEARTBEAT, &[0; 23], &[])), Err(CodecError::Truncated));
    assert_eq!(decode(frame(kind::HEARTBEAT, &[0; 25], &[])), Err(CodecError::Trailing));
    assert_eq!(decode(frame(kind::HEARTBEAT, &[0; 24], &[1])), Err(CodecError::Trailing));
    assert_eq!(decode(frame(kind::APPEND_REPLY, &[2; 41], &[])), Err(CodecError::Field("reject")));
    assert_eq!(decode(frame(kind::SESSION_ACTIVITY, &[2, 0, 0, 0], &[0; 8])), Err(CodecError::Field("session count")));
    assert!(matches!(decode(frame(kind::APPEND, &[0; 32], &[0; 64])), Err(CodecError::Run(_))));
    // Arrays, ten thousand deep.
    assert_eq!(decode(frame(kind::FORM, &[0x81; 10_000], &[])), Err(CodecError::Cbor));
    assert_eq!(decode(Bytes::new()), Err(CodecError::Truncated));
}

#[test]
fn one_flipped_bit_in_a_run_is_noticed() {
    let append =
        Message::Append { term: Term(2), previous: RunIndex(1), previous_term: Term(1), commit: RunIndex(1), runs: runs(&[20]) };
    let good = whole(&MeshMessage::Raft(append));
    for at in 4 + 5 + 32..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        assert!(matches!(decode(received(&bad)), Err(CodecError::Run(_))), "byte {at}");
    }
}

fn every_bulk_frame() -> Vec<BulkFrame> {
    let meta = crate::snapshot::SnapshotMeta {
        tail: Tail::zero(&IDENTITY),
        identity: IDENTITY,
        configuration: crate::configuration::Configuration::default(),
        configuration_run: RunIndex(1),
        machine_name: "kv".into(),
        machine_version: 1,
        state_hash: [1; 32],
        sessions_hash: [2; 32],
    };
    let transfer = TransferId(9);
    vec![
        BulkFrame::Begin(transfer, SnapshotOffer { term: Term(3), total: 1 << 40, hash: [5; 32], meta }),
        BulkFrame::Accept { transfer, credit: 1 << 20, offset: 77 },
        BulkFrame::Chunk(transfer, 65_536, Bytes::from_static(b"state")),
        BulkFrame::Credit(transfer, 262_144),
        BulkFrame::End(transfer),
        BulkFrame::Done(transfer),
        BulkFrame::Refuse(transfer, "no room".into()),
        BulkFrame::Abort(transfer),
        BulkFrame::FetchRuns(transfer, RunIndex(5), RunIndex(7)),
        BulkFrame::Runs(transfer, runs(&[3, 2000, 40, 700])),
        BulkFrame::NoRuns(transfer, NoRuns::Trimmed { first: RunIndex(12) }),
        BulkFrame::NoRuns(transfer, NoRuns::Absent),
        BulkFrame::NoRuns(transfer, NoRuns::NotYet),
    ]
}

#[test]
fn every_bulk_frame_comes_back_and_a_long_reason_is_cut() {
    let round = |frame: &BulkFrame| {
        let mut pieces: Vec<Bytes> = Vec::new();
        let bytes = frame.encode(&mut pieces).unwrap();
        assert_eq!(bytes, pieces.concat().len());
        BulkFrame::decode(received(&pieces.concat()))
    };
    for frame in every_bulk_frame() {
        assert_eq!(round(&frame), Ok(frame));
    }
    let hex = |frame: &BulkFrame| {
        let mut pieces: Vec<Bytes> = Vec::new();
        frame.encode(&mut pieces).unwrap();
        pieces.concat().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let question = TransferId(3);
    assert_eq!(
        hex(&BulkFrame::FetchRuns(question, RunIndex(5), RunIndex(7))),
        "190000002814000000_03000000_0500000000000000_0700000000000000".replace('_', "")
    );
    assert!(hex(&BulkFrame::Runs(question, runs(&[0]))).starts_with("79000000290400000003000000"));
    assert_eq!(
        hex(&BulkFrame::NoRuns(question, NoRuns::Trimmed { first: RunIndex(9) })),
        "120000002a0d000000_03000000_0900000000000000_00".replace('_', "")
    );
    assert_eq!(
        hex(&BulkFrame::Accept { transfer: TransferId(2), credit: 3, offset: 4 }),
        "190000002114000000_02000000_0300000000000000_0400000000000000".replace('_', "")
    );
    let long = BulkFrame::Refuse(TransferId(1), "ü".repeat(4000));
    assert_eq!(round(&long), Ok(BulkFrame::Refuse(TransferId(1), "ü".repeat(256))));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..70_u8) {
        let mut frame = BytesMut::new();
        frame.put_u8(kind);
        frame.put_u32_le(bytes.len() as u32 / 2);
        frame.extend_from_slice(&bytes);
        let frame = frame.freeze();
        let _ = decode(frame.clone());
        let _ = BulkFrame::decode(frame);
        let _ = decode(Bytes::from(bytes.clone()));
        let mut stream = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = split_frame(&mut stream, FRAME_BYTES_MAX) {}
    }

    #[test]
    // CBOR, behind these, has more than one form of a value.
    fn a_changed_frame_of_integers_is_another_message_or_an_error(which in 0..22_usize, at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let message = &every_message()[which];
        let mut bytes = whole(message).to_vec();
        let at = 4 + at.index(bytes.len() - 4);
        bytes[at] ^= 1 << bit;
        if let Ok(other) = decode(received(&bytes)) {
            prop_assert_ne!(&other, message);
        }
    }
}
