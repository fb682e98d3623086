//! State machines: what the log is applied to, on servers and on learners alike.

use std::fmt;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::ids::{LogIndex, SessionId, Term, TimeMs};

pub mod kv;
pub mod log;

/// Where in the log, and on whose behalf, `apply` is called. Its time is the leader's, in the log: `apply` reads no other clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Index of the entry.
    pub index: LogIndex,
    /// Term of its run.
    pub term: Term,
    /// Time of its run; never falls along the log.
    pub time: TimeMs,
    /// The session that proposed it.
    pub session: SessionId,
}

/// An application's deterministic state. The same code runs on every server and every learner: given the same log, every replica
/// must reach the same state and the same bytes in [`StateMachine::write`]. No clock, randomness, or iteration over unordered maps.
///
/// A panic in `apply` stops the server and names the index: a machine that panics on a command would panic on every replica.
pub trait StateMachine: Send + Sized + 'static {
    /// Names the machine in the forming record and in every hello; a mismatch is refused, never run.
    const NAME: &'static str;
    /// Rises when the same log would give another state; a mismatch is refused.
    const VERSION: u32;
    /// What clients propose, as CBOR.
    type Command: Serialize + DeserializeOwned;
    /// What `apply` answers, as CBOR. Application errors belong in here: they are recorded and repeated like any reply.
    type Reply: Serialize + DeserializeOwned;
    /// A consistent image of the state that is cheap to take (a persistent map, an `Arc`) and written out elsewhere.
    type Image: Send + 'static;

    /// Applies one command.
    fn apply(&mut self, command: Self::Command, at: &Position) -> Self::Reply;

    /// Applies a command as it stands in the log and lays its reply out: [`from_cbor`], [`apply`](StateMachine::apply) and [`to_cbor`] one
    /// after the other, unless a machine knows a faster way to the same. It must take and refuse the same bytes on every replica and in
    /// every release of this [`VERSION`](StateMachine::VERSION). A reply that its own `Serialize` refuses is empty: that is deterministic
    /// nonsense, and the same on every replica.
    ///
    /// # Errors
    /// [`Undecodable`]: the outcome is recorded, and nothing is applied.
    fn apply_encoded(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
        apply_cbor(self, command, at)
    }

    /// A session has ended: release what it held. In the log like any entry, so every replica sees it at the same index.
    fn session_ended(&mut self, _session: SessionId, _at: &Position) {}

    /// Takes an image. Called on the thread that applies: keep it cheap.
    fn image(&self) -> Self::Image;

    /// Writes an image, deterministically: the state hash is over these bytes.
    ///
    /// # Errors
    /// Only those of `to`.
    fn write(image: Self::Image, to: &mut impl Write) -> io::Result<()>;

    /// Reads what [`StateMachine::write`] wrote.
    ///
    /// # Errors
    /// [`RestoreError`]; the snapshot is then not used.
    fn restore(from: &mut impl Read) -> Result<Self, RestoreError>;
}

/// Why a state cannot be restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Reading failed.
    #[error("cannot read the state: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a state of this machine.
    #[error("not a state of this machine: {0}")]
    Malformed(String),
    /// The snapshot is another machine's.
    #[error("the snapshot is of state machine {name} v{version}")]
    OtherMachine {
        /// Its name.
        name: String,
        /// Its version.
        version: u32,
    },
    /// The bytes read are not those that were written: their SHA-256 differs.
    #[error("the snapshot's {part} does not match its hash")]
    Hash {
        /// `state` or `sessions`.
        part: &'static str,
    },
}

/// The command's bytes do not decode. The machine is unchanged; the outcome is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the state machine cannot decode the command")]
pub struct Undecodable;

/// A state machine behind a pointer, fed with bytes: what replicas run. [`Typed`] makes one of any [`StateMachine`]; implement it
/// directly for a machine that wants commands and replies without serde.
pub trait Machine: Send {
    /// Applies the command in `command`. The reply is kept for retries as it is returned: do not slice it from a larger buffer.
    ///
    /// # Errors
    /// [`Undecodable`]: nothing has changed.
    fn apply(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable>;

    /// A session has ended.
    fn session_ended(&mut self, session: SessionId, at: &Position);

    /// Takes a cheap image.
    fn image(&self) -> Box<dyn Image>;
}

impl<M: Machine + ?Sized> Machine for Box<M> {
    fn apply(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
        (**self).apply(command, at)
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        (**self).session_ended(session, at);
    }

