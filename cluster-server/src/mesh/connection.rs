//! One TCP connection after its handshake: reads frames, writes what waits in one call, notices silence, and ends politely.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use voter_mesh::mesh::bulk::WindowError;
use voter_mesh::mesh::codec::{CodecError, Control, FRAME_BYTES_MAX, split_frame};
use voter_mesh::mesh::links::Ending;

use super::{LinkFull, MeshCounters, MeshLimits};
use crate::host::{JOINED_BYTES_MAX, Stream};

/// Room that a read finds at least; under load one read brings many frames.
const READ_BYTES_MIN: usize = 64 << 10;

/// Pieces in one write.
const WRITE_PIECES_MAX: usize = 256;

/// How long this side waits, after it said goodbye, for what was sent to leave and for the peer to close.
const LINGER: Duration = Duration::from_millis(500);

/// Why what came on a connection ends it.
#[derive(Debug, Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Window(#[from] WindowError),
}

pub(super) struct Connection {
    outbox: RefCell<Outbox>,
    /// For the writer: there is something to write, or to end.
    wake: Notify,
    /// Why this side ends the connection. What comes after is ignored.
    ending: Cell<Option<Ending>>,
    /// For the watcher: `ending` is set.
    close: Notify,
    heard: Cell<Instant>,
    /// Whether anything was queued since the last keepalive was due.
    spoke: Cell<bool>,
    limits: MeshLimits,
    counters: Rc<RefCell<MeshCounters>>,
}

