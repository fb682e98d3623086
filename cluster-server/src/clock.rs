//! The world's clocks, read in one place.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use voter_mesh::ids::{Time, TimeMs};

/// Turns the machine's clocks into the cores' [`Time`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// The present. A wall clock before 1970 counts as 1970.
    pub(crate) fn now(&self) -> Time {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { monotonic_us: self.origin.elapsed().as_micros() as u64, unix_ms: TimeMs(unix.as_millis() as u64) }
    }

    /// When a core's time comes, as the runtime counts.
    pub(crate) fn instant(&self, at: Time) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.origin + std::time::Duration::from_micros(at.monotonic_us))
    }
}
