//! How proposals become one history, and how replicas that fell behind come back.

use super::super::*;
use super::cluster::{Cluster, WorldOptions, id};
use crate::testing::{Leader, open};

#[test]
fn proposals_from_every_server_are_committed_once_and_alike() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(3, seed);
        cluster.lead();
        for number in 0..300 {
            assert!(cluster.propose(id(1 + (number % 3) as u16), number));
            if number % 10 == 0 {
                cluster.run_ms(1);
            }
        }
        cluster.converge();
        let mut commands = cluster.commands();
        commands.sort_unstable();
        assert_eq!(commands, (0..300).collect::<Vec<_>>(), "each once");
        // The bytes were compared as they were committed; the disks end alike too.
        let runs = |seat: u16| cluster.servers[&id(seat)].disk.runs.clone();
        assert!(runs(1) == runs(2) && runs(2) == runs(3));
    }
}

#[test]
fn a_command_costs_each_follower_one_append_one_reply_and_one_word_that_it_is_committed() {
    let mut cluster = Cluster::new(3, 3);
    let leader = cluster.lead();
    cluster.converge();
    cluster.messages.clear();
    for number in 0..20 {
        cluster.propose(leader, number);
        cluster.run_until(100, |cluster| {
            cluster.count(number) == 1
                && [1, 2, 3].map(id).iter().all(|id| cluster.status(*id).commit == cluster.status(leader).last)
        });
    }
    let sent = |kind| cluster.messages.get(kind).copied().unwrap_or(0);
    assert_eq!((sent("Append"), sent("AppendReply")), (40, 40));
    assert!((20..=40).contains(&sent("Commit")), "{}", sent("Commit"));
}

#[test]
fn a_deposed_leader_that_says_what_is_committed_hears_of_the_new_term() {
    let mut cluster = Cluster::new(3, 4);
    let (leader, follower) = (cluster.lead(), cluster.follower());
    cluster.converge();
    let (status, now) = (cluster.status(leader), cluster.now);
    let voter = cluster.voter(follower);
    let (previous, previous_term, commit) = (status.last, status.last_term, status.commit);
    let said = |voter: &mut Voter, term| {
        voter.handle_message(leader, Message::Commit { term, previous, previous_term, commit }, now).unwrap();
        std::iter::from_fn(|| voter.poll_transmit()).map(|transmit| transmit.message).collect::<Vec<_>>()
    };
    assert_eq!(said(voter, status.term), [], "nothing depends on the answer");
    let answers = said(voter, Term(status.term.0 - 1));
    assert!(matches!(answers[..], [Message::AppendReply { term, .. }] if term == status.term), "{answers:?}");
}

#[test]
fn proposals_made_before_anybody_leads_wait_for_it() {
    let mut cluster = Cluster::new(3, 1);
    (0..10).for_each(|number| assert!(cluster.propose(id(2), number)));
    cluster.converge();
    assert_eq!(cluster.commands(), (0..10).collect::<Vec<_>>(), "in the order in which they came");
}

#[test]
fn a_leader_that_dies_under_load_loses_nothing_that_a_living_server_took() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let old = cluster.lead();
        let entry = cluster.follower();
        for number in 0..200 {
            cluster.propose(entry, number);
            if number == 100 {
                cluster.crash(old, seed % 2 == 0);
            }
            cluster.run_ms(1);
        }
        cluster.run_until(5_000, |cluster| cluster.leader().is_some());
        cluster.start(old);
        cluster.converge();
        (0..200).for_each(|number| assert!(cluster.count(number) >= 1, "seed {seed}: {number} is lost"));
    }
}

#[test]
fn all_servers_die_under_load_and_come_back_with_all_that_was_committed() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        for number in 0..100 {
            cluster.propose(leader, number);
            cluster.run_ms(1);
        }
        let committed = cluster.commands();
        [1, 2, 3].map(id).into_iter().for_each(|id| cluster.crash(id, false));
        [1, 2, 3].map(id).into_iter().for_each(|id| cluster.start(id));
        cluster.lead();
        cluster.converge();
        assert!(cluster.commands().starts_with(&committed));
    }
}

