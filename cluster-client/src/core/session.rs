//! A session's life in the client: opened lazily, journaled before it is spoken of, attached again by every later process, and
//! never replaced quietly.

use relay::wire::{SessionProof, SessionSecret, SessionStatus};
use voter_mesh::ids::{Identity, LogIndex, Opening, RequestId, RoomId, SessionId, Time};

use super::link::{Asked, Link, LinkSession, Say};
use super::window::{Stage, Window};
use super::{After, Core, Event, LinkId, WINDOW_MAX, Waiters};
use crate::error::{ProposeError, ReserveError, Unresolved};
use crate::journal::record::{JournalState, Record, SessionRecord};
use crate::status::LinkError;
use crate::ticket::Ticket;

/// The history that a journal's session lives in.
pub(super) fn identity(record: &SessionRecord) -> Identity {
    Identity { cluster: record.cluster, epoch: record.epoch, room: RoomId(0) }
}

/// An attach: its nonce, and the opening that it replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attach {
    pub(super) nonce: [u8; 16],
    pub(super) previous: Opening,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    Expired,
    Superseded(Opening),
    Epoch,
}

pub(super) enum Session {
    /// Nothing was proposed yet.
    None,
    /// There is a secret; no server has said that its session is open.
    Opening { secret: [u8; 32], ours: bool, journaled: bool },
    /// A reopened journal's session, which nothing has been proposed in since.
    Resting { secret: [u8; 32], session: SessionId, opening: Opening },
    /// This process makes the session its own. Not `ours`: an earlier process may have sent this attach; it is settled first.
    Attaching { secret: [u8; 32], session: SessionId, attach: Attach, ours: bool, journaled: bool },
    /// Proposals may be sent.
    Live { secret: [u8; 32], session: SessionId, opening: Opening, attach: Option<Attach> },
    /// Gone, with its id if it had one.
    Ended(Option<SessionId>, Ended),
}

impl Session {
    pub(super) fn recovered(journal: &JournalState) -> Self {
        let Some(secret) = journal.secret else { return Self::None };
        let Some(SessionRecord { session, opening, .. }) = journal.session else {
            return Self::Opening { secret, ours: false, journaled: true };
        };
        match journal.nonce {
            Some(nonce) => {
                Self::Attaching { secret, session, attach: Attach { nonce, previous: opening }, ours: false, journaled: true }
            }
            None => Self::Resting { secret, session, opening },
        }
    }

    pub(super) fn id(&self) -> Option<SessionId> {
        match self {
            Self::None | Self::Opening { .. } => None,
            Self::Resting { session, .. } | Self::Attaching { session, .. } | Self::Live { session, .. } => Some(*session),
            Self::Ended(session, _) => *session,
        }
    }

    /// What a hello proves.
    pub(super) fn proof(&self) -> Option<SessionProof> {
        let (secret, session, opening) = match self {
            Self::None | Self::Opening { .. } | Self::Ended(..) => return None,
            Self::Resting { secret, session, .. } | Self::Attaching { secret, session, .. } => (secret, session, None),
            Self::Live { secret, session, opening, .. } => (secret, session, Some(*opening)),
        };
        Some(SessionProof { session: *session, secret: SessionSecret(*secret), opening })
    }

    /// The opening that the servers must know for this session to be found.
    fn known_opening(&self) -> Option<Opening> {
        match self {
            Self::Resting { opening, .. } | Self::Live { opening, .. } => Some(*opening),
            Self::Attaching { attach, .. } => Some(attach.previous),
            _ => None,
        }
    }

