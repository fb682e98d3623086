//! The thread that owns the log: whatever waits goes into one pass of writes and one sync.
//!
//! A disk without room stops nothing but the writing: what waits stays in its bounded queue, and is tried again every now and then at
//! the same place. A sync that failed ends the thread.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;
use voter_mesh::ids::{RunIndex, Term};

use super::error::WriteFailed;
use super::log::{Batch, Log};
use super::reader::LogReader;
use crate::host::{Host, Step, Worker, WorkerHandle};

/// How often a disk without room is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// What may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterLimits {
    /// Batches that may wait. Default 1024.
    pub batches_max: usize,
    /// Bytes of runs that may wait; one batch alone may be larger. Default 64 MiB.
    pub bytes_max: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self { batches_max: 1024, bytes_max: 64 << 20 }
    }
}

/// What the writer tells its owner, from its own thread. `Failed` is the last.
#[derive(Debug)]
pub enum LogEvent {
    /// All batches up to this number are durable.
    Written {
        /// The highest one.
        number: u64,
    },
    /// The log was trimmed.
    Trimmed {
        /// Its first run now.
        first: RunIndex,
        /// The term of the run before it.
        term_before: Term,
    },
    /// The disk has no room for the next segment, or for what waits: as the system says why. Batches are taken as long as the queue has
    /// room, and become durable as far as the present segment has.
    Full {
        /// The file, the deed and the system's reason.
        why: String,
    },
    /// After [`LogEvent::Full`]: there is room again.
    Room,
    /// A batch was refused, or the disk failed. The writer has stopped, and nothing is tried again.
    Failed(WriteFailed),
}

/// Why a batch was not taken. It is unchanged, and nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubmitRefused {
    /// Too much waits: submit it again after the next [`LogEvent`].
    #[error("too much waits for the disk")]
    Full,
    /// The writer has stopped; [`LogEvent::Failed`] said why.
    #[error("the log's writer has stopped")]
    Stopped,
}

enum Command {
    Write(Batch),
    AcceptEnd,
    SettleVote,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    bytes: usize,
    /// Segments below this run may go.
    trim: Option<RunIndex>,
    closing: bool,
    stopped: bool,
}

