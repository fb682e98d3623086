//! Durability: what was acknowledged is committed, in the place that was told, and is there at the end: in the history, on every server,
//! and on a quorum of disks.
//!
//! From the answers that clients got, the servers' last words, and what their disks hold when all is over.
//!
//! It cannot see whether an acknowledged run was on a quorum of disks at the moment of the answer; but whoever answers earlier loses it in
//! the next power cut, and that is seen.

use std::collections::{BTreeMap, BTreeSet};

use cluster_server::Phase as ServerPhase;
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{LogIndex, RunIndex, Seat, Term};
use voter_mesh::run::Run;

use super::calls::Waiting;
use super::{Checker, CheckerOptions, History, Wrong};
use crate::sim::record::{CallId, DiskFound, Event, Phase, Report, Returned, What};

#[derive(Debug)]
pub(super) struct Acknowledged {
    /// Whether disks are seen.
    inside: bool,
    highest: LogIndex,
    waiting: Waiting<(CallId, Term)>,
    quiet: bool,
    /// What each server had applied when it was last asked.
    applied: BTreeMap<Seat, LogIndex>,
    /// Who belongs to the cluster, as its leader last said.
    configuration: Configuration,
    disks: Vec<DiskFound>,
}

impl Acknowledged {
    pub(super) fn new(options: &CheckerOptions) -> Self {
        Self {
            inside: options.inside,
            highest: LogIndex::ZERO,
            waiting: Waiting::default(),
            quiet: false,
            applied: BTreeMap::new(),
            configuration: Configuration::default(),
            disks: Vec::new(),
        }
    }

    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (index, (call, term)) in self.waiting.ready(history.last()) {
            if let Some(entry) = history.entry(index).filter(|entry| entry.term != term) {
                wrong.say(|| format!("call {} was acknowledged at {index} in term {term}, where {entry:?} is committed", call.0));
            }
        }
    }
}

/// The last run up to which a disk holds the history without a gap.
fn holds_through(disk: &DiskFound, history: &History) -> RunIndex {
    let mut through = disk.snapshot.map_or(RunIndex::FIRST, |tail| tail.run);
    for run in &disk.runs {
        if run.run == through.next() && history.run(run.run) == Some(run) {
            through = run.run;
        }
    }
    through
}

impl Checker for Acknowledged {
    fn name(&self) -> &'static str {
        "durability"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Returned { call, outcome: Returned::Applied { index, term, .. } } => {
                self.highest = self.highest.max(*index);
                self.waiting.until(*index, (*call, *term));
                self.settle(history, wrong);
            }
            What::Phase(phase) => self.quiet = *phase >= Phase::Quiet,
            What::Status { server, status } if self.quiet => {
                self.applied.insert(*server, status.applied);
                if status.phase == ServerPhase::Leading {
                    self.configuration = status.configuration.clone();
                }
            }
            What::Disk(found) => self.disks.push(found.clone()),
            _ => {}
        }
    }

    fn committed(&mut self, _run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        self.settle(history, wrong);
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, _report: &mut Report) {
        for (index, (call, term)) in self.waiting.rest() {
            wrong.say(|| format!("call {} was acknowledged at {index} in term {term}; committed is {}", call.0, history.last()));
        }
        for (server, applied) in self.applied.iter().filter(|(_, applied)| **applied < self.highest) {
            if !self.configuration.seats.contains_key(server) {
                continue;
            }
            wrong.say(|| format!("server {server} ends at {applied}, below the acknowledged {}", self.highest));
        }
        let voters: BTreeSet<Seat> = self.configuration.voters().iter().map(|id| id.seat()).collect();
        // Where nobody leads in the end, another checker says so.
        if self.inside && !voters.is_empty() && history.last() >= self.highest {
            let end = history.runs().partition_point(|run| run.last() < self.highest);
            let needed = history.runs().get(end).map_or(RunIndex::FIRST, |run| run.run);
            let holding: Vec<_> = self
                .disks
                .iter()
                .filter(|disk| voters.contains(&disk.server))
                .map(|disk| (disk.server, holds_through(disk, history)))
                .collect();
            if holding.iter().filter(|(_, through)| *through >= needed).count() <= voters.len() / 2 {
                wrong.say(|| format!("run {needed} is acknowledged; the disks hold the history through {holding:?}"));
            }
        }
    }
}
