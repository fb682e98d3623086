//! Who is let in, where its feed begins, and what happens when it must wait: for this server to come as far as the client is, for old
//! runs to be read, or for a state to be written out. Admission costs no log entry; a disconnect takes everything back.

use voter_mesh::ids::{LogIndex, SessionId, Time};
use voter_mesh::mutant;
use voter_mesh::session::{SessionProofResult, Sessions};

use crate::feed::ChainAt;
use crate::wire::{Admit, Code, FeedMode, Hello, PartialState, ResumePoint, ServerFrame, SessionStatus, Start};

use super::Room;
use super::cold::PlaceAt;
use super::link::{Delivery, LinkId, LinkSession, List, Pending, Phase, Wanted};

/// Where a learner's delivery begins.
enum Begin {
    /// Here.
    Now(Start, Delivery),
    /// Not before this is there.
    Later(Awaited),
}

/// What a learner's delivery waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// This entry is applied.
    Applied(LogIndex),
    /// The runs from this entry on are read from the log.
    Runs(LogIndex),
    /// There is a state.
    State,
}

impl Begin {
    fn tail(from: LogIndex) -> Self {
        Self::Now(Start::Tail(from), Delivery::Feed { cursor: from })
    }
}

impl Room {
    /// The hello of a link.
    pub(super) fn greet(&mut self, id: LinkId, hello: Hello, sessions: &Sessions, now: Time) -> Result<(), Code> {
        if let Some(code) = self.objection(&hello) {
            let retry = (code == Code::Recovering).then_some(self.options.limits.retry_after_ms);
            return self.close(id, code, retry, now);
        }
        let Some(link) = self.links.get(id) else { return Ok(()) };
        if link.pending.is_some() {
            self.counters.malformed += 1;
            return self.close(id, Code::Malformed, None, now);
        }
        self.go_on(id, Pending { what: Wanted::Hello(Box::new(hello)), until: None }, sessions, now)
    }

    /// What is wrong with a hello, whatever the log says.
    fn objection(&self, hello: &Hello) -> Option<Code> {
        let identity = &self.options.identity;
        let machine = &self.options.machine;
        if hello.room != self.options.name {
            Some(Code::UnknownRoom)
        } else if self.recovering {
            Some(Code::Recovering)
        } else if hello.cluster.is_some_and(|cluster| cluster != identity.cluster) {
            Some(Code::Cluster)
        } else if hello.epoch.is_some_and(|epoch| epoch != identity.epoch) {
            Some(Code::Epoch)
        } else if hello.state_machine.as_ref().is_some_and(|named| named != machine) {
            Some(Code::StateMachine)
        } else {
            None
        }
    }

    /// A live link changes what it receives.
    pub(super) fn resume(&mut self, id: LinkId, feed: FeedMode, what: Wanted, sessions: &Sessions, now: Time) -> Result<(), Code> {
        if !self.may_ask(id, now) {
            return self.close(id, Code::Overloaded, Some(self.options.limits.retry_after_ms), now);
        }
        let Some(link) = self.links.get(id) else { return Ok(()) };
        // From here on nothing of the old place is sent: frames before the answer belong to it.
        link.delivery = Delivery::Nothing;
        link.pending = None;
        link.mode = feed;
        self.go_on(id, Pending { what, until: None }, sessions, now)
    }

    /// What comes next for a link's cursor is not kept any more: it needs a snapshot, for which it waits like any other.
    pub(super) fn catch_up(&mut self, id: LinkId) {
        if let Some(link) = self.links.get(id) {
            link.delivery = Delivery::Nothing;
            let what = Wanted::CatchUp { partial: None, asked: false };
            link.pending = Some(Box::new(Pending { what, until: None }));
            self.links.enlist(List::Waiting, id);
            self.revisit = true;
        }
    }

