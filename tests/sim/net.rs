//! A network in memory: streams of bytes between addresses, on which everything happens that happens to connections.
//!
//! * A stream keeps its order, as TCP does: a lost segment is a stall, a long silence ends it. Each chunk that is written arrives by itself,
//!   after a delay that is drawn; both directions have bounded buffers, so who does not read stops who writes.
//! * Rules stand for each ordered pair of hosts ([`Rules`]) and may change at any time: cut, slow, lossy. What is under way when a
//!   direction is cut is held, and arrives late when the cut heals.
//! * Hosts have lives ([`Life`]): when a process is killed its connections end, when its machine loses power they fall silent, and what is left
//!   of its code can do nothing any more.
//! * On the servers' `consensus` connections the network sees frames and may lose, double and reorder those that raft allows
//!   ([`super::frames`]), and shows each to a tap.
//!
//! Everything it draws comes from its seed. It counts what it did to whom as faults, by kind.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::frames::{Framer, Frames, Passed};
use super::random::Random;

/// The port of every server's mesh listener.
pub const MESH_PORT: u16 = 7501;

/// The port of every server's relay listener.
pub const RELAY_PORT: u16 = 7400;

/// Connections that wait in one listener.
const BACKLOG_MAX: usize = 64;

/// A dial whose segments are lost is repeated after this, doubling.
const SYN_RETRY_MS: u64 = 250;

/// A dial is given up after so many repetitions.
const SYN_RETRIES_MAX: u32 = 8;

/// How long a chunk waits at least whose segment was lost.
const RETRANSMIT_US: u64 = 200_000;

/// A connection that could not get its bytes across for so long ends, as far as their sender can tell.
const GIVE_UP_US: u64 = 15_000_000;

/// Microseconds since the world began.
pub type TimeUs = u64;

/// The address of node `number`.
#[must_use]
pub const fn host(number: u16) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, (number >> 8) as u8, number as u8, 1))
}

/// One process on a host.
#[derive(Debug)]
pub struct Life {
    /// Its number, over all hosts.
    pub number: u64,
    /// Where it runs.
    pub host: IpAddr,
    dead: AtomicBool,
}

impl Life {
    /// A process that lives.
    #[must_use]
    pub fn new(number: u64, host: IpAddr) -> Arc<Self> {
        Arc::new(Self { number, host, dead: AtomicBool::new(false) })
    }

    /// From now on nothing that it does reaches anybody; [`SimNet::end_life`] tells the others.
    pub fn end(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// Its machine goes on: every connection ends, and dials are refused.
    Killed,
    /// Its machine is gone: the other ends hear nothing. When the machine is back, what they send is answered with a reset.
    PowerLost,
}

/// What happens to what one host sends to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Nothing arrives.
    pub cut: bool,
    /// The shortest and the longest delay of a chunk, in microseconds. The runtime's timers round up to whole milliseconds.
    pub delay_us: (u64, u64),
    /// Of a thousand chunks, how many lose a segment: they, and all behind them, wait for its second try.
    pub loss_permille: u64,
    /// Of a thousand chunks, how many take up to `spike_us` more.
    pub spike_permille: u64,
    /// The longest such delay.
    pub spike_us: u64,
    /// Bytes in a second; 0: no bound.
    pub bytes_per_s: u64,
    /// What happens to frames on `consensus` connections.
    pub frames: Frames,
}

impl Default for Rules {
    fn default() -> Self {
        let frames = Frames::default();
        Self { cut: false, delay_us: (100, 1_000), loss_permille: 0, spike_permille: 0, spike_us: 0, bytes_per_s: 0, frames }
    }
}

/// A frame that was sent on a `consensus` connection.
#[derive(Debug)]
pub struct Tapped<'a> {
    /// When.
    pub at_us: TimeUs,
    /// The connection's number.
    pub connection: u64,
    /// Who sent it.
    pub from: &'a Life,
    /// Who is to get it.
    pub to: &'a Life,
    /// The frame, without its length field.
    pub frame: &'a Bytes,
}

/// Sees every frame when it is sent.
pub type Tap = Box<dyn FnMut(&Tapped<'_>) + Send>;

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct SimNet(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The earliest event has changed.
    changed: Notify,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimNet")
            .field("connections", &state.connections.len())
            .field("faults", &state.faults)
            .finish_non_exhaustive()
    }
}