#[derive(Default)]
struct Shared(Mutex<Queue>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nobody panics while holding it, and a half-made change cannot be seen.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's thread. Dropping it writes what waits and ends it.
pub struct LogWriter {
    shared: Arc<Shared>,
    limits: WriterLimits,
    reader: LogReader,
    /// Last: dropping it waits for what the queue's end asks for.
    worker: Box<dyn WorkerHandle>,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl LogWriter {
    /// Starts the thread. `tell` is called on it: it must not block, for the disk waits meanwhile.
    ///
    /// # Errors
    /// If the system has no thread to give; the log is closed then, as it was.
    pub fn start(log: Log, limits: WriterLimits, host: &dyn Host, tell: impl FnMut(LogEvent) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = log.reader();
        // At once: a disk that is full already should be known as such.
        let retry_at = Some(Instant::now());
        let work = Work { log, waiting: VecDeque::new(), written: None, trim: None, is_full: false, retry_at };
        let worker = Writing { work, tell: Box::new(tell), shared: StopOnExit(Arc::clone(&shared)) };
        Ok(Self { shared, limits, reader, worker: host.start("log-writer", Box::new(worker))? })
    }

    /// Hands over a batch without waiting. It will be durable when [`LogEvent::Written`] names its number or a later one.
    ///
    /// # Errors
    /// [`SubmitRefused`], and the batch.
    pub fn submit(&self, batch: Batch) -> Result<(), (SubmitRefused, Box<Batch>)> {
        let bytes = batch.bytes();
        let mut queue = self.shared.lock();
        if queue.stopped || queue.closing {
            return Err((SubmitRefused::Stopped, Box::new(batch)));
        }
        let waits = !queue.commands.is_empty();
        if waits && (queue.commands.len() >= self.limits.batches_max || queue.bytes + bytes > self.limits.bytes_max) {
            return Err((SubmitRefused::Full, Box::new(batch)));
        }
        queue.bytes += bytes;
        queue.commands.push_back(Command::Write(batch));
        drop(queue);
        self.worker.wake();
        Ok(())
    }

    /// Asks to drop the segments that hold only runs below `below`, between two passes; answered by [`LogEvent::Trimmed`]. Of several
    /// that wait, the highest counts. It is done also while the disk is full: it makes room.
    pub fn trim(&self, below: RunIndex) {
        let mut queue = self.shared.lock();
        queue.trim = queue.trim.max(Some(below));
        drop(queue);
        self.worker.wake();
    }

    /// [`Log::accept_end`], before any batch that is submitted later.
    pub fn accept_end(&self) {
        self.once(Command::AcceptEnd, |command| matches!(command, Command::AcceptEnd));
    }

    /// [`Log::settle_vote`], before any batch that is submitted later.
    pub fn settle_vote(&self) {
        self.once(Command::SettleVote, |command| matches!(command, Command::SettleVote));
    }

    /// Reads of what is durable, from any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Writes what waits, tells of it, and ends the thread.
    pub fn close(self) {}

    fn once(&self, command: Command, is_same: impl Fn(&Command) -> bool) {
        let mut queue = self.shared.lock();
        if !queue.commands.iter().any(is_same) {
            queue.commands.push_back(command);
        }
        drop(queue);
        self.worker.wake();
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
    }
}

/// Marks the queue as stopped however the thread ends.
struct StopOnExit(Arc<Shared>);

impl Drop for StopOnExit {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.stopped = true;
        queue.commands.clear();
        queue.bytes = 0;
        queue.trim = None;
    }
}

/// What the thread does.
struct Writing {
    work: Work,
    tell: Box<dyn FnMut(LogEvent) + Send>,
    shared: StopOnExit,
}

impl Worker for Writing {
    /// One pass, if there is anything to do.
    fn step(&mut self) -> Step {
        let work = &mut self.work;
        let mut queue = self.shared.0.lock();
        let is_due = work.retry_at.is_some_and(|at| at <= Instant::now());
        let is_stuck = work.is_stuck() && !is_due;
        if queue.closing && queue.trim.is_none() && (queue.commands.is_empty() || is_stuck) {
            // What is still without room was confirmed to nobody.
            return Step::Done;
        }
        if queue.trim.is_none() && (queue.commands.is_empty() || is_stuck) && !is_due {
            return Step::Wait(work.retry_at);
        }
        if !work.is_stuck() {
            std::mem::swap(&mut work.waiting, &mut queue.commands);
            queue.bytes = 0;
        }
        work.trim = work.trim.max(queue.trim.take());
        drop(queue);
        match work.turn(&mut self.tell) {
            Ok(()) => Step::Again,
            Err(failure) => {
                // The queue is closed before the owner hears of it: whoever was told can submit nothing more.
                self.shared.0.lock().stopped = true;
                (self.tell)(LogEvent::Failed(failure));
                Step::Done
            }
        }
    }
}

/// The log, and what it is at.
struct Work {
    log: Log,
    /// What was submitted and is not taken.
    waiting: VecDeque<Command>,
    /// The last batch that was taken and is not synced.
    written: Option<u64>,
    trim: Option<RunIndex>,
    /// What the owner was told.
    is_full: bool,
    /// When room is looked for.
    retry_at: Option<Instant>,
}

impl Work {
    /// Whether something that was submitted waits for room.
    fn is_stuck(&self) -> bool {
        !self.waiting.is_empty() || self.written.is_some()
    }

    /// Writes as much as there is room for, and tells how it went.
    fn turn(&mut self, tell: &mut impl FnMut(LogEvent)) -> Result<(), WriteFailed> {
        let is_due = self.retry_at.is_none_or(|at| at <= Instant::now());
        let done = self.trim(tell).and_then(|()| self.pass(tell));
        match done.and_then(|()| if is_due { Ok(self.log.reserve()?) } else { Ok(()) }) {
            Ok(()) if is_due => {
                self.retry_at = None;
                if std::mem::take(&mut self.is_full) {
                    tell(LogEvent::Room);
                }
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(WriteFailed::Disk(error)) if error.is_full() => {
                self.retry_at = Some(Instant::now() + ROOM_RETRY);
                if !std::mem::replace(&mut self.is_full, true) {
                    tell(LogEvent::Full { why: error.to_string() });
                }
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// One pass: everything that waits, one sync.
    fn pass(&mut self, tell: &mut impl FnMut(LogEvent)) -> Result<(), WriteFailed> {
        let mut refused = None;
        while let Some(command) = self.waiting.front() {
            match command {
                Command::Write(batch) => match self.log.take(batch) {
                    Ok(()) => self.written = Some(batch.number),
                    Err(WriteFailed::Disk(error)) => return Err(error.into()),
                    Err(failure) => {
                        refused = Some(failure);
                        break;
                    }
                },
                Command::AcceptEnd => self.log.accept_end(),
                Command::SettleVote => self.log.settle_vote(),
            }
            self.waiting.pop_front();
        }
        self.log.sync()?;
        if let Some(number) = self.written.take() {
            tell(LogEvent::Written { number });
        }
        refused.map_or(Ok(()), Err)
    }

    fn trim(&mut self, tell: &mut impl FnMut(LogEvent)) -> Result<(), WriteFailed> {
        if let Some(below) = self.trim {
            let (first, term_before) = self.log.trim(below)?;
            self.trim = None;
            tell(LogEvent::Trimmed { first, term_before });
        }
        Ok(())
    }
}
