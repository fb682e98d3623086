//! A call on its way through the core. Dropping it is the same as its deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use voter_mesh::ids::Time;

use crate::core::{CallId, Core};
use crate::driver::{Shared, Wait};

/// Resolves with the answer; `None` only if the driver was torn down before it could give one.
pub(crate) struct Call<T> {
    shared: Arc<Shared>,
    answer: oneshot::Receiver<T>,
    /// Taken once it is answered.
    id: Option<CallId>,
}

impl<T> Call<T> {
    /// Makes a call; `make` gets the present.
    pub(crate) fn new(shared: &Arc<Shared>, make: impl FnOnce(&mut Core<Wait>, oneshot::Sender<T>, Time) -> CallId) -> Self {
        let (waiter, answer) = oneshot::channel();
        let id = shared.with_core(|core, now| make(core, waiter, now));
        Self { shared: Arc::clone(shared), answer, id: Some(id) }
    }
}

impl<T> Future for Call<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        self.id = None;
        Poll::Ready(answer.ok())
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            // An answer that was sent and is never looked at finds its way back through the closed channel.
            self.answer.close();
            self.shared.with_core(|core, _| core.cancel(id));
        }
    }
}
