//! `quorate load`: as many writes as the servers take, and how long each took.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use cluster_client::RequestJournal;
use serde::Serialize;
use voter_mesh::machine::kv::{self, KvCommand};
use voter_mesh::machine::to_cbor;

use crate::attach::{Attach, seconds};
use crate::closed_loop::{Figures, Plan, Until};
use crate::demo::server_count;
use crate::fleet::Fleet;
use crate::output::{self, Failure};
use crate::serve::StateName;
use crate::status;

/// Proposals outstanding on one connection when nobody says how many connections there are: half of a session's window of 256, so
/// that one late answer does not stop it.
const OUTSTANDING_PER_CONNECTION: usize = 128;

/// Keys that each slot writes in turn in a room of state kv.
const KEYS: usize = 16;

const EXAMPLES: &str = "\
Examples:
  quorate load --spawn 3 --outstanding 256             three server processes of its own, with fresh directories
  quorate load --endpoint ws://127.0.0.1:7401 --endpoint ws://127.0.0.1:7402 --count 100000 --bytes 64
  for n in 1 16 256 1024; do quorate load --spawn 3 --outstanding $n --json; done

Closed loop: each of N places proposes its next command when its last one is answered. Clients are thin: they get answers
and no feed. In a room of state kv it writes keys under `load/`. With --spawn it also says what processor time the servers
took for each operation.";

/// Write as fast as the servers take it and report throughput and latency
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Load {
    #[command(flatten)]
    attach: Attach,
    /// Start this many server processes for it, with fresh directories, and stop them afterwards
    #[arg(long, value_name = "SERVERS", conflicts_with = "endpoints", value_parser = server_count)]
    spawn: Option<u16>,
    /// Where --spawn makes the directories; default: the system's directory for temporary files
    #[arg(long, value_name = "DIR", requires = "spawn")]
    dir: Option<PathBuf>,
    /// The state machine of --spawn's servers
    #[arg(long, value_enum, default_value_t = StateName::Log, requires = "spawn")]
    state: StateName,
    /// Connections, spread over the endpoints; default: one per 128 outstanding
    #[arg(long, short)]
    connections: Option<usize>,
    /// Proposals that wait for their answers at once, over all connections
    #[arg(long, short = 'n', default_value_t = 256)]
    outstanding: usize,
    /// Bytes of each command
    #[arg(long, visible_alias = "size", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    bytes: u32,
    /// Stop after this time
    #[arg(long, value_parser = seconds, default_value = "10")]
    seconds: Duration,
    /// Stop after this many operations
    #[arg(long, conflicts_with = "seconds")]
    count: Option<u64>,
    /// Print the report as a JSON object
    #[arg(long)]
    json: bool,
}

/// The report.
#[derive(Serialize, Debug)]
struct Report {
    connections: usize,
    outstanding: usize,
    bytes: u32,
    #[serde(flatten)]
    figures: Figures,
}

impl Load {
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        tokio::select! {
            done = self.perform() => done,
            interrupted = output::interrupted() => interrupted.map_err(Failure::from)
                .and(Err(Failure::new(output::Code::Interrupted, "interrupted"))),
        }
    }

    async fn perform(&mut self) -> Result<(), Failure> {
        let fleet = match self.spawn {
            Some(count) => {
                let fleet = Fleet::start(count, self.state, self.dir.as_deref()).await?;
                fleet.leader(self.attach.deadline).await?;
                self.attach.servers.endpoints = fleet.endpoints();
                Some(fleet)
            }
            None => None,
        };
        let outstanding = self.outstanding.max(1);
        let connections = self.connections.unwrap_or(outstanding.div_ceil(OUTSTANDING_PER_CONNECTION)).clamp(1, outstanding);
        let payloads = payloads(self.state().await, self.bytes)?;
        let mut clients = Vec::new();
        for number in 0..connections {
            clients.push(self.attach.thin(RequestJournal::memory(), number).await?);
        }
        let plan = Plan::new(connections, outstanding, self.count.map_or(Until::Elapsed(self.seconds), Until::Count));
        let drivers = clients.iter().enumerate().map(|(number, client)| plan.propose(number, client, &payloads));
        let figures = plan.run(fleet.as_ref(), drivers).await?;
        for client in clients {
            client.close().await;
        }
        let report = Report { connections, outstanding, bytes: self.bytes, figures };
        if self.json {
            output::json_line(&report)?;
        } else {
            output::line(format_args!("{outstanding} outstanding on {connections} connections, {} B each", self.bytes))?;
            output::line(&report.figures)?;
        }
        report.figures.check()
    }

    /// The state machine of the room, as its servers say; `log` if none does, which takes whatever is proposed.
    async fn state(&self) -> StateName {
        for endpoint in &self.attach.servers.endpoints {
            if let Ok(status) = status::fetch(endpoint, false, self.attach.deadline).await {
                return if status.state_machine == kv_name() { StateName::Kv } else { StateName::Log };
            }
        }
        StateName::Log
    }
}

/// Commands of `bytes` bytes each, in a form that the state machine takes.
pub(crate) fn payloads(state: StateName, bytes: u32) -> Result<Vec<Bytes>, Failure> {
    let value = vec![b'x'; bytes as usize];
    if state == StateName::Log {
        return Ok(vec![value.into()]);
    }
    let put = |key: usize| to_cbor(&KvCommand::Put { key: format!("load/{key}").into_bytes(), value: value.clone() });
    (0..KEYS).map(put).collect::<Result<_, _>>().map_err(Failure::failed)
}

fn kv_name() -> &'static str {
    <kv::Kv as voter_mesh::machine::StateMachine>::NAME
}
