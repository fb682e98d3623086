//! Reading fixed layouts from a stream: the counterpart of what the session table and the built-in machines write. Lengths that a
//! stream claims are never believed before the bytes are there.

use std::io::{BufReader, ErrorKind, Read};

use crate::machine::RestoreError;

/// Bytes that are asked of a stream at once.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// A stream of little-endian numbers and byte strings, which it reads ahead of.
pub(crate) struct Source<'a> {
    from: BufReader<&'a mut dyn Read>,
    /// The last byte string, and what is left of longer ones before it.
    string: Vec<u8>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(from: &'a mut dyn Read) -> Self {
        Self { from: BufReader::with_capacity(READ_BYTES, from), string: Vec::new() }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RestoreError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string behind its `u32` length, at most `bytes_max` long.
    pub(crate) fn bytes(&mut self, bytes_max: usize) -> Result<&[u8], RestoreError> {
        let len = self.u32()? as usize;
        if len > bytes_max {
            return Err(RestoreError::Malformed(format!("{len} bytes where at most {bytes_max} may stand")));
        }
        if self.string.len() < len {
            self.string.resize(len, 0);
        }
        let bytes = &mut self.string[..len];
        self.from.read_exact(bytes)?;
        Ok(bytes)
    }

    /// Checks that nothing follows.
    pub(crate) fn end(mut self) -> Result<(), RestoreError> {
        let mut byte = [0];
        loop {
            match self.from.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(RestoreError::Malformed("bytes behind the end".into())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Puts a byte string behind its `u32` length. Callers keep strings far below 4 GiB.
pub(crate) fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(bytes);
}
