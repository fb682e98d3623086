//! A TCP proxy in front of a server, so that a story decides what gets through: the network as a test needs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::eventually;

/// What gets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Everything.
    Open,
    /// What the client says; what the server says waits.
    HoldReplies,
    /// Nothing, as if the server were stopped: connections stay, new ones are accepted.
    Stalled,
    /// Nothing; every connection ends, and a new one at once.
    Cut,
}

/// Dropping it cuts all of its connections.
pub struct Proxy {
    address: SocketAddr,
    flow: watch::Sender<Flow>,
    lets_in: Arc<AtomicBool>,
    reply_bytes_max: Arc<AtomicUsize>,
    standing: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy in front of the server of a `ws://HOST:PORT/...` URL.
    pub async fn before(url: &str) -> Self {
        Self::to(authority(url)).await
    }

    /// A proxy in front of `HOST:PORT`.
    pub async fn to(target: &str) -> Self {
        let target = target.parse::<SocketAddr>().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (flow, flows) = watch::channel(Flow::Open);
        let lets_in = Arc::new(AtomicBool::new(true));
        let reply_bytes_max = Arc::new(AtomicUsize::new(usize::MAX));
        let standing = Arc::new(AtomicUsize::new(0));
        let bound = Arc::clone(&reply_bytes_max);
        let (door, count) = (Arc::clone(&lets_in), Arc::clone(&standing));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let client = listener.accept().await.unwrap().0;
                if door.load(Ordering::Relaxed) {
                    let (flow, count) = (flows.clone(), Arc::clone(&count));
                    let bytes_max = bound.load(Ordering::Relaxed);
                    connections.spawn(async move {
                        count.fetch_add(1, Ordering::Relaxed);
                        connection(client, target, flow, bytes_max).await;
                        count.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }
        });
        Self { address, flow, lets_in, reply_bytes_max, standing, _tasks: tasks }
    }

    /// Its own `HOST:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The server's URL through here.
    pub fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Ends every connection; new ones get through again.
    pub async fn flap(&self) {
        assert_ne!(self.standing.load(Ordering::Relaxed), 0, "nothing to cut");
        self.set(Flow::Cut);
        eventually("all connections cut", || async { (self.standing.load(Ordering::Relaxed) == 0).then_some(()) }).await;
        self.set(Flow::Open);
    }

    /// Connections made from now on are cut when the server has said this much on them.
    pub fn cut_after(&self, reply_bytes_max: Option<usize>) {
        self.reply_bytes_max.store(reply_bytes_max.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Whether new connections get through, or are cut at once; those that stand go on.
    pub fn let_in(&self, lets_in: bool) {
        self.lets_in.store(lets_in, Ordering::Relaxed);
    }
}

fn authority(url: &str) -> &str {
    url.strip_prefix("ws://").unwrap().split('/').next().unwrap()
}

async fn connection(client: TcpStream, target: SocketAddr, flow: watch::Receiver<Flow>, reply_bytes_max: usize) {
    let mut cuts = flow.clone();
    let cut = passes(&mut cuts, |flow| flow == Flow::Cut);
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Whichever side ends first ends the other, as one broken connection would.
    tokio::select! {
        () = requests(from_client, to_server, flow.clone()) => {}
        () = replies(from_server, to_client, flow.clone(), reply_bytes_max) => {}
        _ = cut => {}
    }
}

/// Waits until the flow is so; false if the story is over.
async fn passes(flow: &mut watch::Receiver<Flow>, so: impl Fn(Flow) -> bool) -> bool {
    flow.wait_for(|flow| so(*flow)).await.is_ok()
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        if count == 0 || !passes(&mut flow, |flow| flow != Flow::Stalled).await || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Reads on while it holds back, so that it notices when the server ends.
async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>, mut bytes_left: usize) {
    let (mut buffer, mut held) = (vec![0; 16 << 10], Vec::new());
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(count) if count > 0 => held.extend_from_slice(&buffer[..count]),
                _ => return,
            },
            open = passes(&mut flow, |flow| flow == Flow::Open), if !held.is_empty() => {
                held.truncate(bytes_left);
                if !open || to.write_all(&held).await.is_err() || held.len() == bytes_left {
                    return;
                }
                bytes_left -= held.len();
                held.clear();
            }
        }
    }
}
