//! Random schedules: faults first, then healing. The cluster checks its invariants at every step.

use super::super::*;
use super::cluster::{Cluster, WorldOptions, id};
use crate::ids::DirectoryId;

/// A random request to change who the servers are. Seats 4 and 5 come and go; what is missing on a seat is started empty.
fn change(cluster: &mut Cluster, at: RaftId) {
    let seat = Seat(1 + cluster.random(5) as u16);
    let request = match cluster.random(7) {
        0 => {
            let address = format!("server-{seat}");
            AdminRequest::AddSeat { seat, address, priority: 0, failure_domain: String::new() }
        }
        1..=3 => AdminRequest::Join { seat, directory: DirectoryId([cluster.random(4) as u8; 16]) },
        4 | 5 => AdminRequest::Promote { seat },
        // A majority of those that form stays.
        _ => AdminRequest::RemoveSeat { seat: seat.max(Seat(3)) },
    };
    let joins = matches!(request, AdminRequest::Join { .. });
    if joins && seat < Seat(3) {
        return;
    }
    let _ = cluster.ask(at, request);
    settle_newcomers(cluster);
}

/// Starts whoever the configuration names and nobody has seen yet.
fn settle_newcomers(cluster: &mut Cluster) {
    let configurations = cluster.servers.values().map(|server| server.configuration.clone());
    let members: Vec<RaftId> = configurations
        .flat_map(|configuration| configuration.seats.into_values())
        .flat_map(|record| record.member.into_iter().chain(record.incoming))
        .map(|member| member.id)
        .collect();
    for id in members {
        if !cluster.servers.contains_key(&id) {
            cluster.newcomer(id);
        }
    }
}

/// Runs one schedule, and gives what it came to.
fn run(seed: u64, changes: bool) -> Cluster {
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
            9 if changes && cluster.up(at) => {
                let leader = cluster.leader().unwrap_or(at);
                change(&mut cluster, leader);
            }
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
    for at in cluster.servers.keys().copied().collect::<Vec<_>>() {
        if !cluster.up(at) {
            cluster.start(at);
        }
    }
    // A leader within ten election timeouts, and everybody alike soon after.
    assert!(cluster.run_until(20_000, |cluster| cluster.leader().is_some()), "seed {seed}: nobody leads");
    if changes {
        // What was begun comes to its end, and whoever was let in arrives.
        cluster.run_ms(3_000);
        settle_newcomers(&mut cluster);
    }
    cluster.converge();
    // Work goes on, from every server that stayed.
    let configuration = cluster.servers[&cluster.leader().unwrap()].configuration.clone();
    let all: Vec<RaftId> = all.into_iter().filter(|id| configuration.contains(*id)).collect();
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
    (0..250).for_each(|seed| drop(run(seed, false)));
}

#[test]
fn random_schedules_with_changing_members_keep_the_invariants_and_heal() {
    let changed = |cluster: Cluster| cluster.log.iter().filter(|run| run.config_payload().is_some()).count();
    let changes: usize = (0..200).map(|seed| changed(run(seed, true))).sum();
    assert!(changes > 300, "{changes} changes are too few to prove anything");
}

/// A hash over all that happened in the schedule of `seed`.
pub(crate) fn trace_hash(seed: u64) -> u64 {
    run(seed, seed.is_multiple_of(2)).trace
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
    for seed in [1, 2] {
        let here = format!("{:016x}", trace_hash(seed));
        assert_eq!(format!("{:016x}", trace_hash(seed)), here, "twice in this process");
        assert_eq!((child(seed), child(seed)), (here.clone(), here), "in two others");
    }
    assert_ne!(trace_hash(1), trace_hash(2));
}
