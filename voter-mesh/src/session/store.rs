//! The session table as it stands in a snapshot, little-endian, sessions and records ascending, so that equal tables are equal bytes:
//!
//! ```text
//! magic "QSES"   version u32 = 1   entries since due u64   log bytes since due u64   sessions u64
//! session:  id u64   secret's SHA-256 [32]   opening u64   floor u64   last activity u64   flags u8 (1 nonce, 2 window broken)
//!           nonce [16] if flagged   records u32
//! record:   request u64   index u64   term u64   payload length u32   payload CRC u32   kind u8
//!           1 reply: length u32, bytes     2 elided: SHA-256 [32]     3 undecodable
//! ```
//!
//! How much the log has grown since a snapshot was last due stands here too, because the servers must agree on it as on the table.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use super::{Kept, Record, Session, SessionLimits, Sessions};
use crate::ids::{LogIndex, Opening, RequestId, SessionId, Term};
use crate::layout::{Source, put_bytes};
use crate::machine::RestoreError;
use crate::mutant;
use crate::snapshot::LogGrowth;

const MAGIC: [u8; 4] = *b"QSES";
const VERSION: u32 = 1;
const FLAG_NONCE: u8 = 1;
const FLAG_BROKEN: u8 = 2;
/// Bytes that are collected before they are written.
const CHUNK_BYTES: usize = 64 << 10;

impl Sessions {
    pub(crate) fn write(&self, growth: LogGrowth, to: &mut dyn Write) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + 1024);
        chunk.extend_from_slice(&MAGIC);
        chunk.extend_from_slice(&VERSION.to_le_bytes());
        let sessions = if mutant!("sessions_not_in_snapshot") { &OrdMap::new() } else { &self.sessions };
        for number in [growth.entries, growth.bytes, sessions.len() as u64] {
            chunk.extend_from_slice(&number.to_le_bytes());
        }
        for (id, session) in sessions {
            put_session(&mut chunk, *id, session);
            if chunk.len() >= CHUNK_BYTES {
                to.write_all(&chunk)?;
                chunk.clear();
            }
        }
        to.write_all(&chunk)
    }

    /// Reads what [`Sessions::write`] wrote, to the stream's end.
    pub(crate) fn restore(limits: SessionLimits, from: &mut dyn Read) -> Result<(Self, LogGrowth), RestoreError> {
        let malformed = |why: &str| RestoreError::Malformed(format!("session table: {why}"));
        let mut from = Source::new(from);
        if from.array()? != MAGIC {
            return Err(malformed("not one"));
        }
        let version = from.u32()?;
        if version != VERSION {
            return Err(malformed(&format!("version {version} is unknown")));
        }
        let growth = LogGrowth { entries: from.u64()?, bytes: from.u64()? };
        let mut table = Self::new(limits);
        let mut before = None;
        for _ in 0..from.u64()? {
            let (id, session) = read_session(&mut from)?;
            if before.replace(id) >= Some(id) {
                return Err(malformed("sessions are not ascending"));
            }
            if table.by_hash.insert(session.secret_hash, id).is_some() {
                return Err(malformed("two sessions of one secret"));
            }
            if session.broken {
                table.broken.insert(id);
            }
            table.sessions.insert(id, Arc::new(session));
        }
        from.end()?;
        Ok((table, growth))
    }
}

fn put_session(to: &mut Vec<u8>, id: SessionId, session: &Session) {
    to.extend_from_slice(&id.0.to_le_bytes());
    to.extend_from_slice(&session.secret_hash);
    for number in [session.opening.0, session.floor.0, session.last_activity.0] {
        to.extend_from_slice(&number.to_le_bytes());
    }
    to.push(session.nonce.map_or(0, |_| FLAG_NONCE) | if session.broken { FLAG_BROKEN } else { 0 });
    to.extend_from_slice(session.nonce.as_ref().map_or(&[], |nonce| &nonce[..]));
    to.extend_from_slice(&(session.records.len() as u32).to_le_bytes());
    for record in &session.records {
        for number in [record.request.0, record.index.0, record.term.0] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        to.extend_from_slice(&record.payload_bytes.to_le_bytes());
        to.extend_from_slice(&record.payload_crc.to_le_bytes());
        match &record.kept {
            Kept::Short { len, bytes } => {
                to.push(1);
                put_bytes(to, &bytes[..usize::from(*len)]);
            }
            Kept::Reply(reply) => {
                to.push(1);
                put_bytes(to, reply);
            }
            Kept::Elided(hash) => {
                to.push(2);
                to.extend_from_slice(hash);
            }
            Kept::Undecodable => to.push(3),
        }
    }
}

fn read_session(from: &mut Source<'_>) -> Result<(SessionId, Session), RestoreError> {
    let malformed = |why: &str| RestoreError::Malformed(format!("session table: {why}"));
    let id = SessionId(from.u64()?);
    let secret_hash = from.array()?;
    let (opening, floor, last_activity) = (Opening(from.u64()?), RequestId(from.u64()?), LogIndex(from.u64()?));
    let flags = from.u8()?;
    if flags & !(FLAG_NONCE | FLAG_BROKEN) != 0 {
        return Err(malformed("unknown flags"));
    }
    let nonce = if flags & FLAG_NONCE != 0 { Some(from.array()?) } else { None };
    let mut records = VecDeque::new();
    for _ in 0..from.u32()? {
        let record = read_record(from)?;
        if record.request < floor || records.back().is_some_and(|last: &Record| last.request >= record.request) {
            return Err(malformed("records are not ascending from the floor"));
        }
        records.push_back(record);
    }
    Ok((id, Session { secret_hash, opening, nonce, floor, last_activity, broken: flags & FLAG_BROKEN != 0, records }))
}

fn read_record(from: &mut Source<'_>) -> Result<Record, RestoreError> {
    Ok(Record {
        request: RequestId(from.u64()?),
        index: LogIndex(from.u64()?),
        term: Term(from.u64()?),
        payload_bytes: from.u32()?,
        payload_crc: from.u32()?,
        kept: match from.u8()? {
            1 => Kept::whole(&Bytes::copy_from_slice(from.bytes(super::REPLY_BYTES_KEPT_MAX)?)),
            2 => Kept::Elided(from.array()?),
            3 => Kept::Undecodable,
            kind => return Err(RestoreError::Malformed(format!("session table: record of kind {kind}"))),
        },
    })
}
