//! How links come to be: accepting, dialling, and the I/O of the handshake.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use voter_mesh::ids::{Identity, Incarnation, RaftId, Seat};
use voter_mesh::mesh::codec::{CodecError, Control, decode, split_frame};
use voter_mesh::mesh::handshake::{
    Accepting, Dialling, HANDSHAKE_FRAME_BYTES_MAX, HandshakeError, Hello, LinkKind, PeerHello, Proven, Refusal,
};
use voter_mesh::mesh::links::{Disconnect, LinkName};

use super::Inner;
use super::bulk;
use super::connection::Connection;
use super::link::Link;
use crate::host::{self, Host, Listener, Stream, random_u64};

/// How long a server leaves it to a lower seat to dial.
const LOWER_DIALS: Duration = Duration::from_secs(2);

/// The end of the first random wait before a redial; it doubles from there.
const REDIAL_FIRST_MS: u64 = 50;

/// How long accepting pauses when the system gives no socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why two servers did not meet.
#[derive(Debug, Error)]
enum MeetError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("it took too long")]
    Timeout,
}

impl From<CodecError> for MeetError {
    fn from(error: CodecError) -> Self {
        Self::Handshake(error.into())
    }
}

impl MeetError {
    fn name(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Timeout => "timeout",
            Self::Handshake(HandshakeError::Malformed(_)) => "malformed",
            Self::Handshake(HandshakeError::Refuse(refusal) | HandshakeError::Refused(refusal)) => refusal.name(),
        }
    }
}

/// What this server said of itself in a handshake.
type Said = (Option<RaftId>, Option<Identity>);

