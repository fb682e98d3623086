//! The README's examples, compiled, the simulator, and what is fuzzed.

#[path = "../fuzz/mod.rs"]
pub mod fuzz;
#[path = "../sim/mod.rs"]
pub mod sim;

/// What the README says, held against the compiler.
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;
