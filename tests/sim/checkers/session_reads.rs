//! What a client sees never goes back: every read, a local one too, stands at or behind all that this client was answered before (a call
//! returns when the own replica holds its effect), and at or behind all that an earlier read of this client has shown.
//!
//! From reads that say where their state stood; of the others the index oracle asks the same by their values.

use super::{Checker, History, Wrong};
use crate::sim::record::{Event, Operation, Returned, What};

#[derive(Debug, Default)]
pub(super) struct SessionReads;

impl Checker for SessionReads {
    fn name(&self) -> &'static str {
        "session reads"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        let What::Returned { call, outcome: Returned::Read { applied: Some(applied), .. } } = &event.what else { return };
        let Some(known) = history.calls.get(*call) else { return };
        let Operation::Read { consistency, .. } = known.operation else { return };
        if *applied < known.own.read {
            wrong.say(|| format!("read {} stands at {applied}; an earlier one of its client at {}", call.0, known.own.read));
        }
        if *applied < known.own.applied {
            let (number, answered) = (call.0, known.own.applied);
            wrong.say(|| format!("read {number} ({consistency:?}) stands at {applied}; its client was answered {answered} before"));
        }
    }
}