    /// Every link that waits looks again whether it must.
    pub(super) fn revisit_waiting(&mut self, sessions: &Sessions, now: Time) {
        self.awaited = None;
        for _ in 0..self.links.listed(List::Waiting) {
            let Some(id) = self.links.pop(List::Waiting) else { break };
            if let Some(pending) = self.links.get(id).and_then(|link| link.pending.take()) {
                // Its own end, if this was one, is in its outbox.
                let _ = self.go_on(id, *pending, sessions, now);
            }
        }
    }

    /// Does what is pending, or lets it wait.
    fn go_on(&mut self, id: LinkId, pending: Pending, sessions: &Sessions, now: Time) -> Result<(), Code> {
        let tail = self.feed.tail().0;
        let mut status = SessionStatus::None;
        let (mode, resume) = match &pending.what {
            Wanted::Hello(hello) => {
                if let Some(proof) = &hello.session {
                    let ahead = LogIndex(proof.session.0.max(proof.opening.map_or(0, |opening| opening.0)));
                    status = match sessions.prove(proof.session, &proof.secret.0) {
                        SessionProofResult::WrongSecret => return self.close(id, Code::Auth, None, now),
                        _ if ahead > tail => return self.wait(id, pending, Awaited::Applied(ahead), now),
                        SessionProofResult::Proven(opening) => SessionStatus::Attached(opening),
                        SessionProofResult::Unknown => SessionStatus::Expired,
                    };
                }
                (hello.feed, hello.resume)
            }
            Wanted::Resume { resume, .. } => (self.links.get(id).map_or(FeedMode::Thin, |link| link.mode), *resume),
            Wanted::CatchUp { .. } => (FeedMode::Full, None),
        };
        let begin = match (&pending.what, self.begin(mode, resume)) {
            (Wanted::CatchUp { partial, asked }, _) => self.begin_in_state(*partial, *asked, now),
            (_, Err(code)) => return self.close(id, code, None, now),
            (Wanted::Hello(hello), Ok(Begin::Later(Awaited::State))) => self.begin_in_state(hello.partial, false, now),
            (Wanted::Resume { partial, .. }, Ok(Begin::Later(Awaited::State))) => self.begin_in_state(*partial, false, now),
            (_, Ok(begin)) => begin,
        };
        match (begin, pending.what) {
            (Begin::Now(start, delivery), what) => self.deliver(id, what, start, delivery, status, sessions, now),
            (Begin::Later(Awaited::State), Wanted::CatchUp { partial, asked }) => {
                self.want_state(partial.filter(|_| !asked));
                let what = Wanted::CatchUp { partial, asked: true };
                self.wait(id, Pending { what, ..pending }, Awaited::State, now)
            }
            // It is let in at once, with the least that the snapshot will stand at; its own `Start` says where.
            (Begin::Later(Awaited::State), what) => {
                let partial = match &what {
                    Wanted::Hello(hello) => hello.partial,
                    Wanted::Resume { partial, .. } | Wanted::CatchUp { partial, .. } => *partial,
                };
                let at_least = Start::Snapshot(self.first().previous());
                self.deliver(id, what, at_least, Delivery::Nothing, status, sessions, now)?;
                self.go_on(id, Pending { what: Wanted::CatchUp { partial, asked: false }, until: None }, sessions, now)
            }
            (Begin::Later(awaited), what) => self.wait(id, Pending { what, ..pending }, awaited, now),
        }
    }

