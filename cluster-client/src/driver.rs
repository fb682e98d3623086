//! The thin part: one task per client that moves frames between sockets and the core, writes the journal, and applies the feed.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use relay::wire::ClientFrame;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, Sleep};
use voter_mesh::ids::{Chain, LogIndex, Time};

use crate::core::{Core, Event, JournalBatch, LinkId, ProposeResult, Snapshot, Waiters};
use crate::error::{ReadError, ReserveError, StreamError};
use crate::follower::{Follower, lock};
use crate::history::History;
use crate::host::{Host, elsewhere};
use crate::journal::{JournalError, RequestJournal};
use crate::status::{CloseReason, Status};
use crate::ticket::Ticket;

pub(crate) mod socket;
#[cfg(test)]
mod tests;

use socket::{Happened, Socket};

/// Bytes handed to a socket before it has written what it had.
const TRANSMIT_BYTES_MAX: usize = 256 << 10;

/// How long a closing client tries to send its last words.
const CLOSE: Duration = Duration::from_millis(250);

/// When a due timeout is looked at again that waits for something else than time.
const LOOK_AGAIN_US: u64 = 10_000;

/// How far ahead a timer is set at most.
const TIMER_US_MAX: u64 = 3_600_000_000;

/// How the driver's callers wait.
pub(crate) struct Wait;

impl Waiters for Wait {
    type Propose = oneshot::Sender<ProposeResult>;
    type Reserve = oneshot::Sender<Result<Ticket, ReserveError>>;
    type Read = oneshot::Sender<Result<(), ReadError>>;
    type Fetch = oneshot::Sender<Result<Vec<Bytes>, StreamError>>;
}

/// What callers and the driver share.
pub(crate) struct Shared {
    core: Mutex<Core<Wait>>,
    wake: Notify,
    origin: Instant,
    pub(crate) history: Arc<History>,
    status: watch::Sender<Status>,
    /// The driver has ended and let go of the journal.
    ended: watch::Sender<bool>,
}

impl Shared {
    fn now(&self) -> Time {
        Time { monotonic_us: self.origin.elapsed().as_micros() as u64, ..Time::default() }
    }

    /// The time `after` from now, as deadlines are given to the core.
    pub(crate) fn deadline(&self, after: Duration) -> Time {
        self.now().plus_us(u64::try_from(after.as_micros()).unwrap_or(u64::MAX))
    }

