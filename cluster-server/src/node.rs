//! One voter: a thread with a single-threaded runtime on which everything of this server happens — mesh links, client sockets,
//! the voter core, the applier, the room. Beside it run only the log's writer thread and short jobs for snapshots.
//!
//! The loop is: sockets put what they read straight into the cores (`handle_*`) and wake the pump; the pump drains every core's
//! outputs until none has any, and sleeps until the next timeout. Batches come from that by themselves: all that arrived while
//! the pump was away is sealed, written, sent and applied together.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use relay::room::{LinkId, RoomLimits, Transmit};
use relay::wire::{Code, ServerEntry};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::unconstrained;
use tracing::{debug, info};
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{DirectoryId, Incarnation, RaftId, Seat, Time};
use voter_mesh::log::DamagePolicy;
use voter_mesh::machine::MachineFactory;
use voter_mesh::mesh::message::{AdminFailure, AdminRequest};
use voter_mesh::raft::{RaftRole, Timing, VoterLimits};
use voter_mesh::replica::ReplicaLimits;

use crate::disk::{DataDir, DiskError};
use crate::host::{Host, Listener, OsHost, panic_text, random_u64};
use crate::limits::ServerLimits;
use crate::mesh::{Link, Mesh, MeshLimits, MeshOptions, MeshSecret, SelfHello};
use crate::relay_port::{Ask, Conversation, ReadAhead, RelayPort};
use crate::status::{Phase, ServerStatus};

mod admin;
mod archive;
mod jobs;
mod owner;
mod recovering;
mod replay;
mod running;
mod snapshots;
mod stage;
mod status;

use admin::AdminWaiter;
use owner::Owner;
use recovering::Recovering;
use running::Running;
use stage::Unformed;

/// Threads for what blocks: a snapshot, a state for clients, old runs, hashes; and a backup, which waits for whoever takes it.
const BLOCKING_THREADS_MAX: usize = 5;

/// Clients that are written to before the sockets and the cores are looked at again.
const CLIENTS_PER_TURN_MAX: usize = 32;

/// How often a voter that waits for nothing looks around.
const IDLE_LOOK_MS: u64 = 1_000;

/// Milliseconds that a recovery may take before the ports are opened: a short one then troubles nobody, and a longer one is told to
/// everybody who asks.
const HEAD_START_MS: u64 = 50;

/// Everything that makes a voter this one.
#[derive(Debug)]
pub(crate) struct NodeOptions {
    pub(crate) seat: Seat,
    pub(crate) peers: BTreeMap<Seat, String>,
    pub(crate) secret: Option<MeshSecret>,
    pub(crate) data_dir: PathBuf,
    pub(crate) room: String,
    pub(crate) machine: MachineFactory,
    pub(crate) timing: Timing,
    pub(crate) voter_limits: VoterLimits,
    pub(crate) replica_limits: ReplicaLimits,
    pub(crate) room_limits: RoomLimits,
    pub(crate) limits: Arc<ServerLimits>,
    pub(crate) session_ttl: Duration,
    pub(crate) on_damage: DamagePolicy,
    pub(crate) endpoints: Vec<String>,
}

impl NodeOptions {
    /// Name and version of the state machine, as records and hellos carry them.
    fn machine_name(&self) -> (String, u32) {
        (self.machine.name.to_owned(), self.machine.version)
    }
}

/// A voter as its process sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NodeView {
    /// Reading its directory.
    Starting,
    /// Serving.
    Running { phase: Phase, leader: Option<RaftId> },
    /// Its thread has ended and its directory is free again.
    Stopped { why: String },
}

/// What its process asks of a voter.
#[derive(Debug)]
pub(crate) enum Control {
    Status { hashes: bool, answer: oneshot::Sender<ServerStatus> },
    Admin { request: AdminRequest, answer: oneshot::Sender<Result<(), AdminFailure>> },
    StopRelay { address: SocketAddr, answer: oneshot::Sender<bool> },
    Shutdown { deadline: Duration, hand_over: bool },
}