    /// Where a learner that stands at `resume` begins, and with what.
    fn begin(&mut self, mode: FeedMode, resume: Option<ResumePoint>) -> Result<Begin, Code> {
        let tail = self.feed.tail().0;
        if mode == FeedMode::Thin {
            return Ok(Begin::Now(Start::Tail(tail.next()), Delivery::Nothing));
        }
        let place = resume.map(|point| (point, self.place_at(point.applied)));
        match &place {
            Some((point, PlaceAt::Seen(ChainAt::Known(chain)))) if *chain != point.chain && !mutant!("resume_without_chain") => {
                return Err(Code::Diverged);
            }
            Some((_, PlaceAt::Seen(ChainAt::Inside))) => return Err(Code::Diverged),
            _ => {}
        }
        if mode == FeedMode::Standby {
            return Ok(Begin::Now(Start::Tail(tail.next()), Delivery::Commit { sent: tail }));
        }
        Ok(match place {
            Some((point, PlaceAt::Seen(ChainAt::Above))) => Begin::Later(Awaited::Applied(point.applied)),
            Some((point, PlaceAt::Seen(ChainAt::Known(_)))) => Begin::tail(point.applied.next()),
            Some((point, PlaceAt::Unread)) => Begin::Later(Awaited::Runs(point.applied.next())),
            None if self.feed.first() == LogIndex::FIRST => Begin::tail(LogIndex::FIRST),
            Some((_, PlaceAt::Seen(_))) | None => Begin::Later(Awaited::State),
        })
    }

    /// Where a learner begins that needs a state: best the one that it has a part of, if that does not have to be waited for any more.
    fn begin_in_state(&mut self, partial: Option<PartialState>, asked: bool, now: Time) -> Begin {
        match self.usable_state(partial, asked, now) {
            Some((state, offset)) => Begin::Now(Start::Snapshot(state.index), Delivery::Snapshot { state, offset, progress: now }),
            None => Begin::Later(Awaited::State),
        }
    }

    /// Lets a link wait.
    fn wait(&mut self, id: LinkId, mut pending: Pending, awaited: Awaited, now: Time) -> Result<(), Code> {
        let limits = &self.options.limits;
        let (patience_ms, late) = match awaited {
            Awaited::Applied(_) => (limits.behind_ms, Code::Behind),
            Awaited::Runs(_) => (limits.runs_ms, Code::Overloaded),
            Awaited::State => (limits.state_ms, Code::Overloaded),
        };
        pending.until.get_or_insert((now.plus_ms(patience_ms), late));
        if let Some(link) = self.links.get(id) {
            link.pending = Some(Box::new(pending));
        }
        match awaited {
            Awaited::Applied(index) => self.awaited = Some(self.awaited.map_or(index, |awaited| awaited.min(index))),
            // It is called by whoever reads them, and looked at by nobody before.
            Awaited::Runs(from) => self.want_runs(from, id),
            Awaited::State => {}
        }
        if !matches!(awaited, Awaited::Runs(_)) {
            self.links.enlist(List::Waiting, id);
        }
        self.arm(id);
        Ok(())
    }

    /// Nothing is in the way any more: answers, and begins to deliver.
    fn deliver(
        &mut self,
        id: LinkId,
        what: Wanted,
        start: Start,
        delivery: Delivery,
        status: SessionStatus,
        sessions: &Sessions,
        now: Time,
    ) -> Result<(), Code> {
        if let Delivery::Snapshot { offset, .. } = &delivery {
            self.counters.snapshots += 1;
            self.counters.snapshots_resumed += u64::from(*offset > 0);
        }
        let Some(link) = self.links.get(id) else { return Ok(()) };
        link.delivery = delivery;
        let (frame, unanswered) = match what {
            Wanted::Hello(hello) => {
                link.phase = Phase::Live;
                link.mode = hello.feed;
                self.counters.admitted += 1;
                if mutant!("admit_evicts_another")
                    && let Some(other) = self.links.pop(List::Parked).filter(|other| *other != id)
                    && let Some(other) = self.links.get(other)
                {
                    other.delivery = Delivery::Nothing;
                }
                if let (Some(proof), SessionStatus::Attached(_)) = (&hello.session, status) {
                    self.attach(id, LinkSession { session: proof.session, opening: proof.opening }, now);
                }
                (ServerFrame::Admit(self.admit(start, status)), hello.unanswered)
            }
            Wanted::Resume { unanswered, .. } => (ServerFrame::Start(start), unanswered),
            Wanted::CatchUp { .. } => (ServerFrame::Start(start), Vec::new()),
        };
        self.send(id, &frame, now)?;
        self.arm(id);
        self.expect(id, &unanswered, sessions, now)
    }

