//! What comes on sockets.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use relay::wire::{ClientFrame, ServerFrame};
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, DirectoryId, Epoch, Identity, Incarnation, LogIndex, RaftId, RoomId, RunIndex, Seat, SessionId, Term, TimeMs,
};
use voter_mesh::learner::Learner;
use voter_mesh::log::NoRuns;
use voter_mesh::mesh::bulk::{BulkFrame, SnapshotOffer, TransferId};
use voter_mesh::mesh::codec::{self, Control, FRAME_BYTES_MAX, MeshMessage};
use voter_mesh::mesh::forming::{FormMessage, Offer};
use voter_mesh::mesh::handshake::{Accepting, Dialling, Hello, LinkKind, MeshSecret, PeerHello};
use voter_mesh::mesh::message::{AdminFailure, AdminRequest, BatchId, ForwardRefusal, Message, ReadNonce, ReadRefusal, RejectHint};
use voter_mesh::run::{Run, Tail, Verdicts};
use voter_mesh::snapshot::{SnapshotHashes, SnapshotMeta};

use super::Target;
use crate::fuzz::kind;

pub(super) const CLIENT: Target = Target { name: "client-frame", run: client, repair: None, golden: client_golden };
pub(super) const SERVER: Target = Target { name: "server-frame", run: server, repair: None, golden: server_golden };
pub(super) const BLOCKS: Target = Target { name: "feed-blocks", run: blocks, repair: None, golden: blocks_golden };
pub(super) const MESH: Target = Target { name: "mesh-frame", run: mesh, repair: Some(length), golden: mesh_golden };
pub(super) const BULK: Target = Target { name: "bulk-frame", run: bulk, repair: Some(length), golden: bulk_golden };
pub(super) const HANDSHAKE: Target = Target { name: "handshake", run: handshake, repair: None, golden: handshake_golden };

pub(super) const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

fn client(input: &[u8]) -> String {
    let decoded = ClientFrame::decode(&Bytes::copy_from_slice(input));
    if let Ok(frame) = &decoded {
        assert_eq!(ClientFrame::decode(&frame.encode()).as_ref(), Ok(frame));
    }
    kind(&decoded)
}

fn server(input: &[u8]) -> String {
    let decoded = ServerFrame::decode(&Bytes::copy_from_slice(input));
    if let Ok(frame) = &decoded {
        assert_eq!(ServerFrame::decode(&frame.encode()).as_ref(), Ok(frame));
    }
    kind(&decoded)
}

/// The examples of the written protocol.
fn documented(accepts: fn(&Bytes) -> bool) -> Vec<(String, Vec<u8>)> {
    let document = include_str!("../../../docs/protocol.md");
    let blocks = document.split("```golden ").skip(1).map(|block| {
        let (name, rest) = block.split_once('\n').unwrap_or_default();
        let digits: Vec<u8> = rest.split("```").next().unwrap_or_default().bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).unwrap_or(0);
        (name.trim().to_owned(), digits.chunks(2).map(byte).collect::<Vec<u8>>())
    });
    blocks.filter(|(_, bytes)| accepts(&Bytes::copy_from_slice(bytes))).collect()
}

fn client_golden() -> Vec<(String, Vec<u8>)> {
    documented(|bytes| ClientFrame::decode(bytes).is_ok())
}

fn server_golden() -> Vec<(String, Vec<u8>)> {
    documented(|bytes| ServerFrame::decode(bytes).is_ok())
}

/// Runs of these sizes.
fn runs(sizes: &[usize]) -> Vec<Run> {
    let mut tail = Tail::zero(&IDENTITY);
    let mut seal = |size: &usize| {
        let spec = EntrySpec { session: SessionId(1), ..EntrySpec::internal(EntryKind::Command) };
        let one = entry(&spec, &vec![9; *size]).unwrap();
        let run = Run::seal(&tail, Term(2), TimeMs(5), Epoch(1), RoomId(0), &[&one]).unwrap();
        tail = run.header().tail();
        run
    };
    sizes.iter().map(&mut seal).collect()
}

fn blocks(input: &[u8]) -> String {
    let mut learner = Learner::new(&IDENTITY);
    let mut rest = Bytes::copy_from_slice(input);
    let (mut applied, mut payloads) = (0_u64, 0_usize);
    let ended = learner.apply_blocks(&mut rest, &mut (), &mut |committed| {
        assert!(committed.index.0 > applied, "it goes back");
        applied = committed.index.0;
        payloads += committed.payload.len();
    });
    assert!(payloads <= input.len() && applied <= learner.applied().0);
    format!("{} {}", kind(&ended), learner.applied().0.min(3))
}

fn blocks_golden() -> Vec<(String, Vec<u8>)> {
    let mut bytes = BytesMut::new();
    for run in runs(&[0, 5, 40]) {
        bytes.put_slice(run.bytes());
        let mut verdicts = Verdicts::clear(1);
        verdicts.set(0);
        bytes.put_slice(verdicts.as_bytes());
    }
    vec![("three".into(), bytes.to_vec())]
}

