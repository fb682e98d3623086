#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{ClusterId, Epoch, RoomId, RunIndex, Term, TimeMs};
use voter_mesh::log::NoRuns;
use voter_mesh::mesh::codec::{Control, decode, encode, split_frame};
use voter_mesh::mesh::handshake::{Dialling, HandshakeError, Hello, LinkKind, Refusal};
use voter_mesh::mesh::message::Message;
use voter_mesh::run::{Run, Tail};
use voter_mesh::snapshot::SnapshotMeta;

use super::*;
use crate::host::OsHost;

/// Far above what anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Up(u16, u64),
    Message(u16, u64, u64),
    Down(u16, u64, Disconnect),
}
use Seen::{Down, Message as Got, Up};

/// An owner that writes down what it is told.
#[derive(Default)]
struct Owner {
    seen: RefCell<Vec<Seen>>,
    links: RefCell<BTreeMap<Seat, Link>>,
    hello: RefCell<SelfHello>,
    changed: Notify,
    /// Why snapshots are refused; taken when there is no reason.
    refuses: RefCell<Option<String>>,
    received: Rc<RefCell<Vec<u8>>>,
    /// The log that peers may ask for; without one, no question is ever answered.
    runs: RefCell<Option<Vec<Run>>>,
    /// Whose beginning `received` is.
    kept: Cell<Option<[u8; 32]>>,
}

impl Owner {
    fn see(&self, seen: Seen) {
        self.seen.borrow_mut().push(seen);
        self.changed.notify_waiters();
    }

    async fn until<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = look(self) {
                    return found;
                }
                changed.await;
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("not seen in time; seen: {:?}", self.seen.borrow()))
    }

    /// Waits until this was told.
    async fn sees(&self, expected: Seen) {
        self.until(|owner| owner.seen.borrow().contains(&expected).then_some(())).await;
    }

    /// Waits until so many bytes of a snapshot have come.
    async fn until_received(&self, bytes: usize) {
        while self.received.borrow().len() < bytes {
            tokio::task::yield_now().await;
        }
    }

    /// Waits for the live link to a seat.
    async fn link(&self, seat: u16) -> Link {
        self.until(|owner| owner.links.borrow().get(&Seat(seat)).cloned()).await
    }
}

impl MeshOwner for Owner {
    fn self_hello(&self) -> SelfHello {
        self.hello.borrow().clone()
    }

    fn link_up(&self, peer: PeerHello, link: Link) {
        self.links.borrow_mut().insert(peer.seat, link);
        self.see(Up(peer.seat.0, peer.incarnation.0));
    }

    fn message(&self, from: Seat, incarnation: Incarnation, message: MeshMessage) {
        if let MeshMessage::Raft(Message::Heartbeat { round, .. }) = message {
            self.see(Got(from.0, incarnation.0, round));
        }
    }

    fn link_down(&self, seat: Seat, incarnation: Incarnation, how: Disconnect) {
        self.links.borrow_mut().remove(&seat);
        self.see(Down(seat.0, incarnation.0, how));
    }

    fn snapshot_begin(&self, _: Seat, _: Incarnation, offer: SnapshotOffer) -> SinkFuture {
        let answer: Result<Box<dyn SnapshotSink>, _> = match self.refuses.borrow().clone() {
            Some(reason) => Err(reason),
            None => {
                if self.kept.replace(Some(offer.hash)) != Some(offer.hash) {
                    self.received.borrow_mut().clear();
                }
                Ok(Box::new(Sink(Rc::clone(&self.received))))
            }
        };
        async move { answer }.boxed_local()
    }

    fn runs_asked(&self, _: Seat, first: RunIndex, last: RunIndex) -> LocalBoxFuture<'static, RunsAnswer> {
        let held = self.runs.borrow().clone();
        async move {
            let Some(held) = held else { return std::future::pending().await };
            match held.first().map(|held| held.header().run) {
                Some(begins) if begins > first => Err(NoRuns::Trimmed { first: begins }),
                _ => Ok(held.into_iter().filter(|run| (first..=last).contains(&run.header().run)).collect()),
            }
        }
        .boxed_local()
    }
}

