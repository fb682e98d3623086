//! Server processes on loopback, and the load that runs against them. A fleet kills only what it started; whatever way this process
//! ends, its servers end too, because each holds our pipe as its stdin.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use cluster_client::{ClusterClient, LogIndex, Thin};
use cluster_server::{Phase, ServerStatus};
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::{PATIENCE, eventually, quorate};

/// Ports below the range that outgoing connections take theirs from.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Ports that nobody listens on now, each given once by this process.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let first = (u64::from(std::process::id()) * 6_151 % u64::from(span)) as u16;
    let ports = (0..span).map(|_| PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % span);
    ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}

/// A child that is killed when it goes.
pub(crate) struct Process {
    pub(crate) child: Child,
    /// What it printed first.
    pub(crate) ready: serde_json::Value,
    _stdin: ChildStdin,
}

impl Process {
    /// Starts `quorate serve` and waits for the line that says that it listens.
    ///
    /// # Errors
    /// How it ended instead.
    pub(crate) async fn serve(arguments: &[String], current_dir: &std::path::Path, log: File) -> Result<Self, ExitStatus> {
        Self::serve_with(&[], arguments, &[], current_dir, log).await
    }

    /// The same with these environment variables, by a command that runs another one.
    ///
    /// # Errors
    /// How it ended instead.
    pub(crate) async fn serve_with(
        within: &[String],
        arguments: &[String],
        environment: &[(String, String)],
        current_dir: &std::path::Path,
        log: File,
    ) -> Result<Self, ExitStatus> {
        let binary = quorate().display().to_string();
        let mut command = within.iter().chain([&binary]);
        let mut child = Command::new(command.next().unwrap())
            .args(command)
            .args(arguments)
            .envs(environment.iter().cloned())
            .args(["--until-stdin-closes", "--json"])
            .current_dir(current_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("a server neither starts nor ends").unwrap();
        if line.is_empty() {
            return Err(timeout(PATIENCE, child.wait()).await.expect("stdout is closed, yet it runs").unwrap());
        }
        Ok(Self { child, ready: serde_json::from_str(&line).unwrap(), _stdin: stdin })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().unwrap() as i32).unwrap()
    }
}

struct Server {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    data_dir: PathBuf,
    host: FleetHost,
    relay: u16,
    process: Option<Process>,
}

/// Where a server runs.
#[derive(Clone)]
pub(crate) struct FleetHost {
    /// The address at which it is reached.
    pub(crate) address: String,
    /// A command that runs another one there; nothing for here.
    pub(crate) within: Vec<String>,
    /// Its data directory's parent; the fleet's if nothing is said.
    pub(crate) data: Option<PathBuf>,
}

impl Default for FleetHost {
    fn default() -> Self {
        Self { address: "127.0.0.1".to_owned(), within: Vec::new(), data: None }
    }
}

/// What a fleet is like.
#[derive(Clone)]
pub(crate) struct FleetOptions {
    pub(crate) seats: usize,
    pub(crate) state: &'static str,
    /// Further arguments of every server.
    pub(crate) arguments: Vec<String>,
    /// Where the data directories are made, each under its seat's number; below the fleet's root if nothing is said.
    pub(crate) data: Option<PathBuf>,
    /// Environment variables of every server; `{seat}` in a value becomes its seat's number.
    pub(crate) environment: Vec<(String, String)>,
    /// Where each server runs; on loopback, where nothing is said.
    pub(crate) hosts: Vec<FleetHost>,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { seats: 3, state: "log", arguments: Vec::new(), data: None, environment: Vec::new(), hosts: Vec::new() }
    }
}

/// One process per server; seats are numbered from 1.
pub(crate) struct Fleet {
    // Before the directory: nobody writes there any more when it is removed.
    servers: Vec<Server>,
    pub(crate) root: TempDir,
}

