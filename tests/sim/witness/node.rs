//! What the world knows of a voter, whoever drives it.

use bytes::Bytes;
use voter_mesh::configuration::{Configuration, Member, Role, SeatRecord};
use voter_mesh::ids::{ClusterId, DirectoryId, Epoch, Identity, RaftId, ReadId, RoomId, RunIndex, Seat, Term, Time};
use voter_mesh::mesh::message::Message;
use voter_mesh::raft::{Disconnect, Peer, RaftRole};
use voter_mesh::run::{Run, RunHeader};

use crate::sim::random::Random;

/// The history that all share.
pub(super) const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) };

/// Appends under way: few, so that windows close.
pub(super) const APPENDS_IN_FLIGHT_MAX: usize = 8;

/// The voters, by seat.
pub(super) fn ids() -> [RaftId; 3] {
    [1, 2, 3].map(|seat| RaftId::new(Seat(seat), 1))
}

/// The configuration that they begin with and keep.
pub(super) fn configuration() -> Configuration {
    let record = |id: RaftId| SeatRecord {
        address: format!("server-{}", id.seat()),
        priority: 0,
        failure_domain: String::new(),
        highest_life: 1,
        member: Some(Member { id, directory: DirectoryId([id.seat().0 as u8; 16]), role: Role::Voter }),
        incoming: None,
    };
    Configuration { seats: ids().map(|id| (id.seat(), record(id))).into(), ..Configuration::default() }
}

/// What a voter is told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// A link to a peer stands.
    Connected(Peer),
    /// It stands no more.
    Disconnected(RaftId, Disconnect),
    /// A peer says.
    Said(RaftId, Message),
    /// A linearizable read waits.
    Read(ReadId),
    /// Its writes up to this one are durable.
    Written(u64),
    /// It has applied what it told as committed, up to this run.
    Applied(RunIndex),
    /// It is to hand its leadership over, if it leads.
    HandOver(RaftId),
    /// It is to stand for election, if it can be asked to.
    Campaign,
    /// It is time for what [`Node::due_us`] named.
    Timeout,
}

/// What a voter wants done.
#[derive(Debug, Default)]
pub(super) struct Wants {
    /// To be sent, in order.
    pub(super) messages: Vec<(RaftId, Message)>,
    /// Numbers of writes that are on their way to its disk, in order.
    pub(super) writes: Vec<u64>,
    /// Committed, in order; from the log's beginning in each life.
    pub(super) committed: Vec<Run>,
    /// Reads that are linearizable once this run is applied.
    pub(super) reads: Vec<(ReadId, RunIndex)>,
    /// What it should not have come to.
    pub(super) wrongs: Vec<String>,
}

/// How a voter stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    pub(super) term: Term,
    pub(super) role: RaftRole,
    pub(super) leader: Option<RaftId>,
    pub(super) commit: RunIndex,
    pub(super) last: RunIndex,
}

/// A voter: a process that comes and goes, and a disk that stays.
pub(super) trait Node {
    /// Its process starts, in this life.
    fn start(&mut self, life: u64, now: Time);
    /// Its process ends, and chance decides how much of what was on its way to the disk is there.
    fn crash(&mut self, random: &mut Random) -> Result<(), String>;
    /// The last runs that its disk had confirmed are gone, while no process runs.
    fn lose(&mut self, runs: usize);
    /// Something happens; what it cannot accept is a wrong of whoever caused it.
    fn tell(&mut self, told: Told, now: Time) -> Result<(), String>;
    /// A client's entries; whether it promises to see them committed as long as this life lasts.
    fn propose(&mut self, entries: Bytes, now: Time) -> bool;
    /// What it wants after all it was told.
    fn wants(&mut self, now: Time) -> Wants;
    /// When it is to be told the time, while it runs.
    fn due_us(&self) -> Option<u64>;
    /// How it stands, while it runs.
    fn standing(&self) -> Option<Standing>;
    /// Its log, with what is on its way to the disk.
    fn log(&self) -> Vec<RunHeader>;
    /// Term and vote, as its disk has them.
    fn vote(&self) -> (Term, RaftId);
}
