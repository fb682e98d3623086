//! The load that `quorate bench` makes, for systems that people would pick instead: the same definitions, one JSON object a line.
//! `../compare.py` starts the servers, runs this, and sets the figures side by side.

mod figures;
mod peer;
mod workloads;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::peer::Kind;
use crate::workloads::{catchup, commit, failover, fanout, recovery, watch};

#[derive(Parser)]
struct Cli {
    kind: Kind,
    /// HOST:PORT of each server, the leader first where that matters
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The servers, for their processor time and memory
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes what the workloads need, once the servers answer
    Prepare,
    /// Prints the position of the leader among the endpoints
    Leader,
    /// Writes keys of their own
    Fill {
        #[arg(long)]
        entries: u64,
    },
    Commit(commit::Commit),
    Fanout(fanout::Fanout),
    /// Attaches readers and holds them until stdin closes
    Watch(watch::Watch),
    /// Writes until stdin closes; each line on it is the time of a kill
    Failover,
    Recovery(recovery::Recovery),
    Catchup(catchup::Catchup),
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let Cli { kind, endpoints, pids, command } = Cli::parse();
    match command {
        Command::Prepare => kind.connect(&endpoints).await?.prepare(endpoints.len()).await,
        Command::Leader => {
            println!("{}", kind.leader(&endpoints).await?);
            Ok(())
        }
        Command::Fill { entries } => commit::fill(kind, &endpoints, entries).await,
        Command::Commit(workload) => workload.run(kind, &endpoints, &pids).await,
        Command::Fanout(workload) => workload.run(kind, &endpoints, &pids).await,
        Command::Watch(workload) => workload.run(kind, &endpoints).await,
        Command::Failover => failover::run(kind, &endpoints).await,
        Command::Recovery(workload) => workload.run(kind, &endpoints).await,
        Command::Catchup(workload) => workload.run(kind, &endpoints).await,
    }
}
