//! The `kv` machine: an ordered map from bytes to bytes, each key with the index of the entry that last wrote it as its version.

use std::io::{self, Read, Write};
use std::ops::RangeBounds;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{MachineFactory, Position, RestoreError, StateMachine, Undecodable, apply_cbor};
use crate::entry::PAYLOAD_BYTES_MAX;
use crate::ids::LogIndex;
use crate::layout::{Source, put_bytes};

mod key;
mod map;
mod plain;
#[cfg(test)]
mod tests;

use key::Key;
use map::{Builder, KeyMap};

/// Bytes of a key; a command with a longer one is answered [`KvReply::KeyTooLong`]. A value is bounded by the entry's payload.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// What clients propose.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCommand {
    /// Sets a key. Answered `Written`.
    Put {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// Its new value.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// Removes a key. Answered `Deleted`.
    Delete {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// Sets a key if it is as expected. Answered `Written` or `Mismatch`.
    CompareAndSet {
        /// The key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// What it must be.
        expected: KvExpected,
        /// Its new value.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
}

/// What a compare-and-set expects of its key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvExpected {
    /// That it does not exist.
    Absent,
    /// That its last write was this entry. Proof against a value that changed and changed back.
    Version(LogIndex),
    /// That it has this value.
    Value(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What the machine answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvReply {
    /// The key has its new value, under this version.
    Written {
        /// The version.
        version: LogIndex,
    },
    /// The key does not exist now.
    Deleted {
        /// Whether it did.
        existed: bool,
    },
    /// The key is not as expected; nothing has changed.
    Mismatch {
        /// The key's version; none if it does not exist.
        version: Option<LogIndex>,
    },
    /// The key is over [`KEY_BYTES_MAX`]; nothing has changed.
    KeyTooLong,
}

/// A key's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvValue {
    /// The bytes.
    pub value: Bytes,
    /// The entry that wrote them.
    pub version: LogIndex,
}

/// The state, and its own image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kv {
    map: KeyMap,
}

impl Kv {
    /// A key's value.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&KvValue> {
        self.map.get(key)
    }

    /// The keys in a range with their values, ascending.
    pub fn range<'a>(&'a self, keys: impl RangeBounds<[u8]> + 'a) -> impl Iterator<Item = (&'a [u8], &'a KvValue)> {
        self.map.range(keys)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn put(&mut self, key: &[u8], value: Bytes, version: LogIndex) -> KvReply {
        self.map.insert(key, KvValue { value, version });
        KvReply::Written { version }
    }
}

impl StateMachine for Kv {
    const NAME: &'static str = "kv";
    const VERSION: u32 = 1;
    type Command = KvCommand;
    type Reply = KvReply;
    type Image = Self;

    fn apply(&mut self, command: KvCommand, at: &Position) -> KvReply {
        let (KvCommand::Put { key, .. } | KvCommand::Delete { key } | KvCommand::CompareAndSet { key, .. }) = &command;
        if key.len() > KEY_BYTES_MAX {
            return KvReply::KeyTooLong;
        }
        match command {
            KvCommand::Put { key, value } => self.put(&key, value.into(), at.index),
            KvCommand::Delete { key } => KvReply::Deleted { existed: self.map.remove(&key) },
            KvCommand::CompareAndSet { key, expected, value } => {
                let present = self.get(&key);
                let matches = match (&expected, present) {
                    (KvExpected::Absent, None) => true,
                    (KvExpected::Version(version), Some(present)) => present.version == *version,
                    (KvExpected::Value(value), Some(present)) => present.value == *value,
                    _ => false,
                };
                if !matches {
                    return KvReply::Mismatch { version: present.map(|present| present.version) };
                }
                self.put(&key, value.into(), at.index)
            }
        }
    }

    fn apply_encoded(&mut self, command: &[u8], at: &Position) -> Result<Bytes, Undecodable> {
        match plain::put(command) {
            Some((key, value)) if key.len() <= KEY_BYTES_MAX => {
                self.put(key, Bytes::copy_from_slice(value), at.index);
                Ok(plain::written(at.index))
            }
            _ => apply_cbor(self, command, at),
        }
    }

    fn image(&self) -> Self {
        self.clone()
    }

    /// Keys (u64), then of each, ascending: key and value behind their u32 lengths, version (u64). Little-endian.
    fn write(image: Self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&(image.len() as u64).to_le_bytes())?;
        let mut one = Vec::new();
        for (key, KvValue { value, version }) in image.map.range(..) {
            one.clear();
            put_bytes(&mut one, key);
            put_bytes(&mut one, value);
            one.extend_from_slice(&version.0.to_le_bytes());
            to.write_all(&one)?;
        }
        Ok(())
    }

    fn restore(from: &mut impl Read) -> Result<Self, RestoreError> {
        let mut from = Source::new(from);
        let mut map = Builder::default();
        for _ in 0..from.u64()? {
            let key = Key::new(from.bytes(KEY_BYTES_MAX)?);
            let value = Bytes::copy_from_slice(from.bytes(PAYLOAD_BYTES_MAX)?);
            let version = LogIndex(from.u64()?);
            if !map.push(key, KvValue { value, version }) {
                return Err(RestoreError::Malformed("keys are not ascending".into()));
            }
        }
        from.end()?;
        Ok(Self { map: map.finish() })
    }
}

/// Makes `kv` machines.
#[must_use]
pub fn factory() -> MachineFactory {
    MachineFactory::of(Kv::default)
}
