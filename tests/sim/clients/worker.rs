//! Clients that put, delete, compare-and-set and read keys that they share, through the product's own client: full or thin, with one
//! link or two, with and without a journal, with large limits and small ones, patient and not. What they do not learn at once they
//! ask for later; what they crash with, they find in their journal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster_client::core::CoreLimits;
use cluster_client::{
    Applied, ClusterClient, Consistency, JournalError, ProposeError, ReadError, RequestJournal, ReserveError, Status, Thin, Ticket,
    Unresolved,
};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use voter_mesh::ids::{LogIndex, SessionId};
use voter_mesh::machine::kv::{KvCommand, KvExpected, KvReply, KvValue};
use voter_mesh::machine::{from_cbor, to_cbor};

use super::keys::Keys;
use super::machine::Machine;
use super::state::Watched;
use crate::sim::disk::{DiskState, SimDisk};
use crate::sim::net::Death;
use crate::sim::record::{Operation, Phase, Returned, What, read_key};

/// Where the journal lies on the machine's disk.
const JOURNAL: &str = "/journal";

/// Requests of unknown outcome that are remembered to be asked for.
const OPEN_MAX: usize = 32;

/// Calls of a burst.
const BURST: u64 = 40;

/// Of how many indices one is looked at when a call was answered with it.
const LOOK_EVERY: u64 = 4;

/// How long a ticket is waited for at most.
const RESERVE: Duration = Duration::from_secs(3);

/// How long one call may take while everything is being settled, before it is made again.
const SETTLE: Duration = Duration::from_secs(15);

/// Two workers, one journal.
pub(super) struct Twins {
    /// The first one's disk when it was copied.
    copied: watch::Sender<Option<DiskState>>,
    /// In which sessions they settled.
    sessions: RefCell<Vec<SessionId>>,
}

