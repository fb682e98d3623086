//! What lies inside of others: payloads of internal entries, states, tables, records.

use cluster_client::journal::record::{JournalState, Record, SessionRecord};
use sha2::{Digest, Sha256};
use voter_mesh::configuration::{ConfigPayload, Configuration, Member, Role, SeatRecord};
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, DirectoryId, Epoch, LogIndex, Opening, RaftId, RequestId, RoomId, RunIndex, Seat, SessionId, Term, TimeMs,
};
use voter_mesh::machine::kv::{self, Kv, KvCommand, KvExpected};
use voter_mesh::machine::{StateMachine, from_cbor, log, to_cbor};
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::Run;
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, secret_hash};
use voter_mesh::snapshot::SnapshotMeta;

use super::Target;
use super::frames::IDENTITY;
use crate::fuzz::kind;

pub(super) const JOURNAL_RECORD: Target =
    Target { name: "journal-record", run: journal_record, repair: None, golden: journal_record_golden };
pub(super) const SESSIONS: Target = Target { name: "session-table", run: sessions, repair: None, golden: sessions_golden };
pub(super) const KV: Target = Target { name: "kv-state", run: kv_state, repair: None, golden: kv_state_golden };
pub(super) const KV_COMMAND: Target = Target { name: "kv-command", run: kv_command, repair: None, golden: kv_command_golden };
pub(super) const CONFIGURATION: Target =
    Target { name: "configuration", run: configuration, repair: None, golden: configuration_golden };
pub(super) const SESSION_PAYLOADS: Target =
    Target { name: "session-payload", run: session_payload, repair: None, golden: session_payload_golden };

fn journal_record(input: &[u8]) -> String {
    let decoded = Record::decode(input);
    if let Some(record) = &decoded {
        assert_eq!(record.encode(), input, "a record has one encoding");
        let mut state = JournalState::default();
        state.fold(record);
        let mut again = JournalState::default();
        state.records().iter().for_each(|record| again.fold(record));
        assert_eq!(again, state);
    }
    kind(&decoded)
}

fn journal_record_golden() -> Vec<(String, Vec<u8>)> {
    let session = SessionRecord { cluster: ClusterId([7; 16]), epoch: Epoch(1), session: SessionId(3), opening: Opening(4) };
    let all = [
        Record::Secret([1; 32]),
        Record::Session(session),
        Record::Nonce([2; 16]),
        Record::IdEnd(RequestId(1024)),
        Record::Request(RequestId(1), b"command".to_vec().into()),
        Record::Answered(RequestId(1)),
        Record::Reserved(RequestId(2)),
        Record::Ended,
    ];
    all.iter().enumerate().map(|(number, record)| (format!("{number}"), record.encode().to_vec())).collect()
}

/// A replica's parts as they are written.
fn written(replica: &Replica) -> (SnapshotMeta, Vec<u8>, Vec<u8>) {
    let (mut state, mut sessions) = (Vec::new(), Vec::new());
    let meta = replica.image().write(&mut state, &mut sessions).unwrap();
    (meta, state, sessions)
}

fn empty() -> Replica {
    Replica::form(IDENTITY, Configuration::default(), &log::factory(), ReplicaLimits::default())
}

fn sessions(input: &[u8]) -> String {
    let (meta, state, _) = written(&empty());
    let restore = |sessions: &[u8]| {
        let meta = SnapshotMeta { sessions_hash: Sha256::digest(sessions).into(), ..meta.clone() };
        Replica::restore(&meta, &mut &state[..], &mut &*sessions, &log::factory(), ReplicaLimits::default())
    };
    let table = restore(input);
    if let Ok(replica) = &table {
        let (_, _, first) = written(replica);
        assert_eq!(written(&restore(&first).unwrap()).2, first);
        for (session, _) in replica.sessions().activity() {
            let _ = (replica.sessions().recorded(session, RequestId(1)), replica.sessions().prove(session, &[0; 32]));
        }
    }
    table.map_or_else(|error| kind(&error), |replica| format!("{} sessions", replica.sessions().len().min(3)))
}

fn sessions_golden() -> Vec<(String, Vec<u8>)> {
    let none = written(&empty()).2;
    let mut replica = empty();
    let spec = |request: u64| EntrySpec {
        kind: EntryKind::Command,
        room: RoomId(0),
        session: SessionId(1),
        opening: Opening(1),
        request: RequestId(request),
        floor: RequestId(1),
    };
    let attach = AttachPayload { nonce: [9; 16], previous: Opening(2) }.encode();
    let entries = [
        entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&[1; 32])).unwrap(),
        entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&[2; 32])).unwrap(),
        entry(&spec(1), b"a").unwrap(),
        entry(&spec(3), b"b").unwrap(),
        entry(&EntrySpec { session: SessionId(2), ..EntrySpec::internal(EntryKind::SessionAttach) }, &attach).unwrap(),
    ];
    let parts: Vec<&[u8]> = entries.iter().map(AsRef::as_ref).collect();
    let run = Run::seal(replica.tail(), Term(1), TimeMs(0), Epoch(1), RoomId(0), &parts).unwrap();
    replica.apply(&run).unwrap();
    vec![("none".into(), none), ("two".into(), written(&replica).2)]
}

