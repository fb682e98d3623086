//! The simulator: the product's own code on a world in memory, where whatever can go wrong does.

pub mod checkers;
pub mod clients;
pub mod disk;
pub mod fault;
pub mod found;
pub mod frames;
pub mod host;
pub mod mutants;
pub mod net;
pub mod panics;
pub mod power_cuts;
pub mod process;
pub mod random;
pub mod record;
pub mod run;
pub mod scenario;
pub mod script;
pub mod server;
pub mod witness;
pub mod world;
