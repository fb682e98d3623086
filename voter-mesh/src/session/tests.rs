#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::entry::EntryKind;
use crate::replica::ReplicaLimits;
use crate::testing::{World, attach, end, internal, open, reborn};

fn applied(reply: &Reply) -> &[u8] {
    match &reply.outcome {
        Outcome::Applied(bytes) => bytes,
        other => panic!("not applied: {other:?}"),
    }
}

#[test]
fn a_thousand_opens_with_one_secret_are_one_session() {
    let mut world = World::new();
    let first = world.open(1);
    assert_eq!(first, (SessionId(1), Opening(1)), "the session is named by the entry that opened it");
    for _ in 0..1000 {
        assert_eq!(world.open(1), first);
    }
    assert_eq!(world.open(2).0, SessionId(1002));
    assert_eq!(world.replica.sessions().len(), 2);
    assert_eq!(world.replica.sessions().opened(&secret_hash(&[1; 32])), Some(first));
}

#[test]
fn a_session_is_proven_by_its_secret_alone() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let sessions = world.replica.sessions();
    assert_eq!(sessions.prove(session, &[1; 32]), SessionProofResult::Proven(opening));
    assert_eq!(sessions.prove(session, &[2; 32]), SessionProofResult::WrongSecret);
    assert_eq!(sessions.prove(session, &secret_hash(&[1; 32])), SessionProofResult::WrongSecret, "the log's hash proves nothing");
    assert_eq!(sessions.prove(SessionId(2), &[1; 32]), SessionProofResult::Unknown);
}

#[test]
fn a_retry_gets_the_first_outcome_with_the_first_place_also_after_a_snapshot_and_in_another_term() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let first = world.command(session, opening, 5, 0, b"a");
    assert_eq!((applied(&first), first.index, first.term, first.repeat), (&b"1"[..], LogIndex(2), Term(1), false));
    world.command(session, opening, 6, 5, b"b");
    world.leader.term = Term(9);
    let retry = world.command(session, opening, 5, 5, b"a");
    assert_eq!(retry, Reply { repeat: true, ..first.clone() });
    world.replica = reborn(&world.replica, ReplicaLimits::default());
    assert_eq!(world.command(session, opening, 5, 5, b"a"), retry);
    assert_eq!(world.replica.sessions().recorded(session, RequestId(5)), Some(retry));
    assert_eq!(world.effects(), [b"a", b"b"]);
}

#[test]
fn one_id_with_another_payload_is_a_conflict_and_the_first_outcome_stands() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let first = world.command(session, opening, 5, 0, b"a");
    let same_checksum = b"other\xb3w\x1c\xb1";
    assert_eq!(crc32c::crc32c(same_checksum), crc32c::crc32c(b"a"));
    for other in [&b"b"[..], b"aa", b"", same_checksum] {
        let conflict = world.command(session, opening, 5, 0, other);
        assert_eq!((conflict.outcome, conflict.repeat, conflict.index), (Outcome::Conflict, false, world.leader.tail.last));
    }
    assert_eq!(world.command(session, opening, 5, 0, b"a"), Reply { repeat: true, ..first });
    assert_eq!(world.effects(), [b"a"]);
}

#[test]
fn ids_below_the_floor_are_stale_whether_they_took_effect_or_not() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    world.command(session, opening, 5, 0, b"a");
    world.command(session, opening, 9, 6, b"b");
    assert_eq!(world.command(session, opening, 5, 0, b"a").outcome, Outcome::Stale, "an older floor on a retry does not lower it");
    assert_eq!(world.command(session, opening, 4, 0, b"new").outcome, Outcome::Stale);
    assert_eq!(world.replica.sessions().recorded(session, RequestId(5)).unwrap().outcome, Outcome::Stale);
    assert_eq!(world.command(session, opening, 20, 21, b"c").outcome, Outcome::Stale, "a floor above its own id");
    assert_eq!(world.command(session, opening, 9, 0, b"b").outcome, Outcome::Stale, "and that floor has moved");
    assert_eq!(world.effects(), [b"a", b"b"]);
}