impl Twins {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { copied: watch::channel(None).0, sessions: RefCell::default() })
    }

    fn is_copied(&self) -> bool {
        self.copied.borrow().is_some()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Journal {
    Memory,
    File,
    Synced,
}

pub(super) struct Worker {
    machine: Rc<Machine>,
    keys: Rc<RefCell<Keys>>,
    /// With its twin: whether this is the copy.
    twin: Option<(Rc<Twins>, bool)>,
    thin: bool,
    links: usize,
    journal: Journal,
    limits: CoreLimits,
    history_bytes_max: usize,
    deadlines_ms: &'static [u64],
    /// Makes every value another one.
    written: Cell<u64>,
    /// What its last call found at which key.
    seen: RefCell<(Bytes, Option<KvValue>)>,
    /// Requests whose outcome is not known, as an application would note them.
    open: RefCell<BTreeMap<Ticket, KvCommand>>,
    /// Commands that were proposed under tickets which had been used: where the first command stands, and the other one.
    others: RefCell<BTreeMap<Ticket, (LogIndex, KvCommand)>>,
}

impl Worker {
    pub(super) fn new(machine: Rc<Machine>, keys: Rc<RefCell<Keys>>, twin: Option<(Rc<Twins>, bool)>) -> Rc<Self> {
        let mut limits = CoreLimits::default();
        if machine.below(4) == 0 {
            (limits.queue_max, limits.outcomes_max, limits.frame_bytes_max) = (8, 2, 128);
            (limits.handshake_ms, limits.backoff_ms_max) = (1_000, 500);
        }
        let journal =
            if twin.is_some() { Journal::File } else { machine.one_of(&[Journal::Memory, Journal::File, Journal::Synced]) };
        let deadlines: [&'static [u64]; 4] = [&[10_000], &[1, 20, 200, 2_000], &[300, 3_000], &[50, 1_000, 60_000]];
        Rc::new(Self {
            keys,
            thin: twin.is_none() && machine.below(5) == 0,
            twin,
            links: 1 + machine.below(2) as usize,
            journal,
            limits,
            history_bytes_max: machine.one_of(&[0, 8 << 20]),
            deadlines_ms: machine.one_of(&deadlines),
            written: Cell::new(0),
            seen: RefCell::default(),
            open: RefCell::default(),
            others: RefCell::default(),
            machine,
        })
    }

    /// Opens the journal that the machine has, whatever its last process and the power left of it.
    fn journal(&self) -> Result<RequestJournal, JournalError> {
        let file = || RequestJournal::file_on(Arc::new(self.machine.disk.borrow().clone()), JOURNAL);
        match self.journal {
            Journal::Memory => Ok(RequestJournal::memory()),
            Journal::File => file(),
            Journal::Synced => Ok(file()?.synced()),
        }
    }

    fn client(&self) -> Result<Client, String> {
        let shared = &self.machine.shared;
        let servers = shared.servers.len();
        let builder = ClusterClient::builder()
            .host(self.machine.client_host())
            .endpoints((0..servers).map(|server| shared.endpoint(server)))
            .start_with(shared.server(&self.machine))
            .links(self.links)
            .limits(self.limits)
            .history_bytes_max(self.history_bytes_max)
            .journal(self.journal().map_err(|error| error.to_string())?);
        let client = if self.thin {
            builder.thin().start().map(Client::Thin)
        } else {
            builder.state(Watched::default()).start().map(Client::Full)
        };
        client.map_err(|error| error.to_string())
    }

    fn command(&self, key: &Bytes) -> KvCommand {
        let machine = &self.machine;
        self.written.set(self.written.get() + 1);
        let mut value = format!("{}.{}.", machine.id.0, self.written.get()).into_bytes();
        value.resize(value.len() + machine.below(machine.shared.plan.value_bytes_max) as usize, b'x');
        let key_bytes = key.to_vec();
        match machine.below(10) {
            0..5 => KvCommand::Put { key: key_bytes, value },
            5 => KvCommand::Delete { key: key_bytes },
            _ => {
                let seen = self.seen.borrow();
                let found = seen.1.as_ref().filter(|_| seen.0 == *key);
                let expected = match found {
                    None => KvExpected::Absent,
                    Some(found) if machine.below(2) == 0 => KvExpected::Version(found.version),
                    Some(found) => KvExpected::Value(found.value.to_vec()),
                };
                KvCommand::CompareAndSet { key: key_bytes, expected, value }
            }
        }
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.machine.one_of(self.deadlines_ms))
    }

    /// Takes note of what a call of `command` returned, and records it.
    fn returned(
        &self,
        call: crate::sim::record::CallId,
        command: Option<&KvCommand>,
        result: &Result<Applied<KvReply>, ProposeError>,
    ) {
        let shared = &self.machine.shared;
        shared.world.recorder.returned(call, Returned::of_propose(result));
        match result {
            Ok(applied) => {
                shared.saw(applied.index);
                if let (
                    KvReply::Written { version },
                    Some(KvCommand::Put { key, value } | KvCommand::CompareAndSet { key, value, .. }),
                ) = (applied.reply, command)
                {
                    let value = KvValue { value: value.clone().into(), version };
                    *self.seen.borrow_mut() = (key.clone().into(), Some(value));
                }
            }
            Err(ProposeError::Unknown { ticket, reason: Unresolved::Deadline }) => {
                if let Some(command) = command
                    && self.open.borrow().len() < OPEN_MAX
                {
                    self.open.borrow_mut().insert(*ticket, command.clone());
                }
            }
            Err(_) => {}
        }
    }

    /// Proposes, and waits for `patience` at most: then the call is let go of.
    async fn propose(&self, client: &Client, command: &KvCommand, ticket: Option<Ticket>, patience: Option<Duration>) -> Said {
        let recorder = &self.machine.shared.world.recorder;
        let call = recorder.call(self.machine.id, Operation::Propose { ticket, command: command.clone() });
        let proposing = client.propose(command, ticket, self.deadline());
        let result = match patience {
            Some(patience) => timeout(patience, proposing).await.ok(),
            None => Some(proposing.await),
        };
        self.machine.alive().await;
        let Some(result) = result else {
            recorder.returned(call, Returned::Unknown { ticket: None });
            return Said::Nothing;
        };
        if let (Some(ticket), Ok(applied)) = (ticket, &result)
            && let Some((first, other)) = self.others.borrow().get(&ticket)
            && (other, *first) == (command, applied.index)
        {
            // It was told once more what the first command came to; this one did nothing.
            recorder.returned(call, Returned::Conflict);
            return Said::Nothing;
        }
        self.returned(call, Some(command), &result);
        if let (None, None, Err(told @ (ProposeError::Conflict | ProposeError::Stale))) = (ticket, &self.twin, &result) {
            self.machine
                .shared
                .complain(self.machine.id, format_args!("a new command was given an id that was used before: {told}"));
        }
        if let Ok(applied) = &result
            && applied.index.0.is_multiple_of(LOOK_EVERY)
        {
            // At once: what it was answered, its own replica must hold.
            self.look(client, command).await;
        }
        Said::of(&result)
    }

    /// Looks at the key of a command in the own replica, as it stands.
    async fn look(&self, client: &Client, command: &KvCommand) {
        let Client::Full(client) = client else { return };
        let (KvCommand::Put { key, .. } | KvCommand::Delete { key } | KvCommand::CompareAndSet { key, .. }) = command;
        let (recorder, key) = (&self.machine.shared.world.recorder, Bytes::copy_from_slice(key));
        let call = recorder.call(self.machine.id, Operation::Read { consistency: Consistency::Local, key: key.clone() });
        let result = client.read(Consistency::Local, |state| (read_key(&state.kv, &key), state.last)).await;
        recorder.returned(call, Returned::of_read(result));
    }

    async fn outcome(&self, client: &Client, ticket: Ticket) -> Said {
        let call = self.machine.shared.world.recorder.call(self.machine.id, Operation::Outcome { ticket });
        let result = client.outcome(&ticket, self.deadline()).await;
        self.machine.alive().await;
        let command = self.open.borrow_mut().remove(&ticket);
        self.returned(call, command.as_ref(), &result);
        Said::of(&result)
    }

    async fn read(&self, client: &Client, consistency: Consistency) {
        let Client::Full(client) = client else { return };
        let key = self.keys.borrow_mut().next();
        let recorder = &self.machine.shared.world.recorder;
        let call = recorder.call(self.machine.id, Operation::Read { consistency, key: key.clone() });
        let client = client.with_deadline(self.deadline());
        let result = client.read(consistency, |state| (read_key(&state.kv, &key), state.last)).await;
        self.machine.alive().await;
        if let Ok((value, _)) = &result {
            *self.seen.borrow_mut() = (key, value.clone());
        }
        recorder.returned(call, Returned::of_read(result));
    }

    /// Proposes under a ticket that was asked for first, maybe once more, maybe something else.
    async fn ticketed(&self, client: &Client, command: &KvCommand) -> Said {
        let ticket = match client.reserve(self.deadline().min(RESERVE)).await {
            Ok(ticket) => ticket,
            Err(ReserveError::SessionExpired) => return Said::Ended,
            Err(ReserveError::Superseded { .. }) => return Said::Superseded,
            Err(_) => {
                // Tickets that were left may have taken all the room.
                self.take_up(client);
                return Said::Nothing;
            }
        };
        let shared = &self.machine.shared;
        match self.machine.below(8) {
            0 => {
                let _ = client.release(&ticket);
                return Said::Nothing;
            }
            // Left to be found in the journal.
            1 => return Said::Nothing,
            _ => {}
        }
        let said = self.propose(client, command, Some(ticket), None).await;
        match (said, self.machine.below(4)) {
            (Said::Applied(_), 0) => {
                shared.fault("ticket_again", self.machine.id);
                self.propose(client, command, Some(ticket), None).await
            }
            // Its first command is known to hold: the other one can have no effect.
            (Said::Applied(first), 1) => {
                shared.fault("ticket_with_other_command", self.machine.id);
                let other = KvCommand::Delete { key: format!("never {ticket}").into_bytes() };
                self.others.borrow_mut().insert(ticket, (first, other.clone()));
                self.propose(client, &other, Some(ticket), None).await
            }
            _ => said,
        }
    }

    /// Many calls at once, each on a key of its own.
    async fn burst(&self, client: &Client) {
        self.machine.shared.fault("burst", self.machine.id);
        let count = 1 + self.machine.below(BURST);
        let commands: Vec<KvCommand> = (0..count)
            .map(|_| {
                self.written.set(self.written.get() + 1);
                let key = format!("b{}.{}", self.machine.id.0, self.written.get()).into_bytes();
                KvCommand::Put { key, value: b"burst".to_vec() }
            })
            .collect();
        join_all(commands.iter().map(|command| self.propose(client, command, None, None))).await;
    }

    /// One thing that an application does.
    async fn step(&self, client: &Client) -> Said {
        let machine = &self.machine;
        if machine.below(10) == 0 {
            // A ticket that was left takes up room: not for so long that nothing can be sent any more.
            self.take_up(client);
        }
        match machine.below(100) {
            0..20 => self.read(client, Consistency::Linearizable).await,
            20..30 => self.read(client, Consistency::Session).await,
            30..38 => self.read(client, Consistency::Local).await,
            38..39 => self.burst(client).await,
            39..40 => self.hash(client).await,
            40..44 => {
                let ticket = self.open.borrow().keys().next().copied();
                let Some(ticket) = ticket else { return Said::Nothing };
                if machine.below(4) == 0 {
                    machine.shared.fault("abandoned", self.machine.id);
                    self.open.borrow_mut().remove(&ticket);
                    let _ = client.abandon(&ticket);
                    return Said::Nothing;
                }
                return self.outcome(client, ticket).await;
            }
            chosen => {
                let key = self.keys.borrow_mut().next();
                let command = self.command(&key);
                return match chosen {
                    44..52 => self.ticketed(client, &command).await,
                    52..56 => {
                        machine.shared.fault("dropped_call", self.machine.id);
                        let patience = Duration::from_millis(machine.below(30));
                        self.propose(client, &command, None, Some(patience)).await
                    }
                    _ => self.propose(client, &command, None, None).await,
                };
            }
        }
        Said::Nothing
    }

    /// Records what the state is.
    async fn hash(&self, client: &Client) {
        let Client::Full(client) = client else { return };
        let found = client.read(Consistency::Local, |state| state.last.map(|last| (last, state.hash()))).await;
        self.machine.alive().await;
        if let Ok(Some((index, hash))) = found {
            let learner = crate::sim::record::LearnerId(self.machine.id, 0);
            let what = What::Learnt { learner, index, chain: None, state_hash: Some(hash) };
            self.machine.shared.world.recorder.record(what);
        }
    }

    /// One process: from its start, with what the journal holds, until it leaves.
    async fn live(self: Rc<Self>) {
        let shared = &self.machine.shared;
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => {
                shared.complain(self.machine.id, format_args!("cannot start: {why}"));
                return shared.settle(self.machine.id);
            }
        };
        if self.journal == Journal::Memory {
            // Another session: nobody answers for the last one's requests.
            self.open.borrow_mut().clear();
        }
        self.take_up(&client);
        while !shared.is(Phase::Quiet) {
            self.machine.sleep_ms(shared.plan.think_ms).await;
            self.machine.alive().await;
            let said = self.step(&client).await;
            self.renew(&client, said);
            if let Status::Closed { why } = client.status() {
                shared.complain(self.machine.id, format_args!("closed: {why}"));
                return shared.settle(self.machine.id);
            }
        }
        self.settle(&client).await;
        shared.settle(self.machine.id);
        shared.reaches(Phase::Over).await;
        if let Client::Full(full) = &client {
            let caught_up = full.with_deadline(SETTLE).read(Consistency::Linearizable, |_| ()).await;
            if caught_up.is_ok() {
                self.hash(&client).await;
            }
        }
        client.close().await;
    }

    /// Begins another session where there is none any more.
    fn renew(&self, client: &Client, said: Said) {
        if said == Said::Superseded && self.twin.is_none() {
            self.machine.shared.complain(self.machine.id, "superseded, and nobody has its journal");
        }
        if matches!(said, Said::Ended | Said::Superseded) {
            self.open.borrow_mut().clear();
            client.renew_session();
        }
    }

    /// Takes up the requests that the journal holds, and lets go of tickets that nothing was proposed under: they take up room.
    fn take_up(&self, client: &Client) {
        for (ticket, payload) in client.unanswered() {
            match payload.map(|payload| from_cbor::<KvCommand>(&payload)) {
                Some(Ok(command)) => {
                    self.open.borrow_mut().insert(ticket, command);
                }
                Some(Err(_)) => self.machine.shared.complain(self.machine.id, format_args!("{ticket} holds what is no command")),
                None => {
                    let _ = client.release(&ticket);
                }
            }
        }
    }

    /// Waits until every request is answered, and for a state that holds them all.
    async fn settle(&self, client: &Client) {
        self.take_up(client);
        loop {
            let open = client.unanswered().into_iter().filter_map(|(ticket, payload)| Some((ticket, from_cbor(&payload?).ok()?)));
            let open: Vec<(Ticket, KvCommand)> = open.collect();
            if open.is_empty() {
                break;
            }
            for (ticket, command) in open {
                // The command is named once more, because a call that was let go of never had a ticket.
                let said = self.propose(client, &command, Some(ticket), Some(SETTLE)).await;
                self.renew(client, said);
            }
        }
        self.settle_twin(client).await;
        self.machine.shared.written(self.machine.id);
        self.machine.shared.all_written().await;
        if let Client::Full(full) = client {
            let current = full.with_deadline(SETTLE);
            while let Err(error) = current.read(Consistency::Linearizable, |_| ()).await {
                if !matches!(error, ReadError::Deadline) {
                    self.machine.shared.complain(self.machine.id, error);
                    return;
                }
            }
            self.hash(client).await;
        }
    }

    /// Twins end in two sessions: of one journal, only one of them speaks.
    async fn settle_twin(&self, client: &Client) {
        let Some((twins, _)) = &self.twin else { return };
        if !twins.is_copied() {
            return;
        }
        let ticket = loop {
            let ticket = match client.reserve(SETTLE).await {
                Ok(ticket) => ticket,
                Err(ReserveError::Superseded { .. }) => {
                    self.renew(client, Said::Superseded);
                    continue;
                }
                Err(_) => continue,
            };
            let command = self.command(&self.keys.borrow_mut().next());
            let mut said = self.propose(client, &command, Some(ticket), None).await;
            while said == Said::Unknown {
                said = self.propose(client, &command, Some(ticket), None).await;
            }
            self.renew(client, said);
            if matches!(said, Said::Applied(_)) {
                break ticket;
            }
            sleep(Duration::from_millis(10)).await;
        };
        let mut sessions = twins.sessions.borrow_mut();
        if sessions.contains(&ticket.session) {
            self.machine.shared.complain(self.machine.id, format_args!("its twin speaks in session {}, too", ticket.session));
        }
        sessions.push(ticket.session);
    }
}

