//! The simulator: the product's own code on a world in memory, where whatever can go wrong does.

pub mod disk;
pub mod power_cuts;
pub mod random;
pub mod record;
pub mod script;
