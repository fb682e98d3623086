//! Which endpoint is dialled next, and when: round-robin, one quick round, then full jitter that never gives up.

use std::collections::VecDeque;

use super::{Randomness, ms};

/// Hints of closing servers that are remembered.
const HINTS_MAX: usize = 8;

/// The longest that a server's `retry_after` is honoured.
const RETRY_AFTER_MS_MAX: u64 = 60_000;

pub(super) struct Rotation {
    endpoints: Vec<String>,
    /// By endpoint: the server asked not to be dialled before.
    not_before_us: Vec<u64>,
    /// The next one to try.
    next: usize,
    /// Where closing servers said to go instead; each is tried once.
    hints: VecDeque<String>,
    /// Failures since a link last held.
    failures: u32,
    /// The back-off: no dial before.
    wait_until_us: u64,
    backoff_ms_base: u64,
    backoff_ms_max: u64,
}

impl Rotation {
    pub(super) fn new(endpoints: Vec<String>, start: usize, backoff_ms_base: u64, backoff_ms_max: u64) -> Self {
        let count = endpoints.len().max(1);
        Self {
            not_before_us: vec![0; endpoints.len()],
            endpoints,
            next: start % count,
            hints: VecDeque::new(),
            failures: 0,
            wait_until_us: 0,
            backoff_ms_base: backoff_ms_base.max(1),
            backoff_ms_max: backoff_ms_max.max(1),
        }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The endpoint to dial now, or when to ask again. Endpoints in use by another link come last.
    pub(super) fn pick(&mut self, in_use: &[&str], now_us: u64) -> Result<String, u64> {
        if now_us < self.wait_until_us {
            return Err(self.wait_until_us);
        }
        if let Some(hint) = self.hints.pop_front() {
            return Ok(hint);
        }
        let count = self.endpoints.len();
        let others = |at: &usize| !in_use.contains(&self.endpoints[*at].as_str());
        let order: Vec<usize> = (0..count).map(|step| (self.next + step) % count).collect();
        let mut candidates: Vec<usize> = order.iter().copied().filter(others).collect();
        if candidates.is_empty() {
            candidates = order;
        }
        if let Some(&at) = candidates.iter().find(|&&at| self.not_before_us[at] <= now_us) {
            self.next = (at + 1) % count;
            return Ok(self.endpoints[at].clone());
        }
        Err(candidates.iter().map(|&at| self.not_before_us[at]).min().unwrap_or(u64::MAX))
    }

    /// Dials this endpoint again before any other.
    pub(super) fn again(&mut self, endpoint: String) {
        self.hints.push_front(endpoint);
        self.hints.truncate(HINTS_MAX);
    }

    /// A closing server said where to go.
    pub(super) fn hint(&mut self, endpoints: Vec<String>) {
        for endpoint in endpoints {
            if self.hints.len() < HINTS_MAX && !self.hints.contains(&endpoint) {
                self.hints.push_back(endpoint);
            }
        }
    }

    /// A server asked to be left alone for a while.
    pub(super) fn retry_after(&mut self, endpoint: &str, retry_after_ms: Option<u32>, now_us: u64) {
        if let (Some(wait_ms), Some(at)) = (retry_after_ms, self.endpoints.iter().position(|known| known == endpoint)) {
            self.not_before_us[at] = now_us + ms(u64::from(wait_ms).min(RETRY_AFTER_MS_MAX));
        }
    }

    /// A dial failed, or its link did not hold. The first round over all endpoints is quick.
    pub(super) fn failed(&mut self, now_us: u64, randomness: &mut Randomness) {
        self.failures = self.failures.saturating_add(1);
        let quick = self.endpoints.len() as u32;
        if self.failures >= quick {
            let ceiling_ms = self.backoff_ms_base.saturating_mul(1 << (self.failures - quick).min(20)).min(self.backoff_ms_max);
            self.wait_until_us = now_us + randomness.below(ms(ceiling_ms));
        }
    }

    /// A link held and is lost: dial at once.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.wait_until_us = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::core::tests::randomness;

    fn three(start: usize) -> Rotation {
        Rotation::new(vec!["a".into(), "b".into(), "c".into()], start, 50, 5_000)
    }

    #[test]
    fn the_first_round_is_quick_and_later_ones_wait_with_jitter_up_to_the_ceiling() {
        let (mut rotation, mut randomness) = (three(1), randomness(1));
        let mut now = 0;
        for expected in ["b", "c", "a"] {
            assert_eq!(rotation.pick(&[], now).unwrap(), expected);
            rotation.failed(now, &mut randomness);
        }
        let mut longest = 0;
        for _ in 0..200 {
            if let Err(at) = rotation.pick(&[], now) {
                longest = longest.max(at - now);
                now = at;
                rotation.pick(&[], now).unwrap();
            }
            rotation.failed(now, &mut randomness);
        }
        assert!(longest > ms(2_500) && longest <= ms(5_000), "{longest}");
        rotation.reset();
        assert!(rotation.pick(&[], now).is_ok());
    }

    #[test]
    fn hints_come_first_and_a_server_that_asks_for_peace_gets_it() {
        let mut rotation = three(0);
        rotation.retry_after("a", Some(100), 0);
        assert_eq!(rotation.pick(&[], 0).unwrap(), "b");
        rotation.hint(vec!["d".into()]);
        assert_eq!(rotation.pick(&[], 0).unwrap(), "d");
        assert_eq!(rotation.pick(&["c"], 0).unwrap(), "b");
        rotation.retry_after("b", Some(300), 0);
        rotation.retry_after("c", Some(200), 0);
        assert_eq!(rotation.pick(&[], 0), Err(ms(100)));
        assert_eq!(rotation.pick(&[], ms(100)).unwrap(), "a");
    }
}
