//! Follows one server's full feed for ever, and writes down every run that it is given.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use relay::wire::{ClientFrame, Code, FeedMode, ResumePoint, ServerFrame, SnapshotChunk, Start};
use sha2::{Digest, Sha256};
use voter_mesh::ids::{LogIndex, Seat};
use voter_mesh::run::Run;

use super::machine::Machine;
use super::peer::{NoLink, Peer, hello};
use crate::sim::record::{LearnerId, Phase, What};

/// Where it stands, over all its links.
#[derive(Default)]
pub(super) struct Follower {
    position: Option<ResumePoint>,
    /// The part of a snapshot that has come.
    state: BytesMut,
}

pub(super) async fn main(machine: Rc<Machine>, server: usize) {
    let (mut follower, learner) = (Follower::default(), machine.learner());
    while !machine.shared.is(Phase::Over) {
        match Peer::attach(&machine, server, follower.hello()).await {
            Ok(peer) => follow(&machine, &mut follower, learner, peer).await,
            Err(NoLink::Refused(Code::Diverged)) => {
                let place = follower.position;
                machine.shared.complain(machine.id, format_args!("server {server} has another history at {place:?}"));
                follower = Follower::default();
            }
            Err(_) => {}
        }
        machine.sleep_ms((20, 400)).await;
    }
}

async fn follow(machine: &Rc<Machine>, follower: &mut Follower, learner: LearnerId, mut peer: Peer) {
    follower.begin(peer.admit.start);
    loop {
        let frame = tokio::select! {
            biased;
            frame = peer.hear() => frame,
            () = caught_up(machine, follower) => {
                machine.shared.settle(machine.id);
                machine.shared.reaches(Phase::Over).await;
                return;
            }
        };
        let Some(frame) = frame else { return };
        if let Err(why) = follower.take(machine, learner, peer.server, frame) {
            machine.shared.complain(machine.id, format_args!("server {}: {why}", peer.server));
            *follower = Follower::default();
            return;
        }
    }
}

/// Waits until nobody asks for more and nobody knows more.
async fn caught_up(machine: &Rc<Machine>, follower: &Follower) {
    machine.shared.all_written().await;
    // New frames begin this anew.
    machine.sleep_ms((2_000, 2_000)).await;
    if follower.position.is_none_or(|place| place.applied < machine.shared.highest.get()) {
        std::future::pending::<()>().await;
    }
}

impl Follower {
    pub(super) fn hello(&self) -> relay::wire::Hello {
        relay::wire::Hello { resume: self.position, ..hello(FeedMode::Full) }
    }

    pub(super) fn begin(&mut self, _: Start) {
        self.state.clear();
    }

    /// Takes a frame in.
    pub(super) fn take(&mut self, machine: &Machine, learner: LearnerId, server: Seat, frame: ServerFrame) -> Result<(), String> {
        match frame {
            ServerFrame::Feed(blocks) => self.feed(machine, server, blocks),
            ServerFrame::Start(start) => {
                self.begin(start);
                Ok(())
            }
            ServerFrame::Snapshot(piece) => self.piece(machine, learner, piece),
            _ => Ok(()),
        }
    }

    fn feed(&mut self, machine: &Machine, server: Seat, mut blocks: Bytes) -> Result<(), String> {
        while !blocks.is_empty() {
            let run = Run::split_from(&mut blocks).map_err(|error| error.to_string())?;
            let header = run.header();
            if blocks.len() < header.verdict_bytes() {
                return Err("a block without its verdicts".to_owned());
            }
            let place = self.position.map_or((LogIndex::ZERO, None), |place| (place.applied, Some(place.chain)));
            if header.first != place.0.next() || place.1.is_some_and(|chain| chain != header.chain_before) {
                return Err(format!("the feed goes on with {header:?} behind {place:?}"));
            }
            let verdicts = blocks.split_to(header.verdict_bytes());
            self.position = Some(ResumePoint { applied: header.last(), chain: header.chain_after });
            machine.shared.saw(header.last());
            machine.shared.world.recorder.record(What::Feed { server, run, verdicts });
        }
        Ok(())
    }

    fn piece(&mut self, machine: &Machine, learner: LearnerId, piece: SnapshotChunk) -> Result<(), String> {
        if piece.offset == 0 {
            self.state.clear();
        }
        if piece.offset != self.state.len() as u64 {
            return Err(format!("a piece at {} behind {} bytes", piece.offset, self.state.len()));
        }
        self.state.extend_from_slice(&piece.bytes);
        if self.state.len() as u64 == piece.total {
            let hash: [u8; 32] = Sha256::digest(self.state.split()).into();
            if hash != piece.hash {
                return Err("a state that has not the hash that was said".to_owned());
            }
            self.position = Some(ResumePoint { applied: piece.index, chain: piece.chain });
            let (index, chain) = (piece.index, Some(piece.chain));
            machine.shared.world.recorder.record(What::Learnt { learner, index, chain, state_hash: Some(hash) });
        }
        Ok(())
    }
}

/// Tells a server how far a follower is.
pub(super) fn ack(follower: &Follower) -> Option<ClientFrame> {
    follower.position.map(|place| ClientFrame::Ack { applied: place.applied })
}
