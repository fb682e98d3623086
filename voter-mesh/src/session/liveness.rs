//! Which sessions are attached anywhere, as the leader hears it, and which have been detached for so long that they end.
//!
//! Servers tell the leader every [`ACTIVITY_MS`] which sessions came and went; to a new leader they tell all that are attached.
//! A leader change restarts every wait: a session may live longer than its time, never shorter. Nothing here ends a session; the
//! owner proposes a `SessionEnd` for what [`Liveness::due`] names, and only the log decides.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{RaftId, SessionId, Time};

/// How often servers report.
pub const ACTIVITY_MS: u64 = 10_000;

/// Sessions ended in one go.
pub const ENDS_PER_ROUND_MAX: usize = 1_024;

/// The leader's book of attached sessions.
#[derive(Debug, Default)]
pub struct Liveness {
    leading_since: Option<Time>,
    attached: BTreeMap<SessionId, BTreeSet<RaftId>>,
    detached: BTreeMap<SessionId, Time>,
}

impl Liveness {
    /// This server began to lead.
    pub fn lead(&mut self, now: Time) {
        *self = Self { leading_since: Some(now), ..Self::default() };
    }

    /// This server stopped leading: nothing ends by its hand any more.
    pub fn resign(&mut self) {
        *self = Self::default();
    }

    /// Whether this server leads, as far as this book knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leading_since.is_some()
    }

    /// A server's report (or this server's own).
    pub fn report(&mut self, server: RaftId, attached: &[SessionId], detached: &[SessionId], now: Time) {
        if self.leading_since.is_none() {
            return;
        }
        for session in attached {
            self.attached.entry(*session).or_default().insert(server);
            self.detached.remove(session);
        }
        for session in detached {
            if let Some(servers) = self.attached.get_mut(session) {
                servers.remove(&server);
                if servers.is_empty() {
                    self.attached.remove(session);
                    self.detached.insert(*session, now);
                }
            }
        }
    }

    /// A session was opened or attached in the log: it counts from now until a server reports it.
    pub fn seen(&mut self, session: SessionId, now: Time) {
        if self.leading_since.is_some() && !self.attached.contains_key(&session) {
            self.detached.insert(session, now);
        }
    }

    /// A server is gone, and with it all of its clients' links.
    pub fn lost(&mut self, server: RaftId, now: Time) {
        let detached = &mut self.detached;
        self.attached.retain(|session, servers| {
            servers.remove(&server);
            if servers.is_empty() {
                detached.insert(*session, now);
            }
            !servers.is_empty()
        });
    }

    /// The sessions among `table` that have been detached for `ttl_ms`, at most [`ENDS_PER_ROUND_MAX`] of them. A session that
    /// nobody ever reported counts from when this server began to lead.
    pub fn due(&mut self, table: impl Iterator<Item = SessionId>, ttl_ms: u64, now: Time) -> Vec<SessionId> {
        let Some(since) = self.leading_since else { return Vec::new() };
        let old = |at: Time| now.since_us(at) >= ttl_ms.saturating_mul(1000);
        let whole_table = old(since);
        let mut due = Vec::new();
        if whole_table {
            for session in table {
                if due.len() == ENDS_PER_ROUND_MAX {
                    break;
                }
                if !self.attached.contains_key(&session) && self.detached.get(&session).is_none_or(|at| old(*at)) {
                    due.push(session);
                }
            }
        }
        self.detached.retain(|_, at| !old(*at));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: u64 = 60_000;

    #[test]
    fn a_session_ends_only_after_it_was_detached_for_its_whole_time() {
        let (mut book, start) = (Liveness::default(), Time::default());
        let (server, sessions) = (RaftId(1), [SessionId(7), SessionId(9)]);
        book.lead(start);
        book.report(server, &sessions, &[], start.plus_ms(10));
        let later = start.plus_ms(TTL * 2);
        assert!(book.due(sessions.iter().copied(), TTL, later).is_empty(), "attached sessions never end");
        book.report(server, &[], &[SessionId(7)], later);
        assert!(book.due(sessions.iter().copied(), TTL, later.plus_ms(TTL - 1)).is_empty());
        assert_eq!(book.due(sessions.iter().copied(), TTL, later.plus_ms(TTL)), [SessionId(7)]);
    }

    #[test]
    fn a_new_leader_waits_anew_for_sessions_that_nobody_reports() {
        let (mut book, start) = (Liveness::default(), Time::default().plus_ms(1_000_000));
        book.lead(start);
        assert!(book.due([SessionId(3)].into_iter(), TTL, start.plus_ms(TTL - 1)).is_empty());
        assert_eq!(book.due([SessionId(3)].into_iter(), TTL, start.plus_ms(TTL)), [SessionId(3)]);
        book.resign();
        assert!(book.due([SessionId(3)].into_iter(), TTL, start.plus_ms(TTL * 9)).is_empty(), "only a leader ends sessions");
    }

    #[test]
    fn a_session_opened_long_after_the_election_is_not_taken_for_a_forgotten_one() {
        let (mut book, start) = (Liveness::default(), Time::default());
        book.lead(start);
        let later = start.plus_ms(TTL * 10);
        book.seen(SessionId(4), later);
        assert!(book.due([SessionId(4)].into_iter(), TTL, later.plus_ms(1)).is_empty());
    }

    #[test]
    fn a_session_attached_at_two_servers_survives_the_loss_of_one() {
        let (mut book, start) = (Liveness::default(), Time::default());
        book.lead(start);
        book.report(RaftId(1), &[SessionId(5)], &[], start);
        book.report(RaftId(2), &[SessionId(5)], &[], start);
        book.lost(RaftId(1), start);
        assert!(book.due([SessionId(5)].into_iter(), TTL, start.plus_ms(TTL * 2)).is_empty());
        book.lost(RaftId(2), start.plus_ms(TTL * 2));
        assert_eq!(book.due([SessionId(5)].into_iter(), TTL, start.plus_ms(TTL * 3)), [SessionId(5)]);
    }
}
