//! One link: how far its handshake is, what it was asked and what it waits to say, and when it was last heard.

use std::collections::VecDeque;

use relay::wire::{Code, FeedMode, SessionProof, WireLimits};
use voter_mesh::ids::{LogIndex, RaftId, Time};

use super::ms;
use super::session::Attach;

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
pub(super) enum Phase {
    Dialing,
    Greeting,
    Admitted { server: RaftId, since_us: u64, limits: WireLimits },
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) endpoint: String,
    pub(super) phase: Phase,
    /// Dialled or greeting: when that must be over.
    pub(super) handshake_by_us: u64,
    pub(super) say: VecDeque<Say>,
    /// What the server was last asked to feed.
    pub(super) mode: FeedMode,
    /// The feed has begun: blocks and snapshot pieces may come.
    pub(super) feeding: bool,
    /// What the hello said of the session.
    pub(super) proved: Option<SessionProof>,
    /// The hello named the epoch of what this client holds.
    pub(super) claims_epoch: bool,
    pub(super) session: LinkSession,
    /// When an unanswered question about the session is asked again.
    pub(super) ask_again_us: Option<u64>,
    pub(super) heard_us: u64,
    pub(super) sent_us: u64,
    pub(super) pinged_us: u64,
    /// The first thing sent since something was heard.
    pub(super) expecting_since_us: Option<u64>,
    /// A ping that only asks whether the link lives.
    pub(super) probed_us: Option<u64>,
}

impl Link {
    pub(super) fn new(endpoint: String, mode: FeedMode, handshake_by_us: u64) -> Self {
        Self {
            endpoint,
            phase: Phase::Dialing,
            handshake_by_us,
            say: VecDeque::new(),
            mode,
            feeding: false,
            proved: None,
            claims_epoch: false,
            session: LinkSession::Unknown,
            ask_again_us: None,
            heard_us: 0,
            sent_us: 0,
            pinged_us: 0,
            expecting_since_us: None,
            probed_us: None,
        }
    }

    pub(super) fn up(&mut self) {
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

    pub(super) fn sent(&mut self, now: Time) {
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

    pub(super) fn limits(&self) -> Option<WireLimits> {
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
    pub(super) fn session_refused(&mut self, again_us: u64, code: Code) {
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

    pub(super) fn ping_us(&self) -> Option<u64> {
        self.limits().map(|limits| ms(u64::from(limits.ping_ms).clamp(*PING_MS.start(), *PING_MS.end())))
    }

    pub(super) fn ping_at_us(&self) -> Option<u64> {
        self.ping_us().map(|ping| self.heard_us.min(self.sent_us).max(self.pinged_us) + ping)
    }

    pub(super) fn dead_at_us(&self) -> Option<u64> {
        self.ping_us().map(|ping| self.heard_us + 2 * ping)
    }
}
