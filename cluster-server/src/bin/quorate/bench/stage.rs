//! What every workload begins with: servers, who leads, and clients in a known order.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cluster_client::RequestJournal;
use serde::Serialize;
use voter_mesh::ids::Seat;
use voter_mesh::machine::kv::KvCommand;
use voter_mesh::machine::to_cbor;

use crate::attach::{Attach, Endpoint, Servers, Thin};
use crate::closed_loop::{Figures, Plan, Until};
use crate::fleet::Fleet;
use crate::output::{self, Failure};
use crate::serve::StateName;

/// How long a cluster may take to form, elect or catch up, and a client to attach or be answered.
pub(super) const PATIENCE_MS: u64 = 30_000;

/// Before memory or processor time of idle servers is looked at: handshakes are over, and buffers that can shrink have shrunk.
pub(super) const SETTLE_MS: u64 = 2_000;

/// Connections that fill a state, and proposals that each has outstanding.
const FILLERS: usize = 16;
const FILLER_OUTSTANDING: usize = 32;

/// Bytes of a value that fills a state.
const VALUE_BYTES: usize = 64;

/// What all workloads let one choose.
#[derive(Args)]
pub(super) struct Stage {
    /// Where the servers' directories are made; default: the system's directory for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the figures as a JSON object on one line
    #[arg(long)]
    json: bool,
}

/// Servers that have a leader.
pub(super) struct Cluster {
    pub(super) fleet: Fleet,
    pub(super) leader: Seat,
}

impl Stage {
    pub(super) async fn start(&self, servers: u16, state: StateName) -> Result<Cluster, Failure> {
        let fleet = Fleet::start(servers, state, self.dir.as_deref()).await?;
        let (leader, _) = fleet.leader(Duration::from_millis(PATIENCE_MS)).await?;
        Ok(Cluster { fleet, leader: leader.seat() })
    }

    /// Prints the figures of a workload: its name and figures as JSON, or as text for people.
    pub(super) fn tell(&self, workload: &'static str, report: &(impl Serialize + Display)) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Line<'a, R> {
            workload: &'static str,
            #[serde(flatten)]
            report: &'a R,
        }
        if self.json { output::json_line(&Line { workload, report }) } else { output::line(format_args!("{workload}: {report}")) }
    }
}

impl Cluster {
    /// Where clients attach in turn, the leader first.
    pub(super) fn leader_first(&self) -> Vec<Endpoint> {
        self.fleet.endpoints_from(self.leader)
    }

    /// Waits until every server has applied as much as any of them had at the call.
    pub(super) async fn level(&self) -> Result<(), Failure> {
        let deadline = Duration::from_millis(PATIENCE_MS);
        let mut goal = None;
        for seat in self.fleet.seats() {
            goal = goal.max(self.fleet.status(seat, false).await.map(|status| status.applied));
        }
        for seat in self.fleet.seats() {
            let there = |status: &cluster_server::ServerStatus| {
                (status.seat == seat && Some(status.applied) >= goal && status.leader.is_some()).then_some(())
            };
            self.fleet.wait(deadline, "all servers to be as far as the first", there).await?;
        }
        Ok(())
    }

    /// Writes `count` keys of 64 B each.
    pub(super) async fn fill(&self, count: u64) -> Result<Figures, Failure> {
        let clients = thin(&self.leader_first(), FILLERS).await?;
        let plan = Plan::new(FILLERS, FILLERS * FILLER_OUTSTANDING, Until::Count(count));
        let drivers = clients.iter().enumerate().map(|(connection, client)| {
            plan.drive(connection, move |number| async move {
                let command = put(number * FILLERS as u64 + connection as u64)?;
                client.propose(&command).await.map(drop).map_err(|error| error.to_string())
            })
        });
        let figures = plan.run(Some(&self.fleet), drivers).await?;
        figures.check()?;
        for client in clients {
            client.close().await;
        }
        self.level().await?;
        Ok(figures)
    }
}

/// The command that writes the key of this number.
pub(super) fn put(number: u64) -> Result<bytes::Bytes, String> {
    to_cbor(&KvCommand::Put { key: format!("{number:012}").into_bytes(), value: vec![b'x'; VALUE_BYTES] })
}

/// How clients reach `endpoints`.
pub(super) fn attach(endpoints: &[Endpoint]) -> Attach {
    Attach { servers: Servers { endpoints: endpoints.to_vec() }, deadline: Duration::from_millis(PATIENCE_MS) }
}

/// As many thin clients, the i-th attached to the i-th endpoint (in turn).
pub(super) async fn thin(endpoints: &[Endpoint], count: usize) -> Result<Vec<Thin>, Failure> {
    let attach = attach(endpoints);
    let mut clients = Vec::new();
    for number in 0..count {
        clients.push(attach.thin(RequestJournal::memory(), number).await?);
    }
    Ok(clients)
}
