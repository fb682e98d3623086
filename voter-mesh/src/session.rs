//! Exactly once: which requests of which session took effect, and what was answered (design §6).
//!
//! It never reads a clock (expiry is a log entry) and never looks into a command (only at its length and checksum). Every decision
//! depends on the log alone, so every server that applies the same log decides the same.
//!
//! The table is a persistent map of shared sessions: an image is a count, and only the sessions touched while an image is alive
//! are copied. A session keeps its records in one small deque, sorted by request id: requests mostly commit in order, so judging
//! one is a look at the deque's end and makes no allocation.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::entry::EntryHeader;
use crate::ids::{LogIndex, Opening, RequestId, SessionId, Term};
use crate::machine::{Position, Undecodable};
use crate::mutant;
use crate::outcome::{Outcome, Reply};

pub mod liveness;
mod payload;
mod store;
#[cfg(test)]
mod tests;

pub use payload::{AttachPayload, EndPayload, EndReason, MalformedPayload};

/// Records that a session may hold at or above its floor. A server must remember all of them, for every session.
pub const WINDOW_MAX: usize = 256;

/// Bytes of a reply that are kept for retries. Of a larger one only the SHA-256 is kept: a retry gets [`Outcome::Elided`].
pub const REPLY_BYTES_KEPT_MAX: usize = 4 << 10;

/// Sessions that may be open at once. At capacity opens are refused; a live session is never evicted.
pub const SESSIONS_MAX: usize = 1_000_000;

/// Limits of the session table. They decide outcomes, so they must be equal on all servers of a cluster, for all its life; others
/// than the defaults are for tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// Default [`WINDOW_MAX`].
    pub window_max: usize,
    /// Default [`REPLY_BYTES_KEPT_MAX`]; never more.
    pub reply_bytes_kept_max: usize,
    /// Default [`SESSIONS_MAX`].
    pub sessions_max: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { window_max: WINDOW_MAX, reply_bytes_kept_max: REPLY_BYTES_KEPT_MAX, sessions_max: SESSIONS_MAX }
    }
}

/// What the log knows of a session's secret.
#[must_use]
pub fn secret_hash(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// What applying an entry means for those who wait for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// A command was judged.
    Replied(Reply),
    /// A session is open for the secret with this hash; it may have been before.
    Opened {
        /// SHA-256 of the secret.
        hash: [u8; 32],
        /// The session.
        session: SessionId,
        /// Its current opening.
        opening: Opening,
    },
    /// No session was opened: there are too many.
    OpenRefused {
        /// SHA-256 of the secret.
        hash: [u8; 32],
    },
    /// The attach with this nonce holds; it may have before.
    Attached {
        /// The session.
        session: SessionId,
        /// The attach's nonce.
        nonce: [u8; 16],
        /// The current opening.
        opening: Opening,
    },
    /// The attach with this nonce came from a journal that another one has overtaken.
    Superseded {
        /// The session.
        session: SessionId,
        /// The attach's nonce.
        nonce: [u8; 16],
        /// The opening that holds.
        current: Opening,
    },
    /// The session does not exist (any more).
    Ended {
        /// Which.
        session: SessionId,
    },
}

/// Whether a secret opens a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionProofResult {
    /// It does; this is the session's current opening.
    Proven(Opening),
    /// The session exists and has another secret.
    WrongSecret,
    /// No such session at the point to which this table is applied: it has ended or, where its id lies ahead of that point, is yet
    /// to open.
    Unknown,
}

/// As much as fits where [`Kept::Elided`] has its hash.
const SHORT_MAX: usize = 31;

/// What is remembered of a command that was recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Kept {
    /// A reply that needs no memory of its own; behind its end zeros.
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX],
    },
    /// A longer one.
    Reply(Bytes),
    Elided([u8; 32]),
    Undecodable,
}

