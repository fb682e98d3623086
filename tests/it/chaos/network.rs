//! A network of this test's own: a namespace for the test's thread, one for each server, and a bridge between them. All of it goes with
//! the processes and the thread that live in it; nothing of the machine's own network is touched.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::UnshareFlags;

/// A server's link layer address that nobody has: what is sent there is lost without a word.
const NOBODY: &str = "02:00:00:00:00:01";

/// How long a child may take to enter its namespace.
const ENTER_MAX: Duration = Duration::from_secs(10);

pub(super) struct Network {
    /// Each keeps a server's namespace, until its stdin closes.
    keepers: Vec<Child>,
}

impl Drop for Network {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

/// An end of a path: a server by its seat, or where the clients are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Server(usize),
    Clients,
}

impl Place {
    fn address(self) -> String {
        match self {
            Self::Server(seat) => format!("10.77.0.{seat}"),
            Self::Clients => "10.77.0.254".to_owned(),
        }
    }
}

impl Network {
    /// Moves the calling thread into a namespace of its own, and makes one for each server. The thread must end with the test.
    ///
    /// # Errors
    /// Why this machine cannot. The thread may be in a namespace without any network then.
    pub(super) fn make(servers: usize) -> Result<Self, String> {
        // SAFETY: a thread's network namespace is nothing that memory depends on, and no descriptors are unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| format!("unshare: {error}"))?;
        let mut network = Self { keepers: Vec::new() };
        ip("link set lo up")?;
        ip("link add hub type bridge")?;
        ip(&format!("addr add {}/24 dev hub", Place::Clients.address()))?;
        ip("link set hub up")?;
        for seat in 1..=servers {
            let keeper = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            let keeper = keeper.map_err(|error| format!("unshare: {error}"))?;
            let pid = keeper.id();
            network.keepers.push(keeper);
            let own = std::fs::read_link("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
            let began = Instant::now();
            while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespace == own) {
                if began.elapsed() > ENTER_MAX {
                    return Err("a child does not leave this namespace".to_owned());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            ip(&format!("link add to{seat} type veth peer name eth0 netns {pid}"))?;
            ip(&format!("link set to{seat} master hub up"))?;
            network.at(Place::Server(seat), "link set lo up")?;
            network.at(Place::Server(seat), &format!("addr add {}/24 dev eth0", Place::Server(seat).address()))?;
            network.at(Place::Server(seat), "link set eth0 up")?;
        }
        Ok(network)
    }

    pub(super) fn address(seat: usize) -> String {
        Place::Server(seat).address()
    }

    /// A command that runs another one where this server is.
    pub(super) fn within(&self, seat: usize) -> Vec<String> {
        ["nsenter", "--net", "--target", &self.keepers[seat - 1].id().to_string(), "--"].map(str::to_owned).to_vec()
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub(super) fn cut(&self, from: Place, to: Place) {
        self.at(from, &format!("neigh replace {} lladdr {NOBODY} nud permanent dev {}", to.address(), device(from))).unwrap();
    }

    /// It does again.
    pub(super) fn mend(&self, from: Place, to: Place) {
        self.at(from, &format!("neigh del {} dev {}", to.address(), device(from))).unwrap();
    }

    fn at(&self, place: Place, command: &str) -> Result<(), String> {
        match place {
            Place::Clients => ip(command),
            Place::Server(seat) => {
                let within = self.within(seat);
                let words = within.iter().map(String::as_str).chain(["ip"]).chain(command.split(' '));
                run(&words.collect::<Vec<_>>())
            }
        }
    }
}

const fn device(place: Place) -> &'static str {
    match place {
        Place::Server(_) => "eth0",
        Place::Clients => "hub",
    }
}

fn ip(command: &str) -> Result<(), String> {
    run(&["ip"].into_iter().chain(command.split(' ')).collect::<Vec<_>>())
}

fn run(command: &[&str]) -> Result<(), String> {
    let output = Command::new(command[0]).args(&command[1..]).output().map_err(|error| format!("{}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
