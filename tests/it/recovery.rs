//! Logs that are damaged while their server is down: what is missing comes back from the other servers, and until then nobody is told
//! anything that might not be true.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use cluster_client::LogIndex;
use cluster_server::host::OsHost;
use cluster_server::mesh::{
    Disconnect, Link, Mesh, MeshLimits, MeshMessage, MeshOptions, MeshOwner, MeshSecret, PeerHello, RunsAnswer, SelfHello,
    SinkFuture, SnapshotOffer,
};
use cluster_server::{DamagePolicy, Phase, ServerCluster, ServerLimits, ServerStatus, StartError};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use relay::wire::{ClientFrame, Code, FeedMode, ServerFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use voter_mesh::ids::{DirectoryId, Identity, Incarnation, RaftId, RoomId, RunIndex, Seat, Term};
use voter_mesh::log::{NoRuns, RECORDS_AT};
use voter_mesh::machine::log;
use voter_mesh::mesh::message::{AdminFailure, AdminRequest, BatchId, ForwardRefusal, Message, ReadNonce, ReadRefusal};
use voter_mesh::replica::ReplicaLimits;
use voter_mesh::run::Run;

use crate::harness::{PATIENCE, eventually};
use crate::here::{committed_to, counter, followers, identical, lone_voter, mesh_addresses, raw, shutdown, started, voters};
use crate::peer::{Peer, hello};

/// A run in a segment's file.
struct Record {
    path: PathBuf,
    at: u64,
    run: Run,
}

/// Every run in a log, in order. A server that uses it may trim it meanwhile.
fn records(log: &Path) -> Vec<Record> {
    let mut paths: Vec<_> = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let Ok(bytes) = fs::read(&path) else { continue };
        let mut rest = Bytes::from(bytes).slice(RECORDS_AT as usize..);
        let all = rest.len();
        loop {
            let at = RECORDS_AT + (all - rest.len()) as u64;
            let Ok(run) = Run::split_from(&mut rest) else { break };
            records.push(Record { path: path.clone(), at, run });
        }
    }
    records
}

impl Record {
    /// Spoils it, in its header or behind it.
    fn damage(&self) {
        let file = fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        let offset = if self.run.header().run.0.is_multiple_of(2) { 20 } else { 100 };
        file.write_all_at(&[!self.run.bytes()[offset]], self.at + offset as u64).unwrap();
    }
}

fn log_of(directory: &Path, seat: Seat) -> PathBuf {
    directory.join(format!("voter-{seat}")).join("log")
}

/// Proposes so many commands, each in a run of its own.
async fn write(urls: &[String], commands: std::ops::Range<usize>) -> LogIndex {
    let client = raw(urls).await;
    let mut last = LogIndex(0);
    for command in commands {
        last = client.propose(&format!("command {command}").into()).await.unwrap().index;
    }
    client.close().await;
    last
}

/// Waits until a server takes part, with all that it ever had.
async fn whole(cluster: &ServerCluster, seat: Seat) -> ServerStatus {
    eventually("the server whole", || async {
        let status = cluster.status(seat).await.unwrap();
        (matches!(status.phase, Phase::Leading | Phase::Following) && !status.suspect).then_some(status)
    })
    .await
}

/// All commands in the log, once each and in order.
async fn complete(urls: &[String], last: LogIndex, count: usize) {
    let client = raw(urls).await;
    let commands: Vec<_> = committed_to(&client, last).await.into_iter().map(|entry| entry.payload).collect();
    assert_eq!(commands, (0..count).map(|command| Bytes::from(format!("command {command}"))).collect::<Vec<_>>());
    client.close().await;
}

