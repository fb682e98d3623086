//! What the room has read for it, kept for all links that come to the same place: chunks of old runs, pieces of a state. Bounded in
//! number; the one that was not used for longest goes first. A link that waits costs an id; a chunk costs one read however many wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::link::LinkId;

#[derive(Debug)]
struct Item<V> {
    value: V,
    used: u64,
}

/// Values by the place where they begin.
#[derive(Debug)]
pub(super) struct Shelf<K, V> {
    items: BTreeMap<K, Item<V>>,
    items_max: usize,
    /// Links by the place that they wait for.
    waiting: BTreeMap<K, BTreeSet<LinkId>>,
    /// Places that nobody reads yet, in the order in which they were asked for.
    queue: VecDeque<K>,
    reading: BTreeSet<K>,
    reading_max: usize,
    /// Counts uses.
    clock: u64,
}

impl<K: Ord + Copy, V> Shelf<K, V> {
    pub(super) fn new(items_max: usize, reading_max: usize) -> Self {
        Self {
            items: BTreeMap::new(),
            items_max: items_max.max(1),
            waiting: BTreeMap::new(),
            queue: VecDeque::new(),
            reading: BTreeSet::new(),
            reading_max: reading_max.max(1),
            clock: 0,
        }
    }

    /// The last value that begins at or before `place`, if it covers it.
    pub(super) fn get(&mut self, place: K, covers: impl Fn(&K, &V) -> bool) -> Option<&mut V> {
        self.clock += 1;
        let (key, item) = self.items.range_mut(..=place).next_back()?;
        if !covers(key, &item.value) {
            return None;
        }
        item.used = self.clock;
        Some(&mut item.value)
    }

    /// Notes that a link waits for what is at `place`.
    pub(super) fn want(&mut self, place: K, link: LinkId) {
        self.waiting.entry(place).or_insert_with(|| {
            if !self.reading.contains(&place) {
                self.queue.push_back(place);
            }
            BTreeSet::new()
        });
        if let Some(links) = self.waiting.get_mut(&place) {
            links.insert(link);
        }
    }

    /// Whether there may be a place to be read.
    pub(super) fn asks(&self) -> bool {
        !self.queue.is_empty() && self.reading.len() < self.reading_max
    }

    /// The next place to be read, unless enough are. Places for which no living link waits are passed over.
    pub(super) fn poll(&mut self, lives: impl Fn(LinkId) -> bool) -> Option<K> {
        if self.reading.len() >= self.reading_max {
            return None;
        }
        while let Some(place) = self.queue.pop_front() {
            if self.waiting.get(&place).is_some_and(|links| links.iter().any(|link| lives(*link))) {
                self.reading.insert(place);
                return Some(place);
            }
            self.waiting.remove(&place);
        }
        None
    }

    /// What was read for `place`; nothing if it cannot be. The links that waited for it.
    pub(super) fn put(&mut self, place: K, value: Option<V>) -> BTreeSet<LinkId> {
        self.reading.remove(&place);
        if let Some(value) = value {
            self.clock += 1;
            self.items.insert(place, Item { value, used: self.clock });
            while self.items.len() > self.items_max
                && let Some(oldest) = self.items.iter().min_by_key(|(_, item)| item.used).map(|(key, _)| *key)
            {
                self.items.remove(&oldest);
            }
        }
        self.waiting.remove(&place).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Drops all that is kept; what is being read will still come.
    pub(super) fn clear(&mut self) {
        self.items.clear();
    }

    /// Drops what `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.items.retain(|key, _| keep(key));
    }
}
