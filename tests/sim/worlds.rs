//! Whole clusters in simulated worlds.

use std::process::Command;

fn trace_hash(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(["--trace-hash", "--seed", &seed.to_string()]).output().unwrap();
    let hash = String::from_utf8(output.stdout).unwrap();
    assert_eq!(hash.trim().len(), 16, "{hash}");
    hash
}

#[test]
fn a_seed_gives_the_same_trace_in_every_process_and_another_one_another() {
    let first = trace_hash(1);
    assert_eq!(first, trace_hash(1));
    assert_ne!(first, trace_hash(2));
}