/// Why a voter's thread ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the data directory belongs to seat {found}, not to seat {asked}")]
    OtherSeat { found: Seat, asked: Seat },
    #[error("the data directory holds a log for the state machine {found}, not for {asked}")]
    OtherMachine { found: String, asked: String },
    #[error("cannot use a listener: {0}")]
    Listen(#[from] std::io::Error),
    #[error("{0}")]
    Fatal(String),
}

/// Runs a voter on the calling thread until it is told to stop, its controls are dropped (a crash, as far as the others can
/// tell), or something ends it.
pub(crate) fn run(
    options: NodeOptions,
    mesh: std::net::TcpListener,
    relays: Vec<std::net::TcpListener>,
    controls: mpsc::Receiver<Control>,
    view: &watch::Sender<NodeView>,
) {
    let seat = options.seat;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build()?;
        let local = tokio::task::LocalSet::new();
        let entered = runtime.enter();
        let listen =
            |listener| Ok::<_, std::io::Error>(Box::new(tokio::net::TcpListener::from_std(listener)?) as Box<dyn Listener>);
        let (mesh, relays) = (listen(mesh)?, relays.into_iter().map(listen).collect::<Result<_, _>>()?);
        drop(entered);
        // A task like all others: what they wake is polled behind them, with all that they had to say, and not before the next
        // look at the sockets.
        let served = local.spawn_local(serve(options, Rc::new(OsHost::new()), mesh, relays, controls, view.clone()));
        let result =
            runtime.block_on(local.run_until(served)).unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        drop(local);
        drop(runtime);
        result
    }));
    let result = ended.map_err(|panic| panic_text(panic.as_ref()));
    ended_with(seat, result.and_then(|result: Result<(), NodeError>| result.map_err(|error| error.to_string())), view);
}

/// A voter has ended: its process learns why.
pub(crate) fn ended_with(seat: Seat, result: Result<(), String>, view: &watch::Sender<NodeView>) -> String {
    let why = result.err().unwrap_or_else(|| "stopped".to_owned());
    info!(%seat, %why, "voter ended");
    view.send_replace(NodeView::Stopped { why: why.clone() });
    why
}

/// A voter, until it is told to stop, its controls are dropped, or something ends it. Dropping this with all the tasks of its
/// `LocalSet`, on which it runs, is what a crash is.
pub(crate) async fn serve(
    options: NodeOptions,
    host: Rc<dyn Host>,
    mesh: Box<dyn Listener>,
    relays: Vec<Box<dyn Listener>>,
    mut controls: mpsc::Receiver<Control>,
    view: watch::Sender<NodeView>,
) -> Result<(), NodeError> {
    let limits = Arc::clone(&options.limits);
    let (asks_sender, mut asks) = mpsc::channel::<Ask>(limits.accept_backlog_max);
    let node = Node::open(options, host, view)?;
    // Whoever dials meanwhile waits in the listeners' queues.
    let _ = tokio::time::timeout(Duration::from_millis(HEAD_START_MS), node.read()).await;
    let mesh = node.open_mesh(mesh)?;
    let mut ports = Vec::new();
    for listener in relays {
        ports.push(RelayPort::open(listener, &node, asks_sender.clone())?);
    }
    let mut ending: Option<Time> = None;
    loop {
        node.pump(&mesh)?;
        // What the pump had for the other servers leaves before what it had for clients.
        behind_the_others().await;
        // Each write is one of many, none of which is a reason to stop.
        let more = unconstrained(std::future::poll_fn(|_| Poll::Ready(node.write_clients()))).await;
        if ending.is_some_and(|at| node.now() >= at || node.may_end()) {
            break;
        }
        tokio::select! {
            biased;
            // All others have their turn first.
            () = tokio::task::yield_now(), if more => {}
            () = node.wake.notified() => {}
            control = controls.recv() => match control {
                // Whoever owned this voter dropped it.
                None => return Ok(()),
                Some(Control::Status { hashes, answer }) => node.answer_status(hashes, &mesh.counters(), answer),
                Some(Control::Admin { request, answer }) => node.answer_admin(request, answer),
                Some(Control::StopRelay { address, answer }) => {
                    let (stopped, open) = ports.into_iter().partition(|port: &RelayPort| port.address == address);
                    ports = open;
                    stopped.iter().for_each(RelayPort::close);
                    let _ = answer.send(!stopped.is_empty());
                }
                Some(Control::Shutdown { deadline, hand_over }) => {
                    ending = Some(node.now().plus_ms(deadline.as_millis() as u64));
                    node.begin_shutdown(hand_over);
                }
            },
            Some(ask) = asks.recv() => match ask {
                Ask::Status { hashes, answer } => node.answer_status(hashes, &mesh.counters(), answer),
                Ask::Admin { request, answer } => node.answer_admin(request, answer),
                Ask::Image { answer } => node.with_running(|running, _, now| running.image_asked(answer, now)),
            },
            () = tokio::time::sleep_until(node.next_timeout(ending)) => {}
        }
    }
    drop(ports);
    mesh.shutdown();
    mesh.stopped().await;
    Ok(())
}

