//! SIGKILL of a server that holds many entries, start, and the time until it has read them all and acknowledges a write.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use cluster_client::RequestJournal;
use cluster_server::status::Phase;
use serde::Serialize;

use super::stage::{Cluster, PATIENCE_MS, SETTLE_MS, Stage, attach, put};
use crate::closed_loop::{Micros, Spent, mib};
use crate::demo::server_count;
use crate::output::Failure;
use crate::serve::StateName;

/// Between two looks at the server that comes back.
const LOOK_AGAIN_MS: u64 = 2;

/// Time from a server's start to its first acknowledged write
#[derive(Args)]
pub(super) struct Recovery {
    #[command(flatten)]
    stage: Stage,
    /// Keys of 64 B that were written, each once
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    entries: u64,
    /// Server processes; with more than one it is a follower that is killed, and whose own clients wait for it
    #[arg(long, default_value_t = 1, value_parser = server_count)]
    servers: u16,
    /// The servers' state machine: with kv the keys are part of what is read, with log the entries alone
    #[arg(long, value_enum, default_value_t = StateName::Kv)]
    state: StateName,
    /// Kills
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    trials: u32,
}

#[derive(Serialize)]
struct Report {
    servers: u16,
    state: &'static str,
    entries: u64,
    /// Of filling the servers, with the processor time for each entry.
    filled_per_s: f64,
    server_cpu_us_per_entry: Option<f64>,
    read_trials_us: Vec<u64>,
    write_trials_us: Vec<u64>,
    /// Until it has applied all that it had, the median.
    read_us: u64,
    /// Until a write through it is acknowledged, the median.
    write_us: u64,
    /// Processor time of all servers from the start of the last trial to its end.
    recovery_cpu_us: Option<f64>,
    server_memory_mib: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (read, write) = (Micros(self.read_us), Micros(self.write_us));
        writeln!(f, "SIGKILL of one of {} servers of state {} that hold {} entries", self.servers, self.state, self.entries)?;
        write!(f, "all applied again after {read}, a write acknowledged after {write} (medians of {})", self.read_trials_us.len())?;
        if let (Some(us), Some(mib)) = (self.recovery_cpu_us, self.server_memory_mib) {
            write!(f, "\nservers, together: {} of processor time, {mib} MiB resident", Micros(us as u64))?;
        }
        Ok(())
    }
}

impl Recovery {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut cluster = self.stage.start(self.servers, self.state).await?;
        let filled = cluster.fill(self.entries).await?;
        tokio::time::sleep(Duration::from_millis(SETTLE_MS)).await;
        let (mut reads_us, mut writes_us, mut cpu_us) = (Vec::new(), Vec::new(), None);
        for _ in 0..self.trials {
            let (spent, read, write) = trial(&mut cluster).await?;
            reads_us.push(read.as_micros() as u64);
            writes_us.push(write.as_micros() as u64);
            cpu_us = spent.until_now(Some(&cluster.fleet), 1).server_cpu_us_per_operation;
        }
        let report = Report {
            servers: self.servers,
            state: self.state.as_str(),
            entries: self.entries,
            filled_per_s: filled.operations_per_s,
            server_cpu_us_per_entry: filled.costs.server_cpu_us_per_operation,
            read_us: median(&reads_us),
            write_us: median(&writes_us),
            read_trials_us: reads_us,
            write_trials_us: writes_us,
            recovery_cpu_us: cpu_us,
            server_memory_mib: cluster.fleet.memory_kib().map(mib),
        };
        self.stage.tell("recovery", &report)
    }
}

/// Kills a server (a follower, where there is one), starts it, and says how long it took to apply what it had and to acknowledge.
async fn trial(cluster: &mut Cluster) -> Result<(Spent, Duration, Duration), Failure> {
    let (leader, _) = cluster.fleet.leader(Duration::from_millis(PATIENCE_MS)).await?;
    let seats = cluster.fleet.seats();
    let victim = seats.iter().copied().find(|seat| *seat != leader.seat()).unwrap_or(leader.seat());
    let had = cluster.fleet.status(victim, false).await.map(|status| status.applied);
    cluster.fleet.kill(victim).await?;
    let (spent, begin) = (Spent::so_far(Some(&cluster.fleet)), Instant::now());
    cluster.fleet.restart(victim).await?;
    // Not through a client yet: it would wait as long as a server that recovers asks it to.
    let end = begin + Duration::from_millis(PATIENCE_MS);
    let mut read = None;
    loop {
        let status = cluster.fleet.status(victim, false).await;
        let applied = status.as_ref().is_some_and(|status| Some(status.applied) >= had);
        if applied {
            read.get_or_insert_with(|| begin.elapsed());
        }
        if applied && status.is_some_and(|status| matches!(status.phase, Phase::Leading | Phase::Following)) {
            break;
        }
        if Instant::now() > end {
            return Err(Failure::failed(format!("server {victim} was not back in {PATIENCE_MS} ms")));
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
    let endpoint = cluster.fleet.endpoints_from(victim);
    let client = attach(&endpoint[..1]).thin(RequestJournal::memory(), 0).await?;
    let payload: Bytes = put(0).map_err(Failure::failed)?;
    client.propose(&payload).await.map_err(|error| Failure::failed(error.to_string()))?;
    let write = begin.elapsed();
    client.close().await;
    Ok((spent, read.unwrap_or(write), write))
}

/// The middle of some figures.
pub(super) fn median(figures: &[u64]) -> u64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
