//! Links: dialled, admitted, followed, promoted, lost. With two, the second stands by and takes over without a dial.

use std::collections::VecDeque;

use relay::wire::{
    Admit, ClientFrame, Code, FeedMode, Hello, PROTOCOL_VERSION, Proposal, ResumePoint, ServerFrame, SessionProof, SessionSecret,
    Start, WireLimits,
};
use voter_mesh::ids::{Identity, LogIndex, RaftId, RequestId, RoomId, Time};
use voter_mesh::run::chain_zero;

use super::collecting::Collecting;
use super::session::{Attach, Ended};
use super::window::Stage;
use super::{ACK_MS, Core, Event, LinkId, Waiters, ms};
use crate::status::{CloseReason, LinkError};

/// A link that held this long was good: losing it does not count as a failed dial.
const GOOD_LINK_MS: u64 = 1_000;

/// A question about the session that is not answered for this long is asked again; it is idempotent.
const SESSION_AGAIN_MS: u64 = 2_000;

/// A refused question about the session is asked again within this time, beyond what the server says.
const SESSION_RETRY_MS: u64 = 100;

/// The shortest and longest ping periods that a server can ask for.
const PING_MS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// What waits to be said on a link, besides proposals.
#[derive(Clone, Debug)]
pub(super) enum Say {
    Hello,
    SessionOpen([u8; 32]),
    SessionAttach(Attach),
    SessionClose,
    Resume,
    ReadIndex(u64),
    Fetch(LogIndex, LogIndex),
    Ping,
}

/// What a link has asked about the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    Open,
    Attach,
}

/// What the server at the other end knows of the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkSession {
    /// Nothing.
    Unknown,
    /// The question is under way.
    Asked(Asked),
    /// The session, but not this process's opening.
    Known,
    /// All that proposals need.
    Ready,
}

#[derive(Debug)]
enum Phase {
    Dialing,
    Greeting,
    Admitted { server: RaftId, since_us: u64, limits: WireLimits },
}

#[derive(Debug)]
pub(super) struct Link {
    endpoint: String,
    phase: Phase,
    /// Dialled or greeting: when that must be over.
    handshake_by_us: u64,
    say: VecDeque<Say>,
    /// What the server was last asked to feed.
    mode: FeedMode,
    /// The feed has begun: blocks and snapshot pieces may come.
    feeding: bool,
    /// What the hello said of the session.
    proved: Option<SessionProof>,
    pub(super) session: LinkSession,
    /// When an unanswered question about the session is asked again.
    ask_again_us: Option<u64>,
    heard_us: u64,
    sent_us: u64,
    pinged_us: u64,
    /// The first thing sent since something was heard.
    expecting_since_us: Option<u64>,
    /// A ping that only asks whether the link lives.
    probed_us: Option<u64>,
}

impl Link {
    fn new(endpoint: String, mode: FeedMode, handshake_by_us: u64) -> Self {
        Self {
            endpoint,
            phase: Phase::Dialing,
            handshake_by_us,
            say: VecDeque::new(),
            mode,
            feeding: false,
            proved: None,
            session: LinkSession::Unknown,
            ask_again_us: None,
            heard_us: 0,
            sent_us: 0,
            pinged_us: 0,
            expecting_since_us: None,
            probed_us: None,
        }
    }

    pub(super) fn up(&mut self, _now: Time) {
        if matches!(self.phase, Phase::Dialing) {
            self.phase = Phase::Greeting;
            self.say.push_back(Say::Hello);
        }
    }

    pub(super) fn heard(&mut self, now: Time) {
        self.heard_us = now.monotonic_us;
        self.expecting_since_us = None;
        self.probed_us = None;
    }

    fn sent(&mut self, now: Time) {
        self.sent_us = now.monotonic_us;
        self.expecting_since_us.get_or_insert(now.monotonic_us);
    }

    pub(super) fn is_admitted(&self) -> bool {
        matches!(self.phase, Phase::Admitted { .. })
    }

