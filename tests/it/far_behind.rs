//! Clients whose place is long gone from a server's memory: old runs come from its log, states in pieces, and nothing is missing or
//! twice, whatever happens to the server, its disk and the link meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cluster_client::{ClusterClient, Raw, StreamError};
use cluster_server::{ServerCluster, ServerClusterBuilder, ServerLimits};
use futures_util::StreamExt;
use futures_util::future::join_all;
use relay::wire::{ClientFrame, Code, FeedMode, Hello, PartialState, ResumePoint, ServerFrame, Start};
use voter_mesh::ids::{Chain, Identity, LogIndex, RoomId, Seat};
use voter_mesh::learner::{Committed, Learner};
use voter_mesh::machine::kv::{self, Kv, KvCommand};
use voter_mesh::replica::ReplicaLimits;
use voter_mesh::run::chain_zero;

use crate::harness::eventually;
use crate::here::{applied, client_of, counter, identical, leader, raw, shutdown, started, take, url, voters};
use crate::peer::{Peer, hello};
use crate::proxy::Proxy;

/// A ring that holds about the last thirty of these commands, segments of a few hundred, a snapshot for every thousand entries.
const COMMAND_BYTES: usize = 1 << 10;

fn small(log_retain_bytes: u64) -> ServerLimits {
    ServerLimits { ring_bytes_max: 32 << 10, segment_bytes: 256 << 10, log_retain_bytes, ..ServerLimits::default() }
}

fn every_thousand() -> ReplicaLimits {
    ReplicaLimits { snapshot_entries: 1_000, ..ReplicaLimits::default() }
}

fn builder(count: u16, directory: &Path, log_retain_bytes: u64) -> ServerClusterBuilder {
    voters(count, directory).limits(small(log_retain_bytes)).replica_limits(every_thousand())
}

fn command(number: usize) -> Bytes {
    let mut bytes = number.to_string().into_bytes();
    bytes.resize(COMMAND_BYTES, b'.');
    bytes.into()
}

/// Proposes `range`, many at once; the last index.
async fn propose(client: &ClusterClient<Raw>, range: std::ops::Range<usize>) -> LogIndex {
    let mut last = LogIndex::ZERO;
    let numbers: Vec<_> = range.collect();
    for batch in numbers.chunks(64) {
        for done in join_all(batch.iter().map(|number| client.propose(&command(*number)).into_future())).await {
            last = last.max(done.unwrap().index);
        }
    }
    last
}

/// A learner without state that says what it was given.
struct Reader {
    peer: Peer,
    learner: Learner,
    committed: Vec<Committed>,
    snapshots: usize,
}

impl Reader {
    async fn from(url: &str, resume: Option<ResumePoint>) -> Self {
        let (peer, admit) = Peer::admitted(url, Hello { resume, ..hello(FeedMode::Full) }).await;
        let identity = Identity { cluster: admit.cluster, epoch: admit.epoch, room: RoomId(0) };
        let ResumePoint { applied, chain } =
            resume.unwrap_or(ResumePoint { applied: LogIndex::ZERO, chain: chain_zero(&identity) });
        Self { peer, learner: Learner::at(applied, chain), committed: Vec::new(), snapshots: 0 }
    }

    fn point(&self) -> ResumePoint {
        ResumePoint { applied: self.learner.applied(), chain: self.learner.chain() }
    }

