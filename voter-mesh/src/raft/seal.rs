//! From entries that wait to runs in the crate's log: what this server's clients and other servers propose, sealed as it is taken.

use super::*;

impl Voter {
    /// A new leader's first entry is the crate's own and empty: it becomes a run like any other before anybody sees it.
    pub(super) fn seal_noop(&mut self) {
        let log = &self.raw.raft.raft_log;
        let Some(last) = log.unstable_entries().last() else { return };
        if !last.data.is_empty() || last.index != self.raw.store().tail.run.0 + 1 {
            return;
        }
        let Ok(noop) = entry(&EntrySpec::internal(EntryKind::Noop), &[]) else { return };
        let (index, term) = (last.index, last.term);
        match self.seal(Term(term), &[&noop]) {
            Ok(run) if run.header().run.0 == index => {
                if let Some(last) = self.raw.raft.raft_log.unstable.entries.last_mut() {
                    *last = storage::entry(&run);
                }
                self.raw.mut_store().push(run);
            }
            _ => self.stop(FatalError::Sealing { run: RunIndex(index) }),
        }
    }

    pub(super) fn seal(&self, term: Term, parts: &[&[u8]]) -> Result<Run, crate::run::RunError> {
        let identity = &self.options.identity;
        Run::seal(&self.raw.store().tail, term, self.now.unix_ms, identity.epoch, identity.room, parts)
    }

    pub(super) fn drive_book(&mut self) {
        if let Some(leader) = self.destination() {
            for (batch, entries) in self.book.take_due(self.options.limits.forward_in_flight_bytes_max, self.now) {
                if leader == self.options.id {
                    self.to_seal_bytes += entries.len();
                    self.to_seal.push_back((Origin::Own(batch), entries));
                } else {
                    self.transmit(leader, Message::Forward { batch, entries });
                }
            }
        }
        let relieved = self.book.bytes() <= self.options.limits.forward_bytes_max / 2 && !self.waits_for_room();
        if self.overloaded && relieved {
            self.overloaded = false;
            self.events.push_back(Event::Overloaded(false));
        }
    }

    pub(super) fn forwarded(&mut self, from: RaftId, batch: BatchId, entries: Bytes) {
        let origin = Origin::Peer(from, batch);
        if self.to_seal.iter().any(|(waiting, _)| *waiting == origin) {
            // Asked again while it waits for room.
            return;
        }
        let refusal = if !may_be_sealed(&entries) {
            Some(ForwardRefusal::Malformed)
        } else if !self.is_leader() {
            Some(ForwardRefusal::NotLeader)
        } else if self.is_transferring() {
            Some(ForwardRefusal::Transferring)
        } else if self.disk.is_full() {
            Some(ForwardRefusal::DiskFull)
        } else if self.to_seal_bytes + entries.len() > self.options.limits.forward_bytes_max && self.to_seal_bytes > 0 {
            Some(ForwardRefusal::Overloaded)
        } else {
            None
        };
        match refusal {
            Some(why) => {
                let leader = self.leader();
                self.transmit(from, Message::Refused { batch, why, leader });
            }
            None => {
                self.to_seal_bytes += entries.len();
                self.to_seal.push_back((origin, entries));
            }
        }
    }

    /// Drops what waits here for a process that is gone; its clients ask elsewhere.
    pub(super) fn forget_batches(&mut self, peer: RaftId) {
        self.to_seal.retain(|(origin, _)| !matches!(origin, Origin::Peer(from, _) if *from == peer));
        self.to_seal_bytes = self.to_seal.iter().map(|(_, entries)| entries.len()).sum();
    }

