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

/// The key: absent, or a value; by whom it was set, if that one's version is not known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum State {
    Absent,
    Versioned(ValueId, LogIndex),
    Unversioned(ValueId),
}

/// One possible world: the state, and those under way that have had their moment.
type World = (State, BTreeSet<usize>);

/// What an operation may do: the key after it, and which answers go with that.
type Branch<'a> = (State, Box<dyn Fn(Answer) -> bool + 'a>);

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
    let mut worlds: BTreeSet<World> = BTreeSet::from([(State::Absent, BTreeSet::new())]);
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
    // Which versions the key may have now.
    let may_be = |version: LogIndex| match state {
        State::Absent => false,
        State::Versioned(_, known) => known == version,
        State::Unversioned(_) => !history.versions.contains(&version),
    };
    let holds = |value: ValueId| matches!(state, State::Versioned(present, _) | State::Unversioned(present) if present == value);
    let set = |value| operation.version.map_or(State::Unversioned(value), |version| State::Versioned(value, version));
    let branches: Vec<Branch<'_>> = match operation.action {
        Action::Read => {
            let shows = move |answer| match answer {
                Answer::Value(None) => state == State::Absent,
                Answer::Value(Some((value, version))) => holds(value) && may_be(version),
                Answer::Reply(_) => false,
            };
            vec![(state, Box::new(shows))]
        }
        Action::Put(value) => vec![(set(value), Box::new(|answer| matches!(answer, Answer::Reply(KvReply::Written { .. }))))],
        Action::Delete => {
            let existed = state != State::Absent;
            vec![(State::Absent, Box::new(move |answer| answer == Answer::Reply(KvReply::Deleted { existed })))]
        }
        Action::CompareAndSet(expected, value) => {
            let (may_match, may_differ) = match expected {
                Expected::Absent => (state == State::Absent, state != State::Absent),
                Expected::Value(value) => (holds(value), !holds(value)),
                Expected::Version(version) => (may_be(version), !may_be(version) || matches!(state, State::Unversioned(_))),
            };
            let mut branches: Vec<Branch<'_>> = Vec::new();
            if may_match {
                branches.push((set(value), Box::new(|answer| matches!(answer, Answer::Reply(KvReply::Written { .. })))));
            }
            if may_differ {
                let differs = move |answer| match answer {
                    Answer::Reply(KvReply::Mismatch { version: None }) => state == State::Absent,
                    Answer::Reply(KvReply::Mismatch { version: Some(version) }) => may_be(version),
                    _ => false,
                };
                branches.push((state, Box::new(differs)));
            }
            branches
        }
    };
    let answer = operation.returned.map(|(_, answer)| answer);
    branches.into_iter().filter(|(_, right)| answer.is_none_or(right)).map(|(after, _)| after).collect()
}
