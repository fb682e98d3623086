//! Quorate's server: everything that touches a disk, a socket or a clock on the server's side. It decides nothing about consensus.
//!
//! * [`ServerCluster`] — start voters in this process and relay listeners in front of them.
//! * [`limits`], [`status`] — every bound by name; what a server says of itself.
//! * [`disk`] — the log, snapshots and the node record; [`mesh`] — links between servers.
//! * [`tools`] — what an operator does to data directories: restore, verify, recover.
//! * [`host`] — all that a voter needs of the world around it, so that it can run on a simulated one.
//! * `node` — one voter's thread; `relay_port` — sockets of clients and operators.

pub mod cluster;
pub mod disk;
pub mod host;
pub mod limits;
pub mod mesh;
mod node;
mod relay_port;
pub mod status;
mod throttle;
pub mod tools;

pub use cluster::{
    AdminError, DamagePolicy, NoLeader, ServerCluster, ServerClusterBuilder, ServerGone, ShutdownError, StartError, VoterHandle,
};
pub use limits::ServerLimits;
pub use status::{Phase, ServerStatus};
