//! Thousands of readers in this process: each a socket, a learner that checks every run against the chain, and nothing else. No client
//! core, no buffer while nothing comes: ten thousand of them must not be what is measured.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use relay::wire::{ClientFrame, FeedMode, Hello, PROTOCOL_VERSION, ServerFrame, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use voter_mesh::ids::{Identity, RoomId};
use voter_mesh::learner::Learner;

use super::stage::PATIENCE_MS;
use crate::attach::Endpoint;
use crate::closed_loop::{histogram, record};
use crate::output::Failure;

/// Watchers that attach at once.
const ATTACHING_MAX: usize = 32;

/// Bytes that one read may take; held only until they are understood.
const READ_BYTES: usize = 64 << 10;

/// Steps in which all watchers are pinged once, so that they do not ping all at once.
const PING_STEPS: u32 = 90;

/// Bytes at the front of a watched command: when its proposal began, in nanoseconds since the crowd's beginning.
const STAMP_BYTES: usize = 8;

/// What all watchers saw together.
pub(super) struct Seen {
    /// Effective commands, counted once for each watcher.
    pub(super) deliveries: u64,
    /// When the last one came.
    pub(super) last: Instant,
    /// From the start of the proposal.
    pub(super) delays: Histogram<u64>,
    /// Why the first watcher ended that did.
    failed: Option<String>,
}

/// The watchers. They end when this is dropped.
pub(super) struct Watchers {
    begin: Instant,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    // Whoever panicked with it left figures behind, not invariants.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchers {
    /// Attaches `count` watchers, the i-th to the i-th endpoint (in turn).
    pub(super) async fn attach(endpoints: &[Endpoint], count: usize) -> Result<Self, Failure> {
        let begin = Instant::now();
        let attaching = futures_util::stream::iter(0..count).map(|number| async move {
            let endpoint = &endpoints[number % endpoints.len()];
            let attached = tokio::time::timeout(Duration::from_millis(PATIENCE_MS), Watcher::attach(endpoint)).await;
            attached
                .unwrap_or_else(|_| Err("no admission in time".to_owned()))
                .map_err(|error| Failure::failed(format!("watcher {number} cannot attach to {endpoint}: {error}")))
        });
        let attached: Vec<Attached> = attaching.buffered(ATTACHING_MAX).try_collect().await?;
        let silence = attached.iter().map(|attached| attached.silence).min();
        let (watchers, writers): (Vec<_>, Vec<_>) = attached.into_iter().map(|one| (one.watcher, one.writer)).unzip();
        let seen = Seen { deliveries: 0, last: begin, delays: histogram()?, failed: None };
        let seen = Arc::new(Mutex::new(seen));
        let mut tasks = JoinSet::new();
        if let Some(silence) = silence {
            tasks.spawn(ping(writers, silence));
        }
        for watcher in watchers {
            tasks.spawn(watcher.follow(begin, Arc::clone(&seen)));
        }
        Ok(Self { begin, seen, _tasks: tasks })
    }

    /// A command of `bytes` bytes whose proposal began at `start`.
    pub(super) fn stamped(&self, start: Instant, bytes: usize) -> Bytes {
        let mut payload = vec![b'x'; bytes.max(STAMP_BYTES)];
        let nanos = start.duration_since(self.begin).as_nanos() as u64;
        payload[..STAMP_BYTES].copy_from_slice(&nanos.to_le_bytes());
        payload.into()
    }

    /// Forgets what was seen so far.
    pub(super) fn reset(&self) {
        let mut seen = lock(&self.seen);
        seen.deliveries = 0;
        seen.delays.reset();
    }

    /// Looks at what was seen.
    ///
    /// # Errors
    /// If a watcher has ended: what the others saw is no measurement.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> Result<T, Failure> {
        let seen = lock(&self.seen);
        match &seen.failed {
            Some(why) => Err(Failure::failed(format!("a watcher ended: {why}"))),
            None => Ok(look(&seen)),
        }
    }
}

/// Says a word on each link within `silence`, as long as the watchers live; a link on which nothing is said is closed.
async fn ping(writers: Vec<OwnedWriteHalf>, silence: Duration) {
    let Ok(ping) = message(&ClientFrame::Ping { nonce: 0 }) else { return };
    loop {
        for some in writers.chunks(writers.len().div_ceil(PING_STEPS as usize)) {
            for writer in some {
                // Whoever does not take these few bytes has failed already, and says so itself.
                let _ = writer.try_write(&ping);
            }
            tokio::time::sleep(silence / PING_STEPS).await;
        }
    }
}

/// A frame as a WebSocket message of a client.
fn message(frame: &ClientFrame) -> Result<Vec<u8>, String> {
    let body = frame.encode();
    // A client must mask, and this mask leaves every byte as it is.
    let header = FrameHeader { opcode: OpCode::Data(Data::Binary), mask: Some([0; 4]), ..FrameHeader::default() };
    let mut message = Vec::new();
    header.format(body.len() as u64, &mut message).map_err(|error| error.to_string())?;
    message.extend_from_slice(&body);
    Ok(message)
}