struct State {
    began: Instant,
    random: Random,
    rules: BTreeMap<(IpAddr, IpAddr), Rules>,
    usual: Rules,
    listeners: BTreeMap<SocketAddr, Backlog>,
    /// Hosts without power.
    dark: BTreeSet<IpAddr>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    next_port: u16,
    /// Bytes that one direction of a stream holds.
    buffer_bytes: usize,
    events: BinaryHeap<std::cmp::Reverse<(TimeUs, u64, u64, usize)>>,
    next_event: u64,
    faults: BTreeMap<&'static str, u64>,
    tap: Option<Tap>,
    /// Woken when the lock is free again.
    woken: Vec<Waker>,
    earliest_changed: bool,
}

struct Backlog {
    life: Arc<Life>,
    waiting: VecDeque<(u64, SocketAddr)>,
    waker: Option<Waker>,
}

struct Connection {
    ends: [End; 2],
}

struct End {
    life: Arc<Life>,
    address: SocketAddr,
    is: Is,
    /// What is on its way here, with the time of its arrival.
    under_way: VecDeque<(TimeUs, Segment)>,
    under_way_bytes: usize,
    /// What has arrived and was not read.
    arrived: VecDeque<Bytes>,
    arrived_bytes: usize,
    /// How the stream ends for this end, once what arrived is read.
    ended: Option<Ended>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Nothing arrives here before: the direction stalls, or is as busy as its bandwidth allows.
    not_before_us: TimeUs,
    /// This end reads nothing before: the application is slow.
    stalled_until_us: TimeUs,
    /// Since when what is on its way here is held by a cut.
    held_since_us: Option<TimeUs>,
    /// Cuts what this end sends into frames.
    framer: Option<Framer>,
    /// It has said that it sends no more.
    shut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    Open,
    /// Its owner dropped it.
    Closed,
    /// Its process was killed or lost power.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Eof,
    Reset,
}

impl End {
    /// Whoever uses this end is told that the connection is broken.
    fn break_off(&mut self, woken: &mut Vec<Waker>) {
        self.ended = Some(Ended::Reset);
        self.arrived.clear();
        self.arrived_bytes = 0;
        woken.extend(self.reader.take());
        woken.extend(self.writer.take());
    }
}

enum Segment {
    Bytes(Bytes),
    Fin,
    Reset,
}

