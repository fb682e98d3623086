//! `ServerCluster`: voters in this process, all of a cluster's or one of them, and the relay listeners in front of them.
//!
//! Each voter runs on its own thread and knows nothing of the others in its process: they speak over loopback sockets, proved
//! with a secret that exists only in memory, exactly as voters on different hosts do.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use relay::room::RoomLimits;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use voter_mesh::ids::{RaftId, Seat};
pub use voter_mesh::log::DamagePolicy;
use voter_mesh::machine::{MachineFactory, StateMachine};
use voter_mesh::mesh::message::AdminRequest;
use voter_mesh::raft::{Timing, VoterLimits};
use voter_mesh::replica::ReplicaLimits;

use crate::host::{Host, Listener, os_random};
use crate::limits::ServerLimits;
use crate::mesh::MeshSecret;
use crate::node::{self, Control, NodeOptions, NodeView};
use crate::status::{Phase, ServerStatus};

/// How long [`ServerCluster::leader`] waits.
pub const LEADER_WAIT_MS: u64 = 10_000;

/// Milliseconds between two looks at a server that must change its state before a call can go on.
const LOOK_AGAIN_MS: u64 = 20;

/// Requests waiting for one voter's thread.
const CONTROL_QUEUE_MAX: usize = 64;

/// Configures a [`ServerCluster`]. The default is three voters in this process, the state machine `kv`, room `main`, data in
/// `./quorate-data`, no listener.
#[derive(Debug)]
pub struct ServerClusterBuilder {
    voters: u16,
    single: Option<(Seat, BTreeMap<Seat, String>)>,
    data_dir: PathBuf,
    listen: Vec<String>,
    room: String,
    machine: MachineFactory,
    secret: Option<MeshSecret>,
    timing: Timing,
    limits: ServerLimits,
    session_ttl: Duration,
    on_damage: DamagePolicy,
    voter_limits: VoterLimits,
    replica_limits: ReplicaLimits,
    room_limits: RoomLimits,
}

/// Why a cluster did not start. Nothing of it is left running.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Not a number of voters that makes sense.
    #[error("{0} voters: 1, 3, 5 or 7 are possible (an even number tolerates no more failures than the odd one below it)")]
    Voters(u16),
    /// The seat is not among its own peers.
    #[error("seat {0} is not in the list of peers")]
    SeatNotListed(Seat),
    /// An address cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Without a mesh secret, only loopback addresses may be bound: whoever reaches a port could join.
    #[error("{0} is not a loopback address, and there is no mesh secret (--mesh-secret-file)")]
    Unprotected(SocketAddr),
    /// The room's name cannot stand in a URL path.
    #[error("room name {0:?}: 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.' are possible")]
    Room(String),
    /// The voter ended before it was ready: its directory is in use or cannot be read, or a socket failed. The reason is in words
    /// because it can be anything that stops a server.
    #[error("seat {seat} stopped at its start: {why}")]
    Stopped {
        /// Which voter.
        seat: Seat,
        /// Why.
        why: String,
    },
}

/// No leader was elected in time; the cluster goes on trying.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("no leader within {waited_ms} ms")]
pub struct NoLeader {
    /// How long was waited.
    pub waited_ms: u64,
}

/// The voter does not run in this process (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("seat {0} does not run in this process")]
pub struct ServerGone(pub Seat);

/// Why an administrator's request was not done.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The leader refused it; nothing has changed.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered in time: it may still happen.
    #[error("not done in time; it may still happen")]
    Timeout,
}

/// Something was not closed in time; it was torn down.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("seats {0:?} did not shut down in time")]
pub struct ShutdownError(pub Vec<Seat>);

/// The directory of the voter at `seat` below that of a cluster whose voters are all in one process.
#[must_use]
pub fn voter_dir(data_dir: &Path, seat: Seat) -> PathBuf {
    data_dir.join(format!("voter-{seat}"))
}

impl Default for ServerClusterBuilder {
    fn default() -> Self {
        Self {
            voters: 3,
            single: None,
            data_dir: "./quorate-data".into(),
            listen: Vec::new(),
            room: "main".into(),
            machine: voter_mesh::machine::kv::factory(),
            secret: None,
            timing: Timing::default(),
            limits: ServerLimits::default(),
            session_ttl: Duration::from_secs(3600),
            on_damage: DamagePolicy::default(),
            voter_limits: VoterLimits::default(),
            replica_limits: ReplicaLimits::default(),
            room_limits: RoomLimits::default(),
        }
    }
}

