//! The verdict bits of the runs that a server keeps: one bit per log index, so that old runs can be served as feed blocks.
//!
//! Bits come from applying, and from files for what was applied before this process began; both are equal on every server. The book
//! covers one contiguous stretch and never guesses: an entry outside of it has no verdict, and its run is not served.

use std::collections::VecDeque;

use crate::ids::LogIndex;
use crate::run::Verdicts;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

/// Verdict bits of a stretch of entries. Bit `index % 8` of byte `index / 8` belongs to the entry at `index`.
#[derive(Clone, Debug)]
pub struct VerdictBook {
    bits: VecDeque<u8>,
    /// Which byte the front of `bits` is.
    front: u64,
    /// The entry before the first one that is covered.
    after: LogIndex,
    /// The last one that is covered.
    through: LogIndex,
    bytes_max: usize,
}

impl VerdictBook {
    /// Covers nothing; the next entry is the one behind `after`. Beyond `bytes_max` bytes of bits (eight entries each) the oldest go.
    #[must_use]
    pub fn new(after: LogIndex, bytes_max: usize) -> Self {
        Self { bits: VecDeque::new(), front: after.next().0 / 8, after, through: after, bytes_max }
    }

    /// The entry before the first one that is covered.
    #[must_use]
    pub const fn after(&self) -> LogIndex {
        self.after
    }

    /// The last entry that is covered; [`VerdictBook::after`] if none is.
    #[must_use]
    pub const fn through(&self) -> LogIndex {
        self.through
    }

    /// Adds the verdicts of the `count` entries from `first` on. If they do not follow the last ones, the book begins anew with them.
    pub fn push(&mut self, first: LogIndex, count: u32, verdicts: &Verdicts) {
        if first != self.through.next() {
            self.restart(first.previous());
        }
        for offset in 0..u64::from(count) {
            self.push_bit(first.0 + offset, verdicts.get(offset as usize));
        }
        self.through = first.plus(u64::from(count)).previous();
        self.bound();
    }

    fn push_bit(&mut self, index: u64, set: bool) {
        if self.bits.is_empty() || index.is_multiple_of(8) {
            self.bits.push_back(0);
        }
        if let Some(last) = self.bits.back_mut() {
            *last |= u8::from(set) << (index % 8);
        }
    }

    /// Adds the entries up to `through`, as [`VerdictBook::copy`] gave them. False, and nothing is changed, if the bytes are not as
    /// many as those entries have.
    #[must_use]
    pub fn append(&mut self, through: LogIndex, bytes: &[u8]) -> bool {
        if through < self.through || bytes.len() != span_bytes(self.through, through) {
            return false;
        }
        if through > self.through {
            // The first byte may hold the end of what is already here.
            let shared = !self.bits.is_empty() && !self.through.next().0.is_multiple_of(8);
            if let (true, Some(last), Some(first)) = (shared, self.bits.back_mut(), bytes.first()) {
                *last |= first;
            }
            self.bits.extend(bytes.iter().skip(usize::from(shared)));
            self.through = through;
            self.bound();
        }
        true
    }

    /// Adds all that `behind` covers. If that does not follow what is here, it takes its place.
    pub fn extend(&mut self, behind: Self) {
        let bytes = behind.copy(self.through, behind.through);
        if !bytes.is_some_and(|bytes| self.append(behind.through, &bytes)) {
            *self = behind;
        }
    }

    /// The bits of the entries behind `after` up to `through`, in whole bytes as they lie here, with those of no entry among them
    /// clear; `None` unless all are covered.
    #[must_use]
    pub fn copy(&self, after: LogIndex, through: LogIndex) -> Option<Vec<u8>> {
        if after < self.after || through > self.through || after > through {
            return None;
        }
        let from = (after.next().0 / 8).checked_sub(self.front)? as usize;
        let mut bytes: Vec<u8> = self.bits.range(from.min(self.bits.len())..).take(span_bytes(after, through)).copied().collect();
        if let Some(first) = bytes.first_mut() {
            *first &= 0xff << (after.next().0 % 8);
        }
        if let Some(last) = bytes.last_mut() {
            *last &= 0xff >> (7 - through.0 % 8);
        }
        Some(bytes)
    }

    /// The verdicts of the `count` entries from `first` on; `None` unless all are covered.
    #[must_use]
    pub fn get(&self, first: LogIndex, count: u32) -> Option<Verdicts> {
        if first <= self.after || first.plus(u64::from(count)).previous() > self.through {
            return None;
        }
        let mut verdicts = Verdicts::clear(count);
        for offset in 0..u64::from(count) {
            let index = first.0 + offset;
            let byte = self.bits.get((index / 8 - self.front) as usize)?;
            if byte >> (index % 8) & 1 == 1 {
                verdicts.set(offset as usize);
            }
        }
        Some(verdicts)
    }

    /// Covers nothing any more; the next entry is the one behind `after`.
    pub fn restart(&mut self, after: LogIndex) {
        *self = Self::new(after, self.bytes_max);
    }

    /// Forgets the entries below `first`.
    pub fn trim(&mut self, first: LogIndex) {
        self.after = self.after.max(first.previous().min(self.through));
        while !self.bits.is_empty() && self.front < self.after.next().0 / 8 {
            self.bits.pop_front();
            self.front += 1;
        }
    }

    fn bound(&mut self) {
        let excess = self.bits.len().saturating_sub(self.bytes_max);
        if excess > 0 {
            self.trim(LogIndex((self.front + excess as u64) * 8));
        }
    }
}

/// Bytes in which the bits of the entries behind `after` up to `through` lie.
#[must_use]
pub const fn span_bytes(after: LogIndex, through: LogIndex) -> usize {
    if after.0 >= through.0 { 0 } else { (through.0 / 8 - after.next().0 / 8 + 1) as usize }
}
