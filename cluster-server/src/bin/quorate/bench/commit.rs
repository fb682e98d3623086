//! How many commands are committed, and how long each takes: spread over all servers (`commit`), or entering at followers only
//! (`forward`).

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::stage::{Stage, thin};
use crate::attach::{Endpoint, seconds};
use crate::closed_loop::{Figures, Plan, Until};
use crate::demo::server_count;
use crate::fleet::Fleet;
use crate::load::payloads;
use crate::output::Failure;
use crate::serve::StateName;

/// Writes in a closed loop, clients attached to all servers in turn, the leader first
#[derive(Args)]
pub(super) struct Commit {
    #[command(flatten)]
    writing: Writing,
    /// Server processes: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3, value_parser = server_count)]
    servers: u16,
}

/// Writes in a closed loop, no client attached to the leader: every command is forwarded
#[derive(Args)]
pub(super) struct Forward {
    #[command(flatten)]
    writing: Writing,
}

#[derive(Args)]
struct Writing {
    #[command(flatten)]
    stage: Stage,
    /// Clients
    #[arg(long, short, default_value_t = 64)]
    connections: usize,
    /// Commands that wait for their answers at once, over all clients
    #[arg(long, short = 'n', default_value_t = 256)]
    outstanding: usize,
    /// Bytes of each command
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    bytes: u32,
    /// Seconds that are measured, after one that is not
    #[arg(long, value_parser = seconds, default_value = "3")]
    seconds: Duration,
    /// The servers' state machine
    #[arg(long, value_enum, default_value_t = StateName::Log)]
    state: StateName,
}

#[derive(Serialize)]
struct Report {
    servers: u16,
    connections: usize,
    outstanding: usize,
    bytes: u32,
    #[serde(flatten)]
    figures: Figures,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, connections, outstanding, bytes, figures } = self;
        writeln!(f, "{servers} servers, {connections} connections, {outstanding} outstanding, {bytes} B")?;
        figures.fmt(f)
    }
}

impl Commit {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let cluster = self.writing.stage.start(self.servers, self.writing.state).await?;
        self.writing.measure("commit", self.servers, &cluster.fleet, &cluster.leader_first()).await
    }
}

impl Forward {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let servers = 3;
        let cluster = self.writing.stage.start(servers, self.writing.state).await?;
        self.writing.measure("forward", servers, &cluster.fleet, &cluster.leader_first()[1..]).await
    }
}

impl Writing {
    async fn measure(&self, workload: &'static str, servers: u16, fleet: &Fleet, endpoints: &[Endpoint]) -> Result<(), Failure> {
        let outstanding = self.outstanding.max(1);
        let connections = self.connections.clamp(1, outstanding);
        let payloads = payloads(self.state, self.bytes)?;
        let clients = thin(endpoints, connections).await?;
        let plan = Plan::new(connections, outstanding, Until::Elapsed(self.seconds));
        let drivers = clients.iter().enumerate().map(|(number, client)| plan.propose(number, client, &payloads));
        let figures = plan.run(Some(fleet), drivers).await?;
        let report = Report { servers, connections, outstanding, bytes: self.bytes, figures };
        self.stage.tell(workload, &report)?;
        report.figures.check()
    }
}
