//! Messages of other servers: checked, so that none can end the process inside the crate, and then given to it.

use super::*;
use crate::mutant;

impl Voter {
    pub(super) fn check_term(&mut self, from: RaftId, term: Term) -> Result<(), MessageError> {
        let own = self.raw.raft.term;
        if term == Term::ZERO {
            return Err(MessageError::TermZero);
        }
        if term.0 > NUMBER_MAX {
            return Err(MessageError::TermJump { own: Term(own), claimed: term });
        }
        let newcomer = self.raw.store().tail.run == RunIndex::ZERO;
        if newcomer || term.0 <= own.saturating_add(TERM_JUMP_MAX) {
            self.high_terms.remove(&from);
            return Ok(());
        }
        self.high_terms.insert(from, term.0);
        let voters = self.configuration.voters();
        let agreeing: BTreeSet<RaftId> = self.high_terms.keys().filter(|id| voters.contains(id)).copied().collect();
        if agreeing.len() * 2 > voters.len() { Ok(()) } else { Err(MessageError::TermJump { own: Term(own), claimed: term }) }
    }

    pub(super) fn step(&mut self, message: RaftMessage) {
        // What the crate answers with an error (an unknown peer, a proposal it has no room for) it has not taken.
        let _ = self.raw.step(message);
        self.stepped();
    }

