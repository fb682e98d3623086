//! The demo's commands: which may be proposed now, which are acknowledged, and where and when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::sync::watch;
use voter_mesh::ids::{LogIndex, RaftId, Term};
use voter_mesh::machine::kv::KvCommand;

use crate::output::Failure;

/// What all clients have to do. Command `n` belongs to client `n % clients`, which proposes its commands in order.
pub(super) struct Work {
    commands: u64,
    clients: u64,
    allowed: watch::Sender<u64>,
    acknowledged: watch::Sender<u64>,
    failed: watch::Sender<Option<String>>,
    log: Mutex<Log>,
    bar: ProgressBar,
}

/// What has happened.
struct Log {
    proposed: u64,
    /// By command: where it stands in the log.
    indices: Vec<Option<LogIndex>>,
    /// When each term's first write was acknowledged.
    terms: BTreeMap<Term, Instant>,
    /// By client: when its last write was acknowledged, and by which server as far as the client could tell.
    latest: Vec<Option<(Instant, Option<RaftId>)>>,
    /// The command in the middle of which its client is to crash.
    crash: Option<u64>,
}

impl Work {
    pub(super) fn new(commands: u64, clients: u64, bar: ProgressBar) -> Self {
        let log = Log {
            proposed: 0,
            indices: vec![None; commands as usize],
            terms: BTreeMap::new(),
            latest: vec![None; clients as usize],
            crash: None,
        };
        Self {
            commands,
            clients,
            allowed: watch::Sender::new(0),
            acknowledged: watch::Sender::new(0),
            failed: watch::Sender::new(None),
            log: Mutex::new(log),
            bar,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Whoever panicked with it left figures behind, not invariants.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn commands(&self) -> u64 {
        self.commands
    }

    pub(super) fn clients(&self) -> u64 {
        self.clients
    }

    /// The numbers that one client proposes.
    pub(super) fn share(&self, client: u64) -> impl Iterator<Item = u64> + use<> {
        (client..self.commands).step_by(self.clients as usize)
    }

    /// Command `number`: a key of its own, so that a replica shows whether it stands there, and where.
    pub(super) fn command(&self, number: u64) -> KvCommand {
        KvCommand::Put {
            key: format!("client-{}/{number}", number % self.clients).into_bytes(),
            value: format!("command {number} of {}", self.commands).into_bytes(),
        }
    }

    /// Which command this is; none if it is none of ours.
    pub(super) fn number(&self, command: &KvCommand) -> Option<u64> {
        let KvCommand::Put { key, .. } = command else { return None };
        let number: u64 = std::str::from_utf8(key).ok()?.rsplit_once('/')?.1.parse().ok()?;
        (number < self.commands && self.command(number) == *command).then_some(number)
    }

    /// Lets the clients propose all commands below `number`.
    pub(super) fn allow(&self, number: u64) {
        self.allowed.send_replace(number.min(self.commands));
    }

    pub(super) fn allow_all(&self) {
        self.allow(self.commands);
    }

    /// Waits until command `number` may be proposed.
    pub(super) async fn may_propose(&self, number: u64) {
        // The sender lives as long as we do.
        let _ = self.allowed.subscribe().wait_for(|allowed| number < *allowed).await;
        self.log().proposed += 1;
    }

    /// Has the client that is to propose `number` crash in the middle of it.
    pub(super) fn crash_at(&self, number: u64) {
        self.log().crash = Some(number);
    }

    /// Whether the client is to crash in the middle of `number`; says so once.
    pub(super) fn crashes(&self, number: u64) -> bool {
        self.log().crash.take_if(|crash| *crash == number).is_some()
    }

    pub(super) fn acknowledge(&self, number: u64, index: LogIndex, term: Term, by: Option<RaftId>) {
        let now = Instant::now();
        {
            let mut log = self.log();
            log.indices[number as usize] = Some(index);
            log.latest[(number % self.clients) as usize] = Some((now, by));
            log.terms.entry(term).or_insert(now);
        }
        self.bar.inc(1);
        self.acknowledged.send_modify(|count| *count += 1);
    }

    /// Something happened that no command survives.
    pub(super) fn fail(&self, why: String) {
        self.failed.send_modify(|failed| _ = failed.get_or_insert(why));
    }

    /// Waits until `count` commands are acknowledged.
    pub(super) async fn acknowledged_count(&self, count: u64) {
        let _ = self.acknowledged.subscribe().wait_for(|acknowledged| *acknowledged >= count).await;
    }

    /// Waits until every command that may be proposed is acknowledged.
    pub(super) async fn idle(&self) {
        self.acknowledged_count(*self.allowed.borrow()).await;
    }

    /// Waits for an acknowledgement that `found` recognises, and says when it came; none if all are acknowledged before one does.
    async fn first(&self, found: impl Fn(&Log) -> Option<Instant>) -> Option<Instant> {
        let mut acknowledged = self.acknowledged.subscribe();
        loop {
            if let Some(at) = found(&self.log()) {
                return Some(at);
            }
            if *acknowledged.borrow_and_update() >= *self.allowed.borrow() {
                return found(&self.log());
            }
            acknowledged.changed().await.ok()?;
        }
    }

    /// When the first write in a term after `term` was acknowledged.
    pub(super) async fn acknowledged_after(&self, term: Term) -> Option<Instant> {
        self.first(|log| log.terms.range(term.next()..).next().map(|(_, at)| *at)).await
    }

    /// When, after `start`, a server other than `dead` first acknowledged a write of one of these clients. Only their latest ones are
    /// known, so this must be waited for from the start on.
    pub(super) async fn acknowledged_elsewhere(&self, clients: &[u64], start: Instant, dead: RaftId) -> Option<Instant> {
        self.first(|log| {
            let latest = clients.iter().filter_map(|client| log.latest[*client as usize]);
            latest.filter(|(at, by)| *at > start && *by != Some(dead)).map(|(at, _)| at).min()
        })
        .await
    }

    /// Waits until command `number` is acknowledged.
    pub(super) async fn acknowledged_number(&self, number: u64) {
        let known = |log: &Log| log.indices.get(number as usize).is_some_and(Option::is_some);
        let _ = self.acknowledged.subscribe().wait_for(|_| known(&self.log())).await;
    }

    /// Resolves when nothing was acknowledged for `patience`, or when a client gave up.
    pub(super) async fn stalled(&self, patience: Duration) -> Failure {
        let mut acknowledged = self.acknowledged.subscribe();
        let mut failed = self.failed.subscribe();
        loop {
            tokio::select! {
                why = failed.wait_for(Option::is_some) => {
                    let why = why.ok().and_then(|why| why.clone()).unwrap_or_default();
                    return Failure::failed(why);
                }
                progress = tokio::time::timeout(patience, acknowledged.changed()) => if progress.is_err() {
                    let count = *acknowledged.borrow();
                    return Failure::failed(format!("stuck: {count} of {} acknowledged, none for {patience:?}", self.commands));
                }
            }
        }
    }

    pub(super) fn proposed(&self) -> u64 {
        self.log().proposed
    }

    pub(super) fn acknowledged(&self) -> u64 {
        *self.acknowledged.borrow()
    }

    /// Where each command was acknowledged to stand.
    pub(super) fn indices(&self) -> Vec<Option<LogIndex>> {
        self.log().indices.clone()
    }

    /// How often a write was acknowledged under another term than the ones before.
    pub(super) fn leader_changes(&self) -> u64 {
        self.log().terms.len().saturating_sub(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work::new(10, 3, ProgressBar::hidden())
    }

    #[test]
    fn the_shares_are_all_commands_and_each_command_knows_its_number() {
        let work = work();
        let mut numbers: Vec<u64> = (0..3).flat_map(|client| work.share(client)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        assert!(numbers.iter().all(|number| work.number(&work.command(*number)) == Some(*number)));
        assert_eq!(work.number(&KvCommand::Delete { key: b"client-0/0".to_vec() }), None);
        assert_eq!(work.number(&KvCommand::Put { key: b"client-0/0".to_vec(), value: Vec::new() }), None);
    }

    #[tokio::test]
    async fn a_failover_ends_with_the_first_write_of_a_later_term() {
        let work = work();
        work.allow(2);
        work.acknowledge(0, LogIndex(5), Term(2), None);
        let (later, ()) = tokio::join!(work.acknowledged_after(Term(2)), async { work.acknowledge(1, LogIndex(9), Term(4), None) });
        assert!(later.is_some());
        assert_eq!(work.acknowledged_after(Term(4)).await, None, "all that is allowed is acknowledged");
        assert_eq!((work.leader_changes(), work.acknowledged()), (1, 2));
    }
}
