//! Proposals and sessions: what clients propose is laid out once, here, and travels verbatim from then on; what the log made of it
//! comes back as events and goes to the links whose sessions it concerns.
//!
//! Nothing here decides whether a command takes effect: that is the session table's, when the entry is applied. What is refused
//! here is refused because it can never be right, or because there is no room for it now.

use sha2::{Digest, Sha256};

use voter_mesh::entry::{EntryKind, EntrySpec, PAYLOAD_BYTES_MAX, put_entry};
use voter_mesh::ids::{LogIndex, Opening, RequestId, SessionId, Term, Time};
use voter_mesh::outcome::{Outcome, Reply};
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, SessionEvent, Sessions, secret_hash};

use crate::wire::{Code, FeedMode, Proposal, REPLY_BYTES_MAX, ServerFrame, SessionSecret, WireReply};

use super::Room;
use super::link::{Link, LinkId, LinkSession, List};

/// Proposals of one frame that were refused for one reason.
#[derive(Default)]
struct Refusals(Vec<(Code, Vec<RequestId>)>);

impl Refusals {
    fn add(&mut self, code: Code, id: RequestId) {
        match self.0.iter_mut().find(|(other, _)| *other == code) {
            Some((_, ids)) => ids.push(id),
            None => self.0.push((code, vec![id])),
        }
    }
}

fn wire_reply(reply: Reply) -> WireReply {
    let outcome = match reply.outcome {
        // It would not fit into a message; a retry gets the same.
        Outcome::Applied(bytes) if bytes.len() > REPLY_BYTES_MAX => Outcome::Elided(Sha256::digest(&bytes).into()),
        outcome => outcome,
    };
    let Reply { request: id, index, term, payload_crc, repeat, .. } = reply;
    WireReply { id, index, term, payload_crc, repeat, outcome }
}

/// An answer that no entry stands behind.
fn without_entry(id: RequestId, outcome: Outcome) -> WireReply {
    WireReply { id, index: LogIndex::ZERO, term: Term(0), payload_crc: 0, repeat: false, outcome }
}

impl Room {
    /// Lays out a link's proposals behind those of the others.
    pub(super) fn propose(&mut self, id: LinkId, proposals: &[Proposal], now: Time) -> Result<(), Code> {
        let limits = &self.options.limits;
        let Some(link) = self.links.get(id) else { return Ok(()) };
        let speaker = match (link.mode, link.session) {
            (FeedMode::Standby, _) => Err(Code::Malformed),
            (_, Some(LinkSession { session, opening: Some(opening) })) => Ok((session, opening)),
            _ => Err(Code::Auth),
        };
        let mut refusals = Refusals::default();
        for proposal in proposals {
            let accepted = speaker.and_then(|speaker| {
                if proposal.floor > proposal.id {
                    Err(Code::Malformed)
                } else if proposal.payload.len() > PAYLOAD_BYTES_MAX {
                    Err(Code::TooLarge)
                } else if self.overloaded
                    || self.batch.len() + proposal.payload.len() > limits.proposals_bytes_max
                    || !link.expect(proposal.id)
                {
                    Err(Code::Overloaded)
                } else {
                    Ok(speaker)
                }
            });
            let (session, opening) = match accepted {
                Ok(accepted) => accepted,
                Err(code) => {
                    refusals.add(code, proposal.id);
                    continue;
                }
            };
            let spec = EntrySpec {
                kind: EntryKind::Command,
                room: self.options.identity.room,
                session,
                opening,
                request: proposal.id,
                floor: proposal.floor,
            };
            // The payload's size was looked at above.
            if put_entry(&mut self.batch, &spec, &proposal.payload).is_ok() {
                self.counters.proposals += 1;
            }
        }
        for (code, ids) in refusals.0 {
            self.counters.proposals_refused += ids.len() as u64;
            let retry_after_ms = (code == Code::Overloaded).then_some(self.options.limits.retry_after_ms);
            self.send(id, &ServerFrame::ProposeRefused { ids, code, retry_after_ms }, now)?;
        }
        Ok(())
    }

    /// Lays out a record of a session.
    fn propose_internal(&mut self, kind: EntryKind, session: SessionId, opening: Opening, payload: &[u8]) -> Result<(), Code> {
        if self.overloaded || self.batch.len() + payload.len() > self.options.limits.proposals_bytes_max {
            return Err(Code::Overloaded);
        }
        let spec = EntrySpec { room: self.options.identity.room, session, opening, ..EntrySpec::internal(kind) };
        put_entry(&mut self.batch, &spec, payload).map_err(|_| Code::TooLarge)
    }

