//! The mesh's messages as the crate's, and back, from what they mean. A run's bytes are an entry's data.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message as Theirs, MessageType as Type};
use voter_mesh::ids::{RaftId, RunIndex, Term};
use voter_mesh::mesh::message::{Message, RejectHint};
use voter_mesh::run::Run;

/// What the crate writes into a vote request that a leader asked for.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// `None`: not one of raft's own messages.
pub(super) fn to_theirs(from: RaftId, to: RaftId, message: Message) -> Option<Theirs> {
    let mut theirs = Theirs { from: from.0, to: to.0, ..Theirs::default() };
    match message {
        Message::Append { term, previous, previous_term, commit, runs } => {
            theirs.set_msg_type(Type::MsgAppend);
            (theirs.term, theirs.index, theirs.log_term, theirs.commit) = (term.0, previous.0, previous_term.0, commit.0);
            theirs.set_entries(runs.iter().map(entry).collect::<Vec<_>>().into());
        }
        Message::Commit { term, previous, previous_term, commit } => {
            theirs.set_msg_type(Type::MsgAppend);
            (theirs.term, theirs.index, theirs.log_term, theirs.commit) = (term.0, previous.0, previous_term.0, commit.0);
        }
        Message::AppendReply { term, run, reject, commit } => {
            theirs.set_msg_type(Type::MsgAppendResponse);
            (theirs.term, theirs.index, theirs.commit, theirs.reject) = (term.0, run.0, commit.0, reject.is_some());
            if let Some(RejectHint { run, term }) = reject {
                (theirs.reject_hint, theirs.log_term) = (run.0, term.0);
            }
        }
        Message::Heartbeat { term, commit, round } | Message::HeartbeatReply { term, commit, round } => {
            let beat = matches!(message, Message::Heartbeat { .. });
            theirs.set_msg_type(if beat { Type::MsgHeartbeat } else { Type::MsgHeartbeatResponse });
            (theirs.term, theirs.commit) = (term.0, commit.0);
            if round != 0 {
                theirs.context = Bytes::copy_from_slice(&round.to_le_bytes());
            }
        }
        Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer } => {
            theirs.set_msg_type(if pre { Type::MsgRequestPreVote } else { Type::MsgRequestVote });
            (theirs.term, theirs.index, theirs.log_term) = (term.0, last.0, last_term.0);
            (theirs.commit, theirs.commit_term, theirs.priority) = (commit.0, commit_term.0, i64::from(priority));
            if transfer {
                theirs.context = Bytes::from_static(TRANSFER);
            }
        }
        Message::VoteReply { term, pre, granted, commit, commit_term } => {
            theirs.set_msg_type(if pre { Type::MsgRequestPreVoteResponse } else { Type::MsgRequestVoteResponse });
            (theirs.term, theirs.reject, theirs.commit, theirs.commit_term) = (term.0, !granted, commit.0, commit_term.0);
        }
        Message::TimeoutNow { term } => {
            theirs.set_msg_type(Type::MsgTimeoutNow);
            theirs.term = term.0;
        }
        _ => return None,
    }
    Some(theirs)
}

fn entry(run: &Run) -> Entry {
    Entry { index: run.header().run.0, term: run.header().term.0, data: run.bytes().clone(), ..Entry::default() }
}

/// The run that an entry carries.
pub(super) fn run(entry: &Entry) -> Result<Run, String> {
    let run = Run::split_from(&mut entry.data.clone()).map_err(|error| format!("entry {}: {error}", entry.index))?;
    let header = run.header();
    let same = (header.run.0, header.term.0) == (entry.index, entry.term);
    if same { Ok(run) } else { Err(format!("{run:?} stands at {} in term {}", entry.index, entry.term)) }
}

/// A message that nobody here should say is an error.
pub(super) fn to_ours(theirs: &Theirs) -> Result<Message, String> {
    let (term, commit, commit_term) = (Term(theirs.term), RunIndex(theirs.commit), Term(theirs.commit_term));
    let (index, log_term) = (RunIndex(theirs.index), Term(theirs.log_term));
    let round = theirs.context.as_ref().try_into().map_or(0, u64::from_le_bytes);
    let kind = theirs.get_msg_type();
    Ok(match kind {
        Type::MsgAppend => {
            let runs = theirs.get_entries().iter().map(run).collect::<Result<_, _>>()?;
            Message::Append { term, previous: index, previous_term: log_term, commit, runs }
        }
        Type::MsgAppendResponse => {
            let hint = RejectHint { run: RunIndex(theirs.reject_hint), term: log_term };
            Message::AppendReply { term, run: index, reject: theirs.reject.then_some(hint), commit }
        }
        Type::MsgHeartbeat => Message::Heartbeat { term, commit, round },
        Type::MsgHeartbeatResponse => Message::HeartbeatReply { term, commit, round },
        Type::MsgRequestVote | Type::MsgRequestPreVote => Message::VoteRequest {
            term,
            pre: kind == Type::MsgRequestPreVote,
            last: index,
            last_term: log_term,
            commit,
            commit_term,
            priority: i32::try_from(theirs.priority).map_err(|error| error.to_string())?,
            transfer: theirs.context.as_ref() == TRANSFER,
        },
        Type::MsgRequestVoteResponse | Type::MsgRequestPreVoteResponse => {
            Message::VoteReply { term, pre: kind == Type::MsgRequestPreVoteResponse, granted: !theirs.reject, commit, commit_term }
        }
        Type::MsgTimeoutNow => Message::TimeoutNow { term },
        other => return Err(format!("the crate says {other:?}")),
    })
}