/// Runs a worker through all the trouble that its machine is in.
pub(super) async fn keep(worker: Rc<Worker>) {
    let machine = &worker.machine;
    if let Some((twins, true)) = &worker.twin {
        let mut copied = twins.copied.subscribe();
        tokio::select! {
            biased;
            _ = copied.wait_for(Option::is_some) => {}
            () = machine.shared.reaches(Phase::Quiet) => return machine.shared.settle(machine.id),
        }
        if let Some(state) = &*copied.borrow() {
            *machine.disk.borrow_mut() = SimDisk::on(state.clone());
        }
    }
    loop {
        let life = machine.next_life();
        let process = machine.start(Rc::clone(&worker).live(), life);
        loop {
            tokio::select! {
                biased;
                () = process.gone() => return,
                twins = copy_due(&worker) => {
                    // Killed, so that all that it has written is there.
                    process.kill(Death::Killed).await;
                    machine.shared.fault("journal_copied", machine.id);
                    let state = machine.disk.borrow().state();
                    *machine.disk.borrow_mut() = SimDisk::on(state.clone());
                    twins.copied.send_replace(Some(state));
                    break;
                }
                () = machine.trouble() => {}
            }
            if machine.below(4) > 0 {
                machine.crash(&process).await;
                break;
            }
            machine.pause(&process).await;
        }
    }
}

