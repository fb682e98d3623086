//! The demo's clients: each with a journal, a live replica, and a tally of all that it sees committed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster_client::{ClusterClient, ConnectError, JournalError, ProposeError, RequestJournal, Status, StreamError, Unresolved};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use voter_mesh::ids::{LogIndex, RaftId};
use voter_mesh::machine::from_cbor;
use voter_mesh::machine::kv::{Kv, KvCommand, KvReply};

use super::work::Work;
use crate::attach::Endpoint;
use crate::output::Failure;

/// How long a client may take to attach, and one call before the client is asked what became of it.
const DEADLINE_MS: u64 = 30_000;

/// How often a request is asked after before the client gives up: the demo's own patience ends earlier.
const ASKED_MAX: u32 = 10;

/// Clients that attach at once: more would only wait for each other.
const ATTACHING_MAX: usize = 64;

/// How long a crashed client's journal may stay locked.
const JOURNAL_FREE_MS: u64 = 5_000;

/// Times that a client which is to crash lets its request run, so that it is under way and not yet answered.
const YIELDS_BEFORE_CRASH: u32 = 6;

/// All clients, at work.
pub(super) struct Crowd {
    statuses: Statuses,
    tasks: Vec<JoinHandle<Option<Replica>>>,
}

/// What each client says of itself at the moment. A client that comes back from a crash replaces its own.
type Statuses = Arc<Mutex<Vec<watch::Receiver<Status>>>>;

/// A client at the end of its work, and what it saw.
pub(super) struct Replica {
    pub(super) client: ClusterClient<Kv>,
    pub(super) tally: Tally,
}

impl Replica {
    pub(super) async fn close(self) {
        drop(self.tally);
        self.client.close().await;
    }
}

impl Crowd {
    /// Attaches all clients, the i-th to the i-th server (in turn), and sets them to work.
    pub(super) async fn attach(work: &Arc<Work>, endpoints: &[Endpoint], directory: &Path) -> Result<Self, Failure> {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        let attaching = futures_util::stream::iter(0..work.clients()).map(|number| {
            let journal = directory.join(format!("client-{number}.journal"));
            let member = Member { number, endpoints: endpoints.clone(), journal, work: Arc::clone(work) };
            async { member.connect().await.map(|client| (member, client)) }
        });
        let members: Vec<_> = attaching.buffered(ATTACHING_MAX).try_collect().await?;
        let statuses = members.iter().map(|(_, client)| client.status()).collect();
        let statuses = Arc::new(Mutex::new(statuses));
        let tasks = members.into_iter().map(|(member, client)| {
            let statuses = Arc::clone(&statuses);
            tokio::spawn(async move {
                let work = Arc::clone(&member.work);
                let replica = member.run(client, &statuses).await;
                replica.inspect_err(|failure| work.fail(failure.message.clone())).ok()
            })
        });
        Ok(Self { tasks: tasks.collect(), statuses })
    }

    /// The clients that are attached to a server now.
    pub(super) fn attached_to(&self, server: RaftId) -> Vec<u64> {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = statuses.iter().map(|status| self::server(&status.borrow()));
        (0..).zip(servers).filter(|(_, at)| *at == Some(server)).map(|(client, _)| client).collect()
    }

    /// Waits until every client is done, and hands over their replicas.
    pub(super) async fn finish(self) -> Result<Vec<Replica>, Failure> {
        let mut replicas = Vec::new();
        for task in self.tasks {
            let ended = task.await.map_err(|error| Failure::failed(format!("a client's task ended: {error}")))?;
            replicas.extend(ended);
        }
        Ok(replicas)
    }
}

fn server(status: &Status) -> Option<RaftId> {
    match status {
        Status::Live { server, .. } => Some(*server),
        _ => None,
    }
}

/// One client's part of the work.
struct Member {
    number: u64,
    endpoints: Vec<String>,
    journal: PathBuf,
    work: Arc<Work>,
}

