//! Changing the cluster while it runs: requests, configurations on their way through the log, leadership handed over.

use super::*;

impl Voter {
    /// An administrator's request, at the leader.
    ///
    /// What holds already goes through the log all the same, as the configuration that it is: who was deposed and does not know it
    /// can say nothing for certain. (Raft §6.4 has the same reason for a read's round.) Only a newcomer that is in already is told
    /// so at once: it believes its own configuration alone.
    ///
    /// # Errors
    /// [`AdminRefused`]: nothing has changed.
    pub fn handle_admin(&mut self, request: AdminRequest, now: Time) -> Result<AdminProgress, AdminRefused> {
        self.begin(now);
        if !self.is_leader() {
            return Err(AdminRefused::NotLeader(self.leader()));
        }
        if self.changing.as_ref().is_some_and(|changing| changing.request == request) {
            return Ok(AdminProgress::Started);
        }
        if self.changing.is_some() || self.config_pending.is_some() || self.configuration.is_joint() || self.is_transferring() {
            return Err(AdminRefused::Busy);
        }
        if !self.raw.raft.commit_to_current_term() {
            return Err(AdminRefused::Busy);
        }
        let own = self.options.id.seat();
        match &request {
            AdminRequest::Transfer { seat } if *seat != own => return self.transfer(*seat, request.clone()),
            // A leader never removes itself: it hands over first, and the next leader does it.
            AdminRequest::RemoveSeat { seat } if *seat == own && self.configuration.voters().len() > 1 => {
                self.transfer_away(now);
                return Err(AdminRefused::Busy);
            }
            AdminRequest::Promote { seat } => {
                let member = self.configuration.seats.get(seat).and_then(|record| record.member.as_ref());
                if member.is_some_and(|member| member.role == Role::Standby && !self.caught_up(member.id)) {
                    return Err(AdminRefused::Behind(*seat));
                }
            }
            _ => {}
        }
        let next = match membership::next(&self.configuration, &request)? {
            None if matches!(request, AdminRequest::Join { .. }) => return Ok(AdminProgress::Done),
            next => next.unwrap_or_else(|| self.configuration.clone()),
        };
        if !self.configure(&next) {
            return Err(AdminRefused::Busy);
        }
        self.changing = Some(Changing { request, transfer: None });
        self.stepped();
        Ok(AdminProgress::Started)
    }

    /// A configuration is committed: raft is told, unless it was based on one that never came to hold.
    pub(super) fn configured(&mut self, run: RunIndex, payload: &[u8]) {
        if self.config_pending.is_some_and(|pending| pending <= run) {
            self.config_pending = None;
        }
        let Ok(ConfigPayload { base, configuration }) = ConfigPayload::decode(payload) else { return };
        if base != self.configuration_run || !membership::is_sound(&configuration) {
            return self.end_change(Err("another change came first".into()));
        }
        let own = self.options.id;
        if self.is_leader() && !configuration.voters().contains(&own) && !configuration.outgoing.contains(&own) {
            // The crate ends the process when its leader is not in its configuration. Who is about to leave hands over before; this
            // one came to lead when the last step was in the log already.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.stepped();
        }
        if let Some(change) = membership::change(&self.configuration, &configuration)
            && self.raw.apply_conf_change(&change).is_err()
        {
            return self.stop(FatalError::Configuration { run });
        }
        self.configuration = configuration;
        self.configuration_run = run;
        self.take_priority();
        if !self.configuration.is_joint() && self.changing.as_ref().is_some_and(|changing| changing.transfer.is_none()) {
            self.end_change(Ok(()));
        }
    }

    pub(super) fn end_change(&mut self, result: Result<(), String>) {
        if let Some(Changing { request, .. }) = self.changing.take() {
            self.events.push_back(Event::Admin { request, result });
        }
    }

    /// What a leader does by itself: leave a joint configuration, let a caught-up newcomer take its seat.
    pub(super) fn drive_membership(&mut self) {
        if !self.is_leader() || self.config_pending.is_some() || self.is_transferring() || !self.raw.raft.commit_to_current_term() {
            return;
        }
        if let Some(next) = membership::left(&self.configuration) {
            if next.voters().contains(&self.options.id) {
                self.configure(&next);
            } else {
                // Who stays finishes the change.
                self.transfer_away(self.now);
            }
            return;
        }
        let arrived = self.configuration.seats.iter().find(|(_, record)| {
            let old_life_leads = record.member.as_ref().is_some_and(|member| member.id == self.options.id);
            !old_life_leads && record.incoming.as_ref().is_some_and(|member| self.caught_up(member.id))
        });
        if let Some(next) = arrived.and_then(|(seat, _)| membership::replaced(&self.configuration, *seat)) {
            self.configure(&next);
        }
    }

    pub(super) fn caught_up(&self, id: RaftId) -> bool {
        let committed = self.raw.raft.raft_log.committed;
        self.raw.raft.prs().get(id.0).is_some_and(|progress| {
            self.peers.contains(&id) && progress.matched + CAUGHT_UP_RUNS >= committed && progress.matched > 0
        })
    }

    /// Proposes a configuration; false if the crate takes none now.
    pub(super) fn configure(&mut self, next: &Configuration) -> bool {
        // Until the last change is applied, the crate would quietly put an empty entry in this one's place.
        if self.raw.raft.has_pending_conf() {
            return false;
        }
        let payload = ConfigPayload { base: self.configuration_run, configuration: next.clone() }.encode();
        let Ok(entry) = entry(&EntrySpec::internal(EntryKind::Config), &payload) else { return false };
        let Ok(run) = self.seal(Term(self.raw.raft.term), &[&entry]) else { return false };
        let index = run.header().run;
        let appended = self.append(run, membership::change(&self.configuration, next));
        if appended {
            self.config_pending = Some(index);
        }
        appended
    }

    pub(super) fn transfer(&mut self, seat: Seat, request: AdminRequest) -> Result<AdminProgress, AdminRefused> {
        let record = self.configuration.seats.get(&seat).ok_or(AdminRefused::UnknownSeat(seat))?;
        let member = record.member.as_ref().ok_or(AdminRefused::Vacant(seat))?;
        if member.role != Role::Voter {
            return Err(AdminRefused::Standby(seat));
        }
        let target = member.id;
        if !self.caught_up(target) {
            return Err(AdminRefused::Behind(seat));
        }
        self.raw.transfer_leader(target.0);
        let until = self.now.plus_ms(self.options.timing.tick_ms * self.options.timing.election_ticks as u64 * 2);
        self.changing = Some(Changing { request, transfer: Some((target, until)) });
        self.stepped();
        Ok(AdminProgress::Started)
    }
}