impl Fleet {
    /// Three servers with fresh directories, formed, with a leader.
    pub(crate) async fn start(state: &'static str) -> Self {
        Self::start_with(FleetOptions { state, ..FleetOptions::default() }).await
    }

    /// Servers with fresh directories, formed, with a leader.
    pub(crate) async fn start_with(options: FleetOptions) -> Self {
        // Another process may take a port between our look and the server's.
        for _ in 0..5 {
            if let Some(fleet) = Self::try_start(&options).await {
                fleet.leader().await;
                return fleet;
            }
        }
        panic!("no fleet starts");
    }

    async fn try_start(options: &FleetOptions) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let FleetOptions { seats, state, data, .. } = options;
        let ports = free_ports(2 * seats);
        let hosts: Vec<FleetHost> = (0..*seats).map(|at| options.hosts.get(at).cloned().unwrap_or_default()).collect();
        let peers: Vec<String> =
            (1..=*seats).map(|seat| format!("{seat}={}:{}", hosts[seat - 1].address, ports[seat - 1])).collect();
        let servers = (1..=*seats).map(|seat| {
            let relay = ports[seats + seat - 1];
            let host = hosts[seat - 1].clone();
            let (node, listen) = (seat.to_string(), format!("{}:{relay}", host.address));
            let data_dir = host.data.as_deref().or(data.as_deref()).unwrap_or(root.path()).join(&node);
            let arguments =
                ["serve", "--node", &node, "--peers", &peers.join(","), "--listen", &listen, "--state", state, "--data-dir"];
            let arguments = arguments.iter().map(ToString::to_string).chain([data_dir.display().to_string()]);
            let arguments = arguments.chain(options.arguments.iter().cloned()).collect();
            let variable = |(name, value): &(String, String)| (name.clone(), value.replace("{seat}", &node));
            let environment = options.environment.iter().map(variable).collect();
            Server { arguments, environment, data_dir, host, relay, process: None }
        });
        let mut fleet = Self { servers: servers.collect(), root };
        for seat in 1..=*seats {
            fleet.try_launch(seat).await.ok()?;
        }
        Some(fleet)
    }

    async fn try_launch(&mut self, seat: usize) -> Result<(), ExitStatus> {
        let log = File::options().create(true).append(true).open(self.log(seat)).unwrap();
        let Server { arguments, environment, host, .. } = &self.servers[seat - 1];
        let process = Process::serve_with(&host.within, arguments, environment, self.root.path(), log).await?;
        self.servers[seat - 1].process = Some(process);
        Ok(())
    }

    /// What the server writes on stderr.
    pub(crate) fn log(&self, seat: usize) -> PathBuf {
        self.root.path().join(format!("{seat}.log"))
    }

    pub(crate) fn data_dir(&self, seat: usize) -> PathBuf {
        self.servers[seat - 1].data_dir.clone()
    }

    pub(crate) fn arguments(&self, seat: usize) -> Vec<String> {
        self.servers[seat - 1].arguments.clone()
    }

    pub(crate) fn url(&self, seat: usize) -> String {
        let Server { host, relay, .. } = &self.servers[seat - 1];
        format!("ws://{}:{relay}/rooms/main", host.address)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        (1..=self.servers.len()).map(|seat| self.url(seat)).collect()
    }

    pub(crate) fn process(&self, seat: usize) -> &Process {
        self.servers[seat - 1].process.as_ref().expect("the server runs")
    }

    /// Starts a server that was killed, on its old directory and addresses.
    pub(crate) async fn launch(&mut self, seat: usize) {
        if let Err(status) = self.try_launch(seat).await {
            panic!("server {seat} ended with {status}: {}", std::fs::read_to_string(self.log(seat)).unwrap());
        }
    }

    /// SIGKILL. Returns once it is certainly dead, and when it was sent.
    pub(crate) async fn kill(&mut self, seat: usize) -> Instant {
        let mut process = self.servers[seat - 1].process.take().expect("the server runs");
        let at = Instant::now();
        process.child.start_kill().unwrap();
        process.child.wait().await.unwrap();
        at
    }

    /// SIGTERM, and how it ended.
    pub(crate) async fn terminate(&mut self, seat: usize) -> ExitStatus {
        let mut process = self.servers[seat - 1].process.take().expect("the server runs");
        process.signal(Signal::TERM);
        timeout(PATIENCE, process.child.wait()).await.expect("SIGTERM does not end it").unwrap()
    }

    /// How a server ended that ends by itself.
    pub(crate) async fn ended(&mut self, seat: usize) -> ExitStatus {
        let mut process = self.servers[seat - 1].process.take().expect("the server runs");
        timeout(PATIENCE, process.child.wait()).await.expect("it lives on").unwrap()
    }

    /// How a server ends that must not start.
    pub(crate) async fn refuses_to_launch(&mut self, seat: usize) -> ExitStatus {
        self.try_launch(seat).await.expect_err("it starts")
    }

    /// SIGSTOP; returns when all its threads stand still, which on a busy machine is a while after the signal.
    pub(crate) fn freeze(&self, seat: usize) {
        let process = self.process(seat);
        process.signal(Signal::STOP);
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(process.pid()), options).unwrap();
    }

    pub(crate) fn thaw(&self, seat: usize) {
        self.process(seat).signal(Signal::CONT);
    }

    /// Removes all that a dead server had on disk.
    pub(crate) fn wipe(&self, seat: usize) {
        assert!(self.servers[seat - 1].process.is_none());
        std::fs::remove_dir_all(self.data_dir(seat)).unwrap();
    }

    /// What the server says of itself; none if it does not answer.
    pub(crate) async fn status(&self, seat: usize) -> Option<ServerStatus> {
        self.servers[seat - 1].process.as_ref()?;
        let Server { host, relay, .. } = &self.servers[seat - 1];
        let ask = async {
            let mut stream = TcpStream::connect((host.address.as_str(), *relay)).await.ok()?;
            stream.write_all(b"GET /status?hashes HTTP/1.1\r\nhost: quorate\r\nconnection: close\r\n\r\n").await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            let body = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
            serde_json::from_slice(&answer[body..]).ok()
        };
        // A frozen server accepts and says nothing.
        timeout(PATIENCE / 30, ask).await.ok().flatten()
    }

    /// The seat that leads, as it says itself, and the others know.
    pub(crate) async fn leader(&self) -> usize {
        eventually("a leader that all agree on", || async {
            let (mut leading, mut known) = (None, Vec::new());
            for seat in 1..=self.servers.len() {
                let Some(status) = self.status(seat).await else { continue };
                if status.phase == Phase::Leading {
                    leading = status.id;
                }
                known.push(status.leader);
            }
            let leader = leading?;
            (known.len() > self.servers.len() / 2 && known.iter().all(|known| *known == Some(leader)))
                .then_some(usize::from(leader.seat().0))
        })
        .await
    }

    /// Waits until every server is linked with the two others.
    pub(crate) async fn linked(&self) {
        eventually("all links", || async {
            for seat in 1..=3 {
                self.status(seat).await.filter(|status| status.counters["mesh_links"] == 2)?;
            }
            Some(())
        })
        .await;
    }

    /// Waits until all servers hold the same entries, state and sessions.
    pub(crate) async fn identical(&self) -> ServerStatus {
        eventually("identical replicas", || async {
            let mut all = Vec::new();
            for seat in 1..=self.servers.len() {
                all.push(self.status(seat).await?);
            }
            let (first, others) = all.split_first()?;
            let same = |other: &ServerStatus| {
                (other.applied, &other.state_hash, &other.sessions_hash) == (first.applied, &first.state_hash, &first.sessions_hash)
            };
            (first.state_hash.is_some() && others.iter().all(same)).then(|| first.clone())
        })
        .await
    }

    /// A client that is attached to this server first.
    pub(crate) async fn thin(&self, seat: usize) -> ClusterClient<Thin> {
        let builder = ClusterClient::builder().endpoints(self.urls()).start_with(seat - 1).deadline(PATIENCE);
        builder.thin().connect().await.unwrap()
    }

    /// All committed commands up to the last one, by index, each as text; from a server that never lost its disk, and so has them.
    pub(crate) async fn history(&self, seat: usize) -> Vec<(LogIndex, String)> {
        let builder = ClusterClient::builder().endpoints(self.urls()).start_with(seat - 1).deadline(PATIENCE);
        let client = builder.raw().connect().await.unwrap();
        let end = client.propose(&Bytes::from_static(b"the end")).await.unwrap().index;
        let mut stream = client.committed_from(LogIndex::FIRST);
        let mut history = Vec::new();
        let read = async {
            while let Some(committed) = stream.next().await {
                let committed = committed.unwrap();
                if committed.index == end {
                    break;
                }
                // Ends of earlier looks are no commands of a load.
                if committed.payload != "the end" {
                    history.push((committed.index, String::from_utf8(committed.payload.to_vec()).unwrap()));
                }
            }
        };
        timeout(PATIENCE, read).await.expect("the history comes to its end");
        drop(stream);
        client.close().await;
        history
    }
}

