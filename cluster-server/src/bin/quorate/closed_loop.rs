//! The closed loop that `load` and `bench` share: each of N places begins its next operation when its last one is answered. And what
//! such a run says of itself: throughput, latency, and what it cost the servers.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::attach::Thin;
use crate::fleet::{Fleet, cpu_of};
use crate::output::Failure;

/// Unmeasured time at the start of a run by the clock.
const WARM_UP_MS: u64 = 1_000;

/// Pause after an operation that failed: a cluster that refuses is not asked as fast as one that works.
const AFTER_ERROR_MS: u64 = 10;

/// Latencies up to a minute, in microseconds, to two digits.
const LATENCY_US_MAX: u64 = 60_000_000;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// This long after its unmeasured beginning.
    Elapsed(Duration),
    /// After this many operations, all of them measured.
    Count(u64),
    /// As `Count`, or after this long if that is sooner.
    Either(Duration, u64),
}

/// What every connection of a run keeps to.
pub(crate) struct Plan {
    /// When measuring begins.
    begin: Instant,
    end: Option<Instant>,
    count: Option<u64>,
    connections: usize,
    outstanding: usize,
}

impl Plan {
    /// A run that begins now.
    pub(crate) fn new(connections: usize, outstanding: usize, until: Until) -> Self {
        let now = Instant::now();
        let (begin, end, count) = match until {
            Until::Elapsed(time) => {
                let begin = now + Duration::from_millis(WARM_UP_MS);
                (begin, Some(begin + time), None)
            }
            Until::Count(count) => (now, None, Some(count)),
            Until::Either(time, count) => (now, Some(now + time), Some(count)),
        };
        Self { begin, end, count, connections: connections.max(1), outstanding: outstanding.max(1) }
    }

    /// Whether an operation that began then counts.
    pub(crate) fn measures(&self, start: Instant) -> bool {
        start >= self.begin
    }

    /// A connection's part of `whole`; the parts add up.
    fn share(&self, whole: u64, connection: usize) -> u64 {
        let (connections, connection) = (self.connections as u64, connection as u64);
        whole / connections + u64::from(connection < whole % connections)
    }

    /// Keeps one connection's places full until the plan is done; `operation` begins the connection's next one, given its number from
    /// 0. No task per operation: the futures are polled here.
    pub(crate) async fn drive<F: Future<Output = Result<(), String>>>(
        &self,
        connection: usize,
        mut operation: impl FnMut(u64) -> F,
    ) -> Result<Measured, Failure> {
        let mut measured = Measured { latencies: histogram()?, errors: 0, last_error: None };
        let places = self.share(self.outstanding as u64, connection);
        let count = self.count.map_or(u64::MAX, |count| self.share(count, connection));
        let mut begun = 0;
        let mut begin = || {
            let (start, operation) = (Instant::now(), operation(begun));
            begun += 1;
            let next = async move { (start, operation.await) };
            (next, begun < count)
        };
        let mut waiting = FuturesUnordered::new();
        let mut more = count > 0;
        while more && (waiting.len() as u64) < places {
            let (next, left) = begin();
            waiting.push(next);
            more = left;
        }
        while let Some((start, result)) = waiting.next().await {
            let now = Instant::now();
            match result {
                Ok(()) if !self.measures(start) => {}
                Ok(()) => record(&mut measured.latencies, now - start),
                Err(error) => {
                    measured.errors += 1;
                    measured.last_error = Some(error);
                    tokio::time::sleep(Duration::from_millis(AFTER_ERROR_MS)).await;
                }
            }
            if more && self.end.is_none_or(|end| now < end) {
                let (next, left) = begin();
                waiting.push(next);
                more = left;
            }
        }
        Ok(measured)
    }

    /// Proposes through one client until the plan is done, one payload after the other, from another one on each connection.
    pub(crate) async fn propose(&self, connection: usize, client: &Thin, payloads: &[Bytes]) -> Result<Measured, Failure> {
        let payload = |number: u64| &payloads[(connection + number as usize) % payloads.len()];
        let propose = |number| async move {
            let answer = client.propose(payload(number)).await;
            answer.map(drop).map_err(|error| error.to_string())
        };
        self.drive(connection, propose).await
    }

    /// Waits for all connections and says what the run was like.
    pub(crate) async fn run<D>(&self, fleet: Option<&Fleet>, drivers: impl IntoIterator<Item = D>) -> Result<Figures, Failure>
    where
        D: Future<Output = Result<Measured, Failure>>,
    {
        let before = async {
            tokio::time::sleep_until(self.begin.into()).await;
            Spent::so_far(fleet)
        };
        let (results, before) = futures_util::future::join(futures_util::future::join_all(drivers), before).await;
        let seconds = self.begin.elapsed().as_secs_f64();
        let mut all = Measured { latencies: histogram()?, errors: 0, last_error: None };
        for result in results {
            let result = result?;
            all.latencies.add(result.latencies).map_err(|error| Failure::failed(error.to_string()))?;
            all.errors += result.errors;
            all.last_error = all.last_error.or(result.last_error);
        }
        let operations = all.latencies.len();
        Ok(Figures {
            seconds: round(seconds, 3),
            operations,
            operations_per_s: (operations as f64 / seconds).round(),
            errors: all.errors,
            latency: Latency::of(&all.latencies),
            costs: before.until_now(fleet, operations),
            last_error: all.last_error,
        })
    }
}

/// What one connection measured.
pub(crate) struct Measured {
    latencies: Histogram<u64>,
    errors: u64,
    last_error: Option<String>,
}

