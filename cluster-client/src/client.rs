//! The client as applications hold it.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use voter_mesh::ids::{LogIndex, RequestId, Term};
use voter_mesh::machine::{StateMachine, Undecodable, from_cbor, to_cbor};

use crate::builder::Builder;
use crate::call::Call;
use crate::core::{ProposeResult, ReadAfter, WhenFull};
use crate::driver::Shared;
use crate::error::{GiveUpError, NotSent, ProposeError, ReadError, ReserveError};
use crate::follower::lock;
use crate::status::{CloseReason, Status};
use crate::stream::CommittedStream;
use crate::ticket::Ticket;

/// A client without state that follows the committed log: commands and replies are bytes.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

/// A client without state and without a feed: it proposes bytes and gets replies.
#[derive(Clone, Copy, Debug)]
pub struct Thin;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Raw {}
    impl Sealed for super::Thin {}
    impl<M: super::StateMachine> Sealed for M {}
}

/// What a client's commands and replies are: a state machine's, or bytes. Not to be implemented elsewhere.
pub trait Form: sealed::Sealed {
    /// What is proposed.
    type Command;
    /// What is answered.
    type Reply;
    /// The command as it travels.
    ///
    /// # Errors
    /// The command's own `Serialize` failed; the text is its reason.
    fn encode(command: &Self::Command) -> Result<Bytes, String>;
    /// The reply as it was meant.
    ///
    /// # Errors
    /// [`Undecodable`].
    fn decode(reply: Bytes) -> Result<Self::Reply, Undecodable>;
}

impl<M: StateMachine> Form for M {
    type Command = M::Command;
    type Reply = M::Reply;

    fn encode(command: &M::Command) -> Result<Bytes, String> {
        to_cbor(command)
    }

    fn decode(reply: Bytes) -> Result<M::Reply, Undecodable> {
        from_cbor(&reply)
    }
}

macro_rules! bytes_form {
    ($form:ty) => {
        impl Form for $form {
            type Command = Bytes;
            type Reply = Bytes;

            fn encode(command: &Bytes) -> Result<Bytes, String> {
                Ok(command.clone())
            }

            fn decode(reply: Bytes) -> Result<Bytes, Undecodable> {
                Ok(reply)
            }
        }
    };
}

bytes_form!(Raw);
bytes_form!(Thin);

/// A command that took effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied<R> {
    /// Where in the log.
    pub index: LogIndex,
    /// In which term. (`term`, `index`) rises strictly along the log.
    pub term: Term,
    /// Whether an earlier copy of the request did it, and this is its outcome again.
    pub repeat: bool,
    /// What the state machine answered.
    pub reply: R,
}

/// How recent the state must be that a read sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// What the replica holds now. Never waits; never older than what an earlier read of this client saw.
    Local,
    /// At least what this client's proposals have been answered, on any link.
    Session,
    /// At least what was acknowledged to anyone, anywhere, before the call.
    Linearizable,
}

/// Closes the client when the last handle goes.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.with_core(|core, _| core.close(CloseReason::Application));
    }
}

/// A client of a cluster: a learner with its state, and a session whose commands apply exactly once. Clones are handles to the same
/// client; it closes when the last one is dropped, as if by `close`, without waiting.
///
/// `M` is the state machine, [`Raw`] or [`Thin`]. Proposals that are awaited one after the other apply in that order; concurrent
/// ones in any order.
pub struct ClusterClient<M> {
    handle: Arc<Handle>,
    state: Arc<Mutex<M>>,
    deadline: Duration,
}

impl<M> Clone for ClusterClient<M> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle), state: Arc::clone(&self.state), deadline: self.deadline }
    }
}

impl<M> fmt::Debug for ClusterClient<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterClient").field("status", &*self.status().borrow()).finish_non_exhaustive()
    }
}

impl ClusterClient<()> {
    /// Begins to describe a client.
    #[must_use]
    pub fn builder() -> Builder<()> {
        Builder::new()
    }
}

impl<M> ClusterClient<M> {
    pub(crate) fn new(shared: Arc<Shared>, state: Arc<Mutex<M>>, deadline: Duration) -> Self {
        Self { handle: Arc::new(Handle(shared)), state, deadline }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// The same client with another default deadline for the calls made through this handle.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// How the client stands, now and from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared().status()
    }

