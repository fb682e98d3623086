//! Linearizable reads: the cluster checks of each answer that it covers all that was committed when the read began.

use super::super::*;
use super::cluster::{Cluster, WorldOptions, id};

#[test]
fn reads_from_every_server_are_answered() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.lead();
    for number in 0..90 {
        cluster.propose(leader, number);
        cluster.read(id(1 + (number % 3) as u16), number);
        if number % 4 == 0 {
            cluster.run_ms(1);
        }
    }
    assert!(cluster.run_until(500, |cluster| cluster.answers.len() == 90));
}

#[test]
fn two_servers_that_ask_at_once_are_both_answered() {
    let mut cluster = Cluster::new(3, 1);
    cluster.lead();
    cluster.converge();
    (1..=3).for_each(|seat| cluster.read(id(seat), u64::from(seat)));
    assert!(cluster.run_until(20, |cluster| cluster.answers.len() == 3));
}

#[test]
fn a_followers_question_confirms_its_leader_where_the_two_are_a_majority() {
    for (seats, rounds) in [(3, false), (5, true)] {
        let mut cluster = Cluster::new(seats, 1);
        cluster.lead();
        cluster.converge();
        let beats = |cluster: &Cluster| cluster.messages.get("HeartbeatReply").copied().unwrap_or_default();
        // Between two heartbeats.
        let last = beats(&cluster);
        assert!(cluster.run_until(500, |cluster| beats(cluster) >= last + u64::from(seats) - 1));
        let before = beats(&cluster);
        let follower = cluster.follower();
        cluster.read(follower, 1);
        assert!(cluster.run_until(50, |cluster| cluster.answers.len() == 1));
        assert_eq!(beats(&cluster) > before, rounds, "{seats} voters");
    }
}

#[test]
fn a_question_confirms_nobody_who_was_left_behind_with_the_asker() {
    let mut cluster = Cluster::new(5, 7);
    let old = cluster.lead();
    cluster.converge();
    let entry = cluster.follower();
    // The two see each other, the other three elect one of their own.
    for other in (1..=5).map(id).filter(|other| ![old, entry].contains(other)) {
        cluster.sever(old, other);
        cluster.sever(entry, other);
    }
    assert!(cluster.run_until(3_000, |cluster| cluster.leaders.len() == 2));
    let new = *cluster.leaders.values().next_back().unwrap();
    cluster.propose(new, 1);
    assert!(cluster.run_until(100, |cluster| cluster.count(1) == 1));
    cluster.read(entry, 1);
    cluster.run_ms(300);
    assert!(cluster.answers.is_empty());
    cluster.heal();
    assert!(cluster.run_until(5_000, |cluster| cluster.answers.len() == 1), "the next leader answers it");
}

#[test]
fn a_single_voter_answers_at_once() {
    let mut cluster = Cluster::new(1, 1);
    cluster.lead();
    cluster.read(id(1), 1);
    assert_eq!(cluster.answers.len(), 1);
}

#[test]
fn a_read_that_comes_before_the_terms_first_commit_waits_for_it() {
    let mut cluster = Cluster::new(3, 4);
    let old = cluster.lead();
    cluster.propose(old, 1);
    cluster.converge();
    cluster.crash(old, false);
    assert!(cluster.run_until(1_000, |cluster| cluster.leader().is_some()));
    // Its no-op is not committed yet.
    let new = cluster.leader().unwrap();
    cluster.read(new, 1);
    assert!(cluster.answers.is_empty());
    assert!(cluster.run_until(500, |cluster| cluster.answers.len() == 1));
}

#[test]
fn reads_across_a_leader_change_are_answered_by_the_next() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let old = cluster.lead();
        cluster.converge();
        let entry = cluster.follower();
        for number in 0..50 {
            cluster.propose(entry, number);
            cluster.read(entry, number);
            if number == 20 {
                cluster.crash(old, seed % 2 == 0);
            }
            cluster.run_ms(2);
        }
        assert!(cluster.run_until(6_000, |cluster| cluster.answers.len() == 50), "seed {seed}");
    }
}

#[test]
fn a_leader_that_was_deposed_without_knowing_answers_nothing() {
    let mut cluster = Cluster::new(3, 5);
    let old = cluster.lead();
    cluster.converge();
    // The hint makes the others elect at once; the old one still believes that it leads.
    cluster.isolate(old);
    assert!(cluster.run_until(60, |cluster| cluster.leader().is_some_and(|new| new != old)));
    let new = cluster.leader().unwrap();
    cluster.propose(new, 1);
    assert!(cluster.run_until(100, |cluster| cluster.count(1) == 1));
    assert_eq!(cluster.status(old).role, RaftRole::Leader);
    cluster.read(old, 1);
    cluster.run_ms(900);
    assert!(cluster.answers.is_empty());
    cluster.heal();
    assert!(cluster.run_until(5_000, |cluster| cluster.answers.len() == 1), "the next leader answers it");
}

#[test]
fn a_cancelled_read_is_not_answered() {
    let mut cluster = Cluster::new(3, 5);
    let leader = cluster.lead();
    cluster.read(leader, 1);
    cluster.voter(leader).cancel_read(ReadId(1));
    cluster.run_ms(500);
    assert!(cluster.answers.is_empty());
}

#[test]
fn reads_are_answered_where_every_round_takes_longer_than_a_heartbeat() {
    let options = WorldOptions { net_us: (130_000, 160_000), ..WorldOptions::default() };
    let mut cluster = Cluster::with(3, 5, options);
    cluster.lead();
    cluster.converge();
    (1..=3).for_each(|seat| cluster.read(id(seat), u64::from(seat)));
    assert!(cluster.run_until(2_000, |cluster| cluster.answers.len() == 3), "{:?}", cluster.answers);
}
