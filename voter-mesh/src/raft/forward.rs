//! The forward book: every batch that this server took from its clients, until it is committed in the term that sealed it.
//!
//! The crate drops proposals silently; here nothing is dropped. A batch is parked while nobody leads, sent to whoever does, and
//! sent again when it was refused, when another leader rules, when the index it was promised went to another term, or when no
//! answer came. Sending twice is harmless: the session table finds the second one out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::entry::Entries;
use crate::ids::{LogIndex, Term, Time};
use crate::mesh::message::BatchId;
use crate::run::{RUN_BYTES_MAX, RunHeader, Tail};

/// How long a forwarded batch may stay unanswered before it is sent again.
const ANSWER_MS: u64 = 1_000;

/// Milliseconds after which a refused batch is tried again.
const RETRY_MS: u64 = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Waits for a leader, or for this time.
    Parked(Time),
    /// Given to the leader at this time; not answered.
    Sent(Time),
    /// Sealed in this term.
    Taken(Term),
}

struct Batch {
    entries: Bytes,
    place: Place,
    first: LogIndex,
}

#[derive(Default)]
pub(super) struct Book {
    batches: BTreeMap<BatchId, Batch>,
    taken: BTreeSet<(LogIndex, BatchId)>,
    bytes: usize,
    next: u64,
    parked: BTreeSet<BatchId>,
}

impl Book {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes laid-out entries, as batches that fit a run each.
    pub(super) fn add(&mut self, entries: &Bytes, now: Time) {
        let (mut from, mut to) = (0, 0);
        for entry in Entries::verified(entries).map_while(Result::ok) {
            let next = to + entry.bytes.len();
            if next - from > RUN_BYTES_MAX && to > from {
                self.add_batch(entries.slice(from..to), now);
                from = to;
            }
            to = next;
        }
        // What does not decode goes along: its leader refuses it.
        self.add_batch(entries.slice(from..), now);
    }

    fn add_batch(&mut self, entries: Bytes, now: Time) {
        self.next += 1;
        self.bytes += entries.len();
        self.parked.insert(BatchId(self.next));
        self.batches.insert(BatchId(self.next), Batch { entries, place: Place::Parked(now), first: LogIndex::ZERO });
    }

    /// What may be given to a leader now, in the order taken; it counts as sent.
    pub(super) fn take_due(&mut self, now: Time) -> Vec<(BatchId, Bytes)> {
        let mut due = Vec::new();
        let batches = &mut self.batches;
        self.parked.retain(|id| {
            let Some(batch) = batches.get_mut(id) else { return false };
            let waits = matches!(batch.place, Place::Parked(at) if at > now);
            if !waits {
                batch.place = Place::Sent(now);
                due.push((*id, batch.entries.clone()));
            }
            waits
        });
        due
    }

    fn park(&mut self, id: BatchId, at: Time) {
        if let Some(batch) = self.batches.get_mut(&id) {
            self.taken.remove(&(batch.first, id));
            self.parked.insert(id);
            batch.place = Place::Parked(at);
        }
    }

    /// A leader has sealed it. `committed`: the end of what is known to be committed, which may cover it already.
    pub(super) fn taken(&mut self, id: BatchId, term: Term, first: LogIndex, committed: &Tail) {
        if first <= committed.last && term == committed.term {
            return self.drop_batch(id);
        }
        if let Some(batch) = self.batches.get_mut(&id) {
            self.taken.remove(&(batch.first, id));
            self.parked.remove(&id);
            (batch.place, batch.first) = (Place::Taken(term), first);
            self.taken.insert((first, id));
        }
    }

    /// Whoever it was sent to does not seal it now.
    pub(super) fn refused(&mut self, id: BatchId, now: Time) {
        if self.batches.get(&id).is_some_and(|batch| matches!(batch.place, Place::Sent(_))) {
            self.park(id, now.plus_ms(RETRY_MS));
        }
    }

    /// It is committed, or its entries do not check and nobody will ever seal it.
    pub(super) fn drop_batch(&mut self, id: BatchId) {
        if let Some(batch) = self.batches.remove(&id) {
            self.parked.remove(&id);
            self.taken.remove(&(batch.first, id));
            self.bytes -= batch.entries.len();
        }
    }

    /// A run is committed: what was promised a place in it is done, or goes to the leader again.
    pub(super) fn committed(&mut self, run: &RunHeader, now: Time) {
        while let Some((first, id)) = self.taken.first().copied().filter(|(first, _)| *first <= run.last()) {
            self.taken.remove(&(first, id));
            let sealed_here = self.batches.get(&id).is_some_and(|batch| batch.place == Place::Taken(run.term));
            if sealed_here && first >= run.first {
                self.bytes -= self.batches.remove(&id).map_or(0, |batch| batch.entries.len());
            } else {
                self.park(id, now);
            }
        }
    }

    /// Another leader or another term: what is not sealed in this term goes to the leader again.
    pub(super) fn take_back(&mut self, term: Term, now: Time) {
        for (id, batch) in self.batches.iter_mut().filter(|(_, batch)| batch.place != Place::Taken(term)) {
            self.taken.remove(&(batch.first, *id));
            batch.place = Place::Parked(now);
            self.parked.insert(*id);
        }
    }

    /// A snapshot hides what was committed: everything goes to the leader again.
    pub(super) fn send_all_again(&mut self, now: Time) {
        self.taken.clear();
        self.parked = self.batches.keys().copied().collect();
        self.batches.values_mut().for_each(|batch| batch.place = Place::Parked(now));
    }

    /// What was given to a leader and not answered in time goes again.
    pub(super) fn tick(&mut self, now: Time) {
        self.take_back_unanswered(ANSWER_MS, now);
    }

    /// What was given to a leader more than so long ago, and not answered, goes again.
    pub(super) fn take_back_unanswered(&mut self, for_ms: u64, now: Time) {
        let late = |batch: &Batch| matches!(batch.place, Place::Sent(at) if now.since_us(at) >= for_ms * 1000);
        for (id, batch) in self.batches.iter_mut().filter(|(_, batch)| late(batch)) {
            batch.place = Place::Parked(now);
            self.parked.insert(*id);
        }
    }

    /// When a parked batch may be tried again.
    pub(super) fn next_due(&self) -> Option<Time> {
        let at = |id: &BatchId| match self.batches.get(id)?.place {
            Place::Parked(at) => Some(at),
            _ => None,
        };
        self.parked.iter().filter_map(at).min()
    }
}
