//! A client's WebSocket after its handshake. Tungstenite understands what comes in and answers pings; what the room sends passes it by:
//! behind a header, as shared bytes, in as few writes as there can be. So a message that thousands of clients get is never copied
//! here, and a client to whom nothing happens costs a few hundred bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::host::{JOINED_BYTES_MAX, Stream};
use crate::limits::ServerLimits;

/// Bytes that each socket keeps to put a message together; what is longer gets them when it comes.
const MESSAGE_BYTES: usize = 256;

/// Bytes that may wait to be written before pings are not answered any more; and bytes of answers that wait then.
const ANSWER_BEHIND_BYTES_MAX: usize = 4 << 10;
const ANSWERS_BYTES_MAX: usize = 1 << 10;

/// Bytes of the longest header that a server writes: two, and eight of length.
const HEADER_BYTES_MAX: usize = 10;

/// Pieces that go into one write of more: enough for a turn of ordinary ones.
const PIECES_PER_WRITE_MAX: usize = 32;

/// Pieces for which a queue keeps its memory when it is empty.
const PIECES_KEPT_MAX: usize = 4;

/// Where sockets read to, one after the other: none of them is given memory of its own for what it might read.
pub(crate) struct ReadAhead {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl ReadAhead {
    pub(crate) fn new(limits: &ServerLimits) -> Self {
        Self { buffer: vec![0; limits.socket_read_bytes.max(1)].into(), from: 0, to: 0 }
    }
}

/// See the module.
pub(super) struct Socket {
    stream: Stream,
    protocol: WebSocketContext,
    /// Read, and not understood yet.
    unread: Bytes,
    queue: Queue,
}

impl Socket {
    /// On a stream of which `unread` was already read.
    pub(super) fn new(stream: Stream, unread: &[u8], limits: &ServerLimits) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(MESSAGE_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(ANSWERS_BYTES_MAX)
            .max_message_size(Some(limits.message_bytes_max))
            .max_frame_size(Some(limits.message_bytes_max));
        let protocol = WebSocketContext::new(Role::Server, Some(config));
        // A copy: otherwise it would keep the whole buffer that it was read into.
        Self { stream, protocol, unread: Bytes::copy_from_slice(unread), queue: Queue::default() }
    }

    /// The next message. Before another socket reads ahead, [`Socket::stop_reading`].
    pub(super) fn poll_message(
        &mut self,
        ahead: &mut ReadAhead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Message, tungstenite::Error>> {
        let Self { stream, protocol, unread, queue } = self;
        pending_if_blocked(protocol.read(&mut Wire { stream, unread, ahead: Some(ahead), queue, cx }))
    }

    /// Keeps what was read ahead and not understood.
    pub(super) fn stop_reading(&mut self, ahead: &mut ReadAhead) {
        if ahead.from < ahead.to {
            self.unread = Bytes::copy_from_slice(&ahead.buffer[ahead.from..ahead.to]);
            (ahead.from, ahead.to) = (0, 0);
        }
    }

    /// Queues a message for [`Socket::poll_flush`].
    pub(super) fn push(&mut self, message: Bytes) {
        self.queue.push(Piece::message(message));
    }

    /// Whether nothing is queued.
    pub(super) fn is_flushed(&self) -> bool {
        self.queue.pieces.is_empty()
    }

    /// Writes all that is queued. An error is final.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.poll_write(&mut self.stream, cx)
    }

    /// Whether an answer of tungstenite's found too much in the queue: it comes with the next [`Socket::poll_message`].
    pub(super) fn has_refused(&mut self) -> bool {
        std::mem::take(&mut self.queue.refused)
    }

    /// Says goodbye behind all that is queued.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        ready!(self.poll_flush(cx))?;
        let Self { stream, protocol, unread, queue } = self;
        // What waits for an empty queue is taken now.
        protocol.close(&mut Wire { stream, unread, ahead: None, queue, cx }, None)?;
        self.poll_flush(cx).map_err(tungstenite::Error::Io)
    }
}

