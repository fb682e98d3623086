//! The mesh driver: the TCP connections between servers.
//!
//! Between each pair of seats the lower one dials two connections, `consensus` and `bulk`, again and again for as long as it lives. Where it
//! does not, because it has not heard of the higher one yet, that one does.
//! A [`Link`] is the `consensus` connection with the hellos of its handshake; `bulk` carries snapshots beside it and ends with it.
//! What may be said, who proves what, which link is the live one and what its end means is decided by `voter_mesh::mesh`; this module
//! only reads, writes, waits and dials. It never looks into a message.
//!
//! Everything runs on the server's own thread, inside a [`tokio::task::LocalSet`].

mod bulk;
mod connection;
mod link;
mod meet;
mod runs;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use thiserror::Error;
use tokio::task::{AbortHandle, JoinSet};
use voter_mesh::ids::{DirectoryId, Identity, Incarnation, RaftId, RunIndex, Seat, Time};
pub use voter_mesh::mesh::bulk::SnapshotOffer;
pub use voter_mesh::mesh::codec::MeshMessage;
pub use voter_mesh::mesh::handshake::{BindRefused, MeshSecret, PeerHello, SelfHello, bind_allowed};
pub use voter_mesh::mesh::links::Disconnect;
use voter_mesh::mesh::links::{Ending, LinkName, Links};

pub use self::link::{Link, LinkFull, SnapshotError};
pub use self::runs::RunsAnswer;
use crate::host::{Host, Listener};

/// Limits and times of the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeshLimits {
    /// Handshakes that are under way at once, as acceptor; more connections are dropped. Default 32.
    pub handshakes_max: usize,
    /// Milliseconds that a handshake may take, connecting included. Default 5,000.
    pub handshake_ms: u64,
    /// A side that has sent nothing for so long says that it lives. Milliseconds, default 500.
    pub keepalive_ms: u64,
    /// A link on which nothing came for so long is closed: its other end is half-open, stopped, or cut off. Milliseconds, default
    /// 3,000; at least four keepalives.
    pub silence_ms: u64,
    /// Bytes that wait to be written on one connection. From there on, until some are written, sends are refused; raft repeats what
    /// matters. Default 16 MiB.
    pub outbox_bytes_max: usize,
    /// Pieces (frames, or runs of one) that wait to be written on one connection. Default 65,536.
    pub outbox_pieces_max: usize,
    /// The shortest wait before a dial is repeated, in milliseconds. Default 10.
    pub redial_min_ms: u64,
    /// The longest: waits are random between the shortest and an end that doubles from 50 ms to this. Default 250: while a
    /// server that came back is not linked with all others, the loss of a third one takes longer to heal.
    pub redial_max_ms: u64,
    /// Milliseconds for which a snapshot's sender waits for credit, or for the receiver to make it durable. Default 60,000.
    pub snapshot_stall_ms: u64,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self {
            handshakes_max: 32,
            handshake_ms: 5_000,
            keepalive_ms: 500,
            silence_ms: 3_000,
            outbox_bytes_max: 16 << 20,
            outbox_pieces_max: 1 << 16,
            redial_min_ms: 10,
            redial_max_ms: 250,
            snapshot_stall_ms: 60_000,
        }
    }
}

/// Who this server is on the mesh, for as long as its process lives.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Its seat.
    pub seat: Seat,
    /// The data directory it lives in.
    pub directory: DirectoryId,
    /// This process; higher than that of every earlier process of the seat (a clock's microseconds at the start will do).
    pub incarnation: Incarnation,
    /// What the servers share. Without one, only loopback addresses may be bound.
    pub secret: Option<MeshSecret>,
    /// Its state machine's name and version.
    pub machine: (String, u32),
    /// Limits and times.
    pub limits: MeshLimits,
}