    /// Calls into the core, and sees to it that what follows is done.
    pub(crate) fn with_core<R>(&self, call: impl FnOnce(&mut Core<Wait>, Time) -> R) -> R {
        let mut core = lock(&self.core);
        let result = call(&mut core, self.now());
        if core.is_closed() {
            // There may be no driver any more.
            answer_all(&mut core);
        }
        drop(core);
        self.wake.notify_one();
        result
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(crate) async fn wait_ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// What is left to do for an event that is no answer.
enum Work {
    Dial(LinkId, String),
    Hangup(LinkId),
    Begin(LogIndex, Chain),
    Feed(LinkId, Bytes),
    Install(Snapshot),
    Reset,
}

/// Gives an answer to its caller, or says what is to be done.
fn answer(core: &mut Core<Wait>, event: Event<Wait>) -> Option<Work> {
    match event {
        Event::Proposed { waiter, request, result } => {
            if let (Err(result), Some(ticket)) = (waiter.send(result), request) {
                core.keep_outcome(ticket, result);
            }
        }
        Event::Reserved { waiter, result } => {
            if let Err(Ok(ticket)) = waiter.send(result) {
                // Nobody will ever know it.
                let _ = core.release(ticket);
            }
        }
        Event::Read { waiter, result } => {
            let _ = waiter.send(result);
        }
        Event::Fetched { waiter, result } => {
            let _ = waiter.send(result);
        }
        Event::Dial { link, endpoint } => return Some(Work::Dial(link, endpoint)),
        Event::Hangup { link } => return Some(Work::Hangup(link)),
        Event::Begin { index, chain } => return Some(Work::Begin(index, chain)),
        Event::Feed { link, blocks } => return Some(Work::Feed(link, blocks)),
        Event::Install(snapshot) => return Some(Work::Install(snapshot)),
        Event::Reset => return Some(Work::Reset),
    }
    None
}

/// After the end: answers are all that matters.
fn answer_all(core: &mut Core<Wait>) {
    while let Some(event) = core.poll_event() {
        let _ = answer(core, event);
    }
}

type Written = Result<(RequestJournal, Result<(), JournalError>), String>;

pub(crate) struct Driver {
    host: Arc<dyn Host>,
    shared: Arc<Shared>,
    follower: Follower,
    sockets: BTreeMap<LinkId, Socket>,
    /// Away while it is being written.
    journal: Option<RequestJournal>,
    writing: Option<BoxFuture<'static, Written>>,
    timer: Pin<Box<Sleep>>,
    /// A socket had no room for all that there is to send.
    waits_for_room: bool,
}

impl Driver {
    /// Starts the task. The caller is inside a tokio runtime.
    pub(crate) fn spawn(
        host: Arc<dyn Host>,
        make: impl FnOnce(Time) -> Core<Wait>,
        follower: impl FnOnce(Arc<History>) -> Follower,
        journal: RequestJournal,
        history_bytes_max: usize,
    ) -> Arc<Shared> {
        let core = make(Time::default());
        let history = Arc::new(History::new(history_bytes_max));
        let shared = Arc::new(Shared {
            status: watch::channel(core.status()).0,
            core: Mutex::new(core),
            wake: Notify::new(),
            origin: Instant::now(),
            history: Arc::clone(&history),
            ended: watch::channel(false).0,
        });
        let driver = Self {
            host: Arc::clone(&host),
            shared: Arc::clone(&shared),
            follower: follower(history),
            sockets: BTreeMap::new(),
            journal: Some(journal),
            writing: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            waits_for_room: false,
        };
        host.spawn(driver.run().boxed());
        shared
    }

    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut inbox = Vec::new();
        while !self.pump() {
            // The write first: sockets may never be quiet. What the others wake for, the next round does in any case.
            let written = tokio::select! {
                biased;
                written = written(&mut self.writing) => Some(written),
                () = poll_fn(|cx| poll_sockets(&mut self.sockets, &mut inbox, self.waits_for_room, cx)) => None,
                () = shared.wake.notified() => None,
                () = self.timer.as_mut() => None,
            };
            if let Some(result) = written {
                self.take_written(result);
            }
            self.take_in(&mut inbox);
        }
        let farewell = poll_fn(|cx| poll_farewell(&mut self.sockets, cx));
        let _ = tokio::time::timeout(CLOSE, farewell).await;
    }

    /// Does everything that can be done at once. Whether the client has ended.
    fn pump(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut frames: Vec<(LinkId, ClientFrame)> = Vec::new();
        let mut timed_out = false;
        loop {
            let mut work = Vec::new();
            let (mut batch, mut settled) = (None, false);
            {
                let mut core = lock(&shared.core);
                let now = shared.now();
                if !timed_out && core.poll_timeout().is_some_and(|(at, _)| at.monotonic_us <= now.monotonic_us) {
                    core.handle_timeout(now);
                    timed_out = true;
                }
                while let Some(event) = core.poll_event() {
                    work.extend(answer(&mut core, event));
                }
                if work.is_empty() && self.journal.is_some() {
                    batch = core.poll_journal();
                }
                if work.is_empty() && batch.is_none() {
                    self.waits_for_room = false;
                    for (link, socket) in &self.sockets {
                        let mut bytes = if socket.is_idle() { 0 } else { TRANSMIT_BYTES_MAX };
                        while bytes < TRANSMIT_BYTES_MAX
                            && let Some(frame) = core.poll_transmit(*link, now)
                        {
                            bytes += weight(&frame);
                            frames.push((*link, frame));
                        }
                        self.waits_for_room |= bytes >= TRANSMIT_BYTES_MAX;
                    }
                    let status = core.status();
                    shared.status.send_if_modified(|old| {
                        if *old == status {
                            false
                        } else {
                            *old = status;
                            true
                        }
                    });
                    let mut at_us = core.poll_timeout().map_or(u64::MAX, |(at, _)| at.monotonic_us);
                    if timed_out && at_us <= now.monotonic_us {
                        // What is due still (a ping, an acknowledgement) waits for a socket that takes nothing: that one wakes. To look
                        // again and again meanwhile would take a whole core.
                        at_us = now.monotonic_us.saturating_add(LOOK_AGAIN_US);
                    }
                    self.set_timer(at_us.min(now.monotonic_us.saturating_add(TIMER_US_MAX)));
                    settled = true;
                    if core.is_closed() && self.journal.is_some() {
                        drop(core);
                        self.send(frames);
                        return true;
                    }
                }
            }
            for work in work {
                self.work(work);
            }
            if let Some(batch) = batch {
                self.write(batch);
            }
            if settled {
                self.send(frames);
                return false;
            }
        }
    }

    /// A timer that is set for sooner may stay: calls come and go, and their deadlines with them, and it goes off for nothing once.
    fn set_timer(&mut self, at_us: u64) {
        let at = self.shared.origin + Duration::from_micros(at_us);
        if at < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(at);
        }
    }

    fn send(&mut self, frames: Vec<(LinkId, ClientFrame)>) {
        for (link, frame) in frames {
            if let Some(socket) = self.sockets.get_mut(&link) {
                socket.send(frame.encode());
            }
        }
    }