/// Lets all tasks have their turn that are ready already, and does not look at the sockets for it.
async fn behind_the_others() {
    let mut waited = false;
    let turn = std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    turn.await;
}

/// A voter's state, shared by the tasks of its thread. Borrows never cross an await.
pub(crate) struct Node {
    options: Arc<NodeOptions>,
    incarnation: Incarnation,
    host: Rc<dyn Host>,
    wake: Arc<Notify>,
    view: watch::Sender<NodeView>,
    /// What was refused before a core saw it, by reason.
    refused: RefCell<BTreeMap<&'static str, u64>>,
    /// One permit: whoever has it takes a backup of this server.
    backups: Arc<Semaphore>,
    read_ahead: RefCell<ReadAhead>,
    core: RefCell<Core>,
}

struct Core {
    data: Arc<DataDir>,
    /// Live consensus links, by seat.
    links: BTreeMap<Seat, Link>,
    /// Linked servers that asked to be let in.
    newcomers: BTreeSet<Seat>,
    stage: Stage,
    /// The clients, by link.
    clients: BTreeMap<LinkId, Rc<Conversation>>,
    /// What a link is about to be given; empty between two.
    out: Vec<Bytes>,
    next_link: u64,
    closing: bool,
}

/// Where a voter is in its life.
enum Stage {
    /// Not a member of a cluster, or not known to be one.
    Unformed(Unformed),
    /// A member that reads or mends its log.
    Recovering(Recovering),
    /// A replica.
    Running(Box<Running>),
}

impl Node {
    fn open(options: NodeOptions, host: Rc<dyn Host>, view: watch::Sender<NodeView>) -> Result<Rc<Self>, NodeError> {
        let now = host.now();
        let mut mint = DirectoryId::default();
        host.fill_random(&mut mint.0);
        let data = DataDir::open_on(host.files(), &options.data_dir, mint)?;
        let node = Rc::new(Self {
            core: RefCell::new(Core {
                stage: Stage::Unformed(Unformed::new(&options, &data, &*host)?),
                data: Arc::new(data),
                links: BTreeMap::new(),
                newcomers: BTreeSet::new(),
                clients: BTreeMap::new(),
                out: Vec::new(),
                next_link: 1,
                closing: false,
            }),
            read_ahead: RefCell::new(ReadAhead::new(&options.limits)),
            options: Arc::new(options),
            // Rises from one process of a seat to the next, as far as its clock does.
            incarnation: Incarnation(now.unix_ms.0.saturating_mul(1000).saturating_add(random_u64(&*host) % 1000)),
            host,
            wake: Arc::new(Notify::new()),
            view,
            refused: RefCell::default(),
            backups: Arc::new(Semaphore::new(1)),
        });
        node.core.borrow_mut().drive_forming(&node, now)?;
        Ok(node)
    }

