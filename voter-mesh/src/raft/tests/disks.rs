//! What becomes of leadership, elections and memory where a disk is full or slow.

use super::super::*;
use super::cluster::{Cluster, WorldOptions, id};

/// Commands one after the other, a few milliseconds apart, at a server that may refuse some.
fn trickle(cluster: &mut Cluster, at: RaftId, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let _ = cluster.propose(at, number);
        cluster.run_ms(5);
    }
}

#[test]
fn a_leader_without_room_hands_over_and_what_was_proposed_meanwhile_is_committed_once() {
    let mut cluster = Cluster::new(3, 1);
    let first = cluster.lead();
    cluster.propose_all(first, 1..20);
    cluster.fill(first);
    cluster.propose_all(first, 20..40);
    assert!(cluster.run_until(100, |cluster| cluster.leader().is_some_and(|id| id != first)), "nobody takes over at once");
    let second = cluster.leader().unwrap();
    assert_eq!(cluster.hand_overs, [(first, second, HandOver::DiskFull)]);
    cluster.propose_all(first, 40..60);
    assert!(cluster.run_until(5_000, |cluster| (1..60).all(|number| cluster.count(number) == 1)));
    // It follows as far as it can, and all the rest when there is room.
    assert_eq!(cluster.status(first).disk, DiskState::Full);
    cluster.free(first);
    cluster.converge();
    assert_eq!(cluster.hand_overs.len(), 1);
}

#[test]
fn a_server_without_room_neither_campaigns_nor_is_made_leader_but_votes() {
    let mut cluster = Cluster::new(3, 2);
    let leader = cluster.lead();
    let others: Vec<RaftId> = (1..=3).map(id).filter(|id| *id != leader).collect();
    let (full, good) = (others[0], others[1]);
    cluster.fill(full);
    let request = AdminRequest::Transfer { seat: full.seat() };
    let _ = cluster.ask(leader, request);
    cluster.run_ms(3_000);
    assert_eq!(cluster.leader(), Some(leader), "a transfer to it comes to nothing");
    // With the leader gone, only its vote makes the other one leader.
    cluster.crash(leader, false);
    assert!(cluster.run_until(10_000, |cluster| cluster.leader() == Some(good)));
    cluster.crash(good, false);
    cluster.run_ms(10_000);
    assert_eq!(cluster.status(full).role, RaftRole::Follower);
    cluster.free(full);
    cluster.start(leader);
    cluster.start(good);
    cluster.lead();
    cluster.converge();
}

#[test]
fn where_all_disks_are_full_proposals_are_refused_reads_go_on_and_everything_resumes_by_itself() {
    let mut cluster = Cluster::new(3, 3);
    let leader = cluster.lead();
    cluster.propose_all(leader, 1..10);
    cluster.converge();
    (1..=3).map(id).for_each(|id| cluster.fill(id));
    cluster.run_ms(1_500);
    assert_eq!(cluster.leader(), Some(leader), "nobody could do better");
    let refused = |cluster: &mut Cluster, at: RaftId, number: u64| {
        let now = cluster.now;
        cluster.voter(at).handle_propose(Cluster::entry(number), now)
    };
    // The leader may be trying to hand over; it does not for ever.
    let mut seen = false;
    for _ in 0..40 {
        if refused(&mut cluster, leader, 900) == Err(ProposeRefused::DiskFull) {
            seen = true;
            break;
        }
        cluster.run_ms(50);
    }
    assert!(seen, "a leader without room takes proposals");
    let follower = cluster.follower();
    let mut asked = 100;
    while refused(&mut cluster, follower, asked).is_ok() {
        cluster.drain(follower);
        cluster.run_ms(20);
        asked += 1;
        assert!(asked < 400, "its followers take proposals without end");
    }
    cluster.read(follower, 1);
    cluster.read(leader, 2);
    assert!(cluster.run_until(2_000, |cluster| cluster.answers.len() == 2), "reads need no disk");
    let before = cluster.log.len();
    cluster.run_ms(5_000);
    assert_eq!(cluster.log.len(), before);
    (1..=3).map(id).for_each(|id| cluster.free(id));
    assert!(cluster.run_until(5_000, |cluster| (100..asked).all(|number| cluster.count(number) == 1)));
    assert!(cluster.run_until(1_000, |cluster| !cluster.servers[&leader].overloaded && !cluster.servers[&follower].overloaded));
    assert!(cluster.propose(follower, 999));
    cluster.converge();
    assert_eq!(cluster.count(999), 1);
}

#[test]
fn a_lone_voter_without_room_waits_and_goes_on() {
    let mut cluster = Cluster::new(1, 4);
    let lone = cluster.lead();
    cluster.propose_all(lone, 1..5);
    cluster.converge();
    cluster.fill(lone);
    assert!(!cluster.propose(lone, 5));
    cluster.run_ms(10_000);
    assert_eq!(cluster.leader(), Some(lone));
    cluster.read(lone, 1);
    assert!(cluster.run_until(100, |cluster| cluster.answers.len() == 1));
    cluster.free(lone);
    cluster.propose_all(lone, 6..9);
    cluster.converge();
    assert_eq!(cluster.commands(), [1, 2, 3, 4, 6, 7, 8]);
}