impl Kept {
    /// A reply that is kept whole.
    fn whole(reply: &Bytes) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match bytes.get_mut(..reply.len()) {
            Some(front) => {
                front.copy_from_slice(reply);
                Self::Short { len: reply.len() as u8, bytes }
            }
            None => Self::Reply(reply.clone()),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Record {
    request: RequestId,
    index: LogIndex,
    term: Term,
    payload_bytes: u32,
    payload_crc: u32,
    kept: Kept,
}

impl Record {
    fn outcome(&self) -> Outcome {
        match &self.kept {
            Kept::Short { len, bytes } => Outcome::Applied(Bytes::copy_from_slice(&bytes[..usize::from(*len)])),
            Kept::Reply(reply) => Outcome::Applied(reply.clone()),
            Kept::Elided(hash) => Outcome::Elided(*hash),
            Kept::Undecodable => Outcome::Undecodable,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    secret_hash: [u8; 32],
    opening: Opening,
    /// The nonce of the attach that made the current opening; none while that is the session's own open.
    nonce: Option<[u8; 16]>,
    floor: RequestId,
    last_activity: LogIndex,
    broken: bool,
    /// Ascending by request id, none below the floor.
    records: VecDeque<Record>,
}

impl Session {
    /// Where the record of `request` is, or would be.
    fn find(&self, request: RequestId) -> Result<usize, usize> {
        match self.records.back() {
            Some(last) if last.request >= request => self.records.binary_search_by_key(&request, |record| record.request),
            _ => Err(self.records.len()),
        }
    }

    fn raise_floor(&mut self, floor: RequestId) {
        self.floor = self.floor.max(floor);
        while self.records.front().is_some_and(|record| record.request < self.floor) {
            self.records.pop_front();
        }
        // A session that once filled its window does not hold that memory for the rest of its life.
        if self.records.capacity() > 32 && self.records.len() * 8 < self.records.capacity() {
            self.records.shrink_to(16.max(self.records.len() * 2));
        }
    }
}

/// The table of all open sessions. A clone is a consistent image and costs three counts.
#[derive(Clone, Debug)]
pub struct Sessions {
    limits: SessionLimits,
    sessions: OrdMap<SessionId, Arc<Session>>,
    by_hash: OrdMap<[u8; 32], SessionId>,
    broken: OrdSet<SessionId>,
}

impl Sessions {
    pub(crate) fn new(mut limits: SessionLimits) -> Self {
        // The stored form holds no larger reply.
        limits.reply_bytes_kept_max = limits.reply_bytes_kept_max.min(REPLY_BYTES_KEPT_MAX);
        Self { limits, sessions: OrdMap::new(), by_hash: OrdMap::new(), broken: OrdSet::new() }
    }

    /// How many sessions are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The session's current opening; `None` if it is unknown or has ended.
    #[must_use]
    pub fn opening(&self, session: SessionId) -> Option<Opening> {
        Some(self.sessions.get(&session)?.opening)
    }

    /// Checks a session's secret, in constant time.
    #[must_use]
    pub fn prove(&self, session: SessionId, secret: &[u8; 32]) -> SessionProofResult {
        match self.sessions.get(&session) {
            None => SessionProofResult::Unknown,
            Some(known) if bool::from(secret_hash(secret).ct_eq(&known.secret_hash)) => SessionProofResult::Proven(known.opening),
            Some(_) => SessionProofResult::WrongSecret,
        }
    }

    /// The session that was opened for the secret with this hash, and its current opening: what a repeated open would be told.
    #[must_use]
    pub fn opened(&self, hash: &[u8; 32]) -> Option<(SessionId, Opening)> {
        let session = *self.by_hash.get(hash)?;
        Some((session, self.opening(session)?))
    }

    /// The current opening, if the attach with this nonce made it: what a repeated attach would be told.
    #[must_use]
    pub fn attached(&self, session: SessionId, nonce: &[u8; 16]) -> Option<Opening> {
        let known = self.sessions.get(&session)?;
        (known.nonce.as_ref() == Some(nonce)).then_some(known.opening)
    }

    /// What a retry of this request under the current opening would be answered, where that is certain without the retry: its
    /// record, `Stale` below the floor, `WindowBroken` in a session that broke it. An answer that no entry stands behind has index
    /// and term 0. `None`: unknown session, or a request that was not judged yet.
    #[must_use]
    pub fn recorded(&self, session: SessionId, request: RequestId) -> Option<Reply> {
        let known = self.sessions.get(&session)?;
        let unjudged = |outcome| (LogIndex::ZERO, Term(0), 0, false, outcome);
        let (index, term, payload_crc, repeat, outcome) = if request < known.floor {
            unjudged(Outcome::Stale)
        } else if let Some(record) = known.find(request).ok().and_then(|at| known.records.get(at)) {
            (record.index, record.term, record.payload_crc, true, record.outcome())
        } else if known.broken {
            unjudged(Outcome::WindowBroken)
        } else {
            return None;
        };
        Some(Reply { session, opening: known.opening, request, index, term, payload_crc, repeat, outcome })
    }

    /// Sessions that broke their window and are still to be ended, ascending.
    pub fn needs_end(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.broken.iter().copied()
    }

    /// The index of the session's last entry: what an [`EndPayload`] must name to end it for being idle.
    #[must_use]
    pub fn last_activity(&self, session: SessionId) -> Option<LogIndex> {
        Some(self.sessions.get(&session)?.last_activity)
    }

    /// Every open session with its last activity, ascending by session.
    pub fn activity(&self) -> impl Iterator<Item = (SessionId, LogIndex)> + '_ {
        self.sessions.iter().map(|(session, known)| (*session, known.last_activity))
    }

    /// Applies a `SessionOpen`. Idempotent by the secret's hash; a malformed one has no effect.
    pub(crate) fn open(&mut self, payload: &[u8], at: &Position) -> Option<SessionEvent> {
        let hash: [u8; 32] = payload.try_into().ok()?;
        if let Some(session) = self.by_hash.get(&hash).copied() {
            let known = Arc::make_mut(self.sessions.get_mut(&session)?);
            known.last_activity = at.index;
            return Some(SessionEvent::Opened { hash, session, opening: known.opening });
        }
        if mutant!("evict_live_sessions")
            && self.sessions.len() >= self.limits.sessions_max
            && let Some((oldest, _)) = self.activity().min_by_key(|(_, activity)| *activity)
        {
            self.sessions.remove(&oldest);
        }
        if self.sessions.len() >= self.limits.sessions_max {
            return Some(SessionEvent::OpenRefused { hash });
        }
        let (session, opening) = (SessionId(at.index.0), Opening(at.index.0));
        self.by_hash.insert(hash, session);
        self.sessions.insert(
            session,
            Arc::new(Session {
                secret_hash: hash,
                opening,
                nonce: None,
                floor: RequestId(0),
                last_activity: at.index,
                broken: false,
                records: VecDeque::new(),
            }),
        );
        Some(SessionEvent::Opened { hash, session, opening })
    }

    /// Applies a `SessionAttach`: a new opening iff the journal that sends it held the current one; a retry of the attach that made
    /// the current opening finds it again.
    pub(crate) fn attach(&mut self, session: SessionId, payload: &[u8], at: &Position) -> Option<SessionEvent> {
        let AttachPayload { nonce, previous } = AttachPayload::decode(payload).ok()?;
        let Some(known) = self.sessions.get_mut(&session).map(Arc::make_mut) else { return Some(SessionEvent::Ended { session }) };
        known.last_activity = at.index;
        if known.nonce != Some(nonce) {
            if previous != known.opening && !mutant!("attach_unchecked") {
                return Some(SessionEvent::Superseded { session, nonce, current: known.opening });
            }
            (known.nonce, known.opening) = (Some(nonce), Opening(at.index.0));
        }
        Some(SessionEvent::Attached { session, nonce, opening: known.opening })
    }

    /// Applies a `SessionEnd`; the flag says whether the session existed until now. An `Expired` end is void where activity is
    /// newer; a `Closed` end that names an opening is void where another one holds: a copied journal does not close its successor.
    pub(crate) fn end(&mut self, header: &EntryHeader, payload: &[u8]) -> (bool, Option<SessionEvent>) {
        let Ok(EndPayload { why, last_activity }) = EndPayload::decode(payload) else { return (false, None) };
        let session = header.session;
        let ended = Some(SessionEvent::Ended { session });
        let Some(known) = self.sessions.get(&session) else { return (false, ended) };
        let void = match why {
            EndReason::Closed => header.opening != Opening(0) && header.opening != known.opening,
            EndReason::Expired => known.last_activity > last_activity,
            EndReason::WindowBroken => false,
        };
        if void {
            return (false, None);
        }
        self.by_hash.remove(&known.secret_hash);
        self.sessions.remove(&session);
        self.broken.remove(&session);
        (true, ended)
    }

    /// Judges a command and, if it is to take effect, calls `effect` and records what came of it, in one step: a crash between the
    /// two cannot exist. The flag says whether `effect` was called and decoded the command.
    pub(crate) fn command(
        &mut self,
        header: &EntryHeader,
        at: &Position,
        effect: impl FnOnce() -> Result<Bytes, Undecodable>,
    ) -> (bool, Reply) {
        let EntryHeader { session, opening, request, payload_crc, .. } = *header;
        let reply = |index, term, repeat, outcome| Reply { session, opening, request, index, term, payload_crc, repeat, outcome };
        let without_effect = |outcome| (false, reply(at.index, at.term, false, outcome));

        let Some(known) = self.sessions.get_mut(&session) else { return without_effect(Outcome::SessionExpired) };
        let known = Arc::make_mut(known);
        known.last_activity = at.index;
        #[cfg(mutants)]
        if mutant!("expiry_by_local_clock") && crate::mutants::local_ms() > at.time.0 + 500 {
            return without_effect(Outcome::SessionExpired);
        }
        if opening != known.opening && !mutant!("old_opening_accepted") {
            return without_effect(Outcome::Superseded(known.opening));
        }
        if mutant!("one_high_water_mark")
            && let Some(last) = known.records.back().filter(|last| request < last.request)
        {
            return (false, reply(last.index, last.term, true, last.outcome()));
        }
        known.raise_floor(header.floor);
        if request < known.floor && !mutant!("floor_ignored") {
            return without_effect(Outcome::Stale);
        }
        let place = match known.find(request) {
            Err(place) => place,
            Ok(found) if mutant!("forgotten_in_a_new_term") && known.records[found].term < at.term => {
                known.records.remove(found);
                found
            }
            Ok(found) => {
                let record = &known.records[found];
                let same = (record.payload_bytes, record.payload_crc) == (header.payload_bytes, header.payload_crc);
                if !same && !mutant!("conflict_ignored") {
                    return without_effect(Outcome::Conflict);
                }
                return (false, reply(record.index, record.term, true, record.outcome()));
            }
        };
        if known.broken || known.records.len() >= self.limits.window_max {
            known.broken = true;
            self.broken.insert(session);
            return without_effect(Outcome::WindowBroken);
        }
        let (effective, kept, outcome) = match effect() {
            Ok(reply) if reply.len() <= self.limits.reply_bytes_kept_max => (true, Kept::whole(&reply), Outcome::Applied(reply)),
            Ok(reply) => (true, Kept::Elided(Sha256::digest(&reply).into()), Outcome::Applied(reply)),
            Err(Undecodable) => (false, Kept::Undecodable, Outcome::Undecodable),
        };
        let payload_bytes = header.payload_bytes;
        known.records.insert(place, Record { request, index: at.index, term: at.term, payload_bytes, payload_crc, kept });
        (effective, reply(at.index, at.term, false, outcome))
    }
}