impl ServerClusterBuilder {
    /// All voters in this process, seats 1 to `voters`, each in its own directory below [`Self::data_dir`]. Default 3.
    #[must_use]
    pub fn voters(mut self, voters: u16) -> Self {
        self.voters = voters;
        self.single = None;
        self
    }

    /// This process is the voter at `seat` among `peers`: the mesh address of every seat, its own included. All voters that form
    /// a cluster must be given the same list; it is used until they have formed, and the log's configuration from then on.
    #[must_use]
    pub fn seat(mut self, seat: Seat, peers: BTreeMap<Seat, String>) -> Self {
        self.single = Some((seat, peers));
        self
    }

    /// Where the log and the snapshots lie. Default `./quorate-data`.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = path.into();
        self
    }

    /// Adds a relay listener, `host:port`; port 0 takes a free one. The i-th listener belongs to voter i (mod m) and stops with it.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen.push(address.into());
        self
    }

    /// The room's name. Default `main`; clients that ask for another one are refused.
    #[must_use]
    pub fn room(mut self, name: impl Into<String>) -> Self {
        self.room = name.into();
        self
    }

    /// The state machine; `initial` makes the state before the first entry and must make the same one on every replica.
    #[must_use]
    pub fn state_machine<M: StateMachine>(self, initial: impl Fn() -> M + Send + Sync + 'static) -> Self {
        self.machine(MachineFactory::of(initial))
    }

    /// The state machine, as a factory: a built-in one or a raw one.
    #[must_use]
    pub fn machine(mut self, machine: MachineFactory) -> Self {
        self.machine = machine;
        self
    }

    /// The secret that servers prove to each other. Without one, only loopback addresses are bound.
    #[must_use]
    pub fn mesh_secret(mut self, secret: MeshSecret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Ticks, heartbeats and election timeouts.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The server's limits.
    #[must_use]
    pub fn limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The voter core's limits.
    #[must_use]
    pub fn voter_limits(mut self, limits: VoterLimits) -> Self {
        self.voter_limits = limits;
        self
    }

    /// The limits of the session table and of what makes a snapshot due. They decide what servers must agree on: equal on all of
    /// a cluster.
    #[must_use]
    pub fn replica_limits(mut self, limits: ReplicaLimits) -> Self {
        self.replica_limits = limits;
        self
    }

    /// What clients may use: pings, windows, queues. The size of messages, the time of the handshake and the feed's ring are
    /// taken from [`Self::limits`] instead, and the reporting of sessions follows [`Self::session_ttl`].
    #[must_use]
    pub fn room_limits(mut self, limits: RoomLimits) -> Self {
        self.room_limits = limits;
        self
    }

    /// How long a session may be detached before it ends. Default one hour. Shorter: a client that was away finds its session
    /// expired and must ask what became of its requests; longer: more sessions in memory.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = ttl;
        self
    }

    /// What a voter does at its start when its log is damaged. Default [`DamagePolicy::Repair`]. Whatever it is, a log that lost what it
    /// had acknowledged counts for nothing in elections until it is whole, and a lone voter does not start on one.
    #[must_use]
    pub const fn on_damage(mut self, policy: DamagePolicy) -> Self {
        self.on_damage = policy;
        self
    }

    /// Starts the voters and resolves when each has opened its listeners and read its directory; forming, the first election, and
    /// the filling of holes from peers go on.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub async fn start(self) -> Result<ServerCluster, StartError> {
        self.check_room()?;
        let mut plans = Vec::new();
        match &self.single {
            Some((seat, peers)) => {
                let address = peers.get(seat).ok_or(StartError::SeatNotListed(*seat))?;
                let listener = bind(address, self.secret.is_some())?;
                plans.push((*seat, listener, peers.clone(), self.secret.clone(), self.data_dir.clone()));
            }
            None => {
                if !matches!(self.voters, 1 | 3 | 5 | 7) {
                    return Err(StartError::Voters(self.voters));
                }
                // Nobody outside this process may join its mesh.
                let mut bytes = [0; 32];
                os_random(&mut bytes);
                let secret = MeshSecret::from(bytes);
                let mut listeners = Vec::new();
                let mut peers = BTreeMap::new();
                for seat in (1..=self.voters).map(Seat) {
                    let listener = bind("127.0.0.1:0", true)?;
                    let address =
                        listener.local_addr().map_err(|source| StartError::Listen { address: "127.0.0.1:0".into(), source })?;
                    peers.insert(seat, address.to_string());
                    listeners.push((seat, listener));
                }
                for (seat, listener) in listeners {
                    let directory = voter_dir(&self.data_dir, seat);
                    plans.push((seat, listener, peers.clone(), Some(secret.clone()), directory));
                }
            }
        }
        let mut relays: Vec<Vec<TcpListener>> = plans.iter().map(|_| Vec::new()).collect();
        let mut relay_owners = Vec::new();
        for (number, address) in self.listen.iter().enumerate() {
            let listener = bind(address, self.secret.is_some())?;
            let owner = number % plans.len();
            let bound = listener.local_addr().map_err(|source| StartError::Listen { address: address.clone(), source })?;
            relay_owners.push(Relay { owner: plans[owner].0, address: bound });
            relays[owner].push(listener);
        }
        let mut cluster = ServerCluster { voters: BTreeMap::new(), relays: relay_owners, room: self.room.clone() };
        for ((seat, mesh, peers, secret, data_dir), relay) in plans.into_iter().zip(relays) {
            let mesh_address = mesh.local_addr().map_err(|source| StartError::Listen { address: "mesh".into(), source })?;
            let relay_addresses = relay.iter().filter_map(|listener| listener.local_addr().ok()).collect();
            let template = self.template(seat, peers, secret, data_dir, mesh_address, relay_addresses);
            let voter = VoterHandle::start(&template, mesh, relay).await;
            match voter {
                Ok(voter) => cluster.voters.insert(seat, (template, Some(voter))),
                Err(error) => {
                    let _ = cluster.shutdown(Duration::from_secs(1)).await;
                    return Err(error);
                }
            };
        }
        Ok(cluster)
    }

    /// The voter of [`Self::seat`] as a future on `host`, which has made its listeners, for whoever brings the runtime and the world:
    /// a simulation. It must be polled inside a [`tokio::task::LocalSet`], and ends with the reason why; dropping it with all the
    /// tasks of that set is a crash.
    ///
    /// # Errors
    /// [`StartError::SeatNotListed`] without a seat among its peers, `Room`, or `Listen` if a listener has no address. What stops the
    /// voter later is the future's to say.
    pub fn start_on(
        self,
        host: Rc<dyn Host>,
        mesh: Box<dyn Listener>,
        relays: Vec<Box<dyn Listener>>,
    ) -> Result<(VoterHandle, impl Future<Output = String> + 'static), StartError> {
        self.check_room()?;
        let (seat, peers) = self.single.clone().unwrap_or((Seat(0), BTreeMap::new()));
        let at = peers.get(&seat).ok_or(StartError::SeatNotListed(seat))?.clone();
        let address =
            |listener: &dyn Listener| listener.local_addr().map_err(|source| StartError::Listen { address: at.clone(), source });
        let mesh_address = address(&*mesh)?;
        let relay_addresses = relays.iter().map(|relay| address(&**relay)).collect::<Result<_, _>>()?;
        let template = self.template(seat, peers, self.secret.clone(), self.data_dir.clone(), mesh_address, relay_addresses);
        let (handle, controls, view) = VoterHandle::new(&template);
        let voter = async move {
            let ended = node::serve(template.options(), host, mesh, relays, controls, view.clone()).await;
            node::ended_with(seat, ended.map_err(|error| error.to_string()), &view)
        };
        Ok((handle, voter))
    }

    fn check_room(&self) -> Result<(), StartError> {
        let room = &self.room;
        let is_name =
            (1..=64).contains(&room.len()) && room.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name { Ok(()) } else { Err(StartError::Room(room.clone())) }
    }

    fn template(
        &self,
        seat: Seat,
        peers: BTreeMap<Seat, String>,
        secret: Option<MeshSecret>,
        data_dir: PathBuf,
        mesh_address: SocketAddr,
        relay_addresses: Vec<SocketAddr>,
    ) -> Template {
        Template {
            seat,
            mesh_address,
            relay_addresses,
            peers,
            secret,
            data_dir,
            room: self.room.clone(),
            machine: self.machine.clone(),
            timing: self.timing.clone(),
            limits: Arc::new(self.limits.clone()),
            session_ttl: self.session_ttl,
            on_damage: self.on_damage,
            voter_limits: self.voter_limits.clone(),
            replica_limits: self.replica_limits,
            room_limits: self.room_limits,
        }
    }
}