#[test]
fn a_leader_hands_over_to_the_one_with_room_where_only_one_has_some() {
    let mut cluster = Cluster::new(5, 5);
    let leader = cluster.lead();
    let good = (1..=5).map(id).rfind(|id| *id != leader).unwrap();
    let others: Vec<RaftId> = (1..=5).map(id).filter(|id| *id != leader && *id != good).collect();
    cluster.fill(others[0]);
    cluster.fill(others[1]);
    cluster.fill(leader);
    // Some it offers leadership to have no room either: each attempt takes an election timeout.
    assert!(
        cluster.run_until(15_000, |cluster| cluster.leader().is_some_and(|id| id == good || id == others[2])),
        "{:?}",
        cluster.hand_overs
    );
    let leader_now = cluster.leader().unwrap();
    cluster.propose_all(leader_now, 1..10);
    (1..=5).map(id).for_each(|id| cluster.free(id));
    cluster.converge();
}

#[test]
fn a_leader_whose_disk_is_ten_times_slower_than_the_followers_hands_over_once() {
    let mut cluster = Cluster::new(3, 6);
    let slow = cluster.lead();
    cluster.disk_us.insert(slow, (80_000, 120_000));
    trickle(&mut cluster, slow, 1..400);
    assert!(cluster.leader().is_some_and(|id| id != slow), "{slow} still leads");
    let second = cluster.leader().unwrap();
    assert_eq!(cluster.hand_overs, [(slow, second, HandOver::SlowDisk)]);
    // A slow follower holds nobody back, and nobody hands over to or fro.
    let begin = cluster.log.len();
    trickle(&mut cluster, second, 400..1_300);
    assert!(cluster.log.len() - begin > 700, "the cluster is as slow as one follower");
    assert_eq!(cluster.leader(), Some(second));
    assert_eq!(cluster.hand_overs.len(), 1);
    cluster.converge();
}

#[test]
fn a_leader_whose_sync_hangs_hands_over_while_it_hangs() {
    let mut cluster = Cluster::new(3, 7);
    let hung = cluster.lead();
    cluster.disk_us.insert(hung, (60_000_000, 60_000_000));
    assert!(cluster.propose(hung, 1));
    let before = cluster.now;
    assert!(cluster.run_until(5_000, |cluster| cluster.leader().is_some_and(|id| id != hung)), "it leads on");
    let ms = cluster.now.since_us(before) / 1000;
    assert!((1_000..1_500).contains(&ms), "{ms} ms");
    assert_eq!(cluster.hand_overs[0].2, HandOver::SlowDisk);
}

