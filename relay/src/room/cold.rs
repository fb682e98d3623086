//! The feed below the ring: runs that the owner reads from its log, a chunk at a time, for whoever comes to them. A cursor walks from
//! chunk to chunk and then into the ring, without a gap or a repeat; while its next chunk is read it holds nothing but its place.

use bytes::Bytes;

use voter_mesh::ids::{LogIndex, Time};
use voter_mesh::run::{Run, Verdicts};

use crate::feed::{ChainAt, Feed, FeedLimits};

use super::link::{LinkId, List};
use super::{NOTHING_KEPT, Room};

/// What there is for a cursor.
pub(super) enum Framed {
    /// This message; then the cursor stands here.
    Message(Bytes, LogIndex),
    /// Nothing yet.
    End,
    /// It has to be read first: ask for it with [`Room::want_runs`].
    Unread,
    /// It is not kept any more.
    Gone,
}

/// What is known of a place in the history.
pub(super) enum PlaceAt {
    /// As the feed or a chunk says.
    Seen(ChainAt),
    /// The run behind it has to be read first.
    Unread,
}

impl Room {
    /// The log holds all runs from the one of `first` on, up to the ring, and knows their verdicts. May rise and fall; before it is
    /// said for the first time nothing below the ring is served but states.
    pub fn handle_kept(&mut self, first: LogIndex) {
        self.kept_first = first;
    }

    /// The answer to [`RoomEvent::RunsWanted`](super::RoomEvent): the runs from the one that holds `from` on, without a gap. None, if
    /// it cannot be read: say first with [`Room::handle_kept`] what can; otherwise nothing below the ring is served until it is said.
    pub fn handle_runs(&mut self, from: LogIndex, runs: Vec<(Run, Verdicts)>, _now: Time) {
        let chunk = self.chunk(runs);
        self.counters.chunks_read += u64::from(chunk.is_some());
        let holds = chunk.as_ref().is_some_and(|chunk| (chunk.first()..=chunk.tail().0).contains(&from));
        if !holds && self.kept_first <= from {
            // The log does not hold what it should: whoever comes again must not ask for the same for ever.
            self.kept_first = NOTHING_KEPT;
        }
        for id in self.runs.put(from, chunk.filter(|_| holds)) {
            self.wake_reader(id);
        }
    }

    fn chunk(&self, runs: Vec<(Run, Verdicts)>) -> Option<Feed> {
        let header = *runs.first()?.0.header();
        let limits = FeedLimits { feed_ring_bytes_max: usize::MAX, ..self.options.limits.feed };
        let mut chunk = Feed::new(limits, header.first.previous(), header.chain_before);
        for (run, verdicts) in runs {
            chunk.push(run, verdicts);
        }
        Some(chunk)
    }

    /// What a link waited for is there, or will not come.
    pub(super) fn wake_reader(&mut self, id: LinkId) {
        match self.links.get(id).map(|link| link.pending.is_some()) {
            Some(true) => {
                self.links.enlist(List::Waiting, id);
                self.revisit = true;
            }
            Some(false) => self.links.enlist(List::Woken, id),
            None => {}
        }
    }

    /// The first entry that can be served as feed, from ring or log.
    pub(super) fn first(&self) -> LogIndex {
        self.feed.first().min(self.kept_first)
    }

    /// The chunk that holds `index`, which must not be below what is kept.
    fn chunk_of(&mut self, index: LogIndex) -> Option<&mut Feed> {
        self.runs.get(index, |_, chunk| chunk.first() <= index && index <= chunk.tail().0)
    }

    /// The message for a cursor, as [`Feed::frame_at`].
    pub(super) fn frame_at(&mut self, kind: u8, cursor: LogIndex, last: LogIndex) -> Framed {
        let feed = if cursor >= self.feed.first() {
            &mut self.feed
        } else if cursor < self.kept_first {
            return Framed::Gone;
        } else {
            match self.chunk_of(cursor) {
                Some(chunk) => chunk,
                None => return Framed::Unread,
            }
        };
        match feed.frame_at(kind, cursor, last) {
            Ok(Some((message, next))) => Framed::Message(message, next),
            Ok(None) => Framed::End,
            Err(_) => Framed::Gone,
        }
    }

    /// The chain after the entry at `index`.
    pub(super) fn place_at(&mut self, index: LogIndex) -> PlaceAt {
        match self.feed.chain_at(index) {
            ChainAt::Below if index.next() >= self.kept_first => match self.chunk_of(index.next()) {
                Some(chunk) => PlaceAt::Seen(chunk.chain_at(index)),
                None => PlaceAt::Unread,
            },
            at => PlaceAt::Seen(at),
        }
    }

    /// A link waits for the runs from `from` on.
    pub(super) fn want_runs(&mut self, from: LogIndex, id: LinkId) {
        self.runs.want(from, id);
    }
}
