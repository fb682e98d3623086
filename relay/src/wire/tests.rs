//! The protocol's bytes: those of the document, there and back, and what becomes of bytes that are none of it.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;

use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::*;
use voter_mesh::outcome::Outcome;
use voter_mesh::run::{Run, Tail, Verdicts};

use super::*;

mod golden;

#[derive(Debug, Clone, PartialEq)]
enum Frame {
    Client(ClientFrame),
    Server(ServerFrame),
}

impl Frame {
    fn encode(&self) -> Bytes {
        match self {
            Self::Client(frame) => frame.encode(),
            Self::Server(frame) => frame.encode(),
        }
    }

    fn decode_like(&self, bytes: &Bytes) -> Result<Self, WireError> {
        match self {
            Self::Client(_) => ClientFrame::decode(bytes).map(Self::Client),
            Self::Server(_) => ServerFrame::decode(bytes).map(Self::Server),
        }
    }

    fn is_raw(&self) -> bool {
        matches!(self, Self::Server(ServerFrame::Feed(_) | ServerFrame::Runs(_)))
    }
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

/// Numbers of every width that CBOR knows.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..24_u64, 24..256_u64, 256..70_000_u64, any::<u32>().prop_map(u64::from), any::<u64>()]
}

fn id() -> impl Strategy<Value = RequestId> {
    number().prop_map(RequestId)
}

fn index() -> impl Strategy<Value = LogIndex> {
    number().prop_map(LogIndex)
}

fn chain() -> impl Strategy<Value = Chain> {
    any::<u32>().prop_map(Chain)
}

fn ids() -> impl Strategy<Value = Vec<RequestId>> {
    prop::collection::vec(id(), 0..WINDOW_MAX)
}

fn feed() -> impl Strategy<Value = FeedMode> {
    prop::sample::select(vec![FeedMode::Full, FeedMode::Thin, FeedMode::Standby])
}

fn code() -> impl Strategy<Value = Code> {
    use Code::*;
    prop::sample::select(vec![
        Version,
        Cluster,
        Epoch,
        UnknownRoom,
        StateMachine,
        Auth,
        Behind,
        Diverged,
        Recovering,
        Overloaded,
        Closing,
        Malformed,
        TooLarge,
        Unsupported,
        Timeout,
        Leaderless,
    ])
}

fn resume() -> impl Strategy<Value = Option<ResumePoint>> {
    prop::option::of((index(), chain()).prop_map(|(applied, chain)| ResumePoint { applied, chain }))
}

fn machine() -> impl Strategy<Value = (String, u32)> {
    ("[a-zä]{0,20}", any::<u32>())
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![index().prop_map(Start::Tail), index().prop_map(Start::Snapshot)]
}

fn status() -> impl Strategy<Value = SessionStatus> {
    prop_oneof![
        Just(SessionStatus::None),
        number().prop_map(|opening| SessionStatus::Attached(Opening(opening))),
        Just(SessionStatus::Expired)
    ]
}

fn proof() -> impl Strategy<Value = Option<SessionProof>> {
    prop::option::of((number(), any::<[u8; 32]>(), prop::option::of(number())).prop_map(|(session, secret, opening)| {
        SessionProof { session: SessionId(session), secret: SessionSecret(secret), opening: opening.map(Opening) }
    }))
}

fn partial() -> impl Strategy<Value = Option<PartialState>> {
    let state = (index(), any::<[u8; 32]>(), number());
    prop::option::of(state.prop_map(|(index, hash, bytes)| PartialState { index, hash, bytes }))
}

