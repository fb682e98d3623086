//! Describes a client and brings it to life.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay::wire::FeedMode;
use url::Url;
use voter_mesh::machine::StateMachine;

use crate::client::{ClusterClient, Form, Raw, Thin};
use crate::core::{Core, CoreLimits, CoreOptions, Randomness};
use crate::driver::Driver;
use crate::error::ConnectError;
use crate::follower::{Follower, Holder, Stateful, Stateless};
use crate::host::{Host, OsHost};
use crate::journal::RequestJournal;
use crate::status::Status;

/// The deadline of calls that name none.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of recent committed commands kept for streams, unless the builder says otherwise.
const HISTORY_BYTES_MAX: usize = 8 << 20;

type MakeHolder<M> = fn(Arc<Mutex<M>>) -> Result<Box<dyn Holder>, String>;

/// Describes a client. `S` is `()` until [`Builder::state`], [`Builder::raw`] or [`Builder::thin`] says what it is.
pub struct Builder<S> {
    host: Arc<dyn Host>,
    endpoints: Vec<String>,
    start: Option<usize>,
    links: usize,
    journal: RequestJournal,
    deadline: Duration,
    limits: CoreLimits,
    history_bytes_max: usize,
    form: Option<FormOf<S>>,
}

struct FormOf<S> {
    state: S,
    feed: FeedMode,
    machine: Option<(String, u32)>,
    holder: MakeHolder<S>,
}

impl<S> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("endpoints", &self.endpoints).field("links", &self.links).finish_non_exhaustive()
    }
}

impl Builder<()> {
    pub(crate) fn new() -> Self {
        Self {
            host: Arc::new(OsHost),
            endpoints: Vec::new(),
            start: None,
            links: 1,
            journal: RequestJournal::memory(),
            deadline: DEADLINE,
            limits: CoreLimits::default(),
            history_bytes_max: HISTORY_BYTES_MAX,
            form: None,
        }
    }

    fn form<S>(self, form: FormOf<S>) -> Builder<S> {
        let Self { host, endpoints, start, links, journal, deadline, limits, history_bytes_max, form: _ } = self;
        Builder { host, endpoints, start, links, journal, deadline, limits, history_bytes_max, form: Some(form) }
    }

    /// A learner with this state, which must be the one that the servers began with.
    pub fn state<M: StateMachine>(self, initial: M) -> Builder<M> {
        let holder: MakeHolder<M> = |state| Ok(Box::new(Stateful::new(state)?));
        self.form(FormOf { state: initial, feed: FeedMode::Full, machine: Some((M::NAME.to_owned(), M::VERSION)), holder })
    }

    /// A learner without state, of any state machine: commands and replies are bytes, `committed_from` gives the log.
    pub fn raw(self) -> Builder<Raw> {
        self.form(FormOf { state: Raw, feed: FeedMode::Full, machine: None, holder: |_| Ok(Box::new(Stateless)) })
    }

    /// Proposes bytes and gets replies; no feed, no reads.
    pub fn thin(self) -> Builder<Thin> {
        self.form(FormOf { state: Thin, feed: FeedMode::Thin, machine: None, holder: |_| Ok(Box::new(Stateless)) })
    }
}