/// Waits until a twin's journal is to be copied; for ever, if there is nothing to copy.
async fn copy_due(worker: &Worker) -> &Rc<Twins> {
    if let Some((twins, false)) = &worker.twin
        && !twins.is_copied()
    {
        worker.machine.sleep_ms((1_000, 15_000)).await;
        if !worker.machine.shared.is(Phase::Healed) {
            return twins;
        }
    }
    std::future::pending().await
}

/// What a call has said, as far as the worker goes by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    Applied(LogIndex),
    Unknown,
    Ended,
    Superseded,
    Nothing,
}

impl Said {
    fn of(result: &Result<Applied<KvReply>, ProposeError>) -> Self {
        match result {
            Ok(applied) => Self::Applied(applied.index),
            Err(ProposeError::Unknown { reason: Unresolved::SessionExpired, .. } | ProposeError::SessionExpired) => Self::Ended,
            Err(ProposeError::Unknown { .. }) => Self::Unknown,
            Err(ProposeError::Superseded { .. }) => Self::Superseded,
            Err(_) => Self::Nothing,
        }
    }
}

/// The product's client, with state or without.
enum Client {
    Full(ClusterClient<Watched>),
    Thin(ClusterClient<Thin>),
}

macro_rules! either {
    ($self:ident, $client:ident => $do:expr) => {
        match $self {
            Self::Full($client) => $do,
            Self::Thin($client) => $do,
        }
    };
}

