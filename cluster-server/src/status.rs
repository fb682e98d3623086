//! What a server says of itself to operators.

use serde::{Deserialize, Serialize};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{ClusterId, Epoch, LogIndex, RaftId, RunIndex, Seat, Term};

/// Where a server stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for all voters to agree on a first configuration.
    Forming,
    /// An empty directory that met a formed cluster: waiting for an id and a snapshot.
    Joining,
    /// A member that reads its log, or mends it from its peers; it has no part in consensus yet.
    Recovering,
    /// Without a leader.
    Leaderless,
    /// Following a leader.
    Following,
    /// Leading.
    Leading,
}

/// How far a recovery has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Runs above the newest snapshot that were read so far.
    pub runs_read: u64,
    /// Holes in the log that peers are being asked to fill.
    pub holes_open: u64,
    /// Holes that were filled in this start.
    pub holes_filled: u64,
    /// Runs that peers gave for them.
    pub runs_filled: u64,
}

/// A server's state, as `GET /status` gives it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its seat.
    pub seat: Seat,
    /// Its raft id; none before it formed or joined.
    pub id: Option<RaftId>,
    /// Where it stands.
    pub phase: Phase,
    /// The room.
    pub room: String,
    /// The cluster, once formed.
    pub cluster: Option<ClusterId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// The state machine's name.
    pub state_machine: String,
    /// Its version.
    pub state_machine_version: u32,
    /// The current term.
    pub term: Term,
    /// Who leads.
    pub leader: Option<RaftId>,
    /// The last run that is known to be committed.
    pub commit: RunIndex,
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// The log waits for room on the disk, or cannot reserve any: nothing is lost, and this server does not lead if another can.
    #[serde(default)]
    pub disk_full: bool,
    /// Clients attached here.
    pub clients: usize,
    /// Sessions in the table.
    pub sessions: usize,
    /// The configuration.
    pub configuration: Configuration,
    /// While it recovers: how far it has come.
    #[serde(default)]
    pub recovery: Option<RecoveryStatus>,
    /// Its log lost what it had acknowledged, and is not whole again yet.
    #[serde(default)]
    pub suspect: bool,
    /// What is damaged in its log: while holes are filled, and under `AlertAndContinue` until the log is whole.
    #[serde(default)]
    pub damage: Vec<String>,
    /// SHA-256 of the state at `applied`, in hex; only where `?hashes` asked for it.
    pub state_hash: Option<String>,
    /// SHA-256 of the session table at `applied`, in hex; only where `?hashes` asked for it.
    pub sessions_hash: Option<String>,
    /// What this process has done and refused since its start: on client links by plain names, on the mesh by `mesh_…`.
    pub counters: std::collections::BTreeMap<String, u64>,
}
