//! One client's machine: its disk, and the processes that run on it one after the other.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use super::host::ClientHost;
use crate::sim::disk::{Deed, DiskState, SimDisk};
use crate::sim::net::{Death, Life};
use crate::sim::process::Process;
use crate::sim::random::Random;
use crate::sim::record::{ClientId, LearnerId, Phase, What};

/// How long a process that will crash lives at least and at most.
const UP_MS: (u64, u64) = (500, 20_000);

/// How long it is down: most often so short that its session lives.
const DOWN_MS: [(u64, u64); 4] = [(10, 500), (10, 4_000), (10, 8_000), (8_000, 30_000)];

/// Deeds of its disk after which a crash may strike, and how long it waits for them.
const DEEDS_MAX: u64 = 6;
const DEEDS_MS_MAX: u64 = 400;

/// What a disk held when its process died of one of its deeds.
type Stump = Arc<Mutex<Option<DiskState>>>;

pub(super) struct Machine {
    pub(super) id: ClientId,
    pub(super) shared: Rc<Shared>,
    pub(super) disk: RefCell<SimDisk>,
    pub(super) host: IpAddr,
    random: RefCell<Random>,
    crashes: bool,
    learners: Cell<u32>,
    life: RefCell<Arc<Life>>,
}

impl Machine {
    pub(super) fn new(id: ClientId, host: IpAddr, shared: Rc<Shared>, random: Random, crashes: bool) -> Self {
        let life = RefCell::new(Life::new(0, host));
        let (disk, random) = (RefCell::new(SimDisk::new()), RefCell::new(random));
        Self { id, shared, disk, host, random, crashes, learners: Cell::new(0), life }
    }

    pub(super) fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().below(end)
    }

    /// One of these, both ends included.
    pub(super) fn between(&self, (least, most): (u64, u64)) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(super) fn one_of<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub(super) async fn sleep_ms(&self, range: (u64, u64)) {
        sleep(Duration::from_millis(self.between(range))).await;
    }

    /// A generator of its own.
    pub(super) fn random(&self) -> Random {
        Random::new(self.random.borrow_mut().next())
    }

    /// The process that runs.
    pub(super) fn life(&self) -> Arc<Life> {
        Arc::clone(&self.life.borrow())
    }

    /// The process's world.
    pub(super) fn client_host(&self) -> Arc<ClientHost> {
        ClientHost::new(self.shared.world.net.clone(), self.life(), self.random())
    }

    /// A name for another learner or stream.
    pub(super) fn learner(&self) -> LearnerId {
        self.learners.set(self.learners.get() + 1);
        LearnerId(self.id, self.learners.get())
    }

    /// Starts a process.
    pub(super) fn start(&self, main: impl Future<Output = ()> + 'static, life: Arc<Life>) -> Process {
        Process::start(self.shared.world.net.clone(), life, async move {
            main.await;
            "done".to_owned()
        })
    }

    /// The next process's life.
    pub(super) fn next_life(&self) -> Arc<Life> {
        let life = Life::new(self.shared.world.next_life(), self.host);
        *self.life.borrow_mut() = Arc::clone(&life);
        self.shared.world.recorder.record(What::ClientStarted { client: self.id });
        life
    }

    /// Ends a process as a crash does, often in the middle of what its disk does, and waits for as long as the machine is down.
    pub(super) async fn crash(&self, process: &Process) {
        let death = if self.below(2) == 0 { Death::Killed } else { Death::PowerLost };
        let stump = Stump::default();
        if self.below(2) == 0 {
            self.die_at_deed(process, &stump);
            self.sleep_ms((0, DEEDS_MS_MAX)).await;
        }
        let state = stump.lock().unwrap_or_else(PoisonError::into_inner).take();
        process.kill(death).await;
        self.shared.fault(if death == Death::Killed { "client_killed" } else { "client_power_lost" }, self.id);
        let state = state.unwrap_or_else(|| self.disk.borrow().state());
        let state = if death == Death::Killed { state } else { state.after_power_cut(&mut self.random()) };
        *self.disk.borrow_mut() = SimDisk::on(state);
        // It is back when the world is whole again.
        tokio::select! {
            biased;
            () = self.sleep_ms(self.one_of(&DOWN_MS)) => {}
            () = self.shared.reaches(Phase::Healed) => {}
        }
        self.shared.world.net.power_on(self.host);
    }

    /// From one of the disk's next deeds on, nothing of the process reaches anybody; what its disk holds then is kept.
    fn die_at_deed(&self, process: &Process, stump: &Stump) {
        let (life, stump, mut left) = (Arc::clone(&process.life), Arc::clone(stump), self.below(DEEDS_MAX));
        self.disk.borrow().observe(Some(Box::new(move |state: &DiskState, _: Deed| {
            if left == 0 && !life.is_dead() {
                life.end();
                *stump.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.clone());
            }
            left = left.saturating_sub(1);
        })));
    }

    /// Waits for ever in a process that has died: what it still does until its tasks are gone, nobody sees.
    pub(super) async fn alive(&self) {
        if self.life.borrow().is_dead() {
            std::future::pending().await
        }
    }

    /// Stops a process for a while.
    pub(super) async fn pause(&self, process: &Process) {
        process.stop(true);
        self.shared.fault("client_paused", self.id);
        self.sleep_ms((100, 15_000)).await;
        process.stop(false);
    }

    /// Waits until trouble is due; for ever, if none is planned or the world has healed.
    pub(super) async fn trouble(&self) {
        if self.crashes && !self.shared.is(Phase::Healed) {
            self.sleep_ms(UP_MS).await;
            if !self.shared.is(Phase::Healed) {
                return;
            }
        }
        std::future::pending().await
    }
}

/// Runs `main` until it returns, through all the trouble that its machine is in.
pub(super) async fn keep<F: Future<Output = ()> + 'static>(machine: Rc<Machine>, main: impl Fn(Rc<Machine>) -> F) {
    loop {
        let life = machine.next_life();
        let process = machine.start(main(Rc::clone(&machine)), life);
        loop {
            tokio::select! {
                biased;
                () = process.gone() => return,
                () = machine.trouble() => {}
            }
            if machine.below(4) > 0 {
                machine.crash(&process).await;
                break;
            }
            machine.pause(&process).await;
        }
    }
}
