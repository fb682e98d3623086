//! The world of one simulated process: its clocks, its disk's pace, its part of the network, and what replaces its threads.
//!
//! Nothing here is a thread. What blocks in the product is a task that first waits for as long as a disk would take and then runs as a whole, so
//! a crash comes before it or after it, or at a deed in the middle of it ([`super::server`]).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cluster_server::disk::FileSystem;
use cluster_server::host::{Host, Listener, Step, Stream, Worker, WorkerHandle};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use voter_mesh::ids::{Time, TimeMs};

use super::disk::SimDisk;
use super::net::{Life, SimListener, SimNet};
use super::random::Random;

/// The wall clock's time when the world begins.
const BEGAN_UNIX_MS: i64 = 1_800_000_000_000;

/// Jobs that block at once.
const JOBS_MAX: usize = 5;

/// Steps that a worker may take when its owner is gone. It has been told to end.
const LAST_STEPS_MAX: usize = 10_000;

/// One machine's clocks. The monotonic one runs fast, slow or not at all; the wall clock is the same one, set to any time.
#[derive(Debug)]
pub struct SimClock {
    /// When its pace last changed, and what it showed then.
    since: Instant,
    shown_us: u64,
    /// Microseconds that it counts in a second.
    rate_ppm: u64,
    wall_ms: i64,
}

impl SimClock {
    /// A clock that is right.
    #[must_use]
    pub fn new() -> Self {
        // Not zero, which would be a time that nobody else has.
        Self { since: Instant::now(), shown_us: 1_000_000, rate_ppm: 1_000_000, wall_ms: BEGAN_UNIX_MS }
    }

    fn now_us(&self) -> u64 {
        self.shown_us + self.since.elapsed().as_micros() as u64 * self.rate_ppm / 1_000_000
    }

    /// From now on it counts so many microseconds in a second; 0 stops it.
    pub fn set_rate_ppm(&mut self, rate_ppm: u64) {
        (self.shown_us, self.since, self.rate_ppm) = (self.now_us(), Instant::now(), rate_ppm);
    }

    /// Sets the wall clock by this much.
    pub const fn jump_ms(&mut self, ms: i64) {
        self.wall_ms += ms;
    }

    fn now(&self) -> Time {
        let shown_us = self.now_us();
        Time { monotonic_us: shown_us, unix_ms: TimeMs((self.wall_ms + (shown_us / 1000) as i64).max(0) as u64) }
    }

    fn instant(&self, at: Time) -> Instant {
        let wait_us = at.monotonic_us.saturating_sub(self.now_us());
        // Of one that stands still, nobody knows: whoever waits looks again.
        let rate = if self.rate_ppm == 0 { 1_000_000 } else { self.rate_ppm };
        Instant::now() + Duration::from_micros((wait_us * 1_000_000).div_ceil(rate))
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

/// How long a disk takes for a piece of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskPace {
    /// At least and at most, in microseconds; 0 is at once.
    pub us: (u64, u64),
    /// Times this.
    pub slower: u64,
}

/// What a simulated process finds around it.
pub struct SimHost {
    net: SimNet,
    life: Arc<Life>,
    clock: Rc<RefCell<SimClock>>,
    disk: SimDisk,
    pace: Rc<Pace>,
    random: RefCell<Random>,
    jobs: Rc<Semaphore>,
}

struct Pace {
    now: Rc<Cell<DiskPace>>,
    random: RefCell<Random>,
}

impl Pace {
    async fn wait(&self) {
        let DiskPace { us: (least, most), slower } = self.now.get();
        let us = (least + self.random.borrow_mut().below(most - least + 1)) * slower;
        if us > 0 {
            sleep(Duration::from_micros(us)).await;
        }
    }
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHost").field("life", &self.life).finish_non_exhaustive()
    }
}

impl SimHost {
    /// The world of the process `life`.
    #[must_use]
    pub fn new(
        net: SimNet,
        life: Arc<Life>,
        clock: Rc<RefCell<SimClock>>,
        disk: SimDisk,
        pace: Rc<Cell<DiskPace>>,
        mut random: Random,
    ) -> Rc<Self> {
        let pace = Rc::new(Pace { now: pace, random: RefCell::new(Random::new(random.next())) });
        Rc::new(Self { net, life, clock, disk, pace, random: RefCell::new(random), jobs: Rc::new(Semaphore::new(JOBS_MAX)) })
    }
}

impl Host for SimHost {
    fn now(&self) -> Time {
        self.clock.borrow().now()
    }

    fn instant(&self, at: Time) -> Instant {
        self.clock.borrow().instant(at)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        let mut random = self.random.borrow_mut();
        for chunk in bytes.chunks_mut(8) {
            let drawn = random.next().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }

    fn files(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.disk.clone())
    }

    fn connect(&self, address: &str) -> LocalBoxFuture<'static, io::Result<Stream>> {
        let (net, life, address) = (self.net.clone(), Arc::clone(&self.life), address.parse());
        async move {
            let address: SocketAddr = address.map_err(|_| io::ErrorKind::InvalidInput)?;
            Ok(Box::new(net.connect(life, address).await?) as Stream)
        }
        .boxed_local()
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        // What a dead process leaves behind is of no more use.
        if self.life.is_dead() {
            return;
        }
        let (pace, jobs, life) = (Rc::clone(&self.pace), Rc::clone(&self.jobs), Arc::clone(&self.life));
        spawn_local(async move {
            let _turn = jobs.acquire().await;
            pace.wait().await;
            if !life.is_dead() {
                work();
            }
        });
    }

    fn start(&self, _: &str, worker: Box<dyn Worker>) -> io::Result<Box<dyn WorkerHandle>> {
        let shared = Rc::new(SharedWorker {
            worker: RefCell::new(Some(worker)),
            wake: Notify::new(),
            life: Arc::clone(&self.life),
            pace: Rc::clone(&self.pace),
        });
        spawn_local(work(Rc::clone(&shared)));
        Ok(Box::new(SimWorker(shared)))
    }
}

struct SharedWorker {
    worker: RefCell<Option<Box<dyn Worker>>>,
    wake: Notify,
    life: Arc<Life>,
    pace: Rc<Pace>,
}

impl SharedWorker {
    fn step(&self) -> Step {
        let mut worker = self.worker.borrow_mut();
        let step = worker.as_mut().filter(|_| !self.life.is_dead()).map_or(Step::Done, |worker| worker.step());
        if step == Step::Done {
            *worker = None;
        }
        step
    }
}

async fn work(shared: Rc<SharedWorker>) {
    loop {
        shared.pace.wait().await;
        match shared.step() {
            // Others have their turn.
            Step::Again => tokio::task::yield_now().await,
            Step::Wait(None) => shared.wake.notified().await,
            Step::Wait(Some(at)) => {
                let _ = tokio::time::timeout_at(at, shared.wake.notified()).await;
            }
            Step::Done => return,
        }
    }
}

struct SimWorker(Rc<SharedWorker>);

impl fmt::Debug for SimWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimWorker")
    }
}

impl WorkerHandle for SimWorker {
    fn wake(&self) {
        self.0.wake.notify_one();
    }
}

impl Drop for SimWorker {
    fn drop(&mut self) {
        for _ in 0..LAST_STEPS_MAX {
            if self.0.step() == Step::Done {
                self.0.wake.notify_one();
                return;
            }
        }
        panic!("a worker that was told to end does not");
    }
}

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address())
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>> {
        self.poll_next(cx).map(|accepted| accepted.map(|(stream, address)| (Box::new(stream) as Stream, address)))
    }
}
