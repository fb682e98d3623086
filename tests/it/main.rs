//! Stories on real sockets, real files and real processes. One binary; a module for each topic.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod backups;
mod basics;
mod chaos;
mod commands;
mod ending;
mod endpoints;
mod failover;
mod far_behind;
mod formats;
mod harness;
mod here;
mod hostile;
mod journals;
mod losses;
mod mutants;
mod peer;
mod processes;
mod proxy;
mod quorum;
mod reads;
mod recovery;
mod requests;
mod slow;
mod snapshots;
// Shared with the power cuts, which use more of it.
#[allow(dead_code)]
mod small_disk;
mod tally;
