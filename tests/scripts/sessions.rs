//! Sessions as every replica judges them: each command line is one run, its entries apart by `;`, and what came of each stands
//! beneath. Beside the replica stands the leader's book of who is attached.

use std::collections::BTreeMap;

use bytes::Bytes;
use voter_mesh::configuration::Configuration;
use voter_mesh::entry::{EntryKind, EntrySpec, entry};
use voter_mesh::ids::{
    ClusterId, Epoch, Identity, LogIndex, Opening, RaftId, RequestId, RoomId, Seat, SessionId, Term, Time, TimeMs,
};
use voter_mesh::outcome::{Outcome, Reply};
use voter_mesh::replica::{Replica, ReplicaLimits};
use voter_mesh::run::Run;
use voter_mesh::session::liveness::Liveness;
use voter_mesh::session::{AttachPayload, EndPayload, EndReason, SessionEvent, SessionLimits, SessionProofResult, secret_hash};
use voter_mesh::snapshot::SnapshotMeta;

use crate::words::Words;
use crate::{Runner, ledger};

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

pub(crate) struct World {
    limits: ReplicaLimits,
    replica: Replica,
    term: Term,
    /// By name: session and current opening.
    sessions: BTreeMap<String, (SessionId, Opening)>,
    liveness: Liveness,
    now: Time,
}

impl Default for World {
    fn default() -> Self {
        let limits = ReplicaLimits::default();
        Self {
            limits,
            replica: Replica::form(IDENTITY, Configuration::default(), &ledger::factory(), limits),
            term: Term(1),
            sessions: BTreeMap::new(),
            liveness: Liveness::default(),
            now: Time::default(),
        }
    }
}

fn secret(name: &str) -> [u8; 32] {
    [name.as_bytes()[0]; 32]
}

pub(crate) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Applied(reply) if reply.len() > 16 => format!("applied, {} bytes", reply.len()),
        Outcome::Applied(reply) => format!("applied \"{}\"", String::from_utf8_lossy(reply)),
        Outcome::Elided(hash) => format!("elided {:02x}{:02x}", hash[0], hash[1]),
        Outcome::Superseded(current) => format!("superseded by {current}"),
        Outcome::Undecodable => "undecodable".to_owned(),
        Outcome::Conflict => "conflict".to_owned(),
        Outcome::Stale => "stale".to_owned(),
        Outcome::WindowBroken => "window broken".to_owned(),
        Outcome::SessionExpired => "session expired".to_owned(),
    }
}

fn reply(reply: &Reply) -> String {
    let Reply { session, opening, request, index, term, repeat, outcome: what, .. } = reply;
    let repeat = if *repeat { ", a repeat" } else { "" };
    format!("request {request} of {session}/{opening}: {} at {index} t{term}{repeat}", outcome(what))
}

fn event(event: &SessionEvent) -> String {
    match event {
        SessionEvent::Replied(what) => reply(what),
        SessionEvent::Opened { session, opening, .. } => format!("session {session} is open under {opening}"),
        SessionEvent::OpenRefused { .. } => "no session was opened".to_owned(),
        SessionEvent::Attached { session, nonce, opening } => {
            format!("session {session} is attached by {} under {opening}", nonce[0])
        }
        SessionEvent::Superseded { session, nonce, current } => {
            format!("session {session} is not attached by {}, {current} holds", nonce[0])
        }
        SessionEvent::Ended { session } => format!("session {session} is gone"),
    }
}

impl World {
    fn session(&self, name: &str) -> (SessionId, Opening) {
        *self.sessions.get(name).unwrap_or_else(|| panic!("no session is called {name}"))
    }

    /// An entry, as its words say.
    fn entry(&self, words: &mut Words<'_>) -> (Bytes, Option<String>) {
        let verb = words.word();
        if verb == "noop" {
            return (entry(&EntrySpec::internal(EntryKind::Noop), &[]).unwrap(), None);
        }
        let name = words.word();
        if verb == "open" {
            return (entry(&EntrySpec::internal(EntryKind::SessionOpen), &secret_hash(&secret(name))).unwrap(), Some(name.into()));
        }
        let (session, opening) = name.parse().map_or_else(|_| self.session(name), |id| (SessionId(id), Opening(id)));
        let (spec, payload) = match verb {
            "command" => {
                let (request, payload) = (RequestId(words.parse()), words.word());
                let floor = RequestId(words.after("floor").unwrap_or(0));
                let opening = words.after("opening").map_or(opening, Opening);
                let kind = EntryKind::Command;
                (EntrySpec { kind, room: RoomId(0), session, opening, request, floor }, payload.as_bytes().to_vec())
            }
            "attach" => {
                let nonce = [words.parse(); 16];
                let previous = words.after("previous").map_or(opening, Opening);
                let payload = AttachPayload { nonce, previous }.encode();
                (EntrySpec { session, ..EntrySpec::internal(EntryKind::SessionAttach) }, payload)
            }
            "close" | "expire" | "end-broken" => {
                let (why, opening) = match verb {
                    "close" => (EndReason::Closed, words.after("opening").map_or(opening, Opening)),
                    "expire" => (EndReason::Expired, Opening(0)),
                    _ => (EndReason::WindowBroken, Opening(0)),
                };
                let last = self.replica.sessions().last_activity(session).unwrap_or(LogIndex::ZERO);
                let last_activity = words.after("last").map_or(last, LogIndex);
                let payload = EndPayload { why, last_activity }.encode();
                (EntrySpec { session, opening, ..EntrySpec::internal(EntryKind::SessionEnd) }, payload.to_vec())
            }
            _ => words.wrong("a verb of sessions"),
        };
        let opens = (verb == "attach").then(|| name.to_owned());
        (entry(&spec, &payload).unwrap(), opens)
    }

