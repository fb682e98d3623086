//! The comparison at the demo's end: every replica, on servers and on clients, must hold every acknowledged command once, in the place
//! that the acknowledgement named, and all must be the same bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster_client::Consistency;
use cluster_server::status::ServerStatus;
use sha2::{Digest, Sha256};
use voter_mesh::ids::LogIndex;
use voter_mesh::machine::StateMachine;
use voter_mesh::machine::kv::Kv;

use super::clients::{Counted, Replica};
use super::work::Work;
use crate::fleet::Fleet;
use crate::output::{Failure, hex};

/// How long replicas may take to come to rest at the same place.
const SETTLE_MS: u64 = 60_000;

/// Between two looks at all servers.
const LOOK_AGAIN_MS: u64 = 50;

/// What the comparison found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Commands that took effect on every replica.
    pub(super) applied: u64,
    /// Acknowledged commands that some replica lacks.
    pub(super) lost: u64,
    /// Commands that took effect more than once, or again after their acknowledgement, on some replica.
    pub(super) duplicated: u64,
    /// The first difference between two replicas.
    pub(super) difference: Option<String>,
}

impl Findings {
    pub(super) fn complaint(&self) -> String {
        let difference = self.difference.as_ref().map(|difference| format!("; {difference}")).unwrap_or_default();
        format!("{} lost, {} standing twice{difference}", self.lost, self.duplicated)
    }

    fn differs(&mut self, what: String) {
        self.difference.get_or_insert(what);
    }
}

/// Compares everything, once everyone is at rest.
pub(super) async fn compare(fleet: &Fleet, replicas: &mut [Replica], work: &Work) -> Result<Findings, Failure> {
    let mut findings = Findings::default();
    let servers = settled(fleet, &mut findings).await;
    let expected = servers.first().and_then(|status| status.state_hash.clone()).unwrap_or_default();
    let indices = work.indices();
    let last = indices.iter().flatten().max().copied().unwrap_or_default();
    let (mut lost, mut duplicated) = (BTreeSet::new(), BTreeSet::new());
    let mut present = vec![true; indices.len()];
    for (client, replica) in replicas.iter_mut().enumerate() {
        let patience = Duration::from_millis(SETTLE_MS);
        let Ok(Some(counted)) = tokio::time::timeout(patience, replica.tally.up_to(last)).await else {
            findings.differs(format!("client {client} did not see the log up to {last}"));
            continue;
        };
        let state = replica.client.read(Consistency::Linearizable, Kv::image).await;
        let state = state.map_err(|error| Failure::failed(format!("client {client}: {error}")))?;
        let (missing, again) = judge(&state, &counted, &indices, work);
        for number in &missing {
            present[*number as usize] = false;
        }
        lost.extend(missing.into_iter().filter(|number| indices[*number as usize].is_some()));
        duplicated.extend(again);
        if counted.strange > 0 {
            findings.differs(format!("client {client} saw {} commands that nobody proposed", counted.strange));
        }
        let hash = hash(state)?;
        if hash != expected {
            findings.differs(format!("client {client} has state {hash}, the servers have {expected}"));
        }
    }
    findings.applied = present.iter().filter(|present| **present).count() as u64;
    (findings.lost, findings.duplicated) = (lost.len() as u64, duplicated.len() as u64);
    Ok(findings)
}

/// The commands that a replica lacks, and those that took effect more than once on it.
fn judge(state: &Kv, counted: &Counted, indices: &[Option<LogIndex>], work: &Work) -> (Vec<u64>, Vec<u64>) {
    let (mut missing, mut again) = (Vec::new(), Vec::new());
    for (number, (acknowledged, times)) in (0..).zip(indices.iter().zip(&counted.times)) {
        let voter_mesh::machine::kv::KvCommand::Put { key, .. } = work.command(number) else { continue };
        let Some(value) = state.get(&key) else {
            missing.push(number);
            continue;
        };
        // A snapshot stood for what lies before `first`; there, the version shows whether the command took effect again.
        if *times == 0 && value.version >= counted.first {
            missing.push(number);
        }
        if *times > 1 || acknowledged.is_some_and(|index| index != value.version) {
            again.push(number);
        }
    }
    (missing, again)
}

/// Waits until all servers have applied equally far with equal hashes; reports the difference if they do not.
async fn settled(fleet: &Fleet, findings: &mut Findings) -> Vec<ServerStatus> {
    let end = tokio::time::Instant::now() + Duration::from_millis(SETTLE_MS);
    loop {
        let mut statuses = Vec::new();
        for seat in fleet.seats() {
            statuses.extend(fleet.status(seat, true).await);
        }
        let hashes: BTreeSet<_> =
            statuses.iter().map(|status| (status.applied, &status.state_hash, &status.sessions_hash)).collect();
        let complete = statuses.len() == fleet.seats().len() && statuses.iter().all(|status| status.state_hash.is_some());
        if complete && hashes.len() == 1 {
            return statuses;
        }
        if tokio::time::Instant::now() >= end {
            findings.differs(format!("{} servers answered; their (applied, state, sessions): {hashes:?}", statuses.len()));
            return statuses;
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
}

fn hash(state: Kv) -> Result<String, Failure> {
    let mut sha = Sha256::new();
    Kv::write(state, &mut sha)?;
    Ok(hex(&sha.finalize()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use indicatif::ProgressBar;
    use voter_mesh::ids::{SessionId, Term, TimeMs};
    use voter_mesh::machine::Position;

    #[test]
    fn a_missing_command_and_one_that_stands_twice_are_found() {
        let work = Work::new(4, 1, ProgressBar::hidden());
        let mut state = Kv::default();
        // Command 2 never takes effect, command 1 does again at 9.
        for (number, index) in [(0, 5), (1, 6), (3, 8), (1, 9)] {
            let at = Position { index: LogIndex(index), term: Term(1), time: TimeMs(0), session: SessionId(1) };
            state.apply(work.command(number), &at);
        }
        let indices = [Some(LogIndex(5)), Some(LogIndex(6)), Some(LogIndex(7)), None];
        let counted = Counted { times: vec![1, 2, 0, 1], strange: 0, first: LogIndex::FIRST };
        assert_eq!(judge(&state, &counted, &indices, &work), (vec![2], vec![1]));
        // The same from behind a snapshot at 8: the stream shows nothing of it, the version does.
        let counted = Counted { times: vec![0, 1, 0, 0], strange: 0, first: LogIndex(9) };
        assert_eq!(judge(&state, &counted, &indices, &work), (vec![2], vec![1]));
    }
}
