//! What a server says of itself, and the hashes of what it holds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use tokio::sync::oneshot;
use voter_mesh::ids::{Epoch, LogIndex, RunIndex, Term};
use voter_mesh::raft::DiskState;
use voter_mesh::replica::ReplicaImage;

use super::{Node, Stage};
use crate::host::elsewhere;
use crate::mesh::MeshCounters;
use crate::status::ServerStatus;

impl Node {
    /// Answers with this server's status; the hashes, where they are asked for, are made elsewhere.
    pub(super) fn answer_status(self: &Rc<Self>, hashes: bool, mesh: &MeshCounters, answer: oneshot::Sender<ServerStatus>) {
        let (mut status, image) = self.status(hashes, mesh);
        let Some(image) = image else { return drop(answer.send(status)) };
        let hashed = elsewhere(&*self.host, move || hash(image));
        tokio::task::spawn_local(async move {
            let hashed = hashed.await;
            if let Ok(Ok((state, sessions))) = hashed {
                status.state_hash = Some(state);
                status.sessions_hash = Some(sessions);
            }
            let _ = answer.send(status);
        });
    }

    fn status(&self, hashes: bool, mesh: &MeshCounters) -> (ServerStatus, Option<ReplicaImage>) {
        let core = self.core.borrow();
        let (phase, leader) = core.phase();
        let mut status = ServerStatus {
            seat: self.options.seat,
            id: None,
            phase,
            room: self.options.room.clone(),
            cluster: None,
            epoch: Epoch::FIRST,
            state_machine: self.options.machine.name.to_owned(),
            state_machine_version: self.options.machine.version,
            term: Term::ZERO,
            leader,
            commit: RunIndex::ZERO,
            applied: LogIndex::ZERO,
            disk_full: false,
            clients: 0,
            sessions: 0,
            configuration: voter_mesh::configuration::Configuration::default(),
            recovery: None,
            suspect: false,
            damage: Vec::new(),
            state_hash: None,
            sessions_hash: None,
            counters: BTreeMap::new(),
        };
        let mut count = |name: String, value: u64| *status.counters.entry(name).or_default() += value;
        for (name, value) in [
            ("frames_in", mesh.frames_in),
            ("frames_out", mesh.frames_out),
            ("bytes_in", mesh.bytes_in),
            ("bytes_out", mesh.bytes_out),
            ("sends_refused", mesh.sends_refused),
            ("frames_dropped", mesh.frames_dropped),
            ("malformed", mesh.malformed),
            ("links", mesh.links_up.saturating_sub(mesh.links_torn + mesh.links_closed)),
            ("links_torn", mesh.links_torn),
            ("links_closed", mesh.links_closed),
        ] {
            count(format!("mesh_{name}"), value);
        }
        for (reason, value) in &mesh.handshakes_failed {
            count(format!("mesh_refused_{reason}"), *value);
        }
        for (reason, value) in self.refused.borrow().iter() {
            count((*reason).to_owned(), *value);
        }
        let running = match &core.stage {
            Stage::Unformed(_) => return (status, None),
            Stage::Recovering(recovering) => {
                recovering.describe(&mut status);
                return (status, None);
            }
            Stage::Running(running) => running,
        };
        let (voter, replica) = (running.voter.status(), &running.replica);
        status.id = Some(voter.id);
        status.cluster = Some(replica.identity().cluster);
        status.epoch = replica.identity().epoch;
        status.term = voter.term;
        status.commit = voter.commit;
        status.applied = replica.tail().last;
        status.disk_full = voter.disk == DiskState::Full;
        status.clients = running.room.link_count();
        status.sessions = replica.sessions().len();
        status.configuration = replica.configuration().clone();
        status.suspect = voter.suspect;
        if voter.suspect {
            status.damage.clone_from(&running.damage);
        }
        count("appends_dropped".into(), voter.appends_dropped);
        let counters = running.room.counters();
        count("admitted".into(), counters.admitted);
        count("malformed".into(), counters.malformed);
        count("unknown_kinds".into(), counters.unknown_kinds);
        count("proposals".into(), counters.proposals);
        count("proposals_refused".into(), counters.proposals_refused);
        count("replies".into(), counters.replies);
        count("reads".into(), counters.reads);
        count("reads_refused".into(), counters.reads_refused);
        count("client_snapshots".into(), counters.snapshots);
        count("client_snapshots_resumed".into(), counters.snapshots_resumed);
        count("client_chunks_read".into(), counters.chunks_read);
        count("client_pieces_read".into(), counters.pieces_read);
        let (equal, differ) = running.snapshots.agreement.counts();
        count("state_hashes_equal".into(), equal);
        count("state_hashes_differ".into(), differ);
        for (code, value) in &counters.refused {
            count(format!("refused_{code:?}"), *value);
        }
        for (code, value) in &counters.closed {
            count(format!("closed_{code:?}"), *value);
        }
        let image = hashes.then(|| replica.image());
        (status, image)
    }
}

fn hash(image: ReplicaImage) -> std::io::Result<(String, String)> {
    let meta = image.write(&mut std::io::sink(), &mut std::io::sink())?;
    Ok((hex(&meta.state_hash), hex(&meta.sessions_hash)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
