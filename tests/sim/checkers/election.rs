//! Election safety: at most one leader in a term, and at most one vote of a voter in a term (Raft §5.2, §5.4.1).
//!
//! From what servers put on the mesh: whoever sends an append, a commit, a heartbeat, a `TimeoutNow` or an answer to a read claims to lead
//! its term; whoever grants a vote has given it. And from what servers say of themselves. A life of a seat is a voter of its own, so a
//! wiped server that comes back as its old life is seen as soon as it votes twice.
//!
//! It cannot see a leader that says nothing, nor a vote that a candidate gives itself.

use std::collections::BTreeMap;

use cluster_server::Phase;
use voter_mesh::ids::{RaftId, Term};
use voter_mesh::mesh::message::Message;

use super::{Checker, History, Wrong};
use crate::sim::record::{Event, What};

#[derive(Debug, Default)]
pub(super) struct Election {
    leaders: BTreeMap<Term, RaftId>,
    votes: BTreeMap<(RaftId, Term), RaftId>,
}

/// The term that whoever sends this claims to lead.
pub(super) const fn claim(message: &Message) -> Option<Term> {
    match message {
        Message::Append { term, .. }
        | Message::Commit { term, .. }
        | Message::Heartbeat { term, .. }
        | Message::TimeoutNow { term } => Some(*term),
        _ => None,
    }
}

impl Election {
    fn leads(&mut self, leader: RaftId, term: Term, wrong: &mut Wrong<'_>) {
        let known = *self.leaders.entry(term).or_insert(leader);
        if known != leader {
            wrong.say(|| format!("{known} and {leader} both lead term {term}"));
        }
    }
}

impl Checker for Election {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn observe(&mut self, event: &Event, _history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Mesh { from, to, message } => {
                if let Some(term) = claim(message) {
                    self.leads(*from, term, wrong);
                }
                if let Message::VoteReply { term, pre: false, granted: true, .. } = message {
                    let known = *self.votes.entry((*from, *term)).or_insert(*to);
                    if known != *to {
                        wrong.say(|| format!("{from} votes for {known} and for {to} in term {term}"));
                    }
                }
            }
            What::Status { status, .. } => {
                if let (Phase::Leading, Some(id)) = (status.phase, status.id) {
                    self.leads(id, status.term, wrong);
                }
            }
            _ => {}
        }
    }
}