#[test]
fn a_follower_that_lost_what_it_never_synced_heals() {
    let mut cluster = Cluster::new(3, 3);
    let (leader, lost) = (cluster.lead(), cluster.follower());
    cluster.propose_all(leader, 0..50);
    cluster.converge();
    cluster.crash(lost, false);
    let disk = &mut cluster.servers.get_mut(&lost).unwrap().disk;
    disk.runs.clear();
    disk.commit = disk.before.run;
    cluster.start(lost);
    // Not for a moment does the leader count on what its last life had acknowledged.
    let counts = |cluster: &Cluster| cluster.status(leader).peers[&lost].matched > cluster.servers[&lost].disk.tail().run;
    assert!(cluster.run_until(5, |cluster| cluster.status(leader).peers[&lost].matched == RunIndex::ZERO));
    assert!(!cluster.run_until(20, counts));
    cluster.propose(leader, 50);
    cluster.converge();
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn an_overwritten_tail_takes_what_was_promised_in_it_to_the_next_leader() {
    let mut cluster = Cluster::new(5, 8);
    let old = cluster.lead();
    cluster.converge();
    // What is proposed at one follower reaches the old leader's log and nobody else's.
    let entry = cluster.follower();
    let others: Vec<_> = (1..=5).map(id).filter(|other| *other != old && *other != entry).collect();
    others.iter().for_each(|other| cluster.deafen(old, *other));
    cluster.deafen(old, entry);
    cluster.propose_all(entry, 0..5);
    cluster.run_ms(100);
    assert!(cluster.status(old).last > cluster.status(entry).last);
    cluster.isolate(old);
    cluster.cut.clear();
    assert!(cluster.run_until(5_000, |cluster| cluster.leaders.len() == 2));
    cluster.run_ms(500);
    (0..5).for_each(|number| assert_eq!(cluster.count(number), 1));
    cluster.heal();
    cluster.converge();
    (0..5).for_each(|number| assert_eq!(cluster.count(number), 1));
}

#[test]
fn an_old_leaders_run_that_most_have_is_overwritten_while_it_is_not_committed() {
    // Figure 8 of the Raft paper, with servers that are started and stopped by hand.
    let mut cluster = Cluster::new(5, 21);
    let first = cluster.lead();
    cluster.converge();
    let all: Vec<_> = (1..=5).map(id).collect();
    for round in 0..12 {
        let Some(leader) = cluster.leader() else {
            cluster.run_ms(1_000);
            continue;
        };
        // It writes to itself and to one other, and dies.
        let friend = all[(round * 3 + 1) % 5];
        all.iter().filter(|to| **to != leader && **to != friend).for_each(|to| cluster.deafen(leader, *to));
        cluster.propose(leader, 100 + round as u64);
        cluster.run_ms(5);
        cluster.crash(leader, false);
        cluster.cut.clear();
        cluster.run_until(6_000, |cluster| cluster.leader().is_some());
        cluster.start(leader);
        cluster.run_ms(300);
    }
    let _ = first;
    cluster.converge();
}

#[test]
fn a_conflicting_append_that_comes_before_the_first_was_drained_is_written_whole() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, other) = (cluster.lead(), cluster.follower());
    cluster.converge();
    let third = [1, 2, 3].map(id).into_iter().find(|id| *id != leader && *id != other).unwrap();
    for peer in [leader, other] {
        cluster.deafen(peer, third);
        cluster.deafen(third, peer);
    }
    let status = cluster.status(third);
    let run = cluster.log.last().unwrap();
    let mut old = Leader { tail: run.header().tail(), term: status.term, clock: crate::ids::TimeMs(0) };
    let mut new = Leader { term: Term(status.term.0 + 1), ..old.clone() };
    let (previous, previous_term) = (old.tail.run, old.tail.term);
    let mine: Vec<Run> = (1..=4).map(|n| old.seal(&[open(n)])).collect();
    let theirs: Vec<Run> = (11..=14).map(|n| new.seal(&[open(n)])).collect();
    let append = |term: Term, (previous, previous_term): (RunIndex, Term), runs: &[Run]| Message::Append {
        term,
        previous,
        previous_term,
        commit: RunIndex::ZERO,
        runs: runs.to_vec(),
    };
    let now = cluster.now;
    let voter = cluster.voter(third);
    // Two are written and two are not when a new leader overwrites from the second.
    voter.handle_message(leader, append(status.term, (previous, previous_term), &mine[..2]), now).unwrap();
    cluster.drain(third);
    let voter = cluster.voter(third);
    let tail = mine[1].header().tail();
    voter.handle_message(leader, append(status.term, (tail.run, tail.term), &mine[2..]), now).unwrap();
    voter.handle_message(other, append(new.term, (previous, previous_term), &theirs), now).unwrap();
    cluster.drain(third);
    cluster.run_until(50, |cluster| cluster.servers[&third].disk.tail() == new.tail);
    let held = &cluster.servers[&third].disk.runs;
    assert_eq!(&held[held.len() - 4..], &theirs[..], "and none of them is missing on the disk");
}