fn pending_if_blocked<T>(result: Result<T, tungstenite::Error>) -> Poll<Result<T, tungstenite::Error>> {
    match result {
        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// A socket as tungstenite sees it for as long as one call lasts.
struct Wire<'a, 'b> {
    stream: &'a mut Stream,
    unread: &'a mut Bytes,
    /// None where nothing is to be read.
    ahead: Option<&'a mut ReadAhead>,
    queue: &'a mut Queue,
    cx: &'a mut Context<'b>,
}

impl Read for Wire<'_, '_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.unread.has_remaining() {
            let bytes = to.len().min(self.unread.len());
            self.unread.copy_to_slice(&mut to[..bytes]);
            return Ok(bytes);
        }
        let Some(ahead) = self.ahead.as_deref_mut() else { return Err(io::ErrorKind::WouldBlock.into()) };
        if ahead.from == ahead.to {
            let mut buffer = ReadBuf::new(&mut ahead.buffer);
            match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buffer) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
            }
            (ahead.from, ahead.to) = (0, buffer.filled().len());
        }
        let bytes = to.len().min(ahead.to - ahead.from);
        to[..bytes].copy_from_slice(&ahead.buffer[ahead.from..ahead.from + bytes]);
        ahead.from += bytes;
        Ok(bytes)
    }
}

impl Write for Wire<'_, '_> {
    /// Takes whole frames: tungstenite hands over all that it has, and nothing is in the way between two of its calls.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.queue.bytes > ANSWER_BEHIND_BYTES_MAX {
            self.queue.refused = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.queue.push(Piece::laid_out(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A frame, or several that tungstenite laid out.
struct Piece {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    body: Bytes,
}

impl Piece {
    /// One whole binary message.
    fn message(body: Bytes) -> Self {
        let header = FrameHeader { opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
        let mut piece = Self { header: [0; HEADER_BYTES_MAX], header_bytes: 0, body };
        let mut rest = &mut piece.header[..];
        header.format(piece.body.len() as u64, &mut rest).expect("a header without a mask fits");
        let left = rest.len();
        piece.header_bytes = (HEADER_BYTES_MAX - left) as u8;
        piece
    }

    fn laid_out(bytes: &[u8]) -> Self {
        Self { header: [0; HEADER_BYTES_MAX], header_bytes: 0, body: Bytes::copy_from_slice(bytes) }
    }

    fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_bytes)]
    }

    fn len(&self) -> usize {
        usize::from(self.header_bytes) + self.body.len()
    }
}

/// What is to be written, in order. Its owner bounds what it pushes; answers to pings are bounded here.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written already.
    written: usize,
    /// Bytes that are not written yet.
    bytes: usize,
    refused: bool,
}

impl Queue {
    fn push(&mut self, piece: Piece) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    fn poll_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pieces.is_empty() {
            let stream = Pin::new(&mut *stream);
            let written = if self.bytes <= JOINED_BYTES_MAX {
                let (mut joined, mut length) = ([0; JOINED_BYTES_MAX], 0);
                for part in self.parts(usize::MAX) {
                    joined[length..length + part.len()].copy_from_slice(part);
                    length += part.len();
                }
                stream.poll_write(cx, &joined[..length])
            } else {
                let (mut slices, mut count) = ([IoSlice::new(&[]); 2 * PIECES_PER_WRITE_MAX], 0);
                for part in self.parts(PIECES_PER_WRITE_MAX) {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
                stream.poll_write_vectored(cx, &slices[..count])
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.advance(bytes),
            }
        }
        if self.pieces.capacity() > PIECES_KEPT_MAX {
            self.pieces = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }

    /// What the first `pieces_max` pieces still have to be written, at most two parts of each.
    fn parts(&self, pieces_max: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.written;
        let parts = self.pieces.iter().take(pieces_max).flat_map(|piece| [piece.header(), &piece.body]);
        parts.filter_map(move |part| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            (skipped < part.len()).then(|| &part[skipped..])
        })
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.written += bytes;
        while let Some(first) = self.pieces.front()
            && first.len() <= self.written
        {
            self.written -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
