//! Liveness after healing: once every server runs and every link and disk is good, a leader is known to all within ten election timeouts,
//! commands take effect, calls return, and in the end all servers and learners stand at the same place with the same state. A run
//! without progress fails, whatever else it shows.
//!
//! From statuses (the world asks at least once an election timeout), calls, and the learners' last positions. From healing on every call is
//! to return.
//!
//! It says nothing of how long the faults themselves may keep a system from working.

use std::collections::BTreeMap;

use cluster_server::{Phase as ServerPhase, ServerStatus};
use voter_mesh::entry::EntryKind;
use voter_mesh::ids::{LogIndex, Seat};
use voter_mesh::outcome::{Outcome, Reply};

use super::{Checker, CheckerOptions, History, Wrong};
use crate::sim::record::{CallId, ClientId, End, Event, LearnerId, Operation, Phase, Report, Returned, What};

#[derive(Debug)]
pub(super) struct Liveness {
    leader_within_ms: u64,
    phase: Option<Phase>,
    healed_us: Option<u64>,
    /// When all servers first agreed on a leader after healing.
    agreed_us: Option<u64>,
    /// Each server's last words since healing.
    statuses: BTreeMap<Seat, Box<ServerStatus>>,
    /// Calls since healing that have not returned.
    open: BTreeMap<CallId, ClientId>,
    applied: u64,
    /// Where learners stood when they were last asked when all was over.
    learners: BTreeMap<LearnerId, LogIndex>,
}

impl Liveness {
    pub(super) fn new(options: &CheckerOptions) -> Self {
        Self {
            leader_within_ms: 10 * options.election_timeout_ms,
            phase: None,
            healed_us: None,
            agreed_us: None,
            statuses: BTreeMap::new(),
            open: BTreeMap::new(),
            applied: 0,
            learners: BTreeMap::new(),
        }
    }

    /// What the members of the cluster, by the word of whoever leads it, last said; nothing where nobody leads, or one said nothing.
    fn members(&self) -> Option<Vec<&ServerStatus>> {
        let leading =
            self.statuses.values().filter(|status| status.phase == ServerPhase::Leading).max_by_key(|status| status.term)?;
        let seats = leading.configuration.seats.iter().filter(|(_, seat)| seat.member.is_some());
        seats.map(|(seat, _)| self.statuses.get(seat).map(|status| &**status)).collect()
    }

    fn agreed(&self) -> bool {
        let Some(members) = self.members() else { return false };
        let leader = members.iter().find(|status| status.phase == ServerPhase::Leading).and_then(|status| status.id);
        leader.is_some() && members.iter().all(|status| status.leader == leader)
    }
}

impl Checker for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn observe(&mut self, event: &Event, _history: &History, wrong: &mut Wrong<'_>) {
        if let What::Phase(phase) = &event.what {
            self.phase = Some(*phase);
            if *phase == Phase::Healed {
                self.healed_us = Some(event.at_us);
            }
            return;
        }
        let Some(healed_us) = self.healed_us else { return };
        match &event.what {
            What::Status { server, status } => {
                self.statuses.insert(*server, status.clone());
                if self.agreed_us.is_none() && self.agreed() {
                    self.agreed_us = Some(event.at_us);
                    let took_ms = (event.at_us - healed_us) / 1000;
                    if took_ms > self.leader_within_ms {
                        wrong.say(|| format!("it took {took_ms} ms from healing to a leader that all know"));
                    }
                }
            }
            What::Ended { server, how: how @ End::Itself(_) } if self.phase < Some(Phase::Over) => {
                wrong.say(|| format!("server {server} ended after healing: {how:?}"));
            }
            What::Called { operation: Operation::Send { .. }, .. } => {}
            What::Replied { reply: Reply { repeat: false, outcome: Outcome::Applied(_), .. }, .. } => self.applied += 1,
            What::Called { call, client, .. } => drop(self.open.insert(*call, *client)),
            // Its process before this one did not come to hear what became of its calls.
            What::ClientStarted { client } => self.open.retain(|_, caller| caller != client),
            What::Returned { call, outcome } => {
                let applied = matches!(outcome, Returned::Applied { .. });
                self.applied += u64::from(self.open.remove(call).is_some() && applied);
            }
            What::Learnt { learner, index, .. } if self.phase >= Some(Phase::Over) => drop(self.learners.insert(*learner, *index)),
            _ => {}
        }
    }

    fn finish(&mut self, history: &History, wrong: &mut Wrong<'_>, report: &mut Report) {
        if self.healed_us.is_none() || self.phase != Some(Phase::Over) {
            wrong.say(|| format!("the run ended in phase {:?}", self.phase));
            return;
        }
        let states: Vec<_> =
            self.statuses.iter().map(|(seat, status)| (*seat, status.phase, status.term, status.leader, status.applied)).collect();
        if self.agreed_us.is_none() {
            wrong.say(|| format!("no leader that all know came after healing: {states:?}"));
        }
        if self.applied == 0 {
            wrong.say(|| "stuck: nothing that was called after healing took effect".to_owned());
        }
        if let Some((call, _)) = self.open.first_key_value() {
            wrong.say(|| format!("{} calls made after healing never returned, the first is {}", self.open.len(), call.0));
        }
        let same = |status: &ServerStatus| (status.applied, status.state_hash.clone(), status.sessions_hash.clone());
        let members = self.members().unwrap_or_default();
        let mut ends = members.iter().map(|status| same(status));
        let first = ends.next();
        if first.is_none() || ends.any(|end| Some(end) != first) {
            wrong.say(|| format!("the servers did not converge: {states:?}"));
        }
        let last = history.last();
        // Sessions may end when nobody follows any more, and when everyone has been asked.
        let misses = |applied: LogIndex| history.entries_from(applied.next()).any(|(_, entry)| entry.kind != EntryKind::SessionEnd);
        if first.as_ref().is_some_and(|(applied, ..)| misses(*applied)) {
            wrong.say(|| format!("the servers end at {states:?}, and {last} is committed"));
        }
        let effective = history.last_effective();
        for (learner, index) in self.learners.iter().filter(|(_, index)| **index < effective) {
            wrong.say(|| format!("{learner:?} ends at {index}, and the last command is {effective}"));
        }
        if let (Some(healed), Some(agreed)) = (self.healed_us, self.agreed_us) {
            *report.counts.entry("leader_after_healing_ms").or_default() += (agreed - healed) / 1000;
        }
    }
}
