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
use crate::mutant;
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
    /// Bytes of the batches that are [`Place::Sent`].
    in_flight: usize,
    next: u64,
    parked: BTreeSet<BatchId>,
}

impl Book {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that were given to a leader and not answered.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
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

    /// What may be given to a leader now, in the order taken and as much as may be in flight; it counts as sent.
    pub(super) fn take_due(&mut self, in_flight_max: usize, now: Time) -> Vec<(BatchId, Bytes)> {
        let (mut due, mut from) = (Vec::new(), BatchId(0));
        while let Some(id) = self.parked.range(from..).next().copied() {
            from = BatchId(id.0 + 1);
            let Some(batch) = self.batches.get(&id).filter(|batch| !matches!(batch.place, Place::Parked(at) if at > now)) else {
                continue;
            };
            if !self.fits(batch, in_flight_max) {
                break;
            }
            let entries = batch.entries.clone();
            self.put(id, Place::Sent(now));
            due.push((id, entries));
        }
        due
    }

    /// Puts a batch elsewhere; false if it is not here.
    fn put(&mut self, id: BatchId, place: Place) -> bool {
        let Some(batch) = self.batches.get_mut(&id) else { return false };
        self.taken.remove(&(batch.first, id));
        self.parked.remove(&id);
        if matches!(batch.place, Place::Sent(_)) {
            self.in_flight -= batch.entries.len();
        }
        match place {
            Place::Parked(_) => _ = self.parked.insert(id),
            Place::Sent(_) => self.in_flight += batch.entries.len(),
            Place::Taken(_) => {}
        }
        batch.place = place;
        true
    }

    /// A leader has sealed it. `committed`: the end of what is known to be committed, which may cover it already.
    pub(super) fn taken(&mut self, id: BatchId, term: Term, first: LogIndex, committed: &Tail) {
        if first <= committed.last && term == committed.term {
            return self.drop_batch(id);
        }
        if self.put(id, Place::Taken(term)) {
            self.taken.insert((first, id));
            if let Some(batch) = self.batches.get_mut(&id) {
                batch.first = first;
            }
        }
    }

    /// Whoever it was sent to does not seal it now; whether it will be sent again.
    pub(super) fn refused(&mut self, id: BatchId, now: Time) -> bool {
        let was_sent = self.batches.get(&id).is_some_and(|batch| matches!(batch.place, Place::Sent(_)));
        was_sent && self.put(id, Place::Parked(now.plus_ms(RETRY_MS)))
    }

    /// It is committed, or its entries do not check and nobody will ever seal it.
    pub(super) fn drop_batch(&mut self, id: BatchId) {
        if self.put(id, Place::Taken(Term::ZERO)) {
            self.bytes -= self.batches.remove(&id).map_or(0, |batch| batch.entries.len());
        }
    }

    /// A run is committed: what was promised a place in it is done, or goes to the leader again.
    pub(super) fn committed(&mut self, run: &RunHeader, now: Time) {
        while let Some((first, id)) = self.taken.first().copied().filter(|(first, _)| *first <= run.last()) {
            let sealed_here = self.batches.get(&id).is_some_and(|batch| batch.place == Place::Taken(run.term));
            if sealed_here && first >= run.first {
                self.drop_batch(id);
            } else {
                self.put(id, Place::Parked(now));
            }
            self.taken.remove(&(first, id));
        }
    }

    /// Parks again what stands where `is_due` says.
    fn park_all(&mut self, now: Time, is_due: impl Fn(Place) -> bool) {
        let due: Vec<BatchId> = self.batches.iter().filter(|(_, batch)| is_due(batch.place)).map(|(id, _)| *id).collect();
        for id in due {
            self.put(id, Place::Parked(now));
        }
    }

    /// Another leader or another term: what is not sealed in this term goes to the leader again.
    pub(super) fn take_back(&mut self, term: Term, now: Time) {
        if mutant!("forwarded_once") {
            return;
        }
        self.park_all(now, |place| place != Place::Taken(term));
    }

    /// A snapshot hides what was committed: everything goes to the leader again.
    pub(super) fn send_all_again(&mut self, now: Time) {
        self.park_all(now, |_| true);
    }

    /// What was given to a leader and not answered in time goes again.
    pub(super) fn tick(&mut self, now: Time) {
        self.take_back_unanswered(ANSWER_MS, now);
    }

    /// What was given to a leader more than so long ago, and not answered, goes again.
    pub(super) fn take_back_unanswered(&mut self, for_ms: u64, now: Time) {
        self.park_all(now, |place| matches!(place, Place::Sent(at) if now.since_us(at) >= for_ms * 1000));
    }

    /// When a parked batch may be tried again, unless an answer must come first.
    pub(super) fn next_due(&self, in_flight_max: usize, now: Time) -> Option<Time> {
        let mut next = None;
        for batch in self.parked.iter().filter_map(|id| self.batches.get(id)) {
            let Place::Parked(at) = batch.place else { continue };
            if at <= now && !self.fits(batch, in_flight_max) {
                break;
            }
            next = Some(next.map_or(at, |next: Time| next.min(at)));
        }
        next
    }

    fn fits(&self, batch: &Batch, in_flight_max: usize) -> bool {
        self.in_flight == 0 || self.in_flight + batch.entries.len() <= in_flight_max
    }
}
