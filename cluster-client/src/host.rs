//! What a client needs of the world around it: randomness, connections, another thread for what blocks, and a place for its task.
//!
//! Everything that a client does to the world goes through here and through [`crate::journal::JournalFiles`], so that the very same
//! client can run on a simulated one, where one seed decides what happens. Waiting is the runtime's own (`tokio::time`), which a
//! simulation pauses and moves on by itself. One thing is drawn elsewhere: the WebSocket's handshake key and masks, whose values change
//! nothing but bytes that the other side undoes.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A connection's two directions of bytes, in order, until either side closes or breaks it.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A connection that was dialled.
pub type Stream = Box<dyn Transport>;

/// The world of one client, used from its own task.
pub trait Host: Send + Sync {
    /// Fills `bytes` with random bits fit for secrets.
    ///
    /// # Errors
    /// There are none to be had. A client is not made then; one that has begun must not go on, and panics.
    fn fill_random(&self, bytes: &mut [u8]) -> io::Result<()>;

    /// Dials `HOST:PORT`. Whoever asks brings the deadline.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>>;

    /// Runs what blocks on another thread, some time soon. One at a time is asked for. A panic of it is caught.
    fn run(&self, work: Box<dyn FnOnce() + Send>);

    /// Drives the client's task until it ends. Dropping the task is the client's crash: nothing more is sent or journaled, and every
    /// waiting call is answered.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// Runs on another thread what may take its time, and gives its result, or the words of its panic.
pub(crate) fn elsewhere<T: Send + 'static>(
    host: &dyn Host,
    work: impl FnOnce() -> T + Send + 'static,
) -> BoxFuture<'static, Result<T, String>> {
    let (done, result) = oneshot::channel();
    host.run(Box::new(move || {
        let ended = catch_unwind(AssertUnwindSafe(work));
        // Whoever waited may have gone.
        let _ = done.send(ended.map_err(|panic| panic_text(panic.as_ref())));
    }));
    async move { result.await.unwrap_or_else(|_| Err("the client's runtime is stopping".to_owned())) }.boxed()
}

/// The words of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked without words".to_owned())
}

/// The real world, for a client inside a tokio runtime.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OsHost;

impl Host for OsHost {
    fn fill_random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let address = address.to_owned();
        async move {
            let stream = TcpStream::connect(address).await?;
            // Small frames matter more than few packets.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        }
        .boxed()
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}
