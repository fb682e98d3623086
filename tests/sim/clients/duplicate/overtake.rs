//! A process that does not know that its journal was opened elsewhere: a copy of it comes with the session, its secret and what is
//! unanswered, and attaches, while the first one goes on proposing under the opening that it holds, on its own links. So its proposals reach
//! the log on both sides of the attach, some of them late, from a server that was cut off with them. Once it is told, or gives up, the copy goes on
//! in its place.

use std::rc::Rc;
use std::time::Duration;

use relay::wire::{ClientFrame, FeedMode, Hello, SessionProof, SessionStatus};
use tokio::time::Instant;
use voter_mesh::ids::{Epoch, Opening};

use super::super::peer::{Peer, hello};
use super::Sender;
use crate::sim::random::Random;
use crate::sim::record::Phase;

/// How long the first one goes on.
const GOES_ON_MS: (u64, u64) = (300, 6_000);

/// Between two of its bursts.
const PAUSE_MS: (u64, u64) = (1, 80);

impl Sender {
    pub(super) fn is_to_be_overtaken(&mut self) -> bool {
        self.session.is_some() && self.whims.below(200) == 0 && !self.machine.shared.is(Phase::Healed)
    }

    /// Overtakes itself, if a server can be reached. Whether the session goes on.
    pub(super) async fn overtake(&mut self) -> bool {
        let Some((mut copy, opening)) = self.copy().await else { return true };
        self.machine.shared.fault("session_overtaken", self.machine.id);
        self.overtaken = true;
        let mut nonce = [0; 16];
        nonce.fill_with(|| self.whims.next() as u8);
        let attach = ClientFrame::SessionAttach { nonce, previous: opening };
        let end = Instant::now() + Duration::from_millis(self.machine.between(GOES_ON_MS));
        let mut bursts_before = self.machine.below(4);
        while Instant::now() < end && self.links.iter().any(Option::is_some) {
            self.propose(self.machine.shared.is(Phase::Quiet)).await;
            if copy.session.is_some() {
                if self.machine.below(8) == 0 {
                    // Nothing new: the first one may be using the next ids.
                    copy.propose(true).await;
                }
            } else if bursts_before == 0 {
                copy.say(0, &attach).await;
                // It asks again where it hears nothing.
                bursts_before = 8;
            }
            bursts_before = bursts_before.saturating_sub(1);
            let deadline = Instant::now() + Duration::from_millis(self.machine.between(PAUSE_MS));
            for link in [0, 1] {
                if !self.hear(link, deadline).await {
                    self.links[link] = None;
                }
            }
            if !copy.hear(0, deadline).await {
                return false;
            }
        }
        let Some((_, later)) = copy.session else { return false };
        if later <= opening {
            self.machine.shared.complain(self.machine.id, format_args!("attached to {opening} and got {later}"));
        }
        copy.next = self.next;
        *self = copy;
        true
    }

    /// One that comes back from a copy of the journal and is let in, and the opening that it finds there.
    async fn copy(&mut self) -> Option<(Self, Opening)> {
        let (session, opening) = self.session?;
        let proof = SessionProof { session, secret: self.secret.clone(), opening: None };
        let hello = Hello { session: Some(proof), epoch: Some(Epoch::FIRST), ..hello(FeedMode::Thin) };
        let server = self.machine.shared.server(&self.machine);
        let peer = Peer::attach(&self.machine, server, hello).await.ok()?;
        if peer.admit.session != SessionStatus::Attached(opening) {
            return None;
        }
        let copy = Self {
            machine: Rc::clone(&self.machine),
            secret: self.secret.clone(),
            session: None,
            lazy: self.lazy,
            next: self.next,
            sent: self.sent.clone(),
            open: self.open.clone(),
            links: [Some(peer), None],
            whims: Random::new(self.whims.next()),
            overtaken: false,
        };
        Some((copy, opening))
    }
}
