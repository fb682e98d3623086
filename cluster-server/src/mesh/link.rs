//! A link, as the owner of a server holds it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::timeout;
use voter_mesh::ids::{Identity, RaftId, RunIndex};
use voter_mesh::log::NoRuns;
use voter_mesh::mesh::bulk::SnapshotOffer;
use voter_mesh::mesh::codec::{MeshMessage, encode};
use voter_mesh::mesh::handshake::PeerHello;
use voter_mesh::mesh::links::{Ending, LinkName};

use super::bulk::Bulk;
use super::connection::Connection;
use super::runs::RunsAnswer;
use super::{MeshCounters, MeshLimits, SnapshotSource};

/// The message was not taken: too much waits to be written, or the link has ended. Raft repeats what matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the link is full or has ended")]
pub struct LinkFull;

/// Why a snapshot was not sent. What the receiver has of it, it may keep for the next attempt.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// There is no `bulk` connection, or it broke.
    #[error("the bulk connection is not there or broke")]
    Unlinked,
    /// Another snapshot is on its way to this peer.
    #[error("another snapshot is being sent to this peer")]
    Busy,
    /// The receiver does not take it, or gave up; its words.
    #[error("refused by the receiver: {0}")]
    Refused(String),
    /// The source cannot be read to its announced end.
    #[error("the snapshot cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The receiver neither took bytes nor finished for [`super::MeshLimits::snapshot_stall_ms`].
    #[error("the receiver makes no progress")]
    Stalled,
}

/// The live link to a seat. Cheap to clone; useless, but harmless, after its end.
#[derive(Clone)]
pub struct Link(Rc<Shared>);

struct Shared {
    peer: PeerHello,
    name: LinkName,
    said: (Option<RaftId>, Option<Identity>),
    connection: Connection,
    limits: MeshLimits,
    bulk: RefCell<Option<Rc<Bulk>>>,
    bulk_up: Notify,
    ended: Cell<bool>,
    end: Notify,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.0.name).field("ended", &self.0.ended.get()).finish()
    }
}

impl Link {
    pub(super) fn new(
        peer: PeerHello,
        (dial, dialled): (u64, bool),
        said: (Option<RaftId>, Option<Identity>),
        limits: MeshLimits,
        counters: Rc<RefCell<MeshCounters>>,
    ) -> Self {
        Self(Rc::new(Shared {
            name: LinkName { seat: peer.seat, incarnation: peer.incarnation, dial, dialled },
            peer,
            said,
            connection: Connection::new(limits, counters),
            limits,
            bulk: RefCell::default(),
            bulk_up: Notify::new(),
            ended: Cell::new(false),
            end: Notify::new(),
        }))
    }

    /// What the peer said of itself when the link was made.
    #[must_use]
    pub fn peer(&self) -> &PeerHello {
        &self.0.peer
    }

    /// Queues a message. Nothing is copied but its few fields.
    ///
    /// # Errors
    /// [`LinkFull`]: it was dropped.
    pub fn send(&self, message: MeshMessage) -> Result<(), LinkFull> {
        self.0.connection.send(|pieces| encode(&message, pieces))
    }

    /// Closes the link, for a reason that only the log is told. What is queued still leaves; nothing that comes is handed over any
    /// more; the owner hears of the end as of any other, within half a second.
    pub fn close(&self, why: &str) {
        tracing::debug!(seat = %self.0.name.seat, why, "closing mesh link");
        self.0.connection.close(Ending::Ours);
    }

    /// Streams what `offer` announces to the peer, from where the peer has it not yet, in pieces that are read on another thread when
    /// there is credit for them, and waits until the peer has verified the whole and made it durable. One at a time for each link.
    /// Dropping the future takes it back.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn send_snapshot(&self, offer: SnapshotOffer, from: Arc<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        let bulk = timeout(Duration::from_millis(self.0.limits.handshake_ms), self.bulk()).await;
        let bulk = bulk.ok().flatten().ok_or(SnapshotError::Unlinked)?;
        bulk.send(offer, from).await
    }

    /// Asks the peer for runs `first` to `last`: the first of them, at least one. One question at a time for each link; dropping the
    /// future forgets it.
    ///
    /// # Errors
    /// [`NoRuns`]; `NotYet` also if another question is under way, or no answer came within `deadline`.
    pub async fn fetch_runs(&self, first: RunIndex, last: RunIndex, deadline: Duration) -> RunsAnswer {
        match timeout(deadline, self.bulk()).await {
            Ok(Some(bulk)) => bulk.fetch_runs(first, last, deadline).await,
            _ => Err(NoRuns::NotYet),
        }
    }

    /// The `bulk` connection, as soon as there is one; `None` when the link ends first.
    async fn bulk(&self) -> Option<Rc<Bulk>> {
        loop {
            let up = self.0.bulk_up.notified();
            if let Some(bulk) = self.0.bulk.borrow().clone() {
                return Some(bulk);
            }
            tokio::select! {
                biased;
                () = up => {}
                () = self.ended() => return None,
            }
        }
    }

    pub(super) fn name(&self) -> LinkName {
        self.0.name
    }

    pub(super) fn said(&self) -> (Option<RaftId>, Option<Identity>) {
        self.0.said
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.0.connection
    }

    /// Takes `bulk` for this link's; an earlier one is closed.
    pub(super) fn attach(&self, bulk: &Rc<Bulk>) {
        if let Some(old) = self.0.bulk.replace(Some(Rc::clone(bulk))) {
            old.close();
        }
        self.0.bulk_up.notify_waiters();
    }

    /// `bulk` has ended.
    pub(super) fn detach(&self, bulk: &Rc<Bulk>) {
        let mut current = self.0.bulk.borrow_mut();
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, bulk)) {
            *current = None;
        }
    }

    /// The link has ended.
    pub(super) fn end(&self) {
        self.0.ended.set(true);
        self.0.end.notify_waiters();
    }

    /// Waits for the end of the link.
    pub(super) async fn ended(&self) {
        while !self.0.ended.get() {
            self.0.end.notified().await;
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.get()
    }
}