    /// Reserves the next request id; persist the ticket before proposing under it, and a crash cannot make the command apply twice.
    /// Opens the session if there is none. A reserved ticket holds a place in the window of 256 until it is answered, released or
    /// abandoned.
    ///
    /// Dropping the future is the same as its deadline: no id is held.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub async fn reserve(&self) -> Result<Ticket, ReserveError> {
        self.reserve_as(None).await
    }

    /// The ticket of a request id that the application chose. It may have been used before: then `propose_as` gets the outcome that
    /// the servers have for it. Ids that the client issues later are higher.
    ///
    /// Dropping the future is the same as its deadline: no id is held.
    ///
    /// # Errors
    /// [`ReserveError`].
    pub async fn ticket(&self, id: RequestId) -> Result<Ticket, ReserveError> {
        self.reserve_as(Some(id)).await
    }

    async fn reserve_as(&self, id: Option<RequestId>) -> Result<Ticket, ReserveError> {
        let deadline = self.shared().deadline(self.deadline);
        let call = Call::new(self.shared(), |core, waiter, _| core.reserve(id, deadline, waiter));
        call.await.unwrap_or(Err(ReserveError::Closed(CloseReason::TaskEnded)))
    }

    /// Gives up a reserved ticket that nothing was proposed under.
    ///
    /// # Errors
    /// [`GiveUpError`]; nothing has changed.
    pub fn release(&self, ticket: &Ticket) -> Result<(), GiveUpError> {
        self.shared().with_core(|core, _| core.release(*ticket))
    }

    /// Gives up a request, whatever has become of it: it is not sent again. It may have been applied, and may still be until a later
    /// command of this session is.
    ///
    /// # Errors
    /// [`GiveUpError`]; nothing has changed.
    pub fn abandon(&self, ticket: &Ticket) -> Result<(), GiveUpError> {
        self.shared().with_core(|core, _| core.abandon(*ticket))
    }

    /// What the journal holds open: requests that are not answered, with their commands as bytes, and tickets that are only
    /// reserved, with `None`. After a crash, the requests are being sent again; `outcome` waits for them.
    #[must_use]
    pub fn unanswered(&self) -> Vec<(Ticket, Option<Bytes>)> {
        self.shared().with_core(|core, _| core.unanswered())
    }

    /// After `SessionExpired` or `Superseded`: lets the next proposal open a new session. Tickets of the old one are foreign from
    /// then on. Whether there was an ended session to replace.
    pub fn renew_session(&self) -> bool {
        self.shared().with_core(|core, now| core.renew_session(now))
    }

    /// Closes the client: every waiting call is answered, last words are sent, the journal is free again. A session that no journal
    /// keeps is ended. Takes at most a quarter of a second beyond the journal's last write.
    ///
    /// Dropping the future leaves the client closing.
    pub async fn close(&self) {
        self.shared().with_core(|core, _| core.close(CloseReason::Application));
        self.shared().wait_ended().await;
    }
}

impl<M: Form> ClusterClient<M> {
    fn proposal(&self, command: &M::Command, ticket: Option<Ticket>, when_full: WhenFull) -> Propose<M::Reply> {
        Propose {
            shared: Arc::clone(self.shared()),
            payload: M::encode(command),
            ticket,
            when_full,
            deadline: self.deadline,
            decode: M::decode,
        }
    }

    /// Proposes a command, which applies exactly once. Await it, or give it its own deadline first. Resolves when the reply is here
    /// and (but for a thin client) the own replica has applied it. Waits for room while 256 requests are open.
    ///
    /// Nothing happens before the first poll. Dropping the future is the same as its deadline: what was not sent is forgotten, what
    /// was goes on being sent.
    #[must_use = "a proposal does nothing until it is awaited"]
    pub fn propose(&self, command: &M::Command) -> Propose<M::Reply> {
        self.proposal(command, None, WhenFull::Wait)
    }

    /// As `propose`, but if there is no room at once: `NotSent {WindowFull}`.
    #[must_use = "a proposal does nothing until it is awaited"]
    pub fn try_propose(&self, command: &M::Command) -> Propose<M::Reply> {
        self.proposal(command, None, WhenFull::Refuse)
    }

    /// Proposes under a reserved ticket. Doing so again with the same command, also after a crash, gets the first outcome. Another
    /// command never takes effect under it: the call gets `Conflict`.
    ///
    /// Dropping the future as for `propose`; a ticket that was not sent stays reserved.
    #[must_use = "a proposal does nothing until it is awaited"]
    pub fn propose_as(&self, ticket: &Ticket, command: &M::Command) -> Propose<M::Reply> {
        self.proposal(command, Some(*ticket), WhenFull::Wait)
    }

    /// Waits for what becomes of a request that was proposed before: after `Unknown`, or after a crash. Each outcome is told once.
    ///
    /// Dropping the future changes nothing.
    ///
    /// # Errors
    /// As `propose`; `Unknown {Deadline}` if it is still unanswered.
    pub async fn outcome(&self, ticket: &Ticket) -> Result<Applied<M::Reply>, ProposeError> {
        let (ticket, deadline) = (*ticket, self.shared().deadline(self.deadline));
        let call = Call::new(self.shared(), |core, waiter, _| core.outcome(ticket, deadline, waiter));
        finish(call.await, M::decode)
    }
}

