//! What strangers, broken clients and impostors send: each gets a typed answer, is counted and closed, and nobody else notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_client::{RequestId, Status};
use cluster_server::mesh::{MeshMessage, MeshSecret, PeerHello};
use cluster_server::{ServerCluster, ServerLimits, ServerStatus, StartError};
use relay::room::RoomLimits;
use relay::wire::{ClientFrame, Code, FeedMode, Proposal, ServerFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::ids::{ClusterId, DirectoryId, Identity, Incarnation, RaftId, RoomId, RunIndex, Seat, Term};
use voter_mesh::mesh::codec::{encode, split_frame};
use voter_mesh::mesh::handshake::{Dialling, HANDSHAKE_FRAME_BYTES_MAX, HandshakeError, Hello, LinkKind, Refusal};
use voter_mesh::mesh::message::Message as RaftMessage;

use crate::harness::{PATIENCE, eventually};
use crate::here::{client_of, identical, shutdown, started, voters};
use crate::peer::{Peer, hello};
use crate::processes::free_ports;

const SEATS: [Seat; 3] = [Seat(1), Seat(2), Seat(3)];

/// A well-behaved client that proposes all the time, and demands that nothing happens to it.
struct Bystander {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Bystander {
    async fn at(urls: &[String]) -> Self {
        let client = client_of(urls).raw().connect().await.unwrap();
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                client.propose(&Bytes::from_static(b"business as usual")).await.unwrap();
                assert!(matches!(*client.status().borrow(), Status::Live { .. }));
                count.fetch_add(1, Ordering::Relaxed);
            }
            client.close().await;
        });
        Self { stop, acknowledged, task }
    }

    async fn more(&self, count: u64) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + count;
        let done = || async { (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(()) };
        eventually("the bystander goes on", done).await;
    }

    async fn leave(self) {
        self.more(10).await;
        self.stop.store(true, Ordering::Relaxed);
        timeout(PATIENCE, self.task).await.expect("it is answered").unwrap();
    }
}

/// Reads until the server's last frame, and that it closes behind it.
async fn last_word(peer: &mut Peer) -> Code {
    let code = peer
        .hear_for("a refusal", |frame| match frame {
            ServerFrame::Refuse { code, .. } | ServerFrame::Close { code, .. } => Some(code),
            _ => None,
        })
        .await;
    assert_eq!(peer.hear().await, None, "it was told {code:?}, and more");
    code
}

/// Reads a TCP connection to its end, and says how long that took since `begin`.
async fn ends(stream: &mut TcpStream, begin: Instant) -> Duration {
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection ends");
    begin.elapsed()
}

fn heartbeat() -> Bytes {
    let mut frame: Vec<Bytes> = Vec::new();
    let beat = RaftMessage::Heartbeat { term: Term(1_000), commit: RunIndex(1_000), round: 1 };
    encode(&MeshMessage::Raft(beat), &mut frame).unwrap();
    frame.concat().into()
}

/// A frame of this kind whose body is nested 10,000 deep.
fn nested(kind: u8) -> Bytes {
    let mut bytes = vec![kind];
    bytes.resize(10_001, 0x81);
    bytes.push(0);
    bytes.into()
}

/// Messages that no client sends, and the code for each.
fn nonsense() -> Vec<(Message, Code)> {
    let proposal = Proposal { id: RequestId(1), floor: RequestId(1), payload: Bytes::from_static(b"payload") };
    let propose = ClientFrame::Propose(vec![proposal]).encode();
    let mut list = vec![(Message::text("hello"), Code::Malformed), (Message::Binary(Bytes::new()), Code::Malformed)];
    list.extend([0x00, 0x0b, 0x41, 0x7f, 0xff].map(|kind| (Message::Binary(vec![kind, 0x80].into()), Code::Malformed)));
    list.extend((0x20..=0x24).map(|kind| (Message::Binary(vec![kind, 0x80].into()), Code::Unsupported)));
    list.extend((0x01..=0x0a).map(|kind| (Message::Binary(nested(kind)), Code::Malformed)));
    list.extend((1..propose.len()).map(|cut| (Message::Binary(propose.slice(..cut)), Code::Malformed)));
    // A consensus frame, with and without the length in front.
    list.push((Message::Binary(heartbeat()), Code::Malformed));
    list.push((Message::Binary(heartbeat().slice(4..)), Code::Malformed));
    list.push((Message::Binary(vec![5; (1 << 20) + 1].into()), Code::TooLarge));
    list
}

