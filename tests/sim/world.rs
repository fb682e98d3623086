//! A cluster on simulated machines, and what can be done to it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use cluster_server::{Phase as ServerPhase, ServerStatus};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use voter_mesh::ids::{RaftId, Seat};
use voter_mesh::mesh::codec::{MeshMessage, decode};

use super::frames::hello;
use super::net::{Death, SimNet, Tapped};
use super::random::Random;
use super::record::{End, Recorder, What};
use super::scenario::Scenario;
use super::server::Machine;

/// How long a machine waits before it starts a server again that ended by itself.
const RESTART_MS: u64 = 500;

/// How long a server may take to say how it is.
const STATUS_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at servers that are waited for.
const LOOK: Duration = Duration::from_millis(100);

/// A cluster and all that is around it.
pub struct World {
    /// What it is like.
    pub scenario: Scenario,
    /// What connects it.
    pub net: SimNet,
    /// What is written down of it.
    pub recorder: Recorder,
    machines: RefCell<BTreeMap<Seat, Rc<Machine>>>,
    random: RefCell<Random>,
    lives: Cell<u64>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    /// Machines that are to stay off, or whose servers may end by themselves.
    off: RefCell<BTreeSet<Seat>>,
    /// States of a disk from which a server was started.
    crash_states: Cell<u64>,
    wrong: RefCell<Vec<String>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("scenario", &self.scenario).finish_non_exhaustive()
    }
}

impl World {
    /// The world of a scenario, with its servers starting.
    #[must_use]
    pub fn new(scenario: Scenario, recorder: Recorder) -> Rc<Self> {
        let mut random = Random::new(scenario.seed);
        let net = SimNet::new(random.next(), scenario.rules, scenario.buffer_bytes);
        spawn_local(net.clone().run());
        net.set_tap(tap(recorder.clone()));
        let world = Rc::new(Self {
            net,
            recorder,
            machines: RefCell::default(),
            random: RefCell::new(random),
            lives: Cell::new(0),
            faults: RefCell::default(),
            off: RefCell::default(),
            crash_states: Cell::new(0),
            wrong: RefCell::default(),
            scenario,
        });
        for seat in (1..=world.scenario.voters).map(Seat) {
            world.add_machine(seat);
            world.start(seat);
        }
        world
    }

