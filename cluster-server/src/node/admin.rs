//! Administrators' requests on their way to the leader and back. Each is kept here, on the server where it came in (or that met
//! the newcomer), until the leader has answered it or its deadline has passed; a leader change asks the next leader again, which is
//! safe because every request names the state that it wants.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use voter_mesh::ids::{RaftId, Seat, Time};
use voter_mesh::mesh::message::{AdminFailure, AdminRequest, Message};
use voter_mesh::raft::{AdminProgress, AdminRefused, RaftRole};

use super::running::{Running, send};
use crate::mesh::{Link, MeshMessage};

/// Milliseconds after which a request is put to the leader again.
const ADMIN_RETRY_MS: u64 = 250;

/// Requests that one server keeps at once.
const ADMIN_ASKS_MAX: usize = 64;

/// Who waits for the answer.
pub(super) enum AdminWaiter {
    /// Somebody in this process, or on this server's port.
    Here(oneshot::Sender<Result<(), AdminFailure>>),
    /// A peer that passed it on, and what it calls it.
    Peer(Seat, u64),
    /// A newcomer on a link of this server: it is told through forming when the configuration names it.
    Newcomer,
}

impl AdminWaiter {
    fn is_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Newcomer, Self::Newcomer) => true,
            (Self::Peer(seat, nonce), Self::Peer(other_seat, other_nonce)) => (seat, nonce) == (other_seat, other_nonce),
            _ => false,
        }
    }
}

/// A request that is not answered yet.
pub(super) struct AdminAsk {
    request: AdminRequest,
    waiter: AdminWaiter,
    nonce: u64,
    deadline: Time,
    ask_at: Time,
    /// This server leads and has begun it.
    started: bool,
}

/// What is done with a request that the voter does not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AfterRefusal {
    /// It is put to this voter again, until its deadline.
    AskAgain,
    /// It goes to the leader.
    PassOn(RaftId),
    /// Nothing: somebody else sees it through.
    Forget,
    /// Whoever waits is told why.
    Answer,
}

impl AdminAsk {
    /// One that is under way is not asked again: its end, or its deadline, is what comes.
    pub(super) fn next_timeout(&self) -> Time {
        if self.started { self.deadline } else { self.ask_at.min(self.deadline) }
    }

    /// Whether it would let in a directory that is gone: its newcomer's link has ended, or the seat has another directory. Let in after that one, it
    /// would take its place, and the one that lives there would be a stranger to the configuration for good.
    fn is_stale(&self, links: &BTreeMap<Seat, Link>) -> bool {
        let AdminRequest::Join { seat, directory } = &self.request else { return false };
        match links.get(seat) {
            Some(link) => link.peer().directory != *directory,
            None => matches!(self.waiter, AdminWaiter::Newcomer),
        }
    }

    /// What follows when this server's voter does not take it.
    const fn refused(&self, why: &AdminRefused) -> AfterRefusal {
        match (why, &self.waiter) {
            // Its own server asks the next leader. Kept until this one leads again, it would be done behind what was wished since.
            (AdminRefused::NotLeader(_), AdminWaiter::Peer(..)) => AfterRefusal::Forget,
            (AdminRefused::NotLeader(Some(leader)), _) => AfterRefusal::PassOn(*leader),
            // All pass by themselves.
            (AdminRefused::NotLeader(None) | AdminRefused::Busy | AdminRefused::Behind(_), _) => AfterRefusal::AskAgain,
            _ => AfterRefusal::Answer,
        }
    }

    /// Whether it would let in a directory that this server has no link to. A leader waits for one: without it, it cannot tell a directory that
    /// is there from one that is gone, whose request some other server still passes on, and it could not send it anything anyway.
    fn is_out_of_reach(&self, links: &BTreeMap<Seat, Link>) -> bool {
        matches!(&self.request, AdminRequest::Join { seat, .. } if !links.contains_key(seat))
    }

    pub(super) fn ask_again(&mut self, now: Time) {
        self.started = false;
        self.ask_at = now;
    }
}

impl Running {
    /// Takes a request and sees it through.
    pub(super) fn admin_asked(&mut self, request: AdminRequest, waiter: AdminWaiter, deadline_ms: u64, now: Time) {
        if self.admin.len() >= ADMIN_ASKS_MAX {
            return answer(waiter, Err(refused("too many requests at once")), &BTreeMap::new());
        }
        if self.admin.iter().any(|ask| ask.waiter.is_the_same(&waiter) && ask.request == request) {
            // It asks again and again, and is answered once.
            return;
        }
        let nonce = self.next_admin;
        self.next_admin += 1;
        self.admin.push(AdminAsk { request, waiter, nonce, deadline: now.plus_ms(deadline_ms), ask_at: now, started: false });
    }

