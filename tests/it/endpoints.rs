//! Endpoints that will not do: each says so in a type, and the client goes on to the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster_client::core::CoreLimits;
use cluster_client::{ClusterClient, ConnectError, Consistency, LinkError, ProposeError, Status, Unresolved};
use futures_util::{SinkExt, StreamExt};
use relay::wire::{Admit, ClientFrame, Code, FeedMode, Hello, ServerFrame, SessionStatus, Start};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::ids::{Epoch, LogIndex};
use voter_mesh::machine::{MachineFactory, kv};

use crate::harness::{PATIENCE, eventually};
use crate::here::{client_of, counted, live, raw, shutdown, started, url, voters};
use crate::peer::{Peer, hello};
use crate::proxy::{Flow, Proxy};
use crate::tally::Tally;

type Answer = Arc<dyn Fn(&Hello) -> ServerFrame + Send + Sync>;

/// A server that answers every hello in its own way and says no more, or that says nothing at all.
struct Fake {
    address: SocketAddr,
    met: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Fake {
    async fn silent() -> Self {
        Self::new(None).await
    }

    async fn refusing(code: Code) -> Self {
        Self::new(Some(Arc::new(move |_| ServerFrame::Refuse { code, retry_after_ms: None }))).await
    }

    async fn new(answer: Option<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, met, mut tasks) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let counter = Arc::clone(&met);
        tasks.spawn(async move {
            let mut guests = JoinSet::new();
            loop {
                let stream = listener.accept().await.unwrap().0;
                counter.fetch_add(1, Ordering::Relaxed);
                guests.spawn(greet(stream, answer.clone()));
            }
        });
        Self { address, met, _tasks: tasks }
    }

    fn url(&self) -> String {
        format!("ws://{}/rooms/main", self.address)
    }
}

async fn greet(stream: TcpStream, answer: Option<Answer>) {
    let Some(answer) = answer else {
        std::future::pending::<()>().await;
        return drop(stream);
    };
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let Some(Ok(Message::Binary(bytes))) = socket.next().await else { return };
    let Ok(ClientFrame::Hello(hello)) = ClientFrame::decode(&bytes) else { return };
    let answer = answer(&hello);
    let refused = matches!(answer, ServerFrame::Refuse { .. });
    let _ = socket.send(Message::Binary(answer.encode())).await;
    if refused {
        let _ = socket.close(None).await;
    }
    while let Some(Ok(_)) = socket.next().await {}
}

/// A short handshake, for servers that never answer.
fn limits() -> CoreLimits {
    CoreLimits { handshake_ms: 500, ..CoreLimits::default() }
}

/// Waits until a client that had a server says that the next one refuses it.
async fn refused<M>(client: &ClusterClient<M>, code: Code) {
    let mut status = client.status();
    let told = status.wait_for(
        |status| matches!(status, Status::FailingOver { last_error: Some(LinkError::Refused(told)), .. } if *told == code),
    );
    drop(tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap());
}

/// An endpoint alone is an error in a type that says why; with a good one behind it, the client is live.
async fn refused_then_elsewhere(bad: String, expected: impl Fn(&LinkError) -> bool) {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let alone = client_of(std::slice::from_ref(&bad)).limits(limits()).state(Tally::default()).start().unwrap();
    let mut status = alone.status();
    let told = status.wait_for(|status| match status {
        Status::Connecting { attempt, last_error: Some(error) } => {
            assert!(expected(error), "{error:?}");
            // It goes on trying.
            *attempt >= 3
        }
        Status::Connecting { .. } => false,
        other => panic!("{other:?}"),
    });
    drop(tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap());
    alone.close().await;
    let builder = client_of(&[bad, url(&cluster, cluster.seats()[0])]).limits(limits());
    let client = builder.state(Tally::default()).connect().await.unwrap();
    assert_eq!(client.propose(&"command".to_owned()).await.unwrap().reply, 1);
    shutdown(cluster).await;
}

#[tokio::test]
async fn an_endpoint_that_is_down() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    refused_then_elsewhere(format!("ws://{nobody}/rooms/main"), |error| matches!(error, LinkError::Unreachable(_))).await;
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_says_nothing() {
    let silent = Fake::silent().await;
    refused_then_elsewhere(silent.url(), |error| *error == LinkError::HandshakeTimeout).await;
    assert!(silent.met.load(Ordering::Relaxed) >= 3);
}

#[tokio::test]
async fn an_endpoint_that_speaks_another_version() {
    let other = Fake::refusing(Code::Version).await;
    refused_then_elsewhere(other.url(), |error| *error == LinkError::Refused(Code::Version)).await;
}

#[tokio::test]
async fn an_endpoint_with_another_room() {
    let directory = tempfile::tempdir().unwrap();
    let other = started(voters(1, directory.path()).room("other")).await;
    let url = url(&other, other.seats()[0]).replace("/rooms/other", "/rooms/main");
    refused_then_elsewhere(url, |error| *error == LinkError::Refused(Code::UnknownRoom)).await;
    shutdown(other).await;
}

#[tokio::test]
async fn an_endpoint_with_another_state_machine() {
    let directory = tempfile::tempdir().unwrap();
    let other = started(voters(1, directory.path()).machine(kv::factory())).await;
    refused_then_elsewhere(url(&other, other.seats()[0]), |error| *error == LinkError::Refused(Code::StateMachine)).await;
    shutdown(other).await;
}