#[test]
fn a_suspect_replica_is_whole_when_what_it_lost_is_durable_and_not_before() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, lost) = (cluster.lead(), cluster.follower());
    cluster.converge();
    cluster.crash(lost, false);
    let mut next =
        Leader { tail: cluster.servers[&lost].disk.tail(), term: cluster.status(leader).term, clock: cluster.now.unix_ms };
    let before = next.tail;
    let runs: Vec<Run> = (1..=2).map(|n| next.seal(&[open(n)])).collect();
    cluster.servers.get_mut(&lost).unwrap().disk.suspect = Some(next.tail);
    cluster.start(lost);
    let now = cluster.now;
    let term = next.term;
    let voter = cluster.voter(lost);
    voter.handle_connected(Peer { id: leader, incarnation: Incarnation(1) }, now);
    let mut written = Vec::new();
    for (run, previous) in runs.iter().zip([before, runs[0].header().tail()]) {
        let (previous, previous_term, runs) = (previous.run, previous.term, vec![run.clone()]);
        let commit = RunIndex::ZERO;
        voter.handle_message(leader, Message::Append { term, previous, previous_term, commit, runs }, now).unwrap();
        written.extend(std::iter::from_fn(|| voter.poll_write()).last());
    }
    voter.handle_written(Ok(Written { number: written[0].number }), now);
    assert!(voter.status().suspect, "the last run is on its way to the disk");
    voter.handle_written(Ok(Written { number: written[1].number }), now);
    assert!(!voter.status().suspect);
}

#[test]
fn a_far_follower_is_served_from_the_leaders_disk() {
    let limits = VoterLimits { memory_bytes_max: 2_000, append_bytes_max: 4_000, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 5, WorldOptions { limits, ..WorldOptions::default() });
    let (leader, away) = (cluster.lead(), cluster.follower());
    cluster.crash(away, false);
    for number in 0..300 {
        cluster.propose(leader, number);
        cluster.run_ms(2);
    }
    cluster.start(away);
    cluster.converge();
    assert!(cluster.servers[&leader].fetched > 1);
    assert_eq!(cluster.servers[&away].installed, 0);
}

#[test]
fn a_follower_that_needs_a_run_which_rotted_on_the_leaders_disk_is_served_a_snapshot() {
    let limits = VoterLimits { memory_bytes_max: 2_000, append_bytes_max: 4_000, ..VoterLimits::default() };
    for rotten in [0, 40, 150] {
        let mut cluster = Cluster::with(3, 5, WorldOptions { limits: limits.clone(), ..WorldOptions::default() });
        let (leader, away) = (cluster.lead(), cluster.follower());
        cluster.crash(away, false);
        let first = cluster.servers[&away].disk.tail().run.next();
        for number in 0..300 {
            cluster.propose(leader, number);
            cluster.run_ms(2);
        }
        cluster.servers.get_mut(&leader).unwrap().rotten = Some(RunIndex(first.0 + rotten));
        cluster.start(away);
        cluster.converge();
        assert_eq!(cluster.servers[&away].installed, 1, "run {rotten} behind its own");
    }
}

#[test]
fn a_follower_below_the_log_is_served_a_snapshot() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, away) = (cluster.lead(), cluster.follower());
        cluster.crash(away, seed % 2 == 0);
        for number in 0..100 {
            cluster.propose(leader, number);
            cluster.run_ms(2);
        }
        cluster.run_ms(100);
        cluster.compact(leader, 10);
        cluster.propose_all(leader, 100..120);
        cluster.start(away);
        cluster.converge();
        assert_eq!(cluster.servers[&away].installed, 1);
        // It also starts again from it.
        cluster.crash(away, false);
        cluster.start(away);
        cluster.converge();
    }
}

