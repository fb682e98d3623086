//! Looking at a server's directory with the eyes of its next start, and a little more: nothing is changed, and everything is read.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use voter_mesh::configuration::{ConfigPayload, Configuration};
use voter_mesh::ids::{Identity, LogIndex, RaftId, RunIndex, Term};
use voter_mesh::log::Verdict;
use voter_mesh::mesh::forming::FormState;
use voter_mesh::run::{Run, Tail};
use voter_mesh::snapshot::SnapshotMeta;

use crate::disk::{DataDir, DiskError, Log, LogLook, LogOptions, SnapshotFile, VerdictStore};
use crate::limits::ServerLimits;

/// What a directory holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Runs in the log, up to its end.
    pub records: u64,
    /// The log's first entry; behind the last one where there is none.
    pub first_index: LogIndex,
    /// The log's last entry.
    pub last_index: LogIndex,
    /// The highest durable term.
    pub term: Term,
    /// Whole snapshots.
    pub snapshots: u64,
    /// Something that was or may have been acknowledged is missing from the log: the server counts for nothing until it is whole.
    pub suspect: bool,
    /// What is wrong, and where.
    pub errors: Vec<String>,
    /// What looks odd and is not wrong, such as the rest of a write that a power cut has ended.
    pub notes: Vec<String>,
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn ok(&self) -> bool {
        self.errors.is_empty() && !self.suspect
    }
}

/// About how many bytes [`verify`] reads.
#[must_use]
pub fn verify_bytes(directory: &Path) -> u64 {
    let bytes = |name, times| {
        let entries = std::fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len() * times).sum::<u64>()
    };
    bytes("log", 1) + bytes("snapshots", 2) + bytes("verdicts", 1)
}

/// Reads everything in a server's directory and checks it by the rules of a start. The bytes that are read are added to `read`, while
/// it works. No server may use the directory; none can start on it meanwhile.
///
/// # Errors
/// `Locked` if a server uses it; `Newer` and `Io` if it cannot be read. What is damaged is no error here: [`Verified`] says it.
pub fn verify(directory: &Path, read: &Arc<AtomicU64>) -> Result<Verified, DiskError> {
    let mut found = Verified::default();
    let dir = match DataDir::look(directory, Arc::clone(read)) {
        Err(error @ DiskError::Damaged { .. }) => {
            found.errors.push(error.to_string());
            return Ok(found);
        }
        result => result?,
    };
    let Some(node) = dir.node() else {
        found.errors.push(format!("{} holds no node record: it belongs to no server yet, or lost it", directory.display()));
        return Ok(found);
    };
    let (Some(id), Some(identity)) = (node.id, node.identity) else { return Ok(found) };
    let Inspected { snapshots, newest, look, .. } = Inspected::of(&dir, id, identity, node.state == FormState::Formed)?;
    found.snapshots = snapshots.iter().filter(|checked| checked.is_ok()).count() as u64;
    found.errors.extend(snapshots.into_iter().filter_map(Result::err).map(|error| error.to_string()));
    let verdicts = VerdictStore::check(&dir, identity, ServerLimits::default().verdict_bytes_max)?;
    found.errors.extend(verdicts.iter().map(ToString::to_string));
    match look {
        Ok(look) => found.take(&look),
        Err(error @ (DiskError::Io { .. } | DiskError::Newer { .. })) => return Err(error),
        // It has just been formed, or was let in and has not had its first snapshot yet.
        Err(DiskError::NoLog { .. }) if newest.is_none() => {}
        Err(error) => found.errors.push(error.to_string()),
    }
    Ok(found)
}

impl Verified {
    fn take(&mut self, look: &LogLook) {
        let recovered = look.recovered();
        let tail = &recovered.tail;
        self.records = tail.run.0 - recovered.before_first.0.0.min(tail.run.0);
        let first = recovered.before_first.0.next();
        let first = look.reader().read(first, first, 1).unwrap_or_default();
        self.first_index = first.first().map_or(tail.last.next(), |run| run.header().first);
        (self.last_index, self.term) = (tail.last, recovered.term);
        self.suspect = recovered.must_reach.is_some();
        self.errors.extend(look.damage().iter().map(ToString::to_string));
        if let Some((path, at)) = look.unreadable_mark() {
            self.errors.push(format!("{} at byte {at}: a mark cannot be read, and with it perhaps a vote", path.display()));
        }
        let goal = recovered.must_reach.map_or(RunIndex::ZERO, |goal| goal.run);
        match recovered.verdict {
            Verdict::Clean => {}
            Verdict::Torn => self.notes.push(format!(
                "behind run {} stands the rest of a write that nobody was told of; the next start cuts it",
                tail.run
            )),
            Verdict::Doubtful => self.errors.push(format!(
                "the log ends at run {}, its last batch, up to run {goal}, is incomplete and may have been acknowledged",
                tail.run
            )),
            Verdict::Suspect => {
                self.errors.push(format!("the log ends at run {}, and acknowledged runs up to {goal} are missing", tail.run));
            }
        }
    }
}

/// A member's directory, read through.
pub(super) struct Inspected {
    /// Of each snapshot, whether it is whole.
    pub(super) snapshots: Vec<Result<(), DiskError>>,
    /// The newest whole one.
    pub(super) newest: Option<SnapshotMeta>,
    /// The log behind it.
    pub(super) look: Result<LogLook, DiskError>,
    /// The configuration at the log's end, committed or not.
    pub(super) configuration: Configuration,
}

impl Inspected {
    /// Looks at the directory of the member `id`. `formed`: it was there when the cluster formed, so that its log may begin without a
    /// snapshot.
    pub(super) fn of(dir: &DataDir, id: RaftId, identity: Identity, formed: bool) -> Result<Self, DiskError> {
        Self::visiting(dir, id, identity, formed, &mut |_| ())
    }

    /// [`Self::of`], with a look at every run behind the newest whole snapshot.
    pub(super) fn visiting(
        dir: &DataDir,
        id: RaftId,
        identity: Identity,
        formed: bool,
        visit: &mut dyn FnMut(&Run),
    ) -> Result<Self, DiskError> {
        let (mut snapshots, mut newest) = (Vec::new(), None::<SnapshotMeta>);
        for (_, file) in SnapshotFile::of(dir, &identity)? {
            let checked = file.and_then(|file| file.check(&mut |_| ()).map(|()| file.meta().clone()));
            match checked {
                Ok(meta) => {
                    if newest.as_ref().is_none_or(|newest| newest.tail.run < meta.tail.run) {
                        newest = Some(meta);
                    }
                    snapshots.push(Ok(()));
                }
                Err(error @ (DiskError::Io { .. } | DiskError::Newer { .. })) => return Err(error),
                Err(error) => snapshots.push(Err(error)),
            }
        }
        let zero = formed.then(|| Tail::zero(&identity));
        let begin = newest.as_ref().map(|meta| meta.tail).or(zero);
        let (mut configuration, mut configured_at) = match (&newest, dir.node()) {
            (Some(meta), _) => (meta.configuration.clone(), meta.configuration_run),
            (None, node) => (node.map(|node| node.configuration.clone()).unwrap_or_default(), Tail::zero(&identity).run),
        };
        let look = Log::look(dir, identity, id, begin.as_ref(), LogOptions::default(), &mut |run, _| {
            // As every replica does.
            if let Some(Ok(payload)) = run.config_payload().map(ConfigPayload::decode)
                && payload.base == configured_at
            {
                (configuration, configured_at) = (payload.configuration, run.header().run);
            }
            visit(run);
        });
        Ok(Self { snapshots, newest, look, configuration })
    }
}
