//! How two servers meet: hellos, proofs, a verdict.
//!
//! ```text
//! dialler  ── Hello {magic, version, kind, nonce, dial, to, self} ──────►  acceptor
//!          ◄─ Hello {the same of the acceptor} ──────────────────────────
//!          ── Proof {HMAC(secret, "dialler" ‖ both hellos)} ────────────►   now the acceptor knows the dialler, and judges
//!          ◄─ Verdict {HMAC(secret, "acceptor" ‖ both hellos ‖ verdict)} ─  admitted, or a typed refusal
//! ```
//!
//! The proofs cover both hellos byte for byte: nonces, cluster, epoch, seats, ids, directories, incarnations, kind. A replayed hello
//! fails because the other side's nonce is fresh; a reflected proof because the labels differ. Only who proved itself learns why it
//! is refused; a bad proof or another protocol version gets a bare, unproven [`Refusal`]. Without a secret the key is empty: that
//! proves nothing and only catches mixed set-ups, which is why servers without a secret listen on loopback alone
//! ([`bind_allowed`]).
//!
//! A server that is in no cluster yet may speak to one that is (to join it). Two of different clusters, epochs or machines may not.

use std::fmt;
use std::net::SocketAddr;

use bytes::{BufMut, Bytes};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;

use super::codec::{self, CodecError, kind};
use crate::ids::{ClusterId, DirectoryId, Epoch, Identity, Incarnation, RaftId, RoomId, RunIndex, Seat, Term};

/// The version of everything on the mesh. Servers of different versions do not speak.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of one frame of the handshake.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 16 << 10;

/// Bytes that a mesh secret must have at least.
pub const SECRET_BYTES_MIN: usize = 16;

/// Client endpoints that a hello may name, and bytes of each, and of a state machine's name.
const ENDPOINTS_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 512;

const MAGIC: [u8; 4] = *b"QMSH";
const MAC_BYTES: usize = 32;

/// What the servers of a cluster share to prove themselves to each other.
#[derive(Clone)]
pub struct MeshSecret(Vec<u8>);

/// The secret is shorter than [`SECRET_BYTES_MIN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a mesh secret needs at least {SECRET_BYTES_MIN} bytes, this one has {0}")]
pub struct SecretTooShort(pub usize);

impl MeshSecret {
    /// A secret of these bytes; white space around them (a file's last newline) does not count.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn new(bytes: &[u8]) -> Result<Self, SecretTooShort> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < SECRET_BYTES_MIN { Err(SecretTooShort(bytes.len())) } else { Ok(Self(bytes.to_vec())) }
    }
}

impl From<[u8; 32]> for MeshSecret {
    /// A secret of random bytes, for servers that live in one process.
    fn from(random: [u8; 32]) -> Self {
        Self(random.to_vec())
    }
}

impl fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshSecret(..)")
    }
}

/// Without a mesh secret a server listens on loopback only, for servers and for clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("listening on {0} needs a mesh secret: without one only loopback addresses are allowed")]
pub struct BindRefused(pub SocketAddr);

/// Whether a server may listen here.
///
/// # Errors
/// [`BindRefused`].
pub fn bind_allowed(address: SocketAddr, secret: Option<&MeshSecret>) -> Result<(), BindRefused> {
    if secret.is_some() || address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(BindRefused(address)) }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LinkKind {
    /// Raft, forwarding, reads, forming. Its life is the link's life.
    Consensus,
    /// Snapshots, beside a live link between the same two incarnations.
    Bulk,
}

/// What a server says of itself and that may change while it lives (by forming or joining): asked for at each handshake.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SelfHello {
    /// Its raft id, once it has one.
    pub id: Option<RaftId>,
    /// The history it belongs to, once it is formed or welcomed.
    pub identity: Option<Identity>,
    /// The first run in its log.
    pub first: RunIndex,
    /// Term and index of the last durable run.
    pub last: (Term, RunIndex),
    /// Whether its log is suspect (design §5).
    pub suspect: bool,
    /// Where its clients attach, as URLs without the room's path.
    pub endpoints: Vec<String>,
}