#[tokio::test]
async fn another_cluster_behind_the_next_endpoint_is_refused_until_the_own_one_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut own = started(voters(1, &directory.path().join("own"))).await;
    let other = started(voters(1, &directory.path().join("other"))).await;
    let seat = own.seats()[0];
    let client = raw(&[url(&own, seat), url(&other, seat)]).await;
    let index = client.propose(&"before".into()).await.unwrap().index;
    own.stop_voter(seat).await;
    let mut status = client.status();
    let told =
        status.wait_for(|status| matches!(status, Status::FailingOver { last_error: Some(LinkError::Refused(Code::Cluster)), .. }));
    drop(tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap());
    own.start_voter(seat).await.unwrap();
    assert!(client.propose(&"after".into()).await.unwrap().index > index);
    assert_eq!(other.status(seat).await.unwrap().sessions, 0);
    shutdown(own).await;
    shutdown(other).await;
}

#[tokio::test]
async fn another_epoch_drops_state_and_session_and_says_that_what_was_in_flight_is_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let here = url(&cluster, cluster.seats()[0]);
    let (_, admit) = Peer::admitted(&here, hello(FeedMode::Thin)).await;
    // The same cluster, restored from a backup before anything was committed.
    let (epoch, commit, start) = (Epoch(admit.epoch.0 + 1), LogIndex::ZERO, Start::Tail(LogIndex::FIRST));
    let anew = Admit { epoch, commit, start, session: SessionStatus::None, ..admit };
    let restored = Fake::new(Some(Arc::new(move |hello| match hello.epoch {
        Some(old) if old != epoch => ServerFrame::Refuse { code: Code::Epoch, retry_after_ms: None },
        _ => ServerFrame::Admit(anew.clone()),
    })))
    .await;
    let proxy = Proxy::before(&here).await;
    let client = client_of(&[proxy.url(&here), restored.url()]).limits(limits()).state(Tally::default()).connect().await.unwrap();
    client.propose(&"before".to_owned()).await.unwrap();
    let reserved = client.reserve().await.unwrap();
    proxy.set(Flow::HoldReplies);
    let pending = tokio::spawn(client.propose(&"during".to_owned()).into_future());
    counted(&cluster, cluster.seats()[0], "proposals", 2).await;
    assert_eq!(client.read(Consistency::Local, Tally::total).await.unwrap(), 1);
    // The link ends, and the next endpoint is the restored server.
    drop(proxy);
    match pending.await.unwrap() {
        Err(ProposeError::Unknown { reason: Unresolved::Epoch, .. }) => {}
        other => panic!("{other:?}"),
    }
    eventually("the state dropped", || async { (client.read(Consistency::Local, Tally::total).await.unwrap() == 0).then_some(()) })
        .await;
    assert_eq!(client.propose_as(&reserved, &"late".to_owned()).await, Err(ProposeError::ForeignTicket));
    shutdown(cluster).await;
}

#[tokio::test]
async fn an_endpoint_of_another_epoch_that_cannot_show_a_newer_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(1, directory.path()).machine(MachineFactory::of(Tally::default))).await;
    let (seat, here) = (cluster.seats()[0], url(&cluster, cluster.seats()[0]));
    let older = Fake::refusing(Code::Epoch).await;
    let client = client_of(&[here, older.url()]).limits(limits()).state(Tally::default()).connect().await.unwrap();
    client.propose(&"before".to_owned()).await.unwrap();
    let session = client.reserve().await.unwrap().session;
    cluster.stop_voter(seat).await;
    refused(&client, Code::Epoch).await;
    assert_eq!(client.read(Consistency::Local, Tally::total).await.unwrap(), 1);
    cluster.start_voter(seat).await.unwrap();
    live(&client).await;
    assert_eq!(client.reserve().await.unwrap().session, session);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_client_that_nobody_lets_in_before_its_deadline_says_what_the_last_link_met() {
    let other = Fake::refusing(Code::Overloaded).await;
    let builder = client_of(&[other.url()]).deadline(Duration::from_millis(300));
    match builder.raw().connect().await {
        Err(ConnectError::Deadline { last_error: Some(LinkError::Refused(Code::Overloaded)) }) => {}
        other => panic!("{other:?}"),
    }
    // It backed off: a client that hammers would have come thousands of times.
    assert!((2..100).contains(&other.met.load(Ordering::Relaxed)), "{:?}", other.met);
}

#[tokio::test]
async fn a_client_that_starts_before_its_servers_is_live_when_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = started(voters(1, directory.path())).await;
    let (seat, here) = (cluster.seats()[0], url(&cluster, cluster.seats()[0]));
    cluster.stop_voter(seat).await;
    let client = client_of(&[here]).raw().start().unwrap();
    let pending = tokio::spawn(client.propose(&"early".into()).into_future());
    eventually("dials that failed", || async {
        matches!(*client.status().borrow(), Status::Connecting { attempt, .. } if attempt >= 2).then_some(())
    })
    .await;
    cluster.start_voter(seat).await.unwrap();
    live(&client).await;
    assert!(!pending.await.unwrap().unwrap().repeat);
    shutdown(cluster).await;
}
