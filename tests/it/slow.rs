//! Clients that do not read: they cost a bounded amount of memory, slow nobody down, and miss nothing when they read again.

use bytes::Bytes;
use cluster_server::ServerLimits;
use futures_util::future::join_all;
use relay::wire::{ClientFrame, FeedMode, ServerFrame, Start};
use voter_mesh::ids::LogIndex;
use voter_mesh::learner::Learner;
use voter_mesh::run::chain_zero;

use crate::here::{committed_to, raw, shutdown, started, url, voters};
use crate::peer::{Peer, hello};

/// Far more than sockets hold.
const COMMANDS: usize = 768;
const COMMAND_BYTES: usize = 32 << 10;
const SLEEPERS: usize = 16;

/// Bytes of memory of this process.
pub fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Reads a feed to `last`, proving that nothing is missing or twice but for what a snapshot stands for; how many snapshots came.
async fn read_on(peer: &mut Peer, mut learner: Learner, last: LogIndex) -> usize {
    let mut snapshots = 0;
    while learner.applied() < last {
        match peer.hear().await.expect("the feed goes on") {
            ServerFrame::Feed(mut blocks) => learner.apply_blocks(&mut blocks, &mut (), &mut |_| ()).unwrap(),
            ServerFrame::Pong { .. } | ServerFrame::Start(Start::Snapshot(_)) => {}
            ServerFrame::Snapshot(piece) => {
                if piece.offset + piece.bytes.len() as u64 == piece.total {
                    assert!(piece.index > learner.applied());
                    learner = Learner::at(piece.index, piece.chain);
                    snapshots += 1;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(learner.applied(), last);
    snapshots
}

async fn sleepers_wake_up(ring_bytes_max: usize) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let limits = ServerLimits { ring_bytes_max, ..ServerLimits::default() };
    let cluster = started(voters(1, directory.path()).limits(limits)).await;
    let here = url(&cluster, cluster.seats()[0]);
    let mut sleepers = Vec::new();
    for _ in 0..SLEEPERS {
        let (peer, admit) = Peer::admitted(&here, hello(FeedMode::Full)).await;
        let identity = voter_mesh::ids::Identity { cluster: admit.cluster, epoch: admit.epoch, room: voter_mesh::ids::RoomId(0) };
        assert_eq!(admit.start, Start::Tail(LogIndex::FIRST));
        sleepers.push((peer, Learner::at(LogIndex::ZERO, chain_zero(&identity))));
    }
    let client = raw(&[here]).await;
    let before = resident_bytes();
    let mut last = LogIndex::ZERO;
    for batch in 0..COMMANDS / 64 {
        let commands = (0..64).map(|number| Bytes::from(vec![(batch * 64 + number) as u8; COMMAND_BYTES]));
        for applied in join_all(commands.map(|command| client.propose(&command).into_future())).await {
            last = last.max(applied.unwrap().index);
        }
    }
    // Queues of their own would hold 384 MiB for the sleepers.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
    // They are still there, and still heard.
    let seat = cluster.seats()[0];
    assert_eq!(cluster.status(seat).await.unwrap().clients, SLEEPERS + 1);
    for (peer, _) in &mut sleepers {
        peer.say(ClientFrame::Ping { nonce: 1 }).await;
    }
    let mut snapshots = 0;
    for (mut peer, learner) in sleepers {
        snapshots += read_on(&mut peer, learner, last).await;
    }
    let from_log = crate::here::counter(&cluster, seat, "client_chunks_read").await > 0;
    assert_eq!(from_log, ring_bytes_max < COMMANDS * COMMAND_BYTES);
    shutdown(cluster).await;
    snapshots
}

#[tokio::test]
async fn clients_that_do_not_read_cost_little_and_catch_up_without_a_gap() {
    assert_eq!(sleepers_wake_up(64 << 20).await, 0);
}

#[tokio::test]
async fn clients_that_slept_through_more_than_the_ring_holds_catch_up_from_the_log() {
    assert_eq!(sleepers_wake_up(1 << 20).await, 0);
}

#[tokio::test]
async fn a_stream_that_is_not_polled_holds_nobody_back_and_misses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path())).await;
    let here = url(&cluster, cluster.seats()[0]);
    let client = crate::here::client_of(&[here]).history_bytes_max(4 << 10).raw().connect().await.unwrap();
    let mut idle = client.committed_from(LogIndex::FIRST);
    client.propose(&Bytes::from("0")).await.unwrap();
    crate::here::take(&mut idle, 1).await;
    let mut last = LogIndex::ZERO;
    for number in 1..500 {
        last = client.propose(&Bytes::from(number.to_string())).await.unwrap().index;
    }
    let payloads: Vec<_> = crate::here::take(&mut idle, 499).await.into_iter().map(|entry| entry.payload).collect();
    assert!(payloads.iter().enumerate().all(|(number, payload)| *payload == (number + 1).to_string()));
    assert_eq!(committed_to(&client, last).await.len(), 500);
    shutdown(cluster).await;
}
