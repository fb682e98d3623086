//! Verdict bits: every server's feed marks exactly those entries as effective that the models say took effect.
//!
//! So the bits are equal on all servers, whether they come from applying or from a file beside a segment; a learner, which sees nothing
//! else, applies what the servers did.

use bytes::Bytes;
use voter_mesh::ids::Seat;
use voter_mesh::run::{Run, RunHeader, Verdicts};

use super::calls::Waiting;
use super::{Checker, History, Wrong};
use crate::sim::record::{Event, What};

#[derive(Debug, Default)]
pub(super) struct VerdictBits {
    waiting: Waiting<(Seat, RunHeader, Bytes)>,
}

fn expected(run: &RunHeader, history: &History) -> Option<Verdicts> {
    let mut verdicts = Verdicts::clear(run.count);
    for offset in 0..run.count {
        if history.entry(run.first.plus(u64::from(offset)))?.fate.verdict() {
            verdicts.set(offset as usize);
        }
    }
    Some(verdicts)
}

impl VerdictBits {
    fn settle(&mut self, history: &History, wrong: &mut Wrong<'_>) {
        for (_, (server, run, told)) in self.waiting.ready(history.last()) {
            if let Some(expected) = expected(&run, history).filter(|expected| expected.as_bytes() != told) {
                wrong.say(|| format!("server {server} marks {run:?} with {told:x?}, and it is {:x?}", expected.as_bytes()));
            }
        }
    }
}

impl Checker for VerdictBits {
    fn name(&self) -> &'static str {
        "verdict bits"
    }

    fn observe(&mut self, event: &Event, history: &History, wrong: &mut Wrong<'_>) {
        if let What::Feed { server, run, verdicts } = &event.what {
            self.waiting.until(run.header().last(), (*server, *run.header(), verdicts.clone()));
            self.settle(history, wrong);
        }
    }

    fn committed(&mut self, _run: &Run, history: &History, wrong: &mut Wrong<'_>) {
        self.settle(history, wrong);
    }
}
