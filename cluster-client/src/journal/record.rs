//! The journal's records and what they add up to. Pure.
//!
//! A record is a kind byte and little-endian fields:
//!
//! ```text
//! 1 secret[32]                                a session's secret, before it is sent
//! 2 cluster[16] epoch u32 session u64 opening u64    the session is open under this opening
//! 3 nonce[16]                                 the nonce of an attach, before it is sent
//! 4 end u64                                   ids below this one may have been issued
//! 5 id u64 payload                            a request, before it is sent
//! 6 id u64                                    answered or given up
//! 7 id u64                                    reserved, before its ticket is handed out
//! 8                                           the session is given up; all before this record is void
//! ```

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use voter_mesh::ids::{ClusterId, Epoch, Opening, RequestId, SessionId};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A session's secret.
    Secret([u8; 32]),
    /// The session is open.
    Session(SessionRecord),
    /// The nonce of an attach that follows.
    Nonce([u8; 16]),
    /// Ids below this one may have been issued.
    IdEnd(RequestId),
    /// A request.
    Request(RequestId, Bytes),
    /// A request is answered or given up.
    Answered(RequestId),
    /// A ticket is handed out.
    Reserved(RequestId),
    /// The session is given up.
    Ended,
}

/// An open session, as the journal holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// The cluster it lives in.
    pub cluster: ClusterId,
    /// That cluster's epoch.
    pub epoch: Epoch,
    /// The session.
    pub session: SessionId,
    /// The opening that this journal last held.
    pub opening: Opening,
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut to = BytesMut::with_capacity(48);
        match self {
            Self::Secret(secret) => {
                to.put_u8(1);
                to.put_slice(secret);
            }
            Self::Session(record) => {
                to.put_u8(2);
                to.put_slice(&record.cluster.0);
                to.put_u32_le(record.epoch.0);
                to.put_u64_le(record.session.0);
                to.put_u64_le(record.opening.0);
            }
            Self::Nonce(nonce) => {
                to.put_u8(3);
                to.put_slice(nonce);
            }
            Self::IdEnd(end) => {
                to.put_u8(4);
                to.put_u64_le(end.0);
            }
            Self::Request(id, payload) => {
                to.put_u8(5);
                to.put_u64_le(id.0);
                to.put_slice(payload);
            }
            Self::Answered(id) => {
                to.put_u8(6);
                to.put_u64_le(id.0);
            }
            Self::Reserved(id) => {
                to.put_u8(7);
                to.put_u64_le(id.0);
            }
            Self::Ended => to.put_u8(8),
        }
        to.freeze()
    }

    /// Reads a record; `None` if the bytes are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, mut rest) = bytes.split_first()?;
        let id = |rest: &mut &[u8]| rest.try_get_u64_le().ok().map(RequestId);
        let record = match kind {
            1 => Self::Secret(std::mem::take(&mut rest).try_into().ok()?),
            2 => {
                let (cluster, fields) = rest.split_first_chunk::<16>()?;
                rest = fields;
                Self::Session(SessionRecord {
                    cluster: ClusterId(*cluster),
                    epoch: Epoch(rest.try_get_u32_le().ok()?),
                    session: SessionId(rest.try_get_u64_le().ok()?),
                    opening: Opening(rest.try_get_u64_le().ok()?),
                })
            }
            3 => Self::Nonce(std::mem::take(&mut rest).try_into().ok()?),
            4 => Self::IdEnd(id(&mut rest)?),
            5 => {
                let id = id(&mut rest)?;
                Self::Request(id, Bytes::copy_from_slice(std::mem::take(&mut rest)))
            }
            6 => Self::Answered(id(&mut rest)?),
            7 => Self::Reserved(id(&mut rest)?),
            8 => Self::Ended,
            _ => return None,
        };
        rest.is_empty().then_some(record)
    }
}

/// What a journal's records add up to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JournalState {
    /// The session's secret.
    pub secret: Option<[u8; 32]>,
    /// The session, once it is open.
    pub session: Option<SessionRecord>,
    /// The nonce of an attach that may have taken effect since `session` was written.
    pub nonce: Option<[u8; 16]>,
    /// Ids below this one may have been issued.
    pub id_end: RequestId,
    /// Open requests and reserved ids (without a payload).
    pub open: BTreeMap<RequestId, Option<Bytes>>,
}

impl JournalState {
    /// Takes one more record in.
    pub fn fold(&mut self, record: &Record) {
        match record {
            Record::Secret(secret) => self.secret = Some(*secret),
            Record::Session(session) => {
                self.session = Some(*session);
                self.nonce = None;
            }
            Record::Nonce(nonce) => self.nonce = Some(*nonce),
            Record::IdEnd(end) => self.id_end = self.id_end.max(*end),
            Record::Request(id, payload) => {
                self.open.insert(*id, Some(payload.clone()));
            }
            Record::Answered(id) => {
                self.open.remove(id);
            }
            Record::Reserved(id) => {
                // Also takes back a request that was never sent.
                self.open.insert(*id, None);
            }
            Record::Ended => *self = Self::default(),
        }
    }

    /// The shortest records that add up to this.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::with_capacity(4 + self.open.len());
        records.extend(self.secret.map(Record::Secret));
        records.extend(self.session.map(Record::Session));
        records.extend(self.nonce.map(Record::Nonce));
        if self.id_end != RequestId(0) {
            records.push(Record::IdEnd(self.id_end));
        }
        records.extend(self.open.iter().map(|(id, payload)| match payload {
            Some(payload) => Record::Request(*id, payload.clone()),
            None => Record::Reserved(*id),
        }));
        records
    }
}
