//! Whole clusters in simulated worlds.

use std::process::Command;

fn trace_hash(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(["--trace-hash", "--seed", &seed.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_seed_gives_the_same_trace_in_every_process_and_another_one_another() {
    let first = trace_hash(1);
    assert_eq!(first, trace_hash(1));
    assert_ne!(first, trace_hash(2));
}
