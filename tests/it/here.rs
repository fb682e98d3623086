//! Clusters and clients in this process: how most stories begin, and the facts that they wait for.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cluster_client::{Builder, ClusterClient, Committed, CommittedStream, Form, JournalError, Raw, RequestJournal, Status};
use cluster_server::mesh::MeshSecret;
use cluster_server::{AdminError, ServerCluster, ServerClusterBuilder, ServerStatus};
use futures_util::StreamExt;
use voter_mesh::ids::{LogIndex, Seat};
use voter_mesh::machine::log;
use voter_mesh::mesh::message::AdminRequest;
use voter_mesh::raft::Timing;

use crate::harness::{PATIENCE, eventually};

/// Elections in well under a second, yet far above what a busy machine makes a thread wait.
pub fn timing() -> Timing {
    Timing { tick_ms: 20, ..Timing::default() }
}

/// Voters of this process with one relay listener each, in front of the machine `log`.
pub fn voters(count: u16, directory: &Path) -> ServerClusterBuilder {
    let builder = ServerCluster::builder().voters(count).data_dir(directory).machine(log::factory()).timing(timing());
    (0..count).fold(builder, |builder, _| builder.listen("127.0.0.1:0"))
}

/// Mesh addresses for voters that are started one by one, each in a cluster of its own: they must be known before anyone listens, so
/// they lie on a loopback address of this process's own, where nobody else takes ports.
pub fn mesh_addresses(count: u16) -> BTreeMap<Seat, String> {
    let process = std::process::id();
    let host = format!("127.{}.{}.{}", 64 + process / 62_500 % 64, process / 250 % 250, 1 + process % 250);
    let bound: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind((host.as_str(), 0)).unwrap()).collect();
    (1..=count).map(Seat).zip(bound.iter().map(|listener| listener.local_addr().unwrap().to_string())).collect()
}

/// One voter among peers, as a process of its own would be; all of them share a directory.
pub fn lone_voter(seat: u16, peers: BTreeMap<Seat, String>, directory: &Path) -> ServerClusterBuilder {
    ServerCluster::builder()
        .seat(Seat(seat), peers)
        .mesh_secret(MeshSecret::from([7; 32]))
        .data_dir(directory.join(seat.to_string()))
        .timing(timing())
        .listen("127.0.0.1:0")
}

/// Starts a cluster and waits for its first leader.
pub async fn started(builder: ServerClusterBuilder) -> ServerCluster {
    let cluster = builder.start().await.unwrap();
    cluster.leader_within(PATIENCE).await.unwrap();
    cluster
}

/// Who leads.
pub async fn leader(cluster: &ServerCluster) -> Seat {
    cluster.leader_within(PATIENCE).await.unwrap().seat()
}

/// The room's URL at a seat: one listener each.
pub fn url(cluster: &ServerCluster, seat: Seat) -> String {
    cluster.urls()[usize::from(seat.0) - 1].clone()
}

/// All URLs, this seat's first.
pub fn urls_from(cluster: &ServerCluster, seat: Seat) -> Vec<String> {
    let mut urls = cluster.urls();
    urls.rotate_left(usize::from(seat.0) - 1);
    urls
}

/// Seats that run and do not lead.
pub async fn followers(cluster: &ServerCluster) -> Vec<Seat> {
    let leader = leader(cluster).await;
    cluster.seats().into_iter().filter(|seat| *seat != leader).collect()
}

/// Describes a client that begins with the first URL.
pub fn client_of(urls: &[String]) -> Builder<()> {
    ClusterClient::builder().endpoints(urls).start_with(0).deadline(PATIENCE)
}

/// A raw client, live.
pub async fn raw(urls: &[String]) -> ClusterClient<Raw> {
    client_of(urls).raw().connect().await.unwrap()
}

/// The next `count` commands of a stream.
pub async fn take(stream: &mut CommittedStream, count: usize) -> Vec<Committed> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await;
        let next = next.unwrap_or_else(|_| panic!("only {} of {count} commands came", taken.len()));
        taken.push(next.expect("the stream goes on").unwrap());
    }
    taken
}

