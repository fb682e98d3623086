//! The driver on real sockets, against a server that has one replica and no peers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use relay::room::{LinkId, Room, RoomEvent, RoomLimits, RoomOptions, Transmit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::configuration::Configuration;
use voter_mesh::ids::{ClusterId, Epoch, Identity, RaftId, RoomId, Seat, Term, Time, TimeMs};
use voter_mesh::machine::StateMachine;
use voter_mesh::machine::kv::{self, Kv, KvCommand, KvReply};
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::{RUN_HEADER_BYTES, Run, Tail, Verdicts};

use crate::{
    ClusterClient, ConnectError, Consistency, JournalError, LinkError, LogIndex, NotSent, ProposeError, RequestJournal, Status,
    StreamError,
};

/// One replica, one room, and the sockets that wait to be written to.
struct Single {
    room: Room,
    replica: Replica,
    wakes: BTreeMap<LinkId, Arc<Notify>>,
    /// Holds back what clients propose.
    holds: bool,
    /// All that was applied: the log on its disk.
    log: Vec<(Run, Verdicts)>,
    /// The disk has the same commands, from another history.
    forges: bool,
    origin: tokio::time::Instant,
}

impl Single {
    fn new() -> Arc<Mutex<Self>> {
        Self::with(RoomLimits::default())
    }

    fn with(limits: RoomLimits) -> Arc<Mutex<Self>> {
        let identity = Identity { cluster: ClusterId([1; 16]), epoch: Epoch(1), room: RoomId(0) };
        let replica = Replica::form(identity, Configuration::default(), &kv::factory(), ReplicaLimits::default());
        let options = RoomOptions {
            identity,
            name: "main".to_owned(),
            server: RaftId::new(Seat(1), 1),
            machine: (Kv::NAME.to_owned(), Kv::VERSION),
            limits,
            endpoints: Vec::new(),
        };
        let mut room = Room::new(options, (replica.tail().last, replica.tail().chain), Time::default());
        room.handle_kept(LogIndex::FIRST);
        let origin = tokio::time::Instant::now();
        Arc::new(Mutex::new(Self { room, replica, wakes: BTreeMap::new(), holds: false, log: Vec::new(), forges: false, origin }))
    }

    fn now(&self) -> Time {
        Time { monotonic_us: self.origin.elapsed().as_micros() as u64, ..Time::default() }
    }

    /// The same entries at the same indices, sealed at another time.
    fn forged(&self) -> Vec<(Run, Verdicts)> {
        let mut tail = Tail::zero(&self.replica.identity());
        let forge = |(run, verdicts): &(Run, Verdicts)| {
            let entries = &run.bytes()[RUN_HEADER_BYTES..];
            let forged = Run::seal(&tail, Term(1), TimeMs(7), Epoch(1), RoomId(0), &[entries]).unwrap();
            tail = forged.header().tail();
            (forged, verdicts.clone())
        };
        self.log.iter().map(forge).collect()
    }

    fn pump(&mut self) {
        let now = self.now();
        while self.room.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.room.handle_timeout(self.replica.sessions(), now);
        }
        while !self.holds
            && let Some(event) = self.room.poll_event()
        {
            match event {
                RoomEvent::Propose(entries) => {
                    let run = Run::seal(self.replica.tail(), Term(1), TimeMs(0), Epoch(1), RoomId(0), &[&entries]).unwrap();
                    let applied = self.replica.apply(&run).unwrap();
                    self.log.push((run, applied.verdicts.clone()));
                    self.room.handle_applied(&applied, now);
                }
                RoomEvent::RunsWanted { from } => {
                    let log = if self.forges { self.forged() } else { self.log.clone() };
                    let runs = log.into_iter().skip_while(|(run, _)| run.header().last() < from).take(5).collect();
                    self.room.handle_runs(from, runs, now);
                }
                RoomEvent::Read(read) => self.room.handle_read(read, self.replica.tail().last, now),
                _ => {}
            }
        }
        while let Some(link) = self.room.poll_wake(now) {
            if let Some(wake) = self.wakes.get(&link) {
                wake.notify_one();
            }
        }
    }
}

/// A relay port; dropping it cuts its connections.
struct Port {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Port {
    async fn open(server: &Arc<Mutex<Single>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let server = Arc::clone(server);
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        links.spawn(serve(Arc::clone(&server), accepted.unwrap().0));
                    }
                    _ = tick.tick() => server.lock().unwrap().pump(),
                }
            }
        });
        Self { address, _tasks: tasks }
    }

    fn endpoint(&self) -> String {
        format!("ws://{}/rooms/main", self.address)
    }
}

struct Linked(Arc<Mutex<Single>>, LinkId);