pub(crate) fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).map_err(|error| Failure::failed(error.to_string()))
}

/// Counts a latency in.
pub(crate) fn record(latencies: &mut Histogram<u64>, latency: Duration) {
    latencies.saturating_record(latency.as_micros() as u64);
}

/// A latency's quantiles.
#[derive(Serialize, Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    p999_us: u64,
    pub(crate) max_us: u64,
}

impl Latency {
    pub(crate) fn of(latencies: &Histogram<u64>) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile);
        Self { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), max_us: latencies.max() }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999, max] = [self.p50_us, self.p99_us, self.p999_us, self.max_us].map(Micros);
        write!(f, "p50 {p50}, p99 {p99}, p99.9 {p999}, max {max}")
    }
}

/// A time as a reader would like it.
pub(crate) struct Micros(pub(crate) u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ ..1_000 => write!(f, "{us} µs"),
            us @ 1_000..1_000_000 => write!(f, "{:.1} ms", us as f64 / 1e3),
            us => write!(f, "{:.2} s", us as f64 / 1e6),
        }
    }
}

/// What a run cost, where the system tells: the servers' part only for servers of our own.
#[derive(Serialize, Clone, Copy, Debug)]
pub(crate) struct Costs {
    pub(crate) client_cpu_us_per_operation: Option<f64>,
    pub(crate) server_cpu_us_per_operation: Option<f64>,
    /// Resident memory of all servers at the run's end.
    pub(crate) server_memory_mib: Option<f64>,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(us) = self.server_cpu_us_per_operation {
            write!(f, "servers, together: {us} µs of processor time for each")?;
        }
        if let Some(mib) = self.server_memory_mib {
            write!(f, ", {mib} MiB resident")?;
        }
        if let Some(us) = self.client_cpu_us_per_operation {
            let separator = if self.server_cpu_us_per_operation.is_some() { "; " } else { "" };
            write!(f, "{separator}this process: {us} µs")?;
        }
        Ok(())
    }
}

/// Processor time used up to some moment.
pub(crate) struct Spent {
    client: Option<Duration>,
    servers: Option<Duration>,
}

impl Spent {
    pub(crate) fn so_far(fleet: Option<&Fleet>) -> Self {
        Self { client: cpu_of(std::process::id()), servers: fleet.and_then(Fleet::cpu) }
    }

    /// What was spent since, for each of `operations`, and what the servers hold now.
    pub(crate) fn until_now(&self, fleet: Option<&Fleet>, operations: u64) -> Costs {
        let now = Self::so_far(fleet);
        let each = |before: Option<Duration>, after: Option<Duration>| {
            let used_us = after?.saturating_sub(before?).as_secs_f64() * 1e6;
            (operations > 0).then(|| round(used_us / operations as f64, 3))
        };
        Costs {
            client_cpu_us_per_operation: each(self.client, now.client),
            server_cpu_us_per_operation: each(self.servers, now.servers),
            server_memory_mib: fleet.and_then(Fleet::memory_kib).map(mib),
        }
    }
}

/// KiB as MiB, for reports.
pub(crate) fn mib(kib: u64) -> f64 {
    round(kib as f64 / 1024.0, 1)
}

/// A figure that the system may not tell.
pub(crate) fn told(figure: Option<f64>) -> String {
    figure.map_or("?".to_owned(), |figure| figure.to_string())
}

/// For reports: `digits` behind the point.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// What a run of closed loops was like.
#[derive(Serialize, Debug)]
pub(crate) struct Figures {
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) operations_per_s: f64,
    errors: u64,
    #[serde(flatten)]
    pub(crate) latency: Latency,
    #[serde(flatten)]
    pub(crate) costs: Costs,
    #[serde(skip)]
    last_error: Option<String>,
}

impl Figures {
    /// # Errors
    /// If an operation failed.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let error = self.last_error.as_deref().unwrap_or_default();
        if self.errors == 0 { Ok(()) } else { Err(Failure::failed(format!("{} errors, such as: {error}", self.errors))) }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, operations, operations_per_s, errors, latency, costs, .. } = self;
        writeln!(f, "{operations_per_s:.0} operations/s ({operations} in {seconds:.1} s), {errors} errors")?;
        write!(f, "latency: {latency}\n{costs}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_connections_add_up() {
        let plan = Plan::new(3, 8, Until::Count(100));
        assert_eq!((0..3).map(|connection| plan.share(8, connection)).collect::<Vec<_>>(), [3, 3, 2]);
    }

    #[tokio::test]
    async fn all_places_are_kept_full_and_exactly_the_count_is_done() {
        let plan = Plan::new(1, 8, Until::Count(100));
        let (now, most) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let operation = |number: u64| {
            let (now, most) = (&now, &most);
            async move {
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                tokio::task::yield_now().await;
                now.set(now.get() - 1);
                if number == 7 { Err("seven".to_owned()) } else { Ok(()) }
            }
        };
        let figures = plan.run(None, [plan.drive(0, operation)]).await.unwrap();
        assert_eq!((most.get(), figures.operations, figures.errors), (8, 99, 1));
        assert!(figures.check().unwrap_err().message.contains("1 errors, such as: seven"));
    }

    #[test]
    fn times_are_told_in_the_unit_that_reads_best() {
        assert_eq!([980, 1_500, 2_340_000].map(|us| Micros(us).to_string()), ["980 µs", "1.5 ms", "2.34 s"]);
    }
}
