//! `docs/protocol.md` holds the golden bytes: one fenced block `golden NAME` for each example here.

use super::*;

const DOCUMENT: &str = include_str!("../../../../docs/protocol.md");

const IDENTITY: Identity = Identity { cluster: ClusterId(*b"0123456789abcdef"), epoch: Epoch(1), room: RoomId(0) };

/// The bytes of the document's block of this name.
fn golden(name: &str) -> Bytes {
    let block = DOCUMENT.split_once(&format!("```golden {name}\n")).unwrap_or_else(|| panic!("no example of {name}")).1;
    let hex: Vec<u8> = block.split_once("```").unwrap().0.bytes().filter(u8::is_ascii_hexdigit).collect();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A run of two entries, of which the first took effect.
fn block() -> Bytes {
    let command = EntrySpec {
        kind: EntryKind::Command,
        room: RoomId(0),
        session: SessionId(1),
        opening: Opening(1),
        request: RequestId(5),
        floor: RequestId(4),
    };
    let entries = [entry(&command, b"hi").unwrap(), entry(&EntrySpec::internal(EntryKind::Noop), b"").unwrap()];
    let tail = Tail { run: RunIndex(2), last: LogIndex(1), ..Tail::zero(&IDENTITY) };
    let run = Run::seal(&tail, Term(2), TimeMs(1_700_000_000_000), Epoch(1), RoomId(0), &[&entries[0], &entries[1]]).unwrap();
    let mut verdicts = Verdicts::clear(2);
    verdicts.set(0);
    [&run.bytes()[..], verdicts.as_bytes()].concat().into()
}

fn examples() -> Vec<(&'static str, Frame)> {
    use ClientFrame as C;
    use ServerFrame as S;
    let secret = SessionSecret(std::array::from_fn(|byte| byte as u8));
    let resume = Some(ResumePoint { applied: LogIndex(41), chain: Chain(0xdead_beef) });
    let reply = |id, repeat, outcome| WireReply {
        id: RequestId(id),
        index: LogIndex(42),
        term: Term(2),
        payload_crc: 0x8000_0001,
        repeat,
        outcome,
    };
    let client = [
        (
            "Hello",
            C::Hello(Hello {
                version: 1,
                cluster: Some(IDENTITY.cluster),
                epoch: Some(IDENTITY.epoch),
                room: "main".into(),
                auth: vec![],
                state_machine: Some(("kv".into(), 1)),
                session: Some(SessionProof { session: SessionId(7), secret: secret.clone(), opening: Some(Opening(7)) }),
                resume,
                feed: FeedMode::Full,
                unanswered: vec![RequestId(5), RequestId(300)],
                partial: None,
            }),
        ),
        ("SessionOpen", C::SessionOpen { secret }),
        ("SessionAttach", C::SessionAttach { nonce: *b"nonce-nonce-nonc", previous: Opening(7) }),
        ("SessionClose", C::SessionClose),
        (
            "Propose",
            C::Propose(vec![
                Proposal { id: RequestId(5), floor: RequestId(4), payload: Bytes::from_static(b"hi") },
                Proposal { id: RequestId(6), floor: RequestId(4), payload: Bytes::from_static(b"ho") },
            ]),
        ),
        ("ReadIndex", C::ReadIndex { id: 9 }),
        ("Fetch", C::Fetch { from: LogIndex(100), to: LogIndex(2000) }),
        ("Resume", C::Resume { resume, feed: FeedMode::Full, unanswered: vec![RequestId(5)], partial: None }),
        (
            "ResumePartial",
            C::Resume {
                resume: None,
                feed: FeedMode::Full,
                unanswered: vec![],
                partial: Some(PartialState { index: LogIndex(42), hash: [0xcd; 32], bytes: 65_536 }),
            },
        ),
        ("Ack", C::Ack { applied: LogIndex(42) }),
        ("Ping", C::Ping { nonce: 1 }),
    ];
    let server = [
        (
            "Admit",
            S::Admit(Admit {
                cluster: IDENTITY.cluster,
                epoch: IDENTITY.epoch,
                server: RaftId::new(Seat(1), 1),
                servers: vec![ServerEntry { id: RaftId::new(Seat(2), 1), endpoints: vec!["ws://b:7400".into()] }],
                leader: Some(RaftId::new(Seat(2), 1)),
                commit: LogIndex(42),
                state_machine: ("kv".into(), 1),
                start: Start::Tail(LogIndex(42)),
                session: SessionStatus::Attached(Opening(7)),
                limits: WireLimits {
                    message_bytes_max: 1 << 20,
                    payload_bytes_max: (1 << 20) - 1024,
                    window_max: 256,
                    ping_ms: 10_000,
                },
            }),
        ),
        ("Refuse", S::Refuse { code: Code::Behind, retry_after_ms: Some(100) }),
        ("SessionOpened", S::SessionOpened { session: SessionId(7), opening: Opening(7) }),
        ("Superseded", S::Superseded { current: Opening(90) }),
        ("Feed", S::Feed(block())),
        (
            "Replies",
            S::Replies(vec![
                reply(5, false, Outcome::Applied(Bytes::from_static(b"ok"))),
                reply(6, true, Outcome::Elided([0xab; 32])),
                reply(7, false, Outcome::Conflict),
                reply(8, false, Outcome::Superseded(Opening(90))),
            ]),
        ),
        (
            "Snapshot",
            S::Snapshot(SnapshotChunk {
                index: LogIndex(42),
                chain: Chain(0xdead_beef),
                offset: 0,
                total: 5,
                hash: [0xcd; 32],
                bytes: Bytes::from_static(b"state"),
            }),
        ),
        ("Start", S::Start(Start::Snapshot(LogIndex(42)))),
        ("Commit", S::Commit { index: LogIndex(42), chain: Chain(0xdead_beef) }),
        ("Read", S::Read { id: 9, index: LogIndex(42) }),
        ("ReadRefused", S::ReadRefused { id: 9, code: Code::Timeout }),
        ("ProposeRefused", S::ProposeRefused { ids: vec![RequestId(5)], code: Code::Overloaded, retry_after_ms: Some(100) }),
        ("Runs", S::Runs(Bytes::new())),
        ("Trimmed", S::Trimmed { first: LogIndex(1000) }),
        ("Pong", S::Pong { nonce: 1 }),
        ("Close", S::Close { code: Code::Closing, retry_after_ms: Some(250), endpoints: vec!["ws://b:7400".into()] }),
    ];
    let client = client.map(|(name, frame)| (name, Frame::Client(frame)));
    let server = server.map(|(name, frame)| (name, Frame::Server(frame)));
    client.into_iter().chain(server).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(40).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect()
}

#[test]
fn the_document_has_the_bytes_of_every_frame() {
    for (name, frame) in examples() {
        assert_eq!(hex(&frame.encode()), hex(&golden(name)), "{name}");
        assert_eq!(frame.decode_like(&golden(name)), Ok(frame), "{name}");
    }
    assert_eq!(DOCUMENT.matches("```golden ").count(), examples().len());
}

#[test]
fn the_document_names_every_code_with_its_number() {
    for code in (1..=15).map(self::code) {
        let row = format!("| {} | `{code:?}` |", code.number());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}

fn code(number: u8) -> Code {
    match ServerFrame::decode(&Bytes::from(vec![kind::REFUSE, 0x82, number, 0xf6])) {
        Ok(ServerFrame::Refuse { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// Prints the blocks for the document.
#[test]
#[ignore = "writes the examples for a new version of the document"]
fn print_examples() {
    for (name, frame) in examples() {
        println!("```golden {name}\n{}```", hex(&frame.encode()));
    }
}
