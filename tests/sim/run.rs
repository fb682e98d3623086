//! One run: forming, faults, healing, and rest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::checkers::{CheckerOptions, Checkers};
use super::clients::{Fleet, Plan};
use super::found;
use super::net::Death;
use super::panics;
use super::random::{FNV1A_OF_NOTHING, fnv1a};
use super::record::{Lines, Phase, Recorder, Report, Sink, Violation, What};
use super::scenario::{Scenario, election_timeout};
use super::server::DATA;
use super::world::World;

/// How long servers may take to form a cluster in which one leads.
const FORMING: Duration = Duration::from_secs(30);

/// How long members may take, once one leads, until each of them votes and misses nothing.
const WHOLE: Duration = Duration::from_secs(60);

/// How long the healed system goes on.
const HEALED: Duration = Duration::from_secs(10);

/// How long clients may take to have everything answered, and to end.
const SETTLING: Duration = Duration::from_secs(60);

/// How long servers may take to come to the same index when nobody proposes anything.
const EQUAL: Duration = Duration::from_secs(60);

/// How long a server may take to say goodbye.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What is kept of a run besides its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// A hash over its events.
    Hash,
    /// Its events, as lines.
    Log,
    /// Nothing; its events are printed as they happen.
    Printed,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What decided it.
    pub seed: u64,
    /// How long it took in its own time.
    pub simulated: Duration,
    /// What was done to it, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// States of a disk from which a server was started after its end.
    pub crash_states: u64,
    /// What the checkers say.
    pub report: Report,
    /// It did not come to rest.
    pub stuck: bool,
    /// Over all events, where it was asked for.
    pub hash: u64,
    /// All events, where they were asked for.
    pub log: String,
}

impl Outcome {
    /// Whether anything is wrong.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.stuck || !self.report.violations.is_empty()
    }
}

/// A hash over text.
struct Hash(u64);

impl std::fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 = fnv1a(self.0, text.as_bytes());
        Ok(())
    }
}

/// Runs a scenario on the calling thread.
#[must_use]
pub fn run(scenario: Scenario, keep: Keep) -> Outcome {
    panics::note();
    drop(panics::take());
    let seed = scenario.seed;
    let hash = Arc::new(Mutex::new(Hash(FNV1A_OF_NOTHING)));
    let log = Arc::new(Mutex::new(String::new()));
    let options = CheckerOptions {
        election_timeout_ms: election_timeout().as_millis() as u64,
        sessions: scenario.sessions(),
        ..CheckerOptions::default()
    };
    let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Checkers::new(options))];
    match keep {
        Keep::Nothing => {}
        Keep::Hash => {
            let hash = Arc::clone(&hash);
            sinks.push(Box::new(Lines(move |line: std::fmt::Arguments<'_>| {
                let _ = hash.lock().unwrap_or_else(PoisonError::into_inner).write_fmt(line);
            })));
        }
        Keep::Printed => sinks.push(Box::new(Lines(|line: std::fmt::Arguments<'_>| println!("{line}")))),
        Keep::Log => {
            let log = Arc::clone(&log);
            sinks.push(Box::new(Lines(move |line: std::fmt::Arguments<'_>| {
                let _ = writeln!(log.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
            })));
        }
    }
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O asks nothing of the system");
    let tasks = LocalSet::new();
    let mut outcome = runtime.block_on(tasks.run_until(async {
        let began = Instant::now();
        let recorder = Recorder::new(sinks);
        let world = World::new(scenario, recorder.clone());
        let stuck = live(&world).await.is_err();
        for machine in world.machines() {
            machine.kill(Death::Killed).await;
            match found::read(&machine.disk(), DATA, machine.seat) {
                Ok(Some(found)) => recorder.record(What::Disk(found)),
                Ok(None) => {}
                Err(_) if world.is_damaged(machine.seat) => {}
                Err(error) => world.wrong(format!("the disk of server {} does not do for a start: {error}", machine.seat)),
            }
        }
        let mut report = recorder.finish();
        let at_us = began.elapsed().as_micros() as u64;
        let seen = |checker| move |text| Violation { checker, sequence: 0, at_us, text };
        report.violations.extend(world.wrongs().into_iter().map(seen("world")));
        Outcome {
            seed,
            simulated: began.elapsed(),
            faults: world.faults(),
            crash_states: world.crash_states(),
            report,
            stuck,
            ..Outcome::default()
        }
    }));
    drop(tasks);
    drop(runtime);
    let panics = panics::take().into_iter();
    outcome.report.violations.extend(panics.map(|text| Violation { checker: "panic", sequence: 0, at_us: 0, text }));
    outcome.hash = hash.lock().unwrap_or_else(PoisonError::into_inner).0;
    outcome.log = std::mem::take(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
    outcome
}

/// The world does not come to rest. It has said what is missing.
struct Stuck;

async fn live(world: &Rc<World>) -> Result<(), Stuck> {
    let enter = |phase| world.recorder.record(What::Phase(phase));
    enter(Phase::Forming);
    world.leader(FORMING).await.ok_or_else(|| stuck(world, "no leader formed"))?;
    enter(Phase::Faults);
    let plan = Plan::drawn(&mut world.random(), world.scenario.clients_percent, world.scenario.trespassers);
    let mut fleet = Fleet::start(world, plan);
    world.set_clients(fleet.hosts());
    make_trouble(world).await;
    world.heal().await;
    enter(Phase::Healed);
    fleet.enter(Phase::Healed);
    let healed = world.leader(election_timeout() * 10).await;
    healed.ok_or_else(|| stuck(world, &format!("no leader within ten election timeouts: {}", world.stands())))?;
    let whole = world.whole(WHOLE).await;
    whole.map_err(|missing| stuck(world, &format!("not whole: {missing}")))?;
    sleep(HEALED).await;
    enter(Phase::Quiet);
    fleet.enter(Phase::Quiet);
    let settled = timeout(SETTLING, fleet.settled()).await;
    settled.map_err(|_| stuck(world, &format!("clients have not settled: {:?}", fleet.unsettled())))?;
    let equal = world.equal(EQUAL).await;
    equal.map_err(|missing| stuck(world, &format!("not equal: {missing}")))?;
    enter(Phase::Over);
    fleet.enter(Phase::Over);
    let gone = timeout(SETTLING, fleet.gone()).await;
    gone.map_err(|_| stuck(world, "clients do not end"))?;
    for machine in world.machines() {
        world.shut_down(machine.seat, SHUTDOWN, false).await;
    }
    Ok(())
}

/// Lets misfortunes happen, until it is time to heal.
async fn make_trouble(world: &Rc<World>) {
    let kinds: Vec<_> = world.scenario.kinds.iter().copied().collect();
    let end = Instant::now() + world.scenario.faults;
    loop {
        let every = world.scenario.fault_every.as_millis() as u64;
        let next = Instant::now() + Duration::from_millis(world.below(2 * every));
        if next >= end || world.recorder.violated() {
            return sleep_until(end.min(next)).await;
        }
        sleep_until(next).await;
        world.trouble(kinds[world.below(kinds.len() as u64) as usize]);
    }
}

fn stuck(world: &World, what: &str) -> Stuck {
    world.wrong(format!("stuck: {what}"));
    Stuck
}