    fn image(&self) -> Box<dyn Image> {
        (**self).image()
    }
}

/// An image of a machine's state, to be written out on another thread.
pub trait Image: Send {
    /// Writes the state deterministically.
    ///
    /// # Errors
    /// Only those of `to`.
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()>;
}

/// Makes machines of one kind: fresh for a new log, or from a snapshot.
#[derive(Clone)]
pub struct MachineFactory {
    /// [`StateMachine::NAME`].
    pub name: &'static str,
    /// [`StateMachine::VERSION`].
    pub version: u32,
    fresh: Arc<dyn Fn() -> Box<dyn Machine> + Send + Sync>,
    restore: Arc<Restore>,
}

type Restore = dyn Fn(&mut dyn Read) -> Result<Box<dyn Machine>, RestoreError> + Send + Sync;

impl fmt::Debug for MachineFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineFactory({} v{})", self.name, self.version)
    }
}

impl MachineFactory {
    /// Machines of type `M`; `initial` makes the state before the first entry, and must make the same one on every replica.
    pub fn of<M: StateMachine>(initial: impl Fn() -> M + Send + Sync + 'static) -> Self {
        Self {
            name: M::NAME,
            version: M::VERSION,
            fresh: Arc::new(move || Box::new(Typed(initial()))),
            restore: Arc::new(|mut from| Ok(Box::new(Typed(M::restore(&mut from)?)))),
        }
    }

    /// Machines that take bytes.
    pub fn raw(
        name: &'static str,
        version: u32,
        fresh: impl Fn() -> Box<dyn Machine> + Send + Sync + 'static,
        restore: impl Fn(&mut dyn Read) -> Result<Box<dyn Machine>, RestoreError> + Send + Sync + 'static,
    ) -> Self {
        Self { name, version, fresh: Arc::new(fresh), restore: Arc::new(restore) }
    }

    /// The state before the first entry.
    #[must_use]
    pub fn fresh(&self) -> Box<dyn Machine> {
        (self.fresh)()
    }

    /// A state from a snapshot.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(&self, from: &mut dyn Read) -> Result<Box<dyn Machine>, RestoreError> {
        (self.restore)(from)
    }
}

/// Encodes a command or a reply as the typed machines expect it: CBOR.
///
/// # Errors
/// Only if the value's own `Serialize` fails; the text is its reason.
pub fn to_cbor(value: &impl Serialize) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(64);
    ciborium::into_writer(value, &mut bytes).map_err(|error| error.to_string())?;
    // A boxed slice: replies are kept, without what the buffer had to spare.
    Ok(bytes.into_boxed_slice().into())
}

/// Decodes a command or a reply; bytes left over are an error too.
///
/// # Errors
/// [`Undecodable`].
pub fn from_cbor<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, Undecodable> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, CBOR_DEPTH_MAX).map_err(|_| Undecodable)?;
    if bytes.is_empty() { Ok(value) } else { Err(Undecodable) }
}

/// [`StateMachine::apply_encoded`] in general.
fn apply_cbor<M: StateMachine>(machine: &mut M, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
    let command = from_cbor(command)?;
    Ok(to_cbor(&machine.apply(command, at)).unwrap_or_default())
}

/// How deep CBOR from outside may nest.
pub const CBOR_DEPTH_MAX: usize = 64;

/// A [`StateMachine`] as a [`Machine`].
#[derive(Debug)]
pub struct Typed<M>(pub M);

impl<M: StateMachine> Machine for Typed<M> {
    fn apply(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
        self.0.apply_encoded(command, at)
    }

    fn session_ended(&mut self, session: SessionId, at: &Position) {
        self.0.session_ended(session, at);
    }

    fn image(&self) -> Box<dyn Image> {
        Box::new(TypedImage::<M>(self.0.image(), PhantomData))
    }
}

struct TypedImage<M: StateMachine>(M::Image, PhantomData<fn() -> M>);

impl<M: StateMachine> Image for TypedImage<M> {
    fn write(self: Box<Self>, mut to: &mut dyn Write) -> io::Result<()> {
        M::write(self.0, &mut to)
    }
}
