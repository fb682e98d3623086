//! A client that knows nothing: how soon it has the whole state, and how soon it has seen the last entries of the log.

use std::fmt;
use std::time::Instant;

use clap::Args;
use cluster_client::{Consistency, LogIndex, RequestJournal};
use futures_util::StreamExt;
use serde::Serialize;

use super::recovery::median;
use super::stage::{Cluster, Stage, attach, put};
use crate::closed_loop::{Micros, Spent, mib, round};
use crate::output::Failure;
use crate::serve::StateName;

/// Time until a new client has the whole state, or the last entries
#[derive(Args)]
pub(super) struct Catchup {
    #[command(flatten)]
    stage: Stage,
    /// Keys of 64 B in the state, and entries that are replayed
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    entries: u64,
    /// New clients of each kind, one after the other
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    trials: u32,
}

#[derive(Serialize)]
struct Report {
    entries: u64,
    state_trials_us: Vec<u64>,
    state_us: u64,
    /// Keys a second, by the median.
    state_per_s: f64,
    state_server_cpu_us: Option<f64>,
    log_trials_us: Vec<u64>,
    log_us: u64,
    log_per_s: f64,
    log_server_cpu_us: Option<f64>,
    server_memory_mib: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, log) = (Micros(self.state_us), Micros(self.log_us));
        writeln!(f, "a new client, medians of {}", self.state_trials_us.len())?;
        let cpu = |us: Option<f64>| us.map_or("?".to_owned(), |us| Micros(us as u64).to_string());
        let (state_cpu, log_cpu) = (cpu(self.state_server_cpu_us), cpu(self.log_server_cpu_us));
        writeln!(f, "has a state of {} keys after {state}; servers, together: {state_cpu} of processor time", self.entries)?;
        write!(f, "has the last {} entries after {log}; servers, together: {log_cpu} of processor time", self.entries)
    }
}

impl Catchup {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let cluster = self.stage.start(3, StateName::Kv).await?;
        cluster.fill(self.entries).await?;
        // One more, whose client stays: nothing is behind it in the log.
        let writer = attach(&cluster.leader_first()).thin(RequestJournal::memory(), 0).await?;
        let last = writer.propose(&put(0).map_err(Failure::failed)?).await;
        let last = last.map_err(|error| Failure::failed(error.to_string()))?.index;
        cluster.level().await?;

        let (mut states_us, mut logs_us) = (Vec::new(), Vec::new());
        let (mut state_cpu, mut log_cpu) = (Some(0.0), Some(0.0));
        for trial in 0..self.trials as usize {
            let (spent, begin) = (Spent::so_far(Some(&cluster.fleet)), Instant::now());
            self.take_state(&cluster, trial).await?;
            states_us.push(begin.elapsed().as_micros() as u64);
            let costs = spent.until_now(Some(&cluster.fleet), self.trials.into());
            state_cpu = state_cpu.zip(costs.server_cpu_us_per_operation).map(|(sum, us)| round(sum + us, 0));

            let (spent, begin) = (Spent::so_far(Some(&cluster.fleet)), Instant::now());
            self.take_log(&cluster, trial, last).await?;
            logs_us.push(begin.elapsed().as_micros() as u64);
            let costs = spent.until_now(Some(&cluster.fleet), self.trials.into());
            log_cpu = log_cpu.zip(costs.server_cpu_us_per_operation).map(|(sum, us)| round(sum + us, 0));
        }
        let (state_us, log_us) = (median(&states_us), median(&logs_us));
        let per_s = |us: u64| round(self.entries as f64 * 1e6 / us.max(1) as f64, 0);
        let report = Report {
            entries: self.entries,
            state_trials_us: states_us,
            state_us,
            state_per_s: per_s(state_us),
            state_server_cpu_us: state_cpu,
            log_trials_us: logs_us,
            log_us,
            log_per_s: per_s(log_us),
            log_server_cpu_us: log_cpu,
            server_memory_mib: cluster.fleet.memory_kib().map(mib),
        };
        self.stage.tell("catchup", &report)
    }

    async fn take_state(&self, cluster: &Cluster, number: usize) -> Result<(), Failure> {
        let client = attach(&cluster.leader_first()).replica(number).await?;
        let keys = client.read(Consistency::Local, |state| state.len() as u64).await;
        match keys.map_err(|error| Failure::failed(error.to_string()))? {
            keys if keys == self.entries => {}
            keys => return Err(Failure::failed(format!("the new client has {keys} of {} keys", self.entries))),
        }
        client.close().await;
        Ok(())
    }

    async fn take_log(&self, cluster: &Cluster, number: usize, last: LogIndex) -> Result<(), Failure> {
        let client = attach(&cluster.leader_first()).raw(number).await?;
        let mut committed = client.committed_from(LogIndex((last.0 + 1).saturating_sub(self.entries)));
        while let Some(entry) = committed.next().await {
            if entry.map_err(|error| Failure::failed(error.to_string()))?.index == last {
                client.close().await;
                return Ok(());
            }
        }
        Err(Failure::failed(format!("the log ended before {last}")))
    }
}
