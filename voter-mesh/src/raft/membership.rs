//! Changing who the servers are: the next configuration for each request, and what raft must be told of a change.
//!
//! Changes of voters are joint (Raft §6) and explicit: one entry enters, and whoever leads when that is applied proposes the entry
//! that leaves. A seat's new life is caught up as a standby first and takes the old life's vote in one joint change.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use thiserror::Error;

use crate::configuration::{Configuration, Member, Role, SeatRecord};
use crate::ids::{DirectoryId, RaftId, Seat};
use crate::mesh::message::AdminRequest;

/// Why an administrator's request is refused. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum AdminRefused {
    /// Only a leader changes the cluster; this one may lead.
    #[error("this server does not lead")]
    NotLeader(Option<RaftId>),
    /// Another change is under way: ask again.
    #[error("another change is under way")]
    Busy,
    /// No such seat.
    #[error("there is no seat {0}")]
    UnknownSeat(Seat),
    /// Nobody sits there.
    #[error("nobody sits on seat {0} yet")]
    Vacant(Seat),
    /// The seat is taken, with another address.
    #[error("seat {0} exists already, at {1}")]
    SeatExists(Seat, String),
    /// It has not caught up.
    #[error("the member on seat {0} has not caught up with the log yet")]
    Behind(Seat),
    /// No voter would be left.
    #[error("seat {0} has the last vote")]
    LastVoter(Seat),
    /// An id is never used twice, and this seat has none left.
    #[error("seat {0} has had as many lives as a seat can have: add another one")]
    LivesUsedUp(Seat),
    /// A standby cannot lead.
    #[error("the member on seat {0} is a standby and cannot lead")]
    Standby(Seat),
}

/// Whether raft can hold this configuration: it ends the process over one that contradicts itself.
pub(super) fn is_sound(configuration: &Configuration) -> bool {
    let (voters, outgoing) = (configuration.voters(), &configuration.outgoing);
    let at_home = configuration.seats.iter().all(|(seat, record)| {
        let mut ids = record.member.iter().chain(&record.incoming).map(|member| member.id);
        ids.all(|id| id.seat() == *seat && id != RaftId::NONE)
            && (record.member.is_none()
                || record.member.as_ref().map(|member| member.id) != record.incoming.as_ref().map(|member| member.id))
    });
    let distinct: BTreeSet<RaftId> = outgoing.iter().copied().filter(|id| *id != RaftId::NONE).collect();
    at_home
        && (!voters.is_empty() || configuration.seats.is_empty() && outgoing.is_empty())
        && distinct.len() == outgoing.len()
        && !configuration.standbys().iter().any(|id| outgoing.contains(id))
}

/// The configuration that a request asks for; `None` if it holds already. Requests that are no change of configuration give `None`.
pub(super) fn next(now: &Configuration, request: &AdminRequest) -> Result<Option<Configuration>, AdminRefused> {
    let mut next = now.clone();
    match request {
        AdminRequest::AddSeat { seat, address, priority, failure_domain } => match now.seats.get(seat) {
            Some(record) if record.address == *address => return Ok(None),
            Some(record) => return Err(AdminRefused::SeatExists(*seat, record.address.clone())),
            None => {
                let record = SeatRecord {
                    address: address.clone(),
                    priority: *priority,
                    failure_domain: failure_domain.clone(),
                    highest_life: now.retired.get(seat).copied().unwrap_or(0),
                    member: None,
                    incoming: None,
                };
                next.retired.remove(seat);
                next.seats.insert(*seat, record);
            }
        },
        AdminRequest::Join { seat, directory } => return join(now, *seat, *directory),
        AdminRequest::Promote { seat } => {
            let record = next.seats.get_mut(seat).ok_or(AdminRefused::UnknownSeat(*seat))?;
            let member = record.member.as_mut().ok_or(AdminRefused::Vacant(*seat))?;
            if member.role == Role::Voter {
                return Ok(None);
            }
            member.role = Role::Voter;
            next.outgoing = now.voters();
        }
        AdminRequest::RemoveSeat { seat } => {
            let Some(record) = next.seats.remove(seat) else { return Ok(None) };
            next.retired.insert(*seat, record.highest_life);
            if next.voters().is_empty() {
                return Err(AdminRefused::LastVoter(*seat));
            }
            let votes = record.member.as_ref().is_some_and(|member| member.role == Role::Voter);
            // Raft takes two changes at once only as a joint one, even of standbys.
            if votes || record.member.is_some() && record.incoming.is_some() {
                next.outgoing = now.voters();
            }
        }
        AdminRequest::Transfer { .. } => return Ok(None),
    }
    Ok(Some(next))
}

fn join(now: &Configuration, seat: Seat, directory: DirectoryId) -> Result<Option<Configuration>, AdminRefused> {
    let record = now.seats.get(&seat).ok_or(AdminRefused::UnknownSeat(seat))?;
    if record.member.iter().chain(&record.incoming).any(|member| member.directory == directory) {
        return Ok(None);
    }
    let mut next = now.clone();
    let record = next.seats.get_mut(&seat).ok_or(AdminRefused::UnknownSeat(seat))?;
    if record.incoming.take().is_some() {
        // A life that never arrived goes first: one change at a time.
        return Ok(Some(next));
    }
    record.highest_life = record.highest_life.checked_add(1).ok_or(AdminRefused::LivesUsedUp(seat))?;
    let member = Member { id: RaftId::new(seat, record.highest_life), directory, role: Role::Standby };
    if record.member.is_some() {
        record.incoming = Some(member)
    } else {
        record.member = Some(member)
    }
    Ok(Some(next))
}

/// The configuration in which a seat's new life has taken the old one's place.
pub(super) fn replaced(now: &Configuration, seat: Seat) -> Option<Configuration> {
    let mut next = now.clone();
    let record = next.seats.get_mut(&seat)?;
    let mut incoming = record.incoming.take()?;
    let role = record.member.as_ref().map_or(Role::Standby, |old| old.role);
    incoming.role = role;
    record.member = Some(incoming);
    if role == Role::Voter {
        next.outgoing = now.voters();
    }
    Some(next)
}

/// The configuration after a joint one.
pub(super) fn left(now: &Configuration) -> Option<Configuration> {
    now.is_joint().then(|| Configuration { outgoing: Vec::new(), ..now.clone() })
}

/// What raft must be told when `next` follows `now`; `None` where the change is nothing to it (an address).
pub(super) fn change(now: &Configuration, next: &Configuration) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    if now.is_joint() && !next.is_joint() {
        // Without changes and without a transition: raft's word for leaving.
        return Some(change);
    }
    let mut single = |kind: ConfChangeType, id: RaftId| {
        let mut one = ConfChangeSingle::default();
        one.set_change_type(kind);
        one.node_id = id.0;
        change.mut_changes().push(one);
    };
    let (old_voters, old_standbys) = (now.voters(), now.standbys());
    let (voters, standbys) = (next.voters(), next.standbys());
    for id in voters.iter().filter(|id| !old_voters.contains(id)) {
        single(ConfChangeType::AddNode, *id);
    }
    for id in standbys.iter().filter(|id| !old_standbys.contains(id)) {
        single(ConfChangeType::AddLearnerNode, *id);
    }
    for id in old_voters.iter().chain(&old_standbys).filter(|id| !voters.contains(id) && !standbys.contains(id)) {
        single(ConfChangeType::RemoveNode, *id);
    }
    if change.get_changes().is_empty() {
        return None;
    }
    let transition = if next.is_joint() { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
    change.set_transition(transition);
    Some(change)
}
