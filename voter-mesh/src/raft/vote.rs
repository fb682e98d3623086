//! A vote that may be forgotten: the mark that would have held it cannot be read.
//!
//! To vote a second time in that term could elect two leaders. Whoever got the vote knows its own term, and that is at least the
//! term of the vote; so once every other voter was heard, no term above all of theirs can hold it. Until then this replica follows
//! and acknowledges as ever, but elects nobody; it counts as one of the failures that the cluster tolerates. (A mere quorum is not
//! enough among five: the one that holds the vote may be outside of it.)

use std::collections::BTreeMap;

use crate::ids::{RaftId, RunIndex, Term};
use crate::mesh::message::Message;

/// What is known of the terms in which the vote may lie.
pub(super) struct LostVote {
    own: Term,
    heard: BTreeMap<RaftId, Term>,
}

impl LostVote {
    /// `own`: the term that is left on the disk.
    pub(super) const fn new(own: Term) -> Self {
        Self { own, heard: BTreeMap::new() }
    }

    /// The first thing that a peer says tells which term it is in: no lower one, and that is enough.
    pub(super) fn hear(&mut self, from: RaftId, message: &Message) {
        let term = match message {
            Message::Append { term, .. }
            | Message::Commit { term, .. }
            | Message::AppendReply { term, .. }
            | Message::Heartbeat { term, .. }
            | Message::HeartbeatReply { term, .. }
            | Message::VoteRequest { term, .. }
            | Message::VoteReply { term, .. }
            | Message::TimeoutNow { term } => *term,
            _ => return,
        };
        self.heard.entry(from).or_insert(term);
    }

    pub(super) fn has_heard(&self, peer: RaftId) -> bool {
        self.heard.contains_key(&peer)
    }

    /// The highest term in which the vote may lie; `None` while some of the others have not been heard.
    pub(super) fn ceiling(&self, others: &[RaftId]) -> Option<Term> {
        others.iter().try_fold(self.own, |highest, id| Some(highest.max(*self.heard.get(id)?)))
    }

    /// A pre-vote request that nobody grants: its answer tells the other's term, and changes nothing there.
    pub(super) const fn question() -> Message {
        Message::VoteRequest {
            term: Term(1),
            pre: true,
            last: RunIndex::ZERO,
            last_term: Term::ZERO,
            commit: RunIndex::ZERO,
            commit_term: Term::ZERO,
            priority: 0,
            transfer: false,
        }
    }
}
