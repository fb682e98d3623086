//! The README's examples, compiled.

/// What the README says, held against the compiler.
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;
