//! A cluster on simulated machines, and what can be done to it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use cluster_server::{Phase as ServerPhase, ServerStatus};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use voter_mesh::ids::{RaftId, Seat};
use voter_mesh::mesh::codec::{MeshMessage, decode};

use super::disk::{Deed, Faults as DiskFaults};
use super::fault::{Doing, FaultKind};
use super::frames::hello;
use super::net::{Death, SimNet, Tapped};
use super::random::Random;
use super::record::{End, Recorder, What};
use super::scenario::Scenario;
use super::server::Machine;

/// How long a machine waits before it starts a server again that ended by itself.
const RESTART_MS: u64 = 500;

/// The reason that a server gives which ended because it was asked to.
const STOPPED: &str = "stopped";

/// A server that ends by itself sooner than this has not taken its directory.
const REFUSED: Duration = Duration::from_secs(1);

/// How long a server may take to say how it is.
const STATUS_WAIT: Duration = Duration::from_secs(5);

/// What a disk says that fails.
const EIO: i32 = 5;

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
    /// The number of the last process that was started.
    pub lives: Rc<Cell<u64>>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    /// Machines that are to stay off, or whose servers may end by themselves.
    off: RefCell<BTreeSet<Seat>>,
    /// States of a disk from which a server was started.
    crash_states: Cell<u64>,
    /// Seats that lost copies of what was acknowledged, and are not known to be whole again.
    damaged: RefCell<BTreeSet<Seat>>,
    /// Seats whose power was cut, and that are not known to be whole again: they may not know whether they acknowledged their last batch.
    doubted: RefCell<BTreeSet<Seat>>,
    /// Seats whose disks will fail them, and have not yet.
    armed: RefCell<BTreeSet<Seat>>,
    /// How often damage was allowed: what was seen before tells nothing of it.
    damages: Cell<u64>,
    marks_lost: RefCell<BTreeSet<Seat>>,
    /// Seats whose disks were damaged under a server that runs: what it has read already it does not read again before its next start.
    latent: RefCell<BTreeSet<Seat>>,
    /// Servers that may end by themselves, because something was done to their disks.
    excused: RefCell<BTreeSet<Seat>>,
    clients: RefCell<Vec<IpAddr>>,
    stands: RefCell<BTreeMap<Seat, String>>,
    /// Misfortunes under way.
    doing: RefCell<Vec<AbortHandle>>,
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
            lives: Rc::default(),
            faults: RefCell::default(),
            off: RefCell::default(),
            crash_states: Cell::new(0),
            damaged: RefCell::default(),
            doubted: RefCell::default(),
            armed: RefCell::default(),
            damages: Cell::new(0),
            marks_lost: RefCell::default(),
            latent: RefCell::default(),
            excused: RefCell::default(),
            clients: RefCell::default(),
            stands: RefCell::default(),
            doing: RefCell::default(),
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

    /// Takes a machine away whose server was ended.
    pub fn remove_machine(&self, seat: Seat) {
        self.machines.borrow_mut().remove(&seat);
        self.damaged.borrow_mut().remove(&seat);
    }

    /// Where clients are, for what happens between them and servers.
    pub fn set_clients(&self, hosts: Vec<IpAddr>) {
        *self.clients.borrow_mut() = hosts;
    }

    /// The hosts of clients.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        self.clients.borrow().clone()
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
        self.latent.borrow_mut().remove(&seat);
        let running = match machine.start(self.next_life(), self.scenario.server(seat)) {
            Ok(running) => running,
            Err(error) => return self.wrong(format!("seat {seat} cannot be started: {error}")),
        };
        self.crash_states.set(self.crash_states.get() + u64::from(machine.starts() > 1));
        self.recorder.record(What::Started { server: seat, life: machine.starts() });
        let (world, began, start) = (Rc::clone(self), Instant::now(), machine.starts());
        spawn_local(async move {
            running.process.gone().await;
            let Some(why) = running.process.exit() else { return };
            let is_shutdown = why == STOPPED;
            // An operator's answer to a damaged directory that is refused: let a new life take over.
            let is_refused = began.elapsed() < REFUSED && world.damaged.borrow().contains(&seat);
            if !is_shutdown && !world.excused.borrow().contains(&seat) && !world.damaged.borrow().contains(&seat) {
                world.wrong(format!("seat {seat} ended by itself: {why}"));
            }
            let how = match (is_shutdown, is_refused) {
                (true, _) => End::Shutdown,
                (false, true) => End::Refused(why),
                (false, false) => End::Itself(why),
            };
            world.recorder.record(What::Ended { server: seat, how });
            sleep(Duration::from_millis(RESTART_MS)).await;
            if machine.starts() != start {
                // Somebody else has started it meanwhile.
                return;
            }
            if is_refused {
                world.wipe(seat);
            }
            if !world.off.borrow().contains(&seat) {
                world.start(seat);
            }
        });
    }

    /// Ends a seat's server. It stays down until [`World::start`].
    pub async fn kill(&self, seat: Seat, death: Death) {
        let Some(machine) = self.machine(seat) else { return };
        self.off.borrow_mut().insert(seat);
        if machine.kill(death).await {
            let how = if death == Death::Killed { End::Killed } else { End::PowerCut };
            self.recorder.record(What::Ended { server: seat, how });
        }
    }

    /// Asks a seat's server to shut down, and waits until it has. It stays down until [`World::start`].
    pub async fn shut_down(&self, seat: Seat, deadline: Duration, hand_over: bool) {
        let Some(machine) = self.machine(seat) else { return };
        let Some(running) = machine.running() else { return };
        self.off.borrow_mut().insert(seat);
        let shut = async {
            running.handle.shutdown(deadline, hand_over).await;
            running.process.gone().await;
        };
        // One that stands still, or whose machine is slow, is killed in the end, as an operator would.
        if timeout(deadline * 2, shut).await.is_err() {
            self.kill(seat, Death::Killed).await;
        }
    }

    /// Loses all that a dead server had on its disk.
    pub fn wipe(&self, seat: Seat) {
        if self.machine(seat).is_some_and(|machine| machine.wipe()) {
            self.marks_lost.borrow_mut().remove(&seat);
            self.recorder.record(What::Wiped { server: seat });
        }
    }

    /// Something was done to a seat's disk for which its server may end.
    pub fn excuse(&self, seat: Seat) {
        self.excused.borrow_mut().insert(seat);
    }

    /// Whether a seat lost something, and is not known to be whole again.
    #[must_use]
    pub fn is_damaged(&self, seat: Seat) -> bool {
        self.damaged.borrow().contains(&seat)
    }

    /// With a mark a vote may have been lost. The server gives none until it has heard all others and lives in a later term, however whole it
    /// looks: the seat counts as damaged until it has a new life.
    pub fn mark_lost(&self, seat: Seat) {
        self.marks_lost.borrow_mut().insert(seat);
    }

    /// A disk was damaged whose server runs, and goes on as if nothing were: the seat counts as damaged at least until it starts again.
    pub fn rots_unseen(&self, seat: Seat) {
        self.latent.borrow_mut().insert(seat);
    }

    /// Whether a copy of what was acknowledged may be lost at this seat; if so, it is taken for lost.
    pub async fn may_damage(&self, seat: Seat) -> bool {
        self.look_for_damage().await;
        let is_few = self.is_few(seat);
        if is_few {
            self.damaged.borrow_mut().insert(seat);
            self.damages.set(self.damages.get() + 1);
        }
        is_few
    }

    /// How a seat's server dies that is to lose its power. Where others have lost what they cannot get back without it, it is killed and no
    /// more: after a power cut it might not know whether it had acknowledged its last batch, and nobody else would.
    pub async fn power_cut(&self, seat: Seat) -> Death {
        self.look_for_damage().await;
        let others_are_whole = self.damaged.borrow().iter().all(|damaged| *damaged == seat);
        if !others_are_whole && !self.is_few(seat) {
            return Death::Killed;
        }
        self.doubted.borrow_mut().insert(seat);
        self.damages.set(self.damages.get() + 1);
        Death::PowerLost
    }

    /// Makes a seat's disk fail its server once, at the deed of this number from now on; waits until it has, or the server is gone.
    pub async fn fail_once(&self, machine: &Machine, deed: Deed, after: u64, seed: u64, within: Duration) {
        let Some(running) = machine.running() else { return };
        if !self.armed.borrow_mut().insert(machine.seat) {
            return;
        }
        self.excuse(machine.seat);
        let disk = machine.disk();
        let at = disk.count(deed) + after;
        disk.set_faults(DiskFaults { once: Some((deed, at, EIO)), capacity_bytes: None }, seed);
        let _ = timeout(within, running.process.gone()).await;
        disk.set_faults(DiskFaults::default(), 0);
        self.damages.set(self.damages.get() + 1);
        self.armed.borrow_mut().remove(&machine.seat);
    }

    /// Whether fewer than half of the voters have lost anything, this one included.
    fn is_few(&self, seat: Seat) -> bool {
        let (damaged, doubted) = (self.damaged.borrow(), self.doubted.borrow());
        let others = damaged.union(&doubted).filter(|other| **other != seat).count();
        seat.0 <= self.scenario.voters && others < usize::from(self.scenario.voters - 1) / 2
    }

    /// Forgets damage that is repaired: everybody is whole, has applied what the leader has, and knows of no other voters than it does. A change of
    /// voters that one of them has not heard of still needs the old ones.
    async fn look_for_damage(&self) {
        if self.damaged.borrow().is_empty() && self.doubted.borrow().is_empty() {
            return;
        }
        let damages = self.damages.get();
        let statuses = self.statuses(false).await;
        if self.damages.get() != damages {
            return;
        }
        let (Ok(leader), mut members) = (whole(&statuses), statuses.iter()) else { return };
        if members.all(|status| status.applied >= leader.applied && status.configuration == leader.configuration) {
            let unseen = [self.marks_lost.borrow(), self.armed.borrow(), self.latent.borrow()];
            self.damaged.borrow_mut().retain(|seat| unseen.iter().any(|unseen| unseen.contains(seat)));
            self.doubted.borrow_mut().clear();
        }
    }

    /// Does something to the world, for as long as it lasts.
    pub fn trouble(self: &Rc<Self>, kind: FaultKind) {
        let doing = Doing::new(Rc::clone(self), kind);
        let task = spawn_local(async move {
            let _ = doing.run().await;
        });
        let mut tasks = self.doing.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
    }

    /// Ends all misfortune: every link and disk is good, every clock runs, every server of the cluster is up.
    pub async fn heal(self: &Rc<Self>) {
        self.off.borrow_mut().clear();
        self.doing.borrow_mut().drain(..).for_each(|task| task.abort());
        // What was aborted is gone when others had their turn.
        tokio::task::yield_now().await;
        self.net.heal();
        for machine in self.machines() {
            machine.clock.borrow_mut().set_rate_ppm(1_000_000);
            machine.pace.set(self.scenario.pace);
            machine.disk().set_faults(DiskFaults::default(), 0);
            machine.live_on();
            match machine.running() {
                Some(running) => running.process.stop(false),
                None => {
                    // It may lie where a deed of its disk has left it.
                    machine.kill(Death::Killed).await;
                    self.start(machine.seat);
                }
            }
        }
    }

    /// What a seat's server says of itself; `None` where none answers.
    pub async fn status(&self, seat: Seat, hashes: bool) -> Option<ServerStatus> {
        let running = self.machine(seat)?.running()?;
        let status = timeout(STATUS_WAIT, running.handle.status(hashes)).await.ok()?.ok()?;
        self.stands.borrow_mut().insert(seat, format!("{status:?}"));
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

    /// Where the servers stood when they were asked last, for people.
    #[must_use]
    pub fn stands(&self) -> String {
        self.stands.borrow().values().map(|stand| format!("\n  {stand}")).collect()
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

impl World {
    /// Waits until every seat of the configuration is what it should be: its present life votes, misses nothing, and hears the leader.
    ///
    /// # Errors
    /// What is missing at the end of `within`.
    pub async fn whole(&self, within: Duration) -> Result<(), String> {
        self.until(within, || async { whole(&self.statuses(false).await).map(drop) }).await
    }

    /// Waits until all members have applied the same log, and asks for the hashes of what they made of it.
    ///
    /// # Errors
    /// What differs at the end of `within`.
    pub async fn equal(&self, within: Duration) -> Result<(), String> {
        self.until(within, || async {
            let statuses = self.statuses(true).await;
            let members = statuses.iter().find(|status| status.phase == ServerPhase::Leading);
            let Some(members) = members.map(|leader| leader.configuration.seats.clone()) else { return Err("nobody leads".into()) };
            let said = statuses.iter().filter(|status| members.contains_key(&status.seat));
            let applied: BTreeSet<_> =
                said.map(|status| (status.applied, status.state_hash.clone(), status.sessions_hash.clone())).collect();
            if applied.len() == 1 { Ok(()) } else { Err(format!("{applied:?}")) }
        })
        .await
    }

    async fn until<F: Future<Output = Result<(), String>>>(&self, within: Duration, look: impl Fn() -> F) -> Result<(), String> {
        let end = Instant::now() + within;
        loop {
            let result = look().await;
            if result.is_ok() || Instant::now() >= end {
                return result;
            }
            sleep(LOOK * 3).await;
        }
    }
}

/// Whether every seat of the configuration is what it should be; who leads, or what is missing.
fn whole(statuses: &[ServerStatus]) -> Result<&ServerStatus, String> {
    let leading = statuses.iter().filter(|status| status.phase == ServerPhase::Leading);
    let leader = leading.max_by_key(|status| status.term).ok_or("nobody leads")?;
    if !leader.configuration.outgoing.is_empty() {
        return Err("the configuration is joint".into());
    }
    for (seat, record) in &leader.configuration.seats {
        let status = statuses.iter().find(|status| status.seat == *seat);
        let status = status.ok_or_else(|| format!("seat {seat} does not answer"))?;
        let is_member = record.incoming.is_none() && record.member.as_ref().map(|member| member.id) == status.id;
        let is_at_work = matches!(status.phase, ServerPhase::Following | ServerPhase::Leading) && status.term == leader.term;
        if !is_member || !is_at_work || status.suspect || !status.damage.is_empty() {
            return Err(format!("seat {seat}: {record:?} and {status:?}"));
        }
    }
    Ok(leader)
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
