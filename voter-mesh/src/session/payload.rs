//! Payloads of the internal session entries. Fixed layouts, little-endian; anything else is [`MalformedPayload`] and, in the log,
//! has no effect on any server.

use thiserror::Error;

use crate::ids::{LogIndex, Opening};

/// The payload of an internal entry is not what its kind says. Such an entry has no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the payload of an internal entry is malformed")]
pub struct MalformedPayload;

/// Payload of a `SessionAttach` entry: nonce (16 bytes), previous opening (u64).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachPayload {
    /// Minted and journaled by the client before it is sent, so that a retry is known as one.
    pub nonce: [u8; 16],
    /// The opening that the client's journal holds.
    pub previous: Opening,
}

impl AttachPayload {
    /// The bytes as they stand in the entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.nonce[..], &self.previous.0.to_le_bytes()].concat()
    }

    /// Reads them back.
    ///
    /// # Errors
    /// [`MalformedPayload`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedPayload> {
        let bytes: &[u8; 24] = bytes.try_into().map_err(|_| MalformedPayload)?;
        let (nonce, previous) = bytes.split_first_chunk().ok_or(MalformedPayload)?;
        let previous = previous.try_into().map_err(|_| MalformedPayload)?;
        Ok(Self { nonce: *nonce, previous: Opening(u64::from_le_bytes(previous)) })
    }
}

/// Why a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EndReason {
    /// Its client closed it.
    Closed = 1,
    /// Nobody was attached for the time to live.
    Expired = 2,
    /// It broke its window; its client is not one of ours.
    WindowBroken = 3,
}

/// Payload of a `SessionEnd` entry: why (u8), last activity (u64). The entry's header names the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndPayload {
    /// Why.
    pub why: EndReason,
    /// The session's last activity as the proposer knew it. An `Expired` end is void where activity is newer.
    pub last_activity: LogIndex,
}

impl EndPayload {
    /// The bytes as they stand in the entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&[self.why as u8][..], &self.last_activity.0.to_le_bytes()].concat()
    }

    /// Reads them back.
    ///
    /// # Errors
    /// [`MalformedPayload`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedPayload> {
        let (&why, last_activity) = bytes.split_first().ok_or(MalformedPayload)?;
        let why = match why {
            1 => EndReason::Closed,
            2 => EndReason::Expired,
            3 => EndReason::WindowBroken,
            _ => return Err(MalformedPayload),
        };
        let last_activity = last_activity.try_into().map_err(|_| MalformedPayload)?;
        Ok(Self { why, last_activity: LogIndex(u64::from_le_bytes(last_activity)) })
    }
}
