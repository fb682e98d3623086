//! A server was started: how long until its last key can be read, and a write is acknowledged.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::value;
use crate::figures::now_ns;
use crate::peer::Kind;

const PATIENCE_NS: u64 = 120_000_000_000;

#[derive(clap::Args)]
pub struct Recovery {
    #[arg(long)]
    entries: u64,
    /// When the server was started, in nanoseconds of the system's clock
    #[arg(long)]
    since: u64,
}

impl Recovery {
    pub async fn run(self, kind: Kind, endpoints: &[String]) -> Result<()> {
        let last = self.entries - 1;
        self.until(|| async move { kind.connect(endpoints).await?.holds(last).await }).await?;
        let read = now_ns() - self.since;
        self.until(|| async move { kind.connect(endpoints).await?.write(0, value(0)).await.map(|()| true) }).await?;
        let write = now_ns() - self.since;
        println!("{}", json!({"workload": "recovery", "entries": self.entries, "read_us": read / 1_000, "write_us": write / 1_000}));
        Ok(())
    }

    /// Tries until it is true.
    async fn until<F: Future<Output = Result<bool>>>(&self, attempt: impl Fn() -> F) -> Result<()> {
        while !matches!(timeout(Duration::from_secs(3), attempt()).await, Ok(Ok(true))) {
            if now_ns() > self.since + PATIENCE_NS {
                bail!("the server was not back in two minutes");
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
