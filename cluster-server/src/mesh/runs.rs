//! Questions for old runs on the `bulk` connection of a link: one at a time in each direction.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use voter_mesh::ids::RunIndex;
use voter_mesh::log::NoRuns;
use voter_mesh::mesh::bulk::{BulkFrame, TransferId};
use voter_mesh::run::Run;

use super::Inner;
use super::bulk::Bulk;
use super::link::Link;

/// What a question for runs led to.
pub type RunsAnswer = Result<Vec<Run>, NoRuns>;

/// The questions of one connection.
#[derive(Default)]
pub(super) struct Questions {
    counter: Cell<u32>,
    /// Ours that is under way.
    asking: RefCell<Option<(TransferId, oneshot::Sender<RunsAnswer>)>>,
    /// The peer's is being answered.
    answering: Cell<bool>,
}

impl Questions {
    /// The connection has ended: so has the question on it.
    pub(super) fn end(&self) {
        self.asking.borrow_mut().take();
    }

    /// The peer answered; only the question that is under way has an answer.
    pub(super) fn answered(&self, question: TransferId, answer: RunsAnswer) {
        if let Some((_, waiting)) = self.asking.borrow_mut().take_if(|(asking, _)| *asking == question) {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }
}

impl Bulk {
    /// Asks the peer for runs.
    pub(super) async fn fetch_runs(&self, first: RunIndex, last: RunIndex, deadline: Duration) -> RunsAnswer {
        let questions = &self.questions;
        if questions.asking.borrow().as_ref().is_some_and(|(_, waiting)| !waiting.is_closed()) {
            return Err(NoRuns::NotYet);
        }
        questions.counter.set(questions.counter.get().wrapping_add(1));
        let question = TransferId(questions.counter.get());
        let (answer, answered) = oneshot::channel();
        *questions.asking.borrow_mut() = Some((question, answer));
        if self.put(&BulkFrame::FetchRuns(question, first, last)).is_err() {
            return Err(NoRuns::NotYet);
        }
        timeout(deadline, answered).await.ok().and_then(Result::ok).unwrap_or(Err(NoRuns::NotYet))
    }

    /// The peer asks for runs. A second question before the answer to the first is put off.
    pub(super) fn runs_asked(
        self: &Rc<Self>,
        question: TransferId,
        first: RunIndex,
        last: RunIndex,
        inner: &Rc<Inner>,
        link: &Link,
    ) {
        if self.questions.answering.replace(true) {
            let _ = self.put(&BulkFrame::NoRuns(question, NoRuns::NotYet));
            return;
        }
        let (bulk, answer) = (Rc::clone(self), inner.owner.runs_asked(link.name().seat, first, last));
        inner.spawn(async move {
            let frame = match answer.await {
                Ok(runs) if runs.is_empty() => BulkFrame::NoRuns(question, NoRuns::Absent),
                Ok(runs) => BulkFrame::Runs(question, runs),
                Err(why) => BulkFrame::NoRuns(question, why),
            };
            bulk.questions.answering.set(false);
            let _ = bulk.put(&frame);
        });
    }
}
