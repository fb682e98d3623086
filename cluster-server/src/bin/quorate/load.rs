//! `quorate load`: as many writes as the servers take, and how long each took.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use cluster_client::RequestJournal;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde::Serialize;
use voter_mesh::machine::kv::{self, KvCommand};
use voter_mesh::machine::to_cbor;

use crate::attach::{Attach, Thin, seconds};
use crate::demo::server_count;
use crate::fleet::{Fleet, cpu_of};
use crate::output::{self, Failure};
use crate::serve::StateName;
use crate::status;

/// Proposals outstanding on one connection when nobody says how many connections there are: half of a session's window of 256, so
/// that one late answer does not stop it.
const OUTSTANDING_PER_CONNECTION: usize = 128;

/// Unmeasured time at the start of a run by the clock.
const WARM_UP_MS: u64 = 1_000;

/// Pause after a proposal that failed: a cluster that refuses is not asked as fast as one that works.
const AFTER_ERROR_MS: u64 = 10;

/// Latencies up to a minute, in microseconds, to two digits.
const LATENCY_US_MAX: u64 = 60_000_000;

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
    seconds: f64,
    operations: u64,
    operations_per_s: f64,
    errors: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    client_cpu_us_per_operation: Option<f64>,
    server_cpu_us_per_operation: Option<f64>,
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
        let payloads = self.payloads().await?;
        let mut clients = Vec::new();
        for number in 0..connections {
            clients.push(self.attach.thin(RequestJournal::memory(), number).await?);
        }
        let warm_up = if self.count.is_some() { Duration::ZERO } else { Duration::from_millis(WARM_UP_MS) };
        let begin = Instant::now() + warm_up;
        let plan =
            Plan { begin, end: self.count.is_none().then(|| begin + self.seconds), count: self.count, connections, outstanding };
        let cpu_at_begin = async {
            tokio::time::sleep_until(begin.into()).await;
            (cpu_of(std::process::id()), fleet.as_ref().and_then(Fleet::cpu))
        };
        let drivers = clients.iter().enumerate().map(|(number, client)| drive(client, number, &plan, &payloads));
        let (results, cpu_before) = futures_util::future::join(futures_util::future::join_all(drivers), cpu_at_begin).await;
        let elapsed = begin.elapsed().as_secs_f64();
        let cpu_after = (cpu_of(std::process::id()), fleet.as_ref().and_then(Fleet::cpu));
        for client in clients {
            client.close().await;
        }
        let mut latencies = histogram()?;
        let mut errors = 0;
        let mut last_error = None;
        for result in results {
            let result = result?;
            latencies.add(result.latencies).map_err(|error| Failure::failed(error.to_string()))?;
            errors += result.errors;
            last_error = last_error.or(result.last_error);
        }
        let operations = latencies.len();
        let each = |before: Option<Duration>, after: Option<Duration>| {
            let used = after?.saturating_sub(before?).as_secs_f64() * 1e6;
            (operations > 0).then(|| (used / operations as f64 * 100.0).round() / 100.0)
        };
        let report = Report {
            connections,
            outstanding,
            bytes: self.bytes,
            seconds: (elapsed * 1000.0).round() / 1000.0,
            operations,
            operations_per_s: (operations as f64 / elapsed).round(),
            errors,
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
            p999_us: latencies.value_at_quantile(0.999),
            max_us: latencies.max(),
            client_cpu_us_per_operation: each(cpu_before.0, cpu_after.0),
            server_cpu_us_per_operation: each(cpu_before.1, cpu_after.1),
        };
        self.tell(&report)?;
        match (errors, last_error) {
            (0, _) => Ok(()),
            (_, error) => Err(Failure::failed(format!("{errors} errors, such as: {}", error.unwrap_or_default()))),
        }
    }

    /// The commands that are proposed, in a form that the room's state machine takes.
    async fn payloads(&self) -> Result<Vec<Bytes>, Failure> {
        let mut kv = false;
        for endpoint in &self.attach.servers.endpoints {
            if let Ok(status) = status::fetch(endpoint, false, self.attach.deadline).await {
                kv = status.state_machine == kv_name();
                break;
            }
        }
        let value = vec![b'x'; self.bytes as usize];
        if !kv {
            return Ok(vec![value.into()]);
        }
        let put = |key: usize| to_cbor(&KvCommand::Put { key: format!("load/{key}").into_bytes(), value: value.clone() });
        (0..KEYS).map(put).collect::<Result<_, _>>().map_err(Failure::failed)
    }

    fn tell(&self, report: &Report) -> Result<(), Failure> {
        if self.json {
            return output::json_line(report);
        }
        output::line(format_args!(
            "{:.0} operations/s ({} of {} B in {:.1} s; {} outstanding on {} connections), {} errors",
            report.operations_per_s,
            report.operations,
            report.bytes,
            report.seconds,
            report.outstanding,
            report.connections,
            report.errors
        ))?;
        output::line(format_args!(
            "latency: p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs",
            report.p50_us, report.p99_us, report.p999_us, report.max_us
        ))?;
        let cpu = |who, us: Option<f64>| {
            us.map_or(Ok(()), |us| output::line(format_args!("{who}: {us} µs of processor time per operation")))
        };
        cpu("servers, together", report.server_cpu_us_per_operation)?;
        cpu("this process", report.client_cpu_us_per_operation)
    }
}

