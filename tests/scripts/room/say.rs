//! The client protocol in words: a line for each frame, and for what the room asks of its owner.

use bytes::{Buf, Bytes};
use relay::room::RoomEvent;
use relay::wire::{FeedMode, ServerFrame, SessionStatus, Start, WireReply};
use voter_mesh::entry::{Entries, EntryKind};
use voter_mesh::ids::{RequestId, SessionId};
use voter_mesh::run::{Run, verdict_at};
use voter_mesh::session::{AttachPayload, EndPayload};

use crate::sessions::outcome;

/// Laid-out entries.
pub(crate) fn entries(bytes: &[u8]) -> String {
    let one = |entry: voter_mesh::entry::EntryRef<'_>| {
        let header = entry.header;
        let speaker = format!("{}/{}", header.session, header.opening);
        match header.kind {
            EntryKind::Command => {
                let payload = match entry.payload {
                    long if long.len() > 32 => format!("{} bytes", long.len()),
                    short => format!("\"{}\"", String::from_utf8_lossy(short)),
                };
                format!("command {} of {speaker} floor {} {payload}", header.request, header.floor)
            }
            EntryKind::SessionOpen => "open".to_owned(),
            EntryKind::SessionAttach => {
                let AttachPayload { nonce, previous } = AttachPayload::decode(entry.payload).unwrap();
                format!("attach {} by {} behind {previous}", header.session, nonce[0])
            }
            EntryKind::SessionEnd => format!("end {speaker} {:?}", EndPayload::decode(entry.payload).unwrap().why).to_lowercase(),
            kind => format!("{kind:?}").to_lowercase(),
        }
    };
    Entries::checked(bytes).map(|entry| one(entry.unwrap())).collect::<Vec<_>>().join("; ")
}

pub(crate) fn event(event: &RoomEvent) -> String {
    let sessions = |all: &[SessionId]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    match event {
        RoomEvent::Propose(all) => format!("room proposes {}", entries(all)),
        RoomEvent::Read(read) => format!("room asks for read {read}"),
        RoomEvent::ReadCancelled(read) => format!("room gives up read {read}"),
        RoomEvent::RunsWanted { from } => format!("room wants the runs from {from}"),
        RoomEvent::StateWanted { least, partial: None } => format!("room wants a state at {least} or later"),
        RoomEvent::StateWanted { least, partial: Some(partial) } => {
            format!("room wants a state at {least} or later, best the one at {}", partial.index)
        }
        RoomEvent::PieceWanted { index, offset } => format!("room wants the state at {index} from byte {offset}"),
        RoomEvent::Activity { attached, detached } => {
            format!("room reports [{}] came, [{}] went", sessions(attached), sessions(detached))
        }
    }
}

fn start(start: Start) -> String {
    match start {
        Start::Tail(index) => format!("feed from {index}"),
        Start::Snapshot(index) => format!("snapshot at {index} or later"),
    }
}

/// Blocks of runs: `4`, or `4-6` for a run of three entries; those that took effect with a star.
fn blocks(bytes: &Bytes) -> String {
    let mut rest = bytes.clone();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let run = Run::split_from(&mut rest).unwrap();
        let header = *run.header();
        let effective: Vec<String> = (0..header.count as usize)
            .filter(|offset| verdict_at(&rest, *offset))
            .map(|offset| format!("*{}", header.first.0 + offset as u64))
            .collect();
        rest.advance(header.verdict_bytes());
        let span = if header.count == 1 { header.first.to_string() } else { format!("{}-{}", header.first, header.last()) };
        all.push([vec![span], effective].concat().join(" "));
    }
    format!("[{}]", all.join(", "))
}

fn request_ids(ids: &[RequestId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn retry(after_ms: Option<u32>) -> String {
    after_ms.map_or(String::new(), |ms| format!(", again after {ms} ms"))
}

pub(crate) fn mode(mode: FeedMode) -> String {
    format!("{mode:?}").to_lowercase()
}

pub(crate) fn server_frame(frame: &ServerFrame) -> String {
    match frame {
        ServerFrame::Admit(admit) => {
            let leader = admit.leader.map_or(String::new(), |leader| format!(", leader {}", leader.seat()));
            let session = match admit.session {
                SessionStatus::None => String::new(),
                SessionStatus::Attached(opening) => format!(", session attached, {opening} holds"),
                SessionStatus::Expired => ", session expired".to_owned(),
            };
            format!("admit, {}, commit {}{leader}{session}", start(admit.start), admit.commit)
        }
        ServerFrame::Refuse { code, retry_after_ms } => format!("refuse {code:?}{}", retry(*retry_after_ms)),
        ServerFrame::SessionOpened { session, opening } => format!("session-opened {session}/{opening}"),
        ServerFrame::Superseded { current } => format!("superseded by {current}"),
        ServerFrame::Feed(bytes) => format!("feed {}", blocks(bytes)),
        ServerFrame::Replies(replies) => {
            let one = |reply: &WireReply| {
                let repeat = if reply.repeat { ", a repeat" } else { "" };
                format!("{} {} at {} t{}{repeat}", reply.id, outcome(&reply.outcome), reply.index, reply.term)
            };
            format!("replies [{}]", replies.iter().map(one).collect::<Vec<_>>().join("; "))
        }
        ServerFrame::Snapshot(chunk) => {
            format!(
                "snapshot at {}, bytes {} to {} of {}",
                chunk.index,
                chunk.offset,
                chunk.offset + chunk.bytes.len() as u64,
                chunk.total
            )
        }
        ServerFrame::Start(at) => format!("start, {}", start(*at)),
        ServerFrame::Commit { index, .. } => format!("commit {index}"),
        ServerFrame::Read { id, index } => format!("read {id} at {index}"),
        ServerFrame::ReadRefused { id, code } => format!("read-refused {id} {code:?}"),
        ServerFrame::ProposeRefused { ids, code, retry_after_ms } => {
            format!("propose-refused [{}] {code:?}{}", request_ids(ids), retry(*retry_after_ms))
        }
        ServerFrame::Runs(bytes) => format!("runs {}", blocks(bytes)),
        ServerFrame::Trimmed { first } => format!("trimmed, first {first}"),
        ServerFrame::Pong { nonce } => format!("pong {nonce}"),
        ServerFrame::Close { code, retry_after_ms, endpoints } => {
            format!("close {code:?}{}, go to [{}]", retry(*retry_after_ms), endpoints.join(" "))
        }
    }
}