#[test]
fn a_slow_disk_among_slow_ones_or_without_traffic_or_for_a_moment_is_no_reason_to_hand_over() {
    // All alike.
    let mut cluster = Cluster::with(3, 8, WorldOptions { disk_us: (80_000, 120_000), ..WorldOptions::default() });
    let leader = cluster.lead();
    trickle(&mut cluster, leader, 1..300);
    assert_eq!(cluster.hand_overs, []);
    // Half of the others are no better.
    let mut cluster = Cluster::new(3, 9);
    let leader = cluster.lead();
    let follower = cluster.follower();
    cluster.disk_us.insert(leader, (100_000, 100_000));
    cluster.disk_us.insert(follower, (100_000, 100_000));
    trickle(&mut cluster, leader, 1..300);
    assert_eq!(cluster.hand_overs, []);
    // Ten times slower, but quick enough for anybody.
    let mut cluster = Cluster::with(3, 10, WorldOptions { disk_us: (100, 200), ..WorldOptions::default() });
    let leader = cluster.lead();
    cluster.disk_us.insert(leader, (20_000, 20_000));
    for number in 1..100 {
        cluster.propose_all(leader, number..number + 1);
        cluster.run_ms(30);
    }
    assert_eq!(cluster.hand_overs, []);
    // One slow write, and then nothing to do; and slow writes with quick ones between.
    let mut cluster = Cluster::new(3, 11);
    let leader = cluster.lead();
    for number in 1..20 {
        let us = if number % 3 == 0 { 1_000 } else { 300_000 };
        cluster.disk_us.insert(leader, (us, us));
        cluster.propose_all(leader, number..number + 1);
        cluster.run_ms(310);
    }
    cluster.disk_us.insert(leader, (400_000, 400_000));
    cluster.propose_all(leader, 20..21);
    cluster.run_ms(10_000);
    assert_eq!(cluster.hand_overs, []);
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn a_follower_whose_disk_hangs_keeps_a_bounded_part_of_the_log_in_memory_and_catches_up() {
    let limits =
        VoterLimits { memory_bytes_max: 4_000, uncommitted_bytes_max: 4_000, append_bytes_max: 2_000, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 12, WorldOptions { limits, ..WorldOptions::default() });
    let leader = cluster.lead();
    let hung = cluster.follower();
    cluster.hang(hung);
    let mut most = 0;
    for number in 1..800 {
        assert!(cluster.propose(leader, number));
        cluster.run_ms(5);
        most = most.max(cluster.voter(hung).raw.store().bytes());
    }
    assert!(most < 16_000, "{most} bytes");
    assert!(cluster.status(hung).appends_dropped > 0);
    assert_eq!(cluster.log.iter().map(|run| run.header().count as usize).sum::<usize>(), 799 + 1, "the others went on");
    cluster.go_on(hung);
    cluster.converge();
}

#[test]
fn a_leader_seals_nothing_while_memory_is_full_of_what_is_committed_and_not_applied() {
    let limits =
        VoterLimits { memory_bytes_max: 1_000, uncommitted_bytes_max: 1_000, append_bytes_max: 900, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 13, WorldOptions { limits, ..WorldOptions::default() });
    let leader = cluster.lead();
    cluster.options.apply_us = (2_000_000, 2_000_000);
    let mut most = 0;
    for number in 1..150 {
        assert!(cluster.propose(leader, number));
        cluster.run_ms(5);
        most = most.max(cluster.voter(leader).raw.store().bytes());
    }
    assert!((2_000..2_500).contains(&most), "{most} bytes");
    cluster.options.apply_us = (0, 100);
    cluster.converge();
    assert!((1..150).all(|number| cluster.count(number) == 1));
}

#[test]
fn a_server_that_holds_more_uncommitted_log_than_it_may_still_takes_what_moves_it_on() {
    let limits = VoterLimits { memory_bytes_max: 400, uncommitted_bytes_max: 400, append_bytes_max: 300, ..VoterLimits::default() };
    let mut cluster = Cluster::with(5, 14, WorldOptions { limits, ..WorldOptions::default() });
    cluster.lead();
    cluster.run_ms(500);
    // Two leaders, one after the other, that hear one follower's answers only: each leaves as much uncommitted as it may.
    let mut gone = Vec::new();
    for term in 0..2 {
        assert!(cluster.run_until(10_000, |cluster| cluster.leader().is_some()));
        let leader = cluster.leader().unwrap();
        let others: Vec<RaftId> = (1..=5).map(id).filter(|id| *id != leader && cluster.up(*id)).collect();
        others[1..].iter().for_each(|other| cluster.deafen(*other, leader));
        for number in 1..20 {
            let _ = cluster.propose(leader, 100 * term + number);
            cluster.run_ms(5);
        }
        cluster.crash(leader, false);
        gone.push(leader);
    }
    let left: Vec<RaftId> = (1..=5).map(id).filter(|id| !gone.contains(id)).collect();
    let most = left.iter().map(|id| cluster.voter(*id).raw.store().bytes()).max().unwrap();
    assert!(most > 800, "{most} bytes");
    cluster.heal();
    assert!(cluster.run_until(20_000, |cluster| cluster.count(1) == 1), "nothing commits");
    gone.into_iter().for_each(|id| cluster.start(id));
    cluster.converge();
}

#[test]
fn a_new_leader_is_given_what_was_parked_a_bounded_part_at_a_time() {
    let limits = VoterLimits { forward_in_flight_bytes_max: 600, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 15, WorldOptions { limits, ..WorldOptions::default() });
    let leader = cluster.lead();
    let follower = cluster.follower();
    cluster.crash(leader, true);
    cluster.run_ms(200);
    cluster.propose_all(follower, 1..200);
    let bytes = Cluster::entry(100).len();
    assert!(cluster.run_until(10_000, |cluster| cluster.leader().is_some_and(|id| id != leader)));
    let mut most = 0;
    while !(1..200).all(|number| cluster.count(number) == 1) {
        cluster.run_ms(1);
        most = most.max(cluster.voter(follower).book.in_flight());
        assert!(cluster.now.monotonic_us < 60_000_000, "it takes for ever");
    }
    assert!(most <= 600 && most > 600 - bytes, "{most} bytes");
    cluster.start(leader);
    cluster.converge();
}

#[test]
fn reads_beyond_their_bound_are_refused_by_name() {
    let limits = VoterLimits { reads_max: 3, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 16, WorldOptions { limits, ..WorldOptions::default() });
    let follower = id(2);
    let now = cluster.now;
    for number in 1..=3 {
        cluster.voter(follower).handle_read(ReadId(number), now).unwrap();
    }
    assert_eq!(cluster.voter(follower).handle_read(ReadId(4), now), Err(ReadRefused::Overloaded));
    cluster.voter(follower).cancel_read(ReadId(2));
    assert_eq!(cluster.voter(follower).handle_read(ReadId(5), now), Ok(()));
}