impl<S> Builder<S> {
    /// Another world than the operating system's: where connections, randomness and threads come from.
    #[must_use]
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Where servers are: `ws://HOST:PORT/rooms/ROOM`, all of one room. Tried round-robin.
    #[must_use]
    pub fn endpoints<E: AsRef<str>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
        self
    }

    /// Which endpoint to begin with, counted from 0 and modulo their number. Default: a random one, so that many clients with one
    /// list spread over the servers.
    #[must_use]
    pub fn start_with(mut self, endpoint: usize) -> Self {
        self.start = Some(endpoint);
        self
    }

    /// Links to hold: 1 (the default), or 2, the second one standing by on another server to take over without a dial.
    #[must_use]
    pub fn links(mut self, links: usize) -> Self {
        self.links = links;
        self
    }

    /// Where requests are kept until they are answered. Default [`RequestJournal::memory`].
    #[must_use]
    pub fn journal(mut self, journal: RequestJournal) -> Self {
        self.journal = journal;
        self
    }

    /// The deadline of every call that names none, `connect` included. Default 10 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The core's limits and times.
    #[must_use]
    pub fn limits(mut self, limits: CoreLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Bytes of recent committed commands kept for streams. Default 8 MiB. Smaller: slow streams ask the server sooner.
    #[must_use]
    pub fn history_bytes_max(mut self, bytes: usize) -> Self {
        self.history_bytes_max = bytes;
        self
    }

    fn room(&self) -> Result<String, ConnectError> {
        let mut room: Option<String> = None;
        for endpoint in &self.endpoints {
            let bad = |reason: &str| ConnectError::Endpoint { endpoint: endpoint.clone(), reason: reason.to_owned() };
            let url = Url::parse(endpoint).map_err(|error| bad(&error.to_string()))?;
            if url.scheme() != "ws" {
                return Err(bad("the scheme must be ws"));
            }
            if url.host().is_none() {
                return Err(bad("it names no host"));
            }
            let named = url.path().strip_prefix("/rooms/").map(|rest| rest.trim_end_matches('/'));
            let named =
                named.filter(|room| !room.is_empty() && !room.contains('/')).ok_or_else(|| bad("the path must be /rooms/ROOM"))?;
            match &room {
                Some(room) if room != named => return Err(ConnectError::Rooms(room.clone(), named.to_owned())),
                _ => room = Some(named.to_owned()),
            }
        }
        room.ok_or(ConnectError::NoEndpoint)
    }
}

impl<S: Form + Send + 'static> Builder<S> {
    /// Starts the client and returns at once: calls made before it is live wait for it.
    ///
    /// # Errors
    /// [`ConnectError`], but never `Deadline`.
    pub fn start(self) -> Result<ClusterClient<S>, ConnectError> {
        let room = self.room()?;
        if !(1..=2).contains(&self.links) {
            return Err(ConnectError::Links(self.links));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(ConnectError::NoRuntime);
        }
        let mut probe = [0_u8; 8];
        self.host.fill_random(&mut probe).map_err(|error| ConnectError::Randomness(error.to_string()))?;
        let Some(FormOf { state, feed, machine, holder }) = self.form else { return Err(ConnectError::NoEndpoint) };
        let state = Arc::new(Mutex::new(state));
        let holder = holder(Arc::clone(&state)).map_err(ConnectError::InitialState)?;
        let options = CoreOptions {
            start: self.start.unwrap_or(usize::from(u16::from_le_bytes([probe[0], probe[1]]))),
            endpoints: self.endpoints,
            links: self.links,
            room,
            feed,
            machine,
            journal_kept: self.journal.is_kept(),
            limits: self.limits,
        };
        let recovered = self.journal.state().clone();
        let source = Arc::clone(&self.host);
        let randomness = Randomness::new(move |bytes| {
            // It gave some a moment ago; a system that loses it cannot keep secrets, and must not go on.
            source.fill_random(bytes).expect("the operating system's randomness does not go away");
        });
        let make = |now| Core::new(options, &recovered, randomness, now);
        let shared = Driver::spawn(self.host, make, |history| Follower::new(holder, history), self.journal, self.history_bytes_max);
        Ok(ClusterClient::new(shared, state, self.deadline))
    }

    /// Starts the client and returns when it is live for the first time.
    ///
    /// Dropping the future closes the client.
    ///
    /// # Errors
    /// [`ConnectError`]; there is no client then, and its journal is free.
    pub async fn connect(self) -> Result<ClusterClient<S>, ConnectError> {
        let deadline = self.deadline;
        let client = self.start()?;
        let mut status = client.status();
        let settled = status.wait_for(|status| matches!(status, Status::Live { .. } | Status::Closed { .. }));
        let reached =
            tokio::time::timeout(deadline, settled).await.ok().and_then(|status| status.ok().map(|status| status.clone()));
        let error = match reached {
            Some(Status::Live { .. }) => return Ok(client),
            Some(Status::Closed { why }) => ConnectError::Closed(why),
            _ => match &*client.status().borrow() {
                Status::Connecting { last_error, .. } | Status::FailingOver { last_error, .. } => {
                    ConnectError::Deadline { last_error: last_error.clone() }
                }
                _ => ConnectError::Deadline { last_error: None },
            },
        };
        client.close().await;
        Err(error)
    }
}
