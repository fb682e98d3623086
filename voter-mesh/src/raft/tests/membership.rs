//! Seats, lives and votes, changed under load.

use super::super::*;
use super::cluster::{Cluster, id};
use crate::ids::DirectoryId;

fn add(seat: u16) -> AdminRequest {
    AdminRequest::AddSeat { seat: Seat(seat), address: format!("server-{seat}"), priority: 0, failure_domain: String::new() }
}

fn join(seat: u16, directory: u8) -> AdminRequest {
    AdminRequest::Join { seat: Seat(seat), directory: DirectoryId([directory; 16]) }
}

/// Adds a seat, lets its first member in, and gives it a vote.
fn grow(cluster: &mut Cluster, seat: u16) {
    cluster.administer(&add(seat));
    cluster.newcomer(id(seat));
    cluster.administer(&join(seat, seat as u8));
    cluster.administer(&AdminRequest::Promote { seat: Seat(seat) });
}

/// Proposes at a server all along, a command each virtual millisecond.
fn load(cluster: &mut Cluster, at: RaftId, numbers: std::ops::Range<u64>) {
    for number in numbers {
        cluster.propose(at, number);
        cluster.run_ms(1);
    }
}

#[test]
fn a_seat_is_added_joined_and_promoted_under_load() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        load(&mut cluster, leader, 0..50);
        grow(&mut cluster, 4);
        grow(&mut cluster, 5);
        load(&mut cluster, id(4), 50..100);
        cluster.converge();
        assert_eq!(cluster.servers[&id(5)].configuration.voters(), [1, 2, 3, 4, 5].map(id));
        (0..100).for_each(|number| assert_eq!(cluster.count(number), 1));
        // Five stand the loss of two.
        cluster.crash(id(1), false);
        cluster.crash(id(2), false);
        cluster.propose(id(3), 100);
        assert!(cluster.run_until(5_000, |cluster| cluster.count(100) == 1));
    }
}

#[test]
fn a_single_voter_grows_to_three() {
    let mut cluster = Cluster::new(1, 1);
    cluster.lead();
    grow(&mut cluster, 2);
    grow(&mut cluster, 3);
    cluster.propose(id(3), 1);
    cluster.converge();
    cluster.crash(id(1), false);
    cluster.propose(id(2), 2);
    assert!(cluster.run_until(3_000, |cluster| cluster.count(2) == 1));
}

#[test]
fn a_newcomer_takes_the_place_of_a_wiped_life() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        let wiped = cluster.follower();
        load(&mut cluster, leader, 0..50);
        cluster.crash(wiped, false);
        cluster.servers.remove(&wiped);
        let next = RaftId::new(wiped.seat(), 2);
        cluster.newcomer(next);
        cluster.administer(&join(wiped.seat().0, 99));
        assert!(cluster.run_until(10_000, |cluster| {
            let configuration = &cluster.servers[&leader].configuration;
            configuration.voters().contains(&next) && !configuration.is_joint()
        }));
        assert!(!cluster.servers[&leader].configuration.contains(wiped));
        load(&mut cluster, leader, 50..100);
        cluster.converge();
        // It counts: the other follower may go.
        let other = [1, 2, 3].map(id).into_iter().find(|other| *other != leader && *other != wiped).unwrap();
        cluster.crash(other, false);
        cluster.propose(leader, 100);
        assert!(cluster.run_until(1_000, |cluster| cluster.count(100) == 1));
    }
}

#[test]
fn a_follower_is_removed_and_the_rest_goes_on() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, gone) = (cluster.lead(), cluster.follower());
    cluster.administer(&AdminRequest::RemoveSeat { seat: gone.seat() });
    cluster.propose(leader, 1);
    assert!(cluster.run_until(1_000, |cluster| cluster.count(1) == 1));
    assert_eq!(cluster.servers[&leader].configuration.voters().len(), 2);
    // What is left of it disturbs nobody.
    let term = cluster.status(leader).term;
    cluster.run_ms(10_000);
    assert_eq!((cluster.leader(), cluster.status(leader).term), (Some(leader), term));
}