fn kv_name() -> &'static str {
    <kv::Kv as voter_mesh::machine::StateMachine>::NAME
}

/// What every connection has to keep to.
struct Plan {
    /// When measuring begins.
    begin: Instant,
    end: Option<Instant>,
    count: Option<u64>,
    connections: usize,
    outstanding: usize,
}

impl Plan {
    /// A connection's part of `whole`; the parts add up.
    fn share(&self, whole: u64, connection: usize) -> u64 {
        let (connections, connection) = (self.connections as u64, connection as u64);
        whole / connections + u64::from(connection < whole % connections)
    }
}

/// What one connection measured.
struct Measured {
    latencies: Histogram<u64>,
    errors: u64,
    last_error: Option<String>,
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).map_err(|error| Failure::failed(error.to_string()))
}

/// Keeps one connection's places full until the plan is done. No task per proposal: the futures are polled here.
async fn drive(client: &Thin, number: usize, plan: &Plan, payloads: &[Bytes]) -> Result<Measured, Failure> {
    let mut measured = Measured { latencies: histogram()?, errors: 0, last_error: None };
    let places = plan.share(plan.outstanding as u64, number);
    let mut left = plan.count.map_or(u64::MAX, |count| plan.share(count, number));
    let mut next = (0..payloads.len()).cycle().skip(number % payloads.len());
    let mut waiting = FuturesUnordered::new();
    let mut propose = || {
        let payload = &payloads[next.next().unwrap_or_default()];
        async move {
            let start = Instant::now();
            (start, client.propose(payload).await)
        }
    };
    for _ in 0..places.min(left) {
        waiting.push(propose());
        left -= 1;
    }
    while let Some((start, result)) = waiting.next().await {
        let now = Instant::now();
        match result {
            Ok(_) if start < plan.begin => {}
            Ok(_) => measured.latencies.saturating_record((now - start).as_micros() as u64),
            Err(error) => {
                measured.errors += 1;
                measured.last_error = Some(error.to_string());
                tokio::time::sleep(Duration::from_millis(AFTER_ERROR_MS)).await;
            }
        }
        if left > 0 && plan.end.is_none_or(|end| now < end) {
            waiting.push(propose());
            left -= 1;
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_connections_add_up() {
        let plan = Plan { begin: Instant::now(), end: None, count: None, connections: 3, outstanding: 8 };
        assert_eq!((0..3).map(|connection| plan.share(8, connection)).collect::<Vec<_>>(), [3, 3, 2]);
    }
}
