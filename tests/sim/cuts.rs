//! Power cuts: every crash point of a script, and what may be left of the writes that were not synced.

use tests::sim::power_cuts::{Bounds, Report, explore};
use tests::sim::random::Random;
use tests::sim::script::Script;

fn all_of(name: &str, script: &Script) -> Report {
    let report = explore(script, Bounds::default(), &mut Random::new(1));
    println!("{name}: {report:?}", report = Report { violations: Vec::new(), ..report.clone() });
    assert!(report.violations.is_empty(), "{name}: {} violations, the first: {}", report.violations.len(), report.violations[0]);
    report
}

#[test]
fn a_power_cut_at_any_point_of_batches_and_votes_loses_nothing_confirmed() {
    let script = Script::new(4096).append(&[1], 20).append(&[2], 300).vote(2).append(&[1, 1, 2], 200).vote(3).append(&[1], 700);
    all_of("batches and votes", &script);
}

#[test]
fn a_power_cut_at_any_point_of_a_rotation_loses_nothing_confirmed() {
    all_of("rotation", &Script::new(1024).append(&[6], 100).append(&[3, 4], 150).append(&[9], 100).vote(2).append(&[1], 900));
}

#[test]
fn a_power_cut_at_any_point_of_a_cut_leaves_the_old_log_or_the_new_one() {
    let script = Script::new(1024).append(&[5], 100).append(&[12], 100).cut(9, 4, 110).cut(2, 0, 1).append(&[2], 90).cut(3, 6, 120);
    all_of("cut", &script);
}

#[test]
fn a_power_cut_at_any_point_of_an_install_leaves_the_old_state_or_the_new_one() {
    let script = Script::new(1024).append(&[8], 100).install(20, 3, 100).append(&[4], 100).install(2, 0, 1).cut(1, 2, 30);
    all_of("install", &script);
}

#[test]
fn a_power_cut_at_any_point_of_a_snapshot_and_of_trimming_leaves_no_gap() {
    let script = Script::new(1024).append(&[12], 100).append(&[3], 100).snapshot().trim().append(&[9], 100).snapshot().trim();
    let script = script.append(&[9], 100).append(&[2], 100).snapshot().trim().append(&[8], 100).node();
    all_of("snapshots and trimming", &script);
}
