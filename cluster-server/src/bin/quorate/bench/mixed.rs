//! Linearizable reads, nine to one write unless told otherwise, from every server alike. Each client is a replica: a read asks its server for an index, waits
//! until the replica has applied it, and looks at the replica.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use cluster_client::Consistency;
use serde::Serialize;
use voter_mesh::machine::kv::KvCommand;

use super::stage::{Stage, attach};
use crate::attach::seconds;
use crate::closed_loop::{Figures, Latency, Plan, Until, histogram, record, round};
use crate::output::Failure;
use crate::serve::StateName;

/// Keys that are read and written.
const KEYS: u64 = 1_000;

/// Linearizable reads and writes, clients attached to all servers in turn
#[derive(Args)]
pub(super) struct Mixed {
    #[command(flatten)]
    stage: Stage,
    /// Clients, each a replica of the state
    #[arg(long, short, default_value_t = 6)]
    connections: usize,
    /// Operations that wait for their answers at once, over all clients
    #[arg(long, short = 'n', default_value_t = 256)]
    outstanding: usize,
    /// Reads in a hundred operations; the others are writes
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Seconds that are measured, after one that is not
    #[arg(long, value_parser = seconds, default_value = "3")]
    seconds: Duration,
}

#[derive(Serialize)]
struct Report {
    connections: usize,
    outstanding: usize,
    reads_percent: u8,
    reads_per_s: f64,
    read_p50_us: u64,
    read_p99_us: u64,
    write_p50_us: u64,
    write_p99_us: u64,
    #[serde(flatten)]
    figures: Figures,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, outstanding, reads_percent, .. } = self;
        writeln!(f, "{connections} connections, {outstanding} outstanding, {reads_percent} % linearizable reads")?;
        let Self { reads_per_s, read_p50_us, read_p99_us, write_p50_us, write_p99_us, .. } = self;
        writeln!(f, "{reads_per_s:.0} reads/s, p50 {read_p50_us} µs, p99 {read_p99_us} µs")?;
        writeln!(f, "writes: p50 {write_p50_us} µs, p99 {write_p99_us} µs; all together:")?;
        self.figures.fmt(f)
    }
}

impl Mixed {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let cluster = self.stage.start(3, StateName::Kv).await?;
        let (connections, outstanding) = (self.connections.max(1), self.outstanding.max(1));
        let attach = attach(&cluster.leader_first());
        let mut clients = Vec::new();
        for number in 0..connections {
            clients.push(attach.replica(number).await?);
        }
        let (reads, writes) = (RefCell::new(histogram()?), RefCell::new(histogram()?));
        let plan = Plan::new(connections, outstanding, Until::Elapsed(self.seconds));
        let drivers = clients.iter().enumerate().map(|(connection, client)| {
            let (plan, reads, writes) = (&plan, &reads, &writes);
            plan.drive(connection, move |number| async move {
                let begin = Instant::now();
                let key = ((number * 7 + connection as u64) % KEYS).to_string().into_bytes();
                let (latencies, result) = if is_write(number + connection as u64, self.reads) {
                    let put = KvCommand::Put { key, value: vec![b'x'; 64] };
                    (writes, client.propose(&put).await.map(drop).map_err(|error| error.to_string()))
                } else {
                    let read = client.read(Consistency::Linearizable, |state| state.get(&key).map(|value| value.version));
                    (reads, read.await.map(drop).map_err(|error| error.to_string()))
                };
                if plan.measures(begin) {
                    record(&mut latencies.borrow_mut(), begin.elapsed());
                }
                result
            })
        });
        let figures = plan.run(Some(&cluster.fleet), drivers).await?;
        let (read, write) = (Latency::of(&reads.borrow()), Latency::of(&writes.borrow()));
        let report = Report {
            connections,
            outstanding,
            reads_percent: self.reads,
            reads_per_s: round(reads.borrow().len() as f64 / figures.seconds, 0),
            read_p50_us: read.p50_us,
            read_p99_us: read.p99_us,
            write_p50_us: write.p50_us,
            write_p99_us: write.p99_us,
            figures,
        };
        self.stage.tell("mixed", &report)?;
        report.figures.check()
    }
}

/// Whether this operation is one of the writes, which are spread evenly.
fn is_write(number: u64, reads_percent: u8) -> bool {
    let writes_before = |number: u64| number * u64::from(100 - reads_percent) / 100;
    writes_before(number + 1) > writes_before(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_operations_as_many_are_writes_as_are_no_reads() {
        for reads in [0, 1, 33, 90, 100] {
            let writes = (700..800).filter(|number| is_write(*number, reads)).count();
            assert_eq!(writes, 100 - usize::from(reads));
        }
    }
}