    /// Waits until the directory was read; not for peers that fill holes.
    async fn read(self: &Rc<Self>) {
        while matches!(&self.core.borrow().stage, Stage::Recovering(recovering) if recovering.is_reading()) {
            self.wake.notified().await;
        }
        // The pump is to look too.
        self.wake.notify_one();
    }

    fn open_mesh(self: &Rc<Self>, listener: Box<dyn Listener>) -> Result<Mesh, NodeError> {
        let options = MeshOptions {
            seat: self.options.seat,
            directory: self.core.borrow().data.directory(),
            incarnation: self.incarnation,
            secret: self.options.secret.clone(),
            machine: self.options.machine_name(),
            limits: MeshLimits::default(),
        };
        let owner = Rc::new(Owner(Rc::downgrade(self)));
        Mesh::spawn_local(Rc::clone(&self.host), listener, self.peers(), owner, options)
            .map_err(|error| NodeError::Fatal(error.to_string()))
    }

    /// The seats and their addresses: what the command line says, and for all others the configuration.
    fn peers(&self) -> BTreeMap<Seat, String> {
        let mut peers = BTreeMap::new();
        let core = self.core.borrow();
        let configuration = match &core.stage {
            Stage::Running(running) => Some(running.replica.configuration()),
            Stage::Recovering(recovering) => recovering.configuration(),
            Stage::Unformed(_) => None,
        };
        if let Some(Configuration { seats, .. }) = configuration {
            peers.extend(seats.iter().map(|(seat, record)| (*seat, record.address.clone())));
            // A seat that was removed is not dialled any more, whatever the forming list says.
            peers.extend(
                self.options.peers.iter().filter(|(seat, _)| seats.contains_key(seat)).map(|(seat, at)| (*seat, at.clone())),
            );
        } else {
            peers.extend(self.options.peers.iter().map(|(seat, address)| (*seat, address.clone())));
        }
        peers
    }

    /// What the mesh says of this server.
    fn hello(&self) -> SelfHello {
        let core = self.core.borrow();
        let endpoints = self.options.endpoints.clone();
        let running = match &core.stage {
            Stage::Unformed(_) => return SelfHello { endpoints, ..SelfHello::default() },
            Stage::Recovering(recovering) => return recovering.hello(endpoints),
            Stage::Running(running) => running,
        };
        let status = running.voter.status();
        SelfHello {
            id: Some(status.id),
            identity: Some(running.replica.identity()),
            first: running.reader.range().0,
            last: (status.last_term, status.last),
            suspect: status.suspect,
            endpoints,
        }
    }

    pub(crate) fn limits(&self) -> &Arc<ServerLimits> {
        &self.options.limits
    }

    pub(crate) fn backups(&self) -> &Arc<Semaphore> {
        &self.backups
    }

    /// Where the clients' sockets read to.
    pub(crate) fn read_ahead(&self) -> &RefCell<ReadAhead> {
        &self.read_ahead
    }

    pub(crate) fn room_name(&self) -> &str {
        &self.options.room
    }

    /// Something was refused, for this reason, before it came as far as a core that counts.
    pub(crate) fn count(&self, reason: &'static str) {
        self.count_by(reason, 1);
    }

    /// As [`Node::count`], so many times.
    pub(crate) fn count_by(&self, reason: &'static str, times: u64) {
        *self.refused.borrow_mut().entry(reason).or_default() += times;
    }

    pub(crate) fn now(&self) -> Time {
        self.host.now()
    }

