//! Streams of committed commands: any number of them, each at its own pace.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::watch;
use voter_mesh::ids::LogIndex;
use voter_mesh::learner::{Committed, Learner, LearnerError};
use voter_mesh::run::RunHeader;

use crate::call::Call;
use crate::driver::Shared;
use crate::error::StreamError;
use crate::history::{RunEnd, Step};

/// How long a stream waits before it asks again for what its server could not give yet.
const FETCH_AGAIN: Duration = Duration::from_millis(100);

/// Effective commands in the order of their indices, none missing and none twice. Ends after its first error, and when the client
/// closes. Holding it does not keep the client open. Dropping it at any point loses nothing but the place.
pub struct CommittedStream(Pin<Box<dyn Stream<Item = Result<Committed, StreamError>> + Send>>);

impl fmt::Debug for CommittedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommittedStream")
    }
}

impl Stream for CommittedStream {
    type Item = Result<Committed, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

struct Collector {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    epoch: u64,
    next: LogIndex,
    /// The last run end at or below what was taken: what is fetched must continue it.
    joint: Option<RunEnd>,
    /// Where the last fetch ended, until the live history was seen to go on there.
    fetched: Option<RunEnd>,
    taken: VecDeque<Committed>,
    ended: bool,
}

impl CommittedStream {
    pub(crate) fn new(shared: Arc<Shared>, from: LogIndex) -> Self {
        let (changed, epoch) = (shared.history.changed(), shared.history.epoch());
        let next = from.max(LogIndex::FIRST);
        let collector =
            Collector { shared, changed, epoch, next, joint: None, fetched: None, taken: VecDeque::new(), ended: false };
        Self(Box::pin(futures_util::stream::unfold(collector, |mut collector| async move {
            let item = collector.item().await?;
            Some((item, collector))
        })))
    }
}

impl Collector {
    async fn item(&mut self) -> Option<Result<Committed, StreamError>> {
        loop {
            if let Some(entry) = self.taken.pop_front() {
                return Some(Ok(entry));
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            let error = match self.shared.history.step(self.next, self.epoch, self.fetched) {
                Step::Take { entries, end, joint } => {
                    self.next = end.next();
                    (self.joint, self.fetched) = (Some(joint), None);
                    self.taken = entries;
                    continue;
                }
                Step::Fetch { to } => match self.fetch(to).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Step::Wait => {
                    // The sender lives in what we hold.
                    let _ = self.changed.changed().await;
                    continue;
                }
                Step::Ended(error) => error,
            };
            self.ended = true;
            // What came in the same answer as the error is not given behind it.
            self.taken.clear();
            return Some(Err(error));
        }
    }

    async fn fetch(&mut self, to: LogIndex) -> Result<(), StreamError> {
        // From a run's end on, so that it is seen to go on there.
        let from = self.joint.map_or(self.next, |(end, _)| end.next());
        let pieces = Call::new(&self.shared, |core, waiter, _| core.fetch(from, to, waiter)).await;
        let pieces = pieces.unwrap_or_else(|| Err(StreamError::Closed(crate::CloseReason::TaskEnded)))?;
        if !self.take(pieces)? {
            tokio::time::sleep(FETCH_AGAIN).await;
        }
        Ok(())
    }

    /// Takes fetched blocks in; whether they lead on.
    fn take(&mut self, pieces: Vec<Bytes>) -> Result<bool, StreamError> {
        let Some(head) = pieces.first().and_then(|piece| RunHeader::decode(piece).ok()) else { return Ok(false) };
        let (after, chain) = self.joint.unwrap_or((head.first.previous(), head.chain_before));
        let mut learner = Learner::at(after, chain);
        let (next, taken) = (self.next, &mut self.taken);
        for mut piece in pieces {
            let whole = learner.apply_blocks(&mut piece, &mut (), &mut |entry| {
                if entry.index >= next {
                    taken.push_back(entry);
                }
            });
            match whole {
                Ok(()) => {}
                // Blocks follow each other, and the first one holds what was asked for: runs that begin elsewhere are another history's.
                Err(LearnerError::Diverged { .. } | LearnerError::NotNext { .. } | LearnerError::Old { .. }) => {
                    return Err(StreamError::Diverged { after: learner.applied() });
                }
                Err(_) => break,
            }
        }
        if learner.applied() < next {
            return Ok(false);
        }
        self.next = learner.applied().next();
        self.joint = Some((learner.applied(), learner.chain()));
        self.fetched = self.joint;
        Ok(true)
    }
}