#[test]
fn an_undecodable_command_is_recorded_without_effect() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let (effective, _) = world.one(crate::testing::command(session, opening, 5, 0, b"undecodable"));
    assert!(!effective);
    let retry = world.command(session, opening, 5, 0, b"undecodable");
    assert_eq!((retry.outcome, retry.repeat, retry.index), (Outcome::Undecodable, true, LogIndex(2)));
    assert_eq!(world.command(session, opening, 5, 0, b"better").outcome, Outcome::Conflict);
    assert!(world.effects().is_empty());
}

#[test]
fn a_large_reply_is_sent_whole_once_and_elided_for_retries() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    assert_eq!(applied(&world.command(session, opening, 1, 0, b"big4096")).len(), 4096);
    assert_eq!(applied(&world.command(session, opening, 1, 0, b"big4096")).len(), 4096, "exactly at the limit it is kept");
    let first = world.command(session, opening, 2, 0, b"big4097");
    let retry = world.command(session, opening, 2, 0, b"big4097");
    assert_eq!(retry, Reply { repeat: true, outcome: Outcome::Elided(Sha256::digest(applied(&first)).into()), ..first });
}

#[test]
fn a_reply_of_any_length_is_answered_again_as_it_was() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let lengths = [0, 1, SHORT_MAX - 1, SHORT_MAX, SHORT_MAX + 1, REPLY_BYTES_KEPT_MAX];
    for again in [false, true] {
        for (request, bytes) in (1..).zip(lengths) {
            let reply = world.command(session, opening, request, 0, format!("big{bytes}").as_bytes());
            assert_eq!((applied(&reply), reply.repeat), (&vec![0xBB; bytes][..], again));
        }
        world.replica = reborn(&world.replica, ReplicaLimits::default());
    }
}

#[test]
fn ids_may_have_gaps_repeat_out_of_order_and_a_reserved_one_may_come_last() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let reserved = 100; // the floor never passes it
    assert_eq!(applied(&world.command(session, opening, 7777, reserved, b"chosen")), b"1");
    assert_eq!(applied(&world.command(session, opening, 7778, reserved, b"automatic")), b"2");
    assert!(world.command(session, opening, 7777, reserved, b"chosen").repeat);
    assert_eq!(applied(&world.command(session, opening, 1 << 60, reserved, b"far")), b"3");
    assert_eq!(applied(&world.command(session, opening, reserved, reserved, b"reserved")), b"4");
    assert!(world.command(session, opening, reserved, reserved, b"reserved").repeat);
}

#[test]
fn the_window_counts_records_from_the_floor_and_breaking_it_ends_the_session() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    for request in 0..1000_u64 {
        let floor = request.saturating_sub(255);
        assert!(matches!(world.command(session, opening, request, floor, b"x").outcome, Outcome::Applied(_)), "{request}");
    }
    assert!(world.command(session, opening, 999, 744, b"x").repeat, "a full window still answers retries");
    assert_eq!(world.command(session, opening, 1000, 744, b"x").outcome, Outcome::WindowBroken);
    assert_eq!(
        world.command(session, opening, 1000, 1000, b"x").outcome,
        Outcome::WindowBroken,
        "not even when there is room again"
    );
    assert_eq!(world.command(session, opening, 1001, 0, b"x").outcome, Outcome::WindowBroken);
    assert_eq!(world.replica.sessions().recorded(session, RequestId(1001)).unwrap().outcome, Outcome::WindowBroken);
    assert_eq!(world.effects().len(), 1000);

    world.replica = reborn(&world.replica, ReplicaLimits::default());
    assert_eq!(world.replica.sessions().needs_end().collect::<Vec<_>>(), [session]);
    assert_eq!(world.one(end(session, EndReason::WindowBroken, 0)), (true, Some(SessionEvent::Ended { session })));
    assert_eq!(world.replica.sessions().needs_end().count(), 0);
    assert_eq!(world.command(session, opening, 1002, 0, b"x").outcome, Outcome::SessionExpired);
}

