//! One key's history: what was called on it, when, and what was answered. Only data; each algorithm knows by itself what a key does: it
//! holds a value or none, and every value that it is given has a version above all that it had before.

use std::collections::BTreeSet;
use std::fmt;

use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::KvReply;

/// A value, by a number that no other value of the history has.
pub type ValueId = u32;

/// What a compare-and-set expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// No value.
    Absent,
    /// The value that this entry wrote.
    Version(LogIndex),
    /// This value.
    Value(ValueId),
}

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Set the key.
    Put(ValueId),
    /// Remove it.
    Delete,
    /// Set it if it is as expected.
    CompareAndSet(Expected, ValueId),
    /// Read it.
    Read,
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To a command.
    Reply(KvReply),
    /// To a read: the value and its version.
    Value(Option<(ValueId, LogIndex)>),
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was called.
    pub called: u64,
    /// When it returned, and with what. Without, it may take effect at any later time, or never.
    pub returned: Option<(u64, Answer)>,
    /// What it does.
    pub action: Action,
    /// The version that its value has where it is set, if anybody knows.
    pub version: Option<LogIndex>,
    /// Where the log has it. A search may take operations in this order; it believes nothing but that every answer is explained.
    pub place: Option<LogIndex>,
}

/// A history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyHistory {
    /// By their calls, ascending.
    pub operations: Vec<Operation>,
    /// Versions of which it is known which operation made them. A version that nobody else made may be that of any operation of which
    /// none is known.
    pub versions: BTreeSet<LogIndex>,
}

/// What a search finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    NotLinearizable,
    /// The search was given up.
    Undecided,
}

impl KeyHistory {
    /// A history of these operations, ascending by their calls. Versions are made known as far as the answers tell them.
    #[must_use]
    pub fn new(mut operations: Vec<Operation>) -> Self {
        let value = |action: &Action| match action {
            Action::Put(value) | Action::CompareAndSet(_, value) => Some(*value),
            Action::Delete | Action::Read => None,
        };
        let shown: Vec<(ValueId, LogIndex)> = operations
            .iter()
            .filter_map(|operation| match operation.returned?.1 {
                Answer::Value(shown) => shown,
                Answer::Reply(KvReply::Written { version }) => Some((value(&operation.action)?, version)),
                Answer::Reply(_) => None,
            })
            .collect();
        for (value_shown, version) in shown {
            let mut makers = operations.iter_mut().filter(|operation| value(&operation.action) == Some(value_shown));
            if let (Some(maker), None) = (makers.next(), makers.next()) {
                maker.version = Some(version);
            }
        }
        let versions = operations.iter().filter_map(|operation| operation.version).collect();
        Self { operations, versions }
    }
}

/// One line for each operation: when it was called and returned, what it did and what it was told.
impl fmt::Display for KeyHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Operation { called, returned, action, .. } in &self.operations {
            match returned {
                Some((returned, answer)) => write!(f, "\n  {called}..{returned} {action:?} -> {answer:?}")?,
                None => write!(f, "\n  {called}.. {action:?}")?,
            }
        }
        Ok(())
    }
}