impl Drop for Linked {
    fn drop(&mut self) {
        let mut server = self.0.lock().unwrap();
        let now = server.now();
        server.wakes.remove(&self.1);
        server.room.handle_disconnected(self.1, now);
    }
}

async fn serve(server: Arc<Mutex<Single>>, stream: TcpStream) {
    let address = stream.peer_addr().unwrap();
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let link = LinkId(u64::from(address.port()));
    let wake = Arc::new(Notify::new());
    {
        let mut server = server.lock().unwrap();
        let now = server.now();
        server.room.handle_connected(link, address.ip(), now).unwrap();
        server.wakes.insert(link, Arc::clone(&wake));
    }
    let linked = Linked(server, link);
    loop {
        tokio::select! {
            message = socket.next() => {
                let Some(Ok(message)) = message else { return };
                if let Message::Binary(bytes) = message {
                    let mut server = linked.0.lock().unwrap();
                    let now = server.now();
                    let server = &mut *server;
                    let _ = server.room.handle_frame(link, bytes, server.replica.sessions(), now);
                    server.pump();
                }
            }
            () = wake.notified() => {
                let (mut out, mut more) = (Vec::new(), Transmit::More);
                while more == Transmit::More {
                    let mut server = linked.0.lock().unwrap();
                    let now = server.now();
                    more = server.room.poll_transmit(link, 1 << 16, &mut out, now);
                }
                for message in out {
                    socket.feed(Message::Binary(message)).await.unwrap();
                }
                if socket.flush().await.is_err() || more == Transmit::CloseAfter {
                    return;
                }
            }
        }
    }
}

fn put(key: &str) -> KvCommand {
    KvCommand::Put { key: key.as_bytes().to_vec(), value: b"v".to_vec() }
}

#[tokio::test]
async fn a_client_proposes_reads_follows_and_moves_on_when_its_server_is_cut() {
    let server = Single::new();
    let (first, second) = (Port::open(&server).await, Port::open(&server).await);
    let endpoints = [first.endpoint(), second.endpoint()];
    let client = ClusterClient::builder().endpoints(&endpoints).start_with(0).state(Kv::default()).connect().await.unwrap();
    let watcher = ClusterClient::builder().endpoints(&endpoints[1..]).raw().connect().await.unwrap();
    let mut committed = watcher.committed_from(LogIndex::FIRST);
    let applied = client.propose(&put("a")).await.unwrap();
    assert_eq!(applied.reply, KvReply::Written { version: applied.index });
    assert!(client.read(Consistency::Local, |kv| kv.get(b"a").is_some()).await.unwrap());
    drop(first);
    let applied = client.propose(&put("b")).deadline(Duration::from_secs(5)).await.unwrap();
    assert_eq!(client.read(Consistency::Linearizable, Kv::len).await.unwrap(), 2);
    for index in [None, Some(applied.index)] {
        let entry = committed.next().await.unwrap().unwrap();
        assert!(index.is_none_or(|index| index == entry.index));
    }
    // A late stream of a client that has everything, and one that must ask its server.
    let small = ClusterClient::builder().endpoints(&endpoints[1..]).history_bytes_max(0).raw().connect().await.unwrap();
    let mut late = small.committed_from(LogIndex::FIRST);
    let entry = late.next().await.unwrap().unwrap();
    assert_eq!(entry.payload, voter_mesh::machine::to_cbor(&put("a")).unwrap());
    client.close().await;
    assert!(matches!(&*client.status().borrow(), Status::Closed { .. }));
    assert!(matches!(client.propose(&put("c")).await, Err(ProposeError::NotSent { reason: NotSent::Closed(_) })));
    watcher.close().await;
    assert!(committed.next().await.unwrap().is_err());
    assert!(committed.next().await.is_none());
}

#[tokio::test]
async fn a_file_journal_brings_a_request_back_after_its_client_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let server = Single::new();
    let port = Port::open(&server).await;
    let builder = || ClusterClient::builder().endpoints([port.endpoint()]);
    let client = builder().journal(RequestJournal::file(&path).unwrap().synced()).state(Kv::default()).connect().await.unwrap();
    client.propose(&put("a")).await.unwrap();
    assert!(matches!(RequestJournal::file(&path), Err(JournalError::JournalBusy(_))));
    server.lock().unwrap().holds = true;
    let ticket = client.reserve().await.unwrap();
    let result = client.propose_as(&ticket, &put("b")).deadline(Duration::from_millis(100)).await;
    assert!(matches!(result, Err(ProposeError::Unknown { ticket: unknown, .. }) if unknown == ticket));
    client.close().await;
    server.lock().unwrap().holds = false;
    let client = builder().journal(RequestJournal::file(&path).unwrap()).state(Kv::default()).connect().await.unwrap();
    let applied = client.outcome(&ticket).await.unwrap();
    let again = client.propose_as(&ticket, &put("b")).await.unwrap();
    assert!(again.repeat && again.index == applied.index);
    assert_eq!(client.read(Consistency::Session, Kv::len).await.unwrap(), 2);
    assert!(client.unanswered().is_empty());
}