    fn work(&mut self, work: Work) {
        let applied = match work {
            Work::Dial(link, endpoint) => {
                self.sockets.insert(link, Socket::dial(Arc::clone(&self.host), endpoint));
                return;
            }
            Work::Hangup(link) => {
                self.sockets.remove(&link);
                return;
            }
            Work::Begin(index, chain) => {
                self.follower.begin(index, chain);
                (Some((index, chain)), Ok(()))
            }
            Work::Feed(link, blocks) => self.follower.feed(link, blocks),
            Work::Install(snapshot) => {
                let result = self.follower.install(&snapshot);
                (result.is_ok().then_some((snapshot.index, snapshot.chain)), result)
            }
            Work::Reset => (None, self.follower.reset()),
        };
        let (position, result) = applied;
        let mut core = lock(&self.shared.core);
        let now = self.shared.now();
        if let Some((index, chain)) = position {
            core.handle_applied(index, chain);
        }
        if let Err(failed) = result {
            core.handle_apply_failed(failed, now);
        }
    }

    fn write(&mut self, batch: JournalBatch) {
        let Some(mut journal) = self.journal.take() else { return };
        if batch.records.is_empty() || journal.is_quick(batch.durable) {
            let result = journal.write(&batch.records, batch.durable);
            self.journal = Some(journal);
            self.journaled(result);
        } else {
            let write = move || {
                let result = journal.write(&batch.records, batch.durable);
                (journal, result)
            };
            self.writing = Some(elsewhere(&*self.host, write));
        }
    }

    fn take_written(&mut self, written: Written) {
        let (journal, result) = match written {
            Ok((journal, result)) => (journal, result.map_err(|error| error.to_string())),
            // The store panicked: what it holds is anyone's guess.
            Err(why) => (RequestJournal::memory(), Err(why)),
        };
        self.journal = Some(journal);
        lock(&self.shared.core).handle_journaled(result);
    }

    fn journaled(&self, result: Result<(), JournalError>) {
        lock(&self.shared.core).handle_journaled(result.map_err(|error| error.to_string()));
    }

    fn take_in(&mut self, inbox: &mut Vec<(LinkId, Happened)>) {
        if inbox.is_empty() {
            return;
        }
        let mut core = lock(&self.shared.core);
        let now = self.shared.now();
        for (link, happened) in inbox.drain(..) {
            match happened {
                Happened::Up => core.handle_link_up(link),
                Happened::Frame(frame) => core.handle_frame(link, frame, now),
                Happened::Down(error) => {
                    self.sockets.remove(&link);
                    core.handle_link_down(link, error, now);
                }
            }
        }
    }
}

impl Drop for Driver {
    /// However the task ends, nobody is left waiting, and the journal is free before anyone is told.
    fn drop(&mut self) {
        let why = {
            let mut core = lock(&self.shared.core);
            core.close(CloseReason::TaskEnded);
            answer_all(&mut core);
            while core.poll_journal().is_some_and(|batch| {
                // Only after a panic or a shut down runtime is there anything left: it cannot be written any more.
                let lost = Err("the client's task ended".to_owned());
                core.handle_journaled(if batch.records.is_empty() { Ok(()) } else { lost });
                true
            }) {}
            answer_all(&mut core);
            let status = core.status();
            self.shared.status.send_replace(status.clone());
            match status {
                Status::Closed { why } => why,
                _ => CloseReason::TaskEnded,
            }
        };
        self.shared.history.end(StreamError::Closed(why));
        self.sockets.clear();
        self.journal = None;
        self.shared.ended.send_replace(true);
    }
}

/// The journal's write, once one is under way.
async fn written(writing: &mut Option<BoxFuture<'static, Written>>) -> Written {
    let Some(task) = writing else { return std::future::pending().await };
    let result = task.await;
    *writing = None;
    result
}

/// About how many bytes a frame takes.
fn weight(frame: &ClientFrame) -> usize {
    match frame {
        ClientFrame::Propose(proposals) => proposals.iter().map(|proposal| proposal.payload.len() + 32).sum(),
        _ => 64,
    }
}

/// Ready when something has come, or a socket that was short of room has written what it had.
fn poll_sockets(
    sockets: &mut BTreeMap<LinkId, Socket>,
    inbox: &mut Vec<(LinkId, Happened)>,
    waits_for_room: bool,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let mut ready = false;
    for (link, socket) in sockets {
        let moved = socket.poll(cx, &mut |happened| inbox.push((*link, happened)));
        ready |= moved.came || (moved.wrote && waits_for_room);
    }
    if ready { Poll::Ready(()) } else { Poll::Pending }
}

/// Ready when every socket has sent its last words and its close.
fn poll_farewell(sockets: &mut BTreeMap<LinkId, Socket>, cx: &mut Context<'_>) -> Poll<()> {
    sockets.retain(|_, socket| socket.poll_close(cx).is_pending());
    if sockets.is_empty() { Poll::Ready(()) } else { Poll::Pending }
}