/// A WebSocket of which nothing is kept but what the TCP connection reads and what is not a whole message yet.
struct Socket {
    reader: OwnedReadHalf,
    rest: BytesMut,
}

impl Socket {
    async fn connect(endpoint: &Endpoint) -> Result<(Self, OwnedWriteHalf), String> {
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let upgraded = tokio_tungstenite::client_async(endpoint.as_str(), stream).await;
        // A server says nothing before the hello, so nothing is lost with tungstenite's buffer.
        let mut stream = upgraded.map_err(|error| error.to_string())?.0.into_inner();
        let hello = Hello {
            version: PROTOCOL_VERSION,
            cluster: None,
            epoch: None,
            room: endpoint.room().to_owned(),
            auth: Vec::new(),
            state_machine: None,
            session: None,
            resume: None,
            feed: FeedMode::Full,
            unanswered: Vec::new(),
            partial: None,
        };
        stream.write_all(&message(&ClientFrame::Hello(hello))?).await.map_err(|error| error.to_string())?;
        let (reader, writer) = stream.into_split();
        Ok((Self { reader, rest: BytesMut::new() }, writer))
    }

    /// Reads what has come.
    async fn read(&mut self) -> Result<(), String> {
        self.reader.readable().await.map_err(|error| error.to_string())?;
        self.rest.reserve(READ_BYTES);
        match self.reader.read_buf(&mut self.rest).await {
            Ok(0) => Err("the connection ended".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The next whole message of what was read.
    fn frame(&mut self) -> Result<Option<Bytes>, String> {
        let mut cursor = Cursor::new(&self.rest[..]);
        let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|error| error.to_string())? else { return Ok(None) };
        let (head, length) = (cursor.position() as usize, length as usize);
        if header.opcode != OpCode::Data(Data::Binary) || !header.is_final {
            return Err(format!("{:?}", header.opcode));
        }
        if self.rest.len() < head + length {
            return Ok(None);
        }
        let mut frame = self.rest.split_to(head + length).freeze();
        Ok(Some(frame.split_off(head)))
    }
}

struct Watcher {
    socket: Socket,
    learner: Learner,
}

/// A watcher that was let in.
struct Attached {
    watcher: Watcher,
    /// For signs of life.
    writer: OwnedWriteHalf,
    /// After which silence the server wants one.
    silence: Duration,
}

impl Watcher {
    /// Connects and is let in.
    async fn attach(endpoint: &Endpoint) -> Result<Attached, String> {
        let (mut socket, writer) = Socket::connect(endpoint).await?;
        let first = loop {
            socket.read().await?;
            if let Some(frame) = socket.frame()? {
                break frame;
            }
        };
        match ServerFrame::decode(&first).map_err(|error| error.to_string())? {
            ServerFrame::Admit(admit) => {
                // Where the feed begins with a snapshot, that one says where the learner stands.
                let identity = Identity { cluster: admit.cluster, epoch: admit.epoch, room: RoomId(0) };
                let silence = Duration::from_millis(admit.limits.ping_ms.into());
                Ok(Attached { watcher: Self { socket, learner: Learner::new(&identity) }, writer, silence })
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// Follows the feed until something is wrong.
    async fn follow(mut self, begin: Instant, seen: Arc<Mutex<Seen>>) {
        loop {
            let taken = match self.take(begin, &seen) {
                Ok(()) => self.socket.read().await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                lock(&seen).failed.get_or_insert(error);
                return;
            }
        }
    }

    /// Applies all whole messages that were read.
    fn take(&mut self, begin: Instant, seen: &Mutex<Seen>) -> Result<(), String> {
        let (now, mut seen) = (Instant::now(), lock(seen));
        while let Some(mut frame) = self.socket.frame()? {
            if frame.first() == Some(&kind::FEED) {
                let mut blocks = frame.split_off(1);
                let applied = self.learner.apply_blocks(&mut blocks, &mut (), &mut |command| {
                    seen.deliveries += 1;
                    if let Some(stamp) = command.payload.first_chunk() {
                        let start = begin + Duration::from_nanos(u64::from_le_bytes(*stamp));
                        record(&mut seen.delays, now.saturating_duration_since(start));
                    }
                });
                applied.map_err(|error| error.to_string())?;
                seen.last = now;
                continue;
            }
            match ServerFrame::decode(&frame).map_err(|error| error.to_string())? {
                ServerFrame::Snapshot(chunk) => self.learner = Learner::at(chunk.index, chunk.chain),
                ServerFrame::Start(_) | ServerFrame::Pong { .. } => {}
                other => return Err(format!("{other:?}")),
            }
        }
        // Ten thousand empty buffers are not kept.
        if self.socket.rest.is_empty() {
            self.socket.rest = BytesMut::new();
        }
        Ok(())
    }
}
