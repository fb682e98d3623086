//! What this crate's tests share: a leader that seals runs, entries in one line, and a machine whose effects can be counted.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};

use bytes::Bytes;

use crate::configuration::Configuration;
use crate::entry::{EntryKind, EntrySpec, entry};
use crate::ids::{ClusterId, Epoch, Identity, LogIndex, Opening, RequestId, RoomId, SessionId, Term, TimeMs};
use crate::layout::{Source, put_bytes};
use crate::machine::{Image, Machine, MachineFactory, Position, RestoreError, Undecodable};
use crate::outcome::Reply;
use crate::replica::{Applied, Replica, ReplicaLimits};
use crate::run::{Run, Tail};
use crate::session::{AttachPayload, EndPayload, EndReason, SessionEvent, secret_hash};
use crate::snapshot::SnapshotMeta;

pub(crate) const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

pub(crate) fn command(session: SessionId, opening: Opening, request: u64, floor: u64, payload: &[u8]) -> Bytes {
    let (request, floor) = (RequestId(request), RequestId(floor));
    entry(&EntrySpec { kind: EntryKind::Command, room: RoomId(0), session, opening, request, floor }, payload).unwrap()
}

pub(crate) fn internal(kind: EntryKind, session: SessionId, opening: Opening, payload: &[u8]) -> Bytes {
    entry(&EntrySpec { session, opening, ..EntrySpec::internal(kind) }, payload).unwrap()
}

pub(crate) fn open(secret: u8) -> Bytes {
    internal(EntryKind::SessionOpen, SessionId(0), Opening(0), &secret_hash(&[secret; 32]))
}

pub(crate) fn attach(session: SessionId, nonce: u8, previous: Opening) -> Bytes {
    internal(EntryKind::SessionAttach, session, Opening(0), &AttachPayload { nonce: [nonce; 16], previous }.encode())
}

pub(crate) fn end(session: SessionId, why: EndReason, last_activity: u64) -> Bytes {
    let payload = EndPayload { why, last_activity: LogIndex(last_activity) }.encode();
    internal(EntryKind::SessionEnd, session, Opening(0), &payload)
}

/// Seals entries into runs, one after the other.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) tail: Tail,
    pub(crate) term: Term,
    pub(crate) clock: TimeMs,
}

impl Leader {
    pub(crate) fn new() -> Self {
        Self { tail: Tail::zero(&IDENTITY), term: Term(1), clock: TimeMs(1000) }
    }

    pub(crate) fn seal(&mut self, entries: &[Bytes]) -> Run {
        let entries: Vec<&[u8]> = entries.iter().map(|entry| &entry[..]).collect();
        let run = Run::seal(&self.tail, self.term, self.clock, IDENTITY.epoch, IDENTITY.room, &entries).unwrap();
        self.tail = run.header().tail();
        run
    }
}

/// A leader and one replica that applies what it seals at once.
pub(crate) struct World {
    pub(crate) leader: Leader,
    pub(crate) replica: Replica,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(ReplicaLimits::default())
    }

    pub(crate) fn with(limits: ReplicaLimits) -> Self {
        Self { leader: Leader::new(), replica: Replica::form(IDENTITY, Configuration::default(), &Ledger::factory(), limits) }
    }

    pub(crate) fn apply(&mut self, entries: &[Bytes]) -> Applied {
        self.replica.apply(&self.leader.seal(entries)).unwrap()
    }

    /// Applies one entry; whether it took effect, and what it told.
    pub(crate) fn one(&mut self, entry: Bytes) -> (bool, Option<SessionEvent>) {
        let mut applied = self.apply(&[entry]);
        assert!(applied.events.len() <= 1);
        (applied.verdicts.get(0), applied.events.pop())
    }

    pub(crate) fn command(&mut self, session: SessionId, opening: Opening, request: u64, floor: u64, payload: &[u8]) -> Reply {
        match self.one(command(session, opening, request, floor, payload)) {
            (_, Some(SessionEvent::Replied(reply))) => reply,
            other => panic!("a command is answered by a reply, not {other:?}"),
        }
    }

    pub(crate) fn open(&mut self, secret: u8) -> (SessionId, Opening) {
        match self.one(open(secret)) {
            (false, Some(SessionEvent::Opened { session, opening, .. })) => (session, opening),
            other => panic!("an open is answered by its session, not {other:?}"),
        }
    }

    /// What took effect so far.
    pub(crate) fn effects(&self) -> Vec<Vec<u8>> {
        let (_, state, _) = written(&self.replica);
        Ledger::read(&mut &state[..]).unwrap().0
    }
}

/// A replica, written: meta, state, sessions.
pub(crate) fn written(replica: &Replica) -> (SnapshotMeta, Vec<u8>, Vec<u8>) {
    let (mut state, mut sessions) = (Vec::new(), Vec::new());
    let meta = replica.image().write(&mut state, &mut sessions).unwrap();
    (meta, state, sessions)
}

/// Written and restored.
pub(crate) fn reborn(replica: &Replica, limits: ReplicaLimits) -> Replica {
    let (meta, state, sessions) = written(replica);
    Replica::restore(&meta, &mut &state[..], &mut &sessions[..], &Ledger::factory(), limits).unwrap()
}

/// Remembers each payload that took effect and each session that ended; replies with how many effects there were. `undecodable…` is,
/// `big…` gets a reply of as many bytes as the number behind it says, `panic…` panics.
#[derive(Clone, Default)]
pub(crate) struct Ledger(pub(crate) Vec<Vec<u8>>);

impl Ledger {
    pub(crate) fn factory() -> MachineFactory {
        MachineFactory::raw("ledger", 1, || Box::new(Self::default()), |from| Ok(Box::new(Self::read(from)?)))
    }

    pub(crate) fn read(from: &mut dyn Read) -> Result<Self, RestoreError> {
        let mut from = Source::new(from);
        let mut effects = Vec::new();
        for _ in 0..from.u64()? {
            effects.push(from.bytes(1 << 20)?.to_vec());
        }
        from.end()?;
        Ok(Self(effects))
    }
}

impl Machine for Ledger {
    fn apply(&mut self, command: &[u8], _at: &Position) -> Result<Bytes, Undecodable> {
        assert!(!command.starts_with(b"panic"), "asked to");
        if command.starts_with(b"undecodable") {
            return Err(Undecodable);
        }
        self.0.push(command.to_vec());
        match command.strip_prefix(b"big") {
            Some(size) => Ok(vec![0xBB; std::str::from_utf8(size).unwrap().parse().unwrap()].into()),
            None => Ok(self.0.len().to_string().into()),
        }
    }

    fn session_ended(&mut self, session: SessionId, _at: &Position) {
        self.0.push(format!("end {session}").into());
    }

    fn image(&self) -> Box<dyn Image> {
        Box::new(self.clone())
    }
}

impl Image for Ledger {
    fn write(self: Box<Self>, to: &mut dyn Write) -> std::io::Result<()> {
        let mut bytes = (self.0.len() as u64).to_le_bytes().to_vec();
        self.0.iter().for_each(|effect| put_bytes(&mut bytes, effect));
        to.write_all(&bytes)
    }
}

/// Bytes as lines of 32 hexadecimal pairs, to compare with golden ones.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}