#[tokio::test]
async fn different_damage_on_all_servers_with_one_good_copy_of_each_run_is_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path())).await;
    let last = write(&cluster.urls(), 0..60).await;
    identical(&cluster).await;
    for seat in [1, 2, 3].map(Seat) {
        cluster.stop_voter(seat).await;
    }
    // Two of three copies of nearly every run: a few at the end are not confirmed by a later mark on each server.
    for seat in [1, 2, 3].map(Seat) {
        let records = records(&log_of(directory.path(), seat));
        assert!(records.len() > 60);
        let damaged =
            records.iter().take(records.len() - 6).filter(|record| record.run.header().run.0 % 3 != u64::from(seat.0 - 1));
        damaged.for_each(Record::damage);
    }
    for seat in [1, 2, 3].map(Seat) {
        cluster.start_voter(seat).await.unwrap();
    }
    for seat in [1, 2, 3].map(Seat) {
        let status = whole(&cluster, seat).await;
        assert!(status.counters["log_runs_filled"] >= 30, "{:?}", status.counters);
        assert_eq!(status.counters.get("log_suspect"), None, "whole before it began");
    }
    let after = write(&cluster.urls(), 60..70).await;
    identical(&cluster).await;
    complete(&cluster.urls(), after, 70).await;
    assert!(after > last);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_server_with_a_damaged_middle_repairs_itself_while_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path())).await;
    write(&cluster.urls(), 0..40).await;
    identical(&cluster).await;
    let seat = followers(&cluster).await[0];
    cluster.stop_voter(seat).await;
    let others: Vec<_> = cluster.seats().iter().map(|seat| crate::here::url(&cluster, *seat)).collect();
    let last = write(&others, 40..60).await;
    records(&log_of(directory.path(), seat))[10..14].iter().for_each(Record::damage);
    cluster.start_voter(seat).await.unwrap();
    let status = whole(&cluster, seat).await;
    assert_eq!((status.counters["log_holes_filled"], status.counters["log_runs_filled"]), (1, 4));
    assert_eq!(status.counters.get("log_suspect"), None);
    identical(&cluster).await;
    complete(&[crate::here::url(&cluster, seat)], last, 60).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_hole_that_no_peer_can_fill_is_healed_by_the_leader() {
    let directory = tempfile::tempdir().unwrap();
    let limits = ServerLimits { segment_bytes: 16 << 10, log_retain_bytes: 0, fill_ms: 5_000, ..ServerLimits::default() };
    let due = ReplicaLimits { snapshot_entries: 40, ..ReplicaLimits::default() };
    let mut cluster = started(voters(3, directory.path()).limits(limits).replica_limits(due)).await;
    write(&cluster.urls(), 0..30).await;
    identical(&cluster).await;
    let seat = followers(&cluster).await[0];
    cluster.stop_voter(seat).await;
    let others: Vec<_> = cluster.seats();
    let urls: Vec<_> = others.iter().map(|seat| crate::here::url(&cluster, *seat)).collect();
    let records_of = records(&log_of(directory.path(), seat));
    let mut next = 30;
    // Until neither of the others has what is going to be missing.
    loop {
        write(&urls, next..next + 60).await;
        next += 60;
        let first = |other: &Seat| records(&log_of(directory.path(), *other)).first().map(|record| record.run.header().run);
        if others.iter().all(|other| first(other).is_some_and(|first| first > records_of[20].run.header().run)) {
            break;
        }
        assert!(next < 3_000, "the logs are never trimmed");
    }
    records_of[15..18].iter().for_each(Record::damage);
    cluster.start_voter(seat).await.unwrap();
    let status = whole(&cluster, seat).await;
    assert_eq!((status.counters["log_suspect"], status.counters["log_holes_filled"]), (1, 0));
    identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_policy_that_truncates_or_alerts_starts_at_once_and_the_leader_gives_back_the_rest() {
    for policy in [DamagePolicy::TruncateToLastGood, DamagePolicy::AlertAndContinue] {
        let directory = tempfile::tempdir().unwrap();
        let addresses = mesh_addresses(3);
        let builder = |seat| lone_voter(seat, addresses.clone(), directory.path()).machine(log::factory()).on_damage(policy);
        let mut servers = Vec::new();
        for seat in 1..=3 {
            servers.push(builder(seat).start().await.unwrap());
        }
        let urls: Vec<_> = servers.iter().flat_map(ServerCluster::urls).collect();
        write(&urls, 0..30).await;
        for server in servers {
            shutdown(server).await;
        }
        let log_path = directory.path().join("1").join("log");
        records(&log_path)[12].damage();
        let first = builder(1).start().await.unwrap();
        let status = first.status(Seat(1)).await.unwrap();
        assert!(status.suspect && status.recovery.is_none(), "{status:?}");
        assert_eq!(status.counters["log_suspect"], 1);
        let kept = fs::exists(log_path.join("0000000000000001.damaged")).unwrap();
        assert_eq!((kept, status.damage.len()), if policy == DamagePolicy::AlertAndContinue { (true, 1) } else { (false, 0) });
        let others = [builder(2).start().await.unwrap(), builder(3).start().await.unwrap()];
        let status = whole(&first, Seat(1)).await;
        assert!(status.damage.is_empty());
        for server in others.into_iter().chain([first]) {
            shutdown(server).await;
        }
    }
}

#[tokio::test]
async fn a_policy_that_refuses_names_the_file_and_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(3, directory.path()).on_damage(DamagePolicy::RefuseStart)).await;
    write(&cluster.urls(), 0..20).await;
    let seat = followers(&cluster).await[0];
    cluster.stop_voter(seat).await;
    // A last batch that is incomplete is no damage.
    let records = records(&log_of(directory.path(), seat));
    let undone = fs::read(&records[0].path).unwrap();
    records.last().unwrap().damage();
    cluster.start_voter(seat).await.unwrap();
    whole(&cluster, seat).await;
    cluster.stop_voter(seat).await;
    fs::write(&records[0].path, undone).unwrap();
    records[8].damage();
    let Err(StartError::Stopped { why, .. }) = cluster.start_voter(seat).await else { panic!("it starts") };
    let place = format!("{} at byte {}: runs {} to", records[8].path.display(), records[8].at, records[8].run.header().run);
    assert!(why.contains(&place), "{why}");
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_lone_voter_does_not_start_on_lost_data_and_cuts_an_incomplete_last_batch() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(1, directory.path())).await;
    let last = write(&cluster.urls(), 0..20).await;
    cluster.stop_voter(Seat(1)).await;
    let records = records(&log_of(directory.path(), Seat(1)));
    let good = fs::read(&records[0].path).unwrap();
    records[9].damage();
    let Err(StartError::Stopped { why, .. }) = cluster.start_voter(Seat(1)).await else { panic!("it starts") };
    let accept = format!("quorate recover {} --accept-loss", directory.path().join("voter-1").display());
    assert!(why.contains(&format!("ends at run {}", records[8].run.header().run)) && why.contains(&accept), "{why}");

    // Nothing was changed: with the file as it was, all is there.
    fs::write(&records[0].path, &good).unwrap();
    cluster.start_voter(Seat(1)).await.unwrap();
    whole(&cluster, Seat(1)).await;
    complete(&cluster.urls(), last, 20).await;
    cluster.stop_voter(Seat(1)).await;

    crate::recovery::records(&log_of(directory.path(), Seat(1))).last().unwrap().damage();
    cluster.start_voter(Seat(1)).await.unwrap();
    whole(&cluster, Seat(1)).await;
    assert_eq!(counter(&cluster, Seat(1), "log_doubtful").await, 1);
    shutdown(cluster).await;
}

