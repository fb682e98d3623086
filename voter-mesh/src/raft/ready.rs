//! What the crate has ready: messages that may leave, what must be durable first, what is committed.

use super::*;
use crate::mutant;

impl Voter {
    /// Brings all outputs up to date, once for all that was told since the last time.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        while !self.fatal {
            self.drive_reads();
            self.drive_book();
            self.seal_waiting();
            self.drive_membership();
            if mutant!("commit_old_term") && self.is_leader() {
                let (quorum, _) = self.raw.raft.mut_prs().maximal_committed_index();
                let log = &mut self.raw.raft.raft_log;
                log.commit_to(quorum.max(log.committed));
            }
            if self.fatal || !self.raw.has_ready() {
                break;
            }
            self.take_ready();
        }
        self.drive_wants();
    }

    /// Takes what the crate has ready: what it says, what must become durable, what is committed.
    pub(super) fn take_ready(&mut self) {
        let mut ready = self.raw.ready();
        self.send_all(ready.take_messages());
        for state in ready.take_read_states() {
            let round = state.request_ctx.as_slice().try_into().map_or(0, u64::from_le_bytes);
            for asker in self.rounds.confirmed(round) {
                self.answer_read(asker, Ok(RunIndex(state.index)));
            }
        }
        // That a heartbeat was heard promises nothing but the term: where that is durable, the answer need not wait for the disk,
        // and a slow disk is not taken for a dead server.
        let durable_term = self.durable_term.0;
        let prompt = |message: &RaftMessage| match message.get_msg_type() {
            MessageType::MsgHeartbeatResponse => message.term == durable_term,
            MessageType::MsgRequestVoteResponse => mutant!("vote_before_sync"),
            MessageType::MsgAppendResponse => mutant!("ack_before_sync"),
            _ => false,
        };
        let (prompt, waiting): (Vec<_>, Vec<_>) = ready.take_persisted_messages().into_iter().partition(prompt);
        for message in prompt {
            self.send(message);
        }
        let entries = ready.take_entries();
        let install = (!ready.snapshot().is_empty()).then(|| self.raw.store().snapshot.clone()).flatten();
        let committed = ready.take_committed_entries();
        let number = ready.number();
        if !entries.is_empty() || install.is_some() || ready.must_sync() {
            let runs: Option<Vec<Run>> = entries.iter().map(|entry| self.raw.store().run(entry.index).cloned()).collect();
            let Some(runs) = runs else { return self.stop(FatalError::Lost { run: self.raw.store().tail.run }) };
            let raft = &self.raw.raft;
            let write = Write {
                number,
                term: Term(raft.term),
                vote: RaftId(raft.vote),
                commit: RunIndex(raft.raft_log.committed),
                writer_term: Term(raft.term),
                keep_through: entries.first().map(|first| RunIndex(first.index - 1)),
                runs,
                install: install.clone(),
                must_sync: true,
            };
            if let Some(last) = entries.last() {
                self.time_write(last.index);
            }
            self.last_write = number;
            self.writes.push_back(write);
        }
        if let Some(last) = entries.last() {
            self.raw.mut_store().stable = last.index;
        }
        self.raw.advance_append_async(ready);
        let term = Term(self.raw.raft.term);
        if mutant!("commit_before_sync") {
            self.raw.on_persist_ready(number);
        }
        self.held.push_back(Held { write: self.last_write, ready: number, term, messages: waiting, installed: install });
        self.release();
        self.committed(&committed);
    }

    /// Lets go of what waited for writes that are durable by now.
    pub(super) fn release(&mut self) {
        while self.held.front().is_some_and(|held| held.write <= self.written) {
            let Some(held) = self.held.pop_front() else { break };
            self.raw.on_persist_ready(held.ready);
            for message in held.messages {
                self.send(message);
            }
            self.events.extend(held.installed.map(Event::Installed));
            self.durable_term = self.durable_term.max(held.term);
        }
        let persisted = self.raw.raft.raft_log.persisted;
        let durable = (Term(self.raw.store().term_at(persisted)), RunIndex(persisted));
        if self.suspect.is_some_and(|goal| durable >= (goal.term, goal.run)) {
            self.suspect = None;
            self.take_priority();
        }
        if self.lost_vote_through().flatten().is_some_and(|term| self.durable_term > term) {
            self.lost_vote = None;
            self.events.push_back(Event::VoteSettled);
        }
    }

    pub(super) fn committed(&mut self, entries: &[raft::eraftpb::Entry]) {
        let configured = self.configuration_run;
        let mut runs = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(run) = self.raw.store().run(entry.index).cloned() else {
                return self.stop(FatalError::Lost { run: RunIndex(entry.index) });
            };
            let header = *run.header();
            if !self.handed.continues(&header) {
                return self.stop(FatalError::Diverged { run: header.run });
            }
            self.handed = header.tail();
            self.book.committed(&header, self.now);
            if let Some(payload) = run.config_payload() {
                self.configured(header.run, payload);
            }
            runs.push(run);
        }
        if self.configuration_run != configured {
            self.keep_commit();
        }
        if !runs.is_empty() {
            self.events.push_back(Event::Committed(runs));
        }
    }

    /// Makes the commit index durable, which is otherwise not worth a sync. Whoever restarts must know which voters there are: with the
    /// committed end of a joint change forgotten, it would ask for voters again that may be gone for good by then.
    fn keep_commit(&mut self) {
        let raft = &self.raw.raft;
        self.writes.push_back(Write {
            number: self.last_write,
            term: Term(raft.term),
            vote: RaftId(raft.vote),
            commit: RunIndex(raft.raft_log.committed),
            writer_term: Term(raft.term),
            keep_through: None,
            runs: Vec::new(),
            install: None,
            must_sync: true,
        });
    }

    pub(super) fn drive_wants(&mut self) {
        let (fetch, snapshot) = {
            let mut wants = self.raw.store().wants.borrow_mut();
            let fetch = wants.fetch.filter(|_| !wants.fetching);
            wants.fetching |= fetch.is_some();
            (fetch, std::mem::take(&mut wants.snapshot))
        };
        if let Some((first, last)) = fetch {
            self.events.push_back(Event::Fetch { first: RunIndex(first), last: RunIndex(last) });
        }
        if snapshot {
            self.events.push_back(Event::SnapshotWanted);
        }
    }

    /// Sends what a leader says. That more is committed is not said twice: where runs follow to the same peer, they carry it.
    fn send_all(&mut self, messages: Vec<RaftMessage>) {
        let mut last_append = BTreeMap::new();
        for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.get_msg_type() == MessageType::MsgAppend) {
            last_append.insert(message.to, at);
        }
        for (at, message) in messages.into_iter().enumerate() {
            if !self.is_commit(&message) || last_append.get(&message.to) == Some(&at) {
                self.send(message);
            }
        }
    }

    /// Whether a message only tells a follower that keeps up what is committed: nothing depends on its answer.
    fn is_commit(&self, message: &RaftMessage) -> bool {
        let replicates = |progress: &raft::Progress| progress.state == raft::ProgressState::Replicate;
        message.get_msg_type() == MessageType::MsgAppend
            && message.get_entries().is_empty()
            && self.raw.raft.prs().get(message.to).is_some_and(replicates)
    }

    /// Sends one of the crate's messages, as ours.
    pub(super) fn send(&mut self, message: RaftMessage) {
        let to = RaftId(message.to);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            if let Some(meta) = self.raw.store().snapshot.clone() {
                self.events.push_back(Event::SendSnapshot { to, term: Term(message.term), meta });
            }
            return;
        }
        if self.is_commit(&message) {
            let (previous, previous_term) = (RunIndex(message.index), Term(message.log_term));
            let (term, commit) = (Term(message.term), RunIndex(message.commit));
            return self.transmit(to, Message::Commit { term, previous, previous_term, commit });
        }
        // None: an append of a leader that was deposed before it was sent, with runs that are overwritten by now.
        if let Some(message) = convert::to_ours(message, self.raw.store()) {
            self.transmit(to, message);
        }
    }
}
