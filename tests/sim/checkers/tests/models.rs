//! The models and the product's replica are two works after one design: random logs must come to the same in both.

use bytes::Bytes;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{LogIndex, Opening, RequestId, RoomId, SessionId};
use voter_mesh::machine::kv::{KvCommand, KvExpected};
use voter_mesh::machine::{from_cbor, to_cbor};
use voter_mesh::outcome::Outcome;
use voter_mesh::replica::SessionEvent;
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, SessionLimits, secret_hash};

use super::super::history::History;
use super::super::model::Fate;
use super::story::Story;
use crate::sim::random::Random;

fn spec(kind: EntryKind, session: u64, opening: u64, request: u64, floor: u64) -> EntrySpec {
    let (session, opening) = (SessionId(session), Opening(opening));
    EntrySpec { kind, room: RoomId(0), session, opening, request: RequestId(request), floor: RequestId(floor) }
}

/// Any entry at all, mostly one that means something.
fn any_entry(random: &mut Random) -> Bytes {
    let (session, opening) = (1 + random.below(8), 1 + random.below(12));
    let request = 1 + random.below(20);
    let (key, value) = (vec![random.below(3) as u8], vec![random.below(4) as u8]);
    let (spec, payload) = match random.below(20) {
        0..3 => (EntrySpec::internal(EntryKind::SessionOpen), secret_hash(&[random.below(4) as u8; 32]).to_vec()),
        3..5 => {
            let attach = AttachPayload { nonce: [random.below(4) as u8; 16], previous: Opening(opening) };
            (spec(EntryKind::SessionAttach, session, 0, 0, 0), attach.encode())
        }
        5 => {
            let why = [EndReason::Closed, EndReason::Expired, EndReason::WindowBroken][random.below(3) as usize];
            let end = EndPayload { why, last_activity: LogIndex(random.below(100)) };
            (spec(EntryKind::SessionEnd, session, random.below(12), 0, 0), end.encode())
        }
        6 => (spec(EntryKind::Command, session, opening, request, 0), vec![random.below(256) as u8]),
        kind => {
            let expected = match random.below(3) {
                0 => KvExpected::Absent,
                1 => KvExpected::Version(LogIndex(random.below(100))),
                _ => KvExpected::Value(value.clone()),
            };
            let command = match kind {
                7..10 => KvCommand::Delete { key },
                10..14 => KvCommand::CompareAndSet { key, expected, value },
                _ => KvCommand::Put { key, value },
            };
            let opening = if random.below(4) > 0 { session } else { opening };
            let floor = if random.below(8) == 0 { random.below(request + 1) } else { 0 };
            (spec(EntryKind::Command, session, opening, request, floor), to_cbor(&command).unwrap().to_vec())
        }
    };
    entry(&spec, &payload).unwrap()
}

#[test]
fn the_session_model_and_the_replica_judge_random_logs_alike() {
    let mut fates = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let (mut story, mut history) = (Story::empty(), History::new(SessionLimits::default()));
        for _ in 0..60 {
            let entries: Vec<Bytes> = (0..=random.below(4)).map(|_| any_entry(&mut random)).collect();
            let run = story.seal(2, &entries);
            let applied = story.replica.apply(&run).unwrap();
            assert_eq!(history.committed(&run).unwrap().len(), 1);
            for (offset, (index, entry)) in run.entries().enumerate() {
                let fate = history.entry(index).unwrap().fate;
                fates.insert(format!("{fate:?}").chars().take_while(char::is_ascii_alphabetic).collect::<String>());
                assert_eq!(applied.verdicts.get(offset), fate.verdict(), "seed {seed}: {index} {entry:?} {fate:?}");
            }
            let replies =
                applied.events.iter().filter_map(|event| if let SessionEvent::Replied(reply) = event { Some(reply) } else { None });
            let commands = run.entries().filter(|(_, entry)| entry.header.kind == EntryKind::Command);
            for (reply, (index, _)) in replies.zip(commands) {
                let same = match (history.entry(index).unwrap().fate, &reply.outcome) {
                    (Fate::Effective(expected), Outcome::Applied(bytes)) => from_cbor(bytes) == Ok(expected) && !reply.repeat,
                    (Fate::Repeat(of), _) => reply.repeat && reply.index == of,
                    (Fate::Superseded(expected), Outcome::Superseded(told)) => expected == *told,
                    (Fate::Undecodable, Outcome::Undecodable)
                    | (Fate::Conflict, Outcome::Conflict)
                    | (Fate::Stale, Outcome::Stale)
                    | (Fate::WindowBroken, Outcome::WindowBroken)
                    | (Fate::NoSession, Outcome::SessionExpired) => true,
                    _ => false,
                };
                assert!(same, "seed {seed}: {index} {reply:?} {:?}", history.entry(index));
            }
            assert_eq!(history.sessions_at(history.last()), story.replica.sessions().len());
        }
    }
    // All but a broken window, for which these logs are too short.
    assert_eq!(fates.len(), 10, "{fates:?}");
}