/// Everything committed up to `last`, which must be a command's index.
pub async fn committed_to(client: &ClusterClient<Raw>, last: LogIndex) -> Vec<Committed> {
    let mut stream = client.committed_from(LogIndex::FIRST);
    let mut all = Vec::new();
    while all.last().is_none_or(|entry: &Committed| entry.index < last) {
        all.append(&mut take(&mut stream, 1).await);
    }
    all
}

/// How often each of `commands` stands in the log up to `last`.
pub async fn counts(client: &ClusterClient<Raw>, last: LogIndex, commands: &[Bytes]) -> Vec<usize> {
    let all = committed_to(client, last).await;
    commands.iter().map(|command| all.iter().filter(|entry| entry.payload == command).count()).collect()
}

/// Waits until the client is live.
pub async fn live<M: Form>(client: &ClusterClient<M>) {
    let mut status = client.status();
    let live = tokio::time::timeout(PATIENCE, status.wait_for(|status| matches!(status, Status::Live { .. })));
    drop(live.await.expect("live in time").unwrap());
}

/// The server that a live client is attached to.
pub fn entry_server<M>(client: &ClusterClient<M>) -> Option<Seat> {
    match &*client.status().borrow() {
        Status::Live { server, .. } => Some(server.seat()),
        _ => None,
    }
}

/// Waits until all servers that run have applied the same entries, and proves that they hold the same state and sessions.
pub async fn identical(cluster: &ServerCluster) -> ServerStatus {
    eventually("all servers at one index", || async {
        let mut statuses = Vec::new();
        for seat in cluster.seats() {
            statuses.push(cluster.status_with_hashes(seat).await.unwrap());
        }
        let first = statuses[0].clone();
        assert!(first.state_hash.is_some() && first.sessions_hash.is_some());
        if statuses.iter().any(|status| status.applied != first.applied) {
            return None;
        }
        for status in statuses {
            assert_eq!((&status.state_hash, &status.sessions_hash), (&first.state_hash, &first.sessions_hash), "{status:?}");
        }
        Some(first)
    })
    .await
}

/// Waits until the server at `seat` has applied `index`.
pub async fn applied(cluster: &ServerCluster, seat: Seat, index: LogIndex) {
    eventually("the index applied", || async { (cluster.status(seat).await.unwrap().applied >= index).then_some(()) }).await;
}

/// An administrator's request, put again while the member that it names has yet to catch up.
pub async fn administer(cluster: &ServerCluster, request: AdminRequest) {
    eventually("the member caught up", || async {
        match cluster.admin(request.clone()).await {
            Ok(()) => Some(()),
            Err(AdminError::Refused(why)) if why.contains("caught up") => None,
            Err(error) => panic!("{request:?}: {error}"),
        }
    })
    .await;
}

/// A counter of a server's status.
pub async fn counter(cluster: &ServerCluster, seat: Seat, name: &str) -> u64 {
    cluster.status(seat).await.unwrap().counters.get(name).copied().unwrap_or(0)
}

/// Waits until a counter of a server reaches a value.
pub async fn counted(cluster: &ServerCluster, seat: Seat, name: &str, value: u64) {
    eventually(name, || async { (counter(cluster, seat, name).await >= value).then_some(()) }).await;
}

/// A client in a runtime of its own, which can be killed as a process can: no last words, whatever was under way.
pub struct Mortal<M> {
    runtime: tokio::runtime::Runtime,
    pub client: ClusterClient<M>,
}

impl<M: Form + Send + 'static> Mortal<M> {
    pub async fn born(builder: Builder<M>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.spawn(builder.connect()).await.unwrap().unwrap();
        Self { runtime, client }
    }

    pub fn kill(self) {
        self.runtime.shutdown_background();
        // The last handle closes the client: a killed process does not come to that.
        std::mem::forget(self.client);
    }
}

/// A journal that its last owner may just be letting go of.
pub async fn journal(path: &Path) -> RequestJournal {
    eventually("the journal's lock free", || async {
        match RequestJournal::file(path) {
            Ok(journal) => Some(journal),
            Err(JournalError::JournalBusy(_)) => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await
}

/// Shuts down in order.
pub async fn shutdown(cluster: ServerCluster) {
    cluster.shutdown(Duration::from_secs(10)).await.unwrap();
}