/// A thin client's answer, read.
fn typed(result: Result<Applied<Bytes>, ProposeError>) -> Result<Applied<KvReply>, ProposeError> {
    let Applied { index, term, repeat, reply } = result?;
    let reply = from_cbor(&reply).map_err(|_| ProposeError::Reply { index, term })?;
    Ok(Applied { index, term, repeat, reply })
}

impl Client {
    async fn propose(
        &self,
        command: &KvCommand,
        ticket: Option<Ticket>,
        deadline: Duration,
    ) -> Result<Applied<KvReply>, ProposeError> {
        match self {
            Self::Full(client) => match ticket {
                Some(ticket) => client.propose_as(&ticket, command).deadline(deadline).await,
                None => client.propose(command).deadline(deadline).await,
            },
            Self::Thin(client) => {
                let payload = to_cbor(command).expect("a command encodes");
                typed(match ticket {
                    Some(ticket) => client.propose_as(&ticket, &payload).deadline(deadline).await,
                    None => client.propose(&payload).deadline(deadline).await,
                })
            }
        }
    }

    async fn outcome(&self, ticket: &Ticket, deadline: Duration) -> Result<Applied<KvReply>, ProposeError> {
        match self {
            Self::Full(client) => client.with_deadline(deadline).outcome(ticket).await,
            Self::Thin(client) => typed(client.with_deadline(deadline).outcome(ticket).await),
        }
    }

    async fn reserve(&self, deadline: Duration) -> Result<Ticket, ReserveError> {
        either!(self, client => client.with_deadline(deadline).reserve().await)
    }

    fn release(&self, ticket: &Ticket) -> Result<(), cluster_client::GiveUpError> {
        either!(self, client => client.release(ticket))
    }

    fn abandon(&self, ticket: &Ticket) -> Result<(), cluster_client::GiveUpError> {
        either!(self, client => client.abandon(ticket))
    }

    fn unanswered(&self) -> Vec<(Ticket, Option<Bytes>)> {
        either!(self, client => client.unanswered())
    }

    fn renew_session(&self) -> bool {
        either!(self, client => client.renew_session())
    }

    fn status(&self) -> Status {
        either!(self, client => client.status().borrow().clone())
    }

    async fn close(&self) {
        either!(self, client => client.close().await);
    }
}