    async fn to(&mut self, last: LogIndex) {
        while self.learner.applied() < last {
            match self.peer.hear().await.expect("the feed goes on") {
                ServerFrame::Feed(mut blocks) => {
                    let committed = &mut self.committed;
                    self.learner.apply_blocks(&mut blocks, &mut (), &mut |entry| committed.push(entry)).unwrap();
                }
                ServerFrame::Start(Start::Snapshot(_)) => {}
                ServerFrame::Snapshot(piece) if piece.offset + piece.bytes.len() as u64 == piece.total => {
                    assert!(piece.index >= self.learner.applied());
                    self.learner = Learner::at(piece.index, piece.chain);
                    self.snapshots += 1;
                }
                ServerFrame::Snapshot(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn numbers(&self) -> Vec<usize> {
        numbers(&self.committed)
    }
}

fn numbers(committed: &[Committed]) -> Vec<usize> {
    let text = |payload: &Bytes| String::from_utf8(payload.to_vec()).unwrap();
    committed.iter().map(|entry| text(&entry.payload).trim_end_matches('.').parse().unwrap()).collect()
}

fn sorted(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_unstable();
    numbers
}

/// Where a learner stands that stopped after a few commands.
async fn early(url: &str, client: &ClusterClient<Raw>) -> ResumePoint {
    let last = propose(client, 0..10).await;
    let mut reader = Reader::from(url, None).await;
    reader.to(last).await;
    reader.point()
}

#[tokio::test]
async fn a_client_far_below_the_ring_gets_every_command_from_the_log_while_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(builder(3, directory.path(), 256 << 20)).await;
    let client = raw(&cluster.urls()).await;
    let point = early(&cluster.urls()[0], &client).await;
    propose(&client, 10..3_000).await;
    // At every server, and while commands go on.
    let mut readers = Vec::new();
    for at in cluster.urls() {
        readers.push(Reader::from(&at, Some(point)).await);
    }
    let last = propose(&client, 3_000..4_000).await;
    for reader in &mut readers {
        reader.to(last).await;
        assert_eq!((sorted(reader.numbers()), reader.snapshots), ((10..4_000).collect(), 0));
        assert!(reader.committed.is_sorted_by_key(|entry| entry.index));
    }
    assert!(readers.iter().all(|reader| reader.numbers() == readers[0].numbers()));
    for seat in cluster.seats() {
        assert!(counter(&cluster, seat, "client_chunks_read").await > 0);
    }
    // Whoever claims another history there is told so.
    let resume = Some(ResumePoint { chain: Chain(point.chain.0 ^ 1), ..point });
    let mut other = Peer::connect(&cluster.urls()[0]).await;
    other.say(ClientFrame::Hello(Hello { resume, ..hello(FeedMode::Full) })).await;
    assert_eq!(other.hear().await, Some(ServerFrame::Refuse { code: Code::Diverged, retry_after_ms: None }));
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_hundred_clients_that_return_at_one_place_cost_the_server_one_read_each_for_what_they_read() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(builder(1, directory.path(), 256 << 20)).await;
    let here = url(&cluster, cluster.seats()[0]);
    let client = raw(std::slice::from_ref(&here)).await;
    let point = early(&here, &client).await;
    let last = propose(&client, 10..4_000).await;
    let returns = (0..100).map(|_| async {
        let mut reader = Reader::from(&here, Some(point)).await;
        reader.to(last).await;
        assert_eq!((reader.committed.len(), reader.snapshots), (3_990, 0));
    });
    join_all(returns).await;
    // Four mebibytes of log, in chunks of one.
    let chunks = counter(&cluster, cluster.seats()[0], "client_chunks_read").await;
    assert!((4..40).contains(&chunks), "{chunks}");
    shutdown(cluster).await;
}

/// The verdict files of the only server.
fn verdict_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "bits") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A log of three snapshots and more, whose server is then started again, after `damage` was done to its verdict files.
async fn restarted(directory: &Path, damage: impl FnOnce(&[PathBuf])) -> (ServerCluster, ResumePoint, LogIndex) {
    let mut cluster = started(builder(1, directory, 256 << 20)).await;
    let seat = cluster.seats()[0];
    let client = raw(&cluster.urls()).await;
    let point = early(&cluster.urls()[0], &client).await;
    let last = propose(&client, 10..3_500).await;
    eventually("three snapshots with their verdicts", || async { (verdict_files(directory).len() >= 3).then_some(()) }).await;
    client.close().await;
    cluster.stop_voter(seat).await;
    damage(&verdict_files(directory));
    cluster.start_voter(seat).await.unwrap();
    leader(&cluster).await;
    applied(&cluster, seat, last).await;
    (cluster, point, last)
}

#[tokio::test]
async fn after_a_restart_old_runs_have_the_verdicts_that_were_saved_and_those_that_applying_gives_again() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, point, last) = restarted(directory.path(), |_| ()).await;
    let mut reader = Reader::from(&cluster.urls()[0], Some(point)).await;
    reader.to(last).await;
    assert_eq!((sorted(reader.numbers()), reader.snapshots), ((10..3_500).collect(), 0));
    // A history from the first entry on, chained to what follows.
    let client = raw(&cluster.urls()).await;
    let mut stream = client.committed_from(LogIndex::FIRST);
    assert_eq!(sorted(numbers(&take(&mut stream, 3_500).await)), (0..3_500).collect::<Vec<_>>());
    propose(&client, 3_500..3_501).await;
    assert_eq!(numbers(&take(&mut stream, 1).await), [3_500]);
    shutdown(cluster).await;
}