impl SimNet {
    /// A network whose time begins now. Needs a runtime whose clock is paused; [`SimNet::run`] must be polled on it.
    #[must_use]
    pub fn new(seed: u64, usual: Rules, buffer_bytes: usize) -> Self {
        let state = State {
            began: Instant::now(),
            random: Random::new(seed),
            rules: BTreeMap::new(),
            usual,
            listeners: BTreeMap::new(),
            dark: BTreeSet::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            next_port: 30_000,
            buffer_bytes,
            events: BinaryHeap::new(),
            next_event: 0,
            faults: BTreeMap::new(),
            tap: None,
            woken: Vec::new(),
            earliest_changed: false,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Delivers for as long as it is polled.
    pub async fn run(self) {
        loop {
            let next = self.with(State::deliver_due);
            tokio::select! {
                biased;
                () = self.0.changed.notified() => {}
                () = async {
                    match next {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; whom that concerns is woken when the lock is free, because a waker may drop what holds a stream.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        let woken = std::mem::take(&mut state.woken);
        let changed = std::mem::take(&mut state.earliest_changed);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        if changed {
            self.0.changed.notify_one();
        }
        result
    }

    /// Microseconds since the world began.
    #[must_use]
    pub fn now_us(&self) -> TimeUs {
        self.state().now_us()
    }

    /// Shows each frame on `consensus` connections to `tap`, which must not ask the network for anything.
    pub fn set_tap(&self, tap: Tap) {
        self.state().tap = Some(tap);
    }

    /// How often each kind of fault has happened.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.state().faults.clone()
    }

    /// The rules from one host to another, to be changed.
    pub fn change_rules(&self, from: IpAddr, to: IpAddr, change: impl FnOnce(&mut Rules)) {
        self.with(|state| {
            let usual = state.usual;
            let rules = state.rules.entry((from, to)).or_insert(usual);
            let was_cut = rules.cut;
            change(rules);
            if was_cut && !rules.cut {
                state.release(from, to);
            }
        });
    }

    /// The usual rules everywhere.
    pub fn heal(&self) {
        self.with(|state| {
            let cut: Vec<_> = state.rules.iter().filter(|(_, rules)| rules.cut).map(|(pair, _)| *pair).collect();
            state.rules.clear();
            cut.into_iter().for_each(|(from, to)| state.release(from, to));
            let now = state.now_us();
            let ids: Vec<_> = state.connections.keys().copied().collect();
            for id in ids {
                for end in 0..2 {
                    if let Some(connection) = state.connections.get_mut(&id)
                        && connection.ends[end].stalled_until_us > now
                    {
                        connection.ends[end].stalled_until_us = now;
                        state.woken.extend(connection.ends[end].reader.take());
                    }
                }
            }
        });
    }

    /// Binds an address for a process.
    ///
    /// # Errors
    /// `AddrInUse`.
    pub fn listen(&self, address: SocketAddr, life: &Arc<Life>) -> io::Result<SimListener> {
        self.with(|state| {
            if state.listeners.contains_key(&address) {
                return Err(io::Error::from(io::ErrorKind::AddrInUse));
            }
            state.listeners.insert(address, Backlog { life: Arc::clone(life), waiting: VecDeque::new(), waker: None });
            Ok(())
        })?;
        Ok(SimListener { net: self.clone(), address, life: Arc::clone(life) })
    }

    /// Dials from a process. Whoever waits brings the deadline.
    ///
    /// # Errors
    /// `ConnectionRefused` where the host is up and nobody listens; `TimedOut` where nothing answers for about a minute.
    pub async fn connect(&self, life: Arc<Life>, to: SocketAddr) -> io::Result<SimStream> {
        let from = life.host;
        let mut retry_ms = SYN_RETRY_MS;
        for _ in 0..=SYN_RETRIES_MAX {
            let round_trip_us = self.with(|state| state.delay_us(from, to.ip()) + state.delay_us(to.ip(), from));
            sleep(Duration::from_micros(round_trip_us)).await;
            if let Some(connected) = self.with(|state| state.connect(&life, to)) {
                return connected.map(|connection| SimStream { net: self.clone(), connection, end: 0 });
            }
            sleep(Duration::from_millis(retry_ms)).await;
            retry_ms = retry_ms.saturating_mul(2);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Ends a process's part in the network. Whatever its code still holds is of no use.
    pub fn end_life(&self, life: &Life, death: Death) {
        life.end();
        self.with(|state| state.end_life(life, death));
    }

    /// The host has power again: what silent connections still send to it is answered with a reset.
    pub fn power_on(&self, host: IpAddr) {
        self.with(|state| state.power_on(host));
    }

    /// Breaks connections between two hosts: each side reads a reset, maybe behind half of a chunk. Returns how many.
    pub fn reset(&self, one: IpAddr, other: IpAddr) -> usize {
        self.with(|state| {
            let ids = state.between(one, other);
            ids.iter().for_each(|id| state.reset_both(*id));
            state.count("reset", ids.len() as u64);
            ids.len()
        })
    }

    /// One side's process loses the connections to `other` without a word on the wire: `one` reads a reset, the other hears nothing.
    /// Returns how many.
    pub fn half_open(&self, one: IpAddr, other: IpAddr) -> usize {
        self.with(|state| {
            let ids = state.between(one, other);
            for id in &ids {
                let Some(connection) = state.connections.get_mut(id) else { continue };
                let end = &mut connection.ends[usize::from(connection.ends[0].life.host != one)];
                end.is = Is::Gone;
                end.break_off(&mut state.woken);
            }
            state.count("half_open", ids.len() as u64);
            ids.len()
        })
    }

    /// All that is under way between two hosts arrives later by this much. Returns how many connections stall.
    pub fn stall(&self, one: IpAddr, other: IpAddr, us: u64) -> usize {
        self.with(|state| {
            let (ids, now) = (state.between(one, other), state.now_us());
            for id in &ids {
                for end in 0..2 {
                    if let Some(connection) = state.connections.get_mut(id) {
                        connection.ends[end].not_before_us = connection.ends[end].not_before_us.max(now + us);
                    }
                }
            }
            state.count("stall", ids.len() as u64);
            ids.len()
        })
    }

    /// Nothing on `host` reads from its connections for this long. Returns how many there are.
    pub fn read_slowly(&self, host: IpAddr, us: u64) -> usize {
        self.with(|state| {
            let until = state.now_us() + us;
            let mut slow = Vec::new();
            for (id, connection) in &mut state.connections {
                for (number, end) in connection.ends.iter_mut().enumerate() {
                    if end.life.host == host && end.is == Is::Open {
                        end.stalled_until_us = end.stalled_until_us.max(until);
                        slow.push((*id, number));
                    }
                }
            }
            for (id, end) in &slow {
                state.schedule(until, *id, *end);
            }
            state.count("slow_reader", slow.len() as u64);
            slow.len()
        })
    }
}

impl State {
    fn now_us(&self) -> TimeUs {
        (Instant::now() - self.began).as_micros() as u64
    }

    fn count(&mut self, fault: &'static str, times: u64) {
        if times > 0 {
            *self.faults.entry(fault).or_default() += times;
        }
    }

    fn rules(&self, from: IpAddr, to: IpAddr) -> Rules {
        self.rules.get(&(from, to)).copied().unwrap_or(self.usual)
    }

    fn between(&self, one: IpAddr, other: IpAddr) -> Vec<u64> {
        let pairs = [(one, other), (other, one)];
        let both = |connection: &Connection| connection.ends.iter().all(|end| end.is == Is::Open);
        let here = |connection: &Connection| pairs.contains(&(connection.ends[0].life.host, connection.ends[1].life.host));
        self.connections.iter().filter(|(_, connection)| both(connection) && here(connection)).map(|(id, _)| *id).collect()
    }

    /// The delay of one chunk, with what the rules do to it.
    fn delay_us(&mut self, from: IpAddr, to: IpAddr) -> u64 {
        let rules = self.rules(from, to);
        let (least, most) = rules.delay_us;
        let mut delay = least + self.random.below(most.saturating_sub(least) + 1);
        if rules.spike_permille > 0 && self.random.below(1000) < rules.spike_permille {
            delay += self.random.below(rules.spike_us + 1);
            self.count("delay_spike", 1);
        }
        if rules.loss_permille > 0 && self.random.below(1000) < rules.loss_permille {
            delay += RETRANSMIT_US + self.random.below(RETRANSMIT_US);
            self.count("segment_lost", 1);
        }
        delay
    }

    fn schedule(&mut self, at: TimeUs, connection: u64, end: usize) {
        self.earliest_changed |= self.events.peek().is_none_or(|std::cmp::Reverse((earliest, ..))| at < *earliest);
        self.events.push(std::cmp::Reverse((at, self.next_event, connection, end)));
        self.next_event += 1;
    }

    /// Delivers what is due; when the next event is.
    fn deliver_due(&mut self) -> Option<Instant> {
        let now = self.now_us();
        while let Some(std::cmp::Reverse((at, _, connection, end))) = self.events.peek().copied() {
            if at > now {
                return Some(self.began + Duration::from_micros(at));
            }
            self.events.pop();
            self.arrive(connection, end, now);
        }
        None
    }

    /// Moves what is due at one end from the wire into its buffer.
    fn arrive(&mut self, id: u64, end: usize, now: TimeUs) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = (connection.ends[1 - end].life.host, connection.ends[end].life.host);
        let is_cut = self.rules.get(&(from, to)).is_some_and(|rules| rules.cut) || self.dark.contains(&to);
        let here = &mut connection.ends[end];
        let is_due = here.under_way.front().is_some_and(|(at, _)| *at <= now);
        if is_due && is_cut {
            let since = *here.held_since_us.get_or_insert(now);
            if since == now {
                self.schedule(now + GIVE_UP_US, id, end);
            } else if now >= since + GIVE_UP_US {
                let there = &mut connection.ends[1 - end];
                if there.is == Is::Open && there.ended != Some(Ended::Reset) {
                    there.break_off(&mut self.woken);
                    self.count("timed_out", 1);
                }
            }
            return;
        }
        if is_due && here.is != Is::Open {
            // Nobody knows this connection here, or reads from it.
            let unread = here.under_way.iter().any(|(_, segment)| matches!(segment, Segment::Bytes(_)));
            here.under_way.clear();
            here.under_way_bytes = 0;
            let there = &mut connection.ends[1 - end];
            if there.is == Is::Open && unread {
                there.under_way.clear();
                there.under_way_bytes = 0;
                there.under_way.push_back((now + 1_000, Segment::Reset));
                self.schedule(now + 1_000, id, 1 - end);
            }
            return self.forget_if_over(id);
        }
        while here.under_way.front().is_some_and(|(at, _)| *at <= now) {
            match here.under_way.pop_front() {
                Some((_, Segment::Bytes(bytes))) => {
                    here.under_way_bytes -= bytes.len();
                    here.arrived_bytes += bytes.len();
                    here.arrived.push_back(bytes);
                }
                Some((_, Segment::Fin)) => here.ended = here.ended.or(Some(Ended::Eof)),
                Some((_, Segment::Reset)) => here.break_off(&mut self.woken),
                None => {}
            }
        }
        if here.stalled_until_us <= now {
            self.woken.extend(here.reader.take());
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: u64) {
        let over = self.connections.get(&id).is_some_and(|connection| {
            connection.ends.iter().all(|end| end.is != Is::Open && (end.under_way.is_empty() || end.is == Is::Gone))
                || connection.ends.iter().all(|end| end.is == Is::Closed)
        });
        if over {
            self.connections.remove(&id);
        }
    }

    /// A cut has healed: what it held is sent again some time soon.
    fn release(&mut self, from: IpAddr, to: IpAddr) {
        let now = self.now_us();
        let mut held = Vec::new();
        for (id, connection) in &mut self.connections {
            for end in 0..2 {
                if (connection.ends[1 - end].life.host, connection.ends[end].life.host) == (from, to)
                    && let Some(since) = connection.ends[end].held_since_us.take()
                {
                    held.push((*id, end, now - since));
                }
            }
        }
        for (id, end, us) in held {
            // The next try may be as far away as the last one was long ago.
            let again = now + 1_000 + self.random.below(us.min(2_000_000) + 1);
            self.schedule(again, id, end);
        }
    }

    fn connect(&mut self, life: &Arc<Life>, to: SocketAddr) -> Option<io::Result<u64>> {
        let from = life.host;
        if self.rules(from, to.ip()).cut || self.rules(to.ip(), from).cut || self.dark.contains(&to.ip()) {
            return None;
        }
        let (id, port) = (self.next_connection, self.next_port);
        let Some(backlog) = self.listeners.get_mut(&to) else { return Some(Err(io::ErrorKind::ConnectionRefused.into())) };
        if backlog.waiting.len() >= BACKLOG_MAX {
            return None;
        }
        let dialler = SocketAddr::new(from, port);
        let framed = to.port() == MESH_PORT;
        let end = |life: &Arc<Life>, address| End {
            life: Arc::clone(life),
            address,
            is: Is::Open,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            arrived: VecDeque::new(),
            arrived_bytes: 0,
            ended: None,
            reader: None,
            writer: None,
            not_before_us: 0,
            stalled_until_us: 0,
            held_since_us: None,
            framer: framed.then(Framer::default),
            shut: false,
        };
        let ends = [end(life, dialler), end(&backlog.life, to)];
        backlog.waiting.push_back((id, dialler));
        self.woken.extend(backlog.waker.take());
        self.connections.insert(id, Connection { ends });
        self.next_connection += 1;
        self.next_port = self.next_port.checked_add(1).unwrap_or(30_000);
        Some(Ok(id))
    }

    /// Puts a segment on the way from an end to the other one.
    fn send(&mut self, id: u64, end: usize, segment: Segment) {
        let now = self.now_us();
        let Some(connection) = self.connections.get(&id) else { return };
        let (from, to) = (connection.ends[end].life.host, connection.ends[1 - end].life.host);
        let delay = self.delay_us(from, to);
        let rate = self.rules(from, to).bytes_per_s;
        let Some(there) = self.connections.get_mut(&id).map(|connection| &mut connection.ends[1 - end]) else { return };
        let last = there.under_way.back().map_or(0, |(at, _)| *at);
        let mut at = (now + delay).max(last).max(there.not_before_us);
        if let Segment::Bytes(bytes) = &segment {
            if let Some(us) = (bytes.len() as u64 * 1_000_000).checked_div(rate) {
                at += us;
                there.not_before_us = at;
            }
            there.under_way_bytes += bytes.len();
        }
        there.under_way.push_back((at, segment));
        self.schedule(at, id, 1 - end);
    }

    fn write(&mut self, id: u64, end: usize, slices: &[io::IoSlice<'_>], cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(connection) = self.connections.get_mut(&id) else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let [one, two] = &mut connection.ends;
        let (here, there) = if end == 0 { (one, two) } else { (two, one) };
        if here.is != Is::Open || here.shut || here.life.is_dead() || here.ended == Some(Ended::Reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if there.is == Is::Closed && there.under_way.is_empty() {
            // Nobody reads that any more.
            here.ended = Some(Ended::Reset);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.buffer_bytes.saturating_sub(there.under_way_bytes + there.arrived_bytes);
        if room == 0 {
            here.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes = slices.iter().map(|slice| slice.len()).sum::<usize>().min(room);
        let mut chunk = Vec::with_capacity(bytes);
        for slice in slices {
            let left = bytes - chunk.len();
            chunk.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        let parties = (Arc::clone(&here.life), Arc::clone(&there.life));
        match here.framer.take() {
            None => self.send(id, end, Segment::Bytes(chunk.into())),
            Some(mut framer) => {
                self.write_frames(id, end, (&parties.0, &parties.1), &mut framer, &chunk);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.ends[end].framer = Some(framer);
                }
            }
        }
        Poll::Ready(Ok(bytes))
    }

    fn write_frames(&mut self, id: u64, end: usize, (from, to): (&Life, &Life), framer: &mut Framer, chunk: &[u8]) {
        let rules = self.rules(from.host, to.host).frames;
        let at_us = self.now_us();
        let mut out = Vec::new();
        framer.pass(chunk, &rules, &mut self.random, &mut |passed| match passed {
            Passed::Frame(frame) => {
                if let Some(tap) = &mut self.tap {
                    tap(&Tapped { at_us, connection: id, from, to, frame });
                }
            }
            Passed::Fault(fault) => *self.faults.entry(fault).or_default() += 1,
            Passed::Bytes(bytes) => out.push(bytes),
        });
        for bytes in out {
            self.send(id, end, Segment::Bytes(bytes));
        }
    }

    fn read(&mut self, id: u64, end: usize, buffer: &mut ReadBuf<'_>, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let now = self.now_us();
        let Some(connection) = self.connections.get_mut(&id) else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let [one, two] = &mut connection.ends;
        let (here, there) = if end == 0 { (one, two) } else { (two, one) };
        if here.ended == Some(Ended::Reset) || here.is != Is::Open {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if here.stalled_until_us > now || here.arrived.is_empty() && here.ended.is_none() {
            here.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        while buffer.remaining() > 0
            && let Some(chunk) = here.arrived.front_mut()
        {
            let bytes = chunk.len().min(buffer.remaining());
            buffer.put_slice(&chunk[..bytes]);
            chunk.advance(bytes);
            here.arrived_bytes -= bytes;
            if chunk.is_empty() {
                here.arrived.pop_front();
            }
        }
        self.woken.extend(there.writer.take());
        Poll::Ready(Ok(()))
    }

    /// The owner of an end has dropped it.
    fn close(&mut self, id: u64, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let here = &mut connection.ends[end];
        // Of the dead, the network learns by [`SimNet::end_life`].
        if here.is != Is::Open || here.life.is_dead() {
            return;
        }
        here.is = Is::Closed;
        let (unread, shut) = (here.arrived_bytes > 0, here.shut);
        here.arrived.clear();
        here.arrived_bytes = 0;
        here.framer = None;
        let there_writer = connection.ends[1 - end].writer.take();
        self.woken.extend(there_writer);
        if unread {
            self.send(id, end, Segment::Reset);
        } else if !shut {
            self.send(id, end, Segment::Fin);
        }
        self.forget_if_over(id);
    }

    fn shut(&mut self, id: u64, end: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let here = &mut connection.ends[end];
        if here.is == Is::Open && !here.shut && !here.life.is_dead() {
            here.shut = true;
            self.send(id, end, Segment::Fin);
        }
    }

    fn end_life(&mut self, life: &Life, death: Death) {
        self.listeners.retain(|_, backlog| backlog.life.number != life.number);
        if death == Death::PowerLost {
            self.dark.insert(life.host);
        }
        let mut ended = Vec::new();
        for (id, connection) in &mut self.connections {
            for (number, end) in connection.ends.iter_mut().enumerate() {
                if end.life.number != life.number || end.is != Is::Open {
                    continue;
                }
                let unread = end.arrived_bytes > 0;
                end.is = Is::Gone;
                end.framer = None;
                end.break_off(&mut self.woken);
                ended.push((*id, number, unread));
            }
        }
        for (id, end, unread) in ended {
            match death {
                Death::Killed => self.send(id, end, if unread { Segment::Reset } else { Segment::Fin }),
                Death::PowerLost => {
                    // What had left the machine arrives; what had not is lost.
                    let lost = self.random.below(2) == 0;
                    if lost && let Some(connection) = self.connections.get_mut(&id) {
                        let there = &mut connection.ends[1 - end];
                        there.under_way.clear();
                        there.under_way_bytes = 0;
                    }
                }
            }
            if let Some(connection) = self.connections.get_mut(&id) {
                let there_writer = connection.ends[1 - end].writer.take();
                self.woken.extend(there_writer);
            }
            self.forget_if_over(id);
        }
    }

    fn power_on(&mut self, host: IpAddr) {
        self.dark.remove(&host);
        let now = self.now_us();
        let mut held = Vec::new();
        for (id, connection) in &mut self.connections {
            for (number, end) in connection.ends.iter_mut().enumerate() {
                if end.life.host == host && end.held_since_us.take().is_some() {
                    held.push((*id, number));
                }
            }
        }
        for (id, end) in held {
            let again = now + 1_000 + self.random.below(500_000);
            self.schedule(again, id, end);
        }
    }

    /// Both ends read a reset, maybe behind a part of what is under way.
    fn reset_both(&mut self, id: u64) {
        let now = self.now_us();
        for end in 0..2 {
            let part = self.random.below(2) == 0;
            let cut_at = self.random.next();
            let Some(here) = self.connections.get_mut(&id).map(|connection| &mut connection.ends[end]) else { return };
            let first = here.under_way.pop_front();
            here.under_way.clear();
            here.under_way_bytes = 0;
            if part && let Some((_, Segment::Bytes(mut bytes))) = first {
                bytes.truncate(cut_at as usize % (bytes.len() + 1));
                here.arrived_bytes += bytes.len();
                here.arrived.push_back(bytes);
                self.woken.extend(here.reader.take());
                self.woken.extend(here.writer.take());
                here.under_way.push_back((now + 1_000, Segment::Reset));
                self.schedule(now + 1_000, id, end);
                continue;
            }
            here.break_off(&mut self.woken);
        }
    }
}

/// A bound address. Dropping it frees the address; who waits in it is reset.
#[derive(Debug)]
pub struct SimListener {
    net: SimNet,
    address: SocketAddr,
    life: Arc<Life>,
}

impl SimListener {
    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection, and where it came from.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<io::Result<(SimStream, SocketAddr)>> {
        let net = self.net.clone();
        self.net.with(|state| {
            let Some(backlog) = state.listeners.get_mut(&self.address).filter(|backlog| backlog.life.number == self.life.number)
            else {
                return Poll::Pending;
            };
            match backlog.waiting.pop_front() {
                Some((connection, dialler)) => Poll::Ready(Ok((SimStream { net, connection, end: 1 }, dialler))),
                None => {
                    backlog.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.net.with(|state| {
            if state.listeners.get(&self.address).is_none_or(|backlog| backlog.life.number != self.life.number) {
                return;
            }
            if let Some(backlog) = state.listeners.remove(&self.address) {
                backlog.waiting.into_iter().for_each(|(id, _)| state.close(id, 1));
            }
        });
    }
}

/// One end of a connection. Dropping it closes it: the other end reads what was sent, and then the end.
#[derive(Debug)]
pub struct SimStream {
    net: SimNet,
    connection: u64,
    end: usize,
}

impl SimStream {
    /// The other end's address.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        let state = self.net.state();
        state.connections.get(&self.connection).map(|connection| connection.ends[1 - self.end].address)
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.net.with(|state| state.read(self.connection, self.end, buffer, cx))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.net.with(|state| state.write(self.connection, self.end, slices, cx))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.with(|state| state.shut(self.connection, self.end));
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.net.with(|state| state.close(self.connection, self.end));
    }
}
