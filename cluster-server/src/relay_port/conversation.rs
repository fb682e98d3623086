//! One client, from its first frame to its last. Its task reads whenever there is something to read; what the room has for it is
//! written by whoever comes first: the voter's own pass over all woken links ([`Conversation::write`]), or its task, where the socket
//! did not take everything at once. So a client that does not read is still heard, and one that reads costs no turn of its own.

use std::cell::RefCell;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use relay::room::{LinkId, Transmit};
use relay::wire::Code;
use tokio_tungstenite::tungstenite::{self, Message, error::ProtocolError};
use tracing::debug;

use super::socket::{ReadAhead, Socket};
use crate::node::Node;

/// See the module.
pub(crate) struct Conversation(RefCell<State>);

struct State {
    socket: Socket,
    /// Wakes its task; none before that has run.
    task: Option<Waker>,
    /// The room may have something to write.
    ready: bool,
    /// What comes is not read any more.
    deaf: bool,
    /// The room's last word is queued.
    closing: bool,
    over: bool,
}

impl Conversation {
    pub(super) fn new(socket: Socket) -> Self {
        Self(RefCell::new(State { socket, task: None, ready: false, deaf: false, closing: false, over: false }))
    }

    /// The room has something to write: writes one turn's worth as far as the socket takes it. The rest is its task's.
    pub(crate) fn write(&self, node: &Node, link: LinkId) {
        let mut state = self.0.borrow_mut();
        state.ready = true;
        let Some(task) = state.task.take() else { return };
        let mut cx = Context::from_waker(&task);
        state.over |= state.poll_turn(node, link, &mut cx).is_ready();
        if state.over || state.ready {
            task.wake_by_ref();
        }
        state.task = Some(task);
    }

    /// Makes its task drop the socket as it is.
    pub(crate) fn abort(&self) {
        let mut state = self.0.borrow_mut();
        state.over = true;
        if let Some(task) = &state.task {
            task.wake_by_ref();
        }
    }

    /// Reads and writes until it is over.
    pub(super) fn poll(&self, node: &Node, link: LinkId, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        // Before anything is asked: a wake from here on must not be missed, wherever this task stops.
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            task => *task = Some(cx.waker().clone()),
        }
        if state.over || state.poll_write(node, link, cx).is_ready() {
            return Poll::Ready(());
        }
        if state.closing || state.deaf {
            return Poll::Pending;
        }
        let ahead = &mut *node.read_ahead().borrow_mut();
        let read = state.poll_read(node, link, ahead, cx);
        state.socket.stop_reading(ahead);
        if read.is_ready() { read } else { state.poll_answer(cx) }
    }

    /// Queues a last word for a client that is no link of the room's.
    pub(super) fn refuse(&self, message: Bytes) {
        self.0.borrow_mut().socket.push(message);
    }

    /// Whether the client is to be told goodbye.
    pub(super) fn is_closing(&self) -> bool {
        self.0.borrow().closing
    }

    pub(super) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Whether or not it heard it, it is over.
        self.0.borrow_mut().socket.poll_close(cx).map(drop)
    }
}

impl State {
    /// Writes what the room has. Ready when the link is to be closed or has broken.
    fn poll_write(&mut self, node: &Node, link: LinkId, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.poll_turn(node, link, cx).is_ready() {
                return Poll::Ready(());
            }
            if !self.socket.is_flushed() || !self.ready {
                return Poll::Pending;
            }
        }
    }

    /// As [`State::poll_write`], and asks the room at most once.
    fn poll_turn(&mut self, node: &Node, link: LinkId, cx: &mut Context<'_>) -> Poll<()> {
        match self.socket.poll_flush(cx) {
            Poll::Ready(Ok(())) if self.closing => return Poll::Ready(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
        if !std::mem::take(&mut self.ready) {
            return Poll::Pending;
        }
        match node.link_transmit(link, |message| self.socket.push(message)) {
            Transmit::More => self.ready = true,
            Transmit::Idle => {}
            Transmit::CloseAfter => self.closing = true,
        }
        match self.socket.poll_flush(cx) {
            Poll::Ready(Ok(())) if !self.closing => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Hears what the client says. Ready when the link has broken.
    fn poll_read(&mut self, node: &Node, link: LinkId, ahead: &mut ReadAhead, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..node.limits().frames_per_turn_max {
            match ready!(self.socket.poll_message(ahead, cx)) {
                Ok(Message::Binary(bytes)) => node.link_frame(link, bytes),
                Ok(Message::Text(_)) => node.link_frame(link, Bytes::new()),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Close(_)) => return Poll::Ready(()),
                Err(error) => {
                    debug!(%error, ?link, "link broke");
                    let Some(code) = violation(&error) else { return Poll::Ready(()) };
                    // It may still be told why.
                    self.deaf = true;
                    node.link_violated(link, code);
                    return Poll::Pending;
                }
            }
        }
        // More may be there: let the others have a turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what was answered while reading. Ready when the link has broken.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.socket.poll_flush(cx)).is_err() {
            return Poll::Ready(());
        }
        if self.socket.has_refused() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// What a client did wrong whose socket cannot be read on; none if the socket itself broke.
fn violation(error: &tungstenite::Error) -> Option<Code> {
    match error {
        tungstenite::Error::Capacity(_) => Some(Code::TooLarge),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_) => Some(Code::Malformed),
        _ => None,
    }
}