    pub(super) fn journaled(&mut self) {
        if let Self::Opening { journaled, .. } | Self::Attaching { journaled, .. } = self {
            *journaled = true;
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

impl Ended {
    /// The answer to a call that was not sent.
    pub(super) fn unsent(self) -> ProposeError {
        match self {
            Self::Superseded(current) => ProposeError::Superseded { current },
            Self::Expired | Self::Epoch => ProposeError::SessionExpired,
        }
    }

    pub(super) fn reserve(self) -> ReserveError {
        match self {
            Self::Superseded(current) => ReserveError::Superseded { current },
            Self::Expired | Self::Epoch => ReserveError::SessionExpired,
        }
    }
}

impl<W: Waiters> Core<W> {
    fn session_needed(&self) -> bool {
        !self.queue.is_empty() || self.window.open().next().is_some()
    }

    fn journal_session(&mut self, records: impl IntoIterator<Item = Record>) {
        self.records.extend(records);
        self.records_durable = true;
        self.session_writes += 1;
        self.after.push(After::Pursue(self.session_writes));
    }

    fn begin_attach(&mut self, secret: [u8; 32], session: SessionId, previous: Opening) {
        let nonce = self.randomness.bytes();
        self.journal_session([Record::Nonce(nonce)]);
        self.session = Session::Attaching { secret, session, attach: Attach { nonce, previous }, ours: true, journaled: false };
        for link in self.links.values_mut() {
            link.forget_asked();
        }
    }

    /// Takes the session's next step, if one is needed and possible: on the first link while the session is being made, on every
    /// link once it lives.
    pub(super) fn pursue_session(&mut self) {
        if self.closed.is_some() {
            return;
        }
        match self.session {
            Session::None if self.session_needed() => {
                let secret = self.randomness.bytes();
                self.session = Session::Opening { secret, ours: true, journaled: false };
                self.journal_session([Record::Secret(secret)]);
            }
            Session::Resting { secret, session, opening } if self.session_needed() => self.begin_attach(secret, session, opening),
            Session::Opening { secret, journaled: true, .. } if self.session_needed() => {
                if let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) {
                    link.ask_session(Asked::Open, Say::SessionOpen(secret));
                }
            }
            Session::Attaching { secret, attach, journaled: true, .. } if self.session_needed() => {
                if let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) {
                    link.ask_known_session(secret, Some(attach));
                }
            }
            Session::Live { secret, attach, .. } => {
                for link in self.links.values_mut().filter(|link| link.is_admitted()) {
                    link.ask_known_session(secret, attach);
                }
            }
            _ => {}
        }
    }

    /// What the admission says of the session that the hello proved.
    pub(super) fn admit_session(&mut self, link: LinkId, status: SessionStatus, commit: LogIndex) -> Result<(), LinkError> {
        let proved = self.links.get(&link).and_then(Link::proved).map(|proof| (proof.session, proof.opening));
        let Some((proved, proved_opening)) = proved else { return Ok(()) };
        if self.session.id() != Some(proved) || matches!(self.session, Session::Ended(..)) {
            return Ok(());
        }
        match status {
            SessionStatus::None => return Err(LinkError::Malformed("the admission forgets the session")),
            SessionStatus::Expired => {
                // A server that has not come as far as the opening cannot know the session.
                if self.session.known_opening().is_some_and(|opening| commit.0 < opening.0) {
                    return Err(LinkError::Refused(relay::wire::Code::Behind));
                }
                self.end_session(Ended::Expired);
            }
            SessionStatus::Attached(current) => {
                let live = match self.session {
                    Session::Live { opening, .. } => Some(opening),
                    _ => None,
                };
                if live.is_some_and(|opening| current > opening) {
                    self.end_session(Ended::Superseded(current));
                } else if let Some(state) = self.links.get_mut(&link) {
                    state.session = if live.is_some() && proved_opening == live { LinkSession::Ready } else { LinkSession::Known };
                }
            }
        }
        Ok(())
    }

    /// The server says that the session is open, in answer to what this link asked.
    pub(super) fn session_opened(&mut self, link: LinkId, session: SessionId, opening: Opening) -> Result<(), LinkError> {
        let Some(state) = self.links.get_mut(&link) else { return Ok(()) };
        let LinkSession::Asked(asked) = state.session else { return Ok(()) };
        state.session = LinkSession::Known;
        state.answered();
        let Some(identity) = self.identity else { return Ok(()) };
        let record = SessionRecord { cluster: identity.cluster, epoch: identity.epoch, session, opening };
        match (&self.session, asked) {
            // Told another opening, somebody has attached with a copy of the journal meanwhile.
            (&Session::Opening { secret, ours: true, .. }, Asked::Open) if opening == Opening(session.0) => {
                self.session = Session::Live { secret, session, opening, attach: None };
                self.go_live(link, record);
            }
            (&Session::Opening { secret, .. }, Asked::Open) => {
                // Another copy of the journal may have attached since, and used the same ids: all that this one holds is the first opening,
                // whatever the present one is. It has the session's number.
                let first = Opening(session.0);
                self.journal_session([Record::Session(SessionRecord { opening: first, ..record })]);
                self.begin_attach(secret, session, first);
            }
            (&Session::Attaching { secret, session: known, attach, ours, .. }, Asked::Attach) if known == session => {
                if ours {
                    self.session = Session::Live { secret, session, opening, attach: Some(attach) };
                    self.go_live(link, record);
                } else {
                    self.journal_session([Record::Session(record)]);
                    self.begin_attach(secret, session, opening);
                }
            }
            (&Session::Attaching { session: known, .. }, Asked::Open) if known == session => {}
            (&Session::Live { session: known, opening: current, attach, .. }, _) if known == session => {
                if opening == current {
                    state.session = LinkSession::Ready;
                } else if opening > current {
                    self.end_session(Ended::Superseded(opening));
                } else if attach.is_none() || asked == Asked::Attach {
                    return Err(LinkError::Malformed("an older opening"));
                }
            }
            (Session::Ended(..), _) => {}
            _ => return Err(LinkError::Malformed("another session")),
        }
        self.pursue_session();
        Ok(())
    }

    fn go_live(&mut self, link: LinkId, record: SessionRecord) {
        if let Some(state) = self.links.get_mut(&link) {
            state.session = LinkSession::Ready;
        }
        self.records.push(Record::Session(record));
        self.records_durable = true;
        self.requeue_requests();
    }

    /// The session is gone: every call that waits for it is told, and nothing is sent under it any more.
    pub(super) fn end_session(&mut self, why: Ended) {
        let session = self.session.id();
        self.session = Session::Ended(session, why);
        for (call, queued) in std::mem::take(&mut self.queue) {
            self.forget_call(call);
            self.events.push_back(queued.refused(why.unsent(), why.reserve()));
        }
        let next = self.window.next;
        let requests = std::mem::replace(&mut self.window, Window::new(next, WINDOW_MAX)).requests;
        for (id, request) in requests {
            let Some(ticket) = session.map(|session| Ticket { session, request: id }) else { continue };
            let result = match request.stage {
                Stage::Done => continue,
                Stage::Replied(result) => result,
                Stage::Reserved => Err(why.unsent()),
                Stage::Open if !request.sent() => Err(why.unsent()),
                Stage::Open => Err(match why {
                    Ended::Expired => ProposeError::Unknown { ticket, reason: Unresolved::SessionExpired },
                    Ended::Epoch => ProposeError::Unknown { ticket, reason: Unresolved::Epoch },
                    Ended::Superseded(current) => ProposeError::Superseded { current },
                }),
            };
            self.tell(ticket, request.waiters, result);
        }
        self.replied.clear();
        self.retries.clear();
        for link in self.links.values_mut() {
            link.session = LinkSession::Unknown;
        }
    }

    /// After the session has ended, lets the next proposal open another one. `false`: the session has not ended.
    pub fn renew_session(&mut self, now: Time) -> bool {
        if !matches!(self.session, Session::Ended(..)) || self.closed.is_some() {
            return false;
        }
        self.forget_session();
        // The servers tie a link to a session once.
        self.hang_up_all_but(None);
        self.balance(now);
        true
    }

    fn forget_session(&mut self) {
        self.session = Session::None;
        self.window = Window::new(RequestId(0), WINDOW_MAX);
        self.records.push(Record::Ended);
        self.records_durable = true;
    }

    fn hang_up_all_but(&mut self, keep: Option<LinkId>) {
        let others: Vec<LinkId> = self.links.keys().copied().filter(|link| Some(*link) != keep).collect();
        for link in others {
            self.links.remove(&link);
            self.events.push_back(Event::Hangup { link });
            if self.first == Some(link) {
                self.unfollow();
            }
        }
        self.rotation.reset();
    }

    /// Another epoch, learnt on `link`: state and session are void, and both begin anew.
    pub(super) fn reset(&mut self, link: LinkId) {
        self.hang_up_all_but(Some(link));
        self.end_session(Ended::Epoch);
        self.forget_session();
        self.acknowledged = LogIndex::ZERO;
        self.fail_reads_and_fetches();
        self.identity = None;
        self.position = None;
        self.collecting = None;
        self.target = LogIndex::ZERO;
        self.events.push_back(Event::Reset);
    }

    /// On closing: a session that no journal remembers is of no use to anyone.
    pub(super) fn close_session(&mut self) {
        if self.options.journal_kept || !self.session.is_live() {
            return;
        }
        if let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) {
            link.close_session();
        }
    }
}
