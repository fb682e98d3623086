//! The session table and the `kv` machine once more, written from the design and from nothing else: plain maps, no sharing, no limits of
//! memory. What the servers decided is held against what these decide.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use voter_mesh::entry::{EntryKind, EntryRef};
use voter_mesh::ids::{LogIndex, Opening, RequestId, SessionId};
use voter_mesh::machine::from_cbor;
use voter_mesh::machine::kv::{KEY_BYTES_MAX, KvCommand, KvExpected, KvReply};
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, SessionLimits};

/// What an entry comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It is no command and has no effect on the machine.
    Internal,
    /// It made a new opening of its session.
    Attached,
    /// It ended its session.
    EndedSession,
    /// The machine applied it and gave this reply.
    Effective(KvReply),
    /// It had been recorded by this earlier entry.
    Repeat(LogIndex),
    /// Recorded without effect: no command.
    Undecodable,
    /// Its id was used with another payload.
    Conflict,
    /// Its id is below the floor.
    Stale,
    /// It broke the window.
    WindowBroken,
    /// There is no such session.
    NoSession,
    /// Another opening holds.
    Superseded(Opening),
}

impl Fate {
    /// The verdict bit.
    pub(super) const fn verdict(self) -> bool {
        matches!(self, Self::Effective(_) | Self::EndedSession)
    }
}

#[derive(Debug)]
struct Session {
    hash: [u8; 32],
    opening: Opening,
    nonce: Option<[u8; 16]>,
    floor: RequestId,
    last_activity: LogIndex,
    broken: bool,
    records: BTreeMap<RequestId, (LogIndex, u32, u32)>,
}

/// Every session that is open at a point of the log.
#[derive(Debug)]
pub(super) struct SessionModel {
    limits: SessionLimits,
    open: BTreeMap<SessionId, Session>,
    by_hash: BTreeMap<[u8; 32], SessionId>,
}

impl SessionModel {
    pub(super) const fn new(limits: SessionLimits) -> Self {
        Self { limits, open: BTreeMap::new(), by_hash: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The next entry of the log.
    pub(super) fn apply(&mut self, index: LogIndex, entry: &EntryRef<'_>, kv: &mut KvModel) -> Fate {
        let session = entry.header.session;
        match entry.header.kind {
            EntryKind::Config | EntryKind::Noop => {}
            EntryKind::Command => return self.command(index, entry, kv),
            EntryKind::SessionOpen => self.open(index, entry.payload),
            EntryKind::SessionAttach => {
                if let (Ok(attach), Some(known)) = (AttachPayload::decode(entry.payload), self.open.get_mut(&session)) {
                    known.last_activity = index;
                    if known.nonce != Some(attach.nonce) && attach.previous == known.opening {
                        (known.nonce, known.opening) = (Some(attach.nonce), Opening(index.0));
                        return Fate::Attached;
                    }
                }
            }
            EntryKind::SessionEnd => {
                let (Ok(end), Some(known)) = (EndPayload::decode(entry.payload), self.open.get(&session)) else {
                    return Fate::Internal;
                };
                let ends = match end.why {
                    EndReason::Closed => entry.header.opening == Opening(0) || entry.header.opening == known.opening,
                    EndReason::Expired => known.last_activity <= end.last_activity,
                    EndReason::WindowBroken => true,
                };
                if ends {
                    self.by_hash.remove(&known.hash);
                    self.open.remove(&session);
                    return Fate::EndedSession;
                }
            }
        }
        Fate::Internal
    }

    fn open(&mut self, index: LogIndex, payload: &[u8]) {
        let Ok(hash) = <[u8; 32]>::try_from(payload) else { return };
        if let Some(known) = self.by_hash.get(&hash).and_then(|session| self.open.get_mut(session)) {
            known.last_activity = index;
        } else if self.open.len() < self.limits.sessions_max {
            let (session, opening) = (SessionId(index.0), Opening(index.0));
            self.by_hash.insert(hash, session);
            let (floor, records) = (RequestId(0), BTreeMap::new());
            self.open.insert(session, Session { hash, opening, nonce: None, floor, last_activity: index, broken: false, records });
        }
    }

    fn command(&mut self, index: LogIndex, entry: &EntryRef<'_>, kv: &mut KvModel) -> Fate {
        let header = &entry.header;
        let Some(known) = self.open.get_mut(&header.session) else { return Fate::NoSession };
        known.last_activity = index;
        if header.opening != known.opening {
            return Fate::Superseded(known.opening);
        }
        if header.floor > known.floor {
            known.floor = header.floor;
            known.records = known.records.split_off(&header.floor);
        }
        if header.request < known.floor {
            return Fate::Stale;
        }
        let payload = (header.payload_bytes, header.payload_crc);
        match known.records.get(&header.request) {
            Some((at, bytes, crc)) if (*bytes, *crc) == payload => return Fate::Repeat(*at),
            Some(_) => return Fate::Conflict,
            None => {}
        }
        if known.broken || known.records.len() >= self.limits.window_max {
            known.broken = true;
            return Fate::WindowBroken;
        }
        known.records.insert(header.request, (index, payload.0, payload.1));
        match from_cbor(entry.payload) {
            Ok(command) => Fate::Effective(kv.apply(index, command)),
            Err(_) => Fate::Undecodable,
        }
    }
}

/// A value by its length and a hash: what it takes to know it again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(super) struct Digest(usize, u64);

pub(super) fn digest(value: &[u8]) -> Digest {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    Digest(value.len(), hasher.finish())
}

/// What a key was from `since` on: a value or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) since: LogIndex,
    pub(super) value: Option<Digest>,
}

/// Every key at every index.
#[derive(Debug, Default)]
pub(super) struct KvModel {
    keys: BTreeMap<Bytes, Vec<Version>>,
}

impl KvModel {
    /// All that a key ever was, ascending; nothing before the first.
    pub(super) fn versions(&self, key: &[u8]) -> &[Version] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// What a key is once `index` is applied: the entry that wrote its value, and the value.
    pub(super) fn at(&self, key: &[u8], index: LogIndex) -> Option<(LogIndex, Digest)> {
        let versions = self.versions(key);
        let after = versions.partition_point(|version| version.since <= index);
        let version = versions[..after].last()?;
        Some((version.since, version.value?))
    }

    fn apply(&mut self, index: LogIndex, command: KvCommand) -> KvReply {
        let (KvCommand::Put { key, .. } | KvCommand::Delete { key } | KvCommand::CompareAndSet { key, .. }) = &command;
        if key.len() > KEY_BYTES_MAX {
            return KvReply::KeyTooLong;
        }
        let present = self.at(key, index);
        let (key, value) = match command {
            KvCommand::Put { key, value } => (key, Some(value)),
            KvCommand::Delete { key } => (key, None),
            KvCommand::CompareAndSet { key, expected, value } => {
                let matches = match expected {
                    KvExpected::Absent => present.is_none(),
                    KvExpected::Version(version) => present.is_some_and(|(since, _)| since == version),
                    KvExpected::Value(value) => present.is_some_and(|(_, present)| present == digest(&value)),
                };
                if !matches {
                    return KvReply::Mismatch { version: present.map(|(since, _)| since) };
                }
                (key, Some(value))
            }
        };
        let reply = match value {
            Some(_) => KvReply::Written { version: index },
            None => KvReply::Deleted { existed: present.is_some() },
        };
        if value.is_some() || present.is_some() {
            let version = Version { since: index, value: value.map(|value| digest(&value)) };
            self.keys.entry(key.into()).or_default().push(version);
        }
        reply
    }
}