    pub(super) fn server(&self) -> Option<RaftId> {
        match self.phase {
            Phase::Admitted { server, .. } => Some(server),
            _ => None,
        }
    }

    fn limits(&self) -> Option<WireLimits> {
        match self.phase {
            Phase::Admitted { limits, .. } => Some(limits),
            _ => None,
        }
    }

    pub(super) fn proved(&self) -> Option<&SessionProof> {
        self.proved.as_ref()
    }

    pub(super) fn ask_session(&mut self, asked: Asked, say: Say) {
        if matches!(self.session, LinkSession::Unknown | LinkSession::Known) && self.is_admitted() {
            self.session = LinkSession::Asked(asked);
            self.ask_again_us = None;
            self.say.push_back(say);
        }
    }

    /// Brings the link to know this process's opening of a session that exists.
    pub(super) fn ask_known_session(&mut self, secret: [u8; 32], attach: Option<Attach>) {
        match (self.session, attach) {
            (LinkSession::Known, Some(attach)) => self.ask_session(Asked::Attach, Say::SessionAttach(attach)),
            (LinkSession::Unknown | LinkSession::Known, _) => self.ask_session(Asked::Open, Say::SessionOpen(secret)),
            _ => {}
        }
    }

    /// What was asked may be asked again.
    pub(super) fn forget_asked(&mut self) {
        match self.session {
            LinkSession::Asked(Asked::Open) => self.session = LinkSession::Unknown,
            LinkSession::Asked(Asked::Attach) => self.session = LinkSession::Known,
            _ => {}
        }
    }

    /// What was asked is answered.
    pub(super) fn answered(&mut self) {
        self.ask_again_us = None;
    }

    /// The question was refused. Without the session's attachment, only its secret helps.
    fn session_refused(&mut self, again_us: u64, code: Code) {
        if code == Code::Auth {
            self.session = LinkSession::Unknown;
        }
        self.ask_again_us = Some(again_us);
    }

    pub(super) fn close_session(&mut self) {
        if self.session == LinkSession::Ready {
            self.say.push_back(Say::SessionClose);
        }
    }

    pub(super) fn say(&mut self, say: Say) {
        self.say.push_back(say);
    }

    fn ping_us(&self) -> Option<u64> {
        self.limits().map(|limits| ms(u64::from(limits.ping_ms).clamp(*PING_MS.start(), *PING_MS.end())))
    }

    fn ping_at_us(&self) -> Option<u64> {
        self.ping_us().map(|ping| self.heard_us.min(self.sent_us).max(self.pinged_us) + ping)
    }

    fn dead_at_us(&self) -> Option<u64> {
        self.ping_us().map(|ping| self.heard_us + 2 * ping)
    }
}

impl<W: Waiters> Core<W> {
    /// Chooses the link to follow, and dials what is missing.
    pub(super) fn balance(&mut self, now: Time) {
        if self.closed.is_some() {
            return;
        }
        if self.first.is_none()
            && let Some(link) = self.links.iter().find(|(_, link)| link.is_admitted()).map(|(id, _)| *id)
        {
            self.follow(link);
        }
        self.dial_at_us = None;
        while self.links.len() < self.options.links {
            let in_use: Vec<&str> = self.links.values().map(|link| link.endpoint.as_str()).collect();
            let endpoint = match self.rotation.pick(&in_use, now.monotonic_us) {
                Ok(endpoint) => endpoint,
                Err(at) => {
                    self.dial_at_us = Some(at);
                    return;
                }
            };
            let link = LinkId(self.next_link);
            self.next_link += 1;
            let mode = self.mode_of_another(link);
            let handshake_by_us = now.monotonic_us + ms(self.options.limits.handshake_ms);
            self.links.insert(link, Link::new(endpoint.clone(), mode, handshake_by_us));
            self.events.push_back(Event::Dial { link, endpoint });
        }
    }

    /// What a link asks for in its hello: a feed, unless another link has one or is about to.
    fn mode_of_another(&self, link: LinkId) -> FeedMode {
        let fed = self.links.iter().any(|(id, other)| *id != link && other.mode != FeedMode::Standby);
        if fed || self.first.is_some() { FeedMode::Standby } else { self.options.feed }
    }