/// A seat that speaks on the mesh and is no server. It gives the runs that it has when the test lets it.
struct Stranger {
    hello: SelfHello,
    link: watch::Sender<Option<Link>>,
    said: RefCell<Vec<Message>>,
    may_give: watch::Sender<bool>,
    runs: Vec<Run>,
}

impl MeshOwner for Stranger {
    fn self_hello(&self) -> SelfHello {
        self.hello.clone()
    }

    fn link_up(&self, _: PeerHello, link: Link) {
        self.link.send_replace(Some(link));
    }

    fn message(&self, _: Seat, _: Incarnation, message: MeshMessage) {
        if let MeshMessage::Raft(message) = message {
            self.said.borrow_mut().push(message);
        }
    }

    fn link_down(&self, _: Seat, _: Incarnation, _: Disconnect) {
        self.link.send_replace(None);
    }

    fn snapshot_begin(&self, _: Seat, _: Incarnation, _: SnapshotOffer) -> SinkFuture {
        std::future::ready(Err("none is wanted".into())).boxed_local()
    }

    fn runs_asked(&self, _: Seat, first: RunIndex, last: RunIndex) -> LocalBoxFuture<'static, RunsAnswer> {
        let (mut may_give, runs) = (self.may_give.subscribe(), self.runs.clone());
        async move {
            let _ = may_give.wait_for(|may| *may).await;
            let asked: Vec<_> = runs.into_iter().filter(|run| (first..=last).contains(&run.header().run)).collect();
            if asked.is_empty() { Err(NoRuns::Absent) } else { Ok(asked) }
        }
        .boxed_local()
    }
}