#[tokio::test]
async fn a_server_that_is_not_there_or_says_nothing_is_a_typed_error_at_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoints = [format!("ws://{gone}/rooms/main"), format!("ws://{}/rooms/main", silent.local_addr().unwrap())];
    let builder = ClusterClient::builder().endpoints(endpoints).start_with(0).deadline(Duration::from_millis(200));
    let error = builder.thin().connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Deadline { last_error: Some(LinkError::Unreachable(_)) }), "{error}");
    let other_room = ["ws://a/rooms/x", "ws://a/rooms/y"];
    assert!(matches!(ClusterClient::builder().endpoints(other_room).raw().connect().await, Err(ConnectError::Rooms(..))));
    assert!(matches!(ClusterClient::builder().raw().connect().await, Err(ConnectError::NoEndpoint)));
}

#[tokio::test]
async fn many_calls_share_one_task_and_a_dropped_client_answers_them_all() {
    let server = Single::new();
    let port = Port::open(&server).await;
    let client = ClusterClient::builder().endpoints([port.endpoint()]).thin().connect().await.unwrap();
    let payload = voter_mesh::machine::to_cbor(&put("k")).unwrap();
    let calls = (0..2_000).map(|_| std::future::IntoFuture::into_future(client.propose(&payload)));
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|applied| !applied.repeat)));
    server.lock().unwrap().holds = true;
    let calls: Vec<_> = (0..300).map(|_| tokio::spawn(std::future::IntoFuture::into_future(client.propose(&payload)))).collect();
    let mut status = client.status();
    while server.lock().unwrap().room.counters().proposals < 2_256 {
        tokio::task::yield_now().await;
    }
    drop(client);
    status.wait_for(|status| matches!(status, Status::Closed { .. })).await.unwrap();
    let (mut unknown, mut unsent) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Err(ProposeError::Unknown { .. }) => unknown += 1,
            Err(ProposeError::NotSent { .. }) => unsent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((unknown, unsent), (256, 44));
}

/// A client whose streams must fetch all but the latest commands from a server whose ring holds none but them.
async fn far_behind(commands: usize) -> (Arc<Mutex<Single>>, Port, ClusterClient<crate::Raw>) {
    let mut limits = RoomLimits::default();
    limits.feed.feed_ring_bytes_max = 1;
    let server = Single::with(limits);
    let port = Port::open(&server).await;
    let client = ClusterClient::builder().endpoints([port.endpoint()]).history_bytes_max(600).raw().connect().await.unwrap();
    for number in 0..commands {
        let command = voter_mesh::machine::to_cbor(&put(&format!("key {number}"))).unwrap();
        client.propose(&command).await.unwrap();
    }
    (server, port, client)
}

#[tokio::test]
async fn a_fetched_history_leads_into_the_live_one_without_a_gap() {
    let (_server, _port, client) = far_behind(60).await;
    let mut stream = client.committed_from(LogIndex::FIRST);
    for number in 0..60 {
        let expected = voter_mesh::machine::to_cbor(&put(&format!("key {number}"))).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().payload, expected);
    }
    // It falls behind what is kept here once more.
    for number in 60..120 {
        let command = voter_mesh::machine::to_cbor(&put(&format!("key {number}"))).unwrap();
        client.propose(&command).await.unwrap();
    }
    for number in 60..120 {
        let expected = voter_mesh::machine::to_cbor(&put(&format!("key {number}"))).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().payload, expected);
    }
}

#[tokio::test]
async fn a_fetched_history_that_is_not_the_live_one_ends_the_stream() {
    let (server, _port, client) = far_behind(300).await;
    let mut stream = client.committed_from(LogIndex::FIRST);
    stream.next().await.unwrap().unwrap();
    // One that has fetched once is told before it gets a single command of another history.
    server.lock().unwrap().forges = true;
    let mut before = LogIndex::ZERO;
    let after = loop {
        match stream.next().await.unwrap() {
            Ok(entry) => before = entry.index,
            Err(StreamError::Diverged { after }) => break after,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(after >= before);
    assert!(stream.next().await.is_none());
    // One that begins there is told at the latest where the fetched history meets the live one.
    let mut stream = client.committed_from(LogIndex(270));
    loop {
        match stream.next().await.unwrap() {
            Ok(entry) => assert!(entry.index < LogIndex(310)),
            Err(error) => break assert!(matches!(error, StreamError::Diverged { .. }), "{error}"),
        }
    }
}
