//! Work that must not disturb: a writer that rests for as long as it takes to stay below its share of one core.
//!
//! It measures the thread's CPU time, not how long things took: time that the disk or another thread took is rest already. Nothing is
//! saved up, so that work never comes in a burst after a long wait.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time between two rests: short against the milliseconds in which a command is answered.
const SLICE: Duration = Duration::from_millis(2);

/// Bytes that are passed on between two looks at the clock.
const PIECE_BYTES: usize = 64 << 10;

/// Which share of a core a piece of work may take. Clones are the same: hurrying or stopping one does it to all.
#[derive(Clone, Debug)]
pub(crate) struct CpuShare {
    percent: u32,
    hurried: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl CpuShare {
    /// `percent` of one core; 0 or 100 and above: all of it.
    pub(crate) fn new(percent: u32) -> Self {
        Self { percent, hurried: Arc::new(AtomicBool::new(matches!(percent, 0 | 100..))), stopped: Arc::default() }
    }

    /// All of a core.
    pub(crate) fn whole() -> Self {
        Self::new(100)
    }

    /// From now on all of a core: somebody waits for this work.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Nobody wants what comes of this work any more: it fails at its next piece.
    pub(crate) fn stop(&self) {
        self.hurry();
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// How long to rest after so much CPU time in so much time.
    fn rest(&self, cpu: Duration, elapsed: Duration) -> Duration {
        if self.hurried.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        (cpu * 100 / self.percent).saturating_sub(elapsed)
    }
}

/// The clocks of the thread that works.
pub(crate) trait Pace {
    /// CPU time that this thread has used.
    fn cpu(&self) -> Duration;
    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;
    /// Does nothing for so long.
    fn rest(&mut self, time: Duration);
}

/// The real ones.
pub(crate) struct ThreadPace(Instant);

impl Pace for ThreadPace {
    fn cpu(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// A writer that rests between pieces, so that all that its thread does from one to the next stays within the share.
pub(crate) struct Throttled<W, P = ThreadPace> {
    to: W,
    share: CpuShare,
    pace: P,
    /// CPU time and time at the end of the last rest.
    since: (Duration, Duration),
}

impl<W> fmt::Debug for Throttled<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttled").field("share", &self.share).finish_non_exhaustive()
    }
}

impl<W: Write> Throttled<W> {
    /// Writes to `to`, on the thread that calls this.
    pub(crate) fn new(to: W, share: &CpuShare) -> Self {
        Self::paced(to, share, ThreadPace(Instant::now()))
    }
}

impl<W: Write, P: Pace> Throttled<W, P> {
    fn paced(to: W, share: &CpuShare, pace: P) -> Self {
        let since = (pace.cpu(), pace.elapsed());
        Self { to, share: share.clone(), pace, since }
    }
}

impl<W: Write, P: Pace> Write for Throttled<W, P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.share.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("the server is stopping"));
        }
        let written = self.to.write(bytes.get(..PIECE_BYTES).unwrap_or(bytes))?;
        let cpu = self.pace.cpu().saturating_sub(self.since.0);
        if cpu >= SLICE {
            let rest = self.share.rest(cpu, self.pace.elapsed().saturating_sub(self.since.1));
            if !rest.is_zero() {
                self.pace.rest(rest);
            }
            self.since = (self.pace.cpu(), self.pace.elapsed());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Clocks {
        cpu: Rc<Cell<Duration>>,
        elapsed: Rc<Cell<Duration>>,
        rests: Rc<Cell<u32>>,
    }

    impl Clocks {
        fn pass(&self, cpu: Duration, elapsed: Duration) {
            self.cpu.set(self.cpu.get() + cpu);
            self.elapsed.set(self.elapsed.get() + elapsed);
        }
    }

    impl Pace for Clocks {
        fn cpu(&self) -> Duration {
            self.cpu.get()
        }

        fn elapsed(&self) -> Duration {
            self.elapsed.get()
        }

        fn rest(&mut self, time: Duration) {
            self.rests.set(self.rests.get() + 1);
            self.pass(Duration::ZERO, time);
        }
    }

    /// Takes half a millisecond of CPU for each write, and `waits` on top.
    struct Slow {
        clocks: Clocks,
        waits: Duration,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let cpu = Duration::from_micros(500);
            self.clocks.pass(cpu, cpu + self.waits);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(share: &CpuShare, waits: Duration) -> Clocks {
        let clocks = Clocks::default();
        let mut to = Throttled::paced(Slow { clocks: clocks.clone(), waits }, share, clocks.clone());
        // One call, however large, is pieces.
        to.write_all(&vec![0; 1000 * PIECE_BYTES]).unwrap();
        clocks
    }

    #[test]
    fn it_rests_until_its_cpu_time_is_the_share_that_it_may_have() {
        let clocks = written(&CpuShare::new(30), Duration::ZERO);
        assert_eq!(clocks.cpu(), Duration::from_millis(500));
        assert!(clocks.elapsed() >= Duration::from_micros(1_666_000) && clocks.elapsed() < Duration::from_millis(1_700));
        assert_eq!(clocks.rests.get(), 250, "a short rest after each short slice");
        // What it waits for anyway counts as rest.
        let clocks = written(&CpuShare::new(30), Duration::from_millis(2));
        assert_eq!((clocks.elapsed(), clocks.rests.get()), (Duration::from_millis(2_500), 0));
    }

    #[test]
    fn it_does_not_rest_when_hurried_or_when_it_may_have_the_whole_core() {
        let share = CpuShare::new(30);
        share.clone().hurry();
        for share in [share, CpuShare::new(0), CpuShare::new(100)] {
            assert_eq!(written(&share, Duration::ZERO).rests.get(), 0);
        }
    }

    #[test]
    fn work_that_is_stopped_fails_at_its_next_piece() {
        let share = CpuShare::new(30);
        let mut to = Throttled::new(io::sink(), &share);
        to.write_all(&[0; 10]).unwrap();
        share.stop();
        assert!(to.write_all(&[0; 10]).is_err());
    }

    #[test]
    fn a_real_thread_stays_within_its_share() {
        let (pace, started) = (ThreadPace(Instant::now()), Instant::now());
        let before = pace.cpu();
        let mut to = Throttled::new(voter_mesh::snapshot::Hashing::new(io::sink()), &CpuShare::new(30));
        let bytes = vec![7; 1 << 20];
        while started.elapsed() < Duration::from_millis(300) {
            to.write_all(&bytes).unwrap();
        }
        let share = (pace.cpu() - before).as_secs_f64() / started.elapsed().as_secs_f64();
        assert!(share < 0.35, "{share}");
    }
}
