//! `quorate serve`: a whole cluster in this process, or one voter of one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use cluster_server::mesh::MeshSecret;
use cluster_server::{DamagePolicy, ServerCluster, ServerLimits};
use serde_json::json;
use tokio::io::AsyncReadExt;
use voter_mesh::ids::Seat;
use voter_mesh::machine::MachineFactory;
use voter_mesh::replica::ReplicaLimits;

use crate::attach::seconds;
use crate::output::{self, Failure};

const EXAMPLES: &str = "\
Examples:
  quorate serve
      three voters in this process, state kv, data in ./quorate-data, on 127.0.0.1:7400
  quorate serve --voters 1 --state log --listen 127.0.0.1:0 --json
      one voter; the first line on stdout tells the real port
  quorate serve --node 1 --peers 1=127.0.0.1:7501,2=127.0.0.1:7502,3=127.0.0.1:7503 \\
      --listen 127.0.0.1:7401 --data-dir ./voter-1
      one voter of three; start the other two with --node 2 and --node 3 and the same --peers

When it listens, it prints one line on stdout. SIGINT and SIGTERM hand leadership over, send the clients elsewhere, and flush.";

/// Run servers: a whole cluster in this process, or one voter among peers
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    /// This process is the voter at this seat; without it, all voters run in this process
    #[arg(long, value_name = "SEAT", requires = "peers")]
    node: Option<u16>,
    /// The mesh addresses of all seats that form the cluster, this one's included
    #[arg(long, value_name = "SEAT=HOST:PORT,…", requires = "node", value_delimiter = ',', value_parser = seat_address)]
    peers: Vec<(Seat, String)>,
    /// How many voters run in this process
    #[arg(long, default_value_t = 3, conflicts_with = "node")]
    voters: u16,
    /// Where clients attach; repeatable, port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    listen: Vec<String>,
    /// Where the log and the snapshots lie
    #[arg(long, value_name = "DIR", default_value = "./quorate-data")]
    data_dir: PathBuf,
    /// Bytes of one file of the log; the next one is reserved while one fills, so a voter needs room for two besides what it keeps
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, value_parser = clap::value_parser!(u64).range(64 << 10..=4 << 30))]
    segment_bytes: u64,
    /// Entries after which a snapshot is due, 0 for never; the same on all servers of a cluster, or they cannot compare their states
    #[arg(long, value_name = "ENTRIES", default_value_t = 500_000)]
    snapshot_entries: u64,
    /// Bytes of log after which a snapshot is due, 0 for never; the same on all servers of a cluster
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    snapshot_log_bytes: u64,
    /// Bytes of log that stay below the snapshots, for clients and servers that come back
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    log_retain_bytes: u64,
    /// Percent of a core that writing a snapshot may take while nobody waits for it; 0 for all of it
    #[arg(long, value_name = "PERCENT", default_value_t = 30)]
    snapshot_cpu_percent: u32,
    /// The state machine that the log is applied to
    #[arg(long, value_enum, default_value_t = StateName::Kv)]
    state: StateName,
    /// The room's name
    #[arg(long, default_value = "main")]
    room: String,
    /// A file with the secret that servers prove to each other; without one, only loopback addresses may be bound
    #[arg(long, value_name = "FILE")]
    mesh_secret_file: Option<PathBuf>,
    /// Seconds that a session outlives its last client
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    session_ttl: Duration,
    /// What to do at the start when the log is damaged; whatever it is, votes follow from what was acknowledged
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = OnDamage::Repair)]
    on_damage: OnDamage,
    /// Seconds that a shutdown may take before what is left is torn down
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    shutdown: Duration,
    /// Shut down when stdin closes: a parent that dies takes its servers along
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    /// Print the line on stdout as a JSON object
    #[arg(long)]
    json: bool,
}

/// The state machines that are built in.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StateName {
    /// The retained log is the state: commands are any bytes
    Log,
    /// Keys and values: put, delete, compare-and-set
    Kv,
}

impl StateName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Kv => "kv",
        }
    }

    pub(crate) fn machine(self) -> MachineFactory {
        match self {
            Self::Log => voter_mesh::machine::log::factory(),
            Self::Kv => voter_mesh::machine::kv::factory(),
        }
    }
}

/// What `--on-damage` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum OnDamage {
    /// Fetch what is missing from the other servers before taking part
    Repair,
    /// End the log before its first bad record at once; the leader gives back the rest
    Truncate,
    /// Do not start, and say what is damaged
    Refuse,
    /// As truncate, but keep the damaged files beside and show the damage in the status until the log is whole
    Alert,
}

