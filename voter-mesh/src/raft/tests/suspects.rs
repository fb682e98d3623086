//! What a replica that lost part of its log may do until it is whole, and what it must not.

use super::super::*;
use super::cluster::{Cluster, Disk, beyond, formed, id};
use crate::testing::{Leader, open};

/// Ends a server and takes the last `runs` runs from its disk, which knows that they are missing.
fn lose(cluster: &mut Cluster, at: RaftId, runs: usize) {
    cluster.crash(at, false);
    let disk = &mut cluster.servers.get_mut(&at).unwrap().disk;
    disk.suspect = Some(disk.tail());
    disk.runs.truncate(disk.runs.len() - runs);
    disk.commit = disk.commit.min(disk.tail().run);
}

#[test]
fn of_five_voters_an_entry_that_three_had_is_not_lost_when_one_loses_it_and_two_are_dead() {
    // All of it: then others have as much. A part: then it has more than the others, and still must not lead.
    for (seed, runs_lost) in (0..10).flat_map(|seed| [(seed, 2), (seed, 1)]) {
        let mut cluster = Cluster::new(5, seed);
        let leader = cluster.lead();
        cluster.converge();
        let others: Vec<_> = (1..=5).map(id).filter(|other| *other != leader).collect();
        let [loses, dies, lacks, lacks_too] = others[..] else { unreachable!() };
        cluster.isolate(lacks);
        cluster.isolate(lacks_too);
        for number in [1, 2] {
            cluster.propose(leader, number);
            assert!(cluster.run_until(1_000, |cluster| cluster.count(number) == 1), "three of five have it");
        }
        cluster.run_ms(5);
        cluster.crash(leader, true);
        cluster.crash(dies, true);
        lose(&mut cluster, loses, runs_lost);
        cluster.heal();
        cluster.start(loses);
        cluster.run_ms(20_000);
        assert_eq!(cluster.leader(), None, "seed {seed}: the living are a quorum, and none of them has it");
        cluster.start(dies);
        let next = cluster.lead();
        assert_eq!(next, dies, "seed {seed}: the only one that has it");
        cluster.converge();
        assert_eq!((cluster.count(1), cluster.count(2)), (1, 1));
        assert!(!cluster.status(loses).suspect);
    }
}

#[test]
fn an_idle_cluster_heals_a_suspect_within_two_heartbeats() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.lead();
        cluster.propose_all(leader, 1..10);
        cluster.converge();
        let (lost, commit) = (cluster.follower(), cluster.status(leader).commit);
        lose(&mut cluster, lost, 2);
        cluster.run_ms(3_000);
        cluster.start(lost);
        assert!(cluster.status(lost).suspect);
        assert!(cluster.run_until(400, |cluster| !cluster.status(lost).suspect), "seed {seed}");
        assert_eq!((cluster.leader(), cluster.status(leader).commit), (Some(leader), commit), "and nothing else happened");
    }
}

#[test]
fn a_suspect_of_the_highest_priority_blocks_no_election() {
    let mut configuration = formed(3);
    let [dear, other, down] = [1, 2, 3].map(id);
    configuration.seats.get_mut(&dear.seat()).unwrap().priority = 10;
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        [dear, other, down].into_iter().for_each(|id| cluster.crash(id, true));
        [dear, other, down].into_iter().for_each(|id| cluster.place(id, Disk::formed(&configuration)));
        // It holds more runs than the other one, of an older term, and has lost another still: among equal terms its priority would
        // keep every other from leading.
        let mut old = Leader { tail: Disk::formed(&configuration).before, term: Term(2), clock: cluster.now.unix_ms };
        let mut new = Leader { term: Term(3), ..old.clone() };
        let disk = &mut cluster.servers.get_mut(&dear).unwrap().disk;
        disk.runs = (0..3).map(|n| old.seal(&[open(n)])).collect();
        (disk.term, disk.suspect) = (Term(2), Some(beyond(old.tail)));
        let disk = &mut cluster.servers.get_mut(&other).unwrap().disk;
        disk.runs = vec![new.seal(&[open(9)])];
        disk.term = Term(3);
        cluster.start(dear);
        cluster.start(other);
        assert!(cluster.run_until(10_000, |cluster| cluster.leader() == Some(other)), "seed {seed}");
        assert!(
            cluster.run_until(1_000, |cluster| !cluster.status(dear).suspect),
            "seed {seed}: a later leader's history is whole"
        );
        cluster.start(down);
        cluster.converge();
    }
}
