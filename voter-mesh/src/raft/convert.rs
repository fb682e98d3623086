//! The crate's messages as ours. The other direction is built field by field where each kind is checked.

use bytes::Bytes;
use raft::eraftpb::{Message as RaftMessage, MessageType};

use super::storage::Store;
use crate::ids::{RunIndex, Term};
use crate::mesh::message::{Message, RejectHint};
use crate::run::Run;

/// The crate's mark of a campaign that a leader asked for.
const TRANSFER: &[u8] = b"CampaignTransfer";

pub(super) fn transfer_context() -> Bytes {
    Bytes::from_static(TRANSFER)
}

/// A read round as the crate carries it; 0 for none.
pub(super) fn context(round: u64) -> Bytes {
    if round == 0 { Bytes::new() } else { Bytes::copy_from_slice(&round.to_le_bytes()) }
}

fn round(context: &[u8]) -> u64 {
    context.try_into().map_or(0, u64::from_le_bytes)
}

/// One of the crate's messages in our words; `None` for kinds that never leave a server.
pub(super) fn to_ours(message: RaftMessage, store: &Store) -> Option<Message> {
    let (term, commit) = (Term(message.term), RunIndex(message.commit));
    let kind = message.get_msg_type();
    Some(match kind {
        MessageType::MsgAppend => {
            let runs = message.get_entries().iter().map(|entry| {
                let cached = store.run(entry.index).filter(|run| run.header().term.0 == entry.term).cloned();
                // Old runs come from the owner's disk, where they were checked when they were read.
                cached.or_else(|| Run::split_from(&mut entry.data.clone()).ok())
            });
            Message::Append {
                term,
                previous: RunIndex(message.index),
                previous_term: Term(message.log_term),
                commit,
                runs: runs.collect::<Option<Vec<Run>>>()?,
            }
        }
        MessageType::MsgAppendResponse => {
            let hint = RejectHint { run: RunIndex(message.reject_hint), term: Term(message.log_term) };
            Message::AppendReply { term, run: RunIndex(message.index), reject: message.reject.then_some(hint), commit }
        }
        MessageType::MsgHeartbeat => Message::Heartbeat { term, commit, round: round(&message.context) },
        MessageType::MsgHeartbeatResponse => Message::HeartbeatReply { term, commit, round: round(&message.context) },
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => Message::VoteRequest {
            term,
            pre: kind == MessageType::MsgRequestPreVote,
            last: RunIndex(message.index),
            last_term: Term(message.log_term),
            commit,
            commit_term: Term(message.commit_term),
            priority: i32::try_from(message.priority).unwrap_or(0),
            transfer: message.context.as_ref() == TRANSFER,
        },
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => Message::VoteReply {
            term,
            pre: kind == MessageType::MsgRequestPreVoteResponse,
            granted: !message.reject,
            commit,
            commit_term: Term(message.commit_term),
        },
        MessageType::MsgTimeoutNow => Message::TimeoutNow { term },
        _ => return None,
    })
}
