//! SIGKILL of the leader under load, to the acknowledgement of the first write that began after it. A replica of the whole history
//! watches: at the end, no acknowledged write may be missing from it and none may stand in it twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use cluster_client::{LogIndex, RequestJournal};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::task::JoinSet;

use super::stage::{Cluster, PATIENCE_MS, Stage, attach};
use crate::attach::{Raw, Thin};
use crate::closed_loop::{Costs, Latency, Micros, Spent, histogram, record, round};
use crate::output::Failure;
use crate::serve::StateName;

/// Writers at each server.
const WRITERS_PER_SERVER: usize = 2;

/// How long one try of a write may take. A write that is not answered then may still apply: it is neither acknowledged nor lost.
const TRY_MS: u64 = 250;

/// A writer's pause after an answer, and after a try that had none.
const PAUSE_MS: u64 = 1;

/// Everyone is whole and quiet for so long before the next kill.
const CALM_MS: u64 = 500;

/// Between two looks at what was acknowledged or seen.
const LOOK_AGAIN_MS: u64 = 1;

/// Time without a leader that writers notice
#[derive(Args)]
pub(super) struct Failover {
    #[command(flatten)]
    stage: Stage,
    /// Kills, each after the servers are whole again
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    trials: u32,
}

#[derive(Serialize)]
struct Report {
    trials: u32,
    trials_ms: Vec<f64>,
    median_ms: f64,
    worst_ms: f64,
    operations: u64,
    operations_per_s: f64,
    /// Tries that had no answer in time.
    unanswered: u64,
    lost: u64,
    repeated: u64,
    /// Of all writes, those around the kills included.
    #[serde(flatten)]
    latency: Latency,
    #[serde(flatten)]
    costs: Costs,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |ms: f64| Micros((ms * 1e3) as u64);
        writeln!(f, "{} kills of the leader, median {}, worst {}", self.trials, micros(self.median_ms), micros(self.worst_ms))?;
        let Self { operations, operations_per_s, unanswered, lost, repeated, latency, costs, .. } = self;
        writeln!(
            f,
            "{operations} writes, {operations_per_s:.0}/s, {unanswered} unanswered, {lost} lost, {repeated} standing twice"
        )?;
        write!(f, "latency of the writes: {latency}\n{costs}")
    }
}

/// What the writers did, and what the watching replica saw of it.
#[derive(Default)]
struct Diary {
    /// By write: when it began and when it was acknowledged, and how often the replica saw it.
    writes: BTreeMap<u64, Write>,
    next: u64,
    unanswered: u64,
    failed: Option<String>,
}

#[derive(Default)]
struct Write {
    acknowledged: Option<(Instant, Instant)>,
    seen: u32,
}

impl Diary {
    /// When the first write that began after `kill` was acknowledged, first by the time of the answer.
    fn first_after(&self, kill: Instant) -> Option<Instant> {
        // Numbers are given in the order of the beginnings, so what began later has a higher number.
        let late = self.writes.values().rev().filter_map(|write| write.acknowledged);
        late.take_while(|(began, _)| *began > kill).map(|(_, answered)| answered).min()
    }

    fn lost(&self) -> u64 {
        self.writes.values().filter(|write| write.acknowledged.is_some() && write.seen == 0).count() as u64
    }

    fn repeated(&self) -> u64 {
        self.writes.values().filter(|write| write.seen > 1).count() as u64
    }
}

type Shared = Arc<Mutex<Diary>>;

fn lock(diary: &Shared) -> MutexGuard<'_, Diary> {
    // Whoever panicked with it left figures behind, not invariants.
    diary.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(client: Thin, diary: Shared) {
    loop {
        let (number, began) = {
            let mut diary = lock(&diary);
            diary.next += 1;
            (diary.next, Instant::now())
        };
        let payload = Bytes::copy_from_slice(&[number.to_le_bytes(); 8].concat());
        match client.propose(&payload).deadline(Duration::from_millis(TRY_MS)).await {
            Ok(_) => lock(&diary).writes.entry(number).or_default().acknowledged = Some((began, Instant::now())),
            Err(_) => lock(&diary).unanswered += 1,
        }
        tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
    }
}

async fn watch(client: Raw, diary: Shared) {
    let mut committed = client.committed_from(LogIndex::FIRST);
    while let Some(entry) = committed.next().await {
        let mut diary = lock(&diary);
        match entry.map(|entry| entry.payload.first_chunk().map(|number| u64::from_le_bytes(*number))) {
            Ok(Some(number)) => diary.writes.entry(number).or_default().seen += 1,
            Ok(None) => diary.failed = Some("a command that nobody proposed".to_owned()),
            Err(error) => diary.failed = Some(error.to_string()),
        }
    }
}