fn bind(address: &str, protected: bool) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    if !protected && !bound.ip().is_loopback() {
        return Err(StartError::Unprotected(bound));
    }
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// All that is needed to start a voter (again), besides its bound listeners.
#[derive(Debug)]
struct Template {
    seat: Seat,
    mesh_address: SocketAddr,
    relay_addresses: Vec<SocketAddr>,
    peers: BTreeMap<Seat, String>,
    secret: Option<MeshSecret>,
    data_dir: PathBuf,
    room: String,
    machine: MachineFactory,
    timing: Timing,
    limits: Arc<ServerLimits>,
    session_ttl: Duration,
    on_damage: DamagePolicy,
    voter_limits: VoterLimits,
    replica_limits: ReplicaLimits,
    room_limits: RoomLimits,
}

impl Template {
    fn options(&self) -> NodeOptions {
        NodeOptions {
            seat: self.seat,
            peers: self.peers.clone(),
            secret: self.secret.clone(),
            data_dir: self.data_dir.clone(),
            room: self.room.clone(),
            machine: self.machine.clone(),
            timing: self.timing.clone(),
            limits: Arc::clone(&self.limits),
            session_ttl: self.session_ttl,
            on_damage: self.on_damage,
            voter_limits: self.voter_limits.clone(),
            replica_limits: self.replica_limits,
            room_limits: self.room_limits,
            endpoints: self.relay_addresses.iter().map(|address| format!("ws://{address}")).collect(),
        }
    }
}

