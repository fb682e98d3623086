//! Where the log ends, what that end is worth, and who may write.

use bytes::Bytes;
use thiserror::Error;

use super::{END_BYTES, Mark};
use crate::ids::{Identity, LogIndex, RaftId, RunIndex, Term, TimeMs};
use crate::mutant;
use crate::run::{Run, RunError, RunHeader, Tail, chain_zero};

/// The end of a log that nothing was ever in: a newcomer's, before its first snapshot.
#[must_use]
pub fn empty_tail(identity: &Identity) -> Tail {
    Tail { run: RunIndex::ZERO, term: Term(0), last: LogIndex::ZERO, chain: chain_zero(identity), time: TimeMs(0) }
}

/// What stands at the front of a segment's remaining bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next run, taken off.
    Run(Run),
    /// A run that continues the log, but the bytes end inside it. Read on; if there is nothing to read, the log ends here, torn.
    More,
    /// The log ends here.
    End {
        /// Something else than zeros stands here: the rest of a write that a crash cut off, or damage. [`judge`] knows which.
        torn: bool,
    },
}

/// Takes the run that continues `tail` off the front of `bytes`, if it stands there, after checking it whole.
#[must_use]
pub fn step(tail: &Tail, identity: &Identity, bytes: &mut Bytes) -> Step {
    let torn = Step::End { torn: bytes.iter().take(END_BYTES).any(|byte| *byte != 0) };
    match RunHeader::decode(bytes) {
        Ok(header) if tail.continues(&header) && header.epoch == identity.epoch && header.room == identity.room => {}
        Err(RunError::Truncated) if torn == (Step::End { torn: true }) => return Step::More,
        _ => return torn,
    }
    match Run::split_from(bytes) {
        Ok(run) => Step::Run(run),
        Err(RunError::Truncated) => Step::More,
        Err(_) => torn,
    }
}

/// What a log that was opened is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It ends exactly where its mark says.
    Clean,
    /// A write that nobody was told of was cut off; nothing that was acknowledged is missing.
    Torn,
    /// The last batch is incomplete, and whether it had been acknowledged cannot be known. With peers: as suspect. Alone: the end
    /// stands, and the owner is told.
    Doubtful,
    /// What was acknowledged is missing. The replica counts for nothing until its log reaches the mark again; alone it must not
    /// start.
    Suspect,
}

/// Whether a log that ends with `end` is at least as good as `goal` says, in raft's order: last term, then last run.
#[must_use]
pub fn reaches(end: &Tail, goal: &Tail) -> bool {
    (end.term, end.run) >= (goal.term, goal.run)
}

/// Judges a log that ends with `end` (`torn`: in the midst of a write) against its newest mark.
#[must_use]
pub fn judge(end: &Tail, torn: bool, mark: &Mark) -> Verdict {
    if mutant!("suspect_cut_as_torn") && !reaches(end, &mark.last) {
        Verdict::Torn
    } else if end.run < mark.synced_through || mark.must_reach.is_some_and(|goal| !reaches(end, &goal)) {
        Verdict::Suspect
    } else if !reaches(end, &mark.last) {
        Verdict::Doubtful
    } else if torn || *end != mark.last {
        Verdict::Torn
    } else {
        Verdict::Clean
    }
}

/// What someone wants to make durable, as far as fencing is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// The term that is to be durable.
    pub term: Term,
    /// The vote that is to be durable.
    pub vote: RaftId,
    /// The term of the leader that asks for an append, a cut or an install; `None` if there is none of these.
    pub writer: Option<Term>,
    /// Runs above this one are to go.
    pub cut_above: Option<RunIndex>,
    /// The log is to restart behind this run.
    pub restart_behind: Option<RunIndex>,
}

/// Why storage refuses. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Fenced {
    /// The term would fall.
    #[error("term {asked} is below the durable term {durable}")]
    TermFell {
        /// What is durable.
        durable: Term,
        /// What was asked for.
        asked: Term,
    },
    /// The vote of a term would change.
    #[error("the vote of term {term} went to {durable} and cannot go to {asked}")]
    VoteChanged {
        /// The term.
        term: Term,
        /// Who has the vote.
        durable: RaftId,
        /// Who was to get it.
        asked: RaftId,
    },
    /// A deposed leader wants to write.
    #[error("a leader of term {writer} may not write: the durable term is {durable}")]
    Deposed {
        /// What is durable.
        durable: Term,
        /// The term of the leader.
        writer: Term,
    },
    /// Committed runs would go.
    #[error("cannot drop the runs above {keep_through}: {commit} is committed")]
    Committed {
        /// The durable commit index, as far as the log reaches.
        commit: RunIndex,
        /// The last run that was to stay.
        keep_through: RunIndex,
    },
}

impl Mark {
    /// Whether storage whose mark this is may do what is intended. The *writer's* term counts, not the terms of the runs: a current
    /// leader may overwrite an uncommitted tail of a higher term.
    ///
    /// # Errors
    /// [`Fenced`].
    pub fn admit(&self, intent: &Intent) -> Result<(), Fenced> {
        if intent.term < self.term {
            return Err(Fenced::TermFell { durable: self.term, asked: intent.term });
        }
        if intent.term == self.term && self.vote != RaftId::NONE && intent.vote != self.vote {
            return Err(Fenced::VoteChanged { term: self.term, durable: self.vote, asked: intent.vote });
        }
        if let Some(writer) = intent.writer.filter(|writer| *writer < self.term) {
            return Err(Fenced::Deposed { durable: self.term, writer });
        }
        // What was committed and then lost is no reason to refuse a snapshot that holds some of it.
        let commit = self.commit.min(self.last.run);
        match intent.cut_above.into_iter().chain(intent.restart_behind).find(|kept| *kept < commit) {
            Some(keep_through) => Err(Fenced::Committed { commit, keep_through }),
            None => Ok(()),
        }
    }
}
