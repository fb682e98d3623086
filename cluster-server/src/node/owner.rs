//! What the mesh tells this server: links, messages, snapshots on their way in.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tracing::{debug, warn};
use voter_mesh::ids::{Incarnation, RunIndex, Seat, Time};
use voter_mesh::log::NoRuns;
use voter_mesh::mesh::forming::FormMessage;
use voter_mesh::mesh::message::{AdminRequest, Message};
use voter_mesh::raft::Peer;

use super::admin::AdminWaiter;
use super::running::Running;
use super::{Core, Node, Stage, recovering, snapshots};
use crate::disk::LogReader;
use crate::mesh::{Disconnect, Link, MeshMessage, MeshOwner, PeerHello, RunsAnswer, SelfHello, SinkFuture, SnapshotOffer};

/// The mesh's way into a node. A type of its own because the mesh holds on to its owner, and the node to its mesh.
pub(super) struct Owner(pub(super) std::rc::Weak<Node>);

impl MeshOwner for Owner {
    fn self_hello(&self) -> SelfHello {
        self.0.upgrade().map(|node| node.hello()).unwrap_or_default()
    }

    fn link_up(&self, peer: PeerHello, link: Link) {
        let Some(node) = self.0.upgrade() else { return };
        let now = node.now();
        debug!(seat = %peer.seat, id = ?peer.id, "link up");
        let mut core = node.core.borrow_mut();
        core.links.insert(peer.seat, link);
        match &mut core.stage {
            Stage::Unformed(unformed) => unformed.forming().handle_connected(&peer),
            Stage::Recovering(recovering) => recovering.link_up(&peer, now),
            Stage::Running(running) => running.link_up(&peer, now),
        }
        core.learn_endpoints(&node);
        drop(core);
        node.wake.notify_one();
    }

    fn message(&self, from: Seat, _incarnation: Incarnation, message: MeshMessage) {
        let Some(node) = self.0.upgrade() else { return };
        let now = node.now();
        let mut core = node.core.borrow_mut();
        core.mesh_message(from, message, &node, now);
        drop(core);
        node.wake.notify_one();
    }

    fn link_down(&self, seat: Seat, _incarnation: Incarnation, how: Disconnect) {
        let Some(node) = self.0.upgrade() else { return };
        let now = node.now();
        debug!(%seat, ?how, "link down");
        let mut core = node.core.borrow_mut();
        let link = core.links.remove(&seat);
        core.newcomers.remove(&seat);
        match &mut core.stage {
            Stage::Unformed(unformed) => unformed.forming().handle_disconnected(seat),
            Stage::Recovering(recovering) => {
                if let Some(id) = link.and_then(|link| link.peer().id) {
                    recovering.link_down(id, now);
                }
            }
            Stage::Running(running) => {
                if let Some(id) = link.and_then(|link| link.peer().id) {
                    running.voter.handle_disconnected(id, how, now);
                    running.liveness.lost(id, now);
                }
            }
        }
        drop(core);
        node.wake.notify_one();
    }

    fn snapshot_begin(&self, from: Seat, _incarnation: Incarnation, offer: SnapshotOffer) -> SinkFuture {
        let Some(node) = self.0.upgrade() else { return ready(Err("the server is stopping".into())).boxed_local() };
        let sender = node.core.borrow().links.get(&from).and_then(|link| link.peer().id);
        match sender {
            Some(sender) => snapshots::receive(node, sender, offer),
            None => ready(Err("the sender has no id".into())).boxed_local(),
        }
    }

    fn runs_asked(&self, _from: Seat, first: RunIndex, last: RunIndex) -> LocalBoxFuture<'static, RunsAnswer> {
        match self.0.upgrade() {
            Some(node) => recovering::read_for_peer(node, first, last).boxed_local(),
            None => ready(Err(NoRuns::NotYet)).boxed_local(),
        }
    }
}

impl Running {
    pub(super) fn link_up(&mut self, peer: &PeerHello, now: Time) {
        if let Some(id) = peer.id
            && peer.identity == Some(self.replica.identity())
        {
            self.voter.handle_connected(Peer { id, incarnation: peer.incarnation }, now);
        }
    }
}

impl Core {
    /// Reads what this server holds, if it can say what that is.
    pub(super) fn reader(&self) -> Option<LogReader> {
        match &self.stage {
            Stage::Running(running) => Some(running.reader.clone()),
            Stage::Recovering(recovering) => recovering.reader(),
            Stage::Unformed(_) => None,
        }
    }

    fn mesh_message(&mut self, from: Seat, message: MeshMessage, node: &Node, now: Time) {
        let Some(link) = self.links.get(&from) else { return };
        match (&mut self.stage, message) {
            (Stage::Unformed(unformed), MeshMessage::Form(message)) => unformed.forming().handle_message(from, message),
            (Stage::Unformed(_), MeshMessage::Raft(_)) | (Stage::Running(_) | Stage::Recovering(_), MeshMessage::Form(_)) => {}
            (Stage::Recovering(_), MeshMessage::Raft(message)) => recovering::refuse(&message, link, node),
            (Stage::Running(running), MeshMessage::Raft(message)) => match message {
                Message::Admin { nonce, request } => {
                    let newcomer = link.peer().id.is_none();
                    match (newcomer, &request) {
                        (true, AdminRequest::Join { seat, directory }) if (*seat, *directory) == (from, link.peer().directory) => {
                            self.newcomers.insert(from);
                            running.admin_asked(request, AdminWaiter::Newcomer, node.options.limits.admin_ms, now);
                            self.welcome_newcomers();
                        }
                        (true, _) => {
                            node.count("mesh_messages_refused");
                            link.close("a server without an id may only ask to be let in");
                        }
                        (false, _) => {
                            running.admin_asked(request, AdminWaiter::Peer(from, nonce), node.options.limits.admin_ms, now)
                        }
                    }
                }
                Message::AdminReply { nonce, result } => running.admin_answered(nonce, result, &self.links),
                Message::SnapshotHashes(hashes) => {
                    if let Some(id) = link.peer().id {
                        running.hear_hashes(id, hashes);
                    }
                }
                Message::SessionActivity { attached, detached } => {
                    if let Some(id) = link.peer().id {
                        running.liveness.report(id, &attached, &detached, now);
                    }
                }
                message => {
                    let Some(id) = link.peer().id else { return };
                    if let Err(error) = running.voter.handle_message(id, message, now) {
                        warn!(%id, %error, "message refused");
                        node.count("mesh_messages_refused");
                        link.close("it sent a message that cannot be");
                    }
                }
            },
        }
    }

    /// Tells the newcomers that asked to be let in and that the configuration names by now.
    pub(super) fn welcome_newcomers(&self) {
        let Stage::Running(running) = &self.stage else { return };
        let configuration = running.replica.configuration();
        for seat in &self.newcomers {
            let (Some(link), Some(record)) = (self.links.get(seat), configuration.seats.get(seat)) else { continue };
            let directory = link.peer().directory;
            if let Some(member) = record.member.iter().chain(&record.incoming).find(|member| member.directory == directory) {
                let (id, identity) = (member.id, running.replica.identity());
                // One that does not take it asks again.
                let _ = link.send(MeshMessage::Form(FormMessage::Welcome { id, identity, configuration: configuration.clone() }));
            }
        }
    }
}