/// A voter that runs somewhere in this process. Dropping the handle stops it as a crash would.
#[derive(Debug)]
pub struct VoterHandle {
    seat: Seat,
    control: mpsc::Sender<Control>,
    view: watch::Receiver<NodeView>,
    admin_ms: u64,
}

impl VoterHandle {
    /// The handle, and what the voter itself needs of it.
    fn new(template: &Template) -> (Self, mpsc::Receiver<Control>, watch::Sender<NodeView>) {
        let (control, controls) = mpsc::channel(CONTROL_QUEUE_MAX);
        let (view_sender, view) = watch::channel(NodeView::Starting);
        (Self { seat: template.seat, control, view, admin_ms: template.limits.admin_ms }, controls, view_sender)
    }

    /// A voter on a thread of its own, ready.
    async fn start(template: &Template, mesh: TcpListener, relays: Vec<TcpListener>) -> Result<Self, StartError> {
        let (mut voter, controls, view) = Self::new(template);
        let (options, seat) = (template.options(), template.seat);
        std::thread::Builder::new()
            .name(format!("voter-{seat}"))
            .spawn(move || node::run(options, mesh, relays, controls, &view))
            .map_err(|error| StartError::Stopped { seat, why: error.to_string() })?;
        let ready = voter.view.wait_for(|view| !matches!(view, NodeView::Starting)).await;
        match ready.as_deref() {
            Ok(NodeView::Stopped { why }) => Err(StartError::Stopped { seat, why: why.clone() }),
            Ok(_) => {
                drop(ready);
                Ok(voter)
            }
            Err(_) => Err(StartError::Stopped { seat, why: "its thread ended".into() }),
        }
    }

    /// What it says of itself; with `hashes` of state and sessions, which costs a pass over the whole state.
    ///
    /// # Errors
    /// [`ServerGone`].
    pub async fn status(&self, hashes: bool) -> Result<ServerStatus, ServerGone> {
        let (answer, answered) = oneshot::channel();
        self.control.send(Control::Status { hashes, answer }).await.map_err(|_| ServerGone(self.seat))?;
        answered.await.map_err(|_| ServerGone(self.seat))
    }