#[test]
fn a_copied_journal_is_superseded_and_leaves_no_trace() {
    let mut world = World::new();
    let (session, first) = world.open(1);
    world.command(session, first, 1, 0, b"a");

    let (_, event) = world.one(attach(session, 0xA, first));
    let second = Opening(3);
    let attached = Some(SessionEvent::Attached { session, nonce: [0xA; 16], opening: second });
    assert_eq!(event, attached);
    assert_eq!(world.one(attach(session, 0xA, first)).1, attached, "a retry of the same attach");
    let superseded = Some(SessionEvent::Superseded { session, nonce: [0xB; 16], current: second });
    assert_eq!(world.one(attach(session, 0xB, first)).1, superseded, "the copy");

    assert_eq!(world.command(session, first, 9, 9, b"b").outcome, Outcome::Superseded(second));
    assert_eq!(world.command(session, first, 1, 0, b"a").outcome, Outcome::Superseded(second));
    assert!(world.command(session, second, 1, 0, b"a").repeat, "its floor did not move");
    assert_eq!(
        applied(&world.command(session, second, 9, 1, b"b")),
        b"2",
        "it was not recorded, so the journal that holds may use it"
    );

    assert_eq!(world.one(attach(session, 0xC, second)).1.unwrap(), {
        let opening = Opening(world.leader.tail.last.0);
        SessionEvent::Attached { session, nonce: [0xC; 16], opening }
    });
    assert!(world.replica.sessions().attached(session, &[0xC; 16]).is_some());
    assert_eq!(world.replica.sessions().attached(session, &[0xA; 16]), None);
}

#[test]
fn expiry_is_void_where_activity_is_newer() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let seen = world.replica.sessions().last_activity(session).unwrap();
    world.command(session, opening, 1, 0, b"a");
    assert_eq!(world.one(end(session, EndReason::Expired, seen.0)), (false, None));
    let seen = world.replica.sessions().last_activity(session).unwrap();
    assert_eq!(seen, LogIndex(2), "the void end is no activity");
    assert_eq!(world.one(end(session, EndReason::Expired, seen.0)), (true, Some(SessionEvent::Ended { session })));
    assert_eq!(world.command(session, opening, 1, 0, b"a").outcome, Outcome::SessionExpired, "no retry finds it");
    assert_eq!(world.one(end(session, EndReason::Expired, 99)), (false, Some(SessionEvent::Ended { session })));
    assert_eq!(world.one(attach(session, 1, opening)), (false, Some(SessionEvent::Ended { session })));
    assert_eq!(world.effects(), [&b"a"[..], b"end 1"]);
    assert_ne!(world.open(1).0, session, "the secret may open again, as another session");
}

#[test]
fn any_entry_of_a_session_is_activity() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let entries =
        [open(1), attach(session, 1, opening), attach(session, 2, opening), crate::testing::command(session, opening, 1, 0, b"")];
    for entry in entries {
        world.one(entry);
        assert_eq!(world.replica.sessions().last_activity(session), Some(world.leader.tail.last));
    }
    assert_eq!(world.replica.sessions().activity().collect::<Vec<_>>(), [(session, LogIndex(5))]);
}

#[test]
fn a_close_is_never_void_for_activity_but_not_the_copys_to_give() {
    let mut world = World::new();
    let (session, first) = world.open(1);
    world.one(attach(session, 1, first));
    let close = EndPayload { why: EndReason::Closed, last_activity: LogIndex(0) }.encode();
    assert_eq!(world.one(internal(EntryKind::SessionEnd, session, first, &close)), (false, None));
    assert!(world.one(internal(EntryKind::SessionEnd, session, Opening(2), &close)).0);
    let (session, _) = world.open(1);
    assert!(world.one(internal(EntryKind::SessionEnd, session, Opening(0), &close)).0, "one that names no opening");
    assert!(world.replica.sessions().is_empty());
}

#[test]
fn at_capacity_opens_are_refused_and_live_sessions_stay() {
    let sessions = SessionLimits { sessions_max: 2, ..SessionLimits::default() };
    let mut world = World::with(ReplicaLimits { sessions, ..ReplicaLimits::default() });
    let (session, opening) = world.open(1);
    world.open(2);
    assert_eq!(world.one(open(3)).1, Some(SessionEvent::OpenRefused { hash: secret_hash(&[3; 32]) }));
    assert_eq!(world.open(1), (session, opening));
    world.one(end(session, EndReason::Closed, 0));
    world.open(3);
}

