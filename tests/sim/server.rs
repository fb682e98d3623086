//! A machine for one seat: its clocks, its disk and its address stay; processes come and go on it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use cluster_server::host::Listener;
use cluster_server::{ServerClusterBuilder, StartError, VoterHandle};
use voter_mesh::ids::Seat;

use super::disk::{Deed, DiskState, SimDisk};
use super::host::{DiskPace, SimClock, SimHost};
use super::net::{Death, Life, MESH_PORT, RELAY_PORT, SimNet, host};
use super::process::Process;
use super::random::Random;

/// Where a server's files lie on its disk.
pub const DATA: &str = "/data";

/// What dies of a disk's deed: the state that its machine leaves.
type Stump = Arc<Mutex<Option<DiskState>>>;

/// A machine.
pub struct Machine {
    /// Its seat.
    pub seat: Seat,
    /// Its address.
    pub host: IpAddr,
    /// Its clocks.
    pub clock: Rc<RefCell<SimClock>>,
    /// How fast its disk is.
    pub pace: Rc<Cell<DiskPace>>,
    net: SimNet,
    disk: RefCell<SimDisk>,
    running: RefCell<Option<Rc<Running>>>,
    starts: Cell<u32>,
    random: RefCell<Random>,
}

/// A server's process.
#[derive(Debug)]
pub struct Running {
    /// Its tasks.
    pub process: Process,
    /// Asks the voter.
    pub handle: VoterHandle,
    stump: Stump,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("seat", &self.seat).field("starts", &self.starts).finish_non_exhaustive()
    }
}

/// Where the servers of the mesh dial this seat.
#[must_use]
pub fn mesh_address(seat: Seat) -> SocketAddr {
    SocketAddr::new(host(seat.0), MESH_PORT)
}

/// Where clients dial this seat.
#[must_use]
pub fn relay_address(seat: Seat) -> SocketAddr {
    SocketAddr::new(host(seat.0), RELAY_PORT)
}

impl Machine {
    /// A machine with an empty disk and clocks that are right; off.
    #[must_use]
    pub fn new(seat: Seat, net: SimNet, pace: DiskPace, random: Random) -> Rc<Self> {
        Rc::new(Self {
            seat,
            host: host(seat.0),
            clock: Rc::default(),
            pace: Rc::new(Cell::new(pace)),
            net,
            disk: RefCell::new(SimDisk::new()),
            running: RefCell::default(),
            starts: Cell::new(0),
            random: RefCell::new(random),
        })
    }

    /// The server that runs on it.
    #[must_use]
    pub fn running(&self) -> Option<Rc<Running>> {
        self.running.borrow().clone().filter(|running| !running.process.is_gone() && !running.process.life.is_dead())
    }

    /// Its disk, as it is now.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        self.disk.borrow().clone()
    }

    /// How often a server was started on it.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts.get()
    }

    /// Starts a server on what the disk holds. `life` numbers it over all processes.
    ///
    /// # Errors
    /// The builder's.
    pub fn start(&self, life: u64, builder: ServerClusterBuilder) -> Result<Rc<Running>, StartError> {
        self.net.power_on(self.host);
        let life = Life::new(life, self.host);
        let listen = |port| {
            let listener = self.net.listen(SocketAddr::new(self.host, port), &life);
            listener.map(|listener| Box::new(listener) as Box<dyn Listener>)
        };
        let failed = |source| StartError::Listen { address: self.host.to_string(), source };
        let (mesh, relay) = (listen(MESH_PORT).map_err(failed)?, listen(RELAY_PORT).map_err(failed)?);
        let random = Random::new(self.random.borrow_mut().next());
        let around =
            SimHost::new(self.net.clone(), Arc::clone(&life), Rc::clone(&self.clock), self.disk(), Rc::clone(&self.pace), random);
        let (handle, voter) = builder.data_dir(DATA).start_on(around, mesh, vec![relay])?;
        self.starts.set(self.starts.get() + 1);
        let process = Process::start(self.net.clone(), life, voter);
        let running = Rc::new(Running { process, handle, stump: Stump::default() });
        *self.running.borrow_mut() = Some(Rc::clone(&running));
        Ok(running)
    }

    /// Ends the server, wherever it is, and leaves the disk as this death leaves it; whether there was one to end.
    pub async fn kill(&self, death: Death) -> bool {
        let Some(running) = self.running.borrow_mut().take().filter(|running| !running.process.has_exited()) else { return false };
        running.process.life.end();
        let state = running.stump.lock().unwrap_or_else(PoisonError::into_inner).take();
        let state = state.unwrap_or_else(|| self.disk().state());
        let state = match death {
            Death::Killed => state,
            Death::PowerLost => state.after_power_cut(&mut self.random.borrow_mut()),
        };
        // Whatever is left of the process has the old one.
        *self.disk.borrow_mut() = SimDisk::on(state);
        running.process.kill(death).await;
        true
    }

    /// The server will end at the disk's next deed but `deeds`: [`Machine::kill`] is to follow when it has.
    pub fn die_at_deed(&self, deeds: u64) {
        let Some(running) = self.running() else { return };
        let (life, stump, mut left) = (Arc::clone(&running.process.life), Arc::clone(&running.stump), deeds);
        self.disk().observe(Some(Box::new(move |state: &DiskState, _: Deed| {
            if left == 0 && !life.is_dead() {
                life.end();
                *stump.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.clone());
            }
            left = left.saturating_sub(1);
        })));
    }

    /// Nothing of [`Machine::die_at_deed`] is to come any more.
    pub fn live_on(&self) {
        self.disk().observe(None);
    }

    /// Everything on the disk is gone, unless a server runs on it; whether it is.
    pub fn wipe(&self) -> bool {
        let is_off = self.running().is_none();
        if is_off {
            *self.disk.borrow_mut() = SimDisk::new();
        }
        is_off
    }
}
