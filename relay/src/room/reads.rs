//! Linearizable reads and fetches. All reads that arrive before the owner looks share one question to the leader: a round. A read that
//! arrives after it was taken belongs to the next round, because its answer may already be on its way.

use std::collections::BTreeMap;

use voter_mesh::ids::{LogIndex, ReadId, Time};

use crate::wire::{Code, ServerFrame};

use super::link::{LinkId, List};
use super::{Room, RoomEvent};

#[derive(Debug)]
struct Round {
    deadline: Time,
    waiting: Vec<(LinkId, u64)>,
}

/// The rounds that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Reads {
    rounds: BTreeMap<ReadId, Round>,
    next: u64,
    /// The round that still takes reads: the owner has not seen it.
    open: Option<ReadId>,
}

impl Reads {
    /// The round that the owner is to ask for.
    pub(super) fn take(&mut self) -> Option<ReadId> {
        self.open.take()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        // Rounds begin in the order of their numbers, and all wait equally long.
        self.rounds.first_key_value().map(|(_, round)| round.deadline)
    }
}

impl Room {
    pub(super) fn read(&mut self, id: LinkId, question: u64, now: Time) -> Result<(), Code> {
        let limits = self.options.limits;
        let Some(link) = self.links.get(id) else { return Ok(()) };
        if link.reads >= limits.reads_per_link_max {
            self.counters.reads_refused += 1;
            return self.send(id, &ServerFrame::ReadRefused { id: question, code: Code::Overloaded }, now);
        }
        link.reads += 1;
        self.counters.reads += 1;
        let reads = &mut self.reads;
        let read = *reads.open.get_or_insert_with(|| {
            reads.next += 1;
            ReadId(reads.next)
        });
        let round =
            reads.rounds.entry(read).or_insert_with(|| Round { deadline: now.plus_ms(limits.read_ms), waiting: Vec::new() });
        round.waiting.push((id, question));
        Ok(())
    }

    /// The answer to [`RoomEvent::Read`]: a read that has applied `index` is linearizable. An unknown read is ignored.
    pub fn handle_read(&mut self, read: ReadId, index: LogIndex, now: Time) {
        for (id, question) in self.end_round(read) {
            let _ = self.send(id, &ServerFrame::Read { id: question, index }, now);
        }
    }

    /// The owner takes [`RoomEvent::Read`] no more for now: whoever waits for it is told to ask again later.
    pub fn handle_read_refused(&mut self, read: ReadId, now: Time) {
        for (id, question) in self.end_round(read) {
            self.counters.reads_refused += 1;
            let _ = self.send(id, &ServerFrame::ReadRefused { id: question, code: Code::Overloaded }, now);
        }
    }

    fn end_round(&mut self, read: ReadId) -> Vec<(LinkId, u64)> {
        let waiting = self.reads.rounds.remove(&read).map(|round| round.waiting).unwrap_or_default();
        for (id, _) in &waiting {
            if let Some(link) = self.links.get(*id) {
                link.reads = link.reads.saturating_sub(1);
            }
        }
        waiting
    }

    pub(super) fn expire_reads(&mut self, now: Time) {
        while let Some(entry) = self.reads.rounds.first_entry()
            && entry.get().deadline <= now
        {
            let read = *entry.key();
            if self.reads.open.take_if(|open| *open == read).is_none() {
                self.events.push_back(RoomEvent::ReadCancelled(read));
            }
            for (id, question) in self.end_round(read) {
                self.counters.reads_refused += 1;
                let _ = self.send(id, &ServerFrame::ReadRefused { id: question, code: Code::Timeout }, now);
            }
        }
    }

    pub(super) fn fetch(&mut self, id: LinkId, from: LogIndex, to: LogIndex, now: Time) -> Result<(), Code> {
        if from == LogIndex::ZERO || to < from {
            self.counters.malformed += 1;
            return self.close(id, Code::Malformed, None, now);
        }
        let limits = &self.options.limits;
        let Some(link) = self.links.get(id) else { return Ok(()) };
        if link.fetches.len() >= limits.fetches_per_link_max {
            let retry = limits.retry_after_ms;
            return self.close(id, Code::Overloaded, Some(retry), now);
        }
        link.fetches.push_back((from, to));
        self.links.enlist(List::Woken, id);
        Ok(())
    }
}
