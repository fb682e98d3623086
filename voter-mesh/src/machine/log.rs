//! The `log` machine: the log itself is what matters. Its state is how many commands took effect and a checksum chain over them;
//! the runs that are retained lie elsewhere. Any bytes are a command; the reply is the entry's index, as a CBOR integer.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::{Image, Machine, MachineFactory, Position, RestoreError, Undecodable, to_cbor};
use crate::ids::SessionId;
use crate::layout::Source;

/// The machine's name.
pub const NAME: &str = "log";
/// Its version.
pub const VERSION: u32 = 1;

/// The state: written as count (u64) and checksum (u32), little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Log {
    count: u64,
    checksum: u32,
}

impl Log {
    /// How many commands took effect.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// CRC32C over all of them: each one's index, term, time, session and length (u64, little-endian), then its bytes.
    #[must_use]
    pub const fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Reads a state that was written.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(from: &mut dyn Read) -> Result<Self, RestoreError> {
        let mut from = Source::new(from);
        let state = Self { count: from.u64()?, checksum: from.u32()? };
        from.end()?;
        Ok(state)
    }
}

impl Machine for Log {
    fn apply(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
        let mut head = [0; 40];
        let numbers = [at.index.0, at.term.0, at.time.0, at.session.0, command.len() as u64];
        for (place, number) in head.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        self.checksum = crc32c::crc32c_append(crc32c::crc32c_append(self.checksum, &head), command);
        self.count += 1;
        Ok(to_cbor(&at.index).unwrap_or_default())
    }

    fn session_ended(&mut self, _session: SessionId, _at: &Position) {}

    fn image(&self) -> Box<dyn Image> {
        Box::new(*self)
    }
}

impl Image for Log {
    fn write(self: Box<Self>, to: &mut dyn Write) -> io::Result<()> {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        to.write_all(&bytes)
    }
}

/// Makes `log` machines.
#[must_use]
pub fn factory() -> MachineFactory {
    MachineFactory::raw(NAME, VERSION, || Box::new(Log::default()), |from| Ok(Box::new(Log::restore(from)?)))
}
