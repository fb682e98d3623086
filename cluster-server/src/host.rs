//! What a voter needs of the world around it: clocks, randomness, files, listeners, connections, and other threads for what blocks.
//!
//! Everything that a server does to the world goes through here, so that the very same server can run on a simulated one, where one
//! seed decides what happens. Waiting is the runtime's own (`tokio::time`), which a simulation pauses and moves on by itself.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;
use voter_mesh::ids::{Time, TimeMs};

use crate::disk::{FileSystem, OsFiles};

/// A connection's two directions of bytes, in order, until either side closes or breaks it.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A connection that was dialled or accepted.
pub type Stream = Box<dyn Transport>;

/// Bytes up to which what is to be written is put side by side first: to hand the system one slice is cheaper than several.
pub(crate) const JOINED_BYTES_MAX: usize = 2 << 10;

/// Where others dial.
pub trait Listener {
    /// The address that it really has.
    ///
    /// # Errors
    /// The system's.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection and where it came from.
    ///
    /// # Errors
    /// The system's: whoever was about to connect may be lost; the listener goes on.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>>;
}

impl Listener for TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>> {
        let (stream, address) = ready!(Self::poll_accept(self, cx))?;
        // Small frames matter more than few packets; a socket that cannot be told is about to break anyway.
        let _ = stream.set_nodelay(true);
        Poll::Ready(Ok((Box::new(stream), address)))
    }
}

/// What a [`Worker`] wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Another step at once.
    Again,
    /// A step when it is woken, or at this time if there is one.
    Wait(Option<Instant>),
    /// Nothing: it has ended.
    Done,
}

/// Work that blocks, on a thread of its own for as long as it lasts.
pub trait Worker: Send {
    /// Does what is there to do; may block for a disk, and for nothing else.
    fn step(&mut self) -> Step;
}

/// A [`Worker`] at work. Dropping it wakes the worker and waits until it is done, which whoever drops it has told it to be.
pub trait WorkerHandle: fmt::Debug {
    /// Makes it step soon. What was shared with it before is seen by that step.
    fn wake(&self);
}

/// The world of one voter, used from its own thread.
pub trait Host {
    /// The voter's clocks. The monotonic one starts anywhere and may run fast or slow; the wall clock may jump.
    fn now(&self) -> Time;

    /// When this time comes, as the runtime's timers count.
    fn instant(&self, at: Time) -> Instant;

    /// Fills `bytes` with random bits fit for secrets.
    fn fill_random(&self, bytes: &mut [u8]);

    /// The file system that the data directory lies on.
    fn files(&self) -> Arc<dyn FileSystem>;

    /// Dials `HOST:PORT`. Whoever asks brings the deadline.
    fn connect(&self, address: &str) -> LocalBoxFuture<'static, io::Result<Stream>>;

    /// Runs what blocks on another thread, some time soon. At most a handful at a time; the others wait. A panic of it is caught.
    fn run(&self, work: Box<dyn FnOnce() + Send>);

    /// Gives a worker a thread of its own.
    ///
    /// # Errors
    /// If the system has none to give. The worker is dropped then.
    fn start(&self, name: &str, worker: Box<dyn Worker>) -> io::Result<Box<dyn WorkerHandle>>;
}

/// Eight random bytes of this host as a number.
pub(crate) fn random_u64(host: &dyn Host) -> u64 {
    let mut bytes = [0; 8];
    host.fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Runs on another thread what may take its time, and gives its result, or the words of its panic.
pub(crate) fn elsewhere<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    host: &dyn Host,
    work: F,
) -> impl Future<Output = Result<T, String>> + use<T, F> {
    let (done, result) = oneshot::channel();
    host.run(Box::new(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // Whoever waited may have gone.
        let _ = done.send(ended.map_err(|panic| panic_text(panic.as_ref())));
    }));
    async move { result.await.unwrap_or_else(|_| Err("the server is stopping".to_owned())) }
}

/// The words of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked without words".into())
}

/// The next connection.
pub(crate) async fn accept(listener: &mut dyn Listener) -> io::Result<(Stream, SocketAddr)> {
    std::future::poll_fn(|cx| listener.poll_accept(cx)).await
}

/// The real world. Connections and [`Host::run`] need a tokio runtime around them.
#[derive(Debug)]
pub struct OsHost {
    origin: Instant,
}

impl OsHost {
    /// Its monotonic clock begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for OsHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for OsHost {
    /// A wall clock before 1970 counts as 1970.
    fn now(&self) -> Time {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { monotonic_us: self.origin.elapsed().as_micros() as u64, unix_ms: TimeMs(unix.as_millis() as u64) }
    }

    fn instant(&self, at: Time) -> Instant {
        self.origin + Duration::from_micros(at.monotonic_us)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        os_random(bytes);
    }

    fn files(&self) -> Arc<dyn FileSystem> {
        Arc::new(OsFiles)
    }

    fn connect(&self, address: &str) -> LocalBoxFuture<'static, io::Result<Stream>> {
        let address = address.to_owned();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        }
        .boxed_local()
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }

    fn start(&self, name: &str, worker: Box<dyn Worker>) -> io::Result<Box<dyn WorkerHandle>> {
        OsWorker::start(name, worker).map(|worker| Box::new(worker) as Box<dyn WorkerHandle>)
    }
}

/// Fills `bytes` from the operating system; without its random bits nothing here is safe, so their lack ends the process.
pub(crate) fn os_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bits");
}

/// A thread that parks between two steps.
#[derive(Debug)]
struct OsWorker(Option<thread::JoinHandle<()>>);

impl OsWorker {
    fn start(name: &str, mut worker: Box<dyn Worker>) -> io::Result<Self> {
        let work = move || {
            loop {
                match worker.step() {
                    Step::Again => {}
                    // A wake that came since the step began makes this return at once.
                    Step::Wait(None) => thread::park(),
                    Step::Wait(Some(at)) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                    Step::Done => return,
                }
            }
        };
        Ok(Self(Some(thread::Builder::new().name(name.into()).spawn(work)?)))
    }
}

impl WorkerHandle for OsWorker {
    fn wake(&self) {
        if let Some(thread) = &self.0 {
            thread.thread().unpark();
        }
    }
}

impl Drop for OsWorker {
    fn drop(&mut self) {
        self.wake();
        if let Some(thread) = self.0.take() {
            // A panic there is a bug of the worker, and what it owed its owner will not come.
            let _ = thread.join();
        }
    }
}