    /// A client's socket is there; it was accepted at `accepted`.
    pub(crate) fn link_opened(&self, address: IpAddr, accepted: Time, client: &Rc<Conversation>) -> Result<LinkId, Code> {
        let mut core = self.core.borrow_mut();
        if core.closing {
            return Err(Code::Closing);
        }
        let id = LinkId(core.next_link);
        let Stage::Running(running) = &mut core.stage else { return Err(Code::Recovering) };
        running.room.handle_connected(id, address, accepted)?;
        core.next_link += 1;
        core.clients.insert(id, Rc::clone(client));
        drop(core);
        // Its handshake now has a deadline.
        self.wake.notify_one();
        Ok(id)
    }

    /// A client sent what is no message, or too large a one: the link ends.
    pub(crate) fn link_violated(&self, link: LinkId, code: Code) {
        if let Stage::Running(running) = &mut self.core.borrow_mut().stage {
            running.room.handle_violation(link, code, self.now());
        }
        self.wake.notify_one();
    }

    /// A client sent a frame.
    pub(crate) fn link_frame(&self, link: LinkId, bytes: Bytes) {
        if let Stage::Running(running) = &mut self.core.borrow_mut().stage
            && let Err(code) = running.room.handle_frame(link, bytes, running.replica.sessions(), self.now())
        {
            debug!(?link, ?code, "link refused");
        }
        self.wake.notify_one();
    }

    /// What to write to a client now.
    pub(crate) fn link_transmit(&self, link: LinkId, mut write: impl FnMut(Bytes)) -> Transmit {
        let Core { stage, out, .. } = &mut *self.core.borrow_mut();
        match stage {
            Stage::Running(running) => {
                let room = &mut running.room;
                let transmit = room.poll_transmit(link, self.options.limits.turn_bytes_max, out, self.now());
                out.drain(..).for_each(&mut write);
                if room.is_asking() {
                    // What comes next has to be read from the disk.
                    self.wake.notify_one();
                }
                transmit
            }
            Stage::Unformed(_) | Stage::Recovering(_) => Transmit::CloseAfter,
        }
    }

    /// A client's socket is gone.
    pub(crate) fn link_closed(&self, link: LinkId) {
        let mut core = self.core.borrow_mut();
        core.clients.remove(&link);
        if let Stage::Running(running) = &mut core.stage {
            running.room.handle_disconnected(link, self.now());
        }
        drop(core);
        self.wake.notify_one();
    }

    /// Drains every core until none has anything left.
    fn pump(self: &Rc<Self>, mesh: &Mesh) -> Result<(), NodeError> {
        let now = self.now();
        let mut borrowed = self.core.borrow_mut();
        let core = &mut *borrowed;
        let (mut configured, mut settled) = (false, false);
        let renamed = core.drive_forming(self, now)?;
        let recovered = core.drive_recovery(self, now)?;
        if let Stage::Running(running) = &mut core.stage {
            running.pump(self, &core.links, now)?;
            while let Some(link) = running.room.poll_abort() {
                if let Some(client) = core.clients.get(&link) {
                    client.abort();
                }
            }
            configured = std::mem::take(&mut running.configured);
            settled = !running.replica.configuration().is_joint();
        }
        if configured {
            core.welcome_newcomers();
        }
        drop(borrowed);
        // Whom a joint change removes votes until it is left, and may be the one who asked for it.
        if configured && settled || recovered {
            mesh.set_peers(self.peers());
        }
        self.publish();
        if renamed {
            mesh.refresh();
        }
        Ok(())
    }

    /// Lets clients write to whom the room has something to say, one after the other; whether some are left.
    fn write_clients(&self) -> bool {
        let now = self.now();
        for _ in 0..CLIENTS_PER_TURN_MAX {
            let Some((link, client)) = self.core.borrow_mut().woken(now) else { return false };
            client.write(self, link);
        }
        true
    }

