//! Two writers at each server; after each kill, the time to the acknowledgement of the first write that began after it. At the end
//! every acknowledged write is looked for.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{sleep, timeout};

use super::{parts, value};
use crate::figures::now_ns;
use crate::peer::Kind;

const TRY: Duration = Duration::from_millis(250);
const PATIENCE_NS: u64 = 60_000_000_000;

/// Acknowledged writes: number, beginning, answer.
type Acknowledged = Arc<Mutex<Vec<(u64, u64, u64)>>>;

fn lock(acknowledged: &Acknowledged) -> MutexGuard<'_, Vec<(u64, u64, u64)>> {
    acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(kind: Kind, endpoint: String, writer: u64, acknowledged: Acknowledged) {
    let mut number = writer << 32;
    loop {
        let connecting = kind.connect(std::slice::from_ref(&endpoint));
        let Ok(Ok(connection)) = timeout(Duration::from_millis(500), connecting).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            number += 1;
            let begin = now_ns();
            match timeout(TRY, connection.create(number, value(number))).await {
                Ok(Ok(())) => lock(&acknowledged).push((number, begin, now_ns())),
                Ok(Err(_)) => break,
                Err(_) => {}
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

pub async fn run(kind: Kind, endpoints: &[String]) -> Result<()> {
    let acknowledged = Acknowledged::default();
    let mut writers = tokio::task::JoinSet::new();
    for (number, endpoint) in endpoints.iter().chain(endpoints).enumerate() {
        writers.spawn(write(kind, endpoint.clone(), number as u64 + 1, Arc::clone(&acknowledged)));
    }
    let mut kills = BufReader::new(tokio::io::stdin()).lines();
    while let Some(kill) = kills.next_line().await? {
        let kill: u64 = kill.trim().parse()?;
        let answered = loop {
            let writes = lock(&acknowledged).clone();
            if let Some(answered) = writes.iter().filter(|write| write.1 > kill).map(|write| write.2).min() {
                break answered;
            }
            if now_ns() > kill + PATIENCE_NS {
                bail!("no write for a minute");
            }
            sleep(Duration::from_millis(2)).await;
        };
        println!("{}", json!({"ms": (answered - kill) as f64 / 1e6}));
    }
    writers.shutdown().await;
    sleep(Duration::from_secs(1)).await;
    let state = kind.connect(endpoints).await?.state().await?;
    let held: HashSet<u64> = state.iter().filter_map(|value| parts(value)).map(|(_, number)| number).collect();
    let writes = lock(&acknowledged);
    let lost = writes.iter().filter(|write| !held.contains(&write.0)).count();
    println!("{}", json!({"workload": "failover", "operations": writes.len(), "lost": lost}));
    Ok(())
}
