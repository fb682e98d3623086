//! The client's half of the replica: follows the feed. It holds no session table; the servers' verdict bits say which entries took
//! effect, and exactly those are applied.
//!
//! Everything that a feed claims is checked against the chain, so a learner's history is the cluster's or ends in an error. It never
//! applies an entry twice and never skips one.

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::entry::EntryKind;
use crate::ids::{Chain, Identity, LogIndex, SessionId, Term, TimeMs};
use crate::machine::{Machine, Position, StateMachine, Undecodable, from_cbor};
use crate::mutant;
use crate::run::{Run, RunError, chain_zero, verdict_at};

#[cfg(test)]
mod tests;

/// What a learner feeds: [`TypedState`] of any [`StateMachine`], [`RawState`] of any [`Machine`], or the application's own.
pub trait LearnerState {
    /// An effective command.
    ///
    /// # Errors
    /// [`Undecodable`] for a command that the servers' machine could decode and this one cannot: the two are not the same machine.
    fn apply(&mut self, payload: &[u8], at: &Position) -> Result<(), Undecodable>;

    /// A session has ended.
    fn session_ended(&mut self, session: SessionId, at: &Position);
}

/// A typed state machine on a learner; replies are dropped unencoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct TypedState<M>(pub M);

impl<M: StateMachine> LearnerState for TypedState<M> {
    fn apply(&mut self, payload: &[u8], at: &Position) -> Result<(), Undecodable> {
        self.0.apply(from_cbor(payload)?, at);
        Ok(())
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        self.0.session_ended(session, at);
    }
}

/// A machine that takes bytes, on a learner; replies are dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawState<M>(pub M);

impl<M: Machine> LearnerState for RawState<M> {
    fn apply(&mut self, payload: &[u8], at: &Position) -> Result<(), Undecodable> {
        self.0.apply(payload, at).map(drop)
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        self.0.session_ended(session, at);
    }
}

/// No state: a learner that only hands on what is committed.
impl LearnerState for () {
    fn apply(&mut self, _payload: &[u8], _at: &Position) -> Result<(), Undecodable> {
        Ok(())
    }

    fn session_ended(&mut self, _session: SessionId, _at: &Position) {}
}

/// An effective command, as applications see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its index. Gaps between indices hold entries of other kinds and repeats; no effective command is missing.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The leader's time.
    pub time: TimeMs,
    /// Who proposed it.
    pub session: SessionId,
    /// The command, byte for byte. Shares the feed frame's buffer.
    pub payload: Bytes,
}

/// Why a feed cannot be followed. All but `Undecodable` leave learner and state at the end of the last good run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LearnerError {
    /// The bytes are not a run.
    #[error("bad run in the feed: {0}")]
    Run(#[from] RunError),
    /// The run's verdict bits are cut off.
    #[error("the verdicts of the run that ends at {last} are truncated")]
    Verdicts {
        /// The run's last entry.
        last: LogIndex,
    },
    /// The run was applied before.
    #[error("run {first}..={last} is already applied")]
    Old {
        /// Its first entry.
        first: LogIndex,
        /// Its last entry.
        last: LogIndex,
    },
    /// The run does not begin right behind what is applied.
    #[error("run begins at {found}, not at {expected}")]
    NotNext {
        /// Where the next run begins.
        expected: LogIndex,
        /// Where this one does.
        found: LogIndex,
    },
    /// The run begins in the right place and continues another history.
    #[error("the feed diverges from this learner's history at {index}")]
    Diverged {
        /// Its first entry.
        index: LogIndex,
    },
    /// The state machine cannot decode a command that the servers' could: it is not the same machine. The state has applied the run
    /// up to that entry, the learner stands at the end of the run before; drop both.
    #[error("the state machine cannot decode the effective command {index}")]
    Undecodable {
        /// The command.
        index: LogIndex,
    },
}

/// A learner's position. Its state is an argument of each call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Learner {
    applied: LogIndex,
    chain: Chain,
}

impl Learner {
    /// At the beginning of a history.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self::at(LogIndex::ZERO, chain_zero(identity))
    }

    /// Where a snapshot or an earlier life left off: at a run's end.
    #[must_use]
    pub const fn at(applied: LogIndex, chain: Chain) -> Self {
        Self { applied, chain }
    }

    /// The last entry that it has applied.
    #[must_use]
    pub const fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The chain after it.
    #[must_use]
    pub const fn chain(&self) -> Chain {
        self.chain
    }

    /// Applies a feed body: blocks of a run and its verdict bits, end to end. Each block is taken off `blocks` once it is applied;
    /// `each` sees every effective command, after the state has applied it. Stops at the first bad block.
    ///
    /// # Errors
    /// [`LearnerError`]; the blocks before the bad one are applied, `blocks` begins with the bad one.
    pub fn apply_blocks(
        &mut self,
        blocks: &mut Bytes,
        state: &mut dyn LearnerState,
        each: &mut dyn FnMut(Committed),
    ) -> Result<(), LearnerError> {
        while !blocks.is_empty() {
            self.apply_block(blocks, state, each)?;
        }
        Ok(())
    }

    /// Applies the first block of a feed body, and takes it off: for whoever wants to know where each run ends.
    ///
    /// # Errors
    /// [`LearnerError`]; `blocks` is unchanged.
    pub fn apply_block(
        &mut self,
        blocks: &mut Bytes,
        state: &mut dyn LearnerState,
        each: &mut dyn FnMut(Committed),
    ) -> Result<(), LearnerError> {
        let mut rest = blocks.clone();
        let run = Run::split_from(&mut rest)?;
        let last = run.header().last();
        let verdicts = rest.get(..run.header().verdict_bytes()).ok_or(LearnerError::Verdicts { last })?;
        self.apply_run(&run, verdicts, state, each)?;
        rest.advance(run.header().verdict_bytes());
        *blocks = rest;
        Ok(())
    }

    fn apply_run(
        &mut self,
        run: &Run,
        verdicts: &[u8],
        state: &mut dyn LearnerState,
        each: &mut dyn FnMut(Committed),
    ) -> Result<(), LearnerError> {
        let header = run.header();
        let (first, last) = (header.first, header.last());
        if last <= self.applied {
            return Err(LearnerError::Old { first, last });
        }
        if first != self.applied.next() {
            return Err(LearnerError::NotNext { expected: self.applied.next(), found: first });
        }
        if header.chain_before != self.chain {
            return Err(LearnerError::Diverged { index: first });
        }
        for (offset, (index, entry)) in run.entries().enumerate() {
            if !verdict_at(verdicts, offset) && !mutant!("verdicts_ignored") {
                continue;
            }
            let session = entry.header.session;
            let at = Position { index, term: header.term, time: header.time, session };
            match entry.header.kind {
                EntryKind::Command => {
                    state.apply(entry.payload, &at).map_err(|Undecodable| LearnerError::Undecodable { index })?;
                    each(Committed { index, term: at.term, time: at.time, session, payload: run.payload(&entry) });
                }
                EntryKind::SessionEnd => state.session_ended(session, &at),
                // No server sets the verdict of any other kind; there is nothing that it could mean.
                _ => {}
            }
        }
        (self.applied, self.chain) = (last, header.chain_after);
        Ok(())
    }
}