#[tokio::test]
async fn what_is_no_frame_is_answered_with_a_code_counted_and_closed() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(3, directory.path())).await;
    let urls = cluster.urls();
    let bystander = Bystander::at(&urls).await;
    let before = cluster.status(Seat(1)).await.unwrap();
    let mut expected = before.counters.clone();
    for admitted in [false, true] {
        for (message, code) in nonsense() {
            let mut peer = Peer::connect(&urls[0]).await;
            if admitted {
                peer = Peer::admitted(&urls[0], hello(FeedMode::Thin)).await.0;
            }
            let what = format!("{:.60}", format!("{message:?}"));
            peer.send(message).await;
            assert_eq!(last_word(&mut peer).await, code, "admitted: {admitted}, {what}");
            *expected.entry(format!("{}_{code:?}", if admitted { "closed" } else { "refused" })).or_default() += 1;
        }
    }
    // What decodes, but comes where it may not.
    let mut early = Peer::connect(&urls[0]).await;
    early.say(ClientFrame::Ping { nonce: 1 }).await;
    assert_eq!(last_word(&mut early).await, Code::Malformed);
    let (mut again, _) = Peer::admitted(&urls[0], hello(FeedMode::Full)).await;
    again.say(ClientFrame::Hello(hello(FeedMode::Full))).await;
    assert_eq!(last_word(&mut again).await, Code::Malformed);
    // Bytes past the WebSocket's rules: a frame without a mask, one whose length nothing can hold.
    for (bytes, code) in
        [(&[0x82, 1, 9][..], Code::Malformed), (&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3, 4], Code::TooLarge)]
    {
        let (mut peer, _) = Peer::admitted(&urls[0], hello(FeedMode::Thin)).await;
        peer.stream().write_all(bytes).await.unwrap();
        assert_eq!(last_word(&mut peer).await, code);
        *expected.entry(format!("closed_{code:?}")).or_default() += 1;
    }
    *expected.entry("refused_Malformed".into()).or_default() += 1;
    *expected.entry("closed_Malformed".into()).or_default() += 1;
    let after = cluster.status(Seat(1)).await.unwrap();
    for code in [Code::Malformed, Code::TooLarge, Code::Unsupported] {
        for counter in [format!("refused_{code:?}"), format!("closed_{code:?}")] {
            assert_eq!(after.counters.get(&counter), expected.get(&counter), "{counter}");
        }
    }
    assert!(after.counters["unknown_kinds"] > before.counters["unknown_kinds"]);
    // Not HTTP at all.
    let mut stray = TcpStream::connect(cluster.relay_addrs()[0]).await.unwrap();
    stray.write_all(&heartbeat()).await.unwrap();
    stray.write_all(&[0; 64]).await.unwrap();
    ends(&mut stray, Instant::now()).await;
    eventually("the stray is counted", || async { cluster.status(Seat(1)).await.unwrap().counters.get("http_failed").copied() })
        .await;
    bystander.leave().await;
    let left = || async { (cluster.status(Seat(1)).await.unwrap().clients == 0).then_some(()) };
    eventually("nothing is left of them", left).await;
    identical(&cluster).await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_its_end_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let limits = ServerLimits { handshake_ms: 500, ..ServerLimits::default() };
    assert_eq!((ServerLimits::default().handshake_ms, RoomLimits::default().handshake_ms), (5_000, 5_000));
    let cluster = started(voters(1, directory.path()).limits(limits)).await;
    let (urls, address) = (cluster.urls(), cluster.relay_addrs()[0]);
    let bystander = Bystander::at(&urls).await;
    let silent = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ends(&mut stream, Instant::now()).await
    };
    let slow = async {
        let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
        let begin = Instant::now();
        let dribble = async {
            for byte in b"GET /rooms/main HTTP/1.1\r\nhost: quorate\r\n".iter().chain(std::iter::repeat(&b'x')) {
                // The pace is the attack.
                tokio::time::sleep(Duration::from_millis(20)).await;
                if to.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
        };
        let mut rest = Vec::new();
        tokio::select! {
            _ = from.read_to_end(&mut rest) => {}
            () = dribble => {}
        }
        begin.elapsed()
    };
    let no_body = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = b"POST /admin HTTP/1.1\r\nhost: quorate\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
        stream.write_all(head).await.unwrap();
        ends(&mut stream, Instant::now()).await
    };
    let no_hello = async {
        let begin = Instant::now();
        let mut peer = Peer::connect(&urls[0]).await;
        assert_eq!(last_word(&mut peer).await, Code::Timeout);
        begin.elapsed()
    };
    let (silent, slow, no_body, no_hello) = tokio::join!(silent, slow, no_body, no_hello);
    for (what, took) in [("silent", silent), ("slow", slow), ("no body", no_body), ("no hello", no_hello)] {
        assert!((Duration::from_millis(450)..Duration::from_secs(5)).contains(&took), "{what}: {took:?}");
    }
    let counters = cluster.status(Seat(1)).await.unwrap().counters;
    assert!(counters["http_timeout"] >= 2, "{counters:?}");
    assert_eq!(counters["refused_Timeout"], 1);
    bystander.leave().await;
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_within_two_ping_periods() {
    const PING: Duration = Duration::from_millis(1_000);
    let directory = tempfile::tempdir().unwrap();
    let room = RoomLimits { ping_ms: PING.as_millis() as u64, goodbye_ms: 200, ..RoomLimits::default() };
    let cluster = started(voters(1, directory.path()).room_limits(room)).await;
    let url = &cluster.urls()[0];
    let since = Instant::now();
    let (mut silent, admit) = Peer::admitted(url, hello(FeedMode::Full)).await;
    assert_eq!(u128::from(admit.limits.ping_ms), PING.as_millis());
    // One that does not even read: all that the server knows is that nothing comes.
    let (deaf, _) = Peer::admitted(url, hello(FeedMode::Full)).await;
    // And one that says no more than that it lives.
    let (mut quiet, _) = Peer::admitted(url, hello(FeedMode::Full)).await;
    let pinging = async {
        loop {
            quiet.say(ClientFrame::Ping { nonce: 4 }).await;
            quiet.hear_for("a pong", |frame| (frame == ServerFrame::Pong { nonce: 4 }).then_some(())).await;
            tokio::time::sleep(PING / 8).await;
        }
    };
    let noticed = async {
        assert_eq!(last_word(&mut silent).await, Code::Timeout);
        let after = since.elapsed();
        let gone = || async { (cluster.status(Seat(1)).await.unwrap().clients == 1).then_some(()) };
        eventually("the other one is gone too", gone).await;
        after
    };
    let after = tokio::select! {
        after = noticed => after,
        () = pinging => unreachable!("it pings for ever"),
    };
    // The upper bound leaves room for a machine that does something else.
    assert!((PING * 2..PING * 20).contains(&after), "{after:?}");
    let counters = cluster.status(Seat(1)).await.unwrap().counters;
    assert_eq!(counters["closed_Timeout"], 2);
    drop((deaf, quiet));
    shutdown(cluster).await;
}