    /// Makes an admitted link the first one: it feeds the learner, and what is unanswered goes out on it.
    fn follow(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        self.first = Some(id);
        self.ahead_since_us = None;
        self.collecting = None;
        if link.mode != self.options.feed {
            link.mode = self.options.feed;
            link.feeding = false;
            link.say(Say::Resume);
        }
        self.fetching = None;
        self.reads.link_changed();
        self.requeue_requests();
        self.pursue_session();
        self.ask_fetch();
    }

    /// The first link is gone.
    pub(super) fn unfollow(&mut self) {
        self.first = None;
        self.ahead_since_us = None;
        self.collecting = None;
        self.window.to_send.clear();
    }

    /// The owner says that the link is gone.
    pub(super) fn lose(&mut self, id: LinkId, error: LinkError, now: Time) {
        let Some(link) = self.links.remove(&id) else { return };
        if self.closed.is_some() {
            return;
        }
        let good = matches!(link.phase, Phase::Admitted { since_us, .. } if now.monotonic_us >= since_us + ms(GOOD_LINK_MS));
        if good {
            self.rotation.reset();
        } else {
            self.rotation.failed(now.monotonic_us, &mut self.randomness);
        }
        self.last_error = Some(error);
        if self.first == Some(id) {
            self.unfollow();
        }
        self.balance(now);
        self.ask_reads(now);
    }

