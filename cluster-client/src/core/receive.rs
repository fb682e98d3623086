//! What a server's frames mean: admission, feed, outcomes, refusals. Anything out of place costs the link, never the state.

use relay::wire::{Admit, Code, FeedMode, ServerFrame, Start};
use voter_mesh::ids::{Chain, Identity, LogIndex, RoomId, Time};
use voter_mesh::run::chain_zero;

use super::collecting::Collecting;
use super::link::{Link, Phase};
use super::session::Ended;
use super::{Core, Event, LinkId, Waiters, ms};
use crate::status::{CloseReason, LinkError};

/// A refused question about the session is asked again within this time, beyond what the server says.
const SESSION_RETRY_MS: u64 = 100;

const ELSEWHERE: LinkError = LinkError::Malformed("the feed begins elsewhere");

impl<W: Waiters> Core<W> {
    pub(super) fn take_frame(&mut self, id: LinkId, frame: ServerFrame, now: Time) -> Result<(), LinkError> {
        if self.closed.is_some() {
            return Ok(());
        }
        let admitted = self.links.get(&id).is_some_and(Link::is_admitted);
        let first = self.first == Some(id);
        let feeding = first && self.links.get(&id).is_some_and(|link| link.feeding);
        match frame {
            ServerFrame::Refuse { code, retry_after_ms } => self.refused(id, code, retry_after_ms, now),
            ServerFrame::Close { code, retry_after_ms, endpoints } => {
                self.heed(id, retry_after_ms, now);
                let room = &self.options.room;
                self.rotation.hint(endpoints.iter().map(|endpoint| with_room(endpoint, room)).collect());
                return self.closed_by_server(code);
            }
            ServerFrame::Admit(admit) if !admitted => return self.admit(id, admit, now),
            _ if !admitted => return Err(LinkError::Malformed("a frame before the admission")),
            ServerFrame::Admit(_) => return Err(LinkError::Malformed("a second admission")),
            ServerFrame::SessionOpened { session, opening } => return self.session_opened(id, session, opening),
            ServerFrame::Superseded { current } => self.end_session(Ended::Superseded(current)),
            ServerFrame::Feed(blocks) if feeding && self.collecting.is_none() && self.options.feed == FeedMode::Full => {
                self.events.push_back(Event::Feed { link: id, blocks });
            }
            ServerFrame::Snapshot(chunk) if feeding && self.options.feed == FeedMode::Full => {
                if self.position.is_some_and(|(applied, _)| chunk.index <= applied) {
                    return Err(LinkError::Malformed("a snapshot that lies behind"));
                }
                let mut collecting = match self.collecting.take() {
                    Some(collecting) => collecting,
                    None => Collecting::begin(&chunk, self.options.machine.is_some(), self.options.limits.snapshot_bytes_max)?,
                };
                match collecting.take(&chunk)? {
                    Some(snapshot) => self.events.push_back(Event::Install(snapshot)),
                    None => self.collecting = Some(collecting),
                }
            }
            // What was on its way when the link changed its role.
            ServerFrame::Feed(_) | ServerFrame::Snapshot(_) if !feeding => {}
            ServerFrame::Feed(_) | ServerFrame::Snapshot(_) => return Err(LinkError::Malformed("a feed out of place")),
            ServerFrame::Start(start) => {
                if first {
                    self.check_start(start)?;
                    if let Some(link) = self.links.get_mut(&id) {
                        link.feeding = true;
                    }
                }
            }
            ServerFrame::Replies(replies) => {
                for reply in replies {
                    self.take_reply(reply);
                }
                self.fill();
            }
            ServerFrame::Commit { index, .. } => {
                let behind = self.position.is_some_and(|(applied, _)| index > applied);
                if !first && behind && self.options.feed == FeedMode::Full {
                    self.ahead_since_us.get_or_insert(now.monotonic_us);
                }
            }
            ServerFrame::Read { id: read, index } => self.take_read(read, index, now),
            ServerFrame::ReadRefused { id: read, .. } => self.read_refused(read, now),
            ServerFrame::ProposeRefused { ids, code, retry_after_ms } if ids.is_empty() => {
                let wait_us = ms(u64::from(retry_after_ms.unwrap_or(0))) + self.randomness.below(ms(SESSION_RETRY_MS));
                if let Some(link) = self.links.get_mut(&id) {
                    link.session_refused(now.monotonic_us + wait_us, code);
                }
            }
            ServerFrame::ProposeRefused { ids, code, retry_after_ms } => self.requests_refused(id, &ids, code, retry_after_ms, now),
            ServerFrame::Runs(blocks) => {
                if first {
                    self.fetched(blocks)?;
                }
            }
            ServerFrame::Trimmed { first: index } => {
                if first {
                    self.trimmed(index);
                }
            }
            ServerFrame::Pong { .. } => {}
        }
        Ok(())
    }