    /// A number that the seed decides, below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().below(end)
    }

    /// A generator of its own for whoever needs one.
    pub fn random(&self) -> Random {
        Random::new(self.random.borrow_mut().next())
    }

    /// Numbers a process.
    pub fn next_life(&self) -> u64 {
        self.lives.set(self.lives.get() + 1);
        self.lives.get()
    }

    /// Puts a machine for a seat there, off and empty.
    pub fn add_machine(&self, seat: Seat) -> Rc<Machine> {
        let machine = Machine::new(seat, self.net.clone(), self.scenario.pace, self.random());
        self.machines.borrow_mut().insert(seat, Rc::clone(&machine));
        machine
    }

    /// The machine of a seat.
    #[must_use]
    pub fn machine(&self, seat: Seat) -> Option<Rc<Machine>> {
        self.machines.borrow().get(&seat).cloned()
    }

    /// All machines.
    #[must_use]
    pub fn machines(&self) -> Vec<Rc<Machine>> {
        self.machines.borrow().values().cloned().collect()
    }

    /// The addresses of all machines.
    #[must_use]
    pub fn hosts(&self) -> Vec<IpAddr> {
        self.machines.borrow().values().map(|machine| machine.host).collect()
    }

    /// Something was done to the system.
    pub fn fault(&self, kind: &'static str, detail: String) {
        *self.faults.borrow_mut().entry(kind).or_default() += 1;
        self.recorder.record(What::Fault { kind, detail });
    }

    /// What was done to it so far, by kind, the network's part included.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        let mut faults = self.net.faults();
        self.faults.borrow().iter().for_each(|(kind, times)| *faults.entry(kind).or_default() += times);
        faults
    }

    /// States of a disk from which a server was started after its end.
    #[must_use]
    pub fn crash_states(&self) -> u64 {
        self.crash_states.get()
    }

    /// Something is wrong that no checker sees.
    pub fn wrong(&self, what: String) {
        self.wrong.borrow_mut().push(what);
    }

    /// What is wrong so far.
    #[must_use]
    pub fn wrongs(&self) -> Vec<String> {
        self.wrong.borrow().clone()
    }

    /// Starts a seat's server if it does not run. When it ends by itself, it is started again.
    pub fn start(self: &Rc<Self>, seat: Seat) {
        let Some(machine) = self.machine(seat).filter(|machine| machine.running().is_none()) else { return };
        self.off.borrow_mut().remove(&seat);
        let running = match machine.start(self.next_life(), self.scenario.server(seat)) {
            Ok(running) => running,
            Err(error) => return self.wrong(format!("seat {seat} cannot be started: {error}")),
        };
        self.crash_states.set(self.crash_states.get() + u64::from(machine.starts() > 1));
        self.recorder.record(What::Started { server: seat, life: machine.starts() });
        let world = Rc::clone(self);
        spawn_local(async move {
            running.process.gone().await;
            let Some(why) = running.process.exit() else { return };
            world.recorder.record(What::Ended { server: seat, how: End::Itself(why) });
            // The process is gone, its machine goes on.
            machine.kill(Death::Killed).await;
            sleep(Duration::from_millis(RESTART_MS)).await;
            if !world.off.borrow().contains(&seat) {
                world.start(seat);
            }
        });
    }

    /// Ends a seat's server. It stays down until [`World::start`].
    pub async fn kill(&self, seat: Seat, death: Death) {
        let Some(machine) = self.machine(seat) else { return };
        self.off.borrow_mut().insert(seat);
        if machine.running().is_some() {
            let how = match death {
                Death::Killed => End::Killed,
                Death::PowerLost => End::PowerCut,
            };
            machine.kill(death).await;
            self.recorder.record(What::Ended { server: seat, how });
        }
    }

    /// What a seat's server says of itself; `None` where none answers.
    pub async fn status(&self, seat: Seat, hashes: bool) -> Option<ServerStatus> {
        let running = self.machine(seat)?.running()?;
        let status = timeout(STATUS_WAIT, running.handle.status(hashes)).await.ok()?.ok()?;
        self.recorder.record(What::Status { server: seat, status: Box::new(status.clone()) });
        Some(status)
    }

    /// What all servers say of themselves, as far as they answer.
    pub async fn statuses(&self, hashes: bool) -> Vec<ServerStatus> {
        let mut statuses = Vec::new();
        for machine in self.machines() {
            statuses.extend(self.status(machine.seat, hashes).await);
        }
        statuses
    }

    /// Waits for a server that leads, at most this long.
    pub async fn leader(&self, within: Duration) -> Option<ServerStatus> {
        let end = Instant::now() + within;
        loop {
            let statuses = self.statuses(false).await;
            let leading = statuses.into_iter().filter(|status| status.phase == ServerPhase::Leading);
            if let Some(leader) = leading.max_by_key(|status| status.term) {
                return Some(leader);
            }
            if Instant::now() >= end {
                return None;
            }
            sleep(LOOK).await;
        }
    }
}

/// Writes down every message between members.
fn tap(recorder: Recorder) -> Box<dyn FnMut(&Tapped<'_>) + Send> {
    // Of each process on a connection, its raft id.
    let mut ids: BTreeMap<(u64, u64), Option<RaftId>> = BTreeMap::new();
    Box::new(move |tapped| {
        if let Some((_, id, _)) = hello(tapped.frame) {
            ids.insert((tapped.connection, tapped.from.number), id);
            // Older connections than this are hardly alive; what is said on them is nobody's.
            while ids.len() > 4096 {
                ids.pop_first();
            }
            return;
        }
        let id = |life: u64| ids.get(&(tapped.connection, life)).copied().flatten();
        if let (Some(from), Some(to)) = (id(tapped.from.number), id(tapped.to.number))
            && let Ok(MeshMessage::Raft(message)) = decode(tapped.frame.clone())
        {
            recorder.record(What::Mesh { from, to, message });
        }
    })
}