#[tokio::test]
async fn verdicts_that_are_damaged_are_never_served_and_cost_only_what_lies_before_them() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, point, last) = restarted(directory.path(), |files| {
        let mut bytes = std::fs::read(&files[1]).unwrap();
        bytes[80] ^= 4;
        std::fs::write(&files[1], bytes).unwrap();
    })
    .await;
    let mut reader = Reader::from(&cluster.urls()[0], Some(point)).await;
    reader.to(last).await;
    assert!(reader.snapshots == 1 && !reader.committed.is_empty());
    let client = raw(&cluster.urls()).await;
    let mut stream = client.committed_from(LogIndex::FIRST);
    let first = match stream.next().await.unwrap() {
        Err(StreamError::Trimmed { first }) => first,
        other => panic!("{other:?}"),
    };
    let mut stream = client.committed_from(first);
    let mut kept = take(&mut stream, reader.committed.len()).await;
    while kept.last().map(|entry| entry.index) < reader.committed.last().map(|entry| entry.index) {
        kept.append(&mut take(&mut stream, 1).await);
    }
    assert!(kept.len() > reader.committed.len() && kept.ends_with(&reader.committed));
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_log_that_is_trimmed_under_its_readers_gives_them_a_state_and_never_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(builder(1, directory.path(), 0)).await;
    let here = url(&cluster, cluster.seats()[0]);
    let client = raw(std::slice::from_ref(&here)).await;
    let point = early(&here, &client).await;
    let mut next = 10;
    let (mut readers, mut last) = (Vec::new(), LogIndex::ZERO);
    for _ in 0..12 {
        last = propose(&client, next..next + 600).await;
        next += 600;
        // Those that came before are somewhere in the log by now, or fell out of it.
        readers.push(Reader::from(&here, Some(point)).await);
        for reader in &mut readers {
            let at = LogIndex(reader.learner.applied().0 + 300);
            reader.to(at.min(last)).await;
        }
    }
    for reader in &mut readers {
        reader.to(last).await;
        let indices: Vec<_> = reader.committed.iter().map(|entry| entry.index).collect();
        assert!(indices.is_sorted_by(|one, two| one < two));
    }
    assert!(readers.iter().any(|reader| reader.snapshots > 0));
    assert!(readers.iter().all(|reader| reader.snapshots > 0 || sorted(reader.numbers()) == (10..next).collect::<Vec<_>>()));
    let first = match client.committed_from(LogIndex::FIRST).next().await.unwrap() {
        Err(StreamError::Trimmed { first }) => first,
        // The client itself still has it all.
        Ok(entry) => entry.index,
        other => panic!("{other:?}"),
    };
    assert!(first <= last);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_server_that_was_wiped_says_where_its_history_begins_and_a_client_moves_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(builder(3, directory.path(), 256 << 20)).await;
    let client = raw(&cluster.urls()).await;
    let last = propose(&client, 0..2_500).await;
    for seat in cluster.seats() {
        applied(&cluster, seat, last).await;
    }
    let wiped = crate::here::followers(&cluster).await[0];
    cluster.stop_voter(wiped).await;
    let data = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let of_wiped = data.into_iter().find(|path| path.to_string_lossy().ends_with(&wiped.0.to_string())).unwrap();
    std::fs::remove_dir_all(&of_wiped).unwrap();
    cluster.start_voter(wiped).await.unwrap();
    applied(&cluster, wiped, last).await;
    // Everywhere else the history is whole.
    let others: BTreeMap<Seat, String> =
        cluster.seats().into_iter().filter(|seat| *seat != wiped).map(|seat| (seat, url(&cluster, seat))).collect();
    for at in others.values() {
        let there = raw(std::slice::from_ref(at)).await;
        let all = take(&mut there.committed_from(LogIndex::FIRST), 2_500).await;
        assert_eq!(sorted(numbers(&all)), (0..2_500).collect::<Vec<_>>());
    }
    let here = raw(&[url(&cluster, wiped)]).await;
    match here.committed_from(LogIndex::FIRST).next().await.unwrap() {
        Err(StreamError::Trimmed { first }) => assert!(first > LogIndex::FIRST),
        other => panic!("{other:?}"),
    }
    identical(&cluster).await;
    shutdown(cluster).await;
}

/// Fills a `kv` with `keys` values of `bytes` each.
async fn filled(client: &ClusterClient<Kv>, keys: usize, bytes: usize) {
    let numbers: Vec<_> = (0..keys).collect();
    for batch in numbers.chunks(128) {
        let put = |number: &usize| KvCommand::Put { key: format!("key {number}").into_bytes(), value: vec![*number as u8; bytes] };
        let commands: Vec<_> = batch.iter().map(put).collect();
        for done in join_all(commands.iter().map(|command| client.propose(command).into_future())).await {
            done.unwrap();
        }
    }
}

