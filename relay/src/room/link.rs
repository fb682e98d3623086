//! One client as the room sees it, all links by their ids, and the lists in which links stand. Small: most links are idle.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use voter_mesh::ids::{LogIndex, Opening, RequestId, SessionId, Time};

use crate::wire::{Code, FeedMode, Hello, PartialState, ResumePoint, WINDOW_MAX, WireReply};

use super::ClientState;

/// A link, named by the room's owner; never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct LinkId(pub u64);

/// Hashes the numbers that key the room's maps: the same on every machine, so that iteration order is too. None of them is chosen
/// by a client, so nobody can make them collide.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing; folded because the map takes its group from the top bits and its slot from the low ones.
        let product = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

/// A map keyed by a number of ours.
#[expect(clippy::disallowed_types, reason = "its order is fixed by the hasher above")]
pub(super) type NumberMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Where a link is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not admitted: its hello is awaited (until then) or waits in [`Link::pending`].
    Handshaking(Time),
    /// Admitted.
    Live,
    /// Its last frame is in the outbox.
    Closing(Code),
}

/// What waits for this server to come up, for old runs to be read, or for a state.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) what: Wanted,
    /// When it is given up, and what the client is told then; set once it turns out that it must wait.
    pub(super) until: Option<(Time, Code)>,
}

/// What a client asked for when it must wait.
#[derive(Debug)]
pub(super) enum Wanted {
    Hello(Box<Hello>),
    Resume {
        resume: Option<ResumePoint>,
        unanswered: Vec<RequestId>,
        partial: Option<PartialState>,
    },
    /// A snapshot: neither ring nor log reach back to where it stands.
    CatchUp {
        /// What it has of one.
        partial: Option<PartialState>,
        /// That one was asked for: if it did not come, another will do.
        asked: bool,
    },
}

/// What goes to a link besides control frames and replies.
#[derive(Clone, Debug)]
pub(super) enum Delivery {
    /// Nothing: a thin link, or one that waits.
    Nothing,
    /// `Commit`; this was the last one.
    Commit { sent: LogIndex },
    /// The feed, from this entry.
    Feed { cursor: LogIndex },
    /// A snapshot, from this byte; then the feed.
    Snapshot { state: Arc<ClientState>, offset: u64, progress: Time },
}

/// The session that a link speaks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkSession {
    pub(super) session: SessionId,
    /// What its proposals are laid out with; none before a reopened journal has attached.
    pub(super) opening: Option<Opening>,
}

/// A list in which a link stands at most once.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    /// Has something to write.
    Woken,
    /// A feed cursor whose turn in the pass is still to come.
    Passed,
    /// A feed cursor at the tail, as far as the last pass went.
    Parked,
    /// A standby link that knows the last announced commit.
    Standby,
    /// Has something pending.
    Waiting,
}

const LISTS: usize = 5;

#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: IpAddr,
    pub(super) phase: Phase,
    pub(super) mode: FeedMode,
    pub(super) delivery: Delivery,
    pub(super) pending: Option<Box<Pending>>,
    pub(super) session: Option<LinkSession>,
    /// Hash of the secret of a `SessionOpen` that is not answered yet.
    pub(super) opening: Option<Box<[u8; 32]>>,
    /// Nonce of a `SessionAttach` that is not answered yet.
    pub(super) attaching: Option<[u8; 16]>,
    /// Request ids that await an answer, ascending: they come and go mostly in their order.
    open: VecDeque<RequestId>,
    pub(super) outbox: VecDeque<Bytes>,
    pub(super) replies: Vec<WireReply>,
    /// Bytes of `outbox` and `replies`.
    pub(super) queued_bytes: usize,
    pub(super) fetches: VecDeque<(LogIndex, LogIndex)>,
    pub(super) reads: u32,
    pub(super) session_frames: u32,
    pub(super) session_frames_until: Time,
    pub(super) acked: LogIndex,
    pub(super) heard: Time,
    timer: Option<Time>,
    listed: [bool; LISTS],
}

impl Link {
    fn new(address: IpAddr, handshake_until: Time, now: Time) -> Self {
        Self {
            address,
            phase: Phase::Handshaking(handshake_until),
            mode: FeedMode::Thin,
            delivery: Delivery::Nothing,
            pending: None,
            session: None,
            opening: None,
            attaching: None,
            open: VecDeque::new(),
            outbox: VecDeque::new(),
            replies: Vec::new(),
            queued_bytes: 0,
            fetches: VecDeque::new(),
            reads: 0,
            session_frames: 0,
            session_frames_until: now,
            acked: LogIndex::ZERO,
            heard: now,
            timer: None,
            listed: [false; LISTS],
        }
    }