/// Why a mesh does not start. Nothing runs then.
#[derive(Debug, Error)]
pub enum MeshStartError {
    /// The listener is bound where it may not be without a secret.
    #[error(transparent)]
    Bind(#[from] BindRefused),
    /// The listener has no address.
    #[error("the mesh listener has no address: {0}")]
    Listener(#[from] io::Error),
    /// Links would be closed between two keepalives.
    #[error("silence_ms ({silence_ms}) must be at least four times keepalive_ms ({keepalive_ms}), and that above 0")]
    Silence {
        /// [`MeshLimits::silence_ms`].
        silence_ms: u64,
        /// [`MeshLimits::keepalive_ms`].
        keepalive_ms: u64,
    },
}

/// The server behind a mesh. Called on its own thread, never while the mesh holds anything borrowed; must not block.
///
/// For each seat, `link_up` and `link_down` alternate, and `message` comes between them, in the order sent. Every message that was
/// received whole is handed over before the end of its link is told.
pub trait MeshOwner {
    /// What to say in a hello now. When id or identity change, call [`Mesh::refresh`].
    fn self_hello(&self) -> SelfHello;

    /// A link stands. `link` may be used at once.
    fn link_up(&self, peer: PeerHello, link: Link);

    /// A message came on the live link.
    fn message(&self, from: Seat, incarnation: Incarnation, message: MeshMessage);

    /// The link has ended.
    fn link_down(&self, seat: Seat, incarnation: Incarnation, how: Disconnect);

    /// A peer would send a snapshot: where its bytes go, or the reason why not, in words for the peer's log.
    fn snapshot_begin(&self, from: Seat, incarnation: Incarnation, offer: SnapshotOffer) -> SinkFuture;

    /// A peer asks for runs `first` to `last` of this server's log. The first of them, at most about
    /// [`RUNS_BYTES_MAX`](voter_mesh::mesh::bulk::RUNS_BYTES_MAX), are sent when the future ends; it must end by itself.
    fn runs_asked(&self, from: Seat, first: RunIndex, last: RunIndex) -> LocalBoxFuture<'static, RunsAnswer>;
}

/// Where the bytes of a snapshot go, when that is known, or why they are not taken.
pub type SinkFuture = LocalBoxFuture<'static, Result<Box<dyn SnapshotSink>, String>>;

/// A snapshot's file, as its sender has it. Read on threads where that may take its time.
pub trait SnapshotSource: Send + Sync + 'static {
    /// The bytes from `offset` on: so many, or less at the end.
    ///
    /// # Errors
    /// The file cannot be read; the transfer ends.
    fn read(&self, offset: u64, bytes: usize) -> io::Result<Bytes>;
}

/// Where the bytes of a snapshot go that a peer sends. Dropped unfinished when the transfer or its link breaks off.
pub trait SnapshotSink {
    /// How many bytes are there already, from an earlier transfer of the same file: the sender goes on behind them.
    fn offset(&self) -> u64;

    /// The next bytes, in order; never more than the credit. The sender gets new credit when the future ends, with the sink for the
    /// bytes that come then, or with the reason to give up, in words for the peer's log.
    fn write(self: Box<Self>, chunks: Vec<Bytes>) -> SinkFuture;

    /// All bytes have come: verify them, make them durable, hand them on. The sender is told when the future ends.
    fn finish(self: Box<Self>) -> LocalBoxFuture<'static, Result<(), String>>;
}

/// What the mesh counts since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MeshCounters {
    /// Frames received, handshakes and keepalives aside.
    pub frames_in: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Frames taken for sending.
    pub frames_out: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Frames not taken because the link was full or ended.
    pub sends_refused: u64,
    /// Frames dropped because their link was not the live one any more.
    pub frames_dropped: u64,
    /// Connections closed because of what came on them.
    pub malformed: u64,
    /// Links that came up.
    pub links_up: u64,
    /// Links that tore.
    pub links_torn: u64,
    /// Links that were closed.
    pub links_closed: u64,
    /// Handshakes that led to nothing, either side, by reason.
    pub handshakes_failed: BTreeMap<&'static str, u64>,
}

/// The running mesh of one server. Dropping it cuts everything at once, as a crash would; see [`Mesh::shutdown`].
pub struct Mesh {
    inner: Rc<Inner>,
    address: SocketAddr,
    accepting: AbortHandle,
}

struct Inner {
    options: MeshOptions,
    owner: Rc<dyn MeshOwner>,
    host: Rc<dyn Host>,
    links: RefCell<Links>,
    live: RefCell<BTreeMap<Seat, Link>>,
    dialling: RefCell<BTreeMap<Seat, (String, AbortHandle)>>,
    dials: Cell<u64>,
    handshakes: Cell<usize>,
    closing: Cell<bool>,
    counters: Rc<RefCell<MeshCounters>>,
    tasks: RefCell<JoinSet<()>>,
}