    /// Puts what is due to the leader, itself or another server.
    pub(super) fn drive_admin(&mut self, links: &BTreeMap<Seat, Link>, now: Time) {
        let mut number = 0;
        while number < self.admin.len() {
            let ask = &mut self.admin[number];
            if ask.deadline <= now {
                let ask = self.admin.swap_remove(number);
                answer(ask.waiter, Err(refused("no leader did it in time; it may still happen")), links);
                continue;
            }
            if ask.ask_at > now || ask.started {
                number += 1;
                continue;
            }
            if ask.is_stale(links) {
                let ask = self.admin.swap_remove(number);
                answer(ask.waiter, Err(refused("another directory lives at this seat by now")), links);
                continue;
            }
            number += 1;
            ask.ask_at = now.plus_ms(ADMIN_RETRY_MS);
            if self.role == RaftRole::Leader && ask.is_out_of_reach(links) {
                continue;
            }
            match self.voter.handle_admin(ask.request.clone(), now) {
                Ok(AdminProgress::Started) => ask.started = true,
                Ok(AdminProgress::Done) => {
                    number -= 1;
                    let ask = self.admin.swap_remove(number);
                    answer(ask.waiter, Ok(()), links);
                }
                Err(why) => match ask.refused(&why) {
                    AfterRefusal::AskAgain => {}
                    AfterRefusal::PassOn(leader) => {
                        send(links, leader, Message::Admin { nonce: ask.nonce, request: ask.request.clone() });
                    }
                    AfterRefusal::Forget => {
                        number -= 1;
                        self.admin.swap_remove(number);
                    }
                    AfterRefusal::Answer => {
                        number -= 1;
                        let ask = self.admin.swap_remove(number);
                        answer(ask.waiter, Err(refused(why)), links);
                    }
                },
            }
        }
    }

    /// The leader has answered a request that was passed on to it. One that had just restarted has not: the next one is asked again.
    pub(super) fn admin_answered(&mut self, nonce: u64, result: Result<(), AdminFailure>, links: &BTreeMap<Seat, Link>) {
        if result == Err(AdminFailure::Recovering) {
            return;
        }
        if let Some(number) = self.admin.iter().position(|ask| ask.nonce == nonce) {
            let ask = self.admin.swap_remove(number);
            answer(ask.waiter, result, links);
        }
    }

    /// What this server began as the leader has ended.
    pub(super) fn admin_ended(&mut self, request: &AdminRequest, result: &Result<(), String>, links: &BTreeMap<Seat, Link>) {
        let (ended, open) = std::mem::take(&mut self.admin).into_iter().partition(|ask| ask.started && ask.request == *request);
        self.admin = open;
        for ask in ended {
            answer(ask.waiter, result.clone().map_err(AdminFailure::Refused), links);
        }
    }
}

fn refused(why: impl ToString) -> AdminFailure {
    AdminFailure::Refused(why.to_string())
}

fn answer(waiter: AdminWaiter, result: Result<(), AdminFailure>, links: &BTreeMap<Seat, Link>) {
    match waiter {
        AdminWaiter::Here(sender) => drop(sender.send(result)),
        AdminWaiter::Peer(seat, nonce) => {
            if let Some(link) = links.get(&seat) {
                let _ = link.send(MeshMessage::Raft(Message::AdminReply { nonce, result }));
            }
        }
        AdminWaiter::Newcomer => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_under_way_wakes_nobody_before_its_deadline() {
        let now = Time::default();
        let request = AdminRequest::Promote { seat: Seat(2) };
        let deadline = now.plus_ms(30_000);
        let mut ask = AdminAsk { request, waiter: AdminWaiter::Newcomer, nonce: 1, deadline, ask_at: now, started: false };
        assert_eq!(ask.next_timeout(), now);
        ask.started = true;
        assert_eq!(ask.next_timeout(), deadline);
        ask.ask_again(now.plus_ms(5));
        assert_eq!(ask.next_timeout(), now.plus_ms(5));
    }

    #[test]
    fn a_request_that_was_passed_on_does_not_wait_until_this_server_leads_again() {
        let (now, leader) = (Time::default(), RaftId::new(Seat(3), 1));
        let ask = |waiter| {
            let request = AdminRequest::Promote { seat: Seat(2) };
            AdminAsk { request, waiter, nonce: 1, deadline: now.plus_ms(30_000), ask_at: now, started: false }
        };
        let (passed_on, own) = (ask(AdminWaiter::Peer(Seat(2), 7)), ask(AdminWaiter::Newcomer));
        for known in [None, Some(leader)] {
            assert_eq!(passed_on.refused(&AdminRefused::NotLeader(known)), AfterRefusal::Forget);
        }
        assert_eq!(own.refused(&AdminRefused::NotLeader(Some(leader))), AfterRefusal::PassOn(leader));
        assert_eq!(own.refused(&AdminRefused::NotLeader(None)), AfterRefusal::AskAgain);
        assert_eq!(passed_on.refused(&AdminRefused::Busy), AfterRefusal::AskAgain);
        assert!(passed_on.waiter.is_the_same(&AdminWaiter::Peer(Seat(2), 7)));
        assert!(!passed_on.waiter.is_the_same(&AdminWaiter::Peer(Seat(2), 8)));
    }
}