/// Keeps what it has of a file for when the same one is offered again.
struct Sink(Rc<RefCell<Vec<u8>>>);

impl SnapshotSink for Sink {
    fn offset(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn write(self: Box<Self>, chunks: Vec<Bytes>) -> SinkFuture {
        self.0.borrow_mut().extend_from_slice(&chunks.concat());
        let poisoned = self.0.borrow().starts_with(b"poison");
        async move { if poisoned { Err("poisoned".into()) } else { Ok(self as Box<dyn SnapshotSink>) } }.boxed_local()
    }

    fn finish(self: Box<Self>) -> LocalBoxFuture<'static, Result<(), String>> {
        async move { if self.0.borrow().starts_with(b"rotten") { Err("does not verify".into()) } else { Ok(()) } }.boxed_local()
    }
}

fn secret() -> MeshSecret {
    MeshSecret::new(b"a secret of the cluster").unwrap()
}

fn options(seat: u16, incarnation: u64) -> MeshOptions {
    MeshOptions {
        seat: Seat(seat),
        directory: DirectoryId([seat as u8; 16]),
        incarnation: Incarnation(incarnation),
        secret: Some(secret()),
        machine: ("kv".into(), 1),
        limits: MeshLimits { keepalive_ms: 50, silence_ms: 10_000, ..MeshLimits::default() },
    }
}

