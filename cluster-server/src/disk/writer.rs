//! The thread that owns the log: whatever waits goes into one pass of writes and one sync.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use thiserror::Error;
use voter_mesh::ids::{RunIndex, Term};

use super::error::WriteFailed;
use super::log::{Batch, Log};
use super::reader::LogReader;

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
    Trim(RunIndex),
    AcceptEnd,
    SettleVote,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    bytes: usize,
    closing: bool,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nobody panics while holding it, and a half-made change cannot be seen.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's thread. Dropping it writes what waits and ends it.
pub struct LogWriter {
    shared: Arc<Shared>,
    limits: WriterLimits,
    reader: LogReader,
    thread: Option<JoinHandle<()>>,
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
    pub fn spawn(log: Log, limits: WriterLimits, tell: impl FnMut(LogEvent) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = log.reader();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log-writer".into()).spawn(move || {
            let _stop = StopOnExit(Arc::clone(&theirs));
            run(log, &theirs, tell);
        })?;
        Ok(Self { shared, limits, reader, thread: Some(thread) })
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
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Asks to drop the segments that hold only runs below `below`, between two batches; answered by [`LogEvent::Trimmed`]. Of
    /// several that wait, the highest counts.
    pub fn trim(&self, below: RunIndex) {
        let mut queue = self.shared.lock();
        let waiting = queue.commands.iter_mut().find_map(|command| match command {
            Command::Trim(below) => Some(below),
            _ => None,
        });
        match waiting {
            Some(waiting) => *waiting = below.max(*waiting),
            None => queue.commands.push_back(Command::Trim(below)),
        }
        drop(queue);
        self.shared.wake.notify_one();
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
        self.shared.wake.notify_one();
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there is a bug in `tell`; the log itself recovers at the next start.
            let _ = thread.join();
        }
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
    }
}

fn run(mut log: Log, shared: &Shared, mut tell: impl FnMut(LogEvent)) {
    let mut waiting = VecDeque::new();
    loop {
        let mut queue = shared.lock();
        while queue.commands.is_empty() && !queue.closing {
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.commands.is_empty() {
            return;
        }
        std::mem::swap(&mut waiting, &mut queue.commands);
        queue.bytes = 0;
        drop(queue);
        if let Err(failure) = pass(&mut log, &mut waiting, &mut tell) {
            // The queue is closed before the owner hears of it: whoever was told can submit nothing more.
            shared.lock().stopped = true;
            tell(LogEvent::Failed(failure));
            return;
        }
    }
}

/// One pass: everything that waits, one sync.
fn pass(log: &mut Log, waiting: &mut VecDeque<Command>, tell: &mut impl FnMut(LogEvent)) -> Result<(), WriteFailed> {
    let (mut written, mut trim, mut refused) = (None, None, None);
    for command in waiting.drain(..) {
        match command {
            Command::Write(batch) => match log.take(&batch) {
                Ok(()) => written = Some(batch.number),
                Err(WriteFailed::Disk(error)) => return Err(error.into()),
                Err(failure) => {
                    refused = Some(failure);
                    break;
                }
            },
            Command::Trim(below) => trim = Some(below),
            Command::AcceptEnd => log.accept_end(),
            Command::SettleVote => log.settle_vote(),
        }
    }
    log.sync()?;
    if let Some(number) = written {
        tell(LogEvent::Written { number });
    }
    if let Some(below) = trim.filter(|_| refused.is_none()) {
        let (first, term_before) = log.trim(below)?;
        tell(LogEvent::Trimmed { first, term_before });
    }
    refused.map_or(Ok(()), Err)
}
