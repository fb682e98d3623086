//! Sockets against a peer of bytes: what is written stays whole and in order, however little the other side takes, and what a client
//! makes wait is bounded.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use tokio_tungstenite::tungstenite::protocol::frame::coding::Control;
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameSocket};

use super::*;

/// The other end: what it sent, what it got, and how much more it takes.
#[derive(Clone, Default)]
struct Peer(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    sent: VecDeque<u8>,
    got: Vec<u8>,
    room: usize,
    /// Bytes of one write that are taken at most.
    taken_max: usize,
    writes: usize,
}

impl AsyncRead for Peer {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let sent = &mut self.0.lock().unwrap().sent;
        if sent.is_empty() {
            return Poll::Pending;
        }
        let bytes: Vec<u8> = sent.drain(..sent.len().min(buffer.remaining())).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let ends = &mut *self.0.lock().unwrap();
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(ends.room.min(ends.taken_max)).collect();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        ends.room -= bytes.len();
        ends.writes += 1;
        ends.got.extend(&bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Peer {
    fn taking(room: usize, taken_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Ends { room, taken_max, ..Ends::default() })))
    }

    fn send(&self, opcode: OpCode, body: &[u8]) {
        self.0.lock().unwrap().sent.extend(frame(opcode, body));
    }

    /// The whole frames that it got, and nothing else.
    fn frames(&self) -> Vec<(OpCode, Bytes)> {
        let mut got = FrameSocket::new(Cursor::new(std::mem::take(&mut self.0.lock().unwrap().got)));
        let mut frames = Vec::new();
        while let Some(frame) = got.read(None).unwrap() {
            let opcode = frame.header().opcode;
            assert!(frame.header().is_final && frame.header().mask.is_none());
            frames.push((opcode, Frame::into_payload(frame)));
        }
        assert!(got.into_inner().1.is_empty());
        frames
    }
}

const BINARY: OpCode = OpCode::Data(Data::Binary);
const PING: OpCode = OpCode::Control(Control::Ping);
const PONG: OpCode = OpCode::Control(Control::Pong);

/// A client's frame, whose mask leaves every byte as it is.
fn frame(opcode: OpCode, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
    header.format(body.len() as u64, &mut bytes).unwrap();
    bytes.extend(body);
    bytes
}

fn limits() -> ServerLimits {
    ServerLimits { socket_read_bytes: 1_000, ..ServerLimits::default() }
}

fn socket(peer: &Peer, unread: &[u8]) -> Socket {
    Socket::new(Box::new(peer.clone()), unread, &limits())
}

fn read(socket: &mut Socket, ahead: &mut ReadAhead) -> Poll<Result<Message, tungstenite::Error>> {
    let message = socket.poll_message(ahead, &mut Context::from_waker(Waker::noop()));
    socket.stop_reading(ahead);
    message
}

