//! Consensus in words: a line for each message, write and event. `4@2` is run 4 of term 2.

use voter_mesh::configuration::{ConfigPayload, Configuration};
use voter_mesh::entry::{Entries, EntryKind, EntryRef};
use voter_mesh::ids::{RaftId, RunIndex, Term};
use voter_mesh::mesh::message::{AdminRequest, Message, ReadNonce, RejectHint};
use voter_mesh::raft::{Event, RaftRole, VoterStatus, Write};
use voter_mesh::run::Run;

use crate::words::Words;

pub(crate) fn server(id: RaftId) -> String {
    if id.life() == 1 { id.seat().to_string() } else { id.to_string() }
}

fn servers(ids: &[RaftId]) -> String {
    ids.iter().map(|id| server(*id)).collect::<Vec<_>>().join(" ")
}

fn configuration(configuration: &Configuration) -> String {
    let mut text = format!("voters {}", servers(&configuration.voters()));
    if configuration.is_joint() {
        text += &format!(" and {}", servers(&configuration.outgoing));
    }
    let standbys = configuration.standbys();
    if !standbys.is_empty() {
        text += &format!(", standbys {}", servers(&standbys));
    }
    text
}

fn entry(entry: &EntryRef<'_>) -> String {
    match entry.header.kind {
        EntryKind::Command => String::from_utf8_lossy(entry.payload).into_owned(),
        EntryKind::Config => {
            let ConfigPayload { base, configuration: next } = ConfigPayload::decode(entry.payload).unwrap();
            format!("config({} from run {base})", configuration(&next))
        }
        kind => format!("{kind:?}").to_lowercase(),
    }
}

fn run(run: &Run) -> String {
    let entries: Vec<String> = run.entries().map(|(_, one)| entry(&one)).collect();
    format!("{}@{} {}", run.header().run, run.header().term, entries.join(" "))
}

pub(crate) fn runs(all: &[Run]) -> String {
    all.iter().map(run).collect::<Vec<_>>().join(", ")
}

fn nonce(nonce: ReadNonce) -> String {
    format!("{}:{}:{}", server(nonce.server), nonce.incarnation.0, nonce.counter)
}

pub(crate) fn message(message: &Message) -> String {
    match message {
        Message::Append { term, previous, previous_term, commit, runs: all } => {
            format!("append t{term} behind {previous}@{previous_term} [{}] commit {commit}", runs(all))
        }
        Message::Commit { term, previous, previous_term, commit } => {
            format!("commit t{term} at {previous}@{previous_term} commit {commit}")
        }
        Message::AppendReply { term, run, reject: None, commit } => format!("append-reply t{term} matches {run}, commit {commit}"),
        Message::AppendReply { term, run, reject: Some(RejectHint { run: hint, term: hint_term }), commit } => {
            format!("append-reply t{term} rejects {run}, try {hint}@{hint_term}, commit {commit}")
        }
        Message::Heartbeat { term, commit, round } => format!("heartbeat t{term} commit {commit}{}", of_round(*round)),
        Message::HeartbeatReply { term, commit, round } => format!("heartbeat-reply t{term} commit {commit}{}", of_round(*round)),
        Message::VoteRequest { term, pre, last, last_term, commit, commit_term, priority, transfer } => {
            let (pre, transfer) = (if *pre { "pre-" } else { "" }, if *transfer { " for a transfer" } else { "" });
            let priority = if *priority == 0 { String::new() } else { format!(" priority {priority}") };
            format!("{pre}vote t{term} last {last}@{last_term} commit {commit}@{commit_term}{priority}{transfer}")
        }
        Message::VoteReply { term, pre, granted, commit, commit_term } => {
            let pre = if *pre { "pre-" } else { "" };
            let said = if *granted { "yes".to_owned() } else { format!("no, commit {commit}@{commit_term}") };
            format!("{pre}vote-reply t{term} {said}")
        }
        Message::TimeoutNow { term } => format!("timeout-now t{term}"),
        Message::Forward { batch, entries } => {
            let entries: Vec<String> = Entries::checked(entries).map(|one| entry(&one.unwrap())).collect();
            format!("forward #{} [{}]", batch.0, entries.join(" "))
        }
        Message::Taken { batch, term, first } => format!("taken #{} t{term} from entry {first}", batch.0),
        Message::Refused { batch, why, leader } => {
            let leader = leader.map_or("nobody".to_owned(), server);
            format!("refused #{} {why:?}, leader {leader}", batch.0)
        }
        Message::ReadIndex { nonce: asked } => format!("read-index {}", nonce(*asked)),
        Message::ReadAnswer { nonce: asked, answer: Ok(run) } => format!("read-answer {} run {run}", nonce(*asked)),
        Message::ReadAnswer { nonce: asked, answer: Err(why) } => format!("read-answer {} {why:?}", nonce(*asked)),
        other => format!("{other:?}"),
    }
}