    /// Answers a session frame that was not taken: the link lives, and may ask again later.
    fn refuse_session_frame(&mut self, id: LinkId, code: Code, now: Time) -> Result<(), Code> {
        let retry_after_ms = (code == Code::Overloaded).then_some(self.options.limits.retry_after_ms);
        self.send(id, &ServerFrame::ProposeRefused { ids: Vec::new(), code, retry_after_ms }, now)
    }

    pub(super) fn open_session(&mut self, id: LinkId, secret: &SessionSecret, sessions: &Sessions, now: Time) -> Result<(), Code> {
        let hash = secret_hash(&secret.0);
        if let Some((session, opening)) = sessions.opened(&hash) {
            return self.opened(id, session, opening, now);
        }
        if !self.may_ask(id, now) {
            return self.refuse_session_frame(id, Code::Overloaded, now);
        }
        if let Err(code) = self.propose_internal(EntryKind::SessionOpen, SessionId(0), Opening(0), &hash) {
            return self.refuse_session_frame(id, code, now);
        }
        self.forget_opening(id);
        if let Some(link) = self.links.get(id) {
            link.opening = Some(Box::new(hash));
            self.opening.entry(hash).or_default().push(id);
        }
        Ok(())
    }

    /// The link's unanswered `SessionOpen` is answered, or overtaken by another.
    pub(super) fn forget_opening(&mut self, id: LinkId) {
        if let Some(hash) = self.links.get(id).and_then(|link| link.opening.take())
            && let Some(ids) = self.opening.get_mut(&*hash)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.opening.remove(&*hash);
            }
        }
    }

    fn opened(&mut self, id: LinkId, session: SessionId, opening: Opening, now: Time) -> Result<(), Code> {
        self.attach(id, LinkSession { session, opening: Some(opening) }, now);
        self.send(id, &ServerFrame::SessionOpened { session, opening }, now)
    }

    pub(super) fn attach_session(
        &mut self,
        id: LinkId,
        nonce: [u8; 16],
        previous: Opening,
        sessions: &Sessions,
        now: Time,
    ) -> Result<(), Code> {
        let Some(LinkSession { session, .. }) = self.links.get(id).and_then(|link| link.session) else {
            return self.refuse_session_frame(id, Code::Auth, now);
        };
        if let Some(opening) = sessions.attached(session, &nonce) {
            return self.opened(id, session, opening, now);
        }
        if !self.may_ask(id, now) {
            return self.refuse_session_frame(id, Code::Overloaded, now);
        }
        let payload = AttachPayload { nonce, previous }.encode();
        if let Err(code) = self.propose_internal(EntryKind::SessionAttach, session, previous, &payload) {
            return self.refuse_session_frame(id, code, now);
        }
        if let Some(link) = self.links.get(id) {
            link.attaching = Some(nonce);
        }
        Ok(())
    }

    pub(super) fn close_session(&mut self, id: LinkId, now: Time) -> Result<(), Code> {
        let Some(LinkSession { session, opening: Some(opening) }) = self.links.get(id).and_then(|link| link.session) else {
            return self.refuse_session_frame(id, Code::Auth, now);
        };
        if !self.may_ask(id, now) {
            return self.refuse_session_frame(id, Code::Overloaded, now);
        }
        let payload = EndPayload { why: EndReason::Closed, last_activity: self.feed.tail().0 }.encode();
        match self.propose_internal(EntryKind::SessionEnd, session, opening, &payload) {
            Ok(()) => Ok(()),
            Err(code) => self.refuse_session_frame(id, code, now),
        }
    }

    /// Brings what became of an entry to the links that it concerns.
    pub(super) fn route(&mut self, event: &SessionEvent, now: Time) {
        match event {
            SessionEvent::Replied(reply) => self.route_reply(reply, now),
            SessionEvent::Opened { hash, session, opening } => {
                for id in self.opening.remove(hash).unwrap_or_default() {
                    self.forget_opening(id);
                    let _ = self.opened(id, *session, *opening, now);
                }
            }
            SessionEvent::OpenRefused { hash } => {
                for id in self.opening.remove(hash).unwrap_or_default() {
                    self.forget_opening(id);
                    let _ = self.refuse_session_frame(id, Code::Overloaded, now);
                }
            }
            SessionEvent::Attached { session, nonce, opening } => {
                for id in self.attaching(*session, nonce) {
                    let _ = self.opened(id, *session, *opening, now);
                }
            }
            SessionEvent::Superseded { session, nonce, current } => {
                for id in self.attaching(*session, nonce) {
                    let _ = self.send(id, &ServerFrame::Superseded { current: *current }, now);
                }
            }
            // Its links keep it: what they have proposed is still to be answered, with `SessionExpired`.
            SessionEvent::Ended { .. } => {}
        }
    }

    /// Links of a session whose attach with this nonce is unanswered; it is answered now.
    fn attaching(&mut self, session: SessionId, nonce: &[u8; 16]) -> Vec<LinkId> {
        let mut ids = self.attached.get(&session).cloned().unwrap_or_default();
        ids.retain(|id| self.links.get(*id).is_some_and(|link| link.attaching.take_if(|own| own == nonce).is_some()));
        ids
    }

    fn route_reply(&mut self, reply: &Reply, now: Time) {
        let Some(ids) = self.attached.get(&reply.session) else { return };
        let mut full = Vec::new();
        for &id in ids {
            let Some(link) = self.links.get(id) else { continue };
            // Another opening's ids are another journal's: its answers are not this client's.
            let speaks = link.session.is_some_and(|session| session.opening == Some(reply.opening));
            if !speaks || link.mode == FeedMode::Standby {
                continue;
            }
            link.push_reply(wire_reply(reply.clone()));
            if link.queued_bytes > self.options.limits.outbox_bytes_max {
                full.push(id);
            }
            self.counters.replies += 1;
            self.links.enlist(List::Woken, id);
        }
        for id in full {
            let _ = self.bound_outbox(id, now);
        }
    }

    /// These ids await an answer on this link; those that the table can answer are answered from it.
    pub(super) fn expect(&mut self, id: LinkId, ids: &[RequestId], sessions: &Sessions, now: Time) -> Result<(), Code> {
        let Some(link) = self.links.get(id) else { return Ok(()) };
        let Some(session) = link.session else { return Ok(()) };
        for &request in ids {
            // Ids beyond the window are answered when they are proposed again.
            let _ = link.expect(request);
        }
        self.counters.replies += answer(link, session, sessions);
        self.bound_outbox(id, now)?;
        self.links.enlist(List::Woken, id);
        Ok(())
    }

    /// Answers whatever the table can answer, on all links.
    pub(super) fn answer_all(&mut self, sessions: &Sessions, now: Time) {
        for id in self.links.ids() {
            let Some(link) = self.links.get(id) else { continue };
            let (opening, attaching) = (link.opening.as_deref().copied(), link.attaching);
            if let Some((session, opening)) = opening.and_then(|hash| sessions.opened(&hash)) {
                self.forget_opening(id);
                let _ = self.opened(id, session, opening, now);
            }
            let Some(session) = self.links.get(id).and_then(|link| link.session) else { continue };
            if let Some(opening) = attaching.and_then(|nonce| sessions.attached(session.session, &nonce)) {
                if let Some(link) = self.links.get(id) {
                    link.attaching = None;
                }
                let _ = self.opened(id, session.session, opening, now);
            }
            let _ = self.expect(id, &[], sessions, now);
        }
    }
}

/// Answers a link's open requests as far as the table can; how many.
fn answer(link: &mut Link, session: LinkSession, sessions: &Sessions) -> u64 {
    if link.mode == FeedMode::Standby {
        return 0;
    }
    let before = link.replies.len();
    let current = sessions.opening(session.session);
    for id in link.expected() {
        let reply = match (current, session.opening) {
            (None, _) => Some(without_entry(id, Outcome::SessionExpired)),
            (Some(current), Some(own)) if own == current => sessions.recorded(session.session, id).map(wire_reply),
            // The table speaks of another journal's ids.
            (Some(current), Some(_)) => Some(without_entry(id, Outcome::Superseded(current))),
            // Not attached yet: the client proposes again once it is.
            (Some(_), None) => None,
        };
        if let Some(reply) = reply {
            link.push_reply(reply);
        }
    }
    (link.replies.len() - before) as u64
}
