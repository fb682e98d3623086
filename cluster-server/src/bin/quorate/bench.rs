//! `quorate bench`: one workload at a time, each on server processes of its own with fresh directories, durable logs and default
//! settings. A workload is a file; what they share is `stage` (servers and clients), `watchers` (thousands of readers in this process)
//! and the closed loop that `load` runs too. The definitions are those of the table in `docs/performance.md`, so that another system
//! can be measured beside this one.

mod catchup;
mod commit;
mod failover;
mod fanout;
mod idle;
mod mixed;
mod recovery;
mod stage;
mod watchers;

use clap::{Args, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::output::{self, Code, Failure};

const EXAMPLES: &str = "\
Examples:
  quorate bench commit --connections 64 --outstanding 256
  quorate bench forward                                     as commit, but nobody speaks to the leader
  quorate bench fanout --watchers 1000 --rate 100           delays of 1,000 readers, from the start of each proposal
  quorate bench fanout --watchers 1000 --rate gated         16 in flight, proposers wait for their own feed
  quorate bench fanout --watchers 1000 --rate free           thin writers that wait for nobody
  quorate bench failover --trials 20
  for workload in commit mixed idle; do quorate bench $workload --json; done

Starts its servers, measures, and leaves nothing behind. Load and servers share the machine, so a figure is only worth something
beside another one from the same hour of the same machine. Exits with 0 only if everything that was to arrive arrived.";

/// Measure one workload on servers of its own
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    Commit(commit::Commit),
    Forward(commit::Forward),
    Mixed(mixed::Mixed),
    Fanout(fanout::Fanout),
    Failover(failover::Failover),
    Idle(idle::Idle),
    Recovery(recovery::Recovery),
    Catchup(catchup::Catchup),
}

impl Bench {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        raise_open_files();
        let measured = async {
            match self.workload {
                Workload::Commit(workload) => workload.run().await,
                Workload::Forward(workload) => workload.run().await,
                Workload::Mixed(workload) => workload.run().await,
                Workload::Fanout(workload) => workload.run().await,
                Workload::Failover(workload) => workload.run().await,
                Workload::Idle(workload) => workload.run().await,
                Workload::Recovery(workload) => workload.run().await,
                Workload::Catchup(workload) => workload.run().await,
            }
        };
        tokio::select! {
            done = measured => done,
            interrupted = output::interrupted() => interrupted.map_err(Failure::from)
                .and(Err(Failure::new(Code::Interrupted, "interrupted; servers and directories are gone"))),
        }
    }
}

/// As many open files as the system allows, for this process and the servers that it starts: a watcher is a socket on both sides.
/// Where it allows too few, attaching says so.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