/// What a server knows of the other end of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerHello {
    /// Its seat.
    pub seat: Seat,
    /// Its raft id, if it had one when the link was made. One that got its id later is found in the configuration by its directory.
    pub id: Option<RaftId>,
    /// The data directory it lives in.
    pub directory: DirectoryId,
    /// Its process.
    pub incarnation: Incarnation,
    /// The history it belonged to when the link was made.
    pub identity: Option<Identity>,
    /// Its state machine's name and version.
    pub machine: (String, u32),
    /// The first run in its log.
    pub first: RunIndex,
    /// Term and index of its last durable run.
    pub last: (Term, RunIndex),
    /// Whether its log is suspect.
    pub suspect: bool,
    /// Where its clients attach.
    pub endpoints: Vec<String>,
}

/// One side's first frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the connection is for.
    pub kind: LinkKind,
    /// Fresh and random for each connection.
    pub nonce: [u8; 32],
    /// The dialler's count of its dials; the acceptor says it back.
    pub dial: u64,
    /// Who the other end is believed to be.
    pub to: Seat,
    /// For `bulk`: the other end's incarnation on the live link.
    pub to_incarnation: Option<Incarnation>,
    /// Who speaks.
    pub from: PeerHello,
}

/// Why a server does not link with another. Names for counters by [`Refusal::name`].
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Another version of the mesh protocol.
    #[error("it speaks mesh protocol version {0}")]
    Version(u16),
    /// The proof does not prove the shared secret over this handshake.
    #[error("the secret is not proven")]
    Unproven,
    /// Both are in a cluster, and not the same one.
    #[error("it belongs to another cluster")]
    Cluster,
    /// The same cluster before or after a restore.
    #[error("it belongs to another epoch")]
    Epoch,
    /// It runs another state machine, or another version of it: this one.
    #[error("it runs state machine {0} version {1}")]
    Machine(String, u32),
    /// The seats do not fit: one took the other for somebody else, or is dialled by it.
    #[error("the seats do not fit")]
    Seat,
    /// Two seats in one data directory: one was copied.
    #[error("both live in the same data directory")]
    Directory,
    /// A newer process of the same seat is linked, or was a moment ago.
    #[error("a newer incarnation of that seat is linked")]
    OldIncarnation,
    /// A newer dial of the same process is linked.
    #[error("a newer link of that process is live")]
    Duplicate,
    /// A `bulk` connection without its live link.
    #[error("there is no live link for this bulk connection")]
    NoLink,
    /// What it said of itself changed during the handshake; try again.
    #[error("it changed during the handshake")]
    Changed,
    /// Too many seats are linked.
    #[error("too many seats are linked")]
    Full,
    /// It is shutting down.
    #[error("it is shutting down")]
    Closing,
}

impl Refusal {
    /// A stable name, for counters and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Version(_) => "version",
            Self::Unproven => "unproven",
            Self::Cluster => "cluster",
            Self::Epoch => "epoch",
            Self::Machine(..) => "machine",
            Self::Seat => "seat",
            Self::Directory => "directory",
            Self::OldIncarnation => "old_incarnation",
            Self::Duplicate => "duplicate",
            Self::NoLink => "no_link",
            Self::Changed => "changed",
            Self::Full => "full",
            Self::Closing => "closing",
        }
    }
}

/// Why a handshake ended without a link. Write [`HandshakeError::reply`], if there is one, and close.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum HandshakeError {
    /// The peer sent no handshake of ours.
    #[error("not a mesh handshake: {0}")]
    Malformed(#[from] CodecError),
    /// This side refuses.
    #[error("refused: {0}")]
    Refuse(Refusal),
    /// The peer refuses, and has proven who it is, unless it says `Version` or `Unproven`.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
}

impl HandshakeError {
    /// The bare refusal to send, for what may be told to somebody unproven.
    #[must_use]
    pub fn reply(&self) -> Option<Bytes> {
        match self {
            Self::Refuse(Refusal::Version(_)) => bare(&Refusal::Version(PROTOCOL_VERSION)),
            Self::Refuse(Refusal::Unproven) => bare(&Refusal::Unproven),
            _ => None,
        }
    }
}

fn bare(refusal: &Refusal) -> Option<Bytes> {
    codec::cbor_frame(kind::REFUSAL, refusal).ok().map(Into::into)
}