impl From<OnDamage> for DamagePolicy {
    fn from(on_damage: OnDamage) -> Self {
        match on_damage {
            OnDamage::Repair => Self::Repair,
            OnDamage::Truncate => Self::TruncateToLastGood,
            OnDamage::Refuse => Self::RefuseStart,
            OnDamage::Alert => Self::AlertAndContinue,
        }
    }
}

/// `SEAT=HOST:PORT`.
pub(crate) fn seat_address(text: &str) -> Result<(Seat, String), String> {
    let shape = || format!("{text:?} is not SEAT=HOST:PORT, such as 1=127.0.0.1:7501");
    let (seat, address) = text.split_once('=').ok_or_else(shape)?;
    let seat = seat.parse::<u16>().ok().filter(|seat| *seat > 0).ok_or_else(shape)?;
    Ok((Seat(seat), host_port(address).map_err(|_| shape())?))
}

/// `HOST:PORT`.
pub(crate) fn host_port(address: &str) -> Result<String, String> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address.to_owned()),
        _ => Err(format!("{address:?} is not HOST:PORT")),
    }
}

impl Serve {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut builder = ServerCluster::builder()
            .voters(self.voters)
            .data_dir(&self.data_dir)
            .room(&self.room)
            .machine(self.state.machine())
            .on_damage(self.on_damage.into())
            .limits(ServerLimits {
                segment_bytes: self.segment_bytes,
                log_retain_bytes: self.log_retain_bytes,
                snapshot_cpu_percent: self.snapshot_cpu_percent,
                ..ServerLimits::default()
            })
            .replica_limits(ReplicaLimits {
                snapshot_entries: self.snapshot_entries,
                snapshot_log_bytes: self.snapshot_log_bytes,
                ..ReplicaLimits::default()
            })
            .session_ttl(self.session_ttl);
        for address in &self.listen {
            builder = builder.listen(address);
        }
        if let Some(node) = self.node {
            let count = self.peers.len();
            let peers: BTreeMap<Seat, String> = self.peers.iter().cloned().collect();
            if peers.len() != count {
                return Err(Failure::usage("--peers names a seat twice"));
            }
            builder = builder.seat(Seat(node), peers);
        }
        if let Some(path) = &self.mesh_secret_file {
            let named = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
            let bytes = std::fs::read(path).map_err(|error| named(&error))?;
            builder = builder.mesh_secret(MeshSecret::new(&bytes).map_err(|error| named(&error))?);
        }
        let cluster = builder.start().await.map_err(|error| Failure::failed(error.to_string()))?;
        self.say_ready(&cluster.urls())?;
        let stopped = tokio::select! {
            interrupted = output::interrupted() => interrupted.map(|()| None)?,
            () = stdin_closed(self.until_stdin_closes) => None,
            (seat, why) = cluster.stopped() => Some(format!("seat {seat} stopped: {why}")),
        };
        tracing::info!("shutting down");
        let shut = cluster.shutdown(self.shutdown).await;
        match (stopped, shut) {
            (Some(why), _) => Err(Failure::failed(why)),
            (None, Err(error)) => Err(Failure::failed(error.to_string())),
            (None, Ok(())) => Ok(()),
        }
    }

    fn say_ready(&self, urls: &[String]) -> Result<(), Failure> {
        if self.json {
            return output::json_line(&json!({
                "ready": true, "urls": urls, "node": self.node, "state": self.state.as_str(), "pid": std::process::id(),
            }));
        }
        output::line(format_args!("ready: {}", urls.join(" ")))?;
        let Some(url) = urls.first() else { return Ok(()) };
        let endpoint = if url == crate::attach::DEFAULT_ENDPOINT { String::new() } else { format!(" --endpoint {url}") };
        let write = match self.state {
            StateName::Log => format!("quorate propose{endpoint} 'hello'"),
            StateName::Kv => format!("quorate kv put{endpoint} greeting hello"),
        };
        eprintln!("attach from another terminal:\n  quorate status{endpoint}\n  {write}\n  quorate watch{endpoint}");
        Ok(())
    }
}

/// Resolves at the end of stdin, where that matters; reads and drops whatever comes before.
async fn stdin_closed(matters: bool) {
    if !matters {
        return std::future::pending().await;
    }
    let mut stdin = tokio::io::stdin();
    let mut bytes = [0_u8; 64];
    while matches!(stdin.read(&mut bytes).await, Ok(1..)) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_seats_with_addresses() {
        assert_eq!(seat_address("2=10.0.0.1:7501").unwrap(), (Seat(2), "10.0.0.1:7501".to_owned()));
        assert_eq!(seat_address("3=[::1]:7501").unwrap(), (Seat(3), "[::1]:7501".to_owned()));
        for text in ["", "1", "0=a:1", "x=a:1", "1=a", "1=:5", "1=a:70000", "1=a:"] {
            assert!(seat_address(text).is_err(), "{text}");
        }
    }
}