#[test]
fn the_leader_hands_over_before_it_is_removed_and_no_proposal_is_lost() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(3, seed);
        let old = cluster.lead();
        let entry = cluster.follower();
        load(&mut cluster, entry, 0..20);
        cluster.administer(&AdminRequest::RemoveSeat { seat: old.seat() });
        load(&mut cluster, entry, 20..40);
        assert!(cluster.run_until(5_000, Cluster::converged));
        assert!(cluster.leader().is_some_and(|leader| leader != old));
        (0..40).for_each(|number| assert!(cluster.count(number) >= 1));
    }
}

#[test]
fn three_shrink_to_one_and_the_last_cannot_go() {
    let mut cluster = Cluster::new(3, 3);
    let leader = cluster.lead();
    for seat in [1, 2, 3].map(id).into_iter().filter(|other| *other != leader).map(RaftId::seat) {
        cluster.administer(&AdminRequest::RemoveSeat { seat });
    }
    assert_eq!(cluster.servers[&leader].configuration.voters(), [leader]);
    let request = AdminRequest::RemoveSeat { seat: leader.seat() };
    assert!(cluster.run_until(1_000, |cluster| cluster.status(leader).applied == cluster.status(leader).commit));
    assert_eq!(cluster.ask(leader, request), Err(AdminRefused::LastVoter(leader.seat())));
    cluster.propose(leader, 1);
    assert!(cluster.run_until(1_000, |cluster| cluster.count(1) == 1));
    // Alone, it also leads again after a restart, or after somebody spoke of a higher term.
    let (now, term) = (cluster.now, cluster.status(leader).term);
    let other = cluster.follower();
    let reject =
        Message::VoteReply { term: Term(term.0 + 5), pre: true, granted: false, commit: RunIndex::ZERO, commit_term: Term::ZERO };
    cluster.voter(leader).handle_message(other, reject, now).unwrap();
    cluster.drain(leader);
    assert!(cluster.run_until(4_000, |cluster| cluster.status(leader).role == RaftRole::Leader));
}

#[test]
fn a_seat_that_comes_back_never_uses_an_id_twice() {
    let mut cluster = Cluster::new(3, 4);
    let (leader, gone) = (cluster.lead(), cluster.follower());
    cluster.administer(&AdminRequest::RemoveSeat { seat: gone.seat() });
    cluster.administer(&add(gone.seat().0));
    cluster.crash(gone, false);
    let next = RaftId::new(gone.seat(), 2);
    cluster.newcomer(next);
    cluster.administer(&join(gone.seat().0, 50));
    cluster.administer(&AdminRequest::Promote { seat: gone.seat() });
    assert_eq!(cluster.servers[&leader].configuration.member(next).map(|member| member.role), Some(Role::Voter));
    cluster.converge();
}

#[test]
fn a_joint_change_whose_leader_dies_is_finished_by_the_next() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        cluster.administer(&add(4));
        cluster.newcomer(id(4));
        cluster.administer(&join(4, 4));
        cluster.converge();
        while cluster.ask(leader, AdminRequest::Promote { seat: Seat(4) }) != Ok(AdminProgress::Started) {
            cluster.run_ms(5);
        }
        // It dies somewhere on the way: before, between or after the two entries.
        let us = cluster.random(8_000);
        let until = cluster.now.plus_us(us);
        cluster.run_until(us / 1000, |cluster| cluster.now >= until);
        cluster.crash(leader, seed % 2 == 0);
        assert!(cluster.run_until(6_000, |cluster| cluster.leader().is_some_and(|new| new != leader)));
        cluster.start(leader);
        cluster.converge();
    }
}