fn flush(socket: &mut Socket) -> Poll<io::Result<()>> {
    socket.poll_flush(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn frames_stay_whole_and_in_order_however_little_is_taken_at_once() {
    for taken_max in [1, 3, 1_000, usize::MAX] {
        let (peer, mut ahead) = (Peer::taking(0, taken_max), ReadAhead::new(&limits()));
        let mut socket = socket(&peer, &[]);
        let bodies: Vec<Bytes> =
            [0, 1, 125, 126, 300, 65_535, 65_536].iter().map(|length| Bytes::from(vec![*length as u8; *length])).collect();
        let mut expected = Vec::new();
        for (number, body) in bodies.iter().enumerate() {
            socket.push(body.clone());
            expected.push((BINARY, body.clone()));
            if number == 3 {
                peer.send(PING, b"there?");
                assert!(matches!(read(&mut socket, &mut ahead), Poll::Ready(Ok(Message::Ping(_)))));
                assert!(read(&mut socket, &mut ahead).is_pending());
                expected.push((PONG, Bytes::from_static(b"there?")));
            }
        }
        while flush(&mut socket).is_pending() {
            peer.0.lock().unwrap().room += 1_999;
        }
        assert_eq!(peer.frames(), expected, "{taken_max}");
        assert!(socket.is_flushed());
    }
}

#[test]
fn many_messages_leave_in_one_write() {
    let peer = Peer::taking(usize::MAX, usize::MAX);
    let mut socket = socket(&peer, &[]);
    for number in 0..PIECES_PER_WRITE_MAX {
        socket.push(vec![number as u8; 100].into());
    }
    assert!(flush(&mut socket).is_ready());
    assert_eq!(peer.0.lock().unwrap().writes, 1);
    assert_eq!(peer.frames().len(), PIECES_PER_WRITE_MAX);
}

#[test]
fn what_was_read_behind_the_request_comes_first_and_what_was_read_ahead_is_kept() {
    let (peer, mut ahead) = (Peer::default(), ReadAhead::new(&limits()));
    let first = frame(BINARY, b"first");
    let mut socket = socket(&peer, &first[..4]);
    peer.0.lock().unwrap().sent.extend(&first[4..]);
    let bodies: Vec<Vec<u8>> = (1..100_u8).map(|number| vec![number; usize::from(number) * 9]).collect();
    bodies.iter().for_each(|body| peer.send(BINARY, body));
    let mut messages = Vec::new();
    // Another socket reads between any two messages of this one.
    while let Poll::Ready(message) = read(&mut socket, &mut ahead) {
        messages.push(message.unwrap().into_data());
        ahead.buffer.fill(0xee);
    }
    assert_eq!(messages[0], b"first".as_slice());
    assert_eq!(messages[1..], bodies);
}

#[test]
fn a_client_that_pings_and_does_not_read_makes_nothing_grow_and_is_answered_when_it_reads() {
    let (peer, mut ahead) = (Peer::taking(0, usize::MAX), ReadAhead::new(&limits()));
    let mut socket = socket(&peer, &[]);
    for number in 0..10_000_u32 {
        peer.send(PING, &[number.to_le_bytes(); 25].concat());
        assert!(matches!(read(&mut socket, &mut ahead), Poll::Ready(Ok(Message::Ping(_)))));
    }
    assert!(read(&mut socket, &mut ahead).is_pending());
    assert!(socket.queue.bytes <= ANSWER_BEHIND_BYTES_MAX + ANSWERS_BYTES_MAX, "{}", socket.queue.bytes);
    assert!(socket.has_refused());
    peer.0.lock().unwrap().room = usize::MAX;
    // The latest waits behind those that were laid out before there was too much.
    for _ in 0..2 {
        assert!(flush(&mut socket).is_ready());
        assert!(read(&mut socket, &mut ahead).is_pending());
    }
    assert!(flush(&mut socket).is_ready());
    let pongs = peer.frames();
    assert!(pongs.iter().all(|(opcode, _)| *opcode == PONG) && pongs.len() < 100, "{}", pongs.len());
    // RFC 6455: of pings that came meanwhile, the latest is the one to answer.
    assert_eq!(pongs.last().unwrap().1, [9_999_u32.to_le_bytes(); 25].concat());
}

#[test]
fn a_goodbye_stands_behind_all_that_was_queued() {
    let peer = Peer::taking(0, 10);
    let mut socket = socket(&peer, &[]);
    socket.push(Bytes::from(vec![1; 100_000]));
    let mut cx = Context::from_waker(Waker::noop());
    while socket.poll_close(&mut cx).is_pending() {
        peer.0.lock().unwrap().room += 10_000;
    }
    let kinds: Vec<_> = peer.frames().into_iter().map(|(opcode, body)| (opcode, body.len())).collect();
    assert_eq!(kinds, [(BINARY, 100_000), (OpCode::Control(Control::Close), 0)]);
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_is_held() {
    let (peer, mut ahead) = (Peer::default(), ReadAhead::new(&limits()));
    let mut socket = socket(&peer, &[]);
    peer.send(BINARY, &vec![0; limits().message_bytes_max + 1]);
    assert!(matches!(read(&mut socket, &mut ahead), Poll::Ready(Err(tungstenite::Error::Capacity(_)))));
    assert!(socket.unread.len() <= limits().socket_read_bytes);
}
