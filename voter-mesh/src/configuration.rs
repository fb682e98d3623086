//! Who the servers are: seats, their lives, roles and addresses. The configuration is an entry in the log; everything that raft
//! must know of it (voters, learners, the outgoing half of a joint configuration) is derived from it here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{DirectoryId, RaftId, RunIndex, Seat};
use crate::machine::from_cbor;
use crate::session::MalformedPayload;

/// What a member does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Votes and counts toward the quorum.
    Voter,
    /// Fully replicated, without a vote.
    Standby,
}

/// One life of a seat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id in raft.
    pub id: RaftId,
    /// The data directory it lives in.
    pub directory: DirectoryId,
    /// What it does.
    pub role: Role,
}

/// A configured place for a server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeatRecord {
    /// Where its mesh listener is, `host:port`. `--peers` overrides it for the forming list.
    pub address: String,
    /// Elections prefer higher priorities (raft's meaning). Default 0.
    pub priority: i32,
    /// Servers of one failure domain fail together; only told, not yet acted upon. Default empty.
    pub failure_domain: String,
    /// The highest life that this seat ever had; 0 before the first.
    pub highest_life: u16,
    /// The present life.
    pub member: Option<Member>,
    /// A newcomer that is catching up and will take the present life's place.
    pub incoming: Option<Member>,
}

/// The servers of a cluster. Equal on every replica at the same index.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// Every seat.
    pub seats: BTreeMap<Seat, SeatRecord>,
    /// While a voter change is joint (Raft §6): the voters of the old configuration. Empty otherwise.
    pub outgoing: Vec<RaftId>,
    /// The highest life of seats that were removed, so that a seat that comes back never uses an id twice.
    pub retired: BTreeMap<Seat, u16>,
}

impl Configuration {
    fn ids(&self, role: Role) -> impl Iterator<Item = RaftId> + '_ {
        self.seats
            .values()
            .flat_map(|seat| seat.member.iter().chain(seat.incoming.iter()))
            .filter(move |member| member.role == role)
            .map(|member| member.id)
    }

    /// The voters (the incoming half, while joint), ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<RaftId> {
        self.ids(Role::Voter).collect()
    }

    /// The standbys, newcomers included, ascending; one that still votes in the outgoing half is not among them.
    #[must_use]
    pub fn standbys(&self) -> Vec<RaftId> {
        self.ids(Role::Standby).collect()
    }

    /// Whether a voter change is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` is replicated to at all.
    #[must_use]
    pub fn contains(&self, id: RaftId) -> bool {
        self.member(id).is_some() || self.outgoing.contains(&id)
    }

    /// The member with this id.
    #[must_use]
    pub fn member(&self, id: RaftId) -> Option<&Member> {
        let seat = self.seats.get(&id.seat())?;
        seat.member.iter().chain(seat.incoming.iter()).find(|member| member.id == id)
    }
}

/// The payload of a `Config` entry, as CBOR.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigPayload {
    /// The run of the configuration that this one was made from. Where another one is in force when it is applied, this one is void:
    /// a change that was computed from an overwritten configuration never takes effect.
    pub base: RunIndex,
    /// The configuration.
    pub configuration: Configuration,
}

impl ConfigPayload {
    /// The bytes as they stand in the entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        ciborium::into_writer(self, &mut bytes).expect("numbers, strings and maps always serialise into memory");
        bytes
    }

    /// Reads them back; bytes left over are an error too.
    ///
    /// # Errors
    /// [`MalformedPayload`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedPayload> {
        from_cbor(bytes).map_err(|_| MalformedPayload)
    }
}
