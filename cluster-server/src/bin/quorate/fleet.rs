//! Server processes of our own on loopback: what `demo` and `load --spawn` run against. Whatever way this process ends, they end
//! with it: each child holds our pipe as its stdin and leaves when that closes, and each handle kills its child when it is dropped.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cluster_server::status::{Phase, ServerStatus};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use voter_mesh::ids::{RaftId, Seat, Term};

use crate::attach::Endpoint;
use crate::output::Failure;
use crate::serve::StateName;
use crate::status;

/// How long a server may take to listen. A debug build on a busy machine needs a second or two.
const READY_MS: u64 = 30_000;

/// How long one look at a server may take.
const LOOK_MS: u64 = 2_000;

/// Between two looks.
const LOOK_AGAIN_MS: u64 = 20;

/// How long the reaping of a killed child may hold up a drop.
const REAP_MS: u64 = 2_000;

/// Ports below the range that outgoing connections take theirs from (32768 and up where nobody changed it): otherwise a client
/// that dials a dead server could be given that very port and find itself connected to itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Servers in processes of their own.
pub(crate) struct Fleet {
    // Declared first, so that the children are dead before their directory goes.
    servers: BTreeMap<Seat, Server>,
    /// Processor time of those that were killed.
    cpu_of_killed: Duration,
    root: Root,
}

/// Where the servers' directories lie.
struct Root {
    path: PathBuf,
    /// Removed when it is dropped; none if it was kept.
    temporary: Option<TempDir>,
}

struct Server {
    arguments: Vec<String>,
    endpoint: Endpoint,
    data_dir: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

/// A running child. Its pipes stay open as long as it lives.
struct Process {
    child: Child,
    _stdin: Option<ChildStdin>,
    _stdout: Option<BufReader<ChildStdout>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let end = Instant::now() + Duration::from_millis(REAP_MS);
        // A directory can only be removed once nobody writes in it any more.
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Fleet {
    /// Starts `count` servers with fresh directories below `parent` (the system's directory for temporary files if there is none).
    pub(crate) async fn start(count: u16, state: StateName, parent: Option<&Path>) -> Result<Self, Failure> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("quorate-");
        let temporary = match parent {
            Some(parent) => {
                std::fs::create_dir_all(parent)?;
                builder.tempdir_in(parent)?
            }
            None => builder.tempdir()?,
        };
        let root = Root { path: temporary.path().to_owned(), temporary: Some(temporary) };
        let ports = free_ports(usize::from(count) * 2)?;
        let (mesh, relay) = ports.split_at(usize::from(count));
        let seats = || (1..=count).map(Seat);
        let peers: Vec<String> = seats().zip(mesh).map(|(seat, port)| format!("{seat}=127.0.0.1:{port}")).collect();
        let mut servers = BTreeMap::new();
        for (seat, port) in seats().zip(relay) {
            let data_dir = root.path.join(format!("server-{seat}"));
            let arguments = [
                "serve",
                "--node",
                &seat.to_string(),
                "--peers",
                &peers.join(","),
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--data-dir",
                &data_dir.to_string_lossy(),
                "--state",
                state.as_str(),
                "--until-stdin-closes",
                "--json",
            ];
            let arguments = arguments.iter().map(ToString::to_string).collect();
            let endpoint = format!("ws://127.0.0.1:{port}/rooms/main").parse().map_err(Failure::failed)?;
            let log = root.path.join(format!("server-{seat}.log"));
            servers.insert(seat, Server { arguments, endpoint, data_dir, log, process: None });
        }
        let mut fleet = Self { servers, cpu_of_killed: Duration::ZERO, root };
        for seat in seats() {
            fleet.launch(seat)?;
        }
        for seat in seats() {
            fleet.listening(seat).await?;
        }
        Ok(fleet)
    }

    fn server(&mut self, seat: Seat) -> Result<&mut Server, Failure> {
        self.servers.get_mut(&seat).ok_or_else(|| Failure::failed(format!("there is no server {seat}")))
    }

    fn launch(&mut self, seat: Seat) -> Result<(), Failure> {
        let server = self.server(seat)?;
        let log = File::options().create(true).append(true).open(&server.log)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(&server.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        server.process = Some(Process { child, _stdin: stdin, _stdout: stdout });
        Ok(())
    }

    /// Waits for the line that a server prints once it listens.
    async fn listening(&mut self, seat: Seat) -> Result<(), Failure> {
        let server = self.server(seat)?;
        let Some(stdout) = server.process.as_mut().and_then(|process| process._stdout.as_mut()) else { return Ok(()) };
        let mut line = String::new();
        match tokio::time::timeout(Duration::from_millis(READY_MS), stdout.read_line(&mut line)).await {
            Ok(Ok(1..)) => Ok(()),
            _ => Err(Failure::failed(format!("server {seat} did not start:\n{}", tail(&server.log)))),
        }
    }

    /// Kills a server without warning (SIGKILL), and says when.
    pub(crate) async fn kill(&mut self, seat: Seat) -> Result<Instant, Failure> {
        let Some(mut process) = self.server(seat)?.process.take() else {
            return Err(Failure::failed(format!("server {seat} does not run")));
        };
        let at = Instant::now();
        process.child.start_kill()?;
        // Until it is waited for it is at most a zombie, which still tells.
        self.cpu_of_killed += process.child.id().and_then(cpu_of).unwrap_or_default();
        process.child.wait().await?;
        Ok(at)
    }

    /// Starts a killed server again, on the same addresses and in the same directory.
    pub(crate) async fn restart(&mut self, seat: Seat) -> Result<(), Failure> {
        self.launch(seat)?;
        self.listening(seat).await
    }

    /// Removes a killed server's directory and all that is in it.
    pub(crate) fn wipe(&mut self, seat: Seat) -> Result<(), Failure> {
        Ok(std::fs::remove_dir_all(&self.server(seat)?.data_dir)?)
    }

    /// All seats, ascending.
    pub(crate) fn seats(&self) -> Vec<Seat> {
        self.servers.keys().copied().collect()
    }

    /// Where clients attach, in the order of the seats.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.servers.values().map(|server| server.endpoint.clone()).collect()
    }

