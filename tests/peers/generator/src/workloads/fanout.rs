//! How fast writes reach many readers: so many writes a second, or a closed loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::watch::attach;
use super::{VALUE_BYTES, parts, value};
use crate::figures::{Latencies, cpu_us, memory_kib, merge, now_ns, round};
use crate::peer::{Each, Kind};

#[derive(clap::Args)]
pub struct Fanout {
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Writes a second; 0: as many as `outstanding` places can
    #[arg(long, default_value_t = 0)]
    rate: u64,
    #[arg(long, default_value_t = 16)]
    outstanding: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Stop writing after so many deliveries are due
    #[arg(long, default_value_t = 4_000_000)]
    deliveries_max: u64,
}

/// What the watchers saw.
#[derive(Default)]
struct Seen {
    delays: Latencies,
    deliveries: AtomicU64,
    last_ns: AtomicU64,
}

impl Fanout {
    pub async fn run(self, kind: Kind, endpoints: &[String], pids: &[u32]) -> Result<()> {
        let settle = || tokio::time::sleep(Duration::from_secs(2));
        let (seen, kib) = (Arc::new(Seen::default()), memory_kib(pids));
        let each: Each = {
            let seen = Arc::clone(&seen);
            Arc::new(move |value: &[u8]| {
                let now = now_ns();
                if let Some((start, _)) = parts(value) {
                    seen.delays.record(Duration::from_nanos(now.saturating_sub(start)));
                }
                seen.deliveries.fetch_add(1, Ordering::Relaxed);
                seen.last_ns.store(now, Ordering::Relaxed);
            })
        };
        let _watchers = attach(kind, endpoints, self.watchers, &each).await?;
        settle().await;
        let kib_attached = memory_kib(pids);
        let writers = kind.connections(endpoints, endpoints.len()).await?;
        writers[0].publish(value(0)).await?;
        settle().await;
        seen.delays.reset();
        seen.deliveries.store(0, Ordering::Relaxed);

        let (cpu, begin_ns) = (cpu_us(pids), now_ns());
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let due_max = (self.deliveries_max / self.watchers.max(1) as u64).max(1);
        let (next, written) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
        let mut places = Vec::new();
        if self.rate > 0 {
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / self.rate as f64));
            for number in 1..=(self.seconds * self.rate as f64) as u64 {
                ticks.tick().await;
                let (writer, written) = (Arc::clone(&writers[number as usize % writers.len()]), Arc::clone(&written));
                places.push(tokio::spawn(async move {
                    writer.publish(value(number)).await.map(|()| _ = written.fetch_add(1, Ordering::Relaxed))
                }));
            }
        } else {
            for place in 0..self.outstanding {
                let writer = Arc::clone(&writers[place % writers.len()]);
                let (next, written) = (Arc::clone(&next), Arc::clone(&written));
                places.push(tokio::spawn(async move {
                    while Instant::now() < end {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number > due_max {
                            break;
                        }
                        writer.publish(value(number)).await?;
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                }));
            }
        }
        for place in places {
            place.await??;
        }
        let (written, due) = (written.load(Ordering::Relaxed), written.load(Ordering::Relaxed) * self.watchers as u64);
        arrived(&seen, due).await?;
        let deliveries = seen.deliveries.load(Ordering::Relaxed);
        let seconds = seen.last_ns.load(Ordering::Relaxed).saturating_sub(begin_ns) as f64 / 1e9;
        let mut line = json!({
            "workload": "fanout", "watchers": self.watchers, "rate": self.rate, "bytes": VALUE_BYTES, "seconds": round(seconds, 3),
            "operations": written, "operations_per_s": round(written as f64 / seconds, 1),
            "deliveries": deliveries, "deliveries_per_s": round(deliveries as f64 / seconds, 0),
            "server_cpu_us_per_operation": round((cpu_us(pids) - cpu) as f64 / deliveries.max(1) as f64, 3),
            "server_memory_kib_per_watcher": round(kib_attached.saturating_sub(kib) as f64 / self.watchers.max(1) as f64, 1),
        });
        merge(&mut line, seen.delays.figures());
        println!("{line}");
        Ok(())
    }
}

/// Waits until `due` deliveries were made.
async fn arrived(seen: &Seen, due: u64) -> Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let deliveries = seen.deliveries.load(Ordering::Relaxed);
        if deliveries >= due {
            return Ok(());
        }
        if deliveries > last {
            (last, since) = (deliveries, Instant::now());
        } else if since.elapsed() > Duration::from_secs(5) {
            bail!("{deliveries} of {due} deliveries arrived, then none for 5 s");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