type Tuple = (
    (LinkKind, serde_bytes::ByteArray<32>, u64, Seat, Option<Incarnation>),
    (Seat, Option<RaftId>, DirectoryId, Incarnation, Option<(ClusterId, Epoch, RoomId)>),
    (String, u32, RunIndex, Term, RunIndex, bool, Vec<String>),
);

impl Hello {
    fn encode(&self) -> Result<Bytes, CodecError> {
        let from = &self.from;
        let identity = from.identity.map(|identity| (identity.cluster, identity.epoch, identity.room));
        let tuple: Tuple = (
            (self.kind, self.nonce.into(), self.dial, self.to, self.to_incarnation),
            (from.seat, from.id, from.directory, from.incarnation, identity),
            (from.machine.0.clone(), from.machine.1, from.first, from.last.0, from.last.1, from.suspect, from.endpoints.clone()),
        );
        let body = crate::machine::to_cbor(&tuple).map_err(|_| CodecError::Cbor)?;
        let frame = codec::frame(kind::HELLO, 0, |head| {
            head.put_slice(&MAGIC);
            head.put_u16_le(PROTOCOL_VERSION);
            head.put_slice(&body);
        })?;
        if frame.len() > HANDSHAKE_FRAME_BYTES_MAX {
            return Err(CodecError::TooLarge(frame.len()));
        }
        Ok(frame.freeze())
    }

    fn decode(head: &[u8]) -> Result<Self, HandshakeError> {
        // Magic and version stand before everything that a later version may lay out anew.
        let Some((start, body)) = head.split_first_chunk::<6>() else { return Err(CodecError::Truncated.into()) };
        if start[..4] != MAGIC {
            return Err(CodecError::Field("magic").into());
        }
        let version = u16::from_le_bytes([start[4], start[5]]);
        if version != PROTOCOL_VERSION {
            return Err(HandshakeError::Refuse(Refusal::Version(version)));
        }
        let (connection, who, what): Tuple = codec::from_cbor(body)?;
        let (kind, nonce, dial, to, to_incarnation) = connection;
        let (seat, id, directory, incarnation, identity) = who;
        let (name, machine_version, first, last_term, last_run, suspect, endpoints) = what;
        let too_long = |text: &String| text.len() > TEXT_BYTES_MAX;
        if id.is_some_and(|id| id.seat() != seat || id.life() == 0) {
            return Err(CodecError::Field("raft id").into());
        }
        if too_long(&name) || endpoints.len() > ENDPOINTS_MAX || endpoints.iter().any(too_long) {
            return Err(CodecError::Field("text").into());
        }
        let identity = identity.map(|(cluster, epoch, room)| Identity { cluster, epoch, room });
        let from = PeerHello {
            seat,
            id,
            directory,
            incarnation,
            identity,
            machine: (name, machine_version),
            first,
            last: (last_term, last_run),
            suspect,
            endpoints,
        };
        Ok(Self { kind, nonce: nonce.into_array(), dial, to, to_incarnation, from })
    }
}

/// The bytes behind which both sides stand, and the key they prove them with.
struct Transcript {
    key: Hmac<Sha256>,
    hellos: Vec<u8>,
}

const DIALLER: &[u8] = b"quorate mesh dialler";
const ACCEPTOR: &[u8] = b"quorate mesh acceptor";

impl Transcript {
    fn new(secret: Option<&MeshSecret>, dialler: &[u8], acceptor: &[u8]) -> Self {
        let key = secret.map_or(&[][..], |secret| &secret.0);
        let key = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        let mut hellos = Vec::with_capacity(16 + dialler.len() + acceptor.len());
        for hello in [dialler, acceptor] {
            hellos.extend_from_slice(&(hello.len() as u64).to_le_bytes());
            hellos.extend_from_slice(hello);
        }
        Self { key, hellos }
    }

    fn mac(&self, label: &[u8], verdict: &[u8]) -> Hmac<Sha256> {
        self.key.clone().chain_update(label).chain_update(&self.hellos).chain_update(verdict)
    }

    fn prove(&self, label: &[u8], verdict: &[u8]) -> [u8; MAC_BYTES] {
        self.mac(label, verdict).finalize().into_bytes().into()
    }

