//! Random schedules: faults first, then healing. The cluster checks its invariants at every step.

use super::super::*;
use super::cluster::{Cluster, WorldOptions, id};

/// Runs one schedule, and gives what it came to.
fn run(seed: u64) -> Cluster {
    let seats = if seed % 4 == 3 { 5 } else { 3 };
    let limits =
        VoterLimits { memory_bytes_max: 3_000, append_bytes_max: 2_000, appends_in_flight_max: 8, ..VoterLimits::default() };
    let mut options = WorldOptions { limits, ..WorldOptions::default() };
    if seed % 3 == 1 {
        options.loss_permille = 50;
    }
    if seed % 5 == 2 {
        (options.disk_us, options.apply_us) = ((100, 20_000), (0, 20_000));
    }
    let mut cluster = Cluster::with(seats, seed, options);
    let all: Vec<RaftId> = (1..=seats).map(id).collect();
    let (mut next, mut reads) = (0, 0);
    for _ in 0..150 {
        let at = all[cluster.random(all.len() as u64) as usize];
        let other = all[cluster.random(all.len() as u64) as usize];
        match cluster.random(20) {
            0 if cluster.up(at) => {
                let silent = cluster.random(2) == 0;
                cluster.crash(at, silent);
            }
            1 | 2 if !cluster.up(at) => cluster.start(at),
            3 if at != other => cluster.tear(at, other),
            4 if at != other => cluster.sever(at, other),
            5 if at != other => cluster.deafen(at, other),
            6 | 7 => {
                let loss = cluster.options.loss_permille;
                cluster.heal();
                cluster.options.loss_permille = loss;
            }
            8 if cluster.up(at) => cluster.compact(at, 5),
            9 if cluster.up(at) => drop(cluster.ask(at, AdminRequest::Transfer { seat: other.seat() })),
            10..=12 if cluster.up(at) => {
                reads += 1;
                cluster.read(at, reads);
            }
            _ if cluster.up(at) => {
                for _ in 0..cluster.random(5) {
                    next += 1;
                    cluster.propose(at, next);
                }
            }
            _ => {}
        }
        let ms = [0, 1, 5, 40, 400][cluster.random(5) as usize];
        cluster.run_ms(ms);
    }
    cluster.heal();
    for at in &all {
        if !cluster.up(*at) {
            cluster.start(*at);
        }
    }
    // A leader within ten election timeouts, and everybody alike soon after.
    assert!(cluster.run_until(20_000, |cluster| cluster.leader().is_some()), "seed {seed}: nobody leads");
    cluster.converge();
    // Work goes on, from every server.
    for at in &all {
        next += 1;
        cluster.propose(*at, next);
    }
    cluster.converge();
    (next + 1 - all.len() as u64..=next).for_each(|number| assert!(cluster.count(number) >= 1, "seed {seed}"));
    cluster
}

#[test]
fn random_schedules_keep_the_invariants_and_heal() {
    (0..250).for_each(|seed| drop(run(seed)));
}

/// A hash over all that happened in the schedule of `seed`.
pub(crate) fn trace_hash(seed: u64) -> u64 {
    run(seed).trace
}

#[test]
fn one_seed_gives_one_trace_in_every_process() {
    const CHILD: &str = "QUORATE_TRACE_OF_SEED";
    #[allow(clippy::disallowed_methods)]
    if let Ok(seed) = std::env::var(CHILD) {
        println!("trace {:016x}", trace_hash(seed.parse().unwrap()));
        return;
    }
    let child = |seed: u64| {
        let name = "raft::tests::chaos::one_seed_gives_one_trace_in_every_process";
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        let output = process.args([name, "--exact", "--nocapture"]).env(CHILD, seed.to_string()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().find_map(|line| line.strip_prefix("trace ").map(str::to_owned)).unwrap_or_else(|| panic!("{said}"))
    };
    for seed in [1, 7] {
        let here = format!("{:016x}", trace_hash(seed));
        assert_eq!(format!("{:016x}", trace_hash(seed)), here, "twice in this process");
        assert_eq!((child(seed), child(seed)), (here.clone(), here), "in two others");
    }
    assert_ne!(trace_hash(1), trace_hash(7));
}