impl Member {
    async fn connect(&self) -> Result<ClusterClient<Kv>, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("client {}: {error}", self.number));
        let end = tokio::time::Instant::now() + Duration::from_millis(JOURNAL_FREE_MS);
        let journal = loop {
            match RequestJournal::file(&self.journal) {
                Ok(journal) => break journal,
                // The client that crashed lets go of it when its task has noticed.
                Err(JournalError::JournalBusy(_)) if tokio::time::Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return Err(failed(&error)),
            }
        };
        let connected: Result<_, ConnectError> = ClusterClient::builder()
            .endpoints(&self.endpoints)
            .start_with(self.number as usize)
            .journal(journal)
            .deadline(Duration::from_millis(DEADLINE_MS))
            .state(Kv::default())
            .connect()
            .await;
        connected.map_err(|error| failed(&error))
    }

    /// Proposes this client's share, one command after the other, each under an id that its journal keeps.
    async fn run(self, mut client: ClusterClient<Kv>, statuses: &Statuses) -> Result<Replica, Failure> {
        let mut tally = Tally::follow(&client, &self.work);
        for number in self.work.share(self.number) {
            self.work.may_propose(number).await;
            let command = self.work.command(number);
            let failed =
                |error: &dyn std::fmt::Display| Failure::failed(format!("client {}, command {number}: {error}", self.number));
            let applied = if self.work.crashes(number) {
                let ticket = client.reserve().await.map_err(|error| failed(&error))?;
                let request = client.propose_as(&ticket, &command).into_future();
                tokio::select! {
                    biased;
                    _ = request => {}
                    () = yields(YIELDS_BEFORE_CRASH) => {}
                }
                // Without a word to anyone, as if the process had died; only the journal and the ticket are left.
                drop((client, tally));
                client = self.connect().await?;
                tally = Tally::follow(&client, &self.work);
                if let Some(status) = statuses.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.number as usize) {
                    *status = client.status();
                }
                client.propose_as(&ticket, &command).await
            } else {
                client.propose(&command).await
            };
            let applied = insist(&client, applied).await.map_err(|error| failed(&error))?;
            match applied.reply {
                KvReply::Written { version } if version == applied.index => {
                    self.work.acknowledge(number, applied.index, applied.term, server(&client.status().borrow()))
                }
                other => return Err(failed(&format!("answered {other:?} at {}", applied.index))),
            }
        }
        Ok(Replica { client, tally })
    }
}

/// An unknown outcome is asked after until it is known.
async fn insist(
    client: &ClusterClient<Kv>,
    mut result: Result<cluster_client::Applied<KvReply>, ProposeError>,
) -> Result<cluster_client::Applied<KvReply>, ProposeError> {
    for _ in 0..ASKED_MAX {
        let Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) = &result else { break };
        result = client.outcome(ticket).await;
    }
    result
}

async fn yields(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

/// Follows the committed log and counts how often each command stands in it.
pub(super) struct Tally {
    task: JoinHandle<()>,
    counted: Arc<Mutex<Counted>>,
    reached: watch::Receiver<LogIndex>,
}

/// What a tally has seen.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    /// By command: how often it took effect.
    pub(super) times: Vec<u8>,
    /// Entries that are not commands of the demo.
    pub(super) strange: u64,
    /// The first entry that could be had: later than the log's beginning where a snapshot stood for what came before.
    pub(super) first: LogIndex,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tally {
    fn follow(client: &ClusterClient<Kv>, work: &Arc<Work>) -> Self {
        let counted = Counted { times: vec![0; work.commands() as usize], strange: 0, first: LogIndex::FIRST };
        let counted = Arc::new(Mutex::new(counted));
        let (reach, reached) = watch::channel(LogIndex::ZERO);
        let task = tokio::spawn(count(client.clone(), Arc::clone(work), Arc::clone(&counted), reach));
        Self { task, counted, reached }
    }

    /// Waits until everything up to `index` is counted, and says what was.
    pub(super) async fn up_to(&mut self, index: LogIndex) -> Option<Counted> {
        let _ = self.reached.wait_for(|reached| *reached >= index).await.ok()?;
        Some(self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn count(client: ClusterClient<Kv>, work: Arc<Work>, counted: Arc<Mutex<Counted>>, reach: watch::Sender<LogIndex>) {
    let mut from = LogIndex::FIRST;
    loop {
        let mut committed = client.committed_from(from);
        loop {
            match committed.next().await {
                Some(Ok(committed)) => {
                    let number = from_cbor::<KvCommand>(&committed.payload).ok().and_then(|command| work.number(&command));
                    {
                        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                        match number.and_then(|number| counted.times.get_mut(number as usize)) {
                            Some(times) => *times = times.saturating_add(1),
                            None => counted.strange += 1,
                        }
                    }
                    reach.send_replace(committed.index);
                }
                // Only a snapshot could be had for what came before: count from there.
                Some(Err(StreamError::Trimmed { first })) if first > from => {
                    from = first;
                    counted.lock().unwrap_or_else(PoisonError::into_inner).first = first;
                    break;
                }
                Some(Err(error)) => return tracing::error!(%error, "a stream of committed commands ended"),
                None => return,
            }
        }
    }
}
