//! The way out when a server does not start because something is lost: say what, and accept it.
//!
//! Only a server that nobody can heal needs it. A member of a cluster that still has a quorum heals by itself, or comes back as a
//! newcomer with an empty directory; accepting a loss there could lose what the others still have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use voter_mesh::epoch::{EpochRefused, NextEpoch};
use voter_mesh::ids::{Identity, LogIndex, RaftId};
use voter_mesh::log::Verdict;
use voter_mesh::machine::{MachineFactory, RestoreError as StateError};
use voter_mesh::mesh::forming::FormState;
use voter_mesh::replica::{Replica, ReplicaImage, ReplicaLimits};
use voter_mesh::run::Run;
use voter_mesh::snapshot::SnapshotMeta;

use super::restore::{RestoreError, Restored, begin};
use super::verify::Inspected;
use crate::disk::{DataDir, DiskError, Log, LogLook, LogOptions, SnapshotFile};

/// Why nothing was recovered. Unless it is an `Io` of a write, the log is as it was; damaged snapshots may have been set aside.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The directory does not say whose it is.
    #[error(
        "{0} holds no node record of a member: restore a backup, or let the server come back as a newcomer, with an empty directory"
    )]
    NoMember(PathBuf),
    /// A voter among others would forget what it has voted for, and with it could elect two leaders.
    #[error(
        "{why}. This server votes among others, so its log cannot be replaced: remove the directory, and it comes back as a newcomer; \
         if no quorum is left, restore a backup or make a survivor the sole voter"
    )]
    Voter {
        /// What is wrong with the log.
        why: String,
    },
    /// Neither a snapshot nor the beginning of the log is left.
    #[error("no snapshot is whole, and the log does not begin at the beginning ({why}): restore a backup")]
    NoState {
        /// What is wrong.
        why: String,
    },
    /// The directory holds a state of another machine than the one given, or one that it cannot read.
    #[error("the state cannot be read: {0}")]
    State(#[from] StateError),
    /// The state machine or the history ends the way.
    #[error("the log cannot be applied: {0}")]
    Apply(#[from] voter_mesh::replica::ApplyError),
    /// The new directory was not made.
    #[error(transparent)]
    New(#[from] RestoreError),
    /// The directory cannot be read or written, is in use, or belongs to somebody else.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<EpochRefused> for RecoverError {
    fn from(refused: EpochRefused) -> Self {
        Self::New(refused.into())
    }
}

/// What is wrong with a directory, and what accepting it means.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Other servers vote too: they may have what is missing.
    pub has_peers: bool,
    /// What is lost when it is accepted; nothing if the server starts anyway.
    pub losses: Vec<String>,
    /// What is damaged without a loss, or odd.
    pub notes: Vec<String>,
    /// The last entry that is left.
    pub last_index: LogIndex,
    /// The files that were set aside; empty as long as nothing is accepted.
    pub aside: Vec<PathBuf>,
}

/// Explains what a server would lose if it had to start from its directory as it is, and with `accept_loss` makes it so: damaged files
/// are left beside under `*.damaged`, the log ends before the first run that is missing, and its mark demands no more than that.
///
/// # Errors
/// [`RecoverError`].
pub fn recover(directory: &Path, accept_loss: bool) -> Result<Recovery, RecoverError> {
    let dir = if accept_loss { DataDir::open(directory)? } else { DataDir::look(directory, Arc::default())? };
    let (id, identity, formed) = member(&dir)?;
    let mut recovery = Recovery::default();
    for (path, file) in SnapshotFile::of(&dir, &identity)? {
        if let Err(error) = file.and_then(|file| file.check(&mut |_| ())) {
            if !matches!(error, DiskError::Damaged { .. }) {
                return Err(error.into());
            }
            recovery.notes.push(format!("{error}; it is of no use to anybody"));
            let aside = dir.set_aside(&path)?;
            recovery.aside.push(aside);
        }
    }
    loop {
        let Inspected { newest, look, configuration, .. } = Inspected::of(&dir, id, identity, formed)?;
        recovery.has_peers = configuration.voters() != [id] || configuration.is_joint();
        let state =
            newest.as_ref().map_or_else(|| "the beginning".into(), |meta| format!("the snapshot at index {}", meta.tail.last));
        match look {
            Ok(look) => {
                recovery.end(look, accept_loss)?;
                break;
            }
            // What is not the log's own damage nobody here can judge.
            Err(
                error @ (DiskError::Io { .. } | DiskError::Newer { .. } | DiskError::Foreign { .. } | DiskError::Diverged { .. }),
            ) => {
                return Err(error.into());
            }
            Err(error) if recovery.has_peers => return Err(RecoverError::Voter { why: error.to_string() }),
            Err(DiskError::Damaged { path, why }) => {
                recovery.losses.push(format!("{} is damaged: {why}. It and all later segments are lost", path.display()));
                recovery.aside.extend(Log::set_aside(&dir, Some(&path))?);
            }
            Err(error @ (DiskError::Gap { .. } | DiskError::NoLog { .. })) => {
                let Some(begin) = newest.map(|meta| meta.tail) else {
                    return Err(RecoverError::NoState { why: error.to_string() });
                };
                recovery.losses.push(format!("{error}. Everything behind {state} is lost"));
                recovery.aside.extend(Log::set_aside(&dir, None)?);
                recovery.last_index = begin.last;
                if accept_loss {
                    drop(Log::create(&dir, identity, id, begin, LogOptions::default())?);
                }
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !accept_loss {
        // Nothing was, it only looked so.
        recovery.aside.clear();
    }
    Ok(recovery)
}

fn member(dir: &DataDir) -> Result<(RaftId, Identity, bool), RecoverError> {
    let node = dir.node().and_then(|node| Some((node.id?, node.identity?, node.state == FormState::Formed)));
    node.ok_or_else(|| RecoverError::NoMember(dir.path().into()))
}

impl Recovery {
    /// Takes the log's end as it is.
    fn end(&mut self, look: LogLook, accept: bool) -> Result<(), DiskError> {
        let recovered = look.recovered();
        let tail = recovered.tail;
        self.last_index = tail.last;
        self.notes.extend(look.damage().iter().map(ToString::to_string));
        let Some(goal) = recovered.must_reach else { return Ok(()) };
        if recovered.verdict == Verdict::Doubtful && !self.has_peers {
            self.notes.push(format!(
                "the last batch, up to run {}, is incomplete; the server cuts it at its next start, and says so",
                goal.run
            ));
            return Ok(());
        }
        let range = if goal.run > tail.run {
            format!("runs {} to {}", tail.run.next(), goal.run)
        } else {
            format!("run {} of term {}", goal.run, goal.term)
        };
        let entries = goal.last.0.saturating_sub(tail.last.0);
        let word = if recovered.verdict == Verdict::Doubtful { "may have been" } else { "were" };
        self.losses.push(format!("{range}, {entries} entries above index {}, are lost; they {word} acknowledged", tail.last));
        if accept {
            self.aside.extend(look.keep_lost()?);
            let (mut log, _) = look.open()?;
            log.accept_end();
            log.sync()?;
        }
        Ok(())
    }
}

/// Makes `new`, which must be empty or missing, the directory of a cluster whose only voter sits on the same seat: the next epoch, with
/// the state and the sessions at the end of this server's log, committed or not. The old directory is only read. For when the others
/// are gone for good: what this server had not received yet is lost.
///
/// # Errors
/// [`RecoverError`]. The old directory is as it was in any case, and `new` is empty again.
pub fn recover_alone(
    directory: &Path,
    new: &Path,
    machine: impl Fn(&SnapshotMeta) -> Option<MachineFactory>,
) -> Result<Restored, RecoverError> {
    let dir = DataDir::look(directory, Arc::default())?;
    let (id, identity, formed) = member(&dir)?;
    let newest = Inspected::of(&dir, id, identity, formed)?.newest;
    let Some(meta) = newest else { return Err(RecoverError::NoState { why: "there is no snapshot".into() }) };
    let other = || StateError::OtherMachine { name: meta.machine_name.clone(), version: meta.machine_version };
    let machine = machine(&meta).ok_or_else(other)?;
    let files = SnapshotFile::of(&dir, &identity)?.into_iter().filter_map(|(_, file)| file.ok());
    let Some(file) = files.into_iter().find(|file| *file.meta() == meta) else {
        return Err(RecoverError::NoState { why: "the snapshot has gone".into() });
    };
    let unread = |source| DiskError::Io { path: file.path().into(), doing: "unpack", source };
    let (mut state, mut sessions) = (file.state().map_err(unread)?, file.sessions().map_err(unread)?);
    let mut replica = Replica::restore(&meta, &mut state, &mut sessions, &machine, ReplicaLimits::default())?;
    let mut applied = Ok(());
    let mut apply = |run: &Run| {
        if applied.is_ok() {
            applied = replica.replay(run).map(drop);
        }
    };
    Inspected::visiting(&dir, id, identity, formed, &mut apply)?.look?;
    applied?;
    super::restore::into_empty(new, |dir| {
        let ReplicaImage { meta, machine, sessions } = replica.image();
        let next = NextEpoch::after(&meta, id.seat(), None, dir.directory())?;
        begin(dir, next, |to| machine.write(to), |to| sessions.write(to))
    })
    .map_err(RecoverError::New)
}