/// Waits until `look` finds something.
async fn wait<T>(diary: &Shared, what: &str, look: impl Fn(&Diary) -> Option<T>) -> Result<T, Failure> {
    let end = Instant::now() + Duration::from_millis(PATIENCE_MS);
    while Instant::now() < end {
        if let Some(found) = look(&lock(diary)) {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
    Err(Failure::failed(format!("waited {PATIENCE_MS} ms for {what}")))
}

impl Failover {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut cluster = self.stage.start(3, StateName::Log).await?;
        let endpoints = cluster.leader_first();
        let (attach, diary) = (attach(&endpoints), Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(attach.raw(0).await?, Arc::clone(&diary)));
        let mut writers = JoinSet::new();
        for number in 0..endpoints.len() * WRITERS_PER_SERVER {
            writers.spawn(write(attach.thin(RequestJournal::memory(), number).await?, Arc::clone(&diary)));
        }
        let (spent, begin) = (Spent::so_far(Some(&cluster.fleet)), Instant::now());
        let mut trials_us = Vec::new();
        for _ in 0..self.trials {
            trials_us.push(trial(&mut cluster, &diary).await?.as_micros() as u64);
        }
        let seconds = begin.elapsed().as_secs_f64();
        writers.shutdown().await;
        let all_seen = |diary: &Diary| (diary.failed.is_some() || diary.lost() == 0).then_some(());
        // What is still missing then is counted, not complained about.
        let _ = wait(&diary, "every acknowledged write to be seen", all_seen).await;

        let diary = lock(&diary);
        let mut latencies = histogram()?;
        for (began, answered) in diary.writes.values().filter_map(|write| write.acknowledged) {
            record(&mut latencies, answered - began);
        }
        let operations = latencies.len();
        let trials_ms = trials_us.iter().map(|us| round(*us as f64 / 1e3, 2)).collect();
        trials_us.sort_unstable();
        let report = Report {
            trials: self.trials,
            trials_ms,
            median_ms: trials_us[trials_us.len() / 2] as f64 / 1e3,
            worst_ms: trials_us[trials_us.len() - 1] as f64 / 1e3,
            operations,
            operations_per_s: round(operations as f64 / seconds, 0),
            unanswered: diary.unanswered,
            lost: diary.lost(),
            repeated: diary.repeated(),
            latency: Latency::of(&latencies),
            costs: spent.until_now(Some(&cluster.fleet), operations),
        };
        self.stage.tell("failover", &report)?;
        match &diary.failed {
            Some(why) => Err(Failure::failed(format!("the watching replica ended: {why}"))),
            None if report.lost + report.repeated > 0 => Err(Failure::failed("writes are lost or stand twice")),
            None => Ok(()),
        }
    }
}

/// Kills whoever leads, brings it back, and says how long nobody was answered who asked after the kill.
async fn trial(cluster: &mut Cluster, diary: &Shared) -> Result<Duration, Failure> {
    tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
    let (leader, _) = cluster.fleet.leader(Duration::from_millis(PATIENCE_MS)).await?;
    let kill = cluster.fleet.kill(leader.seat()).await?;
    let answered = wait(diary, "a write after the kill", |diary| diary.first_after(kill)).await?;
    cluster.fleet.restart(leader.seat()).await?;
    cluster.level().await?;
    Ok(answered - kill)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_began_after_the_kill_ends_a_failover() {
        let kill = Instant::now();
        let (before, after) = (kill - Duration::from_millis(5), |ms| kill + Duration::from_millis(ms));
        let mut diary = Diary::default();
        let mut acknowledge = |number, began, answered| {
            diary.writes.insert(number, Write { acknowledged: Some((began, answered)), seen: 1 });
        };
        acknowledge(1, before, after(9));
        acknowledge(2, after(3), after(20));
        acknowledge(3, after(4), after(15));
        assert_eq!(diary.first_after(kill), Some(after(15)));
        assert_eq!(diary.first_after(after(4)), None);
    }

    #[test]
    fn a_write_that_nobody_saw_is_lost_only_if_it_was_acknowledged() {
        let now = Instant::now();
        let mut diary = Diary::default();
        diary.writes.insert(1, Write { acknowledged: Some((now, now)), seen: 0 });
        diary.writes.insert(2, Write { acknowledged: None, seen: 0 });
        diary.writes.insert(3, Write { acknowledged: None, seen: 2 });
        assert_eq!((diary.lost(), diary.repeated()), (1, 1));
    }
}