impl<M: StateMachine> ClusterClient<M> {
    /// Runs `read` on the own replica, as recent as `consistency` asks. The replica stands still meanwhile: be brief.
    ///
    /// Dropping the future changes nothing.
    ///
    /// # Errors
    /// [`ReadError`]; `read` was not called.
    pub async fn read<R>(&self, consistency: Consistency, read: impl FnOnce(&M) -> R) -> Result<R, ReadError> {
        let after = match consistency {
            Consistency::Local => None,
            Consistency::Session => Some(ReadAfter::Session),
            Consistency::Linearizable => Some(ReadAfter::Linearizable),
        };
        if let Some(after) = after {
            let deadline = self.shared().deadline(self.deadline);
            let call = Call::new(self.shared(), |core, waiter, now| core.read(after, deadline, waiter, now));
            call.await.unwrap_or(Err(ReadError::Closed(CloseReason::TaskEnded)))?;
        }
        Ok(read(&lock(&self.state)))
    }

    /// The committed commands from `from` on: see [`CommittedStream`].
    #[must_use]
    pub fn committed_from(&self, from: LogIndex) -> CommittedStream {
        CommittedStream::new(Arc::clone(self.shared()), from)
    }
}

impl ClusterClient<Raw> {
    /// The committed commands from `from` on: see [`CommittedStream`].
    #[must_use]
    pub fn committed_from(&self, from: LogIndex) -> CommittedStream {
        CommittedStream::new(Arc::clone(self.shared()), from)
    }
}

type Decode<R> = fn(Bytes) -> Result<R, Undecodable>;

fn finish<R>(result: Option<ProposeResult>, decode: Decode<R>) -> Result<Applied<R>, ProposeError> {
    // Without an answer the core is gone, which answers everyone first.
    let answer = result.unwrap_or(Err(ProposeError::NoSuchRequest))?;
    let (index, term) = (answer.index, answer.term);
    let reply = decode(answer.reply).map_err(|Undecodable| ProposeError::Reply { index, term })?;
    Ok(Applied { index, term, repeat: answer.repeat, reply })
}

/// A command about to be proposed: `.await` it.
pub struct Propose<R> {
    shared: Arc<Shared>,
    payload: Result<Bytes, String>,
    ticket: Option<Ticket>,
    when_full: WhenFull,
    deadline: Duration,
    decode: Decode<R>,
}

impl<R> fmt::Debug for Propose<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Propose").field("ticket", &self.ticket).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<R> Propose<R> {
    /// Another deadline than the client's, counted from the first poll.
    #[must_use = "a proposal does nothing until it is awaited"]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl<R> IntoFuture for Propose<R> {
    type Output = Result<Applied<R>, ProposeError>;
    type IntoFuture = Proposing<R>;

    fn into_future(self) -> Proposing<R> {
        Proposing(Stage::New(Some(self)))
    }
}

enum Stage<R> {
    New(Option<Propose<R>>),
    Waiting(Call<ProposeResult>, Decode<R>),
}

/// A proposal under way. Dropping it is the same as its deadline: what was not sent is forgotten; what was stays in the journal,
/// goes on being sent, and `outcome` or `unanswered` find it.
pub struct Proposing<R>(Stage<R>);

impl<R> fmt::Debug for Proposing<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proposing")
    }
}

impl<R> Future for Proposing<R> {
    type Output = Result<Applied<R>, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Stage::New(new) = &mut self.0
            && let Some(Propose { shared, payload, ticket, when_full, deadline, decode }) = new.take()
        {
            let payload = match payload {
                Ok(payload) => payload,
                Err(reason) => return Poll::Ready(Err(ProposeError::NotSent { reason: NotSent::Encode(reason) })),
            };
            let deadline = shared.deadline(deadline);
            let call = Call::new(&shared, |core, waiter, _| core.propose(payload, ticket, when_full, deadline, waiter));
            self.0 = Stage::Waiting(call, decode);
        }
        match &mut self.0 {
            Stage::Waiting(call, decode) => Pin::new(call).poll(cx).map(|result| finish(result, *decode)),
            // Polled again after it was refused.
            Stage::New(_) => Poll::Ready(Err(ProposeError::NoSuchRequest)),
        }
    }
}

impl From<ReserveError> for ProposeError {
    /// What a proposal without a ticket becomes.
    fn from(error: ReserveError) -> Self {
        let reason = match error {
            ReserveError::SessionExpired => return Self::SessionExpired,
            ReserveError::Superseded { current } => return Self::Superseded { current },
            ReserveError::BadId => return Self::ForeignTicket,
            ReserveError::Deadline => NotSent::Deadline,
            ReserveError::QueueFull => NotSent::QueueFull,
            ReserveError::Closed(why) => NotSent::Closed(why),
        };
        Self::NotSent { reason }
    }
}
