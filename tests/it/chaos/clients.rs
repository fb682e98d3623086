//! The clients of a chaotic run: they put, delete, compare-and-set and read keys that few of them share, and record each call.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use cluster_client::{Applied, ClusterClient, Consistency, LogIndex, ProposeError, Thin, Ticket, Unresolved};
use futures_util::StreamExt;
use tests::sim::clients::state::Watched;
use tests::sim::random::Random;
use tests::sim::record::{CallId, ClientId, LearnerId, Operation, Phase, Recorder, Returned, What, read_key};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use voter_mesh::machine::kv::{KvCommand, KvExpected, KvReply};
use voter_mesh::machine::{from_cbor, to_cbor};

/// Clients that work on one key.
const GROUP: u32 = 5;

/// Calls on a key before the next one's turn.
const CALLS_MAX: u32 = 150;

/// One in so many clients has a state; the others are thin.
const THIN_FOR_FULL: u32 = 5;

/// Between two calls of a client.
const THINK_MS: u64 = 1_200;

/// How long what was called may take once all is well.
const SETTLE: Duration = Duration::from_secs(20);

/// What all clients share.
pub(super) struct Shared {
    pub(super) recorder: Recorder,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) urls: Vec<String>,
    /// Of each group: which key's turn it is, and how many calls it had.
    keys: RefCell<BTreeMap<u32, (u32, u32)>>,
    /// Clients that wait for an answer, or may still call.
    pub(super) busy: Cell<u32>,
}

impl Shared {
    pub(super) fn new(recorder: Recorder, phase: watch::Receiver<Phase>, urls: Vec<String>) -> Rc<Self> {
        Rc::new(Self { recorder, phase, urls, keys: RefCell::default(), busy: Cell::new(0) })
    }

    fn key(&self, group: u32) -> Bytes {
        let mut keys = self.keys.borrow_mut();
        let (turn, calls) = keys.entry(group).or_default();
        *calls += 1;
        if *calls > CALLS_MAX {
            (*turn, *calls) = (*turn + 1, 1);
        }
        format!("g{group}.{turn}").into()
    }

    pub(super) async fn reaches(&self, phase: Phase) {
        // Whoever says the phases outlives all that wait for them.
        let _ = self.phase.clone().wait_for(|now| *now >= phase).await;
    }
}

enum Client {
    Full(ClusterClient<Watched>),
    Thin(ClusterClient<Thin>),
}

struct Worker {
    id: ClientId,
    shared: Rc<Shared>,
    client: Client,
    random: Random,
    written: u32,
    seen: Option<(Bytes, LogIndex)>,
    open: Vec<Ticket>,
}

/// One client from its start to its end.
pub(super) async fn live(shared: Rc<Shared>, number: u32, seed: u64) {
    let mut random = Random::new(seed);
    let builder = ClusterClient::builder().endpoints(&shared.urls).start_with(number as usize % shared.urls.len());
    let builder = builder.links(1 + random.below(2) as usize);
    let client = if number.is_multiple_of(THIN_FOR_FULL) {
        Client::Full(builder.state(Watched::default()).start().unwrap())
    } else {
        Client::Thin(builder.thin().start().unwrap())
    };
    let id = ClientId(number);
    shared.recorder.record(What::ClientStarted { client: id });
    let mut worker = Worker { id, shared, client, random, written: 0, seen: None, open: Vec::new() };
    worker.work().await;
}

impl Worker {
    async fn work(&mut self) {
        self.shared.busy.update(|busy| busy + 1);
        while *self.shared.phase.borrow() < Phase::Quiet {
            sleep(Duration::from_millis(self.random.below(2 * THINK_MS))).await;
            let key = self.shared.key(self.id.0 / GROUP);
            match self.random.below(10) {
                0..4 => self.read(key).await,
                _ => {
                    let command = self.command(&key);
                    self.propose(&command).await;
                }
            }
        }
        while let Some(ticket) = self.open.pop() {
            let call = self.shared.recorder.call(self.id, Operation::Outcome { ticket });
            let result = match &self.client {
                Client::Full(client) => client.with_deadline(SETTLE).outcome(&ticket).await,
                Client::Thin(client) => reply(client.with_deadline(SETTLE).outcome(&ticket).await),
            };
            self.returned(call, &result);
        }
        self.shared.busy.update(|busy| busy - 1);
        self.shared.reaches(Phase::Over).await;
        if let Client::Full(client) = &self.client {
            let settled = client.with_deadline(SETTLE).read(Consistency::Linearizable, |state| (state.last, state.hash())).await;
            if let Ok((Some(index), hash)) = settled {
                let learner = LearnerId(self.id, 0);
                self.shared.recorder.record(What::Learnt { learner, index, chain: None, state_hash: Some(hash) });
            }
        }
        match &self.client {
            Client::Full(client) => client.close().await,
            Client::Thin(client) => client.close().await,
        }
    }

