//! Linearizability by Wing and Gong's search, with Lowe's memory: take, in every order that real time allows, one operation after the
//! other that explains its answer; never go on twice from the same set of operations taken and the same state.
//!
//! An operation that never returned stands for one that may return at the very end: taken last it disturbs nobody, which is the same as
//! never. So all that is left when every answer is explained may stay. Such operations are tried after those that returned, because mostly
//! they are not needed.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher};

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::KvReply;

use super::spec::{Action, Answer, Expected, Judgement, KeyHistory, Operation, ValueId};

/// A key: its value and the value's version, unknown where nobody was told.
type Key = Option<(ValueId, Option<LogIndex>)>;

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
        let mut points = vec![Point { key: None, candidates, next: 0, by: None }];
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
            let Some(key) = self.take(point.key, &self.history.operations[candidate]) else { continue };
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
                None => open.push(at),
            }
        }
        returning.first()?;
        returning.append(&mut open);
        returning.retain(|at| self.history.operations[*at].called < first_return);
        Some(returning)
    }

    /// The key once this operation has taken effect; none if that does not explain its answer.
    fn take(&self, key: Key, operation: &Operation) -> Option<Key> {
        let answer = operation.returned.map(|(_, answer)| answer);
        let is_version = |known: Option<LogIndex>, version: LogIndex| match known {
            Some(known) => known == version,
            None => !self.history.versions.contains(&version),
        };
        let (after, right) = match operation.action {
            Action::Read => {
                let right = match (answer?, key) {
                    (Answer::Value(None), None) => true,
                    (Answer::Value(Some((value, version))), Some((present, known))) => {
                        value == present && is_version(known, version)
                    }
                    _ => false,
                };
                (key, right)
            }
            Action::Put(value) => {
                (Some((value, operation.version)), matches!(answer, None | Some(Answer::Reply(KvReply::Written { .. }))))
            }
            Action::Delete => {
                (None, answer.is_none_or(|answer| answer == Answer::Reply(KvReply::Deleted { existed: key.is_some() })))
            }
            Action::CompareAndSet(expected, value) => {
                let matches = match (expected, key) {
                    (Expected::Absent, None) => true,
                    (Expected::Version(version), Some((_, known))) => is_version(known, version),
                    (Expected::Value(value), Some((present, _))) => value == present,
                    _ => false,
                };
                let right = match (answer, key) {
                    (None, _) => true,
                    (Some(Answer::Reply(KvReply::Written { .. })), _) => matches,
                    (Some(Answer::Reply(KvReply::Mismatch { version: None })), None) => !matches,
                    (Some(Answer::Reply(KvReply::Mismatch { version: Some(version) })), Some((_, known))) => {
                        // Where nobody knows the version, it need not be the expected one.
                        (!matches || known.is_none()) && is_version(known, version)
                    }
                    _ => false,
                };
                let set = answer.map_or(matches, |answer| matches!(answer, Answer::Reply(KvReply::Written { .. })));
                (if set { Some((value, operation.version)) } else { key }, right)
            }
        };
        right.then_some(after)
    }
}