/// Three servers whose logs begin behind a state of `keys` times `bytes`.
async fn with_a_state(directory: &Path, keys: usize, bytes: usize) -> ServerCluster {
    let limits = ServerLimits { segment_bytes: 1 << 20, ..small(0) };
    let replica = ReplicaLimits { snapshot_entries: keys as u64 / 4, snapshot_log_bytes: 0, ..ReplicaLimits::default() };
    let cluster = started(voters(3, directory).machine(kv::factory()).limits(limits).replica_limits(replica)).await;
    let client = client_of(&cluster.urls()).state(Kv::default()).connect().await.unwrap();
    filled(&client, keys, bytes).await;
    client.close().await;
    identical(&cluster).await;
    cluster
}

#[tokio::test]
async fn a_state_whose_link_breaks_again_and_again_goes_on_at_any_server_and_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = with_a_state(directory.path(), 2_000, 8 << 10).await;
    let mut proxies = Vec::new();
    for at in cluster.urls() {
        proxies.push(Proxy::before(&at).await);
    }
    let urls: Vec<_> = proxies.iter().zip(cluster.urls()).map(|(proxy, at)| proxy.url(&at)).collect();
    // Each link lets this much through.
    for bytes in [1_000_000, 3_333_333, 70_000, 5_000_001] {
        for proxy in &proxies {
            proxy.cut_after(Some(bytes));
        }
        let client = client_of(&urls).state(Kv::default()).connect();
        let opens = async {
            // The last of it gets through at once.
            let resumed = || async {
                let mut resumed = 0;
                for seat in cluster.seats() {
                    resumed += counter(&cluster, seat, "client_snapshots_resumed").await;
                }
                (resumed >= 3).then_some(())
            };
            eventually("it was resumed", resumed).await;
            proxies.iter().for_each(|proxy| proxy.cut_after(None));
        };
        let (client, ()) = futures_util::future::join(client, opens).await;
        let client = client.unwrap();
        let (keys, sum) = client.read(cluster_client::Consistency::Linearizable, summary).await.unwrap();
        assert_eq!((keys, sum), (2_000, (0..2_000_usize).map(|number| (number % 256) * (8 << 10)).sum()));
        client.close().await;
    }
    shutdown(cluster).await;
}

fn summary(state: &Kv) -> (usize, usize) {
    let values = (0..state.len()).filter_map(|number| state.get(format!("key {number}").as_bytes()));
    (state.len(), values.map(|value| value.value.iter().map(|byte| usize::from(*byte)).sum::<usize>()).sum())
}

#[tokio::test]
async fn a_state_of_a_thousand_pieces_costs_the_server_no_memory_however_slowly_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = with_a_state(directory.path(), 1_024, 64 << 10).await;
    let here = url(&cluster, leader(&cluster).await);
    let mut readers = Vec::new();
    for _ in 0..16 {
        readers.push(Reader::from(&here, None).await);
    }
    // All of them have begun.
    let mut partials = Vec::new();
    for reader in &mut readers {
        partials.push(
            reader
                .peer
                .hear_for("a first piece", |frame| match frame {
                    ServerFrame::Snapshot(piece) => {
                        Some(PartialState { index: piece.index, hash: piece.hash, bytes: piece.bytes.len() as u64 })
                    }
                    _ => None,
                })
                .await,
        );
    }
    let before = crate::slow::resident_bytes();
    // One of them reads all of it, the others nothing more.
    let last = cluster.status(cluster.seats()[0]).await.unwrap().applied;
    readers[0].to(last).await;
    assert_eq!(readers[0].snapshots, 1);
    let grown = crate::slow::resident_bytes().saturating_sub(before);
    // Queues of their own would hold a gibibyte for them.
    assert!(grown < 48 << 20, "{} MiB more", grown >> 20);
    // One that comes back says what it has.
    let partial = Some(partials[1]);
    let (mut peer, admit) = Peer::admitted(&here, Hello { partial, ..hello(FeedMode::Full) }).await;
    assert_eq!(admit.start, Start::Snapshot(partials[1].index));
    let offset = peer
        .hear_for("the piece behind", |frame| if let ServerFrame::Snapshot(piece) = frame { Some(piece.offset) } else { None })
        .await;
    assert_eq!(offset, partials[1].bytes);
    drop((readers, peer));
    shutdown(cluster).await;
}
