//! Clients of a simulated cluster: the product's own client, and raw ones that do what a well-behaved client never does.
//!
//! Each is a process on a host of its own, drives itself from its seed, writes what it asks and what it is told into the record, and
//! decides nothing about right and wrong. What no event can say (a client that closed for good, a journal that does not open) is a
//! complaint. A fleet goes through the run's phases: it makes trouble until the world has healed, calls until it is quiet, then
//! settles what it has open, and leaves when all is over.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use voter_mesh::ids::{LogIndex, Seat};

use super::random::Random;
use super::record::{ClientId, Phase};
use super::server::relay_address;
use super::world::World;

mod auditor;
mod crowd;
mod duplicate;
mod files;
mod host;
mod keys;
mod learner;
mod machine;
mod noise;
mod peer;
pub mod state;
mod trespasser;
mod worker;

use keys::Keys;
use machine::Machine;

/// The first host number of clients; servers have lower ones.
const FIRST_HOST: u16 = 1_000;

/// Which clients a run has. Numbers of 0 leave a kind out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Clients that put, delete, compare-and-set and read, in groups of up to eight that share a key at a time.
    pub workers: u32,
    /// Of a hundred workers, how many crash, stop and come back, again and again.
    pub crashing_percent: u64,
    /// Pairs of workers of which the second begins with a copy of the first one's journal.
    pub twins: u32,
    /// Clients that follow `committed_from`, quickly or slowly.
    pub learners: u32,
    /// Raw clients that send each proposal several times, on two links, in any order.
    pub duplicates: u32,
    /// Raw clients that let go and come back all at once.
    pub crowd: u32,
    /// Raw clients that follow the feed and hardly read.
    pub slow: u32,
    /// Senders of bytes that are no protocol.
    pub noise: u32,
    /// Raw clients that ask for room where there is none, and for a feed behind another history.
    pub trespassers: u32,
    /// Milliseconds between two calls of a worker: at least, at most.
    pub think_ms: (u64, u64),
    /// Calls on one key, all clients together, before the next key.
    pub key_calls_max: u32,
    /// Bytes of an ordinary value at most.
    pub value_bytes_max: u64,
}

impl Plan {
    /// A plan that `random` draws: every kind is in some seeds and not in others. `percent` of the usual number of workers.
    #[must_use]
    pub fn drawn(random: &mut Random, percent: u32, trespassers: u32) -> Self {
        let mut some = |most: u64| if random.below(3) == 0 { 0 } else { 1 + random.below(most) as u32 };
        let (twins, learners, duplicates, slow, noise) = (some(2), some(3), some(2), some(2), some(2));
        let crowd = if random.below(4) == 0 { 8 + random.below(24) as u32 } else { 0 };
        let least = [20, 80, 300][random.below(3) as usize];
        Self {
            workers: ((4 + random.below(9) as u32) * percent / 100).max(1),
            crashing_percent: [0, 20, 60][random.below(3) as usize],
            twins,
            learners,
            duplicates,
            crowd,
            slow,
            noise,
            trespassers,
            think_ms: (least, least * (2 + random.below(8))),
            key_calls_max: 60 + random.below(121) as u32,
            value_bytes_max: [16, 100, 4_000][random.below(3) as usize],
        }
    }
}

/// What all clients of a run share.
struct Shared {
    world: Rc<World>,
    /// Each server's listener for clients.
    servers: Vec<(Seat, SocketAddr)>,
    plan: Plan,
    /// Told by `Notify`, which wakes in order; a `watch` would draw who is first.
    phase: Cell<Phase>,
    phase_changed: Notify,
    /// Who may still write.
    writing: RefCell<BTreeSet<ClientId>>,
    /// Who has something open.
    unsettled: RefCell<BTreeSet<ClientId>>,
    settled: Notify,
    /// The highest index that anybody was told to be committed.
    highest: Cell<LogIndex>,
}

impl Shared {
    fn endpoint(&self, server: usize) -> String {
        format!("ws://{}/rooms/main", self.servers[server % self.servers.len()].1)
    }

    /// Some server.
    fn server(&self, machine: &Machine) -> usize {
        machine.below(self.servers.len() as u64) as usize
    }

    fn fault(&self, kind: &'static str, client: ClientId) {
        self.world.fault(kind, format!("client {}", client.0));
    }

    fn complain(&self, client: ClientId, what: impl fmt::Display) {
        self.world.wrong(format!("client {}: {what}", client.0));
    }

    fn saw(&self, index: LogIndex) {
        self.highest.set(self.highest.get().max(index));
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.get() >= phase
    }

    /// Waits for this phase or a later one.
    async fn reaches(&self, phase: Phase) {
        while !self.is(phase) {
            self.phase_changed.notified().await;
        }
    }

    /// This client writes no more.
    fn written(&self, client: ClientId) {
        self.writing.borrow_mut().remove(&client);
        self.phase_changed.notify_waiters();
    }

    /// Waits until nobody writes any more.
    async fn all_written(&self) {
        while !self.is(Phase::Quiet) || !self.writing.borrow().is_empty() {
            self.phase_changed.notified().await;
        }
    }