fn hello() -> impl Strategy<Value = Hello> {
    let identity = (prop::option::of(any::<[u8; 16]>()), prop::option::of(any::<u32>()), "[a-z]{0,20}", bytes(40));
    let learner = (prop::option::of(machine()), proof(), resume(), feed(), ids(), partial());
    (identity, learner).prop_map(|((cluster, epoch, room, auth), (state_machine, session, resume, feed, unanswered, partial))| {
        Hello {
            version: PROTOCOL_VERSION,
            cluster: cluster.map(ClusterId),
            epoch: epoch.map(Epoch),
            room,
            auth: auth.to_vec(),
            state_machine,
            session,
            resume,
            feed,
            unanswered,
            partial,
        }
    })
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let proposal = (id(), id(), bytes(80)).prop_map(|(id, floor, payload)| Proposal { id, floor, payload });
    prop_oneof![
        hello().prop_map(ClientFrame::Hello),
        any::<[u8; 32]>().prop_map(|secret| ClientFrame::SessionOpen { secret: SessionSecret(secret) }),
        (any::<[u8; 16]>(), number())
            .prop_map(|(nonce, previous)| ClientFrame::SessionAttach { nonce, previous: Opening(previous) }),
        Just(ClientFrame::SessionClose),
        prop::collection::vec(proposal, 0..40).prop_map(ClientFrame::Propose),
        number().prop_map(|id| ClientFrame::ReadIndex { id }),
        (index(), index()).prop_map(|(from, to)| ClientFrame::Fetch { from, to }),
        (resume(), feed(), ids(), partial()).prop_map(|(resume, feed, unanswered, partial)| ClientFrame::Resume {
            resume,
            feed,
            unanswered,
            partial
        }),
        index().prop_map(|applied| ClientFrame::Ack { applied }),
        number().prop_map(|nonce| ClientFrame::Ping { nonce }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        bytes(80).prop_map(Outcome::Applied),
        any::<[u8; 32]>().prop_map(Outcome::Elided),
        number().prop_map(|opening| Outcome::Superseded(Opening(opening))),
        prop::sample::select(vec![
            Outcome::Undecodable,
            Outcome::Conflict,
            Outcome::Stale,
            Outcome::WindowBroken,
            Outcome::SessionExpired
        ]),
    ]
}

fn admit() -> impl Strategy<Value = Admit> {
    let server = (number(), prop::collection::vec("[a-z:/]{0,30}", 0..4))
        .prop_map(|(id, endpoints)| ServerEntry { id: RaftId(id), endpoints });
    let who = (any::<[u8; 16]>(), any::<u32>(), number(), prop::collection::vec(server, 0..5), prop::option::of(number()));
    let what = (index(), machine(), start(), status(), any::<[u32; 4]>());
    (who, what).prop_map(|((cluster, epoch, server, servers, leader), (commit, state_machine, start, session, limits))| Admit {
        cluster: ClusterId(cluster),
        epoch: Epoch(epoch),
        server: RaftId(server),
        servers,
        leader: leader.map(RaftId),
        commit,
        state_machine,
        start,
        session,
        limits: WireLimits {
            message_bytes_max: limits[0],
            payload_bytes_max: limits[1],
            window_max: limits[2],
            ping_ms: limits[3],
        },
    })
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let retry = || prop::option::of(any::<u32>());
    let reply =
        (id(), index(), number(), any::<(u32, bool)>(), outcome()).prop_map(|(id, index, term, (payload_crc, repeat), outcome)| {
            WireReply { id, index, term: Term(term), payload_crc, repeat, outcome }
        });
    let chunk = (index(), chain(), number(), number(), any::<[u8; 32]>(), bytes(200))
        .prop_map(|(index, chain, offset, total, hash, bytes)| SnapshotChunk { index, chain, offset, total, hash, bytes });
    prop_oneof![
        admit().prop_map(ServerFrame::Admit),
        (code(), retry()).prop_map(|(code, retry_after_ms)| ServerFrame::Refuse { code, retry_after_ms }),
        (number(), number())
            .prop_map(|(session, opening)| ServerFrame::SessionOpened { session: SessionId(session), opening: Opening(opening) }),
        number().prop_map(|current| ServerFrame::Superseded { current: Opening(current) }),
        bytes(300).prop_map(ServerFrame::Feed),
        prop::collection::vec(reply, 0..40).prop_map(ServerFrame::Replies),
        chunk.prop_map(ServerFrame::Snapshot),
        start().prop_map(ServerFrame::Start),
        (index(), chain()).prop_map(|(index, chain)| ServerFrame::Commit { index, chain }),
        (number(), index()).prop_map(|(id, index)| ServerFrame::Read { id, index }),
        (number(), code()).prop_map(|(id, code)| ServerFrame::ReadRefused { id, code }),
        (ids(), code(), retry()).prop_map(|(ids, code, retry_after_ms)| ServerFrame::ProposeRefused { ids, code, retry_after_ms }),
        bytes(300).prop_map(ServerFrame::Runs),
        index().prop_map(|first| ServerFrame::Trimmed { first }),
        number().prop_map(|nonce| ServerFrame::Pong { nonce }),
        (code(), retry(), prop::collection::vec("[a-z:/]{0,30}", 0..4))
            .prop_map(|(code, retry_after_ms, endpoints)| ServerFrame::Close { code, retry_after_ms, endpoints }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![client_frame().prop_map(Frame::Client), server_frame().prop_map(Frame::Server)]
}

proptest! {
    #[test]
    fn every_frame_comes_back_as_it_was(frame in frame()) {
        prop_assert_eq!(frame.decode_like(&frame.encode()), Ok(frame));
    }

    #[test]
    fn every_frame_is_the_plain_cbor_that_others_write(frame in frame()) {
        let bytes = frame.encode();
        if !frame.is_raw() {
            let value: ciborium::Value = ciborium::from_reader(&bytes[1..]).unwrap();
            let mut again = vec![bytes[0]];
            ciborium::into_writer(&value, &mut again).unwrap();
            prop_assert_eq!(&again[..], &bytes[..]);
        }
    }

    #[test]
    fn a_frame_cut_anywhere_or_with_a_byte_too_many_is_refused(frame in frame()) {
        let bytes = frame.encode();
        if !frame.is_raw() {
            for cut in 0..bytes.len() {
                prop_assert!(frame.decode_like(&bytes.slice(..cut)).is_err(), "cut at {}", cut);
            }
            prop_assert_eq!(frame.decode_like(&[&bytes[..], &[0]].concat().into()), Err(WireError::Trailing));
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from([&[kind][..], &body].concat());
        let _ = (ClientFrame::decode(&bytes), ServerFrame::decode(&bytes));
    }

    #[test]
    fn no_damaged_byte_makes_a_decoder_panic(frame in frame(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = frame.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let bytes = Bytes::from(bytes);
        let _ = (ClientFrame::decode(&bytes), ServerFrame::decode(&bytes));
    }
}

#[test]
fn nesting_and_claims_of_length_cost_nothing() {
    let kinds = (0..=u8::MAX).filter(|kind| !matches!(*kind, kind::FEED | kind::RUNS));
    for kind in kinds {
        let nested = Bytes::from([&[kind][..], &[0x81; 10_000]].concat());
        assert!(ClientFrame::decode(&nested).is_err() && ServerFrame::decode(&nested).is_err());
        for head in [0x5b, 0x7b, 0x9b] {
            let claim = Bytes::from([&[kind, head][..], &(1_u64 << 63).to_be_bytes()].concat());
            assert!(ClientFrame::decode(&claim).is_err() && ServerFrame::decode(&claim).is_err());
        }
    }
    // A list may claim what its limit allows; nothing is set aside for items that are not there.
    let claim = Bytes::from_static(&[kind::PROPOSE, 0x99, 1, 0, 0x83]);
    assert_eq!(ClientFrame::decode(&claim), Err(WireError::Truncated));
    let over = Bytes::from_static(&[kind::PROPOSE, 0x99, 1, 1]);
    assert_eq!(ClientFrame::decode(&over), Err(WireError::TooLarge));
}

#[test]
fn reserved_kinds_are_told_from_unknown_ones() {
    for byte in 0..=u8::MAX {
        let bytes = Bytes::from(vec![byte, 0xff]);
        let client = ClientFrame::decode(&bytes).unwrap_err();
        let server = ServerFrame::decode(&bytes);
        match byte {
            kind::PRESENCE | kind::BROADCAST | kind::UNICAST | kind::QUERY | kind::EVENT => {
                assert_eq!((client, server), (WireError::Unsupported(byte), Err(WireError::Unsupported(byte))));
                assert_eq!(client.code(), Code::Unsupported);
            }
            kind::HELLO..=kind::PING => assert_eq!(server, Err(WireError::UnknownKind(byte))),
            kind::ADMIT..=kind::CLOSE => assert_eq!(client, WireError::UnknownKind(byte)),
            _ => assert_eq!((client, server), (WireError::UnknownKind(byte), Err(WireError::UnknownKind(byte)))),
        }
    }
}

#[test]
fn a_hello_of_another_version_is_known_by_its_first_field_alone() {
    let other = Bytes::from_static(&[kind::HELLO, 0x83, 0x02, 0x61, b'x', 0xf6]);
    assert_eq!(ClientFrame::decode(&other), Err(WireError::Version(2)));
    assert_eq!(WireError::Version(2).code(), Code::Version);
}

#[test]
fn longer_forms_of_a_number_are_read_and_indefinite_lengths_are_not() {
    let long = Bytes::from_static(&[kind::PING, 0x98, 1, 0x1b, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(ClientFrame::decode(&long), Ok(ClientFrame::Ping { nonce: 7 }));
    let indefinite = Bytes::from_static(&[kind::PING, 0x9f, 7, 0xff]);
    assert_eq!(ClientFrame::decode(&indefinite), Err(WireError::Type));
}

#[test]
fn payloads_and_replies_are_slices_of_the_message() {
    let message =
        ClientFrame::Propose(vec![Proposal { id: RequestId(1), floor: RequestId(1), payload: Bytes::from(vec![9; 500]) }]).encode();
    let Ok(ClientFrame::Propose(proposals)) = ClientFrame::decode(&message) else { panic!() };
    assert!(message.as_ptr_range().contains(&proposals[0].payload.as_ptr()));
}

/// How long the hot frames take, beside the general way: `cargo test --release -p relay -- --ignored --nocapture hot_frames`.
#[expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures")]
#[test]
#[ignore = "a measurement"]
fn hot_frames() {
    let proposals: Vec<_> = (0..64)
        .map(|id| Proposal { id: RequestId(1000 + id), floor: RequestId(1000), payload: Bytes::from(vec![7; 64]) })
        .collect();
    let replies: Vec<_> = (0..64)
        .map(|id| WireReply {
            id: RequestId(1000 + id),
            index: LogIndex(70_000 + id),
            term: Term(3),
            payload_crc: 0xFEDC_BA98,
            repeat: false,
            outcome: Outcome::Applied(Bytes::from(vec![7; 16])),
        })
        .collect();
    let (propose, replied) = (ClientFrame::Propose(proposals.clone()), ServerFrame::Replies(replies));
    let (propose_bytes, replied_bytes) = (propose.encode(), replied.encode());
    type General = Vec<(u64, u64, serde_bytes::ByteBuf)>;
    let general: General = proposals.iter().map(|p| (p.id.0, p.floor.0, serde_bytes::ByteBuf::from(p.payload.to_vec()))).collect();
    let time = |what: &str, run: &mut dyn FnMut()| {
        let begun = std::time::Instant::now();
        (0..20_000).for_each(|_| run());
        println!("{what}: {:.2} us", begun.elapsed().as_secs_f64() * 1e6 / 20_000.0);
    };
    time("propose encode", &mut || drop(std::hint::black_box(propose.encode())));
    time("propose decode", &mut || drop(std::hint::black_box(ClientFrame::decode(&propose_bytes))));
    time("replies encode", &mut || drop(std::hint::black_box(replied.encode())));
    time("replies decode", &mut || drop(std::hint::black_box(ServerFrame::decode(&replied_bytes))));
    time("ciborium encode", &mut || {
        let mut to = Vec::new();
        ciborium::into_writer(&general, &mut to).unwrap();
        std::hint::black_box(to);
    });
    time("ciborium decode", &mut || drop(std::hint::black_box(ciborium::from_reader::<General, _>(&propose_bytes[1..]).unwrap())));
}