    /// Drops a link by our own decision.
    pub(super) fn hang_up(&mut self, id: LinkId, error: LinkError, now: Time) {
        if self.links.contains_key(&id) {
            self.events.push_back(Event::Hangup { link: id });
            self.lose(id, error, now);
        }
    }

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
                    // What came of a snapshot before it is void.
                    self.collecting = None;
                    if let Some(link) = self.links.get_mut(&id) {
                        link.feeding = true;
                    }
                }
            }
            ServerFrame::Replies(replies) => {
                for reply in replies {
                    self.take_reply(reply);
                }
                self.fill(now);
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
                // Which of us is older is told only to those who claim no epoch.
                if let Some(link) = self.links.get(&id) {
                    self.rotation.again(link.endpoint.clone());
                }
                self.probe_epoch = true;
                self.hang_up(id, LinkError::Refused(code), now);
            }
            _ => self.hang_up(id, LinkError::Refused(code), now),
        }
    }

    fn admit(&mut self, id: LinkId, admit: Admit, now: Time) -> Result<(), LinkError> {
        let identity = Identity { cluster: admit.cluster, epoch: admit.epoch, room: RoomId(0) };
        if let Some(known) = self.identity.filter(|known| *known != identity) {
            if known.cluster != identity.cluster {
                return Err(LinkError::Refused(Code::Cluster));
            }
            if identity.epoch < known.epoch {
                return Err(LinkError::Refused(Code::Epoch));
            }
            self.reset(id);
        }
        if self.options.machine.as_ref().is_some_and(|machine| *machine != admit.state_machine) {
            return Err(LinkError::Refused(Code::StateMachine));
        }
        let mode = self.links.get(&id).map(|link| link.mode);
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
        match (start, self.position) {
            (Start::Tail(next), Some((applied, _))) if next == applied.next() => {}
            (Start::Snapshot(at), Some((applied, _))) if at > applied => {}
            (Start::Tail(LogIndex::FIRST), None) => {
                let (index, chain) = (LogIndex::ZERO, chain_zero(&identity));
                self.position = Some((index, chain));
                self.events.push_back(Event::Begin { index, chain });
            }
            (Start::Snapshot(_), None) => {}
            _ => return Err(LinkError::Malformed("the feed begins elsewhere")),
        }
        Ok(())
    }

    /// Pings what is silent, drops what is dead, and lets the standby overtake a first link that stalls.
    pub(super) fn watch_links(&mut self, now: Time) {
        let now_us = now.monotonic_us;
        let late: Vec<(LinkId, LinkError)> = self
            .links
            .iter()
            .filter_map(|(id, link)| match link.dead_at_us() {
                None => (link.handshake_by_us <= now_us).then_some((*id, LinkError::HandshakeTimeout)),
                Some(at) => (at <= now_us).then_some((*id, LinkError::Silent)),
            })
            .collect();
        for (id, error) in late {
            self.hang_up(id, error, now);
        }
        for link in self.links.values_mut() {
            if link.ask_again_us.take_if(|at| *at <= now_us).is_some() {
                link.forget_asked();
            }
        }
        self.pursue_session();
        for link in self.links.values_mut() {
            if link.ping_at_us().is_some_and(|at| at <= now_us) {
                link.pinged_us = now_us;
                link.say(Say::Ping);
            }
        }
        if let Some((at, probe)) = self.stall_at_us().filter(|(at, _)| *at <= now_us) {
            let _ = at;
            let Some(first) = self.first else { return };
            if probe {
                if let Some(link) = self.links.get_mut(&first) {
                    link.probed_us = Some(now_us);
                    link.say(Say::Ping);
                }
            } else {
                self.hang_up(first, LinkError::Overtaken, now);
            }
        }
    }

    fn has_standby(&self) -> bool {
        self.links.iter().any(|(id, link)| self.first != Some(*id) && link.is_admitted())
    }

    /// When the first link is asked whether it lives (`true`), or overtaken.
    fn stall_at_us(&self) -> Option<(u64, bool)> {
        let link = self.links.get(&self.first?)?;
        if !self.has_standby() {
            return None;
        }
        let stall_us = ms(self.options.limits.stall_ms);
        let ahead = self.ahead_since_us.map(|since| (since + stall_us, false));
        let waiting = self.window.in_flight() || self.reads.is_asked() || self.fetching.is_some();
        let silent = waiting.then(|| match link.probed_us {
            Some(probed) => (probed + stall_us / 2, false),
            None => (link.expecting_since_us.unwrap_or(link.heard_us) + stall_us / 2, true),
        });
        [ahead, silent].into_iter().flatten().min()
    }

    pub(super) fn link_timeouts(&self) -> impl Iterator<Item = (u64, &'static str)> + '_ {
        let links = self.links.values().flat_map(|link| {
            let handshake = (!link.is_admitted()).then_some((link.handshake_by_us, "a handshake must be over"));
            let ping = link.ping_at_us().map(|at| (at, "a ping is due"));
            let dead = link.dead_at_us().map(|at| (at, "a silent link is dead"));
            let again = link.ask_again_us.map(|at| (at, "the session is asked after again"));
            [handshake, ping, dead, again].into_iter().flatten()
        });
        let ack = (self.first.is_some() && self.options.feed != FeedMode::Thin)
            .then_some(self.position)
            .flatten()
            .filter(|(applied, _)| *applied != self.ack.told)
            .map(|_| (self.ack.next_us, "the server is told how far the learner is"));
        links.chain(self.stall_at_us().map(|(at, _)| (at, "the first link stalls"))).chain(ack)
    }

    pub(super) fn next_frame(&mut self, id: LinkId, now: Time) -> Option<ClientFrame> {
        let link = self.links.get_mut(&id)?;
        let frame = match link.say.pop_front() {
            Some(say) => Some(self.phrase(id, say, now)),
            None if self.first != Some(id) || self.closed.is_some() => None,
            None if link.session == LinkSession::Ready && self.session.is_live() => {
                self.next_proposals(id).map(ClientFrame::Propose).or_else(|| self.next_ack(now))
            }
            None => self.next_ack(now),
        };
        if frame.is_some()
            && let Some(link) = self.links.get_mut(&id)
        {
            link.sent(now);
        }
        frame
    }

    fn phrase(&mut self, id: LinkId, say: Say, now: Time) -> ClientFrame {
        if let (Say::SessionOpen(_) | Say::SessionAttach(_), Some(link)) = (&say, self.links.get_mut(&id)) {
            link.ask_again_us = Some(now.monotonic_us + ms(SESSION_AGAIN_MS));
        }
        let resume = match self.options.feed {
            FeedMode::Thin => None,
            _ => self.position.map(|(applied, chain)| ResumePoint { applied, chain }),
        };
        match say {
            Say::Hello => ClientFrame::Hello(self.hello(id, resume)),
            Say::SessionOpen(secret) => ClientFrame::SessionOpen { secret: SessionSecret(secret) },
            Say::SessionAttach(attach) => ClientFrame::SessionAttach { nonce: attach.nonce, previous: attach.previous },
            Say::SessionClose => ClientFrame::SessionClose,
            Say::Resume => ClientFrame::Resume { resume, feed: self.options.feed, unanswered: self.unanswered_ids() },
            Say::ReadIndex(id) => ClientFrame::ReadIndex { id },
            Say::Fetch(from, to) => ClientFrame::Fetch { from, to },
            Say::Ping => ClientFrame::Ping { nonce: now.monotonic_us },
        }
    }

    fn hello(&mut self, id: LinkId, resume: Option<ResumePoint>) -> Hello {
        let probe = std::mem::take(&mut self.probe_epoch);
        let session = self.session.proof().filter(|_| !probe);
        let unanswered = if session.is_some() { self.unanswered_ids() } else { Vec::new() };
        // Another link may have become the first one, or ended, since this one was dialled.
        let mode = self.mode_of_another(id);
        if let Some(link) = self.links.get_mut(&id) {
            (link.mode, link.proved) = (mode, session.clone());
        }
        Hello {
            version: PROTOCOL_VERSION,
            cluster: self.identity.map(|identity| identity.cluster),
            epoch: self.identity.filter(|_| !probe).map(|identity| identity.epoch),
            room: self.options.room.clone(),
            auth: Vec::new(),
            state_machine: self.options.machine.clone(),
            session,
            resume: resume.filter(|_| !probe),
            feed: mode,
            unanswered,
        }
    }

    fn unanswered_ids(&self) -> Vec<RequestId> {
        self.window
            .requests
            .iter()
            .filter(|(_, request)| matches!(request.stage, Stage::Open) && request.sent())
            .map(|(id, _)| *id)
            .take(super::WINDOW_MAX)
            .collect()
    }

    /// Proposals for one frame.
    fn next_proposals(&mut self, id: LinkId) -> Option<Vec<Proposal>> {
        let floor = self.window.floor();
        let message_bytes_max = self.links.get(&id)?.limits()?.message_bytes_max as usize;
        let bytes_max = self.options.limits.frame_bytes_max.min(message_bytes_max / 2);
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        while let Some(&request_id) = self.window.to_send.front() {
            let open = self.window.requests.get_mut(&request_id).filter(|request| matches!(request.stage, Stage::Open));
            let Some(request) = open else {
                self.window.to_send.pop_front();
                continue;
            };
            bytes += request.payload.len();
            if bytes > bytes_max && !proposals.is_empty() {
                break;
            }
            self.window.to_send.pop_front();
            request.copies = request.copies.saturating_add(1);
            proposals.push(Proposal { id: request_id, floor: floor.min(request_id), payload: request.payload.clone() });
        }
        (!proposals.is_empty()).then_some(proposals)
    }

    fn next_ack(&mut self, now: Time) -> Option<ClientFrame> {
        let (applied, _) = self.position?;
        if applied == self.ack.told || now.monotonic_us < self.ack.next_us || self.options.feed == FeedMode::Thin {
            return None;
        }
        self.ack.told = applied;
        self.ack.next_us = now.monotonic_us + ms(ACK_MS);
        Some(ClientFrame::Ack { applied })
    }
}

/// Servers name their endpoints without the room's path.
fn with_room(endpoint: &str, room: &str) -> String {
    if endpoint.contains("/rooms/") { endpoint.to_owned() } else { format!("{}/rooms/{room}", endpoint.trim_end_matches('/')) }
}
