//! Servers' `consensus` connections, seen as frames: what a tap is shown, and what may happen to a frame that cannot happen to bytes.
//!
//! Raft asks little of its network: messages may be lost, doubled and reordered. So whatever it and its reads rely on may be, here. Three
//! kinds rely on the order and completeness of a link instead, and are left to it: handshakes, forwarded proposals with their answers
//! (they are sent again when the link or the leader changes, and not before; they may be doubled), and reports of sessions (likewise).

use bytes::{BufMut, Bytes, BytesMut};
use serde_bytes::ByteArray;
use voter_mesh::ids::{ClusterId, DirectoryId, Epoch, Incarnation, RaftId, RoomId, RunIndex, Seat, Term};
use voter_mesh::mesh::codec::{FRAME_BYTES_MAX, split_frame};
use voter_mesh::mesh::handshake::LinkKind;

use super::random::Random;

/// What happens to frames that may be lost, of a thousand each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// Never arrive.
    pub lost_permille: u64,
    /// Arrive twice.
    pub doubled_permille: u64,
    /// Arrive behind the next one.
    pub swapped_permille: u64,
    /// Arrive a second time, many frames later.
    pub late_permille: u64,
}

/// Frames between a frame and its late copy.
const LATE_FRAMES: u64 = 40;

/// Kinds of frames (`voter_mesh::mesh::codec`) that may be lost, doubled and reordered: appends, heartbeats, votes and their answers, orders to
/// campaign, read rounds, commits, hashes.
const FREE: [u8; 11] = [1, 2, 3, 4, 5, 6, 7, 11, 12, 19, 20];

/// Kinds that may be doubled: forwarded proposals.
const DOUBLED: u8 = 8;

const HELLO: u8 = 64;

/// What comes out of a [`Framer`].
#[derive(Debug)]
pub enum Passed<'a> {
    /// A frame was sent, without its length field.
    Frame(&'a Bytes),
    /// Something happened to one.
    Fault(&'static str),
    /// Bytes for the other end.
    Bytes(Bytes),
}

/// One direction of a connection between servers.
#[derive(Debug, Default)]
pub struct Framer {
    received: BytesMut,
    /// Known from the first frame on.
    kind: Option<LinkKind>,
    /// The bytes are not frames: they are passed on as they are.
    is_opaque: bool,
    /// Waits for the next frame to overtake it.
    held: Option<Bytes>,
    /// A copy that waits for so many frames.
    late: Option<(Bytes, u64)>,
}

type Who = (Seat, Option<RaftId>, DirectoryId, Incarnation, Option<(ClusterId, Epoch, RoomId)>);
type Hello =
    ((LinkKind, ByteArray<32>, u64, Seat, Option<Incarnation>), Who, (String, u32, RunIndex, Term, RunIndex, bool, Vec<String>));

/// What a connection's first frame says: what it is for, and whose end sent it. `None`: it is no such frame.
#[must_use]
pub fn hello(frame: &[u8]) -> Option<(LinkKind, Option<RaftId>, Incarnation)> {
    // Kind, length of the head, magic, version; then a tuple.
    let body = frame.get(5 + 6..).filter(|_| frame.first() == Some(&HELLO))?;
    let (connection, who, _): Hello = ciborium::from_reader(body).ok()?;
    Some((connection.0, who.1, who.3))
}

impl Framer {
    /// Takes what was written and passes on what becomes of it.
    pub fn pass(&mut self, chunk: &[u8], rules: &Frames, random: &mut Random, out: &mut dyn FnMut(Passed<'_>)) {
        if self.is_opaque {
            return out(Passed::Bytes(Bytes::copy_from_slice(chunk)));
        }
        self.received.extend_from_slice(chunk);
        loop {
            match split_frame(&mut self.received, FRAME_BYTES_MAX) {
                Ok(Some(frame)) => self.pass_frame(frame, rules, random, out),
                Ok(None) => return,
                Err(_) => self.is_opaque = true,
            }
            if self.is_opaque || self.kind == Some(LinkKind::Bulk) {
                self.is_opaque = true;
                return out(Passed::Bytes(self.received.split().freeze()));
            }
        }
    }

    fn pass_frame(&mut self, frame: Bytes, rules: &Frames, random: &mut Random, out: &mut dyn FnMut(Passed<'_>)) {
        if self.kind.is_none() {
            self.kind = hello(&frame).map(|(kind, ..)| kind);
        }
        if self.kind != Some(LinkKind::Bulk) {
            out(Passed::Frame(&frame));
        }
        let kind = frame.first().copied().unwrap_or_default();
        let whole = whole(&frame);
        let mut drawn = |permille| permille > 0 && random.below(1000) < permille;
        let is_free = FREE.contains(&kind);
        if is_free && drawn(rules.lost_permille) {
            return out(Passed::Fault("frame_lost"));
        }
        if is_free && self.held.is_none() && drawn(rules.swapped_permille) {
            self.held = Some(whole);
            return out(Passed::Fault("frame_swapped"));
        }
        if is_free && self.late.is_none() && drawn(rules.late_permille) {
            self.late = Some((whole.clone(), LATE_FRAMES));
        }
        if (is_free || kind == DOUBLED) && drawn(rules.doubled_permille) {
            out(Passed::Bytes(whole.clone()));
            out(Passed::Fault("frame_doubled"));
        }
        out(Passed::Bytes(whole));
        if let Some(held) = self.held.take() {
            out(Passed::Bytes(held));
        }
        if let Some((late, left)) = self.late.take() {
            if left == 0 {
                out(Passed::Bytes(late));
                out(Passed::Fault("frame_late"));
            } else {
                self.late = Some((late, left - 1));
            }
        }
    }
}

/// A frame with its length field.
fn whole(frame: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(4 + frame.len());
    whole.put_u32_le(frame.len() as u32);
    whole.extend_from_slice(frame);
    whole.freeze()
}
