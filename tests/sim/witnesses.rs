//! Clusters in which one of three voters is driven by the bare `raft` crate.

use std::sync::{Arc, Mutex};

use tests::sim::record::Lines;
use tests::sim::witness::run;

#[test]
fn a_bare_raft_voter_leads_ours_and_follows_ours_through_two_hundred_seeds() {
    let (mut led, mut followed) = (0, 0);
    for seed in 0..200 {
        let report = run(seed, Vec::new()).report;
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        let count = |name| report.counts.get(name).copied().unwrap_or(0);
        led += u64::from(count("led_by_witness") > 0);
        followed += u64::from(count("led_by_ours") > 0);
    }
    assert!(led >= 100 && followed >= 100, "the witness led ours in {led} worlds and followed them in {followed}");
}

#[test]
fn a_seed_gives_one_world_with_a_witness() {
    let trace = |seed| {
        let lines = Arc::new(Mutex::new(String::new()));
        let to = lines.clone();
        let sink = Lines(move |line: std::fmt::Arguments<'_>| to.lock().unwrap().push_str(&format!("{line}\n")));
        drop(run(seed, vec![Box::new(sink)]));
        std::mem::take(&mut *lines.lock().unwrap())
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}
