//! Stories of real server processes, killed, frozen, wiped and started again.

mod benches;
mod command_line;
mod failing_disks;
pub(crate) mod fleet;
mod restoring;
mod snapshots;
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cluster_client::LogIndex;
use cluster_server::Phase;
use voter_mesh::configuration::Role;
use voter_mesh::ids::Seat;

use crate::harness::eventually;
use command_line::{Interactive, run};
pub(crate) use fleet::free_ports;
use fleet::{Fleet, Load, exactly_once};

/// How long a failover may take. Without the torn link as a hint it would be an election timeout, 1 s at least.
const FAILOVER_MAX: Duration = Duration::from_millis(500);

/// Every file below a directory, and when it was changed.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
            files.insert(path.clone(), (changed, std::fs::read(&path).unwrap()));
        }
    }
    files
}

#[tokio::test]
async fn what_is_proposed_at_any_server_arrives_on_all_and_byte_identical() {
    let fleet = Fleet::start("log").await;
    let mut told = Vec::new();
    for seat in 1..=3 {
        let client = fleet.thin(seat).await;
        let payload = format!("from server {seat}: \u{0}\u{7f}ß");
        told.push((client.propose(&payload.clone().into()).await.unwrap().index, payload));
        client.close().await;
    }
    fleet.identical().await;
    assert_eq!(fleet.history(1).await, told);
}

#[tokio::test]
async fn all_servers_are_killed_under_load_and_nothing_acknowledged_is_lost_or_doubled() {
    let mut fleet = Fleet::start("log").await;
    let load = Load::start(&fleet, 6).await;
    load.more(300).await;
    for seat in 1..=3 {
        fleet.kill(seat).await;
    }
    for seat in [3, 1, 2] {
        fleet.launch(seat).await;
    }
    load.more(300).await;
    let acks = load.finish().await;
    exactly_once(&acks, &fleet.history(1).await);
    fleet.identical().await;
}

