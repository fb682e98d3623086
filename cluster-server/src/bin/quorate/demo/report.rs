//! What the demo tells: the story as it unfolds, and the figures at its end.

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::verify::Findings;
use super::work::Work;

/// The story, told line by line with the time of each.
pub(super) struct Story {
    started: Instant,
    bar: ProgressBar,
    to_stderr: bool,
}

impl Story {
    pub(super) fn new(started: Instant, bar: ProgressBar, to_stderr: bool) -> Self {
        Self { started, bar, to_stderr }
    }

    pub(super) fn tell(&self, what: impl Display) {
        let line = format!("{:7.2} s  {what}", self.started.elapsed().as_secs_f64());
        // Lines and the bar would overwrite each other.
        self.bar.suspend(|| {
            if self.to_stderr {
                eprintln!("{line}");
            } else {
                // A story that nobody reads any more is not a reason to stop the demo.
                let _ = crate::output::line(&line);
            }
        });
    }

    pub(super) fn conclude(&self, report: &Report) {
        self.tell(format_args!(
            "{} of {} commands acknowledged in {:.1} s; {} lost, {} standing twice",
            report.acknowledged, report.proposed, report.elapsed_s, report.lost, report.duplicated
        ));
        if report.failovers > 0 {
            self.tell(format_args!(
                "{} failovers: the next write was acknowledged after {:.1} ms in the median, {:.1} ms at worst",
                report.failovers,
                report.failover_p50_ms.unwrap_or_default(),
                report.failover_max_ms.unwrap_or_default()
            ));
        }
        let verdict = if report.replicas_identical { "are identical" } else { "DIFFER" };
        self.tell(format_args!("the replicas of {} servers and {} clients {verdict}", report.servers, report.clients));
    }
}

/// The figures, as `--json` prints them.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    pub(super) servers: u16,
    pub(super) clients: u32,
    pub(super) proposed: u64,
    pub(super) acknowledged: u64,
    pub(super) applied: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) replicas_identical: bool,
    pub(super) leader_changes: u64,
    pub(super) failovers: u64,
    pub(super) failover_p50_ms: Option<f64>,
    pub(super) failover_max_ms: Option<f64>,
    pub(super) elapsed_s: f64,
}

impl Report {
    pub(super) fn new(
        servers: u16,
        clients: u32,
        work: &Work,
        findings: &Findings,
        failovers: &[Duration],
        elapsed: Duration,
    ) -> Self {
        let mut sorted = failovers.to_vec();
        sorted.sort_unstable();
        let ms = |duration: &Duration| (duration.as_secs_f64() * 1e5).round() / 100.0;
        Self {
            servers,
            clients,
            proposed: work.proposed(),
            acknowledged: work.acknowledged(),
            applied: findings.applied,
            lost: findings.lost,
            duplicated: findings.duplicated,
            replicas_identical: findings.difference.is_none(),
            leader_changes: work.leader_changes(),
            failovers: sorted.len() as u64,
            failover_p50_ms: sorted.get(sorted.len().saturating_sub(1) / 2).map(ms),
            failover_max_ms: sorted.last().map(ms),
            elapsed_s: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        }
    }

    /// Nothing lost, nothing twice, everything acknowledged and applied, all replicas identical.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.replicas_identical
            && self.acknowledged == self.proposed
            && self.applied == self.proposed
    }
}