fn secret() -> MeshSecret {
    MeshSecret::new(b"what the servers of this story share").unwrap()
}

/// Three servers, each a cluster of its own in this process, that share a secret which the story knows too.
async fn with_secret(directory: &std::path::Path) -> (Vec<ServerCluster>, Vec<SocketAddr>) {
    'clash: loop {
        let mesh: Vec<SocketAddr> = free_ports(3).into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let peers: BTreeMap<Seat, String> = SEATS.into_iter().zip(mesh.iter().map(ToString::to_string)).collect();
        let mut servers = Vec::new();
        for seat in SEATS {
            let builder = voters(1, &directory.join(seat.to_string())).seat(seat, peers.clone()).mesh_secret(secret());
            match builder.start().await {
                Ok(server) => servers.push(server),
                Err(StartError::Listen { .. }) => continue 'clash,
                Err(error) => panic!("{error}"),
            }
        }
        return (servers, mesh);
    }
}

/// Someone who claims to be a server.
struct Impostor {
    stream: TcpStream,
    received: BytesMut,
    written: Vec<u8>,
}

impl Impostor {
    async fn at(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), received: BytesMut::new(), written: Vec::new() }
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.written.extend_from_slice(bytes);
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; none if the server has closed.
    async fn read(&mut self) -> Option<Bytes> {
        let frame = async {
            loop {
                if let Some(frame) = split_frame(&mut self.received, HANDSHAKE_FRAME_BYTES_MAX).unwrap() {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        timeout(PATIENCE, frame).await.expect("a frame or an end")
    }

    /// Goes through the handshake as far as it is let, and to the end of the connection; why it was refused.
    async fn refused(&mut self, hello: Hello, secret: Option<&MeshSecret>) -> Refusal {
        let (dialling, hello) = Dialling::new(hello, secret).unwrap();
        self.write(&hello).await;
        let (dialled, proof) = dialling.handle_hello(&self.read().await.unwrap()).unwrap_or_else(|error| panic!("{error}"));
        self.write(&proof).await;
        let verdict = dialled.handle_verdict(&self.read().await.unwrap());
        assert_eq!(self.read().await, None);
        match verdict {
            Err(HandshakeError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }
}

/// What the server at seat 1 would say to the one at seat 3, had it been started a very long time ago.
fn hello_of_seat_1(status: &ServerStatus) -> Hello {
    let identity = Identity { cluster: status.cluster.unwrap(), epoch: status.epoch, room: RoomId(0) };
    let from = PeerHello {
        seat: Seat(1),
        id: Some(RaftId::new(Seat(1), 1)),
        directory: DirectoryId([1; 16]),
        incarnation: Incarnation(1),
        identity: Some(identity),
        machine: ("log".into(), 1),
        first: RunIndex(1),
        last: (Term(1_000), RunIndex(1_000)),
        suspect: false,
        endpoints: Vec::new(),
    };
    Hello { kind: LinkKind::Consensus, nonce: [9; 32], dial: 1 << 40, to: Seat(3), to_incarnation: None, from }
}

#[tokio::test]
async fn nobody_gets_into_the_mesh_who_is_not_the_server_that_it_says_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (servers, mesh) = with_secret(directory.path()).await;
    let statuses = async || {
        let mut all = Vec::new();
        for (server, seat) in servers.iter().zip(SEATS) {
            all.push(server.status(seat).await.unwrap());
        }
        all
    };
    let before = eventually("all are linked and follow one leader", || async {
        let all = statuses().await;
        let leader = all[0].leader?;
        all.iter().all(|one| one.counters["mesh_links"] == 2 && one.leader == Some(leader)).then_some(all)
    })
    .await;
    let urls: Vec<String> = servers.iter().flat_map(ServerCluster::urls).collect();
    let bystander = Bystander::at(&urls).await;
    let target = mesh[2];
    let silent = tokio::spawn(async move {
        let mut stream = TcpStream::connect(target).await.unwrap();
        ends(&mut stream, Instant::now()).await
    });
    let mut expected: BTreeMap<&str, u64> = BTreeMap::from([("timeout", 1)]);
    let mut count = |reason| *expected.entry(reason).or_default() += 1;
    let good = hello_of_seat_1(&before[2]);

    // Not a handshake: what a client would say, frames over the limit, raft without a word before, nesting.
    let mut bare: Vec<Vec<u8>> =
        vec![b"GET /rooms/main HTTP/1.1\r\nhost: quorate\r\n\r\n".to_vec(), vec![0xff; 64], heartbeat().to_vec()];
    let (_, own_hello) = Dialling::new(good.clone(), Some(&secret())).unwrap();
    // The envelope, magic and version of a real one, and then nothing but arrays.
    let mut deep = own_hello[..15].to_vec();
    deep.resize(10_015, 0x81);
    deep[..4].copy_from_slice(&(10_011_u32).to_le_bytes());
    deep[5..9].copy_from_slice(&(10_006_u32).to_le_bytes());
    bare.push(deep);
    bare.push([&own_hello[..], &heartbeat()].concat());
    for bytes in bare {
        let mut impostor = Impostor::at(target).await;
        impostor.write(&bytes).await;
        ends(&mut impostor.stream, Instant::now()).await;
        count("malformed");
    }
    // Cut off in the middle.
    let mut cut = Impostor::at(target).await;
    cut.write(&own_hello[..own_hello.len() / 2]).await;
    drop(cut);
    count("io");

    // Without the secret, or with another one.
    for secret in [None, Some(MeshSecret::new(b"what somebody else would share").unwrap())] {
        assert_eq!(Impostor::at(target).await.refused(good.clone(), secret.as_ref()).await, Refusal::Unproven);
        count("unproven");
    }
    // With the secret, and yet not one of them.
    let refused = async |change: &dyn Fn(&mut Hello)| {
        let mut hello = good.clone();
        change(&mut hello);
        let mut impostor = Impostor::at(target).await;
        (impostor.refused(hello, Some(&secret())).await, impostor.written)
    };
    let (why, written) = refused(&|_| {}).await;
    assert_eq!(why, Refusal::OldIncarnation);
    count("old_incarnation");
    let other = Identity { cluster: ClusterId([3; 16]), ..good.from.identity.unwrap() };
    assert_eq!(refused(&|hello| hello.from.identity = Some(other)).await.0, Refusal::Cluster);
    count("cluster");
    assert_eq!(refused(&|hello| hello.from.machine.0 = "kv".into()).await.0, Refusal::Machine("log".into(), 1));
    count("machine");
    assert_eq!(refused(&|hello| hello.kind = LinkKind::Bulk).await.0, Refusal::NoLink);
    count("no_link");
    // Every byte of a conversation that was proven, once more.
    let mut replay = Impostor::at(target).await;
    replay.write(&written).await;
    ends(&mut replay.stream, Instant::now()).await;
    count("unproven");

    let took = silent.await.unwrap();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let after = eventually("all are counted", || async {
        let after = statuses().await;
        let counted = |(reason, count): (&&str, &u64)| {
            let name = format!("mesh_refused_{reason}");
            let before = before[2].counters.get(&name).copied().unwrap_or(0);
            after[2].counters.get(&name).is_some_and(|after| after - before == *count)
        };
        expected.iter().all(counted).then_some(after)
    })
    .await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.term, before.leader), (after.term, after.leader));
        for counter in ["mesh_links", "mesh_links_torn", "mesh_links_closed", "mesh_malformed"] {
            assert_eq!(before.counters[counter], after.counters[counter], "{counter} of seat {}", before.seat);
        }
    }
    bystander.leave().await;
    for server in servers {
        shutdown(server).await;
    }
}

#[tokio::test]
async fn without_a_secret_only_loopback_is_listened_on() {
    let directory = tempfile::tempdir().unwrap();
    let open = || ServerCluster::builder().voters(1).data_dir(directory.path()).listen("0.0.0.0:0");
    assert!(matches!(open().start().await, Err(StartError::Unprotected(_))));
    let peers = BTreeMap::from([(Seat(1), "0.0.0.0:0".to_owned())]);
    let mesh = || ServerCluster::builder().data_dir(directory.path()).seat(Seat(1), peers.clone());
    assert!(matches!(mesh().start().await, Err(StartError::Unprotected(_))));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    shutdown(open().mesh_secret(secret()).start().await.unwrap()).await;
}
