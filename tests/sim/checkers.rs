//! What must hold of every run, one file per property. Each reads the record as it grows, keeps only what it needs, and says at the end
//! what it could not decide: undecided is never a pass.
//!
//! They share one thing, the committed history and what its entries come to by the models (`history`, `model`), which are written from
//! the design alone and use none of the servers' code but the decoders of entries and commands. A fault in those is seen by golden bytes
//! and round trips, not here.

use voter_mesh::run::Run;
use voter_mesh::session::SessionLimits;

use super::record::{Event, Report, Sink, Violation, What};

mod acknowledged;
mod bounds;
mod calls;
mod effects;
mod election;
mod hashes;
mod history;
mod leader_completeness;
mod learners;
mod linearizability;
mod liveness;
mod log_matching;
mod model;
mod oracle;
mod session_reads;
mod sessions;
pub mod spec;
pub mod state_sets;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod verdicts;
pub mod wing_gong;

use history::History;

/// Violations that are kept of each checker: the first ones tell the story.
const KEPT_MAX: usize = 3;

/// What the checkers must know of the run.
#[derive(Clone, Copy, Debug)]
pub struct CheckerOptions {
    /// The longest election timeout that a server draws. After healing a leader must be known within ten of them.
    pub election_timeout_ms: u64,
    /// Limits of the session table, as the servers have them.
    pub sessions: SessionLimits,
    /// Clients that a server may have attached.
    pub clients_max: usize,
    /// Steps that the search for one key's linearization may take.
    pub steps_max: u64,
    /// Of how many keys' histories one is checked by the second algorithm too; 0 for none.
    pub second_look_every: u64,
    /// Whether the mesh and the disks are seen. Real processes show neither.
    pub inside: bool,
}

impl Default for CheckerOptions {
    fn default() -> Self {
        Self {
            election_timeout_ms: 2_000,
            sessions: SessionLimits::default(),
            clients_max: 10_000,
            steps_max: 2_000_000,
            second_look_every: 20,
            inside: true,
        }
    }
}

/// One property.
trait Checker: Send {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// The next event; the history holds all that it tells.
    fn observe(&mut self, _event: &Event, _history: &History, _wrong: &mut Wrong<'_>) {}

    /// The next run of the history, which the event in progress has shown to be committed.
    fn committed(&mut self, _run: &Run, _history: &History, _wrong: &mut Wrong<'_>) {}

    /// The run is over.
    fn finish(&mut self, _history: &History, _wrong: &mut Wrong<'_>, _report: &mut Report) {}
}

/// Where a checker says what is wrong.
struct Wrong<'a> {
    checker: &'static str,
    sequence: u64,
    at_us: u64,
    violations: &'a mut Vec<Violation>,
}

impl Wrong<'_> {
    /// This is wrong, and here is why.
    fn say(&mut self, text: impl FnOnce() -> String) {
        let Self { checker, sequence, at_us, .. } = *self;
        if self.violations.iter().filter(|known| known.checker == checker).count() < KEPT_MAX {
            self.violations.push(Violation { checker, sequence, at_us, text: text() });
        }
    }
}

/// All checkers, as the sink of a record.
pub struct Checkers {
    history: History,
    checkers: Vec<Box<dyn Checker>>,
    violations: Vec<Violation>,
}

impl std::fmt::Debug for Checkers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkers").field("violations", &self.violations).finish_non_exhaustive()
    }
}

impl Checkers {
    /// Checkers for one run.
    #[must_use]
    pub fn new(options: CheckerOptions) -> Self {
        let checkers: Vec<Box<dyn Checker>> = vec![
            Box::<election::Election>::default(),
            Box::<log_matching::LogMatching>::default(),
            Box::<leader_completeness::LeaderCompleteness>::default(),
            Box::new(acknowledged::Acknowledged::new(&options)),
            Box::<effects::Effects>::default(),
            Box::<sessions::Sessions>::default(),
            Box::<verdicts::VerdictBits>::default(),
            Box::<oracle::Oracle>::default(),
            Box::new(linearizability::Linearizability::new(&options)),
            Box::<session_reads::SessionReads>::default(),
            Box::<learners::Learners>::default(),
            Box::<hashes::Hashes>::default(),
            Box::new(bounds::Bounds::new(&options)),
            Box::new(liveness::Liveness::new(&options)),
        ];
        Self { history: History::new(options.sessions), checkers, violations: Vec::new() }
    }

    /// What must hold of consensus alone: for voters without clients, verdicts and statuses.
    #[must_use]
    pub fn of_consensus() -> Self {
        let checkers: Vec<Box<dyn Checker>> = vec![
            Box::<election::Election>::default(),
            Box::<log_matching::LogMatching>::default(),
            Box::<leader_completeness::LeaderCompleteness>::default(),
        ];
        Self { history: History::new(SessionLimits::default()), checkers, violations: Vec::new() }
    }

    fn each(&mut self, sequence: u64, at_us: u64, mut act: impl FnMut(&mut dyn Checker, &History, &mut Wrong<'_>)) {
        let Self { history, checkers, violations } = self;
        for checker in checkers {
            let mut wrong = Wrong { checker: checker.name(), sequence, at_us, violations };
            act(checker.as_mut(), history, &mut wrong);
        }
    }
}

/// The property of the history itself: it is one. Servers commit the same runs in the same places, each continuing the one before.
const STATE_MACHINE_SAFETY: &str = "state-machine safety";

impl Sink for Checkers {
    fn observe(&mut self, event: &Event) {
        let (sequence, at_us) = (event.sequence, event.at_us);
        let gained = match &event.what {
            What::Mesh { message: voter_mesh::mesh::message::Message::Append { runs, .. }, .. } => {
                runs.iter().for_each(|run| self.history.appended(run));
                Vec::new()
            }
            What::Feed { server, run, .. } => self.history.committed(run).unwrap_or_else(|text| {
                let violations = &mut self.violations;
                let mut wrong = Wrong { checker: STATE_MACHINE_SAFETY, sequence, at_us, violations };
                wrong.say(|| format!("server {server}: {text}"));
                Vec::new()
            }),
            _ => Vec::new(),
        };
        for run in &gained {
            self.each(sequence, at_us, |checker, history, wrong| checker.committed(run, history, wrong));
        }
        self.history.calls.before(event);
        self.each(sequence, at_us, |checker, history, wrong| checker.observe(event, history, wrong));
        self.history.calls.after(event);
    }

    fn finish(&mut self, report: &mut Report) {
        if let Some(run) = self.history.gap() {
            let mut wrong = Wrong { checker: STATE_MACHINE_SAFETY, sequence: 0, at_us: 0, violations: &mut self.violations };
            let last = self.history.last();
            wrong.say(|| format!("undecided: nobody saw what was committed behind {last} and before {:?}", run.header()));
        }
        self.each(0, 0, |checker, history, wrong| checker.finish(history, wrong, report));
        *report.counts.entry("committed").or_default() += self.history.last().0;
        report.violations.append(&mut self.violations);
    }

    fn violated(&self) -> bool {
        !self.violations.is_empty()
    }
}
