//! What is said on a link, phrased at the last moment: a hello or a resume tells where the learner is when it leaves.

use relay::wire::{ClientFrame, FeedMode, Hello, PROTOCOL_VERSION, Proposal, ResumePoint, SessionSecret};
use voter_mesh::ids::{RequestId, Time};

use super::collecting::Collecting;
use super::link::{LinkSession, Say};
use super::window::Stage;
use super::{ACK_MS, Core, LinkId, WINDOW_MAX, Waiters, ms};

/// A question about the session that is not answered for this long is asked again; it is idempotent.
const SESSION_AGAIN_MS: u64 = 2_000;

impl<W: Waiters> Core<W> {
    pub(super) fn next_frame(&mut self, id: LinkId, now: Time) -> Option<ClientFrame> {
        let link = self.links.get_mut(&id)?;
        let frame = match link.say.pop_front() {
            Some(say) => Some(self.phrase(id, say, now)),
            None if self.first != Some(id) || self.closed.is_some() => None,
            None if link.session == LinkSession::Ready && self.session.is_live() => {
                self.next_proposals(id).map(ClientFrame::Propose).or_else(|| self.next_ack(now))
            }
            None => self.next_ack(now),
        };
        if frame.is_some()
            && let Some(link) = self.links.get_mut(&id)
        {
            link.sent(now);
        }
        frame
    }

    fn phrase(&mut self, id: LinkId, say: Say, now: Time) -> ClientFrame {
        if let (Say::SessionOpen(_) | Say::SessionAttach(_), Some(link)) = (&say, self.links.get_mut(&id)) {
            link.ask_again_us = Some(now.monotonic_us + ms(SESSION_AGAIN_MS));
        }
        let resume = match self.options.feed {
            FeedMode::Thin => None,
            _ => self.position.map(|(applied, chain)| ResumePoint { applied, chain }),
        };
        match say {
            Say::Hello => ClientFrame::Hello(self.hello(id, resume)),
            Say::SessionOpen(secret) => ClientFrame::SessionOpen { secret: SessionSecret(secret) },
            Say::SessionAttach(attach) => ClientFrame::SessionAttach { nonce: attach.nonce, previous: attach.previous },
            Say::SessionClose => ClientFrame::SessionClose,
            Say::Resume => {
                let (feed, unanswered) = (self.options.feed, self.unanswered_ids());
                ClientFrame::Resume { resume, feed, unanswered, partial: self.collecting.as_ref().map(Collecting::partial) }
            }
            Say::ReadIndex(id) => ClientFrame::ReadIndex { id },
            Say::Fetch(from, to) => ClientFrame::Fetch { from, to },
            Say::Ping => ClientFrame::Ping { nonce: now.monotonic_us },
        }
    }

    fn hello(&mut self, id: LinkId, resume: Option<ResumePoint>) -> Hello {
        let probe = std::mem::take(&mut self.probe_epoch);
        let session = self.session.proof().filter(|_| !probe);
        let unanswered = if session.is_some() { self.unanswered_ids() } else { Vec::new() };
        // Another link may have become the first one, or ended, since this one was dialled.
        let mode = self.mode_of_another(id);
        let epoch = self.identity.filter(|_| !probe).map(|identity| identity.epoch);
        if let Some(link) = self.links.get_mut(&id) {
            (link.mode, link.proved, link.claims_epoch) = (mode, session.clone(), epoch.is_some());
        }
        Hello {
            version: PROTOCOL_VERSION,
            cluster: self.identity.map(|identity| identity.cluster),
            epoch,
            room: self.options.room.clone(),
            auth: Vec::new(),
            state_machine: self.options.machine.clone(),
            session,
            resume: resume.filter(|_| !probe),
            feed: mode,
            unanswered,
            partial: self.collecting.as_ref().filter(|_| mode == FeedMode::Full && !probe).map(Collecting::partial),
        }
    }

    fn unanswered_ids(&self) -> Vec<RequestId> {
        self.window
            .requests
            .iter()
            .filter(|(_, request)| matches!(request.stage, Stage::Open) && request.sent())
            .map(|(id, _)| *id)
            .take(WINDOW_MAX)
            .collect()
    }

    /// Proposals for one frame.
    fn next_proposals(&mut self, id: LinkId) -> Option<Vec<Proposal>> {
        let floor = self.window.floor();
        let message_bytes_max = self.links.get(&id)?.limits()?.message_bytes_max as usize;
        let bytes_max = self.options.limits.frame_bytes_max.min(message_bytes_max / 2);
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        while let Some(&request_id) = self.window.to_send.front() {
            let open = self.window.requests.get_mut(&request_id).filter(|request| matches!(request.stage, Stage::Open));
            let Some(request) = open else {
                self.window.to_send.pop_front();
                continue;
            };
            bytes += request.payload.len();
            if bytes > bytes_max && !proposals.is_empty() {
                break;
            }
            self.window.to_send.pop_front();
            request.copies = request.copies.saturating_add(1);
            proposals.push(Proposal { id: request_id, floor: floor.min(request_id), payload: request.payload.clone() });
        }
        (!proposals.is_empty()).then_some(proposals)
    }

    fn next_ack(&mut self, now: Time) -> Option<ClientFrame> {
        let (applied, _) = self.position?;
        if applied == self.ack.told || now.monotonic_us < self.ack.next_us || self.options.feed == FeedMode::Thin {
            return None;
        }
        self.ack.told = applied;
        self.ack.next_us = now.monotonic_us + ms(ACK_MS);
        Some(ClientFrame::Ack { applied })
    }
}
