//! Real server processes and two hundred clients, while processes are killed and stopped, links cut and disks filled; and the same checkers
//! as for simulated runs over what came of it.
//!
//! Each server has a network namespace and a small file system of its own, where this machine can make them; what it cannot is said aloud
//! (`SKIPPED: why`) and left out. `QUORATE_CHAOS_SEED` chooses another run, `QUORATE_CHAOS_SECONDS` a longer one. What a seed decides is
//! which faults come in which order; what the machine makes of them is its own affair.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use cluster_server::ServerStatus;
use tests::sim::checkers::{CheckerOptions, Checkers};
use tests::sim::random::Random;
use tests::sim::record::{End, Phase, Recorder, Report, What};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use voter_mesh::ids::{LogIndex, Seat};

use crate::harness::quorate;
use crate::processes::fleet::{Fleet, FleetHost, FleetOptions};
use crate::small_disk::SmallDisk;

mod auditors;
mod clients;
mod network;

use network::{Network, Place};

/// Clients that call.
const CLIENTS: u32 = 200;

/// Followers of the committed commands.
const FOLLOWERS: u32 = 4;

/// Bytes of each server's file system.
const DISK_BYTES: u64 = 96 << 20;

/// How long faults happen, unless something else is asked for.
const FAULTS: Duration = Duration::from_secs(22);

/// Ten of the longest election timeouts.
const STOPPED: Duration = Duration::from_secs(20);

/// How long clients go on after healing.
const HEALED: Duration = Duration::from_secs(3);

/// How long it may take until all that was called is answered and all stand at one place.
const SETTLE: Duration = Duration::from_secs(90);

/// Every fault that comes and goes; a server that is stopped for long is apart from them.
const FAULTS_KNOWN: [&str; 4] = ["kill", "cut", "one-way cut", "full disk"];

struct World {
    fleet: Fleet,
    network: Option<Network>,
    disks: Vec<SmallDisk>,
    recorder: Recorder,
    random: Random,
}

#[test]
#[ignore = "wants the machine for itself: a step of .ci/run"]
fn three_servers_and_two_hundred_clients_keep_every_promise_through_kills_stops_cuts_and_full_disks() {
    chaos(3);
}

#[test]
#[ignore = "wants the machine for itself: a step of .ci/run"]
fn so_do_five_servers() {
    chaos(5);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn chaos(servers: usize) {
    let seed = number("QUORATE_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let faults = number("QUORATE_CHAOS_SECONDS").map_or(FAULTS, Duration::from_secs);
    println!("seed {seed}");
    // Built before the thread leaves this network.
    quorate();
    let story = std::thread::spawn(move || {
        let network = Network::make(servers).map_err(|why| println!("SKIPPED: cut links: {why}")).ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, run(servers, network, seed, faults))
    });
    let report = story.join().expect("the story is told to its end");
    println!("{} operations, {} histories, {:?}", report.operations, report.histories, report.counts);
    for violation in &report.violations {
        println!("{violation}");
    }
    assert!(report.violations.is_empty(), "seed {seed}: {} violations", report.violations.len());
    assert!(report.operations > 1_000 && report.histories > 20, "too little happened: {report:?}");
}

async fn run(servers: usize, network: Option<Network>, seed: u64, faults: Duration) -> Report {
    let checked = CheckerOptions { inside: false, ..CheckerOptions::default() };
    let recorder = Recorder::new(vec![Box::new(Checkers::new(checked))]);
    recorder.record(What::Phase(Phase::Forming));
    let disks: Result<Vec<SmallDisk>, String> = (0..servers).map(|_| SmallDisk::in_memory(DISK_BYTES)).collect();
    let disks = disks.map_err(|why| println!("SKIPPED: full disks: {why}")).unwrap_or_default();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), [7; 32]).unwrap();
    let hosts = (1..=servers).map(|seat| FleetHost {
        data: disks.get(seat - 1).map(SmallDisk::path),
        ..network.as_ref().map_or_else(FleetHost::default, |network| {
            let (address, within) = (Network::address(seat), network.within(seat));
            FleetHost { address, within, data: None }
        })
    });
    let arguments = ["--segment-bytes", "1048576", "--snapshot-entries", "5000", "--mesh-secret-file"];
    let arguments = arguments.into_iter().map(str::to_owned).chain([secret.path().display().to_string()]);
    let options = FleetOptions {
        seats: servers,
        state: "kv",
        arguments: arguments.collect(),
        hosts: hosts.collect(),
        ..FleetOptions::default()
    };
    let fleet = Fleet::start_with(options).await;
    for seat in 1..=servers {
        recorder.record(What::Started { server: Seat(seat as u16), life: 1 });
    }
    let mut world = World { fleet, network, disks, recorder: recorder.clone(), random: Random::new(seed) };

    let (phases, phase) = watch::channel(Phase::Faults);
    let shared = clients::Shared::new(recorder.clone(), phase, world.fleet.urls());
    let (mut working, mut auditing) = (JoinSet::new(), JoinSet::new());
    let reached: Vec<Rc<Cell<LogIndex>>> = (0..servers).map(|_| Rc::default()).collect();
    for (seat, reached) in (1..).zip(&reached) {
        let url = world.fleet.url(seat);
        auditing.spawn_local(auditors::follow(recorder.clone(), Seat(seat as u16), url, Rc::clone(reached)));
    }
    for client in 0..CLIENTS {
        working.spawn_local(clients::live(Rc::clone(&shared), client, world.random.next()));
    }
    for follower in CLIENTS..CLIENTS + FOLLOWERS {
        working.spawn_local(clients::follow(Rc::clone(&shared), follower));
    }
    let enter = |phase| {
        recorder.record(What::Phase(phase));
        phases.send_replace(phase);
    };
    enter(Phase::Faults);
    world.trouble(Instant::now() + faults).await;
    enter(Phase::Healed);
    let healed = Instant::now();
    while healed.elapsed() < HEALED {
        world.statuses().await;
        sleep(Duration::from_millis(100)).await;
    }
    enter(Phase::Quiet);
    let rest = timeout(SETTLE, world.rest(&shared, &reached)).await;
    assert!(rest.is_ok(), "seed {seed}: it does not come to rest: {:?}", world.statuses().await);
    // Clients end their sessions when they close: that is not what the servers were asked about.
    auditing.shutdown().await;
    enter(Phase::Over);
    let ended = timeout(SETTLE, async { while working.join_next().await.transpose().expect("a client panics").is_some() {} }).await;
    assert!(ended.is_ok(), "seed {seed}: {} clients do not end", working.len());
    recorder.finish()
}

