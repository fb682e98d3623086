//! Committed runs that the client does not keep, asked of its server: one question at a time, its answer bounded.

use bytes::Bytes;
use voter_mesh::ids::{LogIndex, Time};
use voter_mesh::run::RunHeader;

use super::calls::Place;
use super::link::Say;
use super::{CallId, Core, Event, Waiters};
use crate::error::StreamError;
use crate::status::LinkError;

/// Bytes of committed runs that are collected for one answer, about.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// The answer to the fetch that is asked, as far as it came.
pub(super) struct Collected {
    pub(super) next: LogIndex,
    pub(super) to: LogIndex,
    pub(super) pieces: Vec<Bytes>,
    pub(super) bytes: usize,
    /// Enough came; the rest is dropped.
    pub(super) answered: bool,
}

/// The first and last entry of blocks of runs and verdicts.
fn span(blocks: &Bytes) -> Option<(LogIndex, LogIndex)> {
    let (mut rest, mut span) = (&blocks[..], None);
    while !rest.is_empty() {
        let header = RunHeader::decode(rest).ok()?;
        rest = rest.get(header.whole_bytes() + header.verdict_bytes()..)?;
        let first = span.map_or(header.first, |(first, _)| first);
        span = Some((first, header.last()));
    }
    span
}

pub(super) struct Fetching<F> {
    pub(super) call: CallId,
    pub(super) from: LogIndex,
    pub(super) to: LogIndex,
    pub(super) waiter: F,
}

impl<W: Waiters> Core<W> {
    /// Asks the entry server for committed runs that the client does not keep. Waits as long as it takes.
    pub fn fetch(&mut self, from: LogIndex, to: LogIndex, waiter: W::Fetch) -> CallId {
        let never = Time { monotonic_us: u64::MAX, ..Time::default() };
        let call = self.new_call(never, Place::Fetch);
        if let Some(why) = &self.closed {
            let result = Err(StreamError::Closed(why.clone()));
            self.events.push_back(Event::Fetched { waiter, result });
            self.forget_call(call);
            return call;
        }
        self.fetches.push_back(Fetching { call, from, to, waiter });
        self.ask_fetch();
        call
    }

    pub(super) fn ask_fetch(&mut self) {
        if self.fetching.is_some() {
            return;
        }
        let Some(fetch) = self.fetches.front() else { return };
        let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) else { return };
        link.say(Say::Fetch(fetch.from, fetch.to));
        self.fetching = Some(Collected { next: fetch.from, to: fetch.to, pieces: Vec::new(), bytes: 0, answered: false });
    }

    /// A piece of the answer to a fetch: blocks up to the last one asked for, or none if the server has no more.
    pub(super) fn fetched(&mut self, blocks: Bytes) -> Result<(), LinkError> {
        let Some(fetching) = &mut self.fetching else { return Ok(()) };
        let mut done = blocks.is_empty();
        if !done {
            let (first, last) = span(&blocks).ok_or(LinkError::Malformed("runs"))?;
            if !(first..=last).contains(&fetching.next) {
                return Err(LinkError::Malformed("runs out of place"));
            }
            fetching.next = last.next();
            done = last >= fetching.to;
            if !fetching.answered {
                fetching.bytes += blocks.len();
                fetching.pieces.push(blocks);
            }
        }
        if (done || fetching.bytes >= FETCH_BYTES_MAX) && !fetching.answered {
            fetching.answered = true;
            let pieces = std::mem::take(&mut fetching.pieces);
            self.answer_fetch(Ok(pieces));
        }
        if done {
            self.fetching = None;
            self.ask_fetch();
        }
        Ok(())
    }

    /// The server does not keep what comes next.
    pub(super) fn trimmed(&mut self, first: LogIndex) {
        let Some(fetching) = self.fetching.take() else { return };
        if !fetching.answered {
            let none = fetching.pieces.is_empty();
            self.answer_fetch(if none { Err(StreamError::Trimmed { first }) } else { Ok(fetching.pieces) });
        }
        self.ask_fetch();
    }

    fn answer_fetch(&mut self, result: Result<Vec<Bytes>, StreamError>) {
        if let Some(fetch) = self.fetches.pop_front()
            && self.forget_call(fetch.call).is_some()
        {
            self.events.push_back(Event::Fetched { waiter: fetch.waiter, result });
        }
    }
}
