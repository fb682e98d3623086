//! How fast committed commands reach many readers. Every reader checks every run against the chain, and every command must reach every
//! reader: a figure with a gap in it is an error.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::idle::kib_per_watcher;
use super::stage::{Cluster, SETTLE_MS, Stage, attach, thin};
use super::watchers::Watchers;
use crate::attach::{Raw, Thin, seconds};
use crate::closed_loop::{Costs, Latency, Plan, Spent, Until, histogram, record, round, told};
use crate::output::Failure;
use crate::serve::StateName;

/// How long watchers may go without a delivery while some are missing.
const STALLED_MS: u64 = 5_000;

/// Between two looks at what has arrived.
const LOOK_AGAIN_MS: u64 = 2;

/// Delays of many readers, or how many deliveries a second they take
#[derive(Args)]
pub(super) struct Fanout {
    #[command(flatten)]
    stage: Stage,
    /// Readers, attached to all servers in turn, the leader first
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Readers attach to the other servers only, not to the leader
    #[arg(long)]
    away_from_leader: bool,
    /// What the writers, one at each server, wait for: N commands a second, their own feed (gated), or the answer only (free)
    #[arg(long, value_name = "N|gated|free", default_value = "100")]
    rate: Pace,
    /// Commands in flight, where the rate is gated or free
    #[arg(long, short = 'n', default_value_t = 16)]
    outstanding: usize,
    /// Bytes of each command
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    bytes: u32,
    /// Seconds during which commands are proposed; then what is under way is waited for
    #[arg(long, value_parser = seconds, default_value = "3")]
    seconds: Duration,
    /// Stop proposing after so many deliveries are due: free writers are faster than readers
    #[arg(long, default_value_t = 12_000_000)]
    deliveries_max: u64,
}

/// What the writers wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    /// The clock: so many commands a second.
    PerSecond(u32),
    /// The answer and their own feed.
    Gated,
    /// The answer.
    Free,
}

impl FromStr for Pace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("gated", _) => Ok(Self::Gated),
            ("free", _) => Ok(Self::Free),
            (_, Ok(rate @ 1..=1_000_000)) => Ok(Self::PerSecond(rate)),
            _ => Err("commands a second from 1 to 1000000, gated or free"),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate}/s"),
            Self::Gated => f.write_str("gated"),
            Self::Free => f.write_str("free"),
        }
    }
}

#[derive(Serialize)]
struct Report {
    watchers: usize,
    away_from_leader: bool,
    rate: Pace,
    outstanding: Option<usize>,
    bytes: u32,
    seconds: f64,
    operations: u64,
    operations_per_s: f64,
    write_p50_us: u64,
    write_max_us: u64,
    deliveries: u64,
    deliveries_per_s: f64,
    /// Delays from the start of the proposal to each watcher.
    #[serde(flatten)]
    delay: Latency,
    /// For each delivery.
    #[serde(flatten)]
    costs: Costs,
    leader_cpu_us_per_command: Option<f64>,
    server_memory_kib_per_watcher: Option<f64>,
    attach_s: f64,
}

impl Serialize for Pace {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { watchers, deliveries, deliveries_per_s, operations_per_s, delay, costs, .. } = self;
        let away = if self.away_from_leader { " away from the leader" } else { "" };
        let flying = self.outstanding.map(|outstanding| format!(" with {outstanding} in flight")).unwrap_or_default();
        writeln!(f, "{watchers} watchers{away}, {}{flying}, {} B", self.rate, self.bytes)?;
        writeln!(f, "{deliveries_per_s:.0} deliveries/s of {operations_per_s:.0} commands/s, all {deliveries} arrived in order")?;
        writeln!(f, "delay to each watcher: {delay}")?;
        let (each, leader) = (told(self.server_memory_kib_per_watcher), told(self.leader_cpu_us_per_command));
        write!(
            f,
            "{costs}; the leader: {leader} µs for each command; {each} KiB of the servers' memory per watcher; attached in {:.1} s",
            self.attach_s
        )
    }
}

/// A writer: a gated one has its answer only when its own replica has applied the command.
enum Writer {
    Thin(Thin),
    Gated(Raw),
}

impl Writer {
    async fn write(&self, payload: Bytes) -> Result<(), String> {
        let answer = match self {
            Self::Thin(client) => client.propose(&payload).await,
            Self::Gated(client) => client.propose(&payload).await,
        };
        answer.map(drop).map_err(|error| error.to_string())
    }
}

