//! Replays the corpus, and sends every type that is written or sent through its bytes and back.
#![allow(clippy::unwrap_used)]

mod round_trips;

use tests::fuzz::memory;
use tests::fuzz::targets::ALL;
use tests::fuzz::{corpus, judge};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

#[test]
fn no_input_that_was_ever_found_shows_a_fault() {
    let mut faults = Vec::new();
    for target in ALL {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{target:?} has no corpus");
        for (name, input) in inputs {
            if let Err(fault) = judge(target, &input) {
                faults.push(format!("{target:?}/{name}: {fault}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_written_today_is_in_the_corpus() {
    for target in ALL {
        let inputs = corpus(target);
        for (name, input) in (target.golden)() {
            assert_eq!(inputs.get(&name), Some(&input), "{target:?}/{name}: `cargo run -p tests --bin fuzz -- --golden` writes it");
        }
    }
}
