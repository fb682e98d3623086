//! A sender of bytes that are no protocol: past the handshake or before it, whole frames with wrong bits, frames out of place.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::SinkExt;
use relay::wire::{ClientFrame, FeedMode, Proposal, ResumePoint};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::ids::{Chain, LogIndex, Opening, RequestId};

use super::machine::Machine;
use super::peer::{Peer, connect, hello};
use crate::sim::random::Random;
use crate::sim::record::Phase;

pub(super) async fn main(machine: Rc<Machine>) {
    let shared = &machine.shared;
    shared.settle(machine.id);
    let mut random = machine.random();
    while !shared.is(Phase::Healed) {
        machine.sleep_ms((100, 5_000)).await;
        let server = shared.server(&machine);
        shared.fault("garbage", machine.id);
        match random.below(4) {
            0 => {
                let Ok(mut stream) = shared.world.net.connect(machine.life(), shared.servers[server].1).await else { continue };
                let _ = stream.write_all(&bytes(&mut random)).await;
                machine.sleep_ms((0, 500)).await;
            }
            1 => {
                let Some((_, mut socket)) = connect(&machine, server).await else { continue };
                let _ = socket.send(message(&mut random)).await;
            }
            _ => {
                let Ok(mut peer) = Peer::attach(&machine, server, hello(FeedMode::Full)).await else { continue };
                for _ in 0..random.below(8) {
                    if !peer.send(message(&mut random)).await {
                        break;
                    }
                }
                // Some stay to hear what the server says to that.
                while random.below(3) > 0 && peer.hear().await.is_some() {}
            }
        }
    }
}

fn bytes(random: &mut Random) -> Vec<u8> {
    let length = [0, 3, 40, 3_000][random.below(4) as usize] + random.below(40);
    (0..length).map(|_| random.next() as u8).collect()
}

fn message(random: &mut Random) -> Message {
    match random.below(4) {
        0 => Message::text("hello"),
        1 => Message::Binary(bytes(random).into()),
        2 => Message::Binary(frame(random).encode()),
        _ => {
            let mut wrong = frame(random).encode().to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(wrong.len() as u64) as usize;
                wrong[at] ^= 1 << random.below(8);
            }
            wrong.truncate(1 + random.below(2 * wrong.len() as u64) as usize);
            Message::Binary(wrong.into())
        }
    }
}

/// A frame that decodes, and that a client without a session has no use for.
fn frame(random: &mut Random) -> ClientFrame {
    let number = random.next() >> random.below(64);
    match random.below(8) {
        0 => ClientFrame::Hello(hello(FeedMode::Full)),
        1 => ClientFrame::SessionAttach { nonce: [7; 16], previous: Opening(number) },
        2 => ClientFrame::SessionClose,
        3 => {
            let (id, payload) = (RequestId(number), Bytes::from(bytes(random)));
            ClientFrame::Propose(vec![Proposal { id, floor: RequestId(number / 2), payload }])
        }
        4 => ClientFrame::ReadIndex { id: number },
        5 => ClientFrame::Fetch { from: LogIndex(number), to: LogIndex(number.saturating_add(random.below(100))) },
        6 => {
            let resume = Some(ResumePoint { applied: LogIndex(number), chain: Chain(7) });
            ClientFrame::Resume { resume, feed: FeedMode::Full, unanswered: Vec::new(), partial: None }
        }
        _ => ClientFrame::Ack { applied: LogIndex(number) },
    }
}
