//! What a snapshot says of itself. Its bytes are the machine's state and the session table; where they lie is the disk's business.

use serde::{Deserialize, Serialize};

use crate::configuration::Configuration;
use crate::ids::{Identity, RunIndex};
use crate::run::Tail;

/// Where a snapshot stands and what it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The end of the history that it replaces: a run's end.
    pub tail: Tail,
    /// The history.
    pub identity: Identity,
    /// The configuration at that point.
    pub configuration: Configuration,
    /// The run of the last configuration entry at or before that point; 1 where only forming configured.
    pub configuration_run: RunIndex,
    /// The state machine's name.
    pub machine_name: String,
    /// Its version.
    pub machine_version: u32,
    /// SHA-256 of the machine's state as it writes it. All zero in an image that is not written yet.
    pub state_hash: [u8; 32],
    /// SHA-256 of the session table as it writes it. All zero in an image that is not written yet.
    pub sessions_hash: [u8; 32],
}