#[derive(Default)]
struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces` and in the write that is under way.
    bytes: usize,
}

impl Connection {
    pub(super) fn new(limits: MeshLimits, counters: Rc<RefCell<MeshCounters>>) -> Self {
        Self {
            outbox: RefCell::default(),
            wake: Notify::new(),
            ending: Cell::new(None),
            close: Notify::new(),
            heard: Cell::new(Instant::now()),
            spoke: Cell::new(false),
            limits,
            counters,
        }
    }

    /// Queues the pieces that `encode` appends. It is asked only when there is room; one frame may go over the limit.
    pub(super) fn send(&self, encode: impl FnOnce(&mut VecDeque<Bytes>) -> Result<usize, CodecError>) -> Result<(), LinkFull> {
        let mut outbox = self.outbox.borrow_mut();
        let full = outbox.bytes >= self.limits.outbox_bytes_max || outbox.pieces.len() >= self.limits.outbox_pieces_max;
        let refused = if full || self.ending.get().is_some() {
            true
        } else {
            match encode(&mut outbox.pieces) {
                Ok(bytes) => {
                    outbox.bytes += bytes;
                    false
                }
                Err(error) => {
                    tracing::error!(%error, "a message does not fit a frame and is dropped");
                    true
                }
            }
        };
        let mut counters = self.counters.borrow_mut();
        if refused {
            counters.sends_refused += 1;
            return Err(LinkFull);
        }
        counters.frames_out += 1;
        self.spoke.set(true);
        self.wake.notify_one();
        Ok(())
    }

    /// Queues a whole frame past every limit: the handshake's last, or a control frame.
    pub(super) fn push(&self, frame: Bytes) {
        let mut outbox = self.outbox.borrow_mut();
        outbox.bytes += frame.len();
        outbox.pieces.push_back(frame);
        self.wake.notify_one();
    }

    /// Ends the connection: goodbye goes out behind all that is queued. The first reason stands.
    pub(super) fn close(&self, ending: Ending) {
        if self.ending.get().is_none() {
            self.push(Control::Bye.frame());
            self.ending.set(Some(ending));
            self.close.notify_one();
        }
    }

    /// Runs the connection to its end. `received` is what the handshake has read too much.
    pub(super) async fn run(
        &self,
        stream: Stream,
        received: BytesMut,
        on_frame: impl FnMut(Bytes) -> Result<(), FrameError>,
    ) -> Ending {
        let (from, to) = split(stream);
        self.heard.set(Instant::now());
        let ending = tokio::select! {
            // What was received comes before everything that may end the connection.
            biased;
            ending = self.read(from, received, on_frame) => ending,
            ending = self.watch() => ending,
            never = self.write(to) => match never {},
        };
        // No send succeeds from here on.
        let ending = self.ending.get().unwrap_or(ending);
        self.ending.set(Some(ending));
        ending
    }

    async fn read(
        &self,
        mut from: ReadHalf<Stream>,
        mut received: BytesMut,
        mut on_frame: impl FnMut(Bytes) -> Result<(), FrameError>,
    ) -> Ending {
        loop {
            match self.take_frames(&mut received, &mut on_frame) {
                Ok(Some(bye)) => return bye,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "closing a mesh connection for what came on it");
                    self.counters.borrow_mut().malformed += 1;
                    self.close(Ending::Malformed);
                }
            }
            if self.ending.get().is_some() {
                received.clear();
            }
            if received.capacity() - received.len() < READ_BYTES_MIN / 4 {
                received.reserve(READ_BYTES_MIN);
            }
            match from.read_buf(&mut received).await {
                Ok(0) => return Ending::Eof,
                Ok(bytes) => {
                    self.heard.set(Instant::now());
                    self.counters.borrow_mut().bytes_in += bytes as u64;
                }
                Err(_) => return Ending::Reset,
            }
        }
    }

    /// Hands over every whole frame; `Some` if a goodbye was among them.
    fn take_frames(
        &self,
        received: &mut BytesMut,
        on_frame: &mut impl FnMut(Bytes) -> Result<(), FrameError>,
    ) -> Result<Option<Ending>, FrameError> {
        while self.ending.get().is_none() {
            let Some(frame) = split_frame(received, FRAME_BYTES_MAX)? else { break };
            match Control::of(&frame) {
                Some(Control::Bye) => return Ok(Some(Ending::Bye)),
                Some(Control::Alive) => {}
                None => {
                    self.counters.borrow_mut().frames_in += 1;
                    on_frame(frame)?;
                }
            }
        }
        Ok(None)
    }

    /// Ends the connection when this side wants it or the peer is silent; says that this side lives.
    async fn watch(&self) -> Ending {
        let mut due = interval(Duration::from_millis(self.limits.keepalive_ms));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.close.notified() => {
                    sleep(LINGER).await;
                    return Ending::Ours;
                }
                _ = due.tick() => {}
            }
            if self.heard.get().elapsed() >= Duration::from_millis(self.limits.silence_ms) {
                self.close(Ending::Silent);
            }
            if !self.spoke.replace(false) && self.outbox.borrow().bytes == 0 {
                self.push(Control::Alive.frame());
            }
        }
    }

    /// Writes. An error says nothing yet: what the peer sent before may still be read, and the reader finds the end.
    async fn write(&self, mut to: WriteHalf<Stream>) -> Infallible {
        if let Err(error) = self.write_all(&mut to).await {
            tracing::debug!(%error, "mesh connection cannot be written");
        }
        pending().await
    }

    async fn write_all(&self, to: &mut WriteHalf<Stream>) -> io::Result<()> {
        let (mut pieces, mut joined) = (VecDeque::new(), Vec::with_capacity(JOINED_BYTES_MAX));
        loop {
            std::mem::swap(&mut pieces, &mut self.outbox.borrow_mut().pieces);
            if pieces.is_empty() {
                if self.ending.get().is_some() {
                    return to.shutdown().await;
                }
                self.wake.notified().await;
                continue;
            }
            while !pieces.is_empty() {
                let waiting = self.outbox.borrow().bytes;
                let written = if waiting <= JOINED_BYTES_MAX {
                    joined.clear();
                    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                    to.write(&joined).await?
                } else {
                    let mut slices = [IoSlice::new(&[]); WRITE_PIECES_MAX];
                    let count = pieces.len().min(WRITE_PIECES_MAX);
                    for (slice, piece) in slices.iter_mut().zip(&pieces) {
                        *slice = IoSlice::new(piece);
                    }
                    to.write_vectored(&slices[..count]).await?
                };
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.counters.borrow_mut().bytes_out += written as u64;
                self.outbox.borrow_mut().bytes -= written;
                consume(&mut pieces, written);
            }
        }
    }
}

/// Drops the first `bytes` of `pieces`.
fn consume(pieces: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(piece) = pieces.front_mut() {
        if bytes < piece.len() {
            piece.advance(bytes);
            return;
        }
        bytes -= piece.len();
        pieces.pop_front();
    }
}
