//! `quorate demo`: three server processes, twenty clients and, if asked for, trouble; then every replica is compared.

mod clients;
mod faults;
mod report;
mod verify;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::fleet::Fleet;
use crate::output::{self, Code, Failure};
use crate::serve::StateName;
use clients::{Crowd, Replica};
use faults::Conductor;
use report::{Report, Story};
use work::Work;

/// How long the cluster may take to form and elect.
const FORM_MS: u64 = 30_000;

/// How long all commands may go without any progress before the demo gives up.
const STALLED_MS: u64 = 60_000;

const EXAMPLES: &str = "\
Examples:
  quorate demo
  quorate demo --faults failover
      SIGKILLs the leader and restarts it, does the same to a server that clients are attached to, wipes the
      disk of a third, and drops a client in the middle of a request and brings it back from its journal
  quorate demo --faults failover --json | tail -1

Each server is a process of its own with a fresh directory; each client has a request journal and a live replica.
A failover is timed from the SIGKILL to the next acknowledged write of those that needed the dead server: everyone,
under the next leader, for a leader; the clients that were attached, elsewhere, for another server.

Exits with 0 only if no command is lost or stands twice, and all replicas are identical.";

/// Start servers and clients, write, break things, and check that every replica holds every command exactly once
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Server processes: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3, value_parser = server_count)]
    servers: u16,
    /// Clients, attached to the servers in turn
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Commands, shared evenly among the clients
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    commands: u32,
    /// What is to go wrong
    #[arg(long, value_enum, default_value_t = FaultPlan::None)]
    faults: FaultPlan,
    /// Print the outcome as one JSON object on the last line; the story then goes to stderr
    #[arg(long)]
    json: bool,
    /// Leave the directories and the servers' logs behind
    #[arg(long)]
    keep: bool,
    /// Where the directories are made; default: the system's directory for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum FaultPlan {
    /// Nothing
    None,
    /// Kill the leader, kill an entry server, wipe a disk, drop a client
    Failover,
}

/// A number of servers that tolerates what it costs.
pub(crate) fn server_count(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5 | 7)) => Ok(count),
        _ => Err("1, 3, 5 or 7: an even number tolerates no more failures than the odd one below it".into()),
    }
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if self.faults == FaultPlan::Failover && self.servers < 3 {
            return Err(Failure::usage("--faults failover needs at least 3 servers: one of them will be killed"));
        }
        tokio::select! {
            done = self.perform() => done,
            interrupted = output::interrupted() => interrupted.map_err(Failure::from)
                .and(Err(Failure::new(Code::Interrupted, "interrupted; servers and directories are gone"))),
        }
    }

    async fn perform(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let bar = self.progress_bar();
        let story = Story::new(started, bar.clone(), self.json);
        let mut fleet = Fleet::start(self.servers, StateName::Kv, self.dir.as_deref()).await?;
        if self.keep {
            story.tell(format_args!("the directories stay in {}", fleet.keep().display()));
        }
        let (leader, term) = fleet.leader(Duration::from_millis(FORM_MS)).await?;
        story.tell(format_args!("{} servers are up; server {} leads in term {term}", self.servers, leader.seat()));

        let work = Arc::new(Work::new(u64::from(self.commands), u64::from(self.clients), bar.clone()));
        let crowd = Crowd::attach(&work, &fleet.endpoints(), fleet.directory()).await?;
        story.tell(format_args!("{} clients are attached", self.clients));

        let conduct = async {
            match self.faults {
                FaultPlan::None => Ok(Vec::new()),
                FaultPlan::Failover => Conductor::new(&mut fleet, &crowd, &work, &story).failover().await,
            }
        };
        let failovers = tokio::select! {
            failovers = conduct => failovers?,
            stalled = work.stalled(Duration::from_millis(STALLED_MS)) => return Err(stalled),
        };
        work.allow_all();
        tokio::select! {
            () = work.idle() => {}
            stalled = work.stalled(Duration::from_millis(STALLED_MS)) => return Err(stalled),
        }
        let mut replicas = crowd.finish().await?;
        let findings = verify::compare(&fleet, &mut replicas, &work).await?;
        bar.finish_and_clear();
        let report = Report::new(self.servers, self.clients, &work, &findings, &failovers, started.elapsed());
        futures_util::future::join_all(replicas.into_iter().map(Replica::close)).await;
        story.conclude(&report);
        if self.json {
            output::json_line(&report)?;
        }
        if report.is_clean() { Ok(()) } else { Err(Failure::failed(findings.complaint())) }
    }

    fn progress_bar(&self) -> ProgressBar {
        // Indicatif hides itself where stderr is not a terminal.
        let target = if self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(u64::from(self.commands)), target);
        match ProgressStyle::with_template("{bar:40} {pos}/{len} acknowledged, {per_sec}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}
