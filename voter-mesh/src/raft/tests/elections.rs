//! Who leads, who takes over and how fast, and who must keep still.

use super::super::*;
use super::cluster::{Cluster, Disk, beyond, formed, id};

#[test]
fn a_single_voter_leads_at_once() {
    let mut cluster = Cluster::new(1, 1);
    assert!(cluster.run_until(20, |cluster| cluster.leader().is_some() && cluster.log.len() == 1));
    assert!(cluster.propose(id(1), 1));
    cluster.converge();
    assert_eq!(cluster.commands(), [1]);
}

#[test]
fn three_and_five_elect_one_leader() {
    for (seats, seed) in [(3, 1), (3, 2), (5, 3), (5, 4)] {
        let mut cluster = Cluster::new(seats, seed);
        let leader = cluster.lead();
        cluster.run_ms(10_000);
        assert_eq!((cluster.leader(), cluster.leaders.len()), (Some(leader), 1), "it stays");
        for at in 1..=seats {
            assert_eq!(cluster.status(id(at)).leader, Some(leader));
        }
    }
}

#[test]
fn a_torn_link_to_the_leader_brings_a_new_one_within_60_ms() {
    for seed in 0..60 {
        let mut cluster = Cluster::new(if seed % 2 == 0 { 3 } else { 5 }, seed);
        let old = cluster.lead();
        cluster.run_ms(3_000);
        cluster.crash(old, false);
        assert!(cluster.run_until(60, |cluster| cluster.leader().is_some_and(|new| new != old)), "seed {seed}");
        // Nor do those that wanted to lead too drive it out again.
        let new = cluster.leader();
        cluster.run_ms(3_000);
        assert_eq!(cluster.leader(), new, "seed {seed}");
    }
}

#[test]
fn a_flapping_link_to_a_healthy_leader_changes_no_term() {
    let mut cluster = Cluster::new(3, 7);
    let leader = cluster.lead();
    cluster.run_ms(2_000);
    let (term, follower) = (cluster.status(leader).term, cluster.follower());
    for _ in 0..200 {
        cluster.tear(leader, follower);
        cluster.run_ms(37);
    }
    // Longer apart too: the follower has used up its hint and waits for its election timeout, which no heartbeat lets come.
    for _ in 0..10 {
        cluster.sever(leader, follower);
        cluster.run_ms(150);
        cluster.heal();
        cluster.run_ms(300);
    }
    assert_eq!((cluster.leader(), cluster.status(leader).term), (Some(leader), term));
    cluster.converge();
}

#[test]
fn a_silent_leader_is_replaced_within_two_election_timeouts() {
    for seed in 0..60 {
        let mut cluster = Cluster::new(3, seed);
        let old = cluster.lead();
        cluster.run_ms(1_000 + seed * 7);
        cluster.crash(old, true);
        // Time in which the leader still spoke does not count: its last heartbeat is at most 200 ms old.
        assert!(!cluster.run_until(800, |cluster| cluster.leader().is_some_and(|new| new != old)), "seed {seed}");
        assert!(cluster.run_until(4_000, |cluster| cluster.leader().is_some_and(|new| new != old)), "seed {seed}");
        cluster.start(old);
        cluster.converge();
    }
}

#[test]
fn an_idle_server_need_not_wake_for_every_tick() {
    let mut cluster = Cluster::new(3, 9);
    let (leader, follower) = (cluster.lead(), cluster.follower());
    cluster.run_ms(3_000);
    let within = |at| cluster.servers[&at].voter.as_ref().unwrap().poll_timeout().unwrap().0.since_us(cluster.now);
    let Timing { tick_ms, heartbeat_ticks, election_ticks, .. } = Timing::default();
    assert!(within(leader) <= tick_ms * heartbeat_ticks as u64 * 1000, "heartbeats are due");
    let idle_us = within(follower);
    let half_us = tick_ms * election_ticks as u64 * 1000 / 2;
    assert!((half_us / 2..=half_us).contains(&idle_us), "{idle_us}");
    // With something under way it looks again at every tick.
    cluster.propose(follower, 1);
    let now = cluster.now;
    let (at, _) = cluster.voter(follower).poll_timeout().unwrap();
    assert!(at.since_us(now) <= tick_ms * 1000);
}

