//! Closed loop: each of N places writes again when its last write is acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::{VALUE_BYTES, value};
use crate::figures::{Latencies, cpu_us, memory_kib, merge, round};
use crate::peer::Kind;

const FILLERS: usize = 16;
const FILLER_PLACES: usize = 512;

#[derive(clap::Args)]
pub struct Commit {
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 256)]
    outstanding: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl Commit {
    pub async fn run(self, kind: Kind, endpoints: &[String], pids: &[u32]) -> Result<()> {
        let connections = kind.connections(endpoints, self.connections).await?;
        let begin = Instant::now() + Duration::from_secs(1);
        let end = begin + Duration::from_secs_f64(self.seconds);
        let (latencies, errors) = (Arc::new(Latencies::default()), Arc::new(AtomicU64::new(0)));
        let mut places = Vec::new();
        for place in 0..self.outstanding {
            let connection = Arc::clone(&connections[place % connections.len()]);
            let (latencies, errors) = (Arc::clone(&latencies), Arc::clone(&errors));
            places.push(tokio::spawn(async move {
                let mut number = place as u64 * 1_000_003;
                while Instant::now() < end {
                    let start = Instant::now();
                    let written = connection.write(number, value(number)).await;
                    number += 1;
                    match written {
                        Ok(()) if start >= begin => latencies.record(start.elapsed()),
                        Ok(()) => {}
                        Err(_) => _ = errors.fetch_add(1, Ordering::Relaxed),
                    }
                }
            }));
        }
        tokio::time::sleep_until(begin.into()).await;
        let cpu = cpu_us(pids);
        for place in places {
            place.await?;
        }
        let (seconds, operations) = (begin.elapsed().as_secs_f64(), latencies.len());
        let mut line = json!({
            "workload": "commit", "connections": self.connections, "outstanding": self.outstanding, "bytes": VALUE_BYTES,
            "seconds": round(seconds, 3), "operations": operations,
            "operations_per_s": round(operations as f64 / seconds, 0), "errors": errors.load(Ordering::Relaxed),
            "server_cpu_us_per_operation": round((cpu_us(pids) - cpu) as f64 / operations.max(1) as f64, 3),
            "server_memory_mib": round(memory_kib(pids) as f64 / 1024.0, 1),
        });
        merge(&mut line, latencies.figures());
        println!("{line}");
        Ok(())
    }
}

/// Writes `entries` keys of their own.
pub async fn fill(kind: Kind, endpoints: &[String], entries: u64) -> Result<()> {
    let connections = kind.connections(endpoints, FILLERS).await?;
    let next = Arc::new(AtomicU64::new(0));
    let places = (0..FILLER_PLACES).map(|place| {
        let (connection, next) = (Arc::clone(&connections[place % FILLERS]), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= entries {
                    return anyhow::Ok(());
                }
                connection.create(number, value(number)).await?;
            }
        })
    });
    for place in places.collect::<Vec<_>>() {
        place.await??;
    }
    Ok(())
}