/// Frames off a stream, as a connection takes them.
fn frames(input: &[u8], mut each: impl FnMut(Bytes) -> String) -> String {
    let mut received = BytesMut::from(input);
    let mut ends = Vec::new();
    loop {
        match codec::split_frame(&mut received, FRAME_BYTES_MAX) {
            Ok(Some(frame)) if ends.len() < 4 => ends.push(each(frame)),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                ends.push(kind(&error));
                break;
            }
        }
    }
    ends.join("; ")
}

/// The frame in one piece, without its length.
fn whole<E: std::fmt::Debug>(encode: impl FnOnce(&mut Vec<Bytes>) -> Result<usize, E>) -> Bytes {
    let mut pieces = Vec::new();
    let bytes = encode(&mut pieces).unwrap();
    let mut frame = Bytes::from(pieces.concat());
    assert_eq!(frame.len(), bytes);
    assert_eq!(frame.get_u32_le() as usize, frame.len());
    frame
}

fn mesh(input: &[u8]) -> String {
    frames(input, |frame| {
        if let Some(control) = Control::of(&frame) {
            return kind(&control);
        }
        let decoded = codec::decode(frame);
        if let Ok(message) = &decoded {
            assert_eq!(codec::decode(whole(|to| codec::encode(message, to))).as_ref(), Ok(message));
        }
        kind(&decoded)
    })
}

fn bulk(input: &[u8]) -> String {
    frames(input, |frame| {
        let decoded = BulkFrame::decode(frame);
        if let Ok(frame) = &decoded {
            assert_eq!(BulkFrame::decode(whole(|to| frame.encode(to))).as_ref(), Ok(frame));
        }
        kind(&decoded)
    })
}

/// Makes the first frame's length what there is.
fn length(bytes: &mut [u8]) {
    if bytes.len() > 4 {
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
    }
}

fn with_length(frame: &Bytes) -> Vec<u8> {
    [&(frame.len() as u32).to_le_bytes()[..], frame].concat()
}

fn mesh_golden() -> Vec<(String, Vec<u8>)> {
    let nonce = ReadNonce { server: RaftId::new(Seat(2), 1), incarnation: Incarnation(77), counter: 3 };
    let (term, run, commit) = (Term(5), RunIndex(9), RunIndex(8));
    let append =
        |sizes: &[usize]| Message::Append { term, previous: RunIndex(1), previous_term: Term(1), commit, runs: runs(sizes) };
    let hint = RejectHint { run: RunIndex(4), term: Term(2) };
    let offer = Offer { identity: IDENTITY, configuration: Configuration::default(), machine: ("kv".into(), 1) };
    let welcome = FormMessage::Welcome { id: RaftId::new(Seat(4), 2), identity: IDENTITY, configuration: Configuration::default() };
    let raft = [
        append(&[3, 600]),
        append(&[]),
        Message::Commit { term, previous: run, previous_term: term, commit },
        Message::AppendReply { term, run, reject: None, commit },
        Message::AppendReply { term, run, reject: Some(hint), commit },
        Message::Heartbeat { term, commit, round: 12 },
        Message::HeartbeatReply { term, commit, round: 0 },
        Message::VoteRequest {
            term,
            pre: true,
            last: run,
            last_term: term,
            commit,
            commit_term: term,
            priority: -3,
            transfer: true,
        },
        Message::VoteReply { term, pre: false, granted: true, commit, commit_term: term },
        Message::TimeoutNow { term },
        Message::Forward { batch: BatchId(6), entries: Bytes::from_static(b"entries") },
        Message::Taken { batch: BatchId(6), term, first: LogIndex(31) },
        Message::Refused { batch: BatchId(6), why: ForwardRefusal::NotLeader, leader: Some(RaftId::new(Seat(3), 2)) },
        Message::ReadIndex { nonce },
        Message::ReadAnswer { nonce, answer: Ok(run) },
        Message::ReadAnswer { nonce, answer: Err(ReadRefusal::NotReady) },
        Message::SessionActivity { attached: vec![SessionId(1), SessionId(2)], detached: vec![SessionId(3)] },
        Message::SnapshotHashes(SnapshotHashes { run, state: [3; 32], sessions: [4; 32] }),
        Message::Admin { nonce: 8, request: AdminRequest::Join { seat: Seat(4), directory: DirectoryId([1; 16]) } },
        Message::AdminReply { nonce: 8, result: Err(AdminFailure::Refused("no".into())) },
    ];
    let forming = [FormMessage::Offer(offer), FormMessage::Confirm(IDENTITY.cluster), FormMessage::Release(IDENTITY), welcome];
    let all = raft.into_iter().map(MeshMessage::Raft).chain(forming.into_iter().map(MeshMessage::Form));
    let mut golden: Vec<(String, Vec<u8>)> = all
        .enumerate()
        .map(|(number, message)| (format!("{number:02}"), with_length(&whole(|to| codec::encode(&message, to)))))
        .collect();
    golden.push(("alive".into(), Control::Alive.frame().to_vec()));
    golden
}