#[test]
fn a_life_that_is_being_replaced_and_leads_hands_over_before_the_change_ends() {
    for seed in 0..40 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        let leaving = cluster.follower();
        let third = [1, 2, 3].map(id).into_iter().find(|other| *other != leader && *other != leaving).unwrap();
        cluster.converge();
        // The removal of a follower has begun when its leader dies: who is leaving may become the leader of the joint configuration.
        assert_eq!(cluster.ask(leader, AdminRequest::RemoveSeat { seat: leaving.seat() }), Ok(AdminProgress::Started));
        cluster.run_until(20, |cluster| cluster.servers[&leaving].configuration.is_joint());
        cluster.crash(leader, false);
        cluster.deafen(third, leaving);
        cluster.run_ms(15);
        cluster.cut.clear();
        cluster.run_ms(2_000);
        cluster.start(leader);
        assert!(
            cluster.run_until(20_000, |cluster| {
                cluster.leader().is_some_and(|id| !cluster.servers[&id].configuration.contains(leaving))
            }),
            "seed {seed}"
        );
        cluster.propose(third, 1);
        assert!(cluster.run_until(5_000, |cluster| cluster.count(1) >= 1));
    }
}

#[test]
fn a_standby_with_a_second_life_on_the_way_is_removed_with_it() {
    let mut cluster = Cluster::new(3, 6);
    let leader = cluster.lead();
    cluster.administer(&add(4));
    cluster.newcomer(id(4));
    cluster.administer(&join(4, 4));
    cluster.converge();
    // The second life never arrives.
    cluster.administer(&join(4, 5));
    cluster.administer(&AdminRequest::RemoveSeat { seat: Seat(4) });
    cluster.propose(leader, 1);
    assert!(cluster.run_until(2_000, |cluster| cluster.count(1) == 1));
    assert!(cluster.run_until(2_000, Cluster::converged));
    assert!(cluster.servers[&leader].configuration.seats.len() == 3);
}

#[test]
fn a_server_that_restarts_in_a_joint_configuration_goes_on_in_it() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, leaving) = (cluster.lead(), cluster.follower());
        cluster.converge();
        cluster.ask(leader, AdminRequest::RemoveSeat { seat: leaving.seat() }).unwrap();
        let all = [1, 2, 3].map(id);
        cluster.run_until(50, |cluster| all.iter().any(|id| cluster.servers[id].configuration.is_joint()));
        all.into_iter().for_each(|id| cluster.crash(id, false));
        all.into_iter().for_each(|id| cluster.compact_down(id));
        all.into_iter().for_each(|id| cluster.start(id));
        assert!(
            cluster.run_until(20_000, |cluster| {
                cluster.leader().is_some_and(|id| cluster.servers[&id].configuration.voters().len() == 2 && cluster.converged())
            }),
            "seed {seed}"
        );
    }
}

#[test]
fn a_change_that_was_overwritten_blocks_no_later_one() {
    let mut cluster = Cluster::new(5, 6);
    let old = cluster.lead();
    let friend = cluster.follower();
    cluster.converge();
    cluster.run_ms(50);
    let others: Vec<_> = (1..=5).map(id).filter(|other| *other != old && *other != friend).collect();
    others.iter().for_each(|other| cluster.deafen(old, *other));
    assert_eq!(cluster.ask(old, add(6)), Ok(AdminProgress::Started));
    cluster.run_ms(10);
    assert!(cluster.status(friend).last > cluster.status(others[0]).last, "two of five have it");
    cluster.sever(friend, old);
    others.iter().for_each(|other| cluster.sever(friend, *other));
    cluster.isolate(old);
    assert!(cluster.run_until(5_000, |cluster| cluster.leader().is_some_and(|leader| others.contains(&leader))));
    cluster.run_ms(2_500);
    cluster.heal();
    cluster.converge();
    // Who had it in its log leads now.
    cluster.administer(&AdminRequest::Transfer { seat: friend.seat() });
    assert!(cluster.run_until(3_000, |cluster| cluster.leader() == Some(friend)));
    cluster.administer(&add(7));
    cluster.converge();
    assert!(!cluster.servers[&friend].configuration.seats.contains_key(&Seat(6)));
}