    /// When the pump must run although nothing came in.
    fn next_timeout(&self, ending: Option<Time>) -> tokio::time::Instant {
        let now = self.now();
        let stage = match &self.core.borrow().stage {
            Stage::Unformed(unformed) => unformed.next_timeout(),
            Stage::Recovering(recovering) => recovering.next_timeout(),
            Stage::Running(running) => Some(running.next_timeout(now)),
        };
        let at = stage.into_iter().chain(ending).min().unwrap_or_else(|| now.plus_ms(IDLE_LOOK_MS));
        self.host.instant(at)
    }

    /// Tells the process what this voter is now.
    fn publish(&self) {
        let core = self.core.borrow();
        let (phase, leader) = core.phase();
        let reading = matches!(&core.stage, Stage::Recovering(recovering) if !recovering.is_mending());
        self.view.send_if_modified(|view| {
            // What it starts as is known when its directory was read.
            if reading && *view == NodeView::Starting {
                return false;
            }
            let now = NodeView::Running { phase, leader };
            let changed = *view != now;
            *view = now;
            changed
        });
    }

    fn answer_admin(&self, request: AdminRequest, answer: oneshot::Sender<Result<(), AdminFailure>>) {
        match &mut self.core.borrow_mut().stage {
            Stage::Unformed(_) => {
                drop(answer.send(Err(AdminFailure::Refused("this server is not a member of a cluster yet".into()))));
            }
            Stage::Recovering(_) => drop(answer.send(Err(AdminFailure::Recovering))),
            Stage::Running(running) => {
                running.admin_asked(request, AdminWaiter::Here(answer), self.options.limits.admin_ms, self.now());
            }
        }
        self.wake.notify_one();
    }

    fn begin_shutdown(&self, hand_over: bool) {
        let mut core = self.core.borrow_mut();
        core.closing = true;
        if let Stage::Running(running) = &mut core.stage {
            if hand_over {
                running.voter.transfer_away(self.now());
            }
            running.room.handle_close(Code::Closing, None);
        }
        drop(core);
        self.wake.notify_one();
    }

    /// Whether leadership and clients are gone, and with them all that a shutdown waits for.
    fn may_end(&self) -> bool {
        match &self.core.borrow().stage {
            Stage::Unformed(_) | Stage::Recovering(_) => true,
            Stage::Running(running) => running.room.link_count() == 0 && !running.voter.is_transferring(),
        }
    }
}

impl Core {
    /// The next client to whom the room has something to say.
    fn woken(&mut self, now: Time) -> Option<(LinkId, Rc<Conversation>)> {
        let Stage::Running(running) = &mut self.stage else { return None };
        while let Some(link) = running.room.poll_wake(now) {
            if let Some(client) = self.clients.get(&link) {
                return Some((link, Rc::clone(client)));
            }
        }
        None
    }

    fn phase(&self) -> (Phase, Option<RaftId>) {
        match &self.stage {
            Stage::Unformed(unformed) if unformed.joins() => (Phase::Joining, None),
            Stage::Unformed(_) => (Phase::Forming, None),
            Stage::Recovering(_) => (Phase::Recovering, None),
            Stage::Running(running) => match (running.role, running.leader) {
                (RaftRole::Leader, leader) => (Phase::Leading, leader),
                (_, Some(leader)) => (Phase::Following, Some(leader)),
                (_, None) => (Phase::Leaderless, None),
            },
        }
    }

    /// Tells clients where the other servers are.
    fn learn_endpoints(&mut self, node: &Node) {
        let Stage::Running(running) = &mut self.stage else { return };
        let own = ServerEntry { id: running.voter.status().id, endpoints: node.options.endpoints.clone() };
        let others = self.links.values().filter_map(|link| {
            let peer = link.peer();
            Some(ServerEntry { id: peer.id?, endpoints: peer.endpoints.clone() })
        });
        running.room.handle_servers(std::iter::once(own).chain(others).collect());
    }
}
