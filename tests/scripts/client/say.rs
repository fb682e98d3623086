//! The client's words: what it sends, journals, and tells its owner, a line each.

use bytes::Bytes;
use cluster_client::core::{Event, JournalBatch, LinkId};
use cluster_client::journal::record::Record;
use cluster_client::{ProposeError, ReserveError, Status, Ticket};
use relay::wire::{ClientFrame, Hello, PartialState, Proposal, ResumePoint};
use voter_mesh::ids::RequestId;

use super::Named;
use crate::room::say::mode;

pub(crate) fn link(link: LinkId) -> char {
    char::from(b'a' + link.0 as u8 - 1)
}

fn payload(bytes: &[u8]) -> String {
    if bytes.len() > 32 { format!("{} bytes", bytes.len()) } else { format!("\"{}\"", String::from_utf8_lossy(bytes)) }
}

fn ids(ids: &[RequestId]) -> String {
    if ids.is_empty() {
        return String::new();
    }
    format!(", unanswered {}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

fn place(resume: Option<ResumePoint>, partial: Option<PartialState>) -> String {
    let resume = resume.map_or(String::new(), |point| format!(", resume behind {}", point.applied));
    let partial = partial.map_or(String::new(), |part| format!(", {} bytes of the state at {}", part.bytes, part.index));
    format!("{resume}{partial}")
}

pub(crate) fn client_frame(frame: &ClientFrame) -> String {
    match frame {
        ClientFrame::Hello(Hello { epoch, session, resume, feed, unanswered, partial, .. }) => {
            let epoch = epoch.map_or(String::new(), |epoch| format!(", epoch {epoch}"));
            let session = session.as_ref().map_or(String::new(), |proof| {
                let opening = proof.opening.map_or("?".to_owned(), |opening| opening.to_string());
                format!(", session {}/{opening}", proof.session)
            });
            format!("hello {}{epoch}{session}{}{}", mode(*feed), place(*resume, *partial), ids(unanswered))
        }
        ClientFrame::SessionOpen { .. } => "open".to_owned(),
        ClientFrame::SessionAttach { nonce, previous } => format!("attach {:02x} behind {previous}", nonce[0]),
        ClientFrame::SessionClose => "close-session".to_owned(),
        ClientFrame::Propose(proposals) if proposals.len() > 4 => {
            format!("propose {} to {}, floor {}", proposals[0].id, proposals[proposals.len() - 1].id, proposals[0].floor)
        }
        ClientFrame::Propose(proposals) => {
            let one = |proposal: &Proposal| format!("{} {} floor {}", proposal.id, payload(&proposal.payload), proposal.floor);
            format!("propose {}", proposals.iter().map(one).collect::<Vec<_>>().join("; "))
        }
        ClientFrame::ReadIndex { id } => format!("read-index {id}"),
        ClientFrame::Fetch { from, to } => format!("fetch {from} to {to}"),
        ClientFrame::Resume { resume, feed, unanswered, partial } => {
            format!("resume {}{}{}", mode(*feed), place(*resume, *partial), ids(unanswered))
        }
        ClientFrame::Ack { applied } => format!("ack {applied}"),
        ClientFrame::Ping { .. } => "ping".to_owned(),
    }
}

pub(crate) fn batch(batch: &JournalBatch) -> String {
    let one = |record: &Record| match record {
        Record::Secret(_) => "a secret".to_owned(),
        Record::Session(session) => format!("session {}/{} of epoch {}", session.session, session.opening, session.epoch),
        Record::Nonce(nonce) => format!("nonce {:02x}", nonce[0]),
        Record::IdEnd(end) => format!("ids below {end}"),
        Record::Request(id, bytes) => format!("request {id} {}", payload(bytes)),
        Record::Answered(id) => format!("answered {id}"),
        Record::Reserved(id) => format!("reserved {id}"),
        Record::Ended => "the session is given up".to_owned(),
    };
    let mut all: Vec<String> = batch.records.iter().take(4).map(one).collect();
    if batch.records.len() > 4 {
        all.push(format!("and {} more", batch.records.len() - 4));
    }
    format!("[{}]{}", all.join(", "), if batch.durable { ", durable" } else { "" })
}

fn propose_error(error: &ProposeError) -> String {
    match error {
        ProposeError::NotSent { .. } => format!("not sent: {error}").replacen("not sent: not sent", "not sent", 1),
        other => other.to_string(),
    }
}

fn reserve_error(error: &ReserveError) -> String {
    error.to_string()
}

pub(crate) fn event(event: &Event<Named>) -> String {
    match event {
        Event::Dial { link: to, endpoint } => format!("{} dials {endpoint}", link(*to)),
        Event::Hangup { link: from } => format!("{} is dropped", link(*from)),
        Event::Begin { index, .. } => format!("the learner begins behind {index}"),
        Event::Feed { link: from, blocks } => {
            let first = voter_mesh::run::RunHeader::decode(blocks).map(|header| header.first.0);
            format!("the learner applies from {}, which {} sent", first.unwrap_or(0), link(*from))
        }
        Event::Install(snapshot) => format!("the learner takes the state at {}, {} bytes", snapshot.index, snapshot.state.len()),
        Event::Reset => "the learner goes back to its first state".to_owned(),
        Event::Proposed { waiter, result: Ok(answer), .. } => {
            let repeat = if answer.repeat { ", a repeat" } else { "" };
            format!("{waiter}: applied at {} t{}{repeat}, {}", answer.index, answer.term, payload(&answer.reply))
        }
        Event::Proposed { waiter, result: Err(error), .. } => format!("{waiter}: {}", propose_error(error)),
        Event::Reserved { waiter, result: Ok(ticket) } => format!("{waiter}: ticket {ticket}"),
        Event::Reserved { waiter, result: Err(error) } => format!("{waiter}: {}", reserve_error(error)),
        Event::Read { waiter, result: Ok(()) } => format!("{waiter}: may read"),
        Event::Read { waiter, result: Err(error) } => format!("{waiter}: {error}"),
        Event::Fetched { waiter, .. } => format!("{waiter}: fetched"),
    }
}

pub(crate) fn open(ticket: &Ticket, bytes: Option<&Bytes>) -> String {
    bytes.map_or(format!("{ticket} reserved"), |bytes| format!("{ticket} {}", payload(bytes)))
}

pub(crate) fn status(status: &Status) -> String {
    match status {
        Status::Connecting { attempt, last_error } => {
            format!("connecting, {attempt} failed{}", last_error.as_ref().map_or(String::new(), |error| format!(", last: {error}")))
        }
        Status::CatchingUp { applied, target, epoch } => format!("catching up, {applied} of {target}, epoch {epoch}"),
        Status::Live { applied, epoch, .. } => format!("live, applied {applied}, epoch {epoch}"),
        Status::FailingOver { attempt, last_error } => {
            format!(
                "failing over, {attempt} failed{}",
                last_error.as_ref().map_or(String::new(), |error| format!(", last: {error}"))
            )
        }
        Status::Closed { why } => format!("closed: {why}"),
    }
}
