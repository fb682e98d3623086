//! What an operator does to data directories on which no server runs.
//!
//! * [`restore`] — begin a new epoch from a backup.
//!
//! Each works on the disk's own code and rules; nothing here knows a byte of a file.

mod restore;

pub use restore::{RestoreError, Restored, restore};
