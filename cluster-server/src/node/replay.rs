//! Applying the log again at a start, while it is still being read: what is known to be committed is applied at once, and only its end
//! stays in memory, as it would have stayed had this process applied it when it came. Nobody waits for answers yet, so none are made.
//!
//! The snapshot is restored on another thread meanwhile. Applying stays on the thread that reads: what comes of it is the same however
//! long either of them takes.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::thread::{Scope, ScopedJoinHandle};

use voter_mesh::ids::LogIndex;
use voter_mesh::replica::{Applied, ApplyError, Replica};
use voter_mesh::run::Run;
use voter_mesh::verdicts::VerdictBook;

use super::NodeError;

/// Bytes of runs that are read ahead of a snapshot that is still being restored.
const AHEAD_BYTES_MAX: usize = 64 << 20;

/// Bytes of applied runs that stay in memory, for clients and peers that are nearly there; others are served from the log. The last run
/// always stays.
const RECENT_BYTES_MAX: usize = 16 << 20;

type Restored = Result<Replica, NodeError>;

/// A replica on its way from the newest snapshot to the log's end.
pub(super) struct Replay<'scope> {
    /// What it begins with, until the first run is applied to it.
    restoring: Option<ScopedJoinHandle<'scope, Restored>>,
    replica: Option<Restored>,
    /// What waits for the snapshot, and its bytes.
    ahead: Vec<Run>,
    ahead_bytes: usize,
    applied: Result<(), ApplyError>,
    verdicts: VerdictBook,
    recent: VecDeque<Applied>,
    recent_bytes: usize,
    unapplied: Vec<Run>,
}

/// What a replay came to.
pub(super) struct Replayed {
    pub(super) replica: Replica,
    /// Whether all was applied that was to be.
    pub(super) applied: Result<(), ApplyError>,
    /// The verdicts of all that was applied, as far as a book holds so many.
    pub(super) verdicts: VerdictBook,
    /// The last runs that were applied.
    pub(super) recent: VecDeque<Applied>,
    /// The runs behind them.
    pub(super) unapplied: Vec<Run>,
}

impl<'scope> Replay<'scope> {
    /// Begins behind the entry `after` with the replica that `restore` gives, on a thread of `scope`.
    pub(super) fn begin(
        scope: &'scope Scope<'scope, '_>,
        restore: impl FnOnce() -> Restored + Send + 'scope,
        after: LogIndex,
        verdict_bytes_max: usize,
    ) -> Self {
        Self {
            restoring: Some(scope.spawn(restore)),
            replica: None,
            ahead: Vec::new(),
            ahead_bytes: 0,
            applied: Ok(()),
            verdicts: VerdictBook::new(after, verdict_bytes_max),
            recent: VecDeque::new(),
            recent_bytes: 0,
            unapplied: Vec::new(),
        }
    }

    /// Takes the log's next run. Behind one that is not known to be committed, none is.
    pub(super) fn take(&mut self, run: &Run, committed: bool) {
        if !committed {
            return self.unapplied.push(run.clone());
        }
        self.ahead.push(run.clone());
        self.ahead_bytes += run.bytes().len();
        let waits = self.restoring.as_ref().is_some_and(|restoring| !restoring.is_finished());
        if !waits || self.ahead_bytes > AHEAD_BYTES_MAX {
            self.catch_up();
        }
    }