    fn admit(&self, start: Start, session: SessionStatus) -> Admit {
        let options = &self.options;
        Admit {
            cluster: options.identity.cluster,
            epoch: options.identity.epoch,
            server: options.server,
            servers: options.endpoints.clone(),
            leader: self.leader,
            commit: self.feed.tail().0,
            state_machine: options.machine.clone(),
            start,
            session,
            limits: options.limits.wire(),
        }
    }

    /// The link speaks for this session from now on, and for no other.
    pub(super) fn attach(&mut self, id: LinkId, session: LinkSession, now: Time) {
        if self.links.get(id).and_then(|link| link.session).map(|old| old.session) != Some(session.session) {
            self.detach(id, now);
            self.attached.entry(session.session).or_default().push(id);
            self.note_activity(session.session, now);
        }
        if let Some(link) = self.links.get(id) {
            link.session = Some(session);
        }
    }

    /// The link speaks for no session any more.
    pub(super) fn detach(&mut self, id: LinkId, now: Time) {
        let Some(LinkSession { session, .. }) = self.links.get(id).and_then(|link| link.session.take()) else { return };
        let Some(ids) = self.attached.get_mut(&session) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.attached.remove(&session);
            self.note_activity(session, now);
        }
    }

    fn note_activity(&mut self, session: SessionId, now: Time) {
        self.activity.insert(session);
        if self.activity_due.is_none() {
            self.activity_due = Some(now.plus_ms(self.options.limits.activity_ms));
        }
    }

    /// Whether a link may send another frame that can cost a log entry or a snapshot.
    pub(super) fn may_ask(&mut self, id: LinkId, now: Time) -> bool {
        let limits = self.options.limits;
        self.links.get(id).is_some_and(|link| {
            if now >= link.session_frames_until {
                (link.session_frames, link.session_frames_until) = (0, now.plus_ms(limits.activity_ms));
            }
            link.session_frames += 1;
            link.session_frames <= limits.session_frames_max
        })
    }

    /// Sets the link's timer to the first of its deadlines.
    pub(super) fn arm(&mut self, id: LinkId) {
        let limits = self.options.limits;
        let Some(link) = self.links.get(id) else { return };
        let pending = link.pending.as_ref().and_then(|pending| Some(pending.until?.0));
        let phase = match link.phase {
            Phase::Handshaking(until) if pending.is_none() => Some(until),
            Phase::Live => Some(link.heard.plus_ms(2 * limits.ping_ms)),
            _ => None,
        };
        let stall = match &link.delivery {
            Delivery::Snapshot { progress, .. } => Some(progress.plus_ms(limits.snapshot_stall_ms)),
            _ => None,
        };
        let at = [pending, phase, stall].into_iter().flatten().min();
        self.links.arm(id, at);
    }

    /// A link's timer went off.
    pub(super) fn expire(&mut self, id: LinkId, now: Time) {
        let limits = self.options.limits;
        let Some(link) = self.links.get(id) else { return };
        let overdue = |at: Time| at <= now;
        let end = match (&link.pending, link.phase, &link.delivery) {
            (_, Phase::Closing(_), _) => return self.aborts.push_back(id),
            (Some(pending), ..) if pending.until.is_some_and(|(until, _)| overdue(until)) => pending.until.map(|(_, late)| late),
            (None, Phase::Handshaking(until), _) if overdue(until) => Some(Code::Timeout),
            (_, Phase::Live, _) if overdue(link.heard.plus_ms(2 * limits.ping_ms)) => Some(Code::Timeout),
            (_, _, Delivery::Snapshot { progress, .. }) if overdue(progress.plus_ms(limits.snapshot_stall_ms)) => {
                Some(Code::Timeout)
            }
            _ => None,
        };
        match end {
            Some(code) => {
                let retry = (code != Code::Timeout).then_some(limits.retry_after_ms);
                let _ = self.close(id, code, retry, now);
            }
            None => self.arm(id),
        }
    }
}
