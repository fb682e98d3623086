//! A server's data directory: the only code of the product that writes the server's files.
//!
//! ```text
//! DIR/LOCK                         held while a process uses the directory
//! DIR/node                         who this server is: [`NodeRecord`]
//! DIR/log/SEQUENCE.seg             segments of the log, 16 hex digits; rules in [`voter_mesh::log`]
//! DIR/log/SEQUENCE.spare           a file that waits to become a segment: a trimmed one, or one that was made ahead
//! DIR/snapshots/RUN-TERM.snap      the newest snapshot and the one before it
//! DIR/verdicts/AFTER-THROUGH.bits  which entries of the kept runs took effect, 16 hex digits each
//! ```
//!
//! * [`DataDir`] locks the directory and keeps the node record. [`SnapshotStore`] writes, receives and reads snapshots.
//!   [`VerdictStore`] keeps what clients need beside old runs, [`StateFiles`] writes states out for them.
//! * [`Log`] is the log itself, used by one thread at a time: [`Log::create`] once in a life, [`Log::recover`] at every other start.
//! * [`LogWriter`] is the thread that then owns it: all that waits goes into one write pass and one sync. [`LogReader`] reads what is
//!   durable, on any thread, while the writer appends and trims.
//!
//! All of it runs on a [`FileSystem`], which is an argument: the operating system's, or one that a test can cut off at any point.
//!
//! Files are replaced, never edited, except for the newest segment: temporary name, sync, rename, sync of the directory. A write or
//! sync that failed is never tried again: the kernel may have marked the lost pages clean, and a retry would lie. Only a write that
//! found no room is: nothing was synced meanwhile, and it goes to the same place.
//! Every byte is drawn in `docs/formats.md`.

mod data_dir;
mod error;
mod file_system;
mod files;
mod index;
mod log;
mod read_only;
mod reader;
mod recovery;
mod snapshot_file;
mod snapshots;
mod states;
mod verdicts;
mod walk;
mod writer;

pub use data_dir::{DataDir, NodeRecord};
pub use error::{DiskError, WriteFailed};
pub use file_system::{DiskFile, FileSystem, Open, OsFiles};
pub use log::{Batch, Log, LogOptions};
pub use read_only::ReadOnlyFiles;
pub use reader::{LogReader, Pin, ReadError};
pub use recovery::{LogLook, LogRecovered};
pub use snapshot_file::{SnapshotFile, SnapshotFound};
pub(crate) use snapshots::write_snapshot;
pub use snapshots::{Receiving, SNAPSHOT_BYTES_MAX, SnapshotStore};
pub use states::{StateFile, StateFiles};
pub use verdicts::VerdictStore;
pub use walk::Damage;
pub use writer::{LogEvent, LogWriter, SubmitRefused, WriterLimits};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