    /// Checks one of raft's own kinds and gives it to the crate.
    pub(super) fn step_message(&mut self, from: RaftId, message: Message) -> Result<(), MessageError> {
        let (own_term, last) = (self.raw.raft.term, self.raw.raft.raft_log.last_index());
        let mut ours = RaftMessage::default();
        (ours.from, ours.to) = (from.0, self.options.id.0);
        match message {
            Message::Append { term, previous, previous_term, commit, runs } => {
                self.check_leader(from, term)?;
                self.accept(term, previous, previous_term, &runs)?;
                if !runs.is_empty() && self.is_stuffed() && self.lags_itself() {
                    // The leader repeats them when its heartbeat is answered.
                    self.appends_dropped += 1;
                    return Ok(());
                }
                ours.set_msg_type(MessageType::MsgAppend);
                (ours.term, ours.index, ours.log_term, ours.commit) = (term.0, previous.0, previous_term.0, commit.0);
                ours.set_entries(runs.iter().map(storage::entry).collect::<Vec<_>>().into());
                let takes = self.takes(term, previous, previous_term);
                if mutant!("truncate_on_overlap") && takes {
                    self.truncate_on_overlap(&runs);
                }
                // The crate first: it compares with what stands in the store.
                let _ = self.raw.step(ours);
                if takes {
                    self.take_appended(runs);
                }
                if self.raw.raft.raft_log.last_index() != self.raw.store().tail.run.0 {
                    self.stop(FatalError::Sealing { run: self.raw.store().tail.run });
                }
                self.stepped();
                return Ok(());
            }
            Message::Commit { term, previous, previous_term, commit } => {
                self.check_leader(from, term)?;
                self.accept(term, previous, previous_term, &[])?;
                ours.set_msg_type(MessageType::MsgAppend);
                (ours.term, ours.index, ours.log_term, ours.commit) = (term.0, previous.0, previous_term.0, commit.0);
                let said = self.raw.raft.msgs.len();
                self.step(ours);
                // That it matches, the leader knows; that it leads no more, it must hear.
                let is_yes = |message: &RaftMessage| message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject;
                let raft = &mut self.raw.raft;
                if term.0 == raft.term && raft.msgs.len() == said + 1 && raft.msgs.last().is_some_and(is_yes) {
                    raft.msgs.pop();
                }
                return Ok(());
            }
            Message::AppendReply { term, run, reject, commit } => {
                self.check_term(from, term)?;
                // A leader that was one before its process restarted may still be answered; it does not listen.
                if self.is_leader() && term.0 == own_term && run.0 > last {
                    return Err(MessageError::BeyondTheLog { run });
                }
                ours.set_msg_type(MessageType::MsgAppendResponse);
                (ours.term, ours.index, ours.commit) = (term.0, run.0, commit.0);
                if let Some(hint) = reject {
                    ours.reject = true;
                    (ours.reject_hint, ours.log_term) = (hint.run.0.min(last), hint.term.0);
                }
            }
            Message::Heartbeat { term, commit, round } => {
                self.check_leader(from, term)?;
                ours.set_msg_type(MessageType::MsgHeartbeat);
                // A follower that lost its tail answers all the same, so that the leader finds out.
                (ours.term, ours.commit) = (term.0, if mutant!("commit_unclamped") { commit.0 } else { commit.0.min(last) });
                ours.context = convert::context(round);
            }
            Message::HeartbeatReply { term, commit, round } => {
                self.check_term(from, term)?;
                ours.set_msg_type(MessageType::MsgHeartbeatResponse);
                (ours.term, ours.commit) = (term.0, commit.0);
                ours.context = convert::context(round);
            }
            Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer } => {
                self.check_term(from, term)?;
                if self.raw.store().tail.run == RunIndex::ZERO {
                    // A newcomer has no vote to give, and the crate cannot say no without a term.
                    return Ok(());
                }
                ours.set_msg_type(if pre { MessageType::MsgRequestPreVote } else { MessageType::MsgRequestVote });
                (ours.term, ours.index, ours.log_term) = (term.0, last.0, last_term.0);
                (ours.commit, ours.commit_term, ours.priority) = (commit.0, commit_term.0, i64::from(priority));
                if transfer {
                    ours.context = convert::transfer_context();
                }
                // What this replica has lost, the candidate never had: its election could lose what was acknowledged.
                let lacks = self.suspect.is_some_and(|goal| (last_term, last) < (goal.term, goal.run));
                let twice = !pre && self.lost_vote_through().is_some_and(|lost| lost.is_none_or(|lost| term <= lost));
                let rests = pre && self.voted.is_some_and(|(to, at)| to != from && self.now.since_us(at) < VOTE_REST_MS * 1000);
                if lacks && !mutant!("suspect_votes") || twice || rests && !transfer {
                    // To the crate, nobody with an empty log is worth a vote.
                    (ours.index, ours.log_term) = (0, 0);
                }
                self.step(ours);
                if !pre && self.raw.raft.vote == from.0 && self.leader().is_none() {
                    self.voted = Some((from, self.now));
                }
                return Ok(());
            }
            Message::VoteReply { term, pre, granted, commit, commit_term } => {
                self.check_term(from, term)?;
                if self.raw.raft.raft_log.persisted < last {
                    // What this replica asks, it asks when its disk has everything: nobody can have answered.
                    return Ok(());
                }
                let kind = if pre { MessageType::MsgRequestPreVoteResponse } else { MessageType::MsgRequestVoteResponse };
                ours.set_msg_type(kind);
                (ours.term, ours.reject) = (term.0, !granted);
                (ours.commit, ours.commit_term) = (commit.0, commit_term.0);
            }
            Message::TimeoutNow { term } => {
                self.check_leader(from, term)?;
                if !self.may_campaign() {
                    return Ok(());
                }
                ours.set_msg_type(MessageType::MsgTimeoutNow);
                ours.term = term.0;
            }
            _ => return Err(MessageError::NotForConsensus),
        }
        self.step(ours);
        self.time_confirmed(from);
        Ok(())
    }

    /// What only a leader says.
    pub(super) fn check_leader(&mut self, from: RaftId, term: Term) -> Result<(), MessageError> {
        self.check_term(from, term)?;
        let raft = &self.raw.raft;
        if term.0 == raft.term
            && (raft.state == StateRole::Leader || (raft.leader_id != raft::INVALID_ID && raft.leader_id != from.0))
        {
            return Err(MessageError::SecondLeader(from));
        }
        Ok(())
    }

    /// Whether the runs of an append continue each other and what they follow, and spare what is committed.
    pub(super) fn accept(&mut self, term: Term, previous: RunIndex, previous_term: Term, runs: &[Run]) -> Result<(), MessageError> {
        let identity = self.options.identity;
        if previous == RunIndex::ZERO || previous_term == Term::ZERO {
            // The log begins behind run 1; to the crate, a term of 0 matches every run that is not there.
            return Err(MessageError::Gap { run: previous });
        }
        let mut before: Option<Tail> = None;
        for run in runs {
            let header = run.header();
            let follows =
                before.map_or(header.run == previous.next() && header.term >= previous_term, |tail| tail.continues(header));
            if !follows || header.term > term || (header.epoch, header.room) != (identity.epoch, identity.room) {
                return Err(MessageError::Gap { run: header.run });
            }
            before = Some(header.tail());
        }
        if !self.takes(term, previous, previous_term) {
            return Ok(());
        }
        let (store, committed) = (self.raw.store(), self.raw.raft.raft_log.committed);
        let chain_at = |run: RunIndex, chain| store.chain_after(run.0).is_none_or(|known| known == chain);
        let parts = runs.first().filter(|first| !chain_at(previous, first.header().chain_before));
        let differs = parts.or_else(|| {
            let mut known = runs.iter().take_while(|run| run.header().run <= store.tail.run);
            let same = |run: &Run| store.term_at(run.header().run.0) == run.header().term.0;
            known.find(|run| {
                let header = run.header();
                if same(run) { !chain_at(header.run, header.chain_after) } else { header.run.0 <= committed }
            })
        });
        match differs.map(|run| run.header().run) {
            Some(run) => {
                self.stop(FatalError::Diverged { run });
                Err(MessageError::Diverged { run })
            }
            None => Ok(()),
        }
    }

    /// Whether the crate will take this append into its log.
    pub(super) fn takes(&self, term: Term, previous: RunIndex, previous_term: Term) -> bool {
        let (raft, store) = (&self.raw.raft, self.raw.store());
        term.0 >= raft.term && previous.0 >= raft.raft_log.committed && store.term_at(previous.0) == previous_term.0
    }

    /// A seeded bug: whatever stands behind the runs of an append goes, also where they agree with the log.
    fn truncate_on_overlap(&mut self, runs: &[Run]) {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return };
        let (raft, handed) = (&mut self.raw.raft, self.handed);
        let (from, to) = (first.header().run.0, last.header().run.0);
        if from <= raft.raft_log.committed || to >= raft.raft_log.last_index() {
            return;
        }
        let entries = runs.iter().map(storage::entry).collect::<Vec<_>>();
        raft.raft_log.append(&entries);
        raft.raft_log.persisted = raft.raft_log.persisted.min(from - 1);
        let store = self.raw.mut_store();
        if store.truncate(from - 1, handed) {
            runs.iter().cloned().for_each(|run| store.push(run));
        }
    }

    /// Brings this facade's copy of the log where the crate has brought its own.
    pub(super) fn take_appended(&mut self, runs: Vec<Run>) {
        let handed = self.handed;
        for run in runs {
            let index = run.header().run;
            if index <= self.raw.store().tail.run {
                if self.raw.store().term_at(index.0) == run.header().term.0 {
                    continue;
                }
                if !self.raw.mut_store().truncate(index.0 - 1, handed) {
                    return self.stop(FatalError::Lost { run: index });
                }
                self.config_pending = self.raw.store().last_config_above(handed.run.0);
            }
            if run.config_payload().is_some() {
                self.config_pending = Some(index);
            }
            self.raw.mut_store().push(run);
        }
    }
}