    /// Asks the leader to change the cluster; this voter passes it on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn admin(&self, request: AdminRequest) -> Result<(), AdminError> {
        let (answer, answered) = oneshot::channel();
        self.control.send(Control::Admin { request, answer }).await.map_err(|_| AdminError::Timeout)?;
        match tokio::time::timeout(Duration::from_millis(self.admin_ms), answered).await {
            Ok(Ok(result)) => result.map_err(|failure| AdminError::Refused(failure.to_string())),
            Ok(Err(_)) | Err(_) => Err(AdminError::Timeout),
        }
    }

    /// Tells it to say goodbye to its clients, and to hand leadership over if it leads and `hand_over` is set; it ends when that is
    /// done, or after `deadline`. Does nothing if it has ended.
    pub async fn shutdown(&self, deadline: Duration, hand_over: bool) {
        let _ = self.control.send(Control::Shutdown { deadline, hand_over }).await;
    }

    /// Resolves when it has ended, with the reason.
    pub async fn stopped(&self) -> String {
        match self.view.clone().wait_for(|view| matches!(view, NodeView::Stopped { .. })).await.as_deref() {
            Ok(NodeView::Stopped { why }) => why.clone(),
            _ => "its thread ended".into(),
        }
    }
}

/// One relay listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Relay {
    owner: Seat,
    address: SocketAddr,
}

/// Voters in this process and the relay listeners in front of them. Dropping it tears everything down at once, as a crash would;
/// [`ServerCluster::shutdown`] hands leadership over and says goodbye first.
#[derive(Debug)]
pub struct ServerCluster {
    voters: BTreeMap<Seat, (Template, Option<VoterHandle>)>,
    relays: Vec<Relay>,
    room: String,
}

impl ServerCluster {
    /// Starts to configure a cluster.
    #[must_use]
    pub fn builder() -> ServerClusterBuilder {
        ServerClusterBuilder::default()
    }

    /// The address of the first relay listener; of the mesh if there is none.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        let mesh = || self.voters.values().next().map(|(template, _)| template.mesh_address);
        self.relays.first().map(|relay| relay.address).or_else(mesh).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The addresses of all relay listeners, in the order of the builder's `listen`.
    #[must_use]
    pub fn relay_addrs(&self) -> Vec<SocketAddr> {
        self.relays.iter().map(|relay| relay.address).collect()
    }