fn os() -> Rc<dyn Host> {
    Rc::new(OsHost::new())
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A mesh of one seat that knows no others.
async fn alone(options: MeshOptions) -> (Mesh, Rc<Owner>) {
    let owner = Rc::new(Owner::default());
    let (listener, _) = listener().await;
    let mesh =
        Mesh::spawn_local(os(), Box::new(listener), BTreeMap::new(), Rc::clone(&owner) as Rc<dyn MeshOwner>, options).unwrap();
    (mesh, owner)
}

/// Meshes that know each other, of these seats; the incarnation is the seat's number times ten.
async fn meshes(seats: Range<u16>) -> Vec<(Mesh, Rc<Owner>)> {
    let mut meshes = Vec::new();
    let mut peers = BTreeMap::new();
    for seat in seats {
        let (mesh, owner) = alone(options(seat, u64::from(seat) * 10)).await;
        peers.insert(Seat(seat), mesh.local_addr().to_string());
        meshes.push((mesh, owner));
    }
    meshes.iter().for_each(|(mesh, _)| mesh.set_peers(peers.clone()));
    meshes
}

fn beat(round: u64) -> MeshMessage {
    MeshMessage::Raft(Message::Heartbeat { term: Term(1), commit: RunIndex(0), round })
}

fn beat_bytes(round: u64) -> Vec<u8> {
    let mut pieces: Vec<Bytes> = Vec::new();
    encode(&beat(round), &mut pieces).unwrap();
    pieces.concat()
}

/// A lower seat that speaks the protocol by hand.
struct Raw {
    stream: TcpStream,
    received: BytesMut,
    /// Everything that it has written.
    written: Vec<u8>,
}

impl Raw {
    async fn connect(to: &Mesh) -> Self {
        let stream = TcpStream::connect(to.local_addr()).await.unwrap();
        Self { stream, received: BytesMut::new(), written: Vec::new() }
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.written.extend_from_slice(bytes);
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` at the end.
    async fn read(&mut self) -> Option<Bytes> {
        let frame = async {
            loop {
                if let Some(frame) = split_frame(&mut self.received, 4 << 20).unwrap() {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        timeout(PATIENCE, frame).await.unwrap()
    }

    fn hello(incarnation: u64, dial: u64) -> Hello {
        let from = PeerHello {
            seat: Seat(1),
            id: None,
            directory: DirectoryId([1; 16]),
            incarnation: Incarnation(incarnation),
            identity: None,
            machine: ("kv".into(), 1),
            first: RunIndex(0),
            last: (Term(0), RunIndex(0)),
            suspect: false,
            endpoints: Vec::new(),
        };
        Hello { kind: LinkKind::Consensus, nonce: [9; 32], dial, to: Seat(2), to_incarnation: None, from }
    }

    /// Does the dialler's part.
    async fn shake(&mut self, hello: Hello, secret: &MeshSecret) -> Result<PeerHello, HandshakeError> {
        let (dialling, hello) = Dialling::new(hello, Some(secret)).unwrap();
        self.write(&hello).await;
        let (dialled, proof) = dialling.handle_hello(&self.read().await.unwrap())?;
        self.write(&proof).await;
        dialled.handle_verdict(&self.read().await.unwrap())
    }

    /// A link of seat 1 to `to`, which is seat 2.
    async fn link(to: &Mesh, incarnation: u64, dial: u64) -> Self {
        let mut raw = Self::connect(to).await;
        raw.shake(Self::hello(incarnation, dial), &secret()).await.unwrap();
        raw
    }
}

fn failed(mesh: &Mesh, reason: &str) -> u64 {
    mesh.counters().handshakes_failed.get(reason).copied().unwrap_or(0)
}

#[tokio::test]
async fn three_servers_link_and_every_pair_talks_both_ways() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..4).await;
            for (from, (_, owner)) in (1..).zip(&meshes) {
                for to in (1..4).filter(|to| *to != from) {
                    let link = owner.link(to).await;
                    assert_eq!(link.peer().incarnation, Incarnation(u64::from(to) * 10));
                    link.send(beat(u64::from(from * 100 + to))).unwrap();
                }
            }
            for (to, (mesh, owner)) in (1..).zip(&meshes) {
                for from in (1..4).filter(|from| *from != to) {
                    owner.sees(Got(from, u64::from(from) * 10, u64::from(from * 100 + to))).await;
                }
                assert_eq!((mesh.counters().links_up, mesh.counters().links_torn), (2, 0));
            }
        })
        .await;
}

#[tokio::test]
async fn a_lower_seat_that_has_not_heard_of_a_higher_one_is_dialled_by_it() {
    LocalSet::new()
        .run_until(async {
            let (lower, owner) = alone(options(1, 1)).await;
            let (higher, other) = alone(options(2, 1)).await;
            higher.set_peers([(Seat(1), lower.local_addr().to_string())].into());
            other.link(1).await.send(beat(7)).unwrap();
            owner.sees(Got(2, 1, 7)).await;
            // It learns of it, and leaves the link as it is.
            lower.set_peers([(Seat(2), higher.local_addr().to_string())].into());
            owner.link(2).await.send(beat(8)).unwrap();
            other.sees(Got(1, 1, 8)).await;
            assert_eq!((lower.counters().links_up, higher.counters().links_up), (1, 1));
        })
        .await;
}

#[tokio::test]
async fn a_higher_seat_that_is_dialled_itself_is_not_let_in() {
    LocalSet::new()
        .run_until(async {
            let (lower, _) = alone(options(1, 1)).await;
            let (_nobody, address) = listener().await;
            lower.set_peers([(Seat(2), address)].into());
            let Hello { from, .. } = Raw::hello(1, 1);
            let from = PeerHello { seat: Seat(2), directory: DirectoryId([2; 16]), ..from };
            let refused = Raw::connect(&lower).await.shake(Hello { to: Seat(1), from, ..Raw::hello(1, 1) }, &secret()).await;
            assert!(matches!(refused, Err(HandshakeError::Refused(Refusal::Seat))), "{refused:?}");
        })
        .await;
}

#[tokio::test]
async fn everything_received_is_handed_over_before_the_tear_is_told() {
    LocalSet::new()
        .run_until(async {
            let (mesh, owner) = alone(options(2, 20)).await;
            let mut raw = Raw::link(&mesh, 10, 1).await;
            let burst: Vec<u8> = (0..5000).flat_map(beat_bytes).collect();
            raw.write(&burst).await;
            drop(raw);
            owner.sees(Down(1, 10, Disconnect::Torn)).await;
            let seen = owner.seen.borrow();
            let expected: Vec<Seen> = (0..5000).map(|round| Got(1, 10, round)).collect();
            assert_eq!(seen[0], Up(1, 10));
            assert_eq!(seen[1..5001], expected);
            assert_eq!(seen[5001..], [Down(1, 10, Disconnect::Torn)]);
        })
        .await;
}

#[tokio::test]
async fn a_goodbye_is_no_tear_and_half_a_frame_is_one() {
    LocalSet::new()
        .run_until(async {
            let (mesh, owner) = alone(options(2, 20)).await;
            let mut polite = Raw::link(&mesh, 10, 1).await;
            polite.write(&Control::Bye.frame()).await;
            owner.sees(Down(1, 10, Disconnect::Closed)).await;
            let mut rude = Raw::link(&mesh, 10, 2).await;
            rude.write(&beat_bytes(1)[..7]).await;
            drop(rude);
            owner.sees(Down(1, 10, Disconnect::Torn)).await;
        })
        .await;
}

#[tokio::test]
async fn a_newer_incarnation_takes_over_and_an_older_one_is_told_so() {
    LocalSet::new()
        .run_until(async {
            let (mesh, owner) = alone(options(2, 20)).await;
            let mut old = Raw::link(&mesh, 10, 1).await;
            let mut new = Raw::link(&mesh, 11, 1).await;
            let _ = old.stream.write_all(&beat_bytes(1)).await;
            new.write(&beat_bytes(2)).await;
            owner.sees(Got(1, 11, 2)).await;
            let mut older = Raw::connect(&mesh).await;
            let refused = older.shake(Raw::hello(10, 2), &secret()).await;
            assert_eq!(refused, Err(HandshakeError::Refused(Refusal::OldIncarnation)));
            // The replaced connection is closed, politely.
            while old.read().await.is_some() {}
            new.write(&beat_bytes(3)).await;
            owner.sees(Got(1, 11, 3)).await;
            let expected = [Up(1, 10), Down(1, 10, Disconnect::Torn), Up(1, 11), Got(1, 11, 2), Got(1, 11, 3)];
            assert_eq!(*owner.seen.borrow(), expected);
            assert_eq!(failed(&mesh, "old_incarnation"), 1);
        })
        .await;
}

#[tokio::test]
async fn strangers_replays_and_nonsense_are_refused_counted_and_disturb_nobody() {
    LocalSet::new()
        .run_until(async {
            let mut options = options(2, 20);
            options.limits.handshake_ms = 300;
            let (mesh, owner) = alone(options).await;
            owner.hello.borrow_mut().identity = Some(IDENTITY);
            let mut good = Raw::link(&mesh, 10, 1).await;

            let wrong = MeshSecret::new(b"a secret of another").unwrap();
            let mut stranger = Raw::connect(&mesh).await;
            let refused = stranger.shake(Raw::hello(11, 1), &wrong).await;
            assert_eq!(refused, Err(HandshakeError::Refused(Refusal::Unproven)));

            let mut replay = Raw::connect(&mesh).await;
            replay.stream.write_all(&good.written).await.unwrap();
            assert!(replay.read().await.is_some(), "the hello of this handshake");
            assert!(replay.read().await.is_some(), "a bare refusal");
            assert_eq!(replay.read().await, None);
            assert_eq!(failed(&mesh, "unproven"), 2);

            let mut other = Raw::hello(11, 1);
            other.from.identity = Some(Identity { cluster: ClusterId([8; 16]), ..IDENTITY });
            let refused = Raw::connect(&mesh).await.shake(other, &secret()).await;
            assert_eq!(refused, Err(HandshakeError::Refused(Refusal::Cluster)));
            assert_eq!(failed(&mesh, "cluster"), 1);

            for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
                let mut raw = Raw::connect(&mesh).await;
                raw.write(nonsense).await;
                assert_eq!(raw.read().await, None);
            }
            assert_eq!(failed(&mesh, "malformed"), 3);

            let mut silent = Raw::connect(&mesh).await;
            assert_eq!(silent.read().await, None, "closed at the deadline");
            assert_eq!(failed(&mesh, "timeout"), 1);

            good.write(&beat_bytes(5)).await;
            owner.sees(Got(1, 10, 5)).await;
            assert_eq!(*owner.seen.borrow(), [Up(1, 10), Got(1, 10, 5)]);
        })
        .await;
}

#[tokio::test]
async fn nonsense_on_a_link_closes_it_with_a_goodbye() {
    LocalSet::new()
        .run_until(async {
            let (mesh, owner) = alone(options(2, 20)).await;
            let mut raw = Raw::link(&mesh, 10, 1).await;
            let mut bytes = beat_bytes(1);
            bytes.extend_from_slice(&[5, 0, 0, 0, 200, 0, 0, 0, 0]);
            bytes.extend_from_slice(&beat_bytes(2));
            raw.write(&bytes).await;
            let mut said_bye = false;
            while let Some(frame) = raw.read().await {
                said_bye |= Control::of(&frame) == Some(Control::Bye);
            }
            drop(raw);
            assert!(said_bye);
            owner.sees(Down(1, 10, Disconnect::Closed)).await;
            assert_eq!(*owner.seen.borrow(), [Up(1, 10), Got(1, 10, 1), Down(1, 10, Disconnect::Closed)]);
            assert_eq!(mesh.counters().malformed, 1);
        })
        .await;
}

#[tokio::test]
async fn handshakes_beyond_the_limit_are_dropped() {
    LocalSet::new()
        .run_until(async {
            let mut options = options(2, 20);
            options.limits.handshakes_max = 2;
            let (mesh, _) = alone(options).await;
            let (_one, _two) = (Raw::connect(&mesh).await, Raw::connect(&mesh).await);
            assert_eq!(Raw::connect(&mesh).await.read().await, None);
            assert_eq!(failed(&mesh, "over_limit"), 1);
        })
        .await;
}

#[tokio::test]
async fn an_idle_side_says_that_it_lives_and_a_silent_one_is_dropped() {
    LocalSet::new()
        .run_until(async {
            let mut options = options(2, 20);
            (options.limits.keepalive_ms, options.limits.silence_ms) = (20, 200);
            let (mesh, owner) = alone(options).await;
            let mut raw = Raw::link(&mesh, 10, 1).await;
            assert_eq!(raw.read().await.as_deref().and_then(Control::of), Some(Control::Alive));
            // This raw end never says so.
            owner.sees(Down(1, 10, Disconnect::Closed)).await;
        })
        .await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_fills_the_link_and_no_more() {
    LocalSet::new()
        .run_until(async {
            let mut options = options(2, 20);
            options.limits.outbox_bytes_max = 1 << 20;
            let (mesh, owner) = alone(options).await;
            let mut raw = Raw::link(&mesh, 10, 1).await;
            let link = owner.link(1).await;
            let batch = voter_mesh::mesh::message::BatchId(1);
            let forward = || MeshMessage::Raft(Message::Forward { batch, entries: vec![0; 256 << 10].into() });
            let mut sent = 0;
            while link.send(forward()).is_ok() {
                sent += 1;
                tokio::task::yield_now().await;
                assert!(sent < 1000, "sockets do not hold that much");
            }
            assert_eq!(mesh.counters().sends_refused, 1);
            for _ in 0..sent {
                let frame = raw.read().await.unwrap();
                if Control::of(&frame).is_none() {
                    assert!(decode(frame).is_ok());
                }
            }
            raw.write(&beat_bytes(1)).await;
            owner.sees(Got(1, 10, 1)).await;
            link.send(forward()).unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_crash_is_a_tear_a_shutdown_is_not_and_a_restart_is_met_again() {
    LocalSet::new()
        .run_until(async {
            let mut all = meshes(1..4).await;
            let mut peers: BTreeMap<Seat, String> =
                (1..4).zip(&all).map(|(seat, (mesh, _))| (Seat(seat), mesh.local_addr().to_string())).collect();
            for (_, owner) in &all {
                owner.until(|owner| (owner.links.borrow().len() == 2).then_some(())).await;
            }
            let (crashed, _) = all.remove(1);
            drop(crashed);
            all[0].1.sees(Down(2, 20, Disconnect::Torn)).await;
            all[1].1.sees(Down(2, 20, Disconnect::Torn)).await;

            let (again, owner) = alone(options(2, 21)).await;
            peers.insert(Seat(2), again.local_addr().to_string());
            again.set_peers(peers.clone());
            all[0].0.set_peers(peers);
            all[0].1.sees(Up(2, 21)).await;
            all[1].1.sees(Up(2, 21)).await;

            owner.link(3).await.send(beat(1)).unwrap();
            again.shutdown();
            timeout(PATIENCE, again.stopped()).await.unwrap();
            all[0].1.sees(Down(2, 21, Disconnect::Closed)).await;
            all[1].1.sees(Down(2, 21, Disconnect::Closed)).await;
            let seen = all[1].1.seen.borrow();
            assert!(seen.contains(&Got(2, 21, 1)), "what was sent before the shutdown arrives");
        })
        .await;
}

#[tokio::test]
async fn a_flapping_link_comes_back_every_time_and_its_ends_are_told_in_turn() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..3).await;
            for flap in 0..10 {
                let (dialler, acceptor) = (&meshes[0].1, &meshes[1].1);
                dialler.link(2).await.close("flap");
                let ups = |owner: &Owner| owner.seen.borrow().iter().filter(|seen| matches!(seen, Up(..))).count();
                dialler.until(|owner| (ups(owner) == flap + 2).then_some(())).await;
                acceptor.until(|owner| (ups(owner) == flap + 2).then_some(())).await;
            }
            for (_, owner) in &meshes {
                for (at, seen) in owner.seen.borrow().iter().enumerate() {
                    assert_eq!(matches!(seen, Up(..)), at % 2 == 0, "up, down, up, down");
                    assert!(!matches!(seen, Down(_, _, Disconnect::Torn)));
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_new_id_is_told_to_all_peers_by_new_hellos() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..3).await;
            assert_eq!(meshes[0].1.link(2).await.peer().id, None);
            meshes[1].1.link(1).await;
            let id = RaftId::new(Seat(2), 1);
            *meshes[1].1.hello.borrow_mut() = SelfHello { id: Some(id), identity: Some(IDENTITY), ..SelfHello::default() };
            meshes[1].0.refresh();
            let knows = |owner: &Owner| owner.links.borrow().get(&Seat(2)).filter(|link| link.peer().id == Some(id)).map(drop);
            meshes[0].1.until(knows).await;
            meshes[1].0.refresh();
            meshes[0].1.link(2).await.send(beat(4)).unwrap();
            meshes[1].1.sees(Got(1, 10, 4)).await;
            assert_eq!(meshes[0].0.counters().links_torn, 0);
        })
        .await;
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        tail: Tail::zero(&IDENTITY),
        identity: IDENTITY,
        configuration: Configuration::default(),
        configuration_run: RunIndex(1),
        machine_name: "kv".into(),
        machine_version: 1,
        state_hash: [1; 32],
        sessions_hash: [2; 32],
    }
}

/// A file that begins with some bytes and goes on with zeros.
struct Source {
    begin: Vec<u8>,
    bytes: u64,
}

impl Source {
    fn whole(&self) -> Vec<u8> {
        let mut whole = self.begin.clone();
        whole.resize(self.bytes as usize, 0);
        whole
    }
}

impl SnapshotSource for Source {
    fn read(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let end = (offset + bytes as u64).min(self.bytes);
        Ok((offset..end).map(|at| self.begin.get(at as usize).copied().unwrap_or(0)).collect())
    }
}

fn offer(name: u8, total: u64) -> SnapshotOffer {
    SnapshotOffer { term: Term(3), total, hash: [name; 32], meta: meta() }
}

#[tokio::test]
async fn a_snapshot_streams_beside_the_heartbeats_in_either_direction() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..3).await;
            let begin: Vec<u8> = (0..5_000_000_u32).map(|at| (at / 7) as u8).collect();
            let source = Arc::new(Source { bytes: begin.len() as u64, begin });
            for (name, from, to) in [(1, 1, 2), (2, 2, 1), (3, 1, 2)] {
                let (sender, receiver) = (&meshes[from - 1].1, &meshes[to - 1].1);
                let link = sender.link(to as u16).await;
                link.send_snapshot(offer(name, source.bytes), Arc::clone(&source) as _).await.unwrap();
                assert_eq!(*receiver.received.borrow(), source.begin);
            }
            let nothing = Source { begin: Vec::new(), bytes: 0 };
            meshes[0].1.link(2).await.send_snapshot(offer(4, 0), Arc::new(nothing)).await.unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_snapshot_that_is_not_wanted_breaks_off_or_rots_says_so_and_the_next_one_passes() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..3).await;
            let (link, receiver) = (meshes[0].1.link(2).await, &meshes[1].1);
            let name = Cell::new(0);
            let send = |begin: &[u8], bytes, total| {
                name.set(name.get() + 1);
                link.send_snapshot(offer(name.get(), total), Arc::new(Source { begin: begin.to_vec(), bytes }))
            };
            let refused = |result, reason: &str| assert!(matches!(result, Err(SnapshotError::Refused(why)) if why == reason));

            *receiver.refuses.borrow_mut() = Some("busy with another".into());
            refused(send(b"", 10, 10).await, "busy with another");
            *receiver.refuses.borrow_mut() = None;
            refused(send(b"poison", 10 << 20, 10 << 20).await, "poisoned");
            refused(send(b"rotten", 10 << 20, 10 << 20).await, "does not verify");
            assert!(matches!(send(b"", 70_000, 100_000).await, Err(SnapshotError::Read(_))));

            // One at a time; a dropped one is taken back.
            let mut first = Box::pin(send(b"", 100 << 20, 100 << 20));
            assert!((&mut first).now_or_never().is_none());
            assert!(matches!(send(b"", 1, 1).await, Err(SnapshotError::Busy)));
            drop(first);
            send(b"fine", 100_000, 100_000).await.unwrap();
            assert_eq!(receiver.received.borrow().len(), 100_000);
        })
        .await;
}

#[tokio::test]
async fn a_snapshot_goes_on_where_its_link_broke_also_from_another_sender_and_another_file_begins_anew() {
    LocalSet::new()
        .run_until(async {
            let meshes = meshes(1..4).await;
            let receiver = &meshes[2].1;
            let begin: Vec<u8> = (0..12_000_000_u32).map(|at| (at / 11) as u8).collect();
            let source = Arc::new(Source { bytes: begin.len() as u64, begin });
            let mut had = 0;
            // Each of the two sends a part, and is cut off in the middle.
            for round in 0..4 {
                let link = meshes[round % 2].1.link(3).await;
                let sending = link.send_snapshot(offer(1, source.bytes), Arc::clone(&source) as _);
                let cutting = async {
                    receiver.until_received(had + (1 << 20)).await;
                    link.close("cut");
                };
                let (sent, ()) = timeout(PATIENCE, async { tokio::join!(sending, cutting) }).await.unwrap();
                assert!(matches!(sent, Err(SnapshotError::Unlinked)));
                link.ended().await;
                let has = receiver.received.borrow().len();
                assert!(has > had && source.begin.starts_with(&receiver.received.borrow()));
                had = has;
            }
            let link = meshes[0].1.link(3).await;
            link.send_snapshot(offer(1, source.bytes), Arc::clone(&source) as _).await.unwrap();
            assert_eq!(*receiver.received.borrow(), source.begin);
            let other = Arc::new(Source { begin: b"other".to_vec(), bytes: 1 << 20 });
            link.send_snapshot(offer(2, other.bytes), Arc::clone(&other) as _).await.unwrap();
            assert_eq!(*receiver.received.borrow(), other.whole());
        })
        .await;
}

#[tokio::test]
async fn a_snapshot_under_way_ends_with_its_link() {
    LocalSet::new()
        .run_until(async {
            let mut meshes = meshes(1..3).await;
            let link = meshes[0].1.link(2).await;
            let endless = Source { begin: Vec::new(), bytes: u64::MAX };
            let sending = link.send_snapshot(offer(1, u64::MAX), Arc::new(endless));
            let killing = async {
                meshes[1].1.until_received(1).await;
                drop(meshes.pop());
            };
            let (sent, ()) = timeout(PATIENCE, async { tokio::join!(sending, killing) }).await.unwrap();
            assert!(matches!(sent, Err(SnapshotError::Unlinked)));
            assert!(link.send(beat(1)).is_err() || meshes[0].1.seen.borrow().len() == 1);
        })
        .await;
}

#[tokio::test]
async fn without_a_secret_a_mesh_starts_on_loopback_only() {
    LocalSet::new()
        .run_until(async {
            let start = |listener, options| {
                Mesh::spawn_local(
                    os(),
                    Box::new(listener),
                    BTreeMap::new(),
                    Rc::new(Owner::default()) as Rc<dyn MeshOwner>,
                    options,
                )
                .map(drop)
            };
            let open = || MeshOptions { secret: None, ..options(2, 20) };
            let anywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
            assert!(matches!(start(anywhere, open()), Err(MeshStartError::Bind(_))));
            let (loopback, _) = listener().await;
            assert!(start(loopback, open()).is_ok());
            let mut hasty = options(2, 20);
            hasty.limits.silence_ms = 60;
            let (loopback, _) = listener().await;
            assert!(matches!(start(loopback, hasty), Err(MeshStartError::Silence { silence_ms: 60, keepalive_ms: 50 })));
        })
        .await;
}

#[tokio::test]
async fn runs_are_fetched_one_question_at_a_time_and_none_waits_for_ever() {
    LocalSet::new()
        .run_until(async {
            let mut meshes = meshes(1..3).await;
            let mut tail = Tail::zero(&IDENTITY);
            let entry = entry(&EntrySpec::internal(EntryKind::Command), &[7; 300]).unwrap();
            let runs: Vec<Run> = (0..5)
                .map(|_| {
                    let run = Run::seal(&tail, Term(1), TimeMs(1), Epoch(1), RoomId(0), &[&entry]).unwrap();
                    tail = run.header().tail();
                    run
                })
                .collect();
            *meshes[0].1.runs.borrow_mut() = Some(runs[2..].to_vec());
            let (first, last) = (runs[3].header().run, runs[4].header().run);
            let link = meshes[1].1.link(1).await;
            assert_eq!(link.fetch_runs(first, last, PATIENCE).await, Ok(runs[3..].to_vec()));
            let trimmed = link.fetch_runs(RunIndex(2), last, PATIENCE).await;
            assert_eq!(trimmed, Err(NoRuns::Trimmed { first: runs[2].header().run }));
            assert_eq!(link.fetch_runs(last.next(), last.next(), PATIENCE).await, Err(NoRuns::Absent));

            // The other way nobody answers.
            let link = meshes[0].1.link(2).await;
            let mut waiting = Box::pin(link.fetch_runs(first, last, PATIENCE));
            assert!((&mut waiting).now_or_never().is_none());
            assert_eq!(link.fetch_runs(first, last, PATIENCE).await, Err(NoRuns::NotYet), "one at a time");
            drop(waiting);
            assert_eq!(link.fetch_runs(first, last, Duration::from_millis(20)).await, Err(NoRuns::NotYet));
            let waiting = link.fetch_runs(first, last, PATIENCE);
            let killing = async { drop(meshes.pop()) };
            assert_eq!(tokio::join!(waiting, killing).0, Err(NoRuns::NotYet), "the link has ended");
        })
        .await;
}