    /// Seals all that waits, as few runs as their bound allows.
    pub(super) fn seal_waiting(&mut self) {
        // What waits here stays, and what comes on top is refused.
        let may_seal = self.is_leader() && !self.is_transferring() && !self.disk.is_full() && !self.is_stuffed();
        while may_seal && !self.to_seal.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for (_, entries) in &self.to_seal {
                if count > 0 && bytes + entries.len() > RUN_BYTES_MAX {
                    break;
                }
                (count, bytes) = (count + 1, bytes + entries.len());
            }
            let uncommitted = self.raw.raft.uncommitted_size() as u64;
            if uncommitted > 0 && uncommitted + (RUN_HEADER_BYTES + bytes) as u64 > self.options.limits.uncommitted_bytes_max {
                return;
            }
            let parts: Vec<&[u8]> = self.to_seal.iter().take(count).map(|(_, entries)| entries.as_ref()).collect();
            let term = Term(self.raw.raft.term);
            let run = match self.seal(term, &parts) {
                Ok(run) => run,
                Err(_) => {
                    self.drop_malformed(count);
                    continue;
                }
            };
            let mut first = run.header().first;
            if !self.append(run, None) {
                return;
            }
            for _ in 0..count {
                let Some((origin, entries)) = self.to_seal.pop_front() else { break };
                self.to_seal_bytes -= entries.len();
                match origin {
                    Origin::Own(batch) => self.book.taken(batch, term, first, &self.handed),
                    Origin::Peer(peer, batch) => self.transmit(peer, Message::Taken { batch, term, first }),
                }
                first = first.plus(Entries::verified(&entries).count() as u64);
            }
        }
    }

    /// Some batch among the first `count` does not check: the bad ones are refused, the good ones stay.
    pub(super) fn drop_malformed(&mut self, count: usize) {
        let waiting: Vec<_> = self.to_seal.drain(..count.min(self.to_seal.len())).collect();
        for (origin, entries) in waiting.into_iter().rev() {
            if may_be_sealed(&entries) && Entries::checked(&entries).all(|entry| entry.is_ok()) {
                self.to_seal.push_front((origin, entries));
                continue;
            }
            self.to_seal_bytes -= entries.len();
            match origin {
                Origin::Own(batch) => self.book.drop_batch(batch),
                Origin::Peer(peer, batch) => {
                    let leader = self.leader();
                    self.transmit(peer, Message::Refused { batch, why: ForwardRefusal::Malformed, leader });
                }
            }
        }
    }

    /// Gives a sealed run to the crate; false if it takes no more now. `change` marks a change that raft must know of.
    pub(super) fn append(&mut self, run: Run, change: Option<raft::eraftpb::ConfChangeV2>) -> bool {
        let mut message = RaftMessage::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.options.id.0;
        let mut proposed = raft::eraftpb::Entry { data: run.bytes().clone(), ..Default::default() };
        if let Some(change) = change {
            use protobuf::Message as _;
            let Ok(bytes) = change.write_to_bytes() else { return false };
            proposed.set_entry_type(EntryType::EntryConfChangeV2);
            proposed.data = bytes.into();
        }
        message.set_entries(vec![proposed].into());
        let is_change = message.get_entries().first().is_some_and(|entry| entry.get_entry_type() == EntryType::EntryConfChangeV2);
        if self.raw.raft.step(message).is_err() {
            return false;
        }
        let header = *run.header();
        let Some(last) = self.raw.raft.raft_log.unstable.entries.last_mut() else {
            self.stop(FatalError::Sealing { run: header.run });
            return false;
        };
        let changed_kind = is_change && last.get_entry_type() != EntryType::EntryConfChangeV2;
        if (last.index, last.term) != (header.run.0, header.term.0) || changed_kind {
            self.stop(FatalError::Sealing { run: header.run });
            return false;
        }
        if is_change {
            *last = storage::entry(&run);
            // The crate has sent its own idea of the entry already, where a follower's window was open.
            for sent in &mut self.raw.raft.msgs {
                for entry in sent.mut_entries().iter_mut().filter(|entry| entry.index == header.run.0) {
                    *entry = storage::entry(&run);
                }
            }
        }
        self.raw.mut_store().push(run);
        true
    }
}