    /// This client is where it is to be at the end.
    fn settle(&self, client: ClientId) {
        self.written(client);
        self.unsettled.borrow_mut().remove(&client);
        self.settled.notify_one();
    }
}

/// All clients of a run.
pub struct Fleet {
    shared: Rc<Shared>,
    machines: Vec<Rc<Machine>>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("clients", &self.machines.len()).field("unsettled", &self.unsettled()).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Starts the clients of `plan`, one auditor for each server among them. To be called inside a `LocalSet`.
    #[must_use]
    pub fn start(world: &Rc<World>, plan: Plan) -> Self {
        let shared = Rc::new(Shared {
            world: Rc::clone(world),
            servers: world.machines().iter().map(|machine| (machine.seat, relay_address(machine.seat))).collect(),
            plan: plan.clone(),
            phase: Cell::new(Phase::Faults),
            phase_changed: Notify::new(),
            writing: RefCell::default(),
            unsettled: RefCell::default(),
            settled: Notify::new(),
            highest: Cell::default(),
        });
        let mut fleet = Self { shared, machines: Vec::new(), tasks: Vec::new() };
        let mut random = world.random();
        for server in 0..fleet.shared.servers.len() {
            fleet.add(&mut random, false, move |machine| auditor::main(machine, server));
        }
        let mut keys = None;
        for number in 0..plan.workers {
            if number % 8 == 0 {
                keys = Some(Keys::shared(number / 8, plan.key_calls_max));
            }
            let Some(keys) = &keys else { continue };
            let crashes = random.below(100) < plan.crashing_percent;
            fleet.add_worker(&mut random, crashes, keys, None);
        }
        for pair in 0..plan.twins {
            let keys = Keys::shared(1_000 + pair, plan.key_calls_max);
            let twins = worker::Twins::new();
            for copies in [false, true] {
                fleet.add_worker(&mut random, false, &keys, Some((Rc::clone(&twins), copies)));
            }
        }
        for _ in 0..plan.learners {
            let crashes = random.below(100) < plan.crashing_percent;
            fleet.add(&mut random, crashes, learner::main);
        }
        for _ in 0..plan.duplicates {
            let machine = fleet.add(&mut random, false, duplicate::main);
            fleet.shared.writing.borrow_mut().insert(machine);
        }
        for _ in 0..plan.slow {
            fleet.add(&mut random, false, crowd::slow);
        }
        for _ in 0..plan.noise {
            fleet.add(&mut random, false, noise::main);
        }
        let stampede = crowd::Stampede::new(&mut random);
        for _ in 0..plan.crowd {
            let stampede = Rc::clone(&stampede);
            fleet.add(&mut random, false, move |machine| crowd::main(machine, Rc::clone(&stampede)));
        }
        for _ in 0..plan.trespassers {
            fleet.add(&mut random, false, trespasser::main);
        }
        fleet
    }

    fn machine(&mut self, random: &mut Random, crashes: bool) -> Rc<Machine> {
        let number = self.machines.len() as u32 + 1;
        let host = super::net::host(FIRST_HOST + number as u16);
        let machine = Rc::new(Machine::new(ClientId(number), host, Rc::clone(&self.shared), Random::new(random.next()), crashes));
        self.shared.unsettled.borrow_mut().insert(machine.id);
        self.machines.push(Rc::clone(&machine));
        machine
    }

    fn add<F: Future<Output = ()> + 'static>(
        &mut self,
        random: &mut Random,
        crashes: bool,
        main: impl Fn(Rc<Machine>) -> F + 'static,
    ) -> ClientId {
        let machine = self.machine(random, crashes);
        let id = machine.id;
        self.tasks.push(spawn_local(machine::keep(machine, main)));
        id
    }

    fn add_worker(
        &mut self,
        random: &mut Random,
        crashes: bool,
        keys: &Rc<RefCell<Keys>>,
        twin: Option<(Rc<worker::Twins>, bool)>,
    ) {
        let machine = self.machine(random, crashes);
        self.shared.writing.borrow_mut().insert(machine.id);
        let worker = worker::Worker::new(Rc::clone(&machine), Rc::clone(keys), twin);
        self.tasks.push(spawn_local(worker::keep(worker)));
    }

    /// Where the clients are.
    #[must_use]
    pub fn hosts(&self) -> Vec<IpAddr> {
        self.machines.iter().map(|machine| machine.host).collect()
    }

    /// The run has come to this phase.
    pub fn enter(&self, phase: Phase) {
        self.shared.phase.set(phase);
        self.shared.phase_changed.notify_waiters();
    }

    /// Waits until everyone has settled, in or after [`Phase::Quiet`]: every call is answered, every learner is where the others are.
    pub async fn settled(&self) {
        while !self.shared.unsettled.borrow().is_empty() {
            self.shared.settled.notified().await;
        }
    }

    /// Who has not settled.
    #[must_use]
    pub fn unsettled(&self) -> Vec<ClientId> {
        self.shared.unsettled.borrow().iter().copied().collect()
    }

    /// Waits until all have left, after [`Phase::Over`].
    pub async fn gone(&mut self) {
        for task in self.tasks.drain(..) {
            // A panic is seen by whoever watches for panics.
            let _ = task.await;
        }
    }
}
