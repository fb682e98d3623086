//! A client that knows nothing reads all keys, and replays the last writes.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;

use crate::peer::Kind;

#[derive(clap::Args)]
pub struct Catchup {
    #[arg(long)]
    entries: u64,
    #[arg(long, default_value_t = 5)]
    trials: usize,
}

impl Catchup {
    pub async fn run(self, kind: Kind, endpoints: &[String]) -> Result<()> {
        let (mut states, mut logs) = (Vec::new(), Vec::new());
        for trial in 0..self.trials {
            let endpoint = std::slice::from_ref(&endpoints[trial % endpoints.len()]);
            let begin = Instant::now();
            let keys = kind.connect(endpoint).await?.state().await?.len() as u64;
            if keys < self.entries {
                bail!("the state has {keys} keys of {}", self.entries);
            }
            states.push(begin.elapsed().as_micros() as u64);
            let begin = Instant::now();
            if let Some(got) = kind.connect(endpoint).await?.replay(self.entries).await? {
                if got < self.entries {
                    bail!("the log gave {got} writes of {}", self.entries);
                }
                logs.push(begin.elapsed().as_micros() as u64);
            }
        }
        states.sort_unstable();
        logs.sort_unstable();
        let median = |sorted: &[u64]| sorted.get(sorted.len() / 2).copied();
        println!("{}", json!({"workload": "catchup", "entries": self.entries, "state_us": median(&states), "log_us": median(&logs)}));
        Ok(())
    }
}
