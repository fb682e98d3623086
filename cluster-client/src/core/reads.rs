//! Reads that wait until the learner is recent enough. All linearizable reads that wait share one question to the entry server; those
//! that come while it is under way share the next.

use std::collections::BTreeMap;

use voter_mesh::ids::{LogIndex, Time};
use voter_mesh::mutant;

use super::calls::Place;
use super::link::Say;
use super::{CallId, Core, Event, Waiters, ms};
use crate::error::ReadError;

/// How soon a refused read is asked again, at most.
const READ_RETRY_MS: u64 = 50;

/// What a read must see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadAfter {
    /// Everything that this session has seen acknowledged.
    Session,
    /// Everything that anyone has seen acknowledged.
    Linearizable,
}

pub(super) struct Reads<R> {
    waiting: BTreeMap<CallId, R>,
    asked: Option<(u64, BTreeMap<CallId, R>)>,
    next: u64,
    pub(super) retry_at_us: Option<u64>,
    /// By the index that must be applied first.
    at: BTreeMap<(LogIndex, CallId), R>,
}

impl<R> Default for Reads<R> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), asked: None, next: 1, retry_at_us: None, at: BTreeMap::new() }
    }
}

impl<R> Reads<R> {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.asked.as_ref().map_or(0, |(_, reads)| reads.len()) + self.at.len()
    }

    /// What was asked on another link is asked anew.
    pub(super) fn link_changed(&mut self) {
        if let Some((_, mut reads)) = self.asked.take() {
            self.waiting.append(&mut reads);
        }
        self.retry_at_us = None;
    }

    pub(super) fn remove(&mut self, call: CallId) -> Option<R> {
        if let Some(read) = self.waiting.remove(&call) {
            return Some(read);
        }
        if let Some(read) = self.asked.as_mut().and_then(|(_, reads)| reads.remove(&call)) {
            return Some(read);
        }
        let key = self.at.keys().find(|(_, other)| *other == call).copied()?;
        self.at.remove(&key)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = (CallId, R)> + use<R> {
        let asked = self.asked.take().map(|(_, reads)| reads).unwrap_or_default();
        let at = std::mem::take(&mut self.at).into_iter().map(|((_, call), read)| (call, read));
        std::mem::take(&mut self.waiting).into_iter().chain(asked).chain(at)
    }
}

impl<W: Waiters> Core<W> {
    /// Waits until the learner has what a read must see.
    pub fn read(&mut self, after: ReadAfter, deadline: Time, waiter: W::Read, now: Time) -> CallId {
        let call = self.new_call(deadline, Place::Read);
        let refusal = if let Some(why) = &self.closed {
            Some(ReadError::Closed(why.clone()))
        } else if self.reads.len() >= self.options.limits.queue_max {
            Some(ReadError::QueueFull)
        } else {
            None
        };
        if let Some(error) = refusal {
            self.forget_call(call);
            self.events.push_back(Event::Read { waiter, result: Err(error) });
            return call;
        }
        match after {
            ReadAfter::Linearizable if mutant!("linearizable_read_is_local") => {
                self.reads.at.insert((LogIndex::ZERO, call), waiter);
                self.answer_reads(LogIndex::ZERO);
            }
            ReadAfter::Session => {
                self.reads.at.insert((self.acknowledged, call), waiter);
                let (applied, _) = self.position.unwrap_or_default();
                self.answer_reads(applied);
            }
            ReadAfter::Linearizable => {
                self.reads.waiting.insert(call, waiter);
                self.ask_reads(now);
            }
        }
        call
    }

    /// Asks for one read index on behalf of all reads that wait, one question at a time.
    pub(super) fn ask_reads(&mut self, now: Time) {
        if self.reads.retry_at_us.is_some_and(|at| at > now.monotonic_us) {
            return;
        }
        self.reads.retry_at_us = None;
        if self.reads.asked.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        let Some(link) = self.first.and_then(|first| self.links.get_mut(&first)) else { return };
        let id = self.reads.next;
        self.reads.next += 1;
        self.reads.asked = Some((id, std::mem::take(&mut self.reads.waiting)));
        link.say(Say::ReadIndex(id));
    }

    pub(super) fn take_read(&mut self, id: u64, index: LogIndex, now: Time) {
        if let Some((_, reads)) = self.reads.asked.take_if(|(asked, _)| *asked == id) {
            self.reads.at.extend(reads.into_iter().map(|(call, read)| ((index, call), read)));
            let (applied, _) = self.position.unwrap_or_default();
            self.answer_reads(applied);
            self.ask_reads(now);
        }
    }

    pub(super) fn read_refused(&mut self, id: u64, now: Time) {
        if let Some((_, mut reads)) = self.reads.asked.take_if(|(asked, _)| *asked == id) {
            self.reads.waiting.append(&mut reads);
            self.reads.retry_at_us = Some(now.monotonic_us + ms(1) + self.randomness.below(ms(READ_RETRY_MS)));
        }
    }

    pub(super) fn answer_reads(&mut self, applied: LogIndex) {
        while let Some(entry) = self.reads.at.first_entry().filter(|entry| entry.key().0 <= applied) {
            let ((_, call), waiter) = entry.remove_entry();
            self.forget_call(call);
            self.events.push_back(Event::Read { waiter, result: Ok(()) });
        }
    }
}
