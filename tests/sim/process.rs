//! One simulated process: a set of tasks that lives and dies as one, and may be stopped for a while.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::Instant;

use super::net::{Death, Life, SimNet};

/// How often its tasks may have their turn at one instant. What needs more goes round in circles.
const TURNS_MAX: u32 = 3_000;

/// A process that was started. Dropping this does nothing to it.
#[derive(Debug)]
pub struct Process {
    /// Which one.
    pub life: Arc<Life>,
    net: SimNet,
    state: Rc<State>,
}

#[derive(Debug, Default)]
struct State {
    stopped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// It exited by itself, and why.
    exit: RefCell<Option<String>>,
    /// All its tasks are gone.
    gone: Cell<bool>,
    ended: Notify,
}

impl Process {
    /// Runs `main` and what it spawns with `spawn_local`, until it exits or is killed.
    pub fn start(net: SimNet, life: Arc<Life>, main: impl Future<Output = String> + 'static) -> Self {
        let state = Rc::new(State::default());
        let tasks = LocalSet::new();
        tasks.spawn_local({
            let (state, life) = (Rc::clone(&state), Arc::clone(&life));
            async move {
                let why = main.await;
                // Whoever was killed in the midst of this turn says nothing any more.
                if !life.is_dead() {
                    *state.exit.borrow_mut() = Some(why);
                }
            }
        });
        spawn_local(Tasks {
            tasks: Some(tasks),
            life: Arc::clone(&life),
            net: net.clone(),
            state: Rc::clone(&state),
            turns: (Instant::now(), 0),
        });
        Self { life, net, state }
    }

    /// Ends it, with its tasks as they are, and waits until they are gone.
    pub async fn kill(&self, death: Death) {
        self.net.end_life(&self.life, death);
        self.wake();
        self.gone().await;
    }

    /// Waits until it has ended, by itself or not.
    pub async fn gone(&self) {
        while !self.state.gone.get() {
            self.state.ended.notified().await;
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.state.gone.get()
    }

    /// Why it has exited, if it did so by itself.
    #[must_use]
    pub fn exit(&self) -> Option<String> {
        self.state.exit.borrow().clone()
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.is_gone() && self.state.exit.borrow().is_some()
    }

    /// Stops it as a signal does, or lets it go on: time passes, and nothing of it runs.
    pub fn stop(&self, stopped: bool) {
        self.state.stopped.set(stopped);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.state.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

struct Tasks {
    tasks: Option<LocalSet>,
    life: Arc<Life>,
    net: SimNet,
    state: Rc<State>,
    /// Turns at this instant.
    turns: (Instant, u32),
}

impl Tasks {
    /// Whether it goes round in circles.
    fn spins(&mut self) -> bool {
        let now = Instant::now();
        self.turns = (now, if self.turns.0 == now { self.turns.1 + 1 } else { 0 });
        self.turns.1 > TURNS_MAX
    }
}

impl Future for Tasks {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        *this.state.waker.borrow_mut() = Some(cx.waker().clone());
        if this.spins() {
            *this.state.exit.borrow_mut() = Some("it goes round in circles".to_owned());
        } else if !this.life.is_dead() {
            if this.state.stopped.get() {
                return Poll::Pending;
            }
            if let Some(tasks) = &mut this.tasks
                && Pin::new(tasks).poll(cx).is_pending()
                && this.state.exit.borrow().is_none()
                && !this.life.is_dead()
            {
                return Poll::Pending;
            }
        }
        if !this.life.is_dead() {
            this.net.end_life(&this.life, Death::Killed);
        }
        this.tasks = None;
        this.state.gone.set(true);
        this.state.ended.notify_waiters();
        Poll::Ready(())
    }
}