/// Reads the next frame of a handshake.
async fn read_frame(stream: &mut Stream, received: &mut BytesMut) -> Result<Bytes, MeetError> {
    loop {
        if let Some(frame) = split_frame(received, HANDSHAKE_FRAME_BYTES_MAX)? {
            return Ok(frame);
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Accepts for as long as it is not aborted.
pub(super) async fn accept(inner: Rc<Inner>, mut listener: Box<dyn Listener>) {
    loop {
        match host::accept(&mut *listener).await {
            Ok(_) if inner.handshakes.get() >= inner.options.limits.handshakes_max => inner.failed("over_limit"),
            Ok((stream, address)) => {
                let taken = Handshaking::new(&inner);
                let task = async move {
                    if let Err(error) = Rc::clone(&taken.0).accepted(stream, taken).await {
                        tracing::debug!(%address, %error, "mesh connection not taken");
                    }
                };
                inner.spawn(task);
            }
            Err(error) => {
                tracing::warn!(%error, "mesh listener cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One of the handshakes that are under way at once.
struct Handshaking(Rc<Inner>);

impl Handshaking {
    fn new(inner: &Rc<Inner>) -> Self {
        inner.handshakes.set(inner.handshakes.get() + 1);
        Self(Rc::clone(inner))
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// Dials a seat for as long as it is not aborted. A lower one dials by itself, unless it has not heard of this server yet: a server that is
/// behind may need a vote of one that was let in since, or the other way round.
pub(super) async fn dial(inner: Rc<Inner>, seat: Seat, address: String) {
    let is_lower = seat < inner.options.seat;
    let mut backoff = Backoff::new(&inner);
    loop {
        if is_lower {
            sleep(LOWER_DIALS).await;
        }
        let live = inner.live.borrow().get(&seat).cloned();
        if let Some(link) = live {
            link.ended().await;
            backoff = Backoff::new(&inner);
        } else if let Err(error) = inner.dial_link(seat, &address).await {
            tracing::debug!(%seat, %address, %error, "mesh dial failed");
        } else {
            continue;
        }
        sleep(backoff.next()).await;
    }
}

/// Waits between dials: full jitter, doubling.
struct Backoff {
    host: Rc<dyn Host>,
    min_ms: u64,
    max_ms: u64,
    end_ms: Cell<u64>,
}

impl Backoff {
    fn new(inner: &Inner) -> Self {
        let limits = &inner.options.limits;
        Self {
            host: Rc::clone(&inner.host),
            min_ms: limits.redial_min_ms,
            max_ms: limits.redial_max_ms,
            end_ms: Cell::new(REDIAL_FIRST_MS),
        }
    }

    fn next(&self) -> Duration {
        let end_ms = self.end_ms.get().min(self.max_ms).max(self.min_ms);
        self.end_ms.set(end_ms.saturating_mul(2));
        let random = random_u64(&*self.host);
        Duration::from_millis(self.min_ms + random % (end_ms - self.min_ms + 1))
    }
}

impl Inner {
    /// The acceptor's side of one connection, from its first byte to its end.
    async fn accepted(self: Rc<Self>, mut stream: Stream, taken: Handshaking) -> Result<(), MeetError> {
        let mut received = BytesMut::with_capacity(1024);
        let met = timeout(self.deadline(), async { self.accept_handshake(&mut stream, &mut received).await });
        let (proven, said) = met.await.unwrap_or(Err(MeetError::Timeout)).inspect_err(|error| self.failed(error.name()))?;
        let welcome = proven.verdict(&Ok(()))?;
        let peer = proven.peer();
        let judged = proven.judge().and_then(|()| match peer.kind {
            // Whom this side dials waits for that.
            LinkKind::Consensus if peer.from.seat > self.options.seat && self.dialling.borrow().contains_key(&peer.from.seat) => {
                Err(Refusal::Seat)
            }
            LinkKind::Consensus => self.admit(&peer.from, (peer.dial, false), said).map(Admitted::Link),
            LinkKind::Bulk => {
                let live = self.live.borrow().get(&peer.from.seat).cloned();
                let live = live.filter(|link| link.name().incarnation == peer.from.incarnation && !link.has_ended());
                live.map(Admitted::Bulk).ok_or(Refusal::NoLink)
            }
        });
        let admitted = match judged {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.failed(refusal.name());
                let verdict = proven.verdict(&Err(refusal.clone()))?;
                let _ = timeout(self.deadline(), stream.write_all(&verdict)).await;
                return Err(HandshakeError::Refuse(refusal).into());
            }
        };
        drop(taken);
        match admitted {
            Admitted::Link((link, replaced)) => {
                // The verdict goes before anything that the owner sends.
                link.connection().push(welcome);
                self.up(&link, replaced);
                self.run_link(link, stream, received).await;
            }
            Admitted::Bulk(link) => {
                let connection = Connection::new(self.options.limits, Rc::clone(&self.counters));
                connection.push(welcome);
                bulk::run(&self, &link, connection, stream, received).await;
            }
        }
        Ok(())
    }

    async fn accept_handshake(&self, stream: &mut Stream, received: &mut BytesMut) -> Result<(Proven, Said), MeetError> {
        let result = async {
            let frame = read_frame(stream, received).await?;
            let (hello, said) = self.hello();
            let accepting = Accepting::new(hello, self.nonce(), self.options.secret.as_ref());
            let (accepted, hello) = accepting.handle_hello(&frame)?;
            stream.write_all(&hello).await?;
            Ok((accepted.handle_proof(&read_frame(stream, received).await?)?, said))
        };
        let result = result.await;
        if let Err(MeetError::Handshake(error)) = &result
            && let Some(reply) = error.reply()
        {
            stream.write_all(&reply).await?;
        }
        result
    }

    /// The link rules' word on a peer that has proven itself. What it was told of this server must still be true.
    fn admit(&self, peer: &PeerHello, dial: (u64, bool), said: Said) -> Result<(Link, Option<(LinkName, Disconnect)>), Refusal> {
        if self.closing.get() {
            return Err(Refusal::Closing);
        }
        if self.hello().1 != said {
            return Err(Refusal::Changed);
        }
        let link = Link::new(peer.clone(), dial, said, self.options.limits, Rc::clone(&self.counters));
        let replaced = self.links.borrow_mut().admit(link.name(), self.now())?;
        Ok((link, replaced))
    }

    /// Runs a link that is up to its end.
    async fn run_link(self: &Rc<Self>, link: Link, stream: Stream, received: BytesMut) {
        let name = link.name();
        let run = link.connection().run(stream, received, |frame| {
            let message = decode(frame)?;
            let live = self.links.borrow().is_live(name);
            if live {
                self.owner.message(name.seat, name.incarnation, message);
            } else {
                self.counters.borrow_mut().frames_dropped += 1;
            }
            Ok(())
        });
        let ending = run.await;
        self.ended(&link, ending);
    }

    /// Dials `consensus`, and when the link stands lets it and its `bulk` connection run on their own.
    async fn dial_link(self: &Rc<Self>, seat: Seat, address: &str) -> Result<(), MeetError> {
        let (met, dial, said) = self.dial_handshake(LinkKind::Consensus, seat, None, address).await?;
        let (peer, mut stream, received) = met;
        let (link, replaced) = match self.admit(&peer, (dial, true), said) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.failed(refusal.name());
                // The acceptor takes the link for live: without a goodbye it would take the end for a tear.
                let _ = timeout(self.deadline(), stream.write_all(&Control::Bye.frame())).await;
                return Err(HandshakeError::Refuse(refusal).into());
            }
        };
        self.up(&link, replaced);
        let inner = Rc::clone(self);
        self.spawn({
            let link = link.clone();
            async move { inner.run_link(link, stream, received).await }
        });
        let (inner, address) = (Rc::clone(self), address.to_owned());
        self.spawn(async move {
            tokio::select! {
                biased;
                () = inner.dial_bulk(&link, &address) => {}
                () = link.ended() => {}
            }
        });
        Ok(())
    }

    /// Keeps a `bulk` connection beside a link that this side dialled; never returns.
    async fn dial_bulk(self: &Rc<Self>, link: &Link, address: &str) {
        let mut backoff = Backoff::new(self);
        let LinkName { seat, incarnation, .. } = link.name();
        loop {
            match self.dial_handshake(LinkKind::Bulk, seat, Some(incarnation), address).await {
                Ok(((_, stream, received), ..)) => {
                    let connection = Connection::new(self.options.limits, Rc::clone(&self.counters));
                    bulk::run(self, link, connection, stream, received).await;
                    backoff = Backoff::new(self);
                }
                Err(error) => tracing::debug!(%seat, %error, "bulk dial failed"),
            }
            sleep(backoff.next()).await;
        }
    }

    async fn dial_handshake(
        &self,
        kind: LinkKind,
        to: Seat,
        to_incarnation: Option<Incarnation>,
        address: &str,
    ) -> Result<((PeerHello, Stream, BytesMut), u64, Said), MeetError> {
        let (dial, (from, said)) = (self.next_dial(), self.hello());
        let met = timeout(self.deadline(), async {
            let own = Hello { kind, nonce: self.nonce(), dial, to, to_incarnation, from };
            let mut stream = self.host.connect(address).await?;
            let mut received = BytesMut::with_capacity(1024);
            let (dialling, hello) = Dialling::new(own, self.options.secret.as_ref())?;
            stream.write_all(&hello).await?;
            let (dialled, proof) = dialling.handle_hello(&read_frame(&mut stream, &mut received).await?)?;
            stream.write_all(&proof).await?;
            let verdict = dialled.handle_verdict(&read_frame(&mut stream, &mut received).await?);
            if let Err(HandshakeError::Refuse(_)) = &verdict {
                let _ = stream.write_all(&Control::Bye.frame()).await;
            }
            Ok((verdict?, stream, received))
        });
        let met = met.await.unwrap_or(Err(MeetError::Timeout)).inspect_err(|error| self.failed(error.name()))?;
        Ok((met, dial, said))
    }
}

/// What an acceptor lets in.
enum Admitted {
    Link((Link, Option<(LinkName, Disconnect)>)),
    Bulk(Link),
}
