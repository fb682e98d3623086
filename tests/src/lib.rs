//! The README's examples, compiled, and the simulator.

#[path = "../sim/mod.rs"]
pub mod sim;

/// What the README says, held against the compiler.
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;