#[tokio::test]
async fn a_wiped_server_takes_its_seat_again_under_a_new_id_and_never_votes_with_an_empty_log() {
    let mut fleet = Fleet::start("log").await;
    let leader = fleet.leader().await;
    let (wiped, lagging) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let load = Load::start(&fleet, 6).await;
    load.more(100).await;
    fleet.freeze(lagging);
    load.more(200).await;
    // What was acknowledged since stands on the leader's disk alone: one server has no disk any more, and one was not there.
    fleet.kill(leader).await;
    fleet.kill(wiped).await;
    fleet.wipe(wiped);
    fleet.thaw(lagging);
    fleet.launch(wiped).await;
    // Not before those two know of each other and have had the time of two elections may the only good log come back.
    let old_id = eventually("the wiped server asks to be let in", || async {
        let (newcomer, old) = (fleet.status(wiped).await?, fleet.status(lagging).await?);
        (newcomer.phase == Phase::Joining).then_some(old.configuration.seats[&Seat(wiped as u16)].member.clone()?.id)
    })
    .await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        for seat in [wiped, lagging] {
            let phase = fleet.status(seat).await.map(|status| status.phase);
            assert!(phase != Some(Phase::Leading), "server {seat} leads without what was acknowledged");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fleet.launch(leader).await;
    load.more(200).await;
    let new_id = eventually("the wiped server votes again", || async {
        let status = fleet.status(leader).await?;
        let member = status.configuration.seats[&Seat(wiped as u16)].member.clone()?;
        (member.role == Role::Voter && member.id != old_id && !status.configuration.is_joint()).then_some(member.id)
    })
    .await;
    assert!(new_id.life() > old_id.life());
    // Now the other two cannot do without its vote.
    let leader = fleet.leader().await;
    let dispensable = (1..=3).rfind(|seat| *seat != wiped && *seat != leader).unwrap();
    fleet.kill(dispensable).await;
    load.more(200).await;
    fleet.launch(dispensable).await;
    let acks = load.finish().await;
    fleet.identical().await;
    exactly_once(&acks, &fleet.history(lagging).await);
}

#[tokio::test]
async fn the_next_write_is_acknowledged_soon_after_the_leader_was_killed_under_load() {
    let trials = std::env::var("QUORATE_FAILOVER_TRIALS").map_or(3, |trials| trials.parse().unwrap());
    let mut fleet = Fleet::start("log").await;
    let load = Load::start(&fleet, 6).await;
    let mut kills = Vec::new();
    fleet.linked().await;
    for _ in 0..trials {
        load.more(100).await;
        let leader = fleet.leader().await;
        kills.push(fleet.kill(leader).await);
        load.more(100).await;
        fleet.launch(leader).await;
        // Whoever came back cannot vote for a server that it has not met.
        fleet.linked().await;
    }
    let acks = load.finish().await;
    // Of writes proposed before the kill, the answer may have been on its way already.
    let mut gaps: Vec<Duration> = kills
        .iter()
        .map(|kill| {
            let after = acks.iter().filter(|ack| ack.proposed > *kill).map(|ack| ack.acknowledged).min().unwrap();
            after - *kill
        })
        .collect();
    gaps.sort_unstable();
    println!("{trials} failovers: median {:?}, worst {:?}; all {gaps:?}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    assert!(gaps[gaps.len() - 1] < FAILOVER_MAX, "{gaps:?}");
    exactly_once(&acks, &fleet.history(1).await);
}

#[tokio::test]
async fn a_client_process_that_dies_with_an_unanswered_request_gets_its_outcome_from_its_journal() {
    let fleet = Fleet::start("log").await;
    let journal = fleet.root.path().join("journal").display().to_string();
    let entry = fleet.url(1);
    let attach = ["propose", "--json", "--endpoint", &entry, "--journal", &journal, "--request-id"];
    let mut first = Interactive::start(&[&attach[..], &["7777", "-"]].concat());
    first.say("charge 7777").await;
    let told = first.hear().await;
    // Without a quorum nothing commits; the next request reaches its server and stays without an answer.
    let before = fleet.status(1).await.unwrap().counters["proposals"];
    fleet.freeze(2);
    fleet.freeze(3);
    first.say("charge 7778").await;
    eventually("the request is at its server", || async { (fleet.status(1).await?.counters["proposals"] > before).then_some(()) })
        .await;
    first.kill().await;
    fleet.thaw(2);
    fleet.thaw(3);
    let unanswered = run(&[&attach[..], &["7778", "charge 7778"]].concat()).await.json();
    let again = run(&[&attach[..], &["7778", "charge 7778"]].concat()).await.json();
    assert_eq!((&again["index"], &again["repeat"]), (&unanswered["index"], &true.into()));
    // Its first request was answered before; nobody may charge it again.
    let stale = run(&[&attach[..], &["7777", "charge 7777"]].concat()).await;
    assert_eq!(stale.code, 1, "{stale:?}");
    let index = |told: &serde_json::Value| LogIndex(told["index"].as_u64().unwrap());
    let expected = [(index(&told), "charge 7777".to_owned()), (index(&unanswered), "charge 7778".to_owned())];
    assert_eq!(fleet.history(1).await, expected);
}

#[tokio::test]
async fn a_second_process_on_a_directory_ends_at_once_and_has_written_nothing() {
    let fleet = Fleet::start("log").await;
    // Whatever changes now, the second one did it.
    fleet.freeze(2);
    let before = contents(&fleet.data_dir(2));
    let mut arguments = fleet.arguments(2);
    let listen = arguments.iter().position(|argument| argument == "--listen").unwrap() + 1;
    arguments[listen] = "127.0.0.1:0".into();
    let peers = arguments.iter().position(|argument| argument == "--peers").unwrap() + 1;
    let [mesh] = free_ports(1)[..] else { unreachable!() };
    arguments[peers] = format!("2=127.0.0.1:{mesh}");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let second = run(&arguments).await;
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("in use"), "{second:?}");
    assert!(contents(&fleet.data_dir(2)) == before, "it wrote");
    fleet.thaw(2);
}

#[tokio::test]
async fn a_leader_told_to_end_hands_over_and_ends_with_zero() {
    let mut fleet = Fleet::start("log").await;
    let load = Load::start(&fleet, 6).await;
    load.more(50).await;
    let leader = fleet.leader().await;
    let status = fleet.terminate(leader).await;
    assert_eq!(status.code(), Some(0), "{}", std::fs::read_to_string(fleet.log(leader)).unwrap());
    // Not after an election: when it is gone, the next one leads.
    let mut leading = 0;
    for seat in (1..=3).filter(|seat| *seat != leader) {
        leading += u32::from(fleet.status(seat).await.unwrap().phase == Phase::Leading);
    }
    assert_eq!(leading, 1);
    load.more(50).await;
    fleet.launch(leader).await;
    exactly_once(&load.finish().await, &fleet.history(1).await);
}