#[test]
fn a_leader_that_was_deposed_and_does_not_know_it_says_of_no_request_that_it_holds() {
    let mut cluster = Cluster::new(3, 4);
    let old = cluster.lead();
    cluster.administer(&add(4));
    cluster.converge();
    // Its links tear; those who notice need no time-out.
    cluster.isolate(old);
    assert!(cluster.run_until(5_000, |cluster| cluster.leader().is_some_and(|leader| leader != old)));
    let new = cluster.leader().unwrap();
    cluster.administer(&AdminRequest::RemoveSeat { seat: Seat(4) });
    assert_eq!(cluster.status(old).role, RaftRole::Leader);
    let said = cluster.admin.len();
    for request in [add(4), AdminRequest::Promote { seat: new.seat() }, AdminRequest::Transfer { seat: old.seat() }] {
        assert_ne!(cluster.ask(old, request), Ok(AdminProgress::Done));
    }
    cluster.heal();
    cluster.converge();
    assert!(cluster.admin[said..].iter().all(|(_, result)| result.is_err()), "{:?}", &cluster.admin[said..]);
    assert!(!cluster.servers[&old].configuration.seats.contains_key(&Seat(4)));
}

#[test]
fn a_standby_that_hears_of_no_leader_any_more_says_that_it_knows_none() {
    let mut cluster = Cluster::new(3, 4);
    let leader = cluster.lead();
    cluster.administer(&add(4));
    cluster.newcomer(id(4));
    cluster.administer(&join(4, 4));
    cluster.converge();
    assert_eq!(cluster.status(id(4)).leader, Some(leader));
    // Nobody speaks to it from then on.
    cluster.administer(&AdminRequest::RemoveSeat { seat: Seat(4) });
    assert!(cluster.run_until(3_000, |cluster| cluster.status(id(4)).leader.is_none()));
}

#[test]
fn requests_that_hold_already_or_cannot_be_are_said_so() {
    let mut cluster = Cluster::new(3, 4);
    let leader = cluster.lead();
    cluster.converge();
    cluster.run_ms(50);
    let follower = cluster.follower();
    assert!(matches!(cluster.ask(follower, add(4)), Err(AdminRefused::NotLeader(Some(_)))));
    cluster.administer(&AdminRequest::Promote { seat: follower.seat() });
    assert_eq!(cluster.ask(leader, AdminRequest::Promote { seat: Seat(9) }), Err(AdminRefused::UnknownSeat(Seat(9))));
    cluster.administer(&AdminRequest::RemoveSeat { seat: Seat(9) });
    cluster.administer(&AdminRequest::Transfer { seat: leader.seat() });
    assert_eq!(cluster.leader(), Some(leader));
    assert!(matches!(cluster.ask(leader, join(9, 9)), Err(AdminRefused::UnknownSeat(_))));
    cluster.administer(&add(4));
    cluster.administer(&add(4));
    assert_eq!(cluster.ask(leader, AdminRequest::Promote { seat: Seat(4) }), Err(AdminRefused::Vacant(Seat(4))));
}

#[test]
fn after_a_replacement_a_cluster_whose_servers_all_restart_does_not_miss_the_old_life() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        let wiped = cluster.follower();
        let other = [1, 2, 3].map(id).into_iter().find(|other| *other != leader && *other != wiped).unwrap();
        cluster.crash(wiped, false);
        cluster.servers.remove(&wiped);
        let next = RaftId::new(wiped.seat(), 2);
        cluster.newcomer(next);
        cluster.administer(&join(wiped.seat().0, 99));
        let all = [leader, other, next];
        assert!(cluster.run_until(10_000, |cluster| {
            let knows =
                |id| cluster.servers[&id].configuration.voters().contains(&next) && !cluster.servers[&id].configuration.is_joint();
            all.into_iter().all(knows)
        }));
        cluster.run_ms(100);
        // All go down at once, and one of the old voters is lost: two of the three that vote now are a majority.
        all.into_iter().for_each(|id| cluster.crash(id, true));
        [other, next].into_iter().for_each(|id| cluster.start(id));
        assert!(cluster.run_until(20_000, |cluster| cluster.leader().is_some()), "seed {seed}");
    }
}
