//! Links together: dialled, followed, promoted, lost. With two, the second stands by and takes over without a dial.

use relay::wire::FeedMode;
use voter_mesh::ids::Time;

use super::link::{Link, Phase, Say};
use super::{Core, Event, LinkId, Waiters, ms};
use crate::status::LinkError;

/// A link that held this long was good: losing it does not count as a failed dial.
const GOOD_LINK_MS: u64 = 1_000;

impl<W: Waiters> Core<W> {
    /// Chooses the link to follow, and dials what is missing.
    pub(super) fn balance(&mut self, now: Time) {
        if self.closed.is_some() {
            return;
        }
        if self.first.is_none()
            && let Some(link) = self.links.iter().find(|(_, link)| link.is_admitted()).map(|(id, _)| *id)
        {
            self.follow(link);
        }
        self.dial_at_us = None;
        while self.links.len() < self.options.links {
            let in_use: Vec<&str> = self.links.values().map(|link| link.endpoint.as_str()).collect();
            let endpoint = match self.rotation.pick(&in_use, now.monotonic_us) {
                Ok(endpoint) => endpoint,
                Err(at) => {
                    self.dial_at_us = Some(at);
                    return;
                }
            };
            let link = LinkId(self.next_link);
            self.next_link += 1;
            let mode = self.mode_of_another(link);
            let handshake_by_us = now.monotonic_us + ms(self.options.limits.handshake_ms);
            self.links.insert(link, Link::new(endpoint.clone(), mode, handshake_by_us));
            self.events.push_back(Event::Dial { link, endpoint });
        }
    }

    /// What a link asks for in its hello: a feed, unless another link has one or is about to.
    pub(super) fn mode_of_another(&self, link: LinkId) -> FeedMode {
        let fed = self.links.iter().any(|(id, other)| *id != link && other.mode != FeedMode::Standby);
        if fed || self.first.is_some() { FeedMode::Standby } else { self.options.feed }
    }

    /// Makes an admitted link the first one: it feeds the learner, and what is unanswered goes out on it.
    fn follow(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        self.first = Some(id);
        self.ahead_since_us = None;
        if link.mode != self.options.feed {
            link.mode = self.options.feed;
            link.feeding = false;
            link.say(Say::Resume);
        }
        self.fetching = None;
        self.reads.link_changed();
        self.requeue_requests();
        self.pursue_session();
        self.ask_fetch();
    }

    /// The first link is gone.
    pub(super) fn unfollow(&mut self) {
        self.first = None;
        self.ahead_since_us = None;
        self.window.to_send.clear();
    }

    /// The owner says that the link is gone.
    pub(super) fn lose(&mut self, id: LinkId, error: LinkError, now: Time) {
        let Some(link) = self.links.remove(&id) else { return };
        if self.closed.is_some() {
            return;
        }
        let good = matches!(link.phase, Phase::Admitted { since_us, .. } if now.monotonic_us >= since_us + ms(GOOD_LINK_MS));
        if good {
            self.rotation.reset();
        } else {
            self.rotation.failed(now.monotonic_us, &mut self.randomness);
        }
        self.last_error = Some(error);
        if self.first == Some(id) {
            self.unfollow();
        }
        self.balance(now);
        self.ask_reads(now);
    }

    /// Drops a link by our own decision.
    pub(super) fn hang_up(&mut self, id: LinkId, error: LinkError, now: Time) {
        if self.links.contains_key(&id) {
            self.events.push_back(Event::Hangup { link: id });
            self.lose(id, error, now);
        }
    }

    /// Pings what is silent, drops what is dead, and lets the standby overtake a first link that stalls.
    pub(super) fn watch_links(&mut self, now: Time) {
        let now_us = now.monotonic_us;
        let late: Vec<(LinkId, LinkError)> = self
            .links
            .iter()
            .filter_map(|(id, link)| match link.dead_at_us() {
                None => (link.handshake_by_us <= now_us).then_some((*id, LinkError::HandshakeTimeout)),
                Some(at) => (at <= now_us).then_some((*id, LinkError::Silent)),
            })
            .collect();
        for (id, error) in late {
            self.hang_up(id, error, now);
        }
        for link in self.links.values_mut() {
            if link.ask_again_us.take_if(|at| *at <= now_us).is_some() {
                link.forget_asked();
            }
        }
        self.pursue_session();
        for link in self.links.values_mut() {
            if link.ping_at_us().is_some_and(|at| at <= now_us) {
                link.pinged_us = now_us;
                link.say(Say::Ping);
            }
        }
        if let Some((at, probe)) = self.stall_at_us().filter(|(at, _)| *at <= now_us) {
            let _ = at;
            let Some(first) = self.first else { return };
            if probe {
                if let Some(link) = self.links.get_mut(&first) {
                    link.probed_us = Some(now_us);
                    link.say(Say::Ping);
                }
            } else {
                self.hang_up(first, LinkError::Overtaken, now);
            }
        }
    }

    fn has_standby(&self) -> bool {
        self.links.iter().any(|(id, link)| self.first != Some(*id) && link.is_admitted())
    }

    /// When the first link is asked whether it lives (`true`), or overtaken.
    fn stall_at_us(&self) -> Option<(u64, bool)> {
        let link = self.links.get(&self.first?)?;
        if !self.has_standby() {
            return None;
        }
        let stall_us = ms(self.options.limits.stall_ms);
        let ahead = self.ahead_since_us.map(|since| (since + stall_us, false));
        let waiting = self.window.in_flight() || self.reads.is_asked() || self.fetching.is_some();
        let silent = waiting.then(|| match link.probed_us {
            Some(probed) => (probed + stall_us / 2, false),
            None => (link.expecting_since_us.unwrap_or(link.heard_us) + stall_us / 2, true),
        });
        [ahead, silent].into_iter().flatten().min()
    }

    pub(super) fn link_timeouts(&self) -> impl Iterator<Item = (u64, &'static str)> + '_ {
        let links = self.links.values().flat_map(|link| {
            let handshake = (!link.is_admitted()).then_some((link.handshake_by_us, "a handshake must be over"));
            let ping = link.ping_at_us().map(|at| (at, "a ping is due"));
            let dead = link.dead_at_us().map(|at| (at, "a silent link is dead"));
            let again = link.ask_again_us.map(|at| (at, "the session is asked after again"));
            [handshake, ping, dead, again].into_iter().flatten()
        });
        let ack = (self.first.is_some() && self.options.feed != FeedMode::Thin)
            .then_some(self.position)
            .flatten()
            .filter(|(applied, _)| *applied != self.ack.told)
            .map(|_| (self.ack.next_us, "the server is told how far the learner is"));
        links.chain(self.stall_at_us().map(|(at, _)| (at, "the first link stalls"))).chain(ack)
    }
}