impl Fanout {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let cluster = self.stage.start(3, StateName::Log).await?;
        let report = self.measure(&cluster).await?;
        self.stage.tell("fanout", &report)
    }

    async fn writers(&self, cluster: &Cluster) -> Result<Vec<Writer>, Failure> {
        let endpoints = cluster.leader_first();
        if self.rate != Pace::Gated {
            return Ok(thin(&endpoints, endpoints.len()).await?.into_iter().map(Writer::Thin).collect());
        }
        let mut writers = Vec::new();
        for number in 0..endpoints.len() {
            writers.push(Writer::Gated(attach(&endpoints).raw(number).await?));
        }
        Ok(writers)
    }

    async fn measure(&self, cluster: &Cluster) -> Result<Report, Failure> {
        let watching = self.watchers as u64;
        let settle = || tokio::time::sleep(Duration::from_millis(SETTLE_MS));
        settle().await;
        let (kib_before, begin) = (cluster.fleet.memory_kib(), Instant::now());
        let endpoints = cluster.leader_first();
        let watched = if self.away_from_leader { &endpoints[1..] } else { &endpoints[..] };
        let watchers = Watchers::attach(watched, self.watchers).await?;
        let attach_s = round(begin.elapsed().as_secs_f64(), 3);
        settle().await;
        let kib_attached = cluster.fleet.memory_kib();

        // Sessions are open, and everyone has seen everything, before it counts.
        let writers = self.writers(cluster).await?;
        for writer in &writers {
            writer.write(watchers.stamped(Instant::now(), self.bytes as usize)).await.map_err(Failure::failed)?;
        }
        arrived(&watchers, writers.len() as u64 * watching).await?;
        watchers.reset();

        let leader_cpu = || cluster.fleet.cpu_at(cluster.leader);
        let (spent, leader_before, begin) = (Spent::so_far(Some(&cluster.fleet)), leader_cpu(), Instant::now());
        let writes = RefCell::new(histogram()?);
        let write = |writer: usize, start: Instant| {
            let (writer, payload, writes) = (&writers[writer], watchers.stamped(start, self.bytes as usize), &writes);
            async move {
                writer.write(payload).await?;
                record(&mut writes.borrow_mut(), start.elapsed());
                Ok(())
            }
        };
        if let Pace::PerSecond(rate) = self.rate {
            paced(rate, self.seconds, |number| write(number as usize % writers.len(), begin + at(rate, number))).await?;
        } else {
            let until = Until::Either(self.seconds, (self.deliveries_max / watching.max(1)).max(1));
            let plan = Plan::new(writers.len(), self.outstanding, until);
            let loops = (0..writers.len()).map(|writer| plan.drive(writer, move |_| write(writer, Instant::now())));
            plan.run(None, loops).await?.check()?;
        }
        let written = writes.borrow().len();
        arrived(&watchers, written * watching).await?;

        let write = Latency::of(&writes.borrow());
        let leader_used = leader_cpu().zip(leader_before).map(|(after, before)| after.saturating_sub(before));
        watchers.look(|seen| {
            let end = if watching == 0 { Instant::now() } else { seen.last };
            let seconds = end.saturating_duration_since(begin).as_secs_f64();
            Report {
                watchers: self.watchers,
                away_from_leader: self.away_from_leader,
                rate: self.rate,
                outstanding: (!matches!(self.rate, Pace::PerSecond(_))).then_some(self.outstanding),
                bytes: self.bytes,
                seconds: round(seconds, 3),
                operations: written,
                operations_per_s: round(written as f64 / seconds, 1),
                write_p50_us: write.p50_us,
                write_max_us: write.max_us,
                deliveries: seen.deliveries,
                deliveries_per_s: round(seen.deliveries as f64 / seconds, 0),
                delay: Latency::of(&seen.delays),
                costs: spent.until_now(Some(&cluster.fleet), seen.deliveries),
                leader_cpu_us_per_command: leader_used.map(|used| round(used.as_secs_f64() * 1e6 / written.max(1) as f64, 1)),
                server_memory_kib_per_watcher: kib_per_watcher(kib_before, kib_attached, self.watchers),
                attach_s,
            }
        })
    }
}

/// When the command of this number is due.
fn at(rate: u32, number: u64) -> Duration {
    Duration::from_secs_f64(number as f64 / f64::from(rate))
}

/// Begins an operation at each tick of the clock, whether or not earlier ones are done, and waits for all of them.
async fn paced<F: Future<Output = Result<(), String>>>(
    rate: u32,
    time: Duration,
    mut operation: impl FnMut(u64) -> F,
) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(at(rate, 1));
    // What is due is late already, and its delay is counted from when it was due.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let count = (time.as_secs_f64() * f64::from(rate)).ceil() as u64;
    let (mut begun, mut waiting) = (0, FuturesUnordered::new());
    while begun < count || !waiting.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if begun < count => {
                waiting.push(operation(begun));
                begun += 1;
            }
            Some(done) = waiting.next() => done.map_err(Failure::failed)?,
        }
    }
    Ok(())
}

/// Waits until `count` deliveries were made.
async fn arrived(watchers: &Watchers, count: u64) -> Result<(), Failure> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let deliveries = watchers.look(|seen| seen.deliveries)?;
        if deliveries >= count {
            return Ok(());
        }
        if deliveries > last {
            (last, since) = (deliveries, Instant::now());
        } else if since.elapsed() > Duration::from_millis(STALLED_MS) {
            return Err(Failure::failed(format!("{deliveries} of {count} deliveries arrived, then none for {STALLED_MS} ms")));
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
}
