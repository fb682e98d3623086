//! A raw client that asks for what must be refused: room in a session table that is full, and a feed behind a history that never was.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use relay::wire::{ClientFrame, FeedMode, Hello, Proposal, ResumePoint, ServerFrame, SessionSecret, Start};
use tokio::time::timeout;
use voter_mesh::ids::{Chain, LogIndex, RequestId};
use voter_mesh::machine::kv::KvCommand;
use voter_mesh::machine::to_cbor;

use super::machine::Machine;
use super::peer::{NoLink, Peer, hello};
use crate::sim::record::{Operation, Phase};

/// How long it waits for what a server has to say to it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries.
const PAUSE_MS: (u64, u64) = (200, 4_000);

/// Sessions that it asks for, one after the other: about as many as the table holds in worlds that it is in.
const SESSIONS: u64 = 16;

pub(super) async fn main(machine: Rc<Machine>) {
    let shared = &machine.shared;
    // There is nothing that it waits for.
    shared.settle(machine.id);
    while !shared.is(Phase::Healed) {
        machine.sleep_ms(PAUSE_MS).await;
        if machine.below(4) > 0 {
            pretend(&machine).await;
            continue;
        }
        shared.fault("sessions_hoarded", machine.id);
        for _ in 0..machine.below(2 * SESSIONS) {
            hoard(&machine).await;
        }
    }
}

/// The next frame of a kind, if it comes soon.
async fn next<T>(peer: &mut Peer, of: impl Fn(ServerFrame) -> Option<T>) -> Option<T> {
    let frames = async {
        loop {
            if let Some(found) = of(peer.hear().await?) {
                return Some(found);
            }
        }
    };
    timeout(PATIENCE, frames).await.ok().flatten()
}

/// Opens a session, uses it once, and leaves it to expire.
async fn hoard(machine: &Rc<Machine>) -> Option<()> {
    let mut secret = [0; 32];
    secret.fill_with(|| machine.below(256) as u8);
    let mut peer = Peer::attach(machine, machine.shared.server(machine), hello(FeedMode::Thin)).await.ok()?;
    peer.say(&ClientFrame::SessionOpen { secret: SessionSecret(secret) }).await.then_some(())?;
    let opened = |frame| match frame {
        ServerFrame::SessionOpened { session, opening } => Some((session, opening)),
        _ => None,
    };
    let (session, opening) = next(&mut peer, opened).await?;
    let (id, key) = (RequestId(1), format!("t{}.{session}", machine.id.0).into_bytes());
    let payload: Bytes = to_cbor(&KvCommand::Put { key, value: b"here".to_vec() }).ok()?;
    let operation = Operation::Send { session, opening, request: id, payload: payload.clone() };
    let _ = machine.shared.world.recorder.call(machine.id, operation);
    peer.say(&ClientFrame::Propose(vec![Proposal { id, floor: id, payload }])).await.then_some(())?;
    // What is dropped before it left was never asked.
    next(&mut peer, |frame| matches!(frame, ServerFrame::Replies(_)).then_some(())).await
}

/// Learns where the history stands, and comes back to the same place with another one.
async fn pretend(machine: &Rc<Machine>) -> Option<()> {
    let shared = &machine.shared;
    let server = shared.server(machine);
    let mut peer = Peer::attach(machine, server, hello(FeedMode::Standby)).await.ok()?;
    let told = |frame| match frame {
        ServerFrame::Commit { index, chain } if index > LogIndex::ZERO => Some((index, chain)),
        _ => None,
    };
    let (applied, Chain(chain)) = next(&mut peer, told).await?;
    shared.fault("another_history", machine.id);
    let resume = Some(ResumePoint { applied, chain: Chain(chain ^ 1) });
    match Peer::attach(machine, server, Hello { resume, ..hello(FeedMode::Full) }).await {
        Ok(peer) if matches!(peer.admit.start, Start::Tail(_)) => {
            let (server, start) = (peer.server, peer.admit.start);
            shared.complain(machine.id, format_args!("server {server} lets in who has another history at {applied}: {start:?}"));
        }
        // A snapshot takes the place of whatever history somebody has.
        Ok(_) | Err(NoLink::Refused(_) | NoLink::Torn) => {}
    }
    Some(())
}