    pub(super) fn push_frame(&mut self, frame: Bytes) {
        self.queued_bytes += frame.len();
        self.outbox.push_back(frame);
    }

    pub(super) fn push_reply(&mut self, reply: WireReply) {
        if let Ok(at) = self.open.binary_search(&reply.id) {
            self.open.remove(at);
            if self.open.is_empty() && self.open.capacity() > 32 {
                self.open = VecDeque::new();
            }
        }
        self.queued_bytes += reply.wire_bytes_max();
        self.replies.push(reply);
    }

    /// Notes that a request awaits an answer; false if too many do.
    pub(super) fn expect(&mut self, id: RequestId) -> bool {
        let at = match self.open.back() {
            Some(last) if *last >= id => self.open.binary_search(&id),
            _ => Err(self.open.len()),
        };
        match at {
            Ok(_) => true,
            Err(_) if self.open.len() >= WINDOW_MAX => false,
            Err(at) => {
                self.open.insert(at, id);
                true
            }
        }
    }

    /// Requests that await an answer.
    pub(super) fn expected(&self) -> Vec<RequestId> {
        self.open.iter().copied().collect()
    }

    /// Whether it has asked for what only a leader can bring about.
    pub(super) fn awaits_leader(&self) -> bool {
        !self.open.is_empty() || self.reads > 0 || self.opening.is_some() || self.attaching.is_some()
    }

    pub(super) fn expect_nothing(&mut self) {
        self.open = VecDeque::new();
    }

    /// Drops all that waits to be written and all that would be.
    pub(super) fn silence(&mut self) {
        self.outbox = VecDeque::new();
        self.replies = Vec::new();
        self.queued_bytes = 0;
    }
}

/// All links.
#[derive(Debug, Default)]
pub(super) struct Links {
    map: NumberMap<LinkId, Box<Link>>,
    lists: [VecDeque<LinkId>; LISTS],
    timers: BTreeSet<(Time, LinkId)>,
}

impl Links {
    pub(super) fn insert(&mut self, id: LinkId, address: IpAddr, handshake_until: Time, now: Time) {
        self.map.insert(id, Box::new(Link::new(address, handshake_until, now)));
        self.arm(id, Some(handshake_until));
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Box<Link>> {
        self.arm(id, None);
        self.map.remove(&id)
    }

    pub(super) fn get(&mut self, id: LinkId) -> Option<&mut Link> {
        self.map.get_mut(&id).map(Box::as_mut)
    }

    pub(super) fn contains(&self, id: LinkId) -> bool {
        self.map.contains_key(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.map.iter().map(|(id, link)| (*id, link.as_ref()))
    }

    /// All ids, ascending.
    pub(super) fn ids(&self) -> Vec<LinkId> {
        let mut ids: Vec<_> = self.map.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Puts a link into a list, unless it stands there.
    pub(super) fn enlist(&mut self, list: List, id: LinkId) {
        let Some(link) = self.map.get_mut(&id) else { return };
        if std::mem::replace(&mut link.listed[list as usize], true) {
            return;
        }
        let ids = &mut self.lists[list as usize];
        ids.push_back(id);
        // Links that are gone leave their ids behind; they must not pile up where nothing takes from the list.
        if ids.len() > 2 * self.map.len() + 64 {
            ids.retain(|id| self.map.contains_key(id));
        }
    }

    pub(super) fn has(&self, list: List) -> bool {
        !self.lists[list as usize].is_empty()
    }

    /// Takes the first link off a list.
    pub(super) fn pop(&mut self, list: List) -> Option<LinkId> {
        while let Some(id) = self.lists[list as usize].pop_front() {
            if let Some(link) = self.map.get_mut(&id) {
                link.listed[list as usize] = false;
                return Some(id);
            }
        }
        None
    }

    /// How many ids stand in a list, those of links that are gone included.
    pub(super) fn listed(&self, list: List) -> usize {
        self.lists[list as usize].len()
    }

    /// Sets or clears the link's only timer.
    pub(super) fn arm(&mut self, id: LinkId, at: Option<Time>) {
        let Some(link) = self.map.get_mut(&id) else { return };
        if link.timer == at {
            return;
        }
        if let Some(old) = link.timer {
            self.timers.remove(&(old, id));
        }
        link.timer = at;
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    pub(super) fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a link whose timer is due.
    pub(super) fn pop_timer(&mut self, now: Time) -> Option<LinkId> {
        let (at, id) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(link) = self.map.get_mut(&id) {
            link.timer = None;
        }
        Some(id)
    }
}
