//! What a link is sent, and in which order: control frames, then outcomes, then answers to fetches, then its snapshot or its feed.
//! Outcomes and the feed up to them leave in one write, unless the client is far behind.

use std::sync::Arc;

use bytes::Bytes;

use voter_mesh::ids::{LogIndex, Time};
use voter_mesh::mutant;

use crate::wire::{REPLIES_MAX, ServerFrame, WireReply, encode_replies, kind};

use super::Room;
use super::cold::Framed;
use super::link::{Delivery, Link, LinkId, List, Phase};

/// Whether a link has more to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transmit {
    /// Yes: ask again when the socket has taken this.
    More,
    /// No: it will be woken.
    Idle,
    /// No, and never again: close the socket when it has taken this.
    CloseAfter,
}

/// Messages up to a budget; the one that exceeds it is the last.
struct Out<'a> {
    messages: &'a mut Vec<Bytes>,
    left: usize,
}

impl Out<'_> {
    fn full(&self) -> bool {
        self.left == 0
    }

    fn push(&mut self, message: Bytes) {
        self.left = self.left.saturating_sub(message.len());
        self.messages.push(message);
    }
}

impl Room {
    /// What to write to this link now: whole WebSocket messages, together about `bytes_max` (at least one, however large). Feed
    /// messages are shared between links. An unknown link is to be closed.
    pub fn poll_transmit(&mut self, id: LinkId, bytes_max: usize, out: &mut Vec<Bytes>, now: Time) -> Transmit {
        let message_bytes_max = self.options.limits.message_bytes_max;
        let mut out = Out { messages: out, left: bytes_max.max(1) };
        let Some(link) = self.links.get(id) else { return Transmit::CloseAfter };
        put_queued(link, &mut out, message_bytes_max);
        if out.full() {
            // Asked again, a link with nothing left says so.
            return Transmit::More;
        }
        if let Phase::Closing(_) = link.phase {
            return Transmit::CloseAfter;
        }
        if self.put_fetched(id, &mut out) || self.put_delivery(id, &mut out, now) { Transmit::More } else { Transmit::Idle }
    }

    /// Answers fetches; whether some are left.
    fn put_fetched(&mut self, id: LinkId, out: &mut Out<'_>) -> bool {
        while let Some(link) = self.links.get(id)
            && let Some((from, to)) = link.fetches.front_mut()
        {
            if out.full() {
                return true;
            }
            let (start, last) = (*from, *to);
            let framed = self.frame_at(kind::RUNS, start, last);
            let Some(link) = self.links.get(id) else { return false };
            let message = match framed {
                Framed::Message(message, next) => {
                    if next > last {
                        link.fetches.pop_front();
                    } else if let Some((from, _)) = link.fetches.front_mut() {
                        *from = next;
                    }
                    message
                }
                // It must not hold up the feed.
                Framed::Unread => {
                    self.want_runs(start, id);
                    return false;
                }
                Framed::Gone => {
                    link.fetches.pop_front();
                    ServerFrame::Trimmed { first: self.first() }.encode()
                }
                // This server has not come as far: an answer without blocks says so.
                Framed::End => {
                    link.fetches.pop_front();
                    ServerFrame::Runs(Bytes::new()).encode()
                }
            };
            out.push(message);
        }
        false
    }

    /// Sends from the link's snapshot or feed; whether there is more.
    fn put_delivery(&mut self, id: LinkId, out: &mut Out<'_>, now: Time) -> bool {
        let Some(link) = self.links.get(id) else { return false };
        if let Delivery::Snapshot { state, offset, .. } = &link.delivery {
            let (state, mut at) = (Arc::clone(state), *offset);
            loop {
                if out.full() {
                    return true;
                }
                let Some((message, next)) = self.state_chunk(&state, at, id) else { return false };
                out.push(message);
                at = next;
                let Some(link) = self.links.get(id) else { return false };
                if at >= state.bytes {
                    link.delivery = Delivery::Feed { cursor: state.index.next() };
                    break;
                }
                if let Delivery::Snapshot { offset, progress, .. } = &mut link.delivery {
                    (*offset, *progress) = (at, now);
                }
            }
        }
        let Some(link) = self.links.get(id) else { return false };
        match &mut link.delivery {
            Delivery::Feed { cursor } => {
                let mut at = *cursor;
                while at <= self.feed.tail().0 {
                    if out.full() {
                        return true;
                    }
                    match self.frame_at(kind::FEED, at, LogIndex(u64::MAX)) {
                        Framed::Message(message, next) => {
                            at = next;
                            if let Some(link) = self.links.get(id) {
                                link.delivery = Delivery::Feed { cursor: at };
                            }
                            out.push(message);
                        }
                        Framed::End => break,
                        Framed::Unread | Framed::Gone if mutant!("feed_skips_on_wrap") => at = self.feed.first(),
                        Framed::Unread => {
                            self.want_runs(at, id);
                            return false;
                        }
                        Framed::Gone => {
                            self.catch_up(id);
                            return false;
                        }
                    }
                }
                self.links.enlist(List::Parked, id);
            }
            Delivery::Commit { sent } => {
                let (index, chain) = self.commit;
                if *sent < index {
                    *sent = index;
                    out.push(ServerFrame::Commit { index, chain }.encode());
                }
                if *sent < self.feed.tail().0 && self.commit_due.is_none() {
                    self.commit_due = Some(self.commit_next.max(now));
                }
                self.links.enlist(List::Standby, id);
            }
            Delivery::Snapshot { .. } | Delivery::Nothing => {}
        }
        false
    }
}

/// Control frames and outcomes.
fn put_queued(link: &mut Link, out: &mut Out<'_>, message_bytes_max: usize) {
    while !out.full()
        && let Some(frame) = link.outbox.pop_front()
    {
        link.queued_bytes = link.queued_bytes.saturating_sub(frame.len());
        out.push(frame);
    }
    let mut taken = 0;
    while !out.full() && taken < link.replies.len() {
        let rest = &link.replies[taken..];
        let (mut count, mut bytes) = (0, 0);
        for reply in rest.iter().take(REPLIES_MAX) {
            let more = reply.wire_bytes_max();
            // The frame's own head is small against the difference between a reply's limit and a message's.
            if count > 0 && bytes + more > (message_bytes_max - message_bytes_max / 64).min(out.left.max(1)) {
                break;
            }
            (count, bytes) = (count + 1, bytes + more);
        }
        out.push(encode_replies(&rest[..count]));
        link.queued_bytes = link.queued_bytes.saturating_sub(rest[..count].iter().map(WireReply::wire_bytes_max).sum());
        taken += count;
    }
    if taken == link.replies.len() {
        // An idle link keeps no memory for what it once had to send.
        link.replies = Vec::new();
    } else {
        link.replies.drain(..taken);
    }
    if link.outbox.is_empty() && link.outbox.capacity() > 8 {
        link.outbox = std::collections::VecDeque::new();
    }
}
