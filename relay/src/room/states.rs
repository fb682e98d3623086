//! States on their way to clients. The owner has them on its disk; here are only their names, and the pieces that links are being sent
//! just now. So a state of any size costs the same memory, and a client that reads slowly holds none of it.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use voter_mesh::ids::{Chain, LogIndex, Time};

use crate::wire::{Code, PartialState, SNAPSHOT_CHUNK_BYTES_MAX, ServerFrame, SnapshotChunk};

use super::link::{Delivery, LinkId};
use super::shelf::Shelf;
use super::{Room, RoomEvent, RoomLimits};

/// Bytes of a state that are read at once: four messages.
pub const STATE_PIECE_BYTES: usize = 4 * SNAPSHOT_CHUNK_BYTES_MAX;

/// A state as clients get it: where it stands, and how to know it. While anyone holds this value, the owner can read its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientState {
    /// The last entry in it: the end of a run.
    pub index: LogIndex,
    /// The chain after it.
    pub chain: Chain,
    /// SHA-256 of the bytes.
    pub hash: [u8; 32],
    /// How many there are.
    pub bytes: u64,
}

impl ClientState {
    /// Whether a client has a part of this very state, and may get the rest.
    fn continues(&self, partial: &PartialState) -> bool {
        (partial.index, partial.hash) == (self.index, self.hash) && partial.bytes < self.bytes
    }
}

/// The states at hand.
#[derive(Debug)]
pub(super) struct States {
    /// The latest one, until when it is kept though nobody reads it.
    kept: Option<(Arc<ClientState>, Time)>,
    keep_ms: u64,
    /// All that somebody reads.
    alive: Vec<Weak<ClientState>>,
    alive_max: usize,
    asked: bool,
    /// By state and offset.
    pub(super) pieces: Shelf<(LogIndex, u64), Bytes>,
}

impl States {
    pub(super) fn new(limits: &RoomLimits) -> Self {
        Self {
            kept: None,
            keep_ms: limits.state_keep_ms,
            alive: Vec::new(),
            alive_max: limits.states_max,
            asked: false,
            pieces: Shelf::new(limits.pieces_kept_max, limits.reading_max),
        }
    }

    pub(super) fn kept_until(&self) -> Option<Time> {
        self.kept.as_ref().map(|(_, until)| *until)
    }

    pub(super) fn expire(&mut self, now: Time) {
        self.kept.take_if(|(_, until)| *until <= now);
    }

    fn prune(&mut self) {
        self.alive.retain(|state| state.strong_count() > 0);
        let alive = &self.alive;
        self.pieces.retain(|(index, _)| alive.iter().filter_map(Weak::upgrade).any(|state| state.index == *index));
    }

    /// The newest state at hand that stands at `least` or later and that `wanted` takes.
    fn find(&self, least: LogIndex, wanted: impl Fn(&ClientState) -> bool) -> Option<Arc<ClientState>> {
        let states = self.alive.iter().rev().filter_map(Weak::upgrade);
        states.filter(|state| state.index >= least && wanted(state)).max_by_key(|state| state.index)
    }
}

impl Room {
    /// The state that [`RoomEvent::StateWanted`] asked for; none if there cannot be one now: whoever waits asks again, and is told to
    /// go elsewhere in the end.
    pub fn handle_state(&mut self, state: Option<Arc<ClientState>>, now: Time) {
        let states = &mut self.states;
        states.asked = false;
        if let Some(state) = state {
            if !states.alive.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&state))) {
                states.alive.push(Arc::downgrade(&state));
            }
            states.kept = Some((state, now.plus_ms(states.keep_ms)));
            self.revisit = true;
        }
    }

    /// The answer to [`RoomEvent::PieceWanted`]: [`STATE_PIECE_BYTES`], or what is left of the state. None if it cannot be read: the
    /// links that wait for it end, and the state is not offered again.
    pub fn handle_piece(&mut self, index: LogIndex, offset: u64, piece: Option<Bytes>, now: Time) {
        let left = self.states.find(index, |state| state.index == index).and_then(|state| state.bytes.checked_sub(offset));
        let piece = piece.filter(|piece| left.is_none_or(|left| piece.len() as u64 == left.min(STATE_PIECE_BYTES as u64)));
        let good = piece.is_some();
        self.counters.pieces_read += u64::from(good);
        for id in self.states.pieces.put((index, offset), piece) {
            let reads = self.links.get(id).is_some_and(|link| match &link.delivery {
                Delivery::Snapshot { state, .. } => state.index == index,
                _ => false,
            });
            if reads && !good {
                let retry = self.options.limits.retry_after_ms;
                let _ = self.close(id, Code::Overloaded, Some(retry), now);
            } else {
                self.wake_reader(id);
            }
        }
        if !good {
            self.states.alive.retain(|state| state.upgrade().is_some_and(|state| state.index != index));
            self.states.kept.take_if(|(state, _)| state.index == index);
        }
    }

    /// A state at hand behind which the feed can go on, and where to begin in it: best the one that the client has a part of.
    pub(super) fn usable_state(&mut self, partial: Option<PartialState>, any: bool, now: Time) -> Option<(Arc<ClientState>, u64)> {
        let least = self.first().previous();
        self.states.prune();
        let found = match partial {
            Some(partial) => match self.states.find(least, |state| state.continues(&partial)) {
                Some(state) => Some((state, partial.bytes)),
                None if any => self.states.find(least, |_| true).map(|state| (state, 0)),
                None => None,
            },
            None => self.states.find(least, |_| true).map(|state| (state, 0)),
        };
        if let (Some((state, _)), Some((kept, until))) = (&found, &mut self.states.kept)
            && Arc::ptr_eq(state, kept)
        {
            *until = now.plus_ms(self.states.keep_ms);
        }
        found
    }

    pub(super) fn want_state(&mut self, partial: Option<PartialState>) {
        self.states.prune();
        if !self.states.asked && self.states.alive.len() < self.states.alive_max {
            self.states.asked = true;
            self.events.push_back(RoomEvent::StateWanted { least: self.first().previous(), partial });
        }
    }

    /// The next message of a state, and where the one behind it begins; `None` if it has to be read first. An empty state is one
    /// empty message.
    pub(super) fn state_chunk(&mut self, state: &ClientState, offset: u64, id: LinkId) -> Option<(Bytes, u64)> {
        let bytes = if state.bytes == 0 {
            Bytes::new()
        } else {
            let within = (offset % STATE_PIECE_BYTES as u64) as usize;
            let place = (state.index, offset - within as u64);
            match self.states.pieces.get(place, |key, piece| *key == place && piece.len() > within) {
                Some(piece) => piece.slice(within..piece.len().min(within + SNAPSHOT_CHUNK_BYTES_MAX)),
                None => {
                    self.states.pieces.want(place, id);
                    return None;
                }
            }
        };
        let next = offset + bytes.len() as u64;
        let chunk = SnapshotChunk { index: state.index, chain: state.chain, offset, total: state.bytes, hash: state.hash, bytes };
        Some((ServerFrame::Snapshot(chunk).encode(), next))
    }
}
