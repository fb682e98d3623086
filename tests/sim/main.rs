//! What the server's files survive, on a simulated disk. One binary; a module for each kind of misfortune.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod cuts;
mod faults;
mod witnesses;
mod worlds;