    /// Seals and applies one run.
    fn apply(&mut self, words: &mut Words<'_>) -> Vec<String> {
        let mut entries = Vec::new();
        loop {
            entries.push(self.entry(words));
            if !words.is(";") {
                break;
            }
        }
        let parts: Vec<&[u8]> = entries.iter().map(|(bytes, _)| bytes.as_ref()).collect();
        let run = Run::seal(self.replica.tail(), self.term, TimeMs(0), Epoch(1), RoomId(0), &parts).unwrap();
        let applied = self.replica.apply(&run).unwrap();
        let mut events = applied.events.iter().peekable();
        let mut out = Vec::new();
        for (offset, ((index, one), (_, opens))) in run.entries().zip(entries).enumerate() {
            let effect = if applied.verdicts.get(offset) { " *" } else { "" };
            let told = if matches!(one.header.kind, EntryKind::Noop) { None } else { events.next() };
            if let (
                Some(name),
                Some(SessionEvent::Opened { session, opening, .. } | SessionEvent::Attached { session, opening, .. }),
            ) = (opens, told)
            {
                self.sessions.insert(name, (*session, *opening));
            }
            out.push(format!("{index}{effect}: {}", told.map_or("nothing".to_owned(), event)));
        }
        assert!(events.peek().is_none(), "more events than entries");
        if applied.snapshot_due {
            out.push("a snapshot is due".to_owned());
        }
        out
    }

    fn written(&self) -> (SnapshotMeta, Vec<u8>, Vec<u8>) {
        let (mut state, mut sessions) = (Vec::new(), Vec::new());
        let meta = self.replica.image().write(&mut state, &mut sessions).unwrap();
        (meta, state, sessions)
    }

    fn line(&mut self, words: &mut Words<'_>) -> Vec<String> {
        match words.word() {
            "run" => return self.apply(words),
            // Other limits than the defaults, from the beginning.
            "limits" => {
                if let Some(window_max) = words.after("window") {
                    self.limits.sessions = SessionLimits { window_max, ..self.limits.sessions };
                }
                if let Some(sessions_max) = words.after("sessions") {
                    self.limits.sessions = SessionLimits { sessions_max, ..self.limits.sessions };
                }
                self.limits.snapshot_entries = words.after("snapshot-entries").unwrap_or(self.limits.snapshot_entries);
                self.replica = Replica::form(IDENTITY, Configuration::default(), &ledger::factory(), self.limits);
            }
            "term" => self.term = Term(words.parse()),
            // The replica is written, and goes on from what was written.
            "snapshot" => {
                let (meta, state, sessions) = self.written();
                self.replica =
                    Replica::restore(&meta, &mut &state[..], &mut &sessions[..], &ledger::factory(), self.limits).unwrap();
                let again = self.written();
                let same = (&meta, &state, &sessions) == (&again.0, &again.1, &again.2);
                return vec![format!(
                    "stands at {}, and writes {}",
                    meta.tail.last,
                    if same { "the same" } else { "something else" }
                )];
            }
            "effects" => return vec![ledger::effects(&self.written().1)],
            // What a server knows without the log.
            "asked" => {
                let (session, request) = (self.session(words.word()).0, RequestId(words.parse()));
                return vec![self.replica.sessions().recorded(session, request).map_or("not judged yet".into(), |one| reply(&one))];
            }
            "prove" => {
                let (session, whose) = (self.session(words.word()).0, words.word());
                return vec![match self.replica.sessions().prove(session, &secret(whose)) {
                    SessionProofResult::Proven(opening) => format!("proven, {opening} holds"),
                    SessionProofResult::WrongSecret => "another secret".to_owned(),
                    SessionProofResult::Unknown => "no such session".to_owned(),
                }];
            }
            "broken" => {
                let broken: Vec<String> = self.replica.sessions().needs_end().map(|session| session.to_string()).collect();
                return vec![format!("to be ended: [{}]", broken.join(" "))];
            }
            "activity" => {
                let all = self.replica.sessions().activity().map(|(session, last)| format!("{session} at {last}"));
                return vec![all.collect::<Vec<_>>().join(", ")];
            }
            // The leader's book.
            "pass" => self.now = self.now.plus_ms(words.parse()),
            "lead" => self.liveness.lead(self.now),
            "resign" => self.liveness.resign(),
            "report" => {
                let server = RaftId::new(Seat(words.parse()), 1);
                let came = words.word() == "came";
                let session = [self.session(words.word()).0];
                let (attached, detached): (&[_], &[_]) = if came { (&session, &[]) } else { (&[], &session) };
                self.liveness.report(server, attached, detached, self.now);
            }
            "lost" => self.liveness.lost(RaftId::new(Seat(words.parse()), 1), self.now),
            "due" => {
                let ttl_ms = words.parse();
                let table: Vec<SessionId> = self.replica.sessions().activity().map(|(session, _)| session).collect();
                let due = self.liveness.due(table.into_iter(), ttl_ms, self.now);
                return vec![format!("due: [{}]", due.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))];
            }
            _ => words.wrong("a verb of sessions"),
        }
        Vec::new()
    }
}

impl Runner for World {
    fn command(&mut self, words: &mut Words<'_>) -> Vec<String> {
        self.line(words)
    }

    fn unread(&mut self) -> Vec<String> {
        Vec::new()
    }
}