    /// What clients are given: the URL of the room on each relay listener.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.relays.iter().map(|relay| format!("ws://{}/rooms/{}", relay.address, self.room)).collect()
    }

    /// The seats that run in this process.
    #[must_use]
    pub fn seats(&self) -> Vec<Seat> {
        self.voters.iter().filter(|(_, (_, voter))| voter.is_some()).map(|(seat, _)| *seat).collect()
    }

    fn voter(&self, seat: Seat) -> Result<&VoterHandle, ServerGone> {
        self.voters.get(&seat).and_then(|(_, voter)| voter.as_ref()).ok_or(ServerGone(seat))
    }

    /// Waits until a voter of this process leads or follows, at most [`LEADER_WAIT_MS`], and says who leads.
    ///
    /// # Errors
    /// [`NoLeader`]; the cluster goes on trying.
    pub async fn leader(&self) -> Result<RaftId, NoLeader> {
        self.leader_within(Duration::from_millis(LEADER_WAIT_MS)).await
    }

    /// As [`ServerCluster::leader`], with a deadline of its own.
    ///
    /// # Errors
    /// [`NoLeader`]; the cluster goes on trying.
    pub async fn leader_within(&self, deadline: Duration) -> Result<RaftId, NoLeader> {
        let look = async {
            loop {
                let views = self.voters.values().filter_map(|(_, voter)| voter.as_ref());
                let mut leading = None;
                for voter in views {
                    if let NodeView::Running { phase: Phase::Leading, leader: Some(leader), .. } = *voter.view.borrow() {
                        leading = Some(leader);
                    } else if let (NodeView::Running { leader: Some(leader), .. }, true) =
                        (&*voter.view.borrow(), self.voters.len() == 1)
                    {
                        leading = Some(*leader);
                    }
                }
                if let Some(leader) = leading {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
            }
        };
        tokio::time::timeout(deadline, look).await.map_err(|_| NoLeader { waited_ms: deadline.as_millis() as u64 })
    }

    /// What the voter at `seat` says of itself.
    ///
    /// # Errors
    /// [`ServerGone`].
    pub async fn status(&self, seat: Seat) -> Result<ServerStatus, ServerGone> {
        self.voter(seat)?.status(false).await
    }

    /// As [`ServerCluster::status`], with the hashes of state and sessions: costs a pass over the whole state.
    ///
    /// # Errors
    /// [`ServerGone`].
    pub async fn status_with_hashes(&self, seat: Seat) -> Result<ServerStatus, ServerGone> {
        self.voter(seat)?.status(true).await
    }

    /// Asks the leader to change the cluster; any running voter of this process passes it on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn admin(&self, request: AdminRequest) -> Result<(), AdminError> {
        match self.voters.values().find_map(|(_, voter)| voter.as_ref()) {
            Some(voter) => voter.admin(request).await,
            None => Err(AdminError::Refused("no voter runs in this process".into())),
        }
    }

    /// Stops the voter at `seat` as a crash would: its sockets close, its log stays. Its listeners stop with it.
    pub async fn stop_voter(&mut self, seat: Seat) {
        if let Some(mut voter) = self.voters.get_mut(&seat).and_then(|(_, voter)| voter.take()) {
            drop(voter.control);
            let _ = voter.view.wait_for(|view| matches!(view, NodeView::Stopped { .. })).await;
        }
    }

    /// Starts a voter that was stopped again, on the same addresses. Does nothing where it runs.
    ///
    /// # Errors
    /// [`StartError`]; the voter is then still stopped.
    pub async fn start_voter(&mut self, seat: Seat) -> Result<(), StartError> {
        let Some((template, slot)) = self.voters.get_mut(&seat) else { return Err(StartError::SeatNotListed(seat)) };
        if slot.is_some() {
            return Ok(());
        }
        let protected = template.secret.is_some();
        let mesh = bind(&template.mesh_address.to_string(), protected)?;
        let mut relays = Vec::new();
        for address in &template.relay_addresses {
            relays.push(bind(&address.to_string(), protected)?);
        }
        *slot = Some(VoterHandle::start(template, mesh, relays).await?);
        Ok(())
    }

    /// Stops the relay listener with this number (in the order of the builder's `listen`): it accepts nobody any more and the
    /// clients that came through it are closed with a hint. Its voter goes on. Returns whether there was one.
    pub async fn stop_relay(&mut self, number: usize) -> bool {
        let Some(relay) = self.relays.get(number).copied() else { return false };
        let Ok(voter) = self.voter(relay.owner) else { return false };
        let (answer, answered) = oneshot::channel();
        if voter.control.send(Control::StopRelay { address: relay.address, answer }).await.is_err() {
            return false;
        }
        if let Some((template, _)) = self.voters.get_mut(&relay.owner) {
            template.relay_addresses.retain(|address| *address != relay.address);
        }
        answered.await.unwrap_or(false)
    }

    /// Resolves when a voter stops by itself (a failing disk, a diverged history), with its seat and the reason.
    pub async fn stopped(&self) -> (Seat, String) {
        let voters = self.voters.values().filter_map(|(_, voter)| voter.as_ref());
        let watches: Vec<_> = voters.map(|voter| Box::pin(async { (voter.seat, voter.stopped().await) })).collect();
        if watches.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(watches).await.0
    }

    /// Shuts down in order: leadership is handed over where it can be, clients are closed with a hint where to go, everything is
    /// flushed. What has not ended by the deadline is torn down.
    ///
    /// # Errors
    /// [`ShutdownError`] names the seats that did not end in time.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), ShutdownError> {
        let mut late = Vec::new();
        let end = tokio::time::Instant::now() + deadline;
        let mut views = Vec::new();
        // All at once: when every voter of a cluster goes, handing leadership around among them would only cost time.
        let last_one = self.voters.len() > 1;
        // A client that does not read may hold a voter up for all the time that it is given: the rest is for ending.
        let goodbye = deadline * 9 / 10;
        for (seat, (_, voter)) in self.voters {
            if let Some(voter) = voter {
                voter.shutdown(goodbye, !last_one).await;
                views.push((seat, voter));
            }
        }
        for (seat, voter) in views {
            if tokio::time::timeout_at(end, voter.stopped()).await.is_err() {
                late.push(seat);
            }
        }
        if late.is_empty() { Ok(()) } else { Err(ShutdownError(late)) }
    }
}