#[test]
fn a_server_that_slept_through_its_timeouts_hears_its_leader_before_it_stands() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, follower) = (cluster.lead(), cluster.follower());
        cluster.run_ms(2_000 + seed * 13);
        let term = cluster.status(leader).term;
        // It wakes an hour late; what the others sent meanwhile lies in its sockets, behind the timer.
        let late = cluster.now.plus_ms(3_600_000);
        cluster.voter(follower).handle_timeout(late);
        let status = cluster.status(follower);
        assert_eq!((status.term, status.leader), (term, Some(leader)), "seed {seed}");
        assert_eq!(cluster.voter(follower).poll_transmit(), None, "seed {seed}: it asks nobody for a vote");
    }
}

#[test]
fn a_leader_that_hears_nobody_steps_down() {
    let mut cluster = Cluster::new(3, 3);
    let old = cluster.lead();
    let others: Vec<_> = [1, 2, 3].map(id).into_iter().filter(|other| *other != old).collect();
    // It speaks and is not answered: its followers stay with it, and it must find out by itself.
    others.iter().for_each(|other| cluster.deafen(*other, old));
    assert!(cluster.run_until(2_500, |cluster| cluster.status(old).role != RaftRole::Leader));
    cluster.heal();
    cluster.converge();
}

#[test]
fn a_follower_that_the_leader_does_not_reach_disturbs_nobody() {
    let mut cluster = Cluster::new(3, 5);
    let leader = cluster.lead();
    let (term, deaf) = (cluster.status(leader).term, cluster.follower());
    cluster.deafen(leader, deaf);
    cluster.run_ms(20_000);
    assert_eq!((cluster.leader(), cluster.status(leader).term), (Some(leader), term));
    cluster.heal();
    cluster.converge();
}

#[test]
fn a_leader_behind_a_partition_is_deposed_and_what_it_could_not_commit_commits_later() {
    let mut cluster = Cluster::new(5, 11);
    let old = cluster.lead();
    cluster.isolate(old);
    cluster.propose(old, 1);
    assert!(cluster.run_until(4_000, |cluster| cluster.leaders.len() == 2));
    assert_eq!(cluster.count(1), 0);
    assert!(cluster.run_until(4_000, |cluster| cluster.status(old).role != RaftRole::Leader));
    cluster.heal();
    cluster.converge();
    assert_eq!(cluster.count(1), 1);
}

#[test]
fn a_handover_ends_when_the_other_leads_and_loses_no_proposal() {
    let mut cluster = Cluster::new(3, 4);
    let (old, to) = (cluster.lead(), cluster.follower());
    for number in 0..40 {
        cluster.propose([old, to][number as usize % 2], number);
        if number == 20 {
            assert_eq!(cluster.ask(old, AdminRequest::Transfer { seat: to.seat() }), Ok(AdminProgress::Started));
        }
        cluster.run_ms(1);
    }
    assert!(cluster.run_until(500, |cluster| !cluster.admin.is_empty()));
    assert_eq!(cluster.admin, [(AdminRequest::Transfer { seat: to.seat() }, Ok(()))]);
    assert_eq!(cluster.leader(), Some(to));
    cluster.converge();
    (0..40).for_each(|number| assert!(cluster.count(number) >= 1));
}