fn of_round(round: u64) -> String {
    if round == 0 { String::new() } else { format!(" round {round}") }
}

/// `last`: the last run of the log before it.
pub(crate) fn write(write: &Write, last: RunIndex) -> String {
    let mut text = format!("t{} vote {} commit {}", write.term, write.vote.some().map_or("none".to_owned(), server), write.commit);
    if let Some(meta) = &write.install {
        text += &format!(" snapshot {}@{}", meta.tail.run, meta.tail.term);
    }
    if let Some(keep) = write.keep_through.filter(|keep| *keep < last && write.install.is_none()) {
        text += &format!(" cut above {keep}");
    }
    if !write.runs.is_empty() {
        text += &format!(" [{}]", runs(&write.runs));
    }
    text
}

pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Committed(all) => format!("commits [{}]", runs(all)),
        Event::Installed(meta) => format!("installs snapshot {}@{}", meta.tail.run, meta.tail.term),
        Event::Role { term, role, leader } => format!("is {} in t{term}", role_of(*role, *leader)),
        Event::SendSnapshot { to, term, meta } => {
            format!("sends {} snapshot {}@{} in t{term}", server(*to), meta.tail.run, meta.tail.term)
        }
        Event::SnapshotWanted => "wants a newer snapshot taken".to_owned(),
        Event::Fetch { first, last } => format!("reads its own runs {first} to {last}"),
        Event::ReadReady { read, run } => format!("may serve read {read} at run {run}"),
        Event::Admin { request, result } => match result {
            Ok(()) => format!("has done: {}", admin(request)),
            Err(why) => format!("has not done: {} ({why})", admin(request)),
        },
        Event::Overloaded(yes) => format!("is {}overloaded", if *yes { "" } else { "no longer " }),
        Event::HandsOver { to, why } => format!("hands over to {} ({why:?})", server(*to)),
        Event::VoteSettled => "knows that no vote of its own is forgotten".to_owned(),
        Event::Fatal(error) => format!("stops: {error}"),
    }
}

fn admin(request: &AdminRequest) -> String {
    match request {
        AdminRequest::AddSeat { seat, .. } => format!("add {seat}"),
        AdminRequest::Promote { seat } => format!("promote {seat}"),
        AdminRequest::RemoveSeat { seat } => format!("remove {seat}"),
        AdminRequest::Transfer { seat } => format!("transfer {seat}"),
        AdminRequest::Join { seat, .. } => format!("join {seat}"),
    }
}

fn role_of(role: RaftRole, leader: Option<RaftId>) -> String {
    match (role, leader) {
        (RaftRole::Leader, _) => "leader".to_owned(),
        (RaftRole::Candidate, _) => "candidate".to_owned(),
        (RaftRole::Follower, Some(leader)) => format!("follower of {}", server(leader)),
        (RaftRole::Follower, None) => "follower of nobody".to_owned(),
    }
}

pub(crate) fn status(status: &VoterStatus) -> String {
    let mut text = format!("{} is {} in t{}", server(status.id), role_of(status.role, status.leader), status.term);
    text += &format!(", last {}@{}, commit {}", status.last, status.last_term, status.commit);
    if status.suspect {
        text += ", suspect";
    }
    for (id, progress) in status.peers.iter().filter(|(id, _)| **id != status.id) {
        text += &format!("; {} matches {}{}", server(*id), progress.matched, if progress.active { "" } else { " (silent)" });
    }
    text
}

/// A message that a script makes up, as `message` writes it.
pub(crate) fn forged(words: &mut Words<'_>) -> Message {
    let kind = words.word();
    let term = Term(words.word().strip_prefix('t').and_then(|term| term.parse().ok()).unwrap_or_else(|| words.wrong("a term")));
    let mut number = |name: &str| words.after::<u64>(name).unwrap_or_else(|| words.wrong(name));
    match kind {
        "heartbeat" => Message::Heartbeat { term, commit: RunIndex(number("commit")), round: 0 },
        "append-reply" => Message::AppendReply { term, run: RunIndex(number("matches")), reject: None, commit: RunIndex(0) },
        "append" => {
            let (previous, previous_term) = (RunIndex(number("behind")), Term(number("of")));
            Message::Append { term, previous, previous_term, commit: RunIndex(number("commit")), runs: Vec::new() }
        }
        "vote" => {
            let (last, last_term) = (RunIndex(number("last")), Term(number("of")));
            let (commit, commit_term, priority) = (RunIndex(1), Term(1), 0);
            Message::VoteRequest { term, pre: false, last, last_term, commit, commit_term, priority, transfer: false }
        }
        _ => words.wrong("a message that can be forged"),
    }
}
