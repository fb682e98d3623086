//! Operations that fail: the server stops with an error, or goes on; whatever it had promised is there at the next start.

use std::collections::BTreeSet;

use tests::sim::disk::{Deed, Faults, SimDisk};
use tests::sim::random::Random;
use tests::sim::script::{Script, start};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn script() -> Script {
    let script = Script::new(1024).append(&[1, 2], 90).vote(2).append(&[7], 100).snapshot().cut(3, 5, 120).node().append(&[4], 300);
    script.snapshot().trim().install(9, 3, 100).append(&[1], 100).append(&[8], 100).snapshot().trim().append(&[2], 200)
}

/// Runs the script on a disk with this fault, starts a server on what is left, once with the cache and once after each of some power
/// cuts; returns whether anything failed.
fn survives(script: &Script, faults: Faults, seed: u64) -> bool {
    let disk = SimDisk::new();
    disk.set_faults(faults, seed);
    let (mut kept, mut under_way) = (0, 0);
    let failed = script.perform(&disk, |now, then| (kept, under_way) = (now, then)).is_err();
    disk.set_faults(Faults::default(), seed);
    let begin = |disk: &SimDisk, when: &str, script: &Script, (kept, under_way): (usize, usize)| {
        let found = start(disk, script.options()).unwrap_or_else(|error| panic!("{faults:?}, seed {seed}, {when}: {error}"));
        if let Err(why) = script.check(&found, kept, under_way) {
            panic!("{faults:?}, seed {seed}, {when}: {why}");
        }
        found.as_script(script.options())
    };
    let may = (kept, under_way);
    disk.state().images(16, &mut Random::new(seed), &mut |image| {
        begin(&SimDisk::on(image.into()), "after a power cut", script, may);
    });
    let found = begin(&disk, "after a restart", script, may);
    // What that start has found may be acknowledged by now: it is there, also if the power goes.
    disk.state().images(16, &mut Random::new(seed), &mut |image| {
        begin(&SimDisk::on(image.into()), "after a restart and a power cut", &found, (0, 0));
    });
    failed
}

fn each_failing(error: i32, deeds: &[Deed], seeds: u64) {
    let script = script();
    let mut failed = BTreeSet::new();
    for deed in deeds {
        let disk = SimDisk::new();
        script.perform(&disk, |_, _| {}).unwrap();
        for number in 0..disk.count(*deed) {
            for seed in 0..seeds {
                if survives(&script, Faults { once: Some((*deed, number, error)), capacity_bytes: None }, seed) {
                    failed.insert((*deed, number));
                }
            }
        }
    }
    println!("error {error}: {} operations failed in turn", failed.len());
    assert!(deeds.iter().all(|deed| failed.iter().any(|(failed, _)| failed == deed)), "{failed:?}");
}

#[test]
fn an_io_error_at_any_operation_costs_nothing_that_was_confirmed() {
    each_failing(EIO, &Deed::ALL, 4);
}

#[test]
fn a_full_disk_at_any_operation_costs_nothing_that_was_confirmed() {
    each_failing(ENOSPC, &[Deed::Write, Deed::Allocate, Deed::Create], 1);
    let script = script();
    let failed =
        (0..120_000).step_by(1024).filter(|bytes| survives(&script, Faults { once: None, capacity_bytes: Some(*bytes) }, 1));
    assert!((20..110).contains(&failed.count()), "some capacities are too small, and some are not");
}