fn kv_state(mut input: &[u8]) -> String {
    let restored = Kv::restore(&mut input);
    if let Ok(state) = &restored {
        let write = |state: &Kv| {
            let mut bytes = Vec::new();
            Kv::write(state.image(), &mut bytes).unwrap();
            bytes
        };
        let first = write(state);
        assert_eq!(write(&Kv::restore(&mut &first[..]).unwrap()), first);
    }
    restored.map_or_else(|error| kind(&error), |state| format!("{} keys", state.len().min(3)))
}

fn kv_commands() -> Vec<KvCommand> {
    let (key, value) = (b"key".to_vec(), b"value".to_vec());
    vec![
        KvCommand::Put { key: key.clone(), value: value.clone() },
        KvCommand::Delete { key: key.clone() },
        KvCommand::CompareAndSet { key: key.clone(), expected: KvExpected::Absent, value: value.clone() },
        KvCommand::CompareAndSet { key, expected: KvExpected::Value(value), value: Vec::new() },
    ]
}

fn kv_state_golden() -> Vec<(String, Vec<u8>)> {
    let mut replica = Replica::form(IDENTITY, Configuration::default(), &kv::factory(), ReplicaLimits::default());
    let none = written(&replica).1;
    let spec = |request: u64| EntrySpec {
        kind: EntryKind::Command,
        room: RoomId(0),
        session: SessionId(1),
        opening: Opening(1),
        request: RequestId(request),
        floor: RequestId(1),
    };
    let put = |key: &[u8]| to_cbor(&KvCommand::Put { key: key.to_vec(), value: b"v".to_vec() }).unwrap();
    let entries = [
        entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&[1; 32])).unwrap(),
        entry(&spec(1), &put(b"a")).unwrap(),
        entry(&spec(2), &put(b"bb")).unwrap(),
    ];
    let parts: Vec<&[u8]> = entries.iter().map(AsRef::as_ref).collect();
    let run = Run::seal(replica.tail(), Term(1), TimeMs(0), Epoch(1), RoomId(0), &parts).unwrap();
    replica.apply(&run).unwrap();
    vec![("none".into(), none), ("two".into(), written(&replica).1)]
}

fn kv_command(input: &[u8]) -> String {
    let decoded = from_cbor::<KvCommand>(input);
    if let Ok(command) = &decoded {
        assert_eq!(from_cbor::<KvCommand>(&to_cbor(command).unwrap()).as_ref(), Ok(command));
    }
    kind(&decoded)
}

fn kv_command_golden() -> Vec<(String, Vec<u8>)> {
    let all = kv_commands();
    all.iter().enumerate().map(|(number, command)| (format!("{number}"), to_cbor(command).unwrap().to_vec())).collect()
}

fn configuration(input: &[u8]) -> String {
    let decoded = ConfigPayload::decode(input);
    if let Ok(payload) = &decoded {
        assert_eq!(ConfigPayload::decode(&payload.encode()).as_ref(), Ok(payload));
        let _ = (payload.configuration.voters(), payload.configuration.standbys());
    }
    match decoded {
        Ok(ConfigPayload { configuration, .. }) => format!("{} {}", configuration.seats.len().min(3), configuration.is_joint()),
        Err(error) => kind(&error),
    }
}

fn configuration_golden() -> Vec<(String, Vec<u8>)> {
    let record = |seat: u16, role| SeatRecord {
        address: format!("10.0.0.{seat}:7501"),
        priority: -1,
        failure_domain: "rack".into(),
        highest_life: 2,
        member: Some(Member { id: RaftId::new(Seat(seat), 2), directory: DirectoryId([seat as u8; 16]), role }),
        incoming: None,
    };
    let seats = (1..=3).map(|seat| (Seat(seat), record(seat, if seat == 3 { Role::Standby } else { Role::Voter }))).collect();
    let joint = Configuration { seats, outgoing: vec![RaftId::new(Seat(1), 2)], retired: [(Seat(4), 7)].into_iter().collect() };
    let all = [("empty", Configuration::default()), ("joint", joint)];
    all.map(|(name, configuration)| (name.to_owned(), ConfigPayload { base: RunIndex(1), configuration }.encode())).to_vec()
}

/// The first byte says which.
fn session_payload(input: &[u8]) -> String {
    match input.split_first() {
        None => "nothing".into(),
        Some((which, bytes)) if which.is_multiple_of(2) => {
            let decoded = AttachPayload::decode(bytes);
            decoded.iter().for_each(|payload| assert_eq!(payload.encode(), bytes));
            format!("attach {}", decoded.is_ok())
        }
        Some((_, bytes)) => {
            let decoded = EndPayload::decode(bytes);
            decoded.iter().for_each(|payload| assert_eq!(&payload.encode()[..], bytes));
            kind(&decoded)
        }
    }
}

fn session_payload_golden() -> Vec<(String, Vec<u8>)> {
    let attach = AttachPayload { nonce: [3; 16], previous: Opening(5) }.encode();
    let end = |why| EndPayload { why, last_activity: LogIndex(9) }.encode();
    vec![
        ("attach".into(), [&[0][..], &attach].concat()),
        ("closed".into(), [&[1][..], &end(EndReason::Closed)[..]].concat()),
        ("expired".into(), [&[1][..], &end(EndReason::Expired)[..]].concat()),
        ("broken".into(), [&[1][..], &end(EndReason::WindowBroken)[..]].concat()),
    ]
}