    /// Where clients attach, the server at `seat` first.
    pub(crate) fn endpoints_from(&self, seat: Seat) -> Vec<Endpoint> {
        let first = self.servers.range(seat..).chain(self.servers.range(..seat));
        first.map(|(_, server)| server.endpoint.clone()).collect()
    }

    /// What a server says of itself; none if it does not answer.
    pub(crate) async fn status(&self, seat: Seat, hashes: bool) -> Option<ServerStatus> {
        let endpoint = &self.servers.get(&seat)?.endpoint;
        status::fetch(endpoint, hashes, Duration::from_millis(LOOK_MS)).await.ok()
    }

    /// Waits until a server leads.
    pub(crate) async fn leader(&self, deadline: Duration) -> Result<(RaftId, Term), Failure> {
        self.wait(deadline, "a leader", |status| match (status.phase, status.id) {
            (Phase::Leading, Some(id)) => Some((id, status.term)),
            _ => None,
        })
        .await
    }

    /// Waits until `look` finds what it looks for in the status of one of the servers, and says what.
    pub(crate) async fn wait<T>(
        &self,
        deadline: Duration,
        what: &str,
        look: impl Fn(&ServerStatus) -> Option<T>,
    ) -> Result<T, Failure> {
        let search = async {
            loop {
                for seat in self.seats() {
                    if let Some(found) = self.status(seat, false).await.as_ref().and_then(&look) {
                        return found;
                    }
                }
                tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
            }
        };
        let late =
            || Failure::failed(format!("waited {deadline:?} for {what}; the servers' logs are in {}", self.root.path.display()));
        tokio::time::timeout(deadline, search).await.map_err(|_| late())
    }

    /// Processor time that the servers have used, those that were killed included.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let processes = self.servers.values().filter_map(|server| server.process.as_ref());
        let running: Option<Duration> = processes.map(|process| cpu_of(process.child.id()?)).sum();
        Some(running? + self.cpu_of_killed)
    }

    /// Processor time that the server at `seat` has used since it was started last.
    pub(crate) fn cpu_at(&self, seat: Seat) -> Option<Duration> {
        cpu_of(self.servers.get(&seat)?.process.as_ref()?.child.id()?)
    }

    /// Resident memory of the running servers.
    pub(crate) fn memory_kib(&self) -> Option<u64> {
        let processes = self.servers.values().filter_map(|server| server.process.as_ref());
        processes.map(|process| memory_kib_of(process.child.id()?)).sum()
    }

    /// A directory of the fleet's own, removed with it.
    pub(crate) fn directory(&self) -> &Path {
        &self.root.path
    }

    /// Leaves the directories behind when the fleet ends, and says where.
    pub(crate) fn keep(&mut self) -> PathBuf {
        if let Some(temporary) = self.root.temporary.take() {
            let _ = temporary.keep();
        }
        self.root.path.clone()
    }
}

/// Ports that nobody listens on now. Another process may take one before we do; the server then says so and the caller tries again.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let mut held = Vec::new();
    let mut seed = [0_u8; 2];
    getrandom::fill(&mut seed).map_err(|error| Failure::failed(error.to_string()))?;
    let span = PORTS.end - PORTS.start;
    let first = u16::from_le_bytes(seed) % span;
    for step in 0..span {
        if held.len() == count {
            break;
        }
        let port = PORTS.start + (first + step) % span;
        if let Ok(listener) = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(Failure::failed("there are not enough free ports"));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// User and system time of a process, where the system tells.
pub(crate) fn cpu_of(pid: u32) -> Option<Duration> {
    parse_cpu(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 14 and 15 of `/proc/PID/stat`, in hundredths of a second. The name, field 2, may hold anything, so counting begins behind
/// its closing parenthesis.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

/// Resident memory of a process, where the system tells.
fn memory_kib_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_below_those_of_outgoing_connections() {
        let ports = free_ports(6).unwrap();
        assert_eq!(ports.len(), 6);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn a_process_tells_its_memory() {
        assert!(memory_kib_of(std::process::id()).is_some_and(|kib| kib > 100));
    }

    #[test]
    fn processor_time_is_read_behind_the_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5";
        assert_eq!(parse_cpu(stat), Some(Duration::from_millis(2_000)));
        assert_eq!(parse_cpu("7 (cut"), None);
    }
}