#[test]
fn a_torn_link_while_a_snapshot_is_on_its_way_to_the_disk_ends_no_process() {
    let mut cluster =
        Cluster::with(3, 4, WorldOptions { disk_us: (5_000, 30_000), apply_us: (20_000, 60_000), ..WorldOptions::default() });
    let (leader, away) = (cluster.lead(), cluster.follower());
    cluster.crash(away, false);
    (0..20).for_each(|number| {
        cluster.propose(leader, number);
        cluster.run_ms(50);
    });
    cluster.run_ms(1_000);
    cluster.compact(leader, 1);
    cluster.start(away);
    for _ in 0..200 {
        cluster.run_ms(3);
        cluster.tear(leader, away);
    }
    cluster.converge();
    // The same when the leader is gone for good.
    cluster.crash(away, false);
    (20..40).for_each(|number| {
        cluster.propose(leader, number);
        cluster.run_ms(50);
    });
    cluster.run_ms(1_000);
    cluster.compact(leader, 1);
    cluster.start(away);
    cluster.run_until(1_000, |cluster| cluster.status(away).commit == cluster.status(leader).commit);
    cluster.crash(leader, false);
    assert!(cluster.run_until(8_000, |cluster| cluster.leader().is_some_and(|new| new != leader)));
}

#[test]
fn what_is_too_much_is_refused_and_told_when_it_is_not_any_more() {
    let limits =
        VoterLimits { forward_bytes_max: 4_000, uncommitted_bytes_max: 3_000, append_bytes_max: 1_000, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 5, WorldOptions { limits, ..WorldOptions::default() });
    let (leader, entry) = (cluster.lead(), cluster.follower());
    let others: Vec<_> = [1, 2, 3].map(id).into_iter().filter(|other| *other != leader).collect();
    // Nothing commits, and nothing that waits is sealed twice however long that takes.
    others.iter().for_each(|other| cluster.deafen(leader, *other));
    let taken: Vec<u64> = (0..200).filter(|number| cluster.propose(leader, *number)).collect();
    assert!(taken.len() > 10 && taken.len() < 100);
    cluster.run_ms(900);
    cluster.heal();
    assert!(cluster.run_until(5_000, |cluster| cluster.count(taken[taken.len() - 1]) > 0));
    cluster.converge();
    assert!(cluster.propose(leader, 500) && cluster.propose(entry, 501), "there is room again");
    cluster.converge();
    taken.into_iter().chain([500, 501]).for_each(|number| assert!(cluster.count(number) >= 1));
}

#[test]
fn what_waits_long_at_the_leader_is_sealed_once() {
    let limits = VoterLimits { uncommitted_bytes_max: 300, append_bytes_max: 300, ..VoterLimits::default() };
    let mut cluster = Cluster::with(3, 5, WorldOptions { limits, disk_us: (400_000, 450_000), ..WorldOptions::default() });
    let (leader, entry) = (cluster.lead(), cluster.follower());
    cluster.run_ms(2_000);
    for number in 0..12 {
        cluster.propose(if number % 2 == 0 { leader } else { entry }, number);
        cluster.run_ms(60);
    }
    cluster.converge();
    (0..12).for_each(|number| assert_eq!(cluster.count(number), 1, "{number}"));
}

#[test]
fn a_batch_larger_than_a_run_becomes_several() {
    let mut cluster = Cluster::new(3, 5);
    let (leader, entry) = (cluster.lead(), cluster.follower());
    for at in [leader, entry] {
        let batch: Vec<u8> = (0..30_000).flat_map(|number| Cluster::entry(number).to_vec()).collect();
        assert!(batch.len() > 6 * RUN_BYTES_MAX);
        let now = cluster.now;
        cluster.voter(at).handle_propose(batch.into(), now).unwrap();
        cluster.drain(at);
    }
    cluster.converge();
    assert_eq!(cluster.commands().len(), 60_000);
    assert!(cluster.log.iter().all(|run| run.bytes().len() <= RUN_BYTES_MAX + crate::run::RUN_HEADER_BYTES));
}

#[test]
fn the_answer_to_a_dead_process_is_not_taken_for_its_successors() {
    let mut cluster = Cluster::with(3, 5, WorldOptions { net_us: (50, 100), ..WorldOptions::default() });
    let (leader, entry) = (cluster.lead(), cluster.follower());
    cluster.converge();
    let now = cluster.now;
    // The first process forwards its batch 1 and dies; the second one has a batch 1 too.
    let batch = BatchId(1);
    let voter = cluster.voter(leader);
    voter.handle_message(entry, Message::Forward { batch, entries: Cluster::entry(1) }, now).unwrap();
    voter.handle_disconnected(entry, Disconnect::Torn, now);
    voter.handle_connected(Peer { id: entry, incarnation: Incarnation(77) }, now);
    let mut said = Vec::new();
    while let Some(transmit) = voter.poll_transmit() {
        said.push(transmit);
    }
    assert!(
        said.iter()
            .all(|Transmit { to, message }| *to != entry || !matches!(message, Message::Taken { .. } | Message::Refused { .. }))
    );
}
