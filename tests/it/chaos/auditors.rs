//! Follow every server's full feed, for ever, and record every run of it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use relay::wire::{ClientFrame, FeedMode, Hello, ResumePoint, ServerFrame};
use tests::sim::record::{Recorder, What};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::ids::{LogIndex, Seat};
use voter_mesh::run::Run;

use crate::peer::hello;

/// How long a link may take to come to be, and be silent.
const LINK_MAX: Duration = Duration::from_secs(5);

/// Between pings.
const PING: Duration = Duration::from_secs(1);

/// Follows `server`; `reached` says how far.
pub(super) async fn follow(recorder: Recorder, server: Seat, url: String, reached: Rc<Cell<LogIndex>>) {
    let mut position = None;
    loop {
        let _ = link(&recorder, server, &url, &mut position, &reached).await;
        sleep(Duration::from_millis(100)).await;
    }
}

/// Why a link has ended is nobody's concern: there will be another.
struct Torn;

impl<E: std::error::Error> From<E> for Torn {
    fn from(_: E) -> Self {
        Self
    }
}

async fn link(
    recorder: &Recorder,
    server: Seat,
    url: &str,
    position: &mut Option<ResumePoint>,
    reached: &Cell<LogIndex>,
) -> Result<(), Torn> {
    let (mut socket, _) = timeout(LINK_MAX, tokio_tungstenite::connect_async(url)).await??;
    let hello = Hello { resume: *position, ..hello(FeedMode::Full) };
    socket.send(Message::Binary(ClientFrame::Hello(hello).encode())).await?;
    let (mut pings, mut heard) = (interval(PING), Instant::now());
    while heard.elapsed() < LINK_MAX {
        let message = tokio::select! {
            message = socket.next() => message.ok_or(Torn)??,
            _ = pings.tick() => {
                timeout(LINK_MAX, socket.send(Message::Binary(ClientFrame::Ping { nonce: 1 }.encode()))).await??;
                continue;
            }
        };
        heard = Instant::now();
        let Message::Binary(bytes) = message else { continue };
        match ServerFrame::decode(&bytes)? {
            ServerFrame::Feed(blocks) => *position = Some(feed(recorder, server, blocks)?),
            // What lies before it is gone here; another server's feed has it.
            ServerFrame::Snapshot(piece) if piece.offset + piece.bytes.len() as u64 == piece.total => {
                *position = Some(ResumePoint { applied: piece.index, chain: piece.chain });
            }
            _ => {}
        }
        reached.set(position.map_or(LogIndex::ZERO, |place| place.applied));
    }
    Ok(())
}

fn feed(recorder: &Recorder, server: Seat, mut blocks: Bytes) -> Result<ResumePoint, Torn> {
    loop {
        let run = Run::split_from(&mut blocks)?;
        let header = *run.header();
        let verdicts = blocks.split_to(header.verdict_bytes());
        recorder.record(What::Feed { server, run, verdicts });
        if blocks.is_empty() {
            return Ok(ResumePoint { applied: header.last(), chain: header.chain_after });
        }
    }
}