impl Mesh {
    /// Starts to accept on `listener` and to dial `peers` (its own seat is ignored; lower ones only where they do not dial). Must be
    /// called inside a [`tokio::task::LocalSet`].
    ///
    /// # Errors
    /// [`MeshStartError`].
    pub fn spawn_local(
        host: Rc<dyn Host>,
        listener: Box<dyn Listener>,
        peers: BTreeMap<Seat, String>,
        owner: Rc<dyn MeshOwner>,
        options: MeshOptions,
    ) -> Result<Self, MeshStartError> {
        let address = listener.local_addr()?;
        bind_allowed(address, options.secret.as_ref())?;
        let MeshLimits { silence_ms, keepalive_ms, .. } = options.limits;
        if keepalive_ms == 0 || silence_ms / keepalive_ms < 4 {
            return Err(MeshStartError::Silence { silence_ms, keepalive_ms });
        }
        let inner = Rc::new(Inner {
            options,
            owner,
            host,
            links: RefCell::default(),
            live: RefCell::default(),
            dialling: RefCell::default(),
            dials: Cell::new(0),
            handshakes: Cell::new(0),
            closing: Cell::new(false),
            counters: Rc::default(),
            tasks: RefCell::default(),
        });
        let accepting = inner.spawn(meet::accept(Rc::clone(&inner), listener));
        let mesh = Self { inner, address, accepting };
        mesh.set_peers(peers);
        Ok(mesh)
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The seats and their addresses from now on. Links to seats that are gone are closed; a live link to a seat whose
    /// address changed stays.
    pub fn set_peers(&self, peers: BTreeMap<Seat, String>) {
        let inner = &self.inner;
        if inner.closing.get() {
            return;
        }
        let mut dialling = inner.dialling.borrow_mut();
        dialling.retain(|seat, (address, task)| {
            let stays = peers.get(seat) == Some(address);
            if !stays {
                task.abort();
            }
            if !peers.contains_key(seat)
                && let Some(link) = inner.live.borrow().get(seat)
            {
                link.close("not a peer any more");
            }
            stays
        });
        for (seat, address) in peers {
            if seat != inner.options.seat && !dialling.contains_key(&seat) {
                let task = inner.spawn(meet::dial(Rc::clone(inner), seat, address.clone()));
                dialling.insert(seat, (address, task));
            }
        }
    }

    /// Closes the links whose hello is not true any more, as this server's id or identity has changed since. They come back at
    /// once, and then both sides know. What was sent before is still delivered.
    pub fn refresh(&self) {
        let said = self.inner.owner.self_hello();
        for link in self.inner.live.borrow().values() {
            if link.said() != (said.id, said.identity) {
                link.close("its hello is outdated");
            }
        }
    }

    /// Says goodbye on every link, so that no peer takes the end for a tear, and takes no new ones. The links end soon after,
    /// see [`Mesh::stopped`].
    pub fn shutdown(&self) {
        self.inner.closing.set(true);
        self.accepting.abort();
        for (_, task) in self.inner.dialling.borrow().values() {
            task.abort();
        }
        for link in self.inner.live.borrow().values() {
            link.close("shutting down");
        }
    }

    /// Waits until no link is live; after [`Mesh::shutdown`] that takes half a second at most. Cancel-safe.
    pub async fn stopped(&self) {
        loop {
            let Some(link) = self.inner.live.borrow().values().next().cloned() else { return };
            link.ended().await;
            tokio::task::yield_now().await;
        }
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> MeshCounters {
        self.inner.counters.borrow().clone()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.inner.closing.set(true);
        self.inner.tasks.borrow_mut().abort_all();
    }
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task)
    }

    fn now(&self) -> Time {
        self.host.now()
    }

    fn nonce(&self) -> [u8; 32] {
        let mut nonce = [0; 32];
        self.host.fill_random(&mut nonce);
        nonce
    }

    fn next_dial(&self) -> u64 {
        self.dials.set(self.dials.get() + 1);
        self.dials.get()
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.options.limits.handshake_ms)
    }

    /// What this server says of itself now, and the part of it that must not change during a handshake.
    fn hello(&self) -> (PeerHello, (Option<RaftId>, Option<Identity>)) {
        let said = self.owner.self_hello();
        let hello = PeerHello {
            seat: self.options.seat,
            id: said.id,
            directory: self.options.directory,
            incarnation: self.options.incarnation,
            identity: said.identity,
            machine: self.options.machine.clone(),
            first: said.first,
            last: said.last,
            suspect: said.suspect,
            endpoints: said.endpoints,
        };
        (hello, (said.id, said.identity))
    }

    /// Tells the owner of a link that was admitted, after the end of the one that it replaces.
    fn up(&self, link: &Link, replaced: Option<(LinkName, Disconnect)>) {
        let name = link.name();
        let old = self.live.borrow_mut().insert(name.seat, link.clone());
        if let Some(old) = old {
            old.close("replaced by a newer link");
        }
        if let Some((old, how)) = replaced {
            self.down(old, how);
        }
        self.counters.borrow_mut().links_up += 1;
        tracing::debug!(seat = %name.seat, incarnation = %name.incarnation, "mesh link up");
        self.owner.link_up(link.peer().clone(), link.clone());
    }

    fn down(&self, name: LinkName, how: Disconnect) {
        match how {
            Disconnect::Torn => self.counters.borrow_mut().links_torn += 1,
            Disconnect::Closed => self.counters.borrow_mut().links_closed += 1,
        }
        tracing::debug!(seat = %name.seat, incarnation = %name.incarnation, ?how, "mesh link down");
        self.owner.link_down(name.seat, name.incarnation, how);
    }

    /// The connection of a link has ended, and all that it brought was handed over.
    fn ended(&self, link: &Link, ending: Ending) {
        link.end();
        let how = self.links.borrow_mut().ended(link.name(), ending, self.now());
        if let Some(how) = how {
            self.live.borrow_mut().remove(&link.name().seat);
            self.down(link.name(), how);
        }
    }

    fn failed(&self, reason: &'static str) {
        *self.counters.borrow_mut().handshakes_failed.entry(reason).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
