//! Linearizability once more, by another way: forward through time, with every state in which the key may be.
//!
//! Written from the definition. An operation takes effect at one moment between its call and its return. Walk through calls and returns in
//! their order and keep all worlds that are possible: what the key is, and which of the operations under way have had their moment. A
//! call adds an operation that has not. At a return, let any of those under way have theirs, in any order, and drop every world in which the
//! one that returns has not had it with the answer that it gives. The history is linearizable iff a world is left.
//!
//! It shares no code with the other search. It is slower where much is under way at once, and needs no luck in the order in which it tries.

use std::collections::BTreeSet;

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::KvReply;

use super::spec::{Action, Answer, Expected, Judgement, KeyHistory, Operation, ValueId};

/// What the key holds: nothing, or a value; with its version, if that is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Held {
    Absent,
    Versioned(ValueId, LogIndex),
    Unversioned(ValueId),
}

/// The key: what it holds, and the highest version that any value of it had. Versions only rise.
type State = (Held, LogIndex);

/// One possible world: the state, and those under way that have had their moment.
type World = (State, BTreeSet<usize>);

/// Walks through a history; gives up when more than so many worlds are possible.
#[must_use]
pub fn judge(history: &KeyHistory, worlds_max: usize) -> Judgement {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (at, operation) in history.operations.iter().enumerate() {
        moments.push((operation.called, false, at));
        moments.extend(operation.returned.map(|(returned, _)| (returned, true, at)));
    }
    moments.sort_unstable();
    let mut under_way = BTreeSet::new();
    let mut worlds: BTreeSet<World> = BTreeSet::from([((Held::Absent, LogIndex::ZERO), BTreeSet::new())]);
    for (_, returns, at) in moments {
        if !returns {
            under_way.insert(at);
            continue;
        }
        let Some(reached) = reach(history, &worlds, &under_way, at, worlds_max) else { return Judgement::Undecided };
        worlds = reached;
        under_way.remove(&at);
        if worlds.is_empty() {
            return Judgement::NotLinearizable;
        }
    }
    Judgement::Linearizable
}

/// All worlds in which `returning` has had its moment, it no longer named; none if there are too many on the way.
fn reach(
    history: &KeyHistory,
    worlds: &BTreeSet<World>,
    under_way: &BTreeSet<usize>,
    returning: usize,
    worlds_max: usize,
) -> Option<BTreeSet<World>> {
    let (mut seen, mut todo): (BTreeSet<World>, Vec<World>) = (worlds.clone(), worlds.iter().cloned().collect());
    let mut reached = BTreeSet::new();
    while let Some((state, done)) = todo.pop() {
        if done.contains(&returning) {
            let mut done = done;
            done.remove(&returning);
            reached.insert((state, done));
            continue;
        }
        for next in under_way.difference(&done) {
            for after in happen(state, &history.operations[*next], history) {
                let mut done = done.clone();
                done.insert(*next);
                if seen.insert((after, done.clone())) {
                    todo.push((after, done));
                }
            }
        }
        if seen.len() > worlds_max {
            return None;
        }
    }
    Some(reached)
}

/// What the key may be after the operation's moment, with the answer that it gave; nothing if it cannot have given it.
fn happen(state: State, operation: &Operation, history: &KeyHistory) -> Vec<State> {
    let answer = operation.returned.map(|(_, answer)| answer);
    match operation.action {
        Action::Read => match answer {
            // Nobody knows what it read, and nobody minds.
            None => vec![state],
            Some(Answer::Value(None)) if state.0 == Held::Absent => vec![state],
            Some(Answer::Value(Some((value, version)))) => {
                told(state, version, history).into_iter().filter(|(held, _)| *held == Held::Versioned(value, version)).collect()
            }
            Some(_) => Vec::new(),
        },
        Action::Put(value) => match answer {
            None | Some(Answer::Reply(KvReply::Written { .. })) => set(state, value, operation),
            Some(_) => Vec::new(),
        },
        Action::Delete => {
            let existed = state.0 != Held::Absent;
            let right = answer.is_none_or(|answer| answer == Answer::Reply(KvReply::Deleted { existed }));
            if right { vec![(Held::Absent, state.1)] } else { Vec::new() }
        }
        Action::CompareAndSet(expected, value) => {
            let mut after = Vec::new();
            let wrote = matches!(answer, None | Some(Answer::Reply(KvReply::Written { .. })));
            let equal = match (expected, state.0) {
                (Expected::Absent, held) => held == Held::Absent,
                (Expected::Value(value), Held::Versioned(held, _) | Held::Unversioned(held)) => value == held,
                (Expected::Version(version), _) => !told(state, version, history).is_empty(),
                (Expected::Value(_), Held::Absent) => false,
            };
            if wrote && equal {
                after.extend(set(state, value, operation));
            }
            // An unknown version can always be another one than the expected.
            let unequal = !equal || matches!((expected, state.0), (Expected::Version(_), Held::Unversioned(_)));
            if unequal {
                match answer {
                    None => after.push(state),
                    Some(Answer::Reply(KvReply::Mismatch { version: None })) if state.0 == Held::Absent => after.push(state),
                    Some(Answer::Reply(KvReply::Mismatch { version: Some(version) })) => {
                        after.extend(told(state, version, history))
                    }
                    Some(_) => {}
                }
            }
            after
        }
    }
}

/// The key after a write of this value, if versions still rise with it.
fn set((_, highest): State, value: ValueId, operation: &Operation) -> Vec<State> {
    match operation.version {
        None => vec![(Held::Unversioned(value), highest)],
        Some(version) if version > highest => vec![(Held::Versioned(value, version), version)],
        Some(_) => Vec::new(),
    }
}

/// The key, once somebody was told that its value has this version; nothing if it cannot have.
fn told((held, highest): State, version: LogIndex, history: &KeyHistory) -> Vec<State> {
    match held {
        Held::Versioned(_, known) if known == version => vec![(held, highest)],
        Held::Unversioned(value) if version > highest && !history.versions.contains(&version) => {
            vec![(Held::Versioned(value, version), version)]
        }
        _ => Vec::new(),
    }
}
