//! What servers cost that have nothing to do: alone, and with watchers attached to whom nothing happens.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::stage::{SETTLE_MS, Stage};
use super::watchers::Watchers;
use crate::attach::seconds;
use crate::closed_loop::{mib, round, told};
use crate::fleet::Fleet;
use crate::output::Failure;
use crate::serve::StateName;

/// Processor time and memory of three servers without work, without and with watchers
#[derive(Args)]
pub(super) struct Idle {
    #[command(flatten)]
    stage: Stage,
    /// Readers, attached to all servers in turn
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Seconds that are measured, once without and once with watchers
    #[arg(long, value_parser = seconds, default_value = "12")]
    seconds: Duration,
}

#[derive(Serialize)]
struct Report {
    watchers: usize,
    /// Of one core, all servers together.
    cpu_percent_alone: Option<f64>,
    cpu_percent: Option<f64>,
    server_memory_mib_alone: Option<f64>,
    server_memory_mib: Option<f64>,
    server_memory_kib_per_watcher: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cpu, memory) = (told(self.cpu_percent_alone), told(self.server_memory_mib_alone));
        writeln!(f, "three servers without work")?;
        writeln!(f, "alone: {cpu} % of a core, {memory} MiB resident")?;
        let (cpu, memory) = (told(self.cpu_percent), told(self.server_memory_mib));
        let each = told(self.server_memory_kib_per_watcher);
        write!(f, "with {} watchers: {cpu} % of a core, {memory} MiB resident, {each} KiB per watcher", self.watchers)
    }
}

impl Idle {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let cluster = self.stage.start(3, StateName::Log).await?;
        let (cpu_alone, kib_alone) = self.measure(&cluster.fleet).await;
        let watchers = Watchers::attach(&cluster.leader_first(), self.watchers).await?;
        let (cpu, kib) = self.measure(&cluster.fleet).await;
        watchers.look(|_| ())?;
        let report = Report {
            watchers: self.watchers,
            cpu_percent_alone: cpu_alone,
            cpu_percent: cpu,
            server_memory_mib_alone: kib_alone.map(mib),
            server_memory_mib: kib.map(mib),
            server_memory_kib_per_watcher: kib_per_watcher(kib_alone, kib, self.watchers),
        };
        self.stage.tell("idle", &report)
    }

    /// Per cent of a core, and KiB, of all servers.
    async fn measure(&self, fleet: &Fleet) -> (Option<f64>, Option<u64>) {
        tokio::time::sleep(Duration::from_millis(SETTLE_MS)).await;
        let before = fleet.cpu();
        tokio::time::sleep(self.seconds).await;
        let used = fleet.cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
        let percent = used.map(|used| round(used.as_secs_f64() / self.seconds.as_secs_f64() * 100.0, 2));
        (percent, fleet.memory_kib())
    }
}

/// By how much the servers grew for each of their watchers.
pub(super) fn kib_per_watcher(before: Option<u64>, after: Option<u64>, watchers: usize) -> Option<f64> {
    let grown = after?.saturating_sub(before?) as f64;
    (watchers > 0).then(|| round(grown / watchers as f64, 1))
}