#[test]
fn a_handover_to_one_that_does_not_answer_ends_and_the_leader_goes_on() {
    let mut cluster = Cluster::new(3, 4);
    let (leader, to) = (cluster.lead(), cluster.follower());
    cluster.deafen(leader, to);
    assert_eq!(cluster.ask(leader, AdminRequest::Transfer { seat: to.seat() }), Ok(AdminProgress::Started));
    cluster.propose(leader, 1);
    assert!(cluster.run_until(3_000, |cluster| !cluster.admin.is_empty()));
    assert!(cluster.admin[0].1.is_err());
    assert!(cluster.run_until(1_000, |cluster| cluster.count(1) == 1));
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn a_suspect_replica_neither_campaigns_nor_elects_who_lacks_what_it_lost() {
    let mut cluster = Cluster::new(3, 6);
    let old = cluster.lead();
    cluster.propose_all(old, 1..20);
    cluster.converge();
    // One lost its end; another never had it; who has it is away.
    let (lost, behind) = match [1, 2, 3].map(id).into_iter().filter(|other| *other != old).collect::<Vec<_>>()[..] {
        [a, b] => (a, b),
        _ => unreachable!(),
    };
    [1, 2, 3].map(id).into_iter().for_each(|id| cluster.crash(id, false));
    for id in [lost, behind] {
        let disk = &mut cluster.servers.get_mut(&id).unwrap().disk;
        let whole = disk.tail();
        disk.runs.pop();
        disk.commit = disk.commit.min(disk.tail().run);
        disk.suspect = (id == lost).then_some(whole);
    }
    cluster.start(lost);
    cluster.start(behind);
    cluster.run_ms(10_000);
    assert_eq!(cluster.leader(), None, "the cluster waits for the one that has everything");
    cluster.start(old);
    assert!(cluster.run_until(5_000, |cluster| cluster.leader() == Some(old)));
    cluster.converge();
    assert_eq!(cluster.servers[&lost].disk.suspect, None, "whole again");
    // Whole again, it may lead again.
    cluster.crash(old, false);
    cluster.crash(behind, false);
    cluster.start(behind);
    assert!(cluster.run_until(5_000, |cluster| cluster.leader().is_some()));
}

#[test]
fn a_suspect_replica_elects_one_that_has_everything_although_its_leader_fell_silent() {
    let mut cluster = Cluster::new(3, 8);
    let old = cluster.lead();
    cluster.propose(old, 1);
    cluster.converge();
    let lost = cluster.follower();
    cluster.crash(lost, false);
    // What it must reach is beyond what anybody has written yet: it stays suspect while it follows.
    let disk = &mut cluster.servers.get_mut(&lost).unwrap().disk;
    disk.suspect = Some(beyond(disk.tail()));
    cluster.start(lost);
    cluster.run_ms(1_000);
    let goal = cluster.servers[&lost].disk.suspect.unwrap();
    let third = [1, 2, 3].map(id).into_iter().find(|other| *other != lost && *other != old).unwrap();
    cluster.crash(lost, false);
    cluster.propose(old, 2);
    cluster.run_ms(500);
    assert!(cluster.servers[&third].disk.tail().run >= goal.run);
    cluster.deafen(old, lost);
    cluster.start(lost);
    cluster.cut.remove(&(old, lost));
    cluster.run_ms(1);
    cluster.crash(old, true);
    assert!(cluster.run_until(6_000, |cluster| cluster.leader() == Some(third)), "both others are there");
}

#[test]
fn a_standby_never_campaigns_whatever_tears() {
    let mut cluster = Cluster::new(3, 9);
    let leader = cluster.lead();
    let seat = Seat(4);
    cluster.administer(&AdminRequest::AddSeat { seat, address: "server-4".into(), priority: 0, failure_domain: String::new() });
    cluster.newcomer(id(4));
    let directory = crate::ids::DirectoryId([4; 16]);
    cluster.administer(&AdminRequest::Join { seat, directory });
    cluster.converge();
    let before = cluster.messages.get("PreVote").copied();
    for _ in 0..20 {
        cluster.sever(leader, id(4));
        cluster.run_ms(500);
        cluster.heal();
        cluster.run_ms(300);
    }
    assert_eq!(cluster.messages.get("PreVote").copied(), before);
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn a_newcomer_without_anything_never_leads() {
    let mut cluster = Cluster::new(1, 1);
    cluster.lead();
    cluster.newcomer(id(2));
    cluster.run_ms(500);
    // It takes a stranger for its leader, and loses it.
    let now = cluster.now;
    let voter = cluster.voter(id(2));
    voter.handle_message(id(1), Message::Heartbeat { term: Term(9), commit: RunIndex::ZERO, round: 0 }, now).unwrap();
    voter.handle_disconnected(id(1), Disconnect::Torn, now);
    cluster.drain(id(2));
    cluster.run_ms(5_000);
    assert_eq!(cluster.status(id(2)).role, RaftRole::Follower);
}

#[test]
fn a_server_thousands_of_terms_behind_comes_home() {
    let mut cluster = Cluster::new(3, 2);
    let away = cluster.follower();
    cluster.crash(away, true);
    let others: Vec<_> = [1, 2, 3].map(id).into_iter().filter(|other| *other != away).collect();
    others.iter().for_each(|other| cluster.crash(*other, true));
    others.iter().for_each(|other| cluster.servers.get_mut(other).unwrap().disk.term = Term(50_000));
    others.iter().for_each(|other| cluster.start(*other));
    let leader = cluster.lead();
    cluster.propose(leader, 1);
    cluster.run_ms(1_000);
    cluster.start(away);
    cluster.converge();
    assert!(cluster.status(away).term >= Term(50_000));
}

#[test]
fn one_peer_cannot_drag_the_others_into_far_terms() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, liar) = (cluster.lead(), cluster.follower());
    let (now, term) = (cluster.now, cluster.status(leader).term);
    for claimed in [Term(term.0 + 1_001), Term(u64::MAX / 2), Term(u64::MAX)] {
        let refused = cluster.voter(leader).handle_message(liar, Message::TimeoutNow { term: claimed }, now);
        assert_eq!(refused, Err(MessageError::TermJump { own: term, claimed }));
    }
    assert_eq!(cluster.status(leader).term, term);
}