impl World {
    fn fault(&self, kind: &'static str, detail: String) {
        println!("{kind}: {detail}");
        self.recorder.record(What::Fault { kind, detail });
    }

    fn seat(&mut self, but: usize) -> usize {
        loop {
            let seat = 1 + self.random.below(self.fleet.urls().len() as u64) as usize;
            if seat != but {
                return seat;
            }
        }
    }

    /// One server is stopped for ten election timeouts, now and then; the others meet everything else, one after the other.
    async fn trouble(&mut self, end: Instant) {
        let (mut stopped, mut order): (Option<(usize, Instant)>, Vec<&'static str>) = (None, Vec::new());
        while Instant::now() < end {
            if stopped.is_some_and(|(_, until)| until <= Instant::now())
                && let Some((seat, _)) = stopped.take()
            {
                self.fleet.thaw(seat);
            }
            if stopped.is_none() && end > Instant::now() + STOPPED {
                let seat = self.seat(0);
                self.fault("stop", format!("server {seat}"));
                self.fleet.freeze(seat);
                stopped = Some((seat, Instant::now() + STOPPED));
            }
            if order.is_empty() {
                order = FAULTS_KNOWN.to_vec();
            }
            let kind = order.remove(self.random.below(order.len() as u64) as usize);
            let seat = self.seat(stopped.map_or(0, |(seat, _)| seat));
            self.meet(kind, seat).await;
            self.statuses().await;
            sleep(Duration::from_millis(self.random.below(1_500))).await;
        }
        if let Some((seat, until)) = stopped {
            sleep_until(until).await;
            self.fleet.thaw(seat);
        }
    }

    /// A fault from its beginning to its end.
    async fn meet(&mut self, kind: &'static str, seat: usize) {
        let lasts = Duration::from_millis(1_000 + self.random.below(3_000));
        match kind {
            "kill" => {
                self.fault(kind, format!("server {seat}"));
                let server = Seat(seat as u16);
                self.fleet.kill(seat).await;
                self.recorder.record(What::Ended { server, how: End::Killed });
                sleep(lasts / 3).await;
                self.recorder.record(What::Started { server, life: 0 });
                self.fleet.launch(seat).await;
            }
            "full disk" => {
                let Some(disk) = self.disks.get(seat - 1) else { return };
                let ballast = disk.fill_up_to(0);
                self.fault(kind, format!("server {seat}"));
                sleep(lasts).await;
                std::fs::remove_file(ballast).unwrap();
            }
            _ => {
                let other = self.seat(seat);
                let clients = self.random.below(4) == 0;
                let Some(network) = &self.network else { return };
                let (here, there) = (Place::Server(seat), if clients { Place::Clients } else { Place::Server(other) });
                let ways: &[(Place, Place)] = if kind == "cut" { &[(here, there), (there, here)] } else { &[(here, there)] };
                ways.iter().for_each(|(from, to)| network.cut(*from, *to));
                self.fault(kind, format!("{here:?} to {there:?}"));
                sleep(lasts).await;
                let network = self.network.as_ref().expect("it was there");
                ways.iter().for_each(|(from, to)| network.mend(*from, *to));
            }
        }
    }

    /// Asks all servers at once, and records what they say.
    async fn statuses(&self) -> Vec<ServerStatus> {
        let asked = (1..=self.fleet.urls().len()).map(|seat| self.fleet.status(seat));
        let said: Vec<ServerStatus> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        for status in &said {
            self.recorder.record(What::Status { server: status.seat, status: Box::new(status.clone()) });
        }
        said
    }

    /// Waits until nothing more happens: all servers stand at one place, for a while, and their auditors with them.
    async fn rest(&self, shared: &clients::Shared, reached: &[Rc<Cell<LogIndex>>]) {
        let (mut last, mut since) = (None, Instant::now());
        loop {
            let said = self.statuses().await;
            let first = said.first().map(|status| (status.applied, status.state_hash.clone(), status.sessions_hash.clone()));
            let same = shared.busy.get() == 0
                && said.len() == reached.len()
                && said.iter().all(|status| {
                    Some((status.applied, status.state_hash.clone(), status.sessions_hash.clone())) == first
                        && reached.iter().all(|reached| reached.get() == status.applied)
                });
            if !same || first != last {
                (last, since) = (first, Instant::now());
            } else if since.elapsed() > Duration::from_secs(2) {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}