    /// Applies what waits.
    fn catch_up(&mut self) {
        if let Some(restoring) = self.restoring.take() {
            self.replica = Some(restoring.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        self.ahead_bytes = 0;
        let Some(Ok(replica)) = &mut self.replica else { return self.ahead.clear() };
        for run in self.ahead.drain(..) {
            if self.applied.is_err() {
                continue;
            }
            match replica.replay(&run) {
                Ok(applied) => {
                    self.verdicts.push(run.header().first, run.header().count, &applied.verdicts);
                    self.recent_bytes += kept_bytes(&applied);
                    self.recent.push_back(applied);
                }
                Err(error) => self.applied = Err(error),
            }
            while self.recent_bytes > RECENT_BYTES_MAX && self.recent.len() > 1 {
                self.recent_bytes -= self.recent.pop_front().as_ref().map_or(0, kept_bytes);
            }
        }
    }

    /// The log has been read.
    ///
    /// # Errors
    /// Those of restoring the snapshot.
    pub(super) fn finish(mut self) -> Result<Replayed, NodeError> {
        self.catch_up();
        let Self { replica, applied, verdicts, recent, unapplied, .. } = self;
        let replica = replica.expect("catching up waits for it")?;
        Ok(Replayed { replica, applied, verdicts, recent, unapplied })
    }
}

/// What it costs to keep: for small runs the headers in memory weigh as much as their bytes.
fn kept_bytes(applied: &Applied) -> usize {
    applied.run.bytes().len() + size_of::<Applied>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use bytes::Bytes;
    use voter_mesh::configuration::Configuration;
    use voter_mesh::entry::{EntryKind, EntrySpec, entry};
    use voter_mesh::ids::{ClusterId, Epoch, Identity, Opening, RequestId, RoomId, SessionId, Term, TimeMs};
    use voter_mesh::machine::log;
    use voter_mesh::replica::ReplicaLimits;
    use voter_mesh::run::Tail;

    use super::*;

    const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };
    const OPEN: EntrySpec = EntrySpec::internal(EntryKind::SessionOpen);

    fn fresh() -> Replica {
        Replica::form(IDENTITY, Configuration::default(), &log::factory(), ReplicaLimits::default())
    }

    /// A session, and 40 commands of 512 KiB; every other one is the one before it once more.
    fn runs() -> Vec<Run> {
        let command = |number: u64| EntrySpec {
            kind: EntryKind::Command,
            session: SessionId(1),
            opening: Opening(1),
            request: RequestId(number / 2),
            ..OPEN
        };
        let (mut tail, payload) = (Tail::zero(&IDENTITY), vec![7; 512 << 10]);
        let commands = (0..40).map(|number| entry(&command(number), &payload).unwrap());
        let entries = [entry(&OPEN, &[1; 32]).unwrap()].into_iter().chain(commands);
        let seal = |entry: Bytes| {
            let run = Run::seal(&tail, Term(1), TimeMs(5), IDENTITY.epoch, IDENTITY.room, &[&entry]).unwrap();
            tail = run.header().tail();
            run
        };
        entries.map(seal).collect()
    }

    fn written(replica: &Replica) -> (Vec<u8>, Vec<u8>) {
        let (mut state, mut sessions) = (Vec::new(), Vec::new());
        replica.image().write(&mut state, &mut sessions).unwrap();
        (state, sessions)
    }

    #[test]
    fn what_is_read_while_the_snapshot_is_restored_is_applied_behind_it() {
        let runs = runs();
        let (go, gate) = mpsc::channel::<()>();
        let replayed = thread::scope(|scope| {
            let restore = move || {
                gate.recv().unwrap();
                Ok(fresh())
            };
            let mut replay = Replay::begin(scope, restore, LogIndex::ZERO, 1 << 20);
            runs[..30].iter().for_each(|run| replay.take(run, true));
            assert_eq!((replay.ahead.len(), replay.replica.is_some()), (30, false), "it waits for the snapshot");
            go.send(()).unwrap();
            runs[30..38].iter().for_each(|run| replay.take(run, true));
            runs[38..].iter().for_each(|run| replay.take(run, false));
            replay.finish().unwrap()
        });

        let mut expected = fresh();
        let told: Vec<_> = runs[..38].iter().map(|run| expected.apply(run).unwrap()).collect();
        assert_eq!(replayed.applied, Ok(()));
        assert_eq!(written(&replayed.replica), written(&expected), "state, and sessions with their replies");
        for applied in &told {
            let header = applied.run.header();
            assert_eq!(replayed.verdicts.get(header.first, header.count).as_ref(), Some(&applied.verdicts));
        }
        assert_eq!(replayed.unapplied, runs[38..]);
        let recent: Vec<_> = replayed.recent.iter().map(|applied| (&applied.run, &applied.verdicts)).collect();
        let last: Vec<_> = told.iter().map(|applied| (&applied.run, &applied.verdicts)).collect();
        assert!(last.ends_with(&recent), "only the end stays, and without a gap");
        let bytes: usize = replayed.recent.iter().map(kept_bytes).sum();
        assert!((RECENT_BYTES_MAX - (1 << 20)..=RECENT_BYTES_MAX).contains(&bytes), "{bytes} bytes stay");
    }

    #[test]
    fn a_run_that_does_not_go_on_ends_the_replay_where_it_stood() {
        let runs = runs();
        let replayed = thread::scope(|scope| {
            let mut replay = Replay::begin(scope, || Ok(fresh()), LogIndex::ZERO, 1 << 20);
            [&runs[0], &runs[2], &runs[1]].into_iter().for_each(|run| replay.take(run, true));
            replay.finish().unwrap()
        });
        assert!(matches!(replayed.applied, Err(ApplyError::NotNext { .. })));
        assert_eq!(replayed.replica.tail(), &runs[0].header().tail());
    }

    #[test]
    fn a_snapshot_that_cannot_be_restored_is_the_error_and_nothing_is_kept_for_it() {
        let runs = runs();
        let error = thread::scope(|scope| {
            let mut replay = Replay::begin(scope, || Err(NodeError::Fatal("unread".into())), LogIndex::ZERO, 1 << 20);
            runs.iter().for_each(|run| replay.take(run, true));
            replay.finish().err()
        });
        assert!(matches!(error, Some(NodeError::Fatal(why)) if why == "unread"));
    }
}