pub(super) fn meta() -> SnapshotMeta {
    SnapshotMeta {
        tail: Tail::zero(&IDENTITY),
        identity: IDENTITY,
        configuration: Configuration::default(),
        configuration_run: RunIndex(1),
        machine_name: "kv".into(),
        machine_version: 1,
        state_hash: [1; 32],
        sessions_hash: [2; 32],
    }
}

fn bulk_golden() -> Vec<(String, Vec<u8>)> {
    let transfer = TransferId(3);
    let all = [
        BulkFrame::Begin(transfer, SnapshotOffer { term: Term(4), total: 1000, hash: [5; 32], meta: meta() }),
        BulkFrame::Accept { transfer, credit: 1 << 20, offset: 7 },
        BulkFrame::Chunk(transfer, 9, Bytes::from_static(b"piece")),
        BulkFrame::Credit(transfer, 64),
        BulkFrame::End(transfer),
        BulkFrame::Done(transfer),
        BulkFrame::Refuse(transfer, "no room".into()),
        BulkFrame::Abort(transfer),
        BulkFrame::FetchRuns(transfer, RunIndex(2), RunIndex(5)),
        BulkFrame::Runs(transfer, runs(&[1, 30])),
        BulkFrame::NoRuns(transfer, NoRuns::Trimmed { first: RunIndex(9) }),
        BulkFrame::NoRuns(transfer, NoRuns::NotYet),
    ];
    let named = all.iter().enumerate();
    named.map(|(number, frame)| (format!("{number:02}"), with_length(&whole(|to| frame.encode(to))))).collect()
}

fn secret() -> MeshSecret {
    MeshSecret::new(&[8; 32]).unwrap()
}

fn peer(seat: u16) -> PeerHello {
    PeerHello {
        seat: Seat(seat),
        id: Some(RaftId::new(Seat(seat), 1)),
        directory: DirectoryId([seat as u8; 16]),
        incarnation: Incarnation(u64::from(seat)),
        identity: Some(IDENTITY),
        machine: ("kv".into(), 1),
        first: RunIndex(2),
        last: (Term(3), RunIndex(4)),
        suspect: false,
        endpoints: vec!["ws://10.0.0.1:7400".into()],
    }
}

fn hello(seat: u16) -> Hello {
    Hello {
        kind: LinkKind::Consensus,
        nonce: [seat as u8; 32],
        dial: 1,
        to: Seat(3 - seat),
        to_incarnation: None,
        from: peer(seat),
    }
}

/// The same bytes for both sides, and for whoever has proven nothing: a first byte says which, two more how long the first frame is.
fn handshake(input: &[u8]) -> String {
    let Some((head, rest)) = input.split_first_chunk::<3>() else { return "nothing".into() };
    let (first, second) = rest.split_at(usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len()));
    let [first, second] = [first, second].map(Bytes::copy_from_slice);
    if head[0].is_multiple_of(2) {
        match Accepting::new(peer(2), [2; 32], Some(&secret())).handle_hello(&first) {
            Ok((accepted, _)) => {
                format!("accepting: {}", kind(&accepted.handle_proof(&second).map(|proven| proven.peer().clone())))
            }
            Err(error) => format!("accepting: {}", kind(&error)),
        }
    } else {
        match Dialling::new(hello(1), Some(&secret())).unwrap().0.handle_hello(&first) {
            Ok((dialled, _)) => format!("dialling: {}", kind(&dialled.handle_verdict(&second))),
            Err(error) => format!("dialling: {}", kind(&error)),
        }
    }
}

fn handshake_golden() -> Vec<(String, Vec<u8>)> {
    let behind_length = |mut frame: Bytes| frame.split_off(4);
    let (dialling, said) = Dialling::new(hello(1), Some(&secret())).unwrap();
    let said = behind_length(said);
    let (accepted, answered) = Accepting::new(peer(2), [2; 32], Some(&secret())).handle_hello(&said).unwrap();
    let answered = behind_length(answered);
    let (_, proof) = dialling.handle_hello(&answered).unwrap();
    let proof = behind_length(proof);
    let proven = accepted.handle_proof(&proof).unwrap();
    assert_eq!(*proven.peer(), hello(1));
    let verdict = behind_length(proven.verdict(&Ok(())).unwrap());
    let input =
        |side: u8, first: &Bytes, second: &Bytes| [&[side][..], &(first.len() as u16).to_le_bytes(), first, second].concat();
    vec![("accepting".into(), input(0, &said, &proof)), ("dialling".into(), input(1, &answered, &verdict))]
}