    /// Checks a proof in constant time.
    fn verify(&self, label: &[u8], verdict: &[u8], proof: &[u8]) -> Result<(), HandshakeError> {
        self.mac(label, verdict).verify_slice(proof).map_err(|_| HandshakeError::Refuse(Refusal::Unproven))
    }
}

/// Whether these two may be linked, whoever of them asks; `dialler` is the one that dialled.
fn compatible(dialler: &Hello, acceptor: &Hello) -> Result<(), Refusal> {
    let (one, other) = (&dialler.from, &acceptor.from);
    if one.seat == other.seat || dialler.to != other.seat || acceptor.to != one.seat {
        return Err(Refusal::Seat);
    }
    if one.directory == other.directory {
        return Err(Refusal::Directory);
    }
    if let (Some(one), Some(other)) = (one.identity, other.identity) {
        if one.cluster != other.cluster || one.room != other.room {
            return Err(Refusal::Cluster);
        }
        if one.epoch != other.epoch {
            return Err(Refusal::Epoch);
        }
    }
    Ok(())
}

/// What this side refuses the peer for.
fn judge(own: &Hello, peer: &Hello, dialled: bool) -> Result<(), Refusal> {
    if dialled { compatible(own, peer) } else { compatible(peer, own) }?;
    if own.from.machine != peer.from.machine {
        // The refusal tells the peer what it meets.
        return Err(Refusal::Machine(own.from.machine.0.clone(), own.from.machine.1));
    }
    Ok(())
}

/// Behind the length field: what the other side gets from [`codec::split_frame`].
fn body(frame: &Bytes) -> &[u8] {
    &frame[4..]
}

/// The head of a frame of the handshake; a bare refusal becomes [`HandshakeError::Refused`].
fn expect(expected: u8, frame: &Bytes) -> Result<Bytes, HandshakeError> {
    let (kind, head, tail) = codec::open(frame.clone())?;
    if kind == kind::REFUSAL {
        return Err(match codec::from_cbor(&head)? {
            // Whoever has proven nothing cannot make this side believe more than these two.
            refusal @ (Refusal::Version(_) | Refusal::Unproven) => HandshakeError::Refused(refusal),
            _ => CodecError::Field("refusal").into(),
        });
    }
    if kind != expected {
        return Err(CodecError::Kind(kind).into());
    }
    if tail.is_empty() { Ok(head) } else { Err(CodecError::Trailing.into()) }
}

/// The dialling side. Write what [`Dialling::new`] gives, feed the answer to [`Dialling::handle_hello`], write what that gives, and
/// feed the answer to [`Dialled::handle_verdict`].
#[derive(Clone, Debug)]
pub struct Dialling {
    own: Hello,
    sent: Bytes,
    secret: Option<MeshSecret>,
}

impl Dialling {
    /// Starts; returns the hello to write.
    ///
    /// # Errors
    /// [`CodecError`] if what this server says of itself is over the limits.
    pub fn new(own: Hello, secret: Option<&MeshSecret>) -> Result<(Self, Bytes), CodecError> {
        let sent = own.encode()?;
        Ok((Self { own, sent: sent.clone(), secret: secret.cloned() }, sent))
    }

    /// Takes the acceptor's hello; returns the proof to write.
    ///
    /// # Errors
    /// [`HandshakeError`]: close.
    pub fn handle_hello(self, frame: &Bytes) -> Result<(Dialled, Bytes), HandshakeError> {
        let peer = Hello::decode(&expect(kind::HELLO, frame)?)?;
        if peer.kind != self.own.kind || peer.dial != self.own.dial {
            return Err(CodecError::Field("hello").into());
        }
        let transcript = Transcript::new(self.secret.as_ref(), body(&self.sent), frame);
        let proof = codec::frame(kind::PROOF, 0, |head| head.put_slice(&transcript.prove(DIALLER, &[])))?;
        Ok((Dialled { own: self.own, peer, transcript }, proof.freeze()))
    }
}

/// The dialling side, waiting for the verdict.
pub struct Dialled {
    own: Hello,
    peer: Hello,
    transcript: Transcript,
}