    fn heed(&mut self, id: LinkId, retry_after_ms: Option<u32>, now: Time) {
        if let Some(link) = self.links.get(&id) {
            self.rotation.retry_after(&link.endpoint, retry_after_ms, now.monotonic_us);
        }
    }

    fn closed_by_server(&mut self, code: Code) -> Result<(), LinkError> {
        if code == Code::Diverged {
            self.close(CloseReason::Diverged);
            return Ok(());
        }
        Err(LinkError::Closed(code))
    }

    fn refused(&mut self, id: LinkId, code: Code, retry_after_ms: Option<u32>, now: Time) {
        self.heed(id, retry_after_ms, now);
        match code {
            Code::Diverged => self.close(CloseReason::Diverged),
            Code::Epoch => {
                // Which of us is older is told only to those who claim no epoch. They have nothing that could be refused for it.
                if let Some(link) = self.links.get(&id).filter(|link| link.claims_epoch) {
                    self.rotation.again(link.endpoint.clone());
                    self.probe_epoch = true;
                }
                self.hang_up(id, LinkError::Refused(code), now);
            }
            _ => self.hang_up(id, LinkError::Refused(code), now),
        }
    }

    fn admit(&mut self, id: LinkId, admit: Admit, now: Time) -> Result<(), LinkError> {
        let identity = Identity { cluster: admit.cluster, epoch: admit.epoch, room: RoomId(0) };
        let other = self.identity.filter(|known| *known != identity);
        if let Some(known) = other {
            if known.cluster != identity.cluster {
                return Err(LinkError::Refused(Code::Cluster));
            }
            if identity.epoch < known.epoch {
                return Err(LinkError::Refused(Code::Epoch));
            }
        }
        if self.options.machine.as_ref().is_some_and(|machine| *machine != admit.state_machine) {
            return Err(LinkError::Refused(Code::StateMachine));
        }
        let mode = self.links.get(&id).map(|link| link.mode);
        // Whoever breaks the protocol is believed nothing else either: no epoch that voids the state, and no cluster to stay with.
        if mode == Some(FeedMode::Full) && !continues(admit.start, self.position.filter(|_| other.is_none())) {
            return Err(ELSEWHERE);
        }
        if other.is_some() {
            self.reset(id);
        }
        // The first link was found while this one, which was to be it, was slow.
        if mode != Some(FeedMode::Standby) && self.first.is_some() {
            return Err(LinkError::Overtaken);
        }
        self.identity = Some(identity);
        if mode == Some(FeedMode::Full) {
            self.check_start(admit.start)?;
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Admitted { server: admit.server, since_us: now.monotonic_us, limits: admit.limits };
            link.feeding = mode == Some(FeedMode::Full);
            (link.sent_us, link.pinged_us) = (now.monotonic_us, now.monotonic_us);
        }
        self.window.window_max = super::WINDOW_MAX.min(admit.limits.window_max.max(1) as usize);
        self.payload_bytes_max = voter_mesh::entry::PAYLOAD_BYTES_MAX.min(admit.limits.payload_bytes_max as usize);
        self.target = self.target.max(admit.commit);
        self.admit_session(id, admit.session, admit.commit)?;
        self.balance(now);
        self.pursue_session();
        self.ask_reads(now);
        self.ask_fetch();
        self.notice_live();
        Ok(())
    }

    /// The feed must begin right behind the learner, or with a snapshot ahead of it: a client never goes back in time.
    fn check_start(&mut self, start: Start) -> Result<(), LinkError> {
        let Some(identity) = self.identity else { return Ok(()) };
        if self.options.feed == FeedMode::Thin {
            return Ok(());
        }
        match (start, &mut self.collecting) {
            (Start::Tail(_), collecting) => *collecting = None,
            (Start::Snapshot(_), Some(collecting)) => collecting.rejoin(),
            (Start::Snapshot(_), None) => {}
        }
        if !continues(start, self.position) {
            return Err(ELSEWHERE);
        }
        if (start, self.position) == (Start::Tail(LogIndex::FIRST), None) {
            let (index, chain) = (LogIndex::ZERO, chain_zero(&identity));
            self.position = Some((index, chain));
            self.events.push_back(Event::Begin { index, chain });
        }
        Ok(())
    }
}

/// Whether a feed that begins there goes on from where the learner stands.
fn continues(start: Start, position: Option<(LogIndex, Chain)>) -> bool {
    match (start, position) {
        (Start::Tail(next), Some((applied, _))) => next == applied.next(),
        (Start::Snapshot(at), Some((applied, _))) => at > applied,
        (Start::Tail(next), None) => next == LogIndex::FIRST,
        (Start::Snapshot(_), None) => true,
    }
}

/// Servers name their endpoints without the room's path.
fn with_room(endpoint: &str, room: &str) -> String {
    if endpoint.contains("/rooms/") { endpoint.to_owned() } else { format!("{}/rooms/{room}", endpoint.trim_end_matches('/')) }
}