#[test]
fn malformed_internal_payloads_have_no_effect() {
    let mut world = World::new();
    let (session, opening) = world.open(1);
    let before = world.replica.sessions().last_activity(session);
    for kind in [EntryKind::SessionOpen, EntryKind::SessionAttach, EntryKind::SessionEnd, EntryKind::Config] {
        for payload in [&[][..], &[9; 9], &[1; 10], &[0; 23], &[0; 33]] {
            assert_eq!(world.one(internal(kind, session, opening, payload)), (false, None), "{kind:?}");
        }
    }
    assert_eq!(world.replica.sessions().last_activity(session), before);
    assert!(world.effects().is_empty());
}

#[test]
fn every_commit_order_of_up_to_five_requests_applies_each_once() {
    fn orders(ids: &mut Vec<u64>, at: usize, each: &mut dyn FnMut(&[u64])) {
        if at == ids.len() {
            each(ids);
        }
        for other in at..ids.len() {
            ids.swap(at, other);
            orders(ids, at + 1, each);
            ids.swap(at, other);
        }
    }
    for n in 1..=5 {
        orders(&mut (1..=n).collect(), 0, &mut |order| {
            let mut world = World::new();
            let (session, opening) = world.open(1);
            let first: Vec<Reply> = order.iter().map(|id| world.command(session, opening, *id, 1, &[*id as u8])).collect();
            assert_eq!(world.effects(), order.iter().map(|id| vec![*id as u8]).collect::<Vec<_>>());
            for (id, first) in order.iter().zip(first).rev() {
                assert!(matches!(first.outcome, Outcome::Applied(_)) && !first.repeat);
                assert_eq!(world.command(session, opening, *id, 1, &[*id as u8]), Reply { repeat: true, ..first });
            }
            assert_eq!(world.effects().len(), order.len());
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn up_to_256_requests_in_any_order_with_retries_apply_once_each(order in Just((0..256_u64).collect::<Vec<_>>()).prop_shuffle(), retries in proptest::collection::vec(0..256_usize, 0..100)) {
        let mut world = World::new();
        let (session, opening) = world.open(1);
        let mut seen: Vec<Reply> = Vec::new();
        for (step, id) in order.iter().enumerate() {
            seen.push(world.command(session, opening, *id, 0, &id.to_le_bytes()));
            if let Some(retry) = retries.get(step).filter(|retry| **retry < seen.len()) {
                let again = world.command(session, opening, order[*retry], 0, &order[*retry].to_le_bytes());
                prop_assert_eq!(again, Reply { repeat: true, ..seen[*retry].clone() });
            }
        }
        prop_assert_eq!(world.effects().len(), 256);
        prop_assert_eq!(world.command(session, opening, 256, 0, b"").outcome, Outcome::WindowBroken);
    }

    #[test]
    fn what_the_table_says_is_recorded_is_what_a_retry_is_answered(steps in proptest::collection::vec((0..12_u64, 0..8_u64, 0..3_u8), 1..40)) {
        let sessions = SessionLimits { window_max: 4, ..SessionLimits::default() };
        let mut world = World::with(ReplicaLimits { sessions, ..ReplicaLimits::default() });
        let (session, opening) = world.open(1);
        let mut payloads = std::collections::BTreeMap::new();
        for (id, floor, payload) in steps {
            let reply = world.command(session, opening, id, floor, &[payload]);
            if matches!(reply.outcome, Outcome::Applied(_)) && !reply.repeat {
                payloads.insert(id, payload);
            }
            for id in 0..12 {
                let Some(said) = world.replica.sessions().recorded(session, RequestId(id)) else { continue };
                let payload = [payloads.get(&id).copied().unwrap_or(0)];
                let answered = reborn_world(&world).command(session, opening, id, 0, &payload);
                prop_assert_eq!((said.outcome, said.repeat), (answered.outcome, answered.repeat));
            }
        }
    }
}

fn reborn_world(world: &World) -> World {
    let sessions = SessionLimits { window_max: 4, ..SessionLimits::default() };
    let replica = reborn(&world.replica, ReplicaLimits { sessions, ..ReplicaLimits::default() });
    World { leader: world.leader.clone(), replica }
}