impl Dialled {
    /// Takes the verdict. When it is good, both sides have proven themselves and the link stands.
    ///
    /// # Errors
    /// [`HandshakeError`]. `Refuse` of something else than `Unproven` means that the acceptor takes the link for live: say goodbye
    /// before closing.
    pub fn handle_verdict(self, frame: &Bytes) -> Result<PeerHello, HandshakeError> {
        let head = expect(kind::VERDICT, frame)?;
        let Some((proof, verdict)) = head.split_first_chunk::<MAC_BYTES>() else { return Err(CodecError::Truncated.into()) };
        self.transcript.verify(ACCEPTOR, verdict, proof)?;
        codec::from_cbor::<Result<(), Refusal>>(verdict)?.map_err(HandshakeError::Refused)?;
        judge(&self.own, &self.peer, true).map_err(HandshakeError::Refuse)?;
        Ok(self.peer.from)
    }
}

/// The accepting side. Feed the first frame to [`Accepting::handle_hello`], write what that gives, feed the answer to
/// [`Accepted::handle_proof`], judge the peer, and write the verdict.
#[derive(Clone, Debug)]
pub struct Accepting {
    from: PeerHello,
    nonce: [u8; 32],
    secret: Option<MeshSecret>,
}

impl Accepting {
    /// Starts. `nonce` must be fresh and random.
    #[must_use]
    pub fn new(from: PeerHello, nonce: [u8; 32], secret: Option<&MeshSecret>) -> Self {
        Self { from, nonce, secret: secret.cloned() }
    }

    /// Takes the dialler's hello; returns the hello to write.
    ///
    /// # Errors
    /// [`HandshakeError`]: write its reply, if it has one, and close.
    pub fn handle_hello(self, frame: &Bytes) -> Result<(Accepted, Bytes), HandshakeError> {
        let peer = Hello::decode(&expect(kind::HELLO, frame)?)?;
        let own = Hello {
            kind: peer.kind,
            nonce: self.nonce,
            dial: peer.dial,
            to: peer.from.seat,
            to_incarnation: Some(peer.from.incarnation),
            from: self.from,
        };
        let sent = own.encode()?;
        let transcript = Transcript::new(self.secret.as_ref(), frame, body(&sent));
        Ok((Accepted { own, peer, transcript }, sent))
    }
}

/// The accepting side, waiting for the proof.
pub struct Accepted {
    own: Hello,
    peer: Hello,
    transcript: Transcript,
}

impl Accepted {
    /// Takes the dialler's proof. From here on the peer is known.
    ///
    /// # Errors
    /// [`HandshakeError`]: write its reply, if it has one, and close.
    pub fn handle_proof(self, frame: &Bytes) -> Result<Proven, HandshakeError> {
        self.transcript.verify(DIALLER, &[], &expect(kind::PROOF, frame)?)?;
        Ok(Proven { own: self.own, peer: self.peer, transcript: self.transcript })
    }
}

/// The accepting side, about to judge a peer that has proven itself.
pub struct Proven {
    own: Hello,
    peer: Hello,
    transcript: Transcript,
}

impl Proven {
    /// Who asks, and for what.
    #[must_use]
    pub const fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Whether the two fit together. What only the acceptor's other links can tell ([`super::links`]) is not looked at.
    ///
    /// # Errors
    /// The [`Refusal`] to say in the verdict.
    pub fn judge(&self) -> Result<(), Refusal> {
        if self.peer.kind == LinkKind::Bulk && self.peer.to_incarnation != Some(self.own.from.incarnation) {
            return Err(Refusal::NoLink);
        }
        judge(&self.own, &self.peer, false)
    }

    /// The verdict to write: admitted, or refused and why.
    ///
    /// # Errors
    /// [`CodecError`] if the refusal's text is over the limits.
    pub fn verdict(&self, verdict: &Result<(), Refusal>) -> Result<Bytes, CodecError> {
        let verdict = crate::machine::to_cbor(verdict).map_err(|_| CodecError::Cbor)?;
        let frame = codec::frame(kind::VERDICT, 0, |head| {
            head.put_slice(&self.transcript.prove(ACCEPTOR, &verdict));
            head.put_slice(&verdict);
        })?;
        Ok(frame.freeze())
    }
}

#[cfg(test)]
mod tests;