    fn command(&mut self, key: &Bytes) -> KvCommand {
        self.written += 1;
        let (key, value) = (key.to_vec(), format!("{}.{}", self.id.0, self.written).into_bytes());
        let expected = match &self.seen {
            Some((seen, version)) if seen[..] == key => KvExpected::Version(*version),
            _ => KvExpected::Absent,
        };
        match self.random.below(10) {
            0 => KvCommand::Delete { key },
            1..4 => KvCommand::CompareAndSet { key, expected, value },
            _ => KvCommand::Put { key, value },
        }
    }

    fn deadline(&mut self) -> Duration {
        Duration::from_millis([200, 1_000, 5_000][self.random.below(3) as usize])
    }

    async fn read(&mut self, key: Bytes) {
        let deadline = self.deadline();
        let consistency = [Consistency::Linearizable, Consistency::Linearizable, Consistency::Session, Consistency::Local];
        let consistency = consistency[self.random.below(4) as usize];
        let Client::Full(client) = &self.client else { return };
        let call = self.shared.recorder.call(self.id, Operation::Read { consistency, key: key.clone() });
        let read = client.with_deadline(deadline).read(consistency, |state| (read_key(&state.kv, &key), state.last)).await;
        if let Ok((Some(value), _)) = &read {
            self.seen = Some((key, value.version));
        }
        self.shared.recorder.returned(call, Returned::of_read(read));
    }

    async fn propose(&mut self, command: &KvCommand) {
        let deadline = self.deadline();
        let operation = Operation::Propose { ticket: None, command: command.clone() };
        let call = self.shared.recorder.call(self.id, operation);
        let result = match &self.client {
            Client::Full(client) => client.propose(command).deadline(deadline).await,
            Client::Thin(client) => reply(client.propose(&to_cbor(command).unwrap()).deadline(deadline).await),
        };
        self.returned(call, &result);
    }

    fn returned(&mut self, call: CallId, result: &Result<Applied<KvReply>, ProposeError>) {
        self.shared.recorder.returned(call, Returned::of_propose(result));
        if let Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) = result {
            self.open.push(*ticket);
        }
    }
}

/// A thin client's answer, read.
fn reply(result: Result<Applied<Bytes>, ProposeError>) -> Result<Applied<KvReply>, ProposeError> {
    let Applied { index, term, repeat, reply } = result?;
    let reply = from_cbor(&reply).map_err(|_| ProposeError::Reply { index, term })?;
    Ok(Applied { index, term, repeat, reply })
}

/// Streams every command that takes effect.
pub(super) async fn follow(shared: Rc<Shared>, number: u32) {
    let start = number as usize % shared.urls.len();
    let client = ClusterClient::builder().endpoints(&shared.urls).start_with(start).raw().start().unwrap();
    let stream = LearnerId(ClientId(number), 0);
    shared.recorder.record(What::StreamBegan { stream, from: LogIndex::FIRST });
    let mut commands = client.committed_from(LogIndex::FIRST);
    let reads = async {
        while let Some(command) = commands.next().await {
            let command = command.unwrap();
            let (index, term, session) = (command.index, command.term, command.session);
            shared.recorder.record(What::Streamed { stream, index, term, session, payload: command.payload });
        }
    };
    tokio::select! {
        () = reads => panic!("a stream ends"),
        () = shared.reaches(Phase::Over) => {}
    }
    timeout(SETTLE, client.close()).await.unwrap();
}
