//! The learner with its state and the recent commands that streams read. Owned by the driver; the state is shared with readers, who
//! hold its lock only while their closure runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use voter_mesh::ids::{Chain, LogIndex, SessionId};
use voter_mesh::learner::{Learner, LearnerError, LearnerState};
use voter_mesh::machine::{Position, StateMachine, Undecodable, from_cbor};

use crate::core::{ApplyFailed, LinkId, Snapshot};
use crate::history::History;

/// A lock whose holder panicked is still the lock: what it guards is checked by other means.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of a learner, behind its lock.
pub(crate) trait Holder: Send {
    /// Calls `apply` with the state.
    fn with(&self, apply: &mut dyn FnMut(&mut dyn LearnerState));
    /// Replaces the state by a snapshot's.
    fn restore(&self, state: &[u8]) -> Result<(), String>;
    /// Goes back to the state that the client was made with.
    fn reset(&self) -> Result<(), String>;
}

/// No state.
pub(crate) struct Stateless;

impl Holder for Stateless {
    fn with(&self, apply: &mut dyn FnMut(&mut dyn LearnerState)) {
        apply(&mut ());
    }

    fn restore(&self, _state: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn reset(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A typed state machine.
pub(crate) struct Stateful<M> {
    state: Arc<Mutex<M>>,
    /// The state that it was made with, written out.
    initial: Vec<u8>,
}

impl<M: StateMachine> Stateful<M> {
    /// # Errors
    /// The machine cannot write or read its own initial state.
    pub(crate) fn new(state: Arc<Mutex<M>>) -> Result<Self, String> {
        let mut initial = Vec::new();
        M::write(lock(&state).image(), &mut initial).map_err(|error| error.to_string())?;
        M::restore(&mut &initial[..]).map_err(|error| error.to_string())?;
        Ok(Self { state, initial })
    }
}

struct Applying<'a, M>(&'a mut M);

impl<M: StateMachine> LearnerState for Applying<'_, M> {
    fn apply(&mut self, payload: &[u8], at: &Position) -> Result<(), Undecodable> {
        self.0.apply(from_cbor(payload)?, at);
        Ok(())
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        self.0.session_ended(session, at);
    }
}

impl<M: StateMachine> Holder for Stateful<M> {
    fn with(&self, apply: &mut dyn FnMut(&mut dyn LearnerState)) {
        apply(&mut Applying(&mut *lock(&self.state)));
    }

    fn restore(&self, mut state: &[u8]) -> Result<(), String> {
        // Restored beside the old one, so that readers wait only for the exchange.
        let restored = M::restore(&mut state).map_err(|error| error.to_string())?;
        *lock(&self.state) = restored;
        Ok(())
    }

    fn reset(&self) -> Result<(), String> {
        self.restore(&self.initial)
    }
}

pub(crate) struct Follower {
    learner: Option<Learner>,
    holder: Box<dyn Holder>,
    history: Arc<History>,
}

impl Follower {
    pub(crate) fn new(holder: Box<dyn Holder>, history: Arc<History>) -> Self {
        Self { learner: None, holder, history }
    }

    pub(crate) fn begin(&mut self, index: LogIndex, chain: Chain) {
        self.learner = Some(Learner::at(index, chain));
        self.history.begin((index, chain));
    }

    /// Applies blocks of the feed. Where the learner stands afterwards, and what stopped it, if something did.
    pub(crate) fn feed(&mut self, link: LinkId, mut blocks: Bytes) -> (Option<(LogIndex, Chain)>, Result<(), ApplyFailed>) {
        let Some(learner) = &mut self.learner else { return (None, Err(ApplyFailed::Malformed { link })) };
        let (mut committed, mut ends, mut result) = (Vec::new(), Vec::new(), Ok(()));
        self.holder.with(&mut |state| {
            while result.is_ok() && !blocks.is_empty() {
                result = learner.apply_block(&mut blocks, state, &mut |entry| committed.push(entry));
                if result.is_ok() {
                    ends.push((learner.applied(), learner.chain()));
                }
            }
        });
        self.history.push(committed, ends);
        let result = result.map_err(|error| match error {
            LearnerError::Diverged { .. } => ApplyFailed::Diverged,
            LearnerError::Undecodable { .. } => ApplyFailed::Machine(error.to_string()),
            _ => ApplyFailed::Malformed { link },
        });
        (Some((learner.applied(), learner.chain())), result)
    }

    pub(crate) fn install(&mut self, snapshot: &Snapshot) -> Result<(), ApplyFailed> {
        self.holder.restore(&snapshot.state).map_err(ApplyFailed::Machine)?;
        self.begin(snapshot.index, snapshot.chain);
        Ok(())
    }

    pub(crate) fn reset(&mut self) -> Result<(), ApplyFailed> {
        self.learner = None;
        self.history.reset();
        self.holder.reset().map_err(ApplyFailed::Machine)
    }
}
