//! The two searches for a linearization agree on random small histories, half of them broken on purpose; and on what is good by the way
//! it was made.

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::KvReply;

use super::super::spec::{Action, Answer, Expected, Judgement, KeyHistory, Operation};
use super::super::{state_sets, wing_gong};
use crate::sim::random::Random;

/// A history that some key had: operations of a few clients, each with its moment between its call and its return.
fn true_history(random: &mut Random) -> Vec<Operation> {
    let count = 3 + random.below(10);
    let mut moments: Vec<(u64, u64, u64)> = (0..count)
        .map(|at| {
            let moment = (at + 1) * 1_000;
            (moment, moment - 1 - random.below(4_000).min(moment - 1), moment + 1 + random.below(4_000))
        })
        .collect();
    // No two things happen at once.
    let mut times: Vec<u64> = moments.iter().flat_map(|(moment, called, returned)| [*moment, *called, *returned]).collect();
    times.sort_unstable();
    times.dedup();
    if times.len() < moments.len() * 3 {
        return true_history(random);
    }
    moments.sort_unstable();
    let (mut key, mut operations): (Option<(u32, LogIndex)>, Vec<Operation>) = (None, Vec::new());
    for (at, (_, called, returned)) in moments.into_iter().enumerate() {
        let (value, version) = (at as u32, LogIndex(at as u64 + 1));
        let action = match random.below(8) {
            0..3 => Action::Read,
            3 => Action::Delete,
            4 => Action::CompareAndSet(Expected::Absent, value),
            5 => Action::CompareAndSet(key.map_or(Expected::Absent, |(_, version)| Expected::Version(version)), value),
            6 => Action::CompareAndSet(Expected::Value(random.below(count) as u32), value),
            _ => Action::Put(value),
        };
        let matches = match action {
            Action::CompareAndSet(Expected::Absent, _) => key.is_none(),
            Action::CompareAndSet(Expected::Version(expected), _) => key.is_some_and(|(_, version)| version == expected),
            Action::CompareAndSet(Expected::Value(expected), _) => key.is_some_and(|(value, _)| value == expected),
            _ => true,
        };
        let answer = match action {
            Action::Read => Answer::Value(key),
            Action::Delete => Answer::Reply(KvReply::Deleted { existed: key.is_some() }),
            _ if matches => Answer::Reply(KvReply::Written { version }),
            _ => Answer::Reply(KvReply::Mismatch { version: key.map(|(_, version)| version) }),
        };
        // Some never return; of those some never happen.
        let (lost, happens) = (random.below(8) == 0, random.below(2) == 0);
        if !lost || happens {
            key = match action {
                Action::Delete => None,
                Action::Put(_) | Action::CompareAndSet(..) if matches => Some((value, version)),
                _ => key,
            };
        }
        operations.push(Operation { called, returned: (!lost).then_some((returned, answer)), action, version: None, place: None });
    }
    operations.sort_by_key(|operation| operation.called);
    operations
}

/// Changes one answer, or when it was given.
fn spoil(operations: &mut [Operation], random: &mut Random) {
    let count = operations.len() as u64;
    let other = LogIndex(1 + random.below(count));
    let operation = &mut operations[random.below(count) as usize];
    let Some((returned, answer)) = &mut operation.returned else { return };
    *answer = match (*answer, random.below(3)) {
        (_, 0) => {
            *returned = operation.called + 1;
            return;
        }
        (Answer::Value(_), 1) => Answer::Value(None),
        (Answer::Value(_), _) => Answer::Value(Some((other.0 as u32 - 1, other))),
        (Answer::Reply(KvReply::Deleted { existed }), _) => Answer::Reply(KvReply::Deleted { existed: !existed }),
        (Answer::Reply(KvReply::Written { .. }), 1) => Answer::Reply(KvReply::Mismatch { version: None }),
        (Answer::Reply(_), 1) => Answer::Reply(KvReply::Mismatch { version: Some(other) }),
        (Answer::Reply(reply), _) => Answer::Reply(reply),
    };
}

#[test]
fn both_searches_agree_on_random_histories_half_of_them_broken() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..6_000 {
        let mut random = Random::new(seed);
        let mut operations = true_history(&mut random);
        let spoilt = seed % 2 == 1;
        if spoilt {
            spoil(&mut operations, &mut random);
        }
        let history = KeyHistory::new(operations);
        let first = wing_gong::judge(&history, 1_000_000);
        let second = state_sets::judge(&history, 1_000_000);
        assert_eq!(first, second, "seed {seed}: {history:#?}");
        if !spoilt {
            assert_eq!(first, Judgement::Linearizable, "seed {seed}: {history:#?}");
        }
        match first {
            Judgement::Linearizable => good += 1,
            Judgement::NotLinearizable => bad += 1,
            Judgement::Undecided => panic!("seed {seed}: undecided"),
        }
    }
    assert!(good > 3_000 && bad > 600, "{good} good, {bad} bad");
}

#[test]
fn a_search_that_is_given_up_says_so() {
    let history = KeyHistory::new(true_history(&mut Random::new(1)));
    assert_eq!(wing_gong::judge(&history, 1), Judgement::Undecided);
    assert_eq!(state_sets::judge(&history, 0), Judgement::Undecided);
}
