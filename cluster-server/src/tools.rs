//! What an operator does to data directories on which no server runs.
//!
//! * [`restore`] — begin a new epoch from a backup.
//! * [`verify`] — what is right and wrong with a directory.
//! * [`recover`] — accept what is lost; [`recover_alone`] — go on with one survivor.
//!
//! Each works on the disk's own code and rules; nothing here knows a byte of a file.

mod recover;
mod restore;
mod verify;

pub use recover::{RecoverError, Recovery, recover, recover_alone};
pub use restore::{RestoreError, Restored, restore};
pub use verify::{Verified, verify, verify_bytes};