#[test]
fn who_may_have_forgotten_a_vote_gives_none_until_all_were_heard() {
    let mut cluster = Cluster::new(3, 13);
    let old = cluster.lead();
    cluster.converge();
    let forgetful = cluster.follower();
    let third = [1, 2, 3].map(id).into_iter().find(|other| *other != forgetful && *other != old).unwrap();
    let term = cluster.status(old).term;
    [old, third, forgetful].into_iter().for_each(|id| cluster.crash(id, false));
    // The lost mark held a vote in the next term.
    let disk = &mut cluster.servers.get_mut(&third).unwrap().disk;
    (disk.term, disk.vote) = (Term(term.0 + 1), third);
    let disk = &mut cluster.servers.get_mut(&forgetful).unwrap().disk;
    (disk.vote_lost, disk.vote) = (true, RaftId::NONE);
    cluster.start(forgetful);
    cluster.start(old);
    cluster.run_ms(10_000);
    assert_eq!(cluster.leader(), None, "who might have got the vote has not been heard");
    assert!(cluster.servers[&forgetful].disk.vote_lost);
    cluster.start(third);
    cluster.lead();
    assert!(cluster.run_until(10_000, |cluster| !cluster.servers[&forgetful].disk.vote_lost), "settled");
    assert!(cluster.leaders.keys().all(|led| *led <= term || led.0 > term.0 + 1));
    cluster.converge();
    assert_eq!(cluster.servers[&forgetful].vote_settled, 1, "told once");
}

#[test]
fn a_lone_voter_that_may_have_forgotten_a_vote_goes_on_in_the_next_term() {
    let mut cluster = Cluster::new(1, 1);
    cluster.lead();
    let term = cluster.status(id(1)).term;
    cluster.crash(id(1), false);
    cluster.servers.get_mut(&id(1)).unwrap().disk.vote_lost = true;
    cluster.start(id(1));
    assert!(cluster.run_until(20, |cluster| !cluster.servers[&id(1)].disk.vote_lost));
    assert_eq!(cluster.status(id(1)).term, Term(term.0 + 1));
}

#[test]
fn timing_and_state_that_cannot_be_are_refused() {
    let disk = Disk::formed(&formed(1));
    let options = |timing: Timing| VoterOptions {
        id: id(1),
        incarnation: Incarnation(1),
        identity: crate::testing::IDENTITY,
        timing,
        limits: VoterLimits::default(),
        seed: 1,
    };
    let recovered = Recovered {
        term: Term(1),
        vote: RaftId::NONE,
        commit: RunIndex(1),
        applied: disk.before,
        configuration: formed(1),
        configuration_run: RunIndex(1),
        before_first: (RunIndex(1), Term(1)),
        terms: Vec::new(),
        recent: Vec::new(),
        tail: disk.before,
        snapshot: None,
        suspect: None,
        vote_lost: false,
    };
    let slow = Timing { heartbeat_ticks: 20, ..Timing::default() };
    assert!(matches!(Voter::new(options(slow), recovered.clone(), Time::default()), Err(VoterError::Timing { .. })));
    let hole = Recovered { tail: beyond(beyond(disk.before)), ..recovered.clone() };
    assert!(matches!(Voter::new(options(Timing::default()), hole, Time::default()), Err(VoterError::State(_))));
    let mut twice = recovered.clone();
    twice.configuration.outgoing = vec![id(1), id(1)];
    assert!(matches!(Voter::new(options(Timing::default()), twice, Time::default()), Err(VoterError::State(_))));
    assert!(Voter::new(options(Timing::default()), recovered, Time::default()).is_ok());
}
