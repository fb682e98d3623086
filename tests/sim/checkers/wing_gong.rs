//! Linearizability by Wing and Gong's search, with Lowe's memory: take, in every order that real time allows, one operation after the
//! other that explains its answer; never go on twice from the same set of operations taken and the same state.
//!
//! An operation that never returned stands for one that may return at the very end: taken last it disturbs nobody, which is the same as
//! never. So all that is left when every answer is explained may stay. Such operations are tried after those that returned, because mostly
//! they are not needed; of several that do the same only the first, and none where it would change nothing.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher};

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::KvReply;

use super::spec::{Action, Answer, Expected, Judgement, KeyHistory, Operation, ValueId};

/// A key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// Its value and the value's version, unknown where nobody was told.
    present: Option<(ValueId, Option<LogIndex>)>,
    /// The highest version so far: versions rise from write to write, also where the value is gone.
    highest: LogIndex,
}

/// Searches for a linearization, in at most so many steps.
#[must_use]
pub fn judge(history: &KeyHistory, steps_max: u64) -> Judgement {
    Search { history, taken: vec![0; history.operations.len().div_ceil(64)], seen: HashSet::default(), steps: 0, steps_max }.run()
}

struct Search<'a> {
    history: &'a KeyHistory,
    /// One bit per operation.
    taken: Vec<u64>,
    seen: HashSet<(Vec<u64>, Key), BuildHasherDefault<DefaultHasher>>,
    steps: u64,
    steps_max: u64,
}

/// A point of the search: what can be taken next, and what was.
struct Point {
    key: Key,
    candidates: Vec<usize>,
    next: usize,
    /// The operation that led here.
    by: Option<usize>,
}

impl Search<'_> {
    fn run(mut self) -> Judgement {
        let Some(candidates) = self.candidates() else { return Judgement::Linearizable };
        let mut points = vec![Point { key: Key { present: None, highest: LogIndex::ZERO }, candidates, next: 0, by: None }];
        while let Some(point) = points.last_mut() {
            let Some(&candidate) = point.candidates.get(point.next) else {
                if let Some(by) = point.by {
                    self.taken[by / 64] &= !(1 << (by % 64));
                }
                points.pop();
                continue;
            };
            point.next += 1;
            self.steps += 1;
            if self.steps > self.steps_max {
                return Judgement::Undecided;
            }
            let operation = &self.history.operations[candidate];
            let Some(key) = self.take(point.key, operation) else { continue };
            if operation.returned.is_none() && operation.place.is_none() && key == point.key {
                continue;
            }
            self.taken[candidate / 64] |= 1 << (candidate % 64);
            if !self.seen.insert((self.taken.clone(), key)) {
                self.taken[candidate / 64] &= !(1 << (candidate % 64));
                continue;
            }
            let Some(candidates) = self.candidates() else { return Judgement::Linearizable };
            points.push(Point { key, candidates, next: 0, by: Some(candidate) });
        }
        Judgement::NotLinearizable
    }

    /// What may be next: whatever was called before the first return of all that is left. None if all that returned is taken.
    fn candidates(&self) -> Option<Vec<usize>> {
        let (mut first_return, mut returning, mut open) = (u64::MAX, Vec::new(), Vec::new());
        for (at, operation) in self.history.operations.iter().enumerate() {
            if operation.called > first_return {
                break;
            }
            if self.taken[at / 64] >> (at % 64) & 1 == 1 {
                continue;
            }
            match operation.returned {
                Some((returned, _)) => {
                    first_return = first_return.min(returned);
                    returning.push(at);
                }
                None => {
                    let same = |other: &usize| self.history.operations[*other].action == operation.action;
                    if !open.iter().any(same) {
                        open.push(at);
                    }
                }
            }
        }
        returning.first()?;
        returning.append(&mut open);
        // Of the writes whose versions are known, or of all whose places are, the lowest must be next.
        let turn = |operation: &Operation| operation.place.or(operation.version);
        let left = self.history.operations.iter().enumerate().filter(|(at, _)| self.taken[at / 64] >> (at % 64) & 1 == 0);
        let lowest = left.filter_map(|(_, operation)| turn(operation)).min();
        returning.retain(|at| {
            let operation = &self.history.operations[*at];
            operation.called < first_return && turn(operation).is_none_or(|turn| Some(turn) == lowest)
        });
        Some(returning)
    }

    /// The key once this operation has taken effect; none if that does not explain its answer.
    fn take(&self, key: Key, operation: &Operation) -> Option<Key> {
        let answer = operation.returned.map(|(_, answer)| answer);
        let Key { present, highest } = key;
        let written = |value| {
            let rises = operation.version.is_none_or(|version| version > highest);
            rises.then(|| Key { present: Some((value, operation.version)), highest: operation.version.unwrap_or(highest) })
        };
        match (operation.action, answer) {
            (Action::Read, Some(Answer::Value(None))) => present.is_none().then_some(key),
            (Action::Read, Some(Answer::Value(Some((value, version))))) => {
                self.shown(key, version).filter(|_| present.is_some_and(|(present, _)| present == value))
            }
            (Action::Put(value), None | Some(Answer::Reply(KvReply::Written { .. }))) => written(value),
            (Action::Delete, None) => Some(Key { present: None, highest }),
            (Action::Delete, Some(Answer::Reply(KvReply::Deleted { existed }))) => {
                (existed == present.is_some()).then_some(Key { present: None, highest })
            }
            (Action::CompareAndSet(expected, value), answer) => {
                let (may_match, may_differ) = match (expected, present) {
                    (Expected::Absent, _) => (present.is_none(), present.is_some()),
                    (_, None) => (false, true),
                    (Expected::Value(value), Some((present, _))) => (value == present, value != present),
                    (Expected::Version(version), Some((_, Some(known)))) => (version == known, version != known),
                    // Where nobody knows the version, it may be this one if nobody else's is.
                    (Expected::Version(version), Some((_, None))) => (self.shown(key, version).is_some(), true),
                };
                match answer {
                    None if may_match => written(value),
                    None => Some(key),
                    Some(Answer::Reply(KvReply::Written { .. })) if may_match => written(value),
                    Some(Answer::Reply(KvReply::Mismatch { version: None })) => (may_differ && present.is_none()).then_some(key),
                    Some(Answer::Reply(KvReply::Mismatch { version: Some(version) })) if may_differ => self.shown(key, version),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The key, now that its value is known to have this version; none if it cannot have.
    fn shown(&self, key: Key, version: LogIndex) -> Option<Key> {
        match key.present? {
            (_, Some(known)) => (known == version).then_some(key),
            (value, None) => {
                let free = version > key.highest && !self.history.versions.contains(&version);
                free.then_some(Key { present: Some((value, Some(version))), highest: version })
            }
        }
    }
}