/// One HTTP request by hand: status code and body.
async fn http(address: std::net::SocketAddr, request: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn while_it_recovers_a_server_answers_so_on_both_ports_and_then_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let addresses = mesh_addresses(3);
    let alone = |seat| lone_voter(seat, addresses.clone(), directory.path()).machine(log::factory());
    let mut servers = Vec::new();
    for seat in 1..=3 {
        servers.push(alone(seat).start().await.unwrap());
    }
    let urls: Vec<_> = servers.iter().flat_map(ServerCluster::urls).collect();
    write(&urls, 0..30).await;
    let cluster = servers[0].status(Seat(1)).await.unwrap().cluster.unwrap();
    for server in servers {
        shutdown(server).await;
    }
    let records = records(&directory.path().join("1").join("log"));
    records[10..13].iter().for_each(Record::damage);
    let server = alone(1).start().await.unwrap();
    let address = server.relay_addrs()[0];

    let local = tokio::task::LocalSet::new();
    let story = async {
        let listener = TcpListener::bind(&addresses[&Seat(3)]).await.unwrap();
        let identity = Identity { cluster, epoch: voter_mesh::ids::Epoch::FIRST, room: RoomId(0) };
        let stranger = Rc::new(Stranger {
            hello: SelfHello { id: Some(RaftId::new(Seat(3), 1)), identity: Some(identity), ..SelfHello::default() },
            link: watch::Sender::new(None),
            said: RefCell::default(),
            may_give: watch::Sender::new(false),
            runs: records.iter().map(|record| record.run.clone()).collect(),
        });
        let options = MeshOptions {
            seat: Seat(3),
            directory: DirectoryId([3; 16]),
            incarnation: Incarnation(u64::MAX / 2),
            secret: Some(MeshSecret::from([7; 32])),
            machine: ("log".into(), 1),
            limits: MeshLimits::default(),
        };
        let mesh = Mesh::spawn_local(
            Rc::new(OsHost::new()),
            Box::new(listener),
            BTreeMap::new(),
            Rc::clone(&stranger) as Rc<dyn MeshOwner>,
            options,
        )
        .unwrap();
        let mut linked = stranger.link.subscribe();
        let link = tokio::time::timeout(PATIENCE, linked.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();

        let mut peer = Peer::connect(&server.urls()[0]).await;
        peer.say(ClientFrame::Hello(hello(FeedMode::Full))).await;
        let refusal = peer.hear().await;
        assert!(matches!(refusal, Some(ServerFrame::Refuse { code: Code::Recovering, retry_after_ms: Some(_) })), "{refusal:?}");
        assert_eq!(peer.hear().await, None);
        let request = serde_json::to_string(&AdminRequest::Transfer { seat: Seat(2) }).unwrap();
        let (code, body) = http(address, "POST /admin", &request).await;
        assert!(code == 503 && body.contains("Recovering"), "{code} {body}");
        let (code, body) = http(address, "GET /status", "").await;
        let status: ServerStatus = serde_json::from_str(&body).unwrap();
        assert_eq!((code, status.phase, status.damage.len()), (200, Phase::Recovering, 1));
        assert_eq!(status.recovery.unwrap().holes_open, 1);
        assert!(server.admin(AdminRequest::Transfer { seat: Seat(2) }).await.unwrap_err().to_string().contains("recovering"));

        let nonce = ReadNonce { server: RaftId::new(Seat(3), 1), incarnation: Incarnation(1), counter: 1 };
        let heartbeat = Message::Heartbeat { term: Term(1), commit: RunIndex(1), round: 0 };
        let asked = [
            heartbeat,
            Message::Forward { batch: BatchId(7), entries: Bytes::new() },
            Message::ReadIndex { nonce },
            Message::Admin { nonce: 9, request: AdminRequest::Transfer { seat: Seat(2) } },
        ];
        for message in asked {
            link.send(MeshMessage::Raft(message)).unwrap();
        }
        let expected = [
            Message::Refused { batch: BatchId(7), why: ForwardRefusal::Recovering, leader: None },
            Message::ReadAnswer { nonce, answer: Err(ReadRefusal::Recovering) },
            Message::AdminReply { nonce: 9, result: Err(AdminFailure::Recovering) },
        ];
        eventually("an answer to each request", || async { (stranger.said.borrow().len() >= 3).then_some(()) }).await;
        assert_eq!(*stranger.said.borrow(), expected);
        assert_eq!(counter(&server, Seat(1), "mesh_dropped_recovering").await, 1, "the heartbeat");
        // What is good of its log, a peer may have.
        let runs = |range: std::ops::Range<usize>| records[range].iter().map(|record| record.run.clone()).collect::<Vec<_>>();
        let ask = |number: usize| {
            let (first, last) = (records[number].run.header().run, records[number + 1].run.header().run);
            link.fetch_runs(first, last, Duration::from_secs(5))
        };
        assert_eq!(ask(4).await, Ok(runs(4..6)));
        assert_eq!(ask(11).await, Err(NoRuns::Absent));
        assert_eq!(ask(20).await, Ok(runs(20..22)));

        stranger.may_give.send_replace(true);
        eventually("it has begun", || async {
            let status = server.status(Seat(1)).await.unwrap();
            (status.phase != Phase::Recovering).then_some(status)
        })
        .await;
        mesh.shutdown();
    };
    local.run_until(story).await;
    let status = server.status(Seat(1)).await.unwrap();
    assert_eq!((status.counters["log_holes_filled"], status.counters["log_runs_filled"], status.suspect), (1, 3, false));
    let second = alone(2).start().await.unwrap();
    whole(&server, Seat(1)).await;
    shutdown(second).await;
    shutdown(server).await;
}