/// Clients that propose without pause, in this process.
pub(crate) struct Load {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    writers: JoinSet<Vec<Ack>>,
}

/// A command that a client was told about.
pub(crate) struct Ack {
    pub(crate) payload: String,
    pub(crate) index: LogIndex,
    pub(crate) proposed: Instant,
    pub(crate) acknowledged: Instant,
}

impl Load {
    /// Starts `writers` clients, spread over the servers.
    pub(crate) async fn start(fleet: &Fleet, writers: usize) -> Self {
        Self::start_with(fleet, writers, 0).await
    }

    /// The same, each command so much longer.
    pub(crate) async fn start_with(fleet: &Fleet, writers: usize, padding_bytes: usize) -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let number = LOADS.fetch_add(1, Ordering::Relaxed);
        let mut load = Self { acknowledged: Arc::default(), stop: Arc::default(), writers: JoinSet::new() };
        for writer in 0..writers {
            let client = fleet.thin(writer % fleet.servers.len() + 1).await;
            let (acknowledged, stop) = (Arc::clone(&load.acknowledged), Arc::clone(&load.stop));
            let padding = "x".repeat(padding_bytes);
            load.writers.spawn(async move {
                let mut acks = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let payload = format!("{number}.{writer}-{}{}", acks.len(), padding);
                    let proposed = Instant::now();
                    let applied = client
                        .propose(&payload.clone().into())
                        .await
                        .unwrap_or_else(|error| panic!("{}: {error}", payload.trim_end_matches('x')));
                    acks.push(Ack { payload, index: applied.index, proposed, acknowledged: Instant::now() });
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                client.close().await;
                acks
            });
        }
        load
    }

    /// Waits until this many more commands are acknowledged.
    pub(crate) async fn more(&self, count: u64) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + count;
        eventually("more acknowledged commands", || async { (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(()) })
            .await;
    }

    /// Waits until everything is answered; all that was acknowledged, in no particular order.
    pub(crate) async fn finish(self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        timeout(PATIENCE * 2, self.writers.join_all()).await.expect("every proposal is answered").into_iter().flatten().collect()
    }
}

/// Every acknowledged command stands in the history once, where its client was told, and nothing stands twice.
pub(crate) fn exactly_once(acks: &[Ack], history: &[(LogIndex, String)]) {
    let mut told: Vec<_> = acks.iter().map(|ack| (ack.index, ack.payload.as_str())).collect();
    told.sort_unstable();
    let found: Vec<_> = history.iter().map(|(index, payload)| (*index, payload.as_str())).collect();
    assert!(found == told, "{} commands acknowledged, {} committed, and not the same ones", told.len(), found.len());
}
