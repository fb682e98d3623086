//! Forming: how an empty set of seats becomes a cluster, once, and how a wiped seat finds out that it is a newcomer.
//!
//! The lowest seat waits until every seat of the forming list is linked and none of them is formed. It then **offers** {cluster
//! id, seats with raft id `seat << 16 | 1`, directories and addresses, state machine}. Every seat writes the offer durably and
//! **confirms**. When all have, the lowest seat writes that the cluster is formed and **releases** the others, who write the same
//! and pass the release on. Only a formed seat starts a voter, so nobody votes or appends before the release. From this follows:
//!
//! * A seat that is not formed holds nothing that anybody counts on: it takes any newer offer of the lowest seat, and gives the
//!   one that it held up for good. The live link of that seat says which is newer ([`super::links`]). Every offer has a cluster id
//!   of its own.
//! * A seat that holds an offer and learns that its cluster is formed, by a release or by the hello of a formed peer, is formed
//!   too. A lost release does no harm.
//! * A seat that meets a formed cluster that it holds no offer of is a **newcomer**: it has a directory and no raft id, and asks the
//!   leader for one. No other offer can be completed then, as it needs the confirmation of the seat that is formed.
//!
//! A crash at any point leaves a record from which [`Forming::new`] goes on.
//!
//! # Driving contract
//! One [`Forming`] for a server's whole life. After `new` and after every `handle_*`:
//! 1. [`Forming::poll_store`]: make the record durable in the data directory and call [`Forming::handle_stored`], before anything
//!    else is handed in and before another hello is made: a seat that is about to be formed must not say that it is not, or a wiped
//!    lowest seat takes it for one that can still be offered something else.
//! 2. [`Forming::poll_transmit`] until `None`: send. If a link does not take a message, close it: all is said again on the next.
//! 3. [`Forming::poll_event`] until `None`:
//!    * `Formed`: start the voter. When it may campaign and there is neither snapshot nor log, write snapshot zero first
//!      ([`crate::run::Tail::zero`] and the configuration); a newcomer's log stays empty until the leader's snapshot comes. From now
//!      on hellos carry identity and id. The event comes at once at each later start.
//!    * `Join`: send [`super::message::AdminRequest::Join`] to each formed peer that is linked, again and again at leisure, until
//!      `Formed` comes. The leader answers, as soon as the configuration that names the newcomer is applied, with
//!      [`FormMessage::Welcome`].
//!    * `Refused`: tell the operator; the set-ups of two servers disagree.
//!
//! Raft messages that come before `Formed` are dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::handshake::PeerHello;
use crate::configuration::{Configuration, Member, Role, SeatRecord};
use crate::ids::{ClusterId, DirectoryId, Epoch, Identity, RaftId, RoomId, Seat};
use crate::mutant;

/// What servers say to each other while they form. Sent on the `consensus` connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FormMessage {
    /// From the lowest seat: be this cluster.
    Offer(Offer),
    /// To the lowest seat: the offer of this cluster is durable here.
    Confirm(ClusterId),
    /// From a formed seat: all have confirmed; this history has begun.
    Release(Identity),
    /// From the leader to a newcomer whose id is in the applied configuration.
    Welcome {
        /// The newcomer's id.
        id: RaftId,
        /// The history that it joins.
        identity: Identity,
        /// The configuration that names it.
        configuration: Configuration,
    },
}

/// What the lowest seat offers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The history that would begin.
    pub identity: Identity,
    /// Its first configuration.
    pub configuration: Configuration,
    /// Its state machine's name and version.
    pub machine: (String, u32),
}

/// How far a data directory has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum FormState {
    /// It belongs to no cluster.
    #[default]
    Empty,
    /// It holds an offer and has confirmed it (on the lowest seat: made it). It votes in nothing yet.
    Offered,
    /// A leader gave it its id after the cluster had formed.
    Newcomer,
    /// It is one of the seats that formed the cluster.
    Formed,
}

/// What must survive a crash. Does not change any more once the state is `Formed` or `Newcomer`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FormRecord {
    /// How far it has come.
    pub state: FormState,
    /// Its raft id; `None` only while empty.
    pub id: Option<RaftId>,
    /// Its history; `None` only while empty.
    pub identity: Option<Identity>,
    /// The configuration that it was offered, formed with, or welcomed with.
    pub configuration: Configuration,
}

/// What does not change while a server lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormOptions {
    /// This server's seat.
    pub seat: Seat,
    /// The data directory it lives in.
    pub directory: DirectoryId,
    /// Its state machine's name and version.
    pub machine: (String, u32),
    /// The forming list: every seat that must confirm, with its mesh address. A server whose own seat is not in it only ever joins.
    pub seats: BTreeMap<Seat, String>,
    /// The room.
    pub room: RoomId,
    /// Fresh random bits, for the cluster's id should this server mint it.
    pub mint: ClusterId,
}

/// A record to make durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    /// Goes back to [`Forming::handle_stored`].
    pub number: u64,
    /// The record.
    pub record: FormRecord,
}

/// What the owner should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormEvent {
    /// This server belongs to a cluster: start its voter.
    Formed {
        /// Its raft id.
        id: RaftId,
        /// Its history.
        identity: Identity,
        /// The configuration that it was formed or welcomed with.
        configuration: Configuration,
        /// Whether it may campaign: a newcomer may not.
        may_campaign: bool,
    },
    /// It met a formed cluster and holds no offer of it: ask its leader for an id.
    Join {
        /// The cluster's history.
        identity: Identity,
    },
    /// A form message was not followed.
    Refused {
        /// Who sent it.
        from: Seat,
        /// Why.
        why: FormRefusal,
    },
}

/// Why a form message is not followed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FormRefusal {
    /// The offer's seats are not those of this server's forming list.
    #[error("the forming lists of the two servers name different seats")]
    Seats,
    /// The offer does not come from the lowest seat, or does not name this server's seat, directory and room as a fresh voter.
    #[error("the offer is not one for this server")]
    Offer,
    /// The offer is for another state machine.
    #[error("the offer is for another state machine")]
    Machine,
    /// The welcome is for another seat, directory or cluster, or was not asked for.
    #[error("the welcome is not for this server")]
    Welcome,
}

/// The forming of one server; the module says how it is driven.
#[derive(Clone, Debug)]
pub struct Forming {
    options: FormOptions,
    /// What is durable.
    record: FormRecord,
    /// What is becoming durable, under the number `stores`.
    storing: Option<FormRecord>,
    stores: u64,
    /// The directories of linked peers that were not formed when their link was made.
    peers: BTreeMap<Seat, DirectoryId>,
    /// On the lowest seat: who has confirmed the present offer.
    confirmed: BTreeSet<Seat>,
    /// The formed cluster that this server asks to join.
    joining: Option<Identity>,
    /// The record in `storing`, until it is polled.
    store: Option<Store>,
    transmit: VecDeque<(Seat, FormMessage)>,
    events: VecDeque<FormEvent>,
}

impl Forming {
    /// Goes on from what is durable; an empty directory begins.
    #[must_use]
    pub fn new(options: FormOptions, record: FormRecord) -> Self {
        let mut forming = Self {
            options,
            record,
            storing: None,
            stores: 0,
            peers: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            joining: None,
            store: None,
            transmit: VecDeque::new(),
            events: VecDeque::new(),
        };
        if forming.is_settled() {
            forming.announce();
        } else {
            forming.mint();
            forming.complete();
        }
        forming
    }

    /// A link to a peer is up.
    pub fn handle_connected(&mut self, peer: &PeerHello) {
        if let Some(formed) = peer.identity {
            self.peers.remove(&peer.seat);
            return self.meet(formed);
        }
        self.peers.insert(peer.seat, peer.directory);
        self.mint();
        self.offer(peer.seat);
    }

    /// A link to a peer is down.
    pub fn handle_disconnected(&mut self, seat: Seat) {
        self.peers.remove(&seat);
    }

    /// A form message came on the live link of `from`. What is not followed shows as [`FormEvent::Refused`].
    pub fn handle_message(&mut self, from: Seat, message: FormMessage) {
        let result = match message {
            FormMessage::Offer(offer) => self.handle_offer(from, offer),
            FormMessage::Confirm(cluster) => {
                let current = self.storing.is_none() && self.record.identity.is_some_and(|identity| identity.cluster == cluster);
                if current && self.is_lowest() && self.offers_to(from) {
                    self.confirmed.insert(from);
                    self.complete();
                }
                Ok(())
            }
            FormMessage::Release(identity) => {
                self.meet(identity);
                Ok(())
            }
            FormMessage::Welcome { id, identity, configuration } => self.handle_welcome(id, identity, configuration),
        };
        if let Err(why) = result {
            self.events.push_back(FormEvent::Refused { from, why });
        }
    }

    /// The record of this number is durable.
    pub fn handle_stored(&mut self, number: u64) {
        if number != self.stores {
            return;
        }
        let Some(record) = self.storing.take() else { return };
        self.record = record;
        match self.record.state {
            FormState::Empty => {}
            FormState::Offered if self.is_lowest() => {
                let peers: Vec<Seat> = self.peers.keys().copied().collect();
                peers.into_iter().for_each(|seat| self.offer(seat));
                self.complete();
            }
            FormState::Offered => self.confirm(),
            FormState::Newcomer => self.announce(),
            FormState::Formed => {
                if let Some(identity) = self.record.identity {
                    self.transmit.extend(self.peers.keys().map(|seat| (*seat, FormMessage::Release(identity))));
                }
                self.announce();
            }
        }
    }

    /// The record to make durable now.
    pub fn poll_store(&mut self) -> Option<Store> {
        self.store.take()
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<(Seat, FormMessage)> {
        self.transmit.pop_front()
    }

    /// The next thing to know.
    pub fn poll_event(&mut self) -> Option<FormEvent> {
        self.events.pop_front()
    }

    /// What is durable.
    #[must_use]
    pub const fn record(&self) -> &FormRecord {
        &self.record
    }

    /// The cluster that this server asks to join, until it is let in.
    #[must_use]
    pub fn joining(&self) -> Option<Identity> {
        self.joining.filter(|_| !self.is_settled())
    }

    /// What is durable, or is becoming so.
    fn held(&self) -> &FormRecord {
        self.storing.as_ref().unwrap_or(&self.record)
    }

    /// Whether this server belongs to a cluster, or is just writing that it does: no offer counts any more.
    fn is_settled(&self) -> bool {
        matches!(self.held().state, FormState::Formed | FormState::Newcomer)
    }

    /// The seat that makes offers; `None` for a server that only ever joins.
    fn lowest(&self) -> Option<Seat> {
        self.options.seats.contains_key(&self.options.seat).then(|| self.options.seats.keys().next().copied())?
    }

    fn is_lowest(&self) -> bool {
        self.lowest() == Some(self.options.seat)
    }

    fn others(&self) -> impl Iterator<Item = Seat> + '_ {
        self.options.seats.keys().copied().filter(|seat| *seat != self.options.seat)
    }

    fn begin_store(&mut self, record: FormRecord) {
        self.stores += 1;
        self.store = Some(Store { number: self.stores, record: record.clone() });
        self.storing = Some(record);
    }

    /// Whether the offer that this lowest seat holds names the directory that is linked as `seat`.
    fn offers_to(&self, seat: Seat) -> bool {
        let held = self.held();
        let offered = held.configuration.seats.get(&seat).and_then(|seat| seat.member.as_ref());
        held.state == FormState::Offered && offered.map(|member| &member.directory) == self.peers.get(&seat)
    }

    /// Makes a new offer, if every seat is linked, none is formed, and the offer that is held does not fit them.
    fn mint(&mut self) {
        if !self.is_lowest() || self.is_settled() || self.joining.is_some() {
            return;
        }
        let all_linked = self.others().all(|seat| self.peers.contains_key(&seat));
        let fits = self.held().state == FormState::Offered && self.others().all(|seat| self.offers_to(seat));
        if !all_linked || fits {
            return;
        }
        let seats = self.options.seats.iter().map(|(seat, address)| {
            let directory = self.peers.get(seat).copied().unwrap_or(self.options.directory);
            let record = SeatRecord {
                address: address.clone(),
                priority: 0,
                failure_domain: String::new(),
                highest_life: 1,
                member: Some(Member { id: RaftId::new(*seat, 1), directory, role: Role::Voter }),
                incoming: None,
            };
            (*seat, record)
        });
        let configuration = Configuration { seats: seats.collect(), ..Configuration::default() };
        // Offers of one process differ in the count, those of two in the random bits.
        let cluster = ClusterId((u128::from_le_bytes(self.options.mint.0) ^ u128::from(self.stores)).to_le_bytes());
        let identity = Identity { cluster, epoch: Epoch::FIRST, room: self.options.room };
        self.confirmed.clear();
        self.begin_store(FormRecord {
            state: FormState::Offered,
            id: Some(RaftId::new(self.options.seat, 1)),
            identity: Some(identity),
            configuration,
        });
    }

    /// Sends the durable offer of this lowest seat to a seat that it names.
    fn offer(&mut self, seat: Seat) {
        if !self.is_lowest() || self.storing.is_some() || self.joining.is_some() || !self.offers_to(seat) {
            return;
        }
        if let Some(identity) = self.record.identity {
            let configuration = self.record.configuration.clone();
            let offer = Offer { identity, configuration, machine: self.options.machine.clone() };
            self.transmit.push_back((seat, FormMessage::Offer(offer)));
        }
    }

    /// Forms the cluster, once every seat has confirmed the durable offer.
    fn complete(&mut self) {
        let durable = self.storing.is_none() && self.record.state == FormState::Offered;
        if durable && self.is_lowest() && self.joining.is_none() && self.others().all(|seat| self.confirmed.contains(&seat)) {
            self.become_formed();
        }
    }

    fn become_formed(&mut self) {
        self.begin_store(FormRecord { state: FormState::Formed, ..self.held().clone() });
    }

    /// This history has begun, and a peer is in it.
    fn meet(&mut self, formed: Identity) {
        if self.is_settled() {
            return;
        }
        if self.held().state == FormState::Offered && self.held().identity == Some(formed) {
            self.become_formed();
        } else if mutant!("wiped_server_votes") {
            // It takes its old place, as if its log had always been empty.
            let seats = self.options.seats.iter().map(|(seat, address)| {
                let (id, directory) = (RaftId::new(*seat, 1), self.options.directory);
                let member = Some(Member { id, directory, role: Role::Voter });
                let (priority, failure_domain) = (0, String::new());
                (*seat, SeatRecord { address: address.clone(), priority, failure_domain, highest_life: 1, member, incoming: None })
            });
            let configuration = Configuration { seats: seats.collect(), ..Configuration::default() };
            let id = Some(RaftId::new(self.options.seat, 1));
            self.begin_store(FormRecord { state: FormState::Formed, id, identity: Some(formed), configuration });
        } else if self.joining != Some(formed) {
            self.joining = Some(formed);
            self.events.push_back(FormEvent::Join { identity: formed });
        }
    }

    fn handle_offer(&mut self, from: Seat, offer: Offer) -> Result<(), FormRefusal> {
        if self.is_settled() || self.joining.is_some() {
            return Ok(());
        }
        if offer.machine != self.options.machine {
            return Err(FormRefusal::Machine);
        }
        if !offer.configuration.seats.keys().eq(self.options.seats.keys()) {
            return Err(FormRefusal::Seats);
        }
        let fresh = |(seat, record): (&Seat, &SeatRecord)| {
            let voter =
                record.member.as_ref().is_some_and(|member| member.id == RaftId::new(*seat, 1) && member.role == Role::Voter);
            voter && record.incoming.is_none() && record.highest_life == 1
        };
        let id = RaftId::new(self.options.seat, 1);
        let named = offer.configuration.member(id).is_some_and(|member| member.directory == self.options.directory);
        let begins = offer.identity.epoch == Epoch::FIRST && offer.identity.room == self.options.room;
        let first = offer.configuration.seats.iter().all(fresh) && !offer.configuration.is_joint();
        if self.lowest() != Some(from) || self.is_lowest() || !named || !begins || !first {
            return Err(FormRefusal::Offer);
        }
        let record = FormRecord {
            state: FormState::Offered,
            id: Some(id),
            identity: Some(offer.identity),
            configuration: offer.configuration,
        };
        if *self.held() != record {
            self.begin_store(record);
        } else if self.storing.is_none() {
            self.confirm();
        }
        Ok(())
    }

    fn confirm(&mut self) {
        if let (Some(lowest), Some(identity)) = (self.lowest(), self.record.identity) {
            self.transmit.push_back((lowest, FormMessage::Confirm(identity.cluster)));
        }
    }

    fn handle_welcome(&mut self, id: RaftId, identity: Identity, configuration: Configuration) -> Result<(), FormRefusal> {
        if self.is_settled() && self.held().id == Some(id) && self.held().identity == Some(identity) {
            return Ok(());
        }
        let ours = id.seat() == self.options.seat
            && configuration.member(id).is_some_and(|member| member.directory == self.options.directory);
        if self.is_settled() || self.joining != Some(identity) || !ours {
            return Err(FormRefusal::Welcome);
        }
        self.begin_store(FormRecord { state: FormState::Newcomer, id: Some(id), identity: Some(identity), configuration });
        Ok(())
    }

    fn announce(&mut self) {
        let FormRecord { state, id: Some(id), identity: Some(identity), configuration } = self.record.clone() else { return };
        self.events.push_back(FormEvent::Formed { id, identity, configuration, may_campaign: state == FormState::Formed });
    }
}

#[cfg(test)]
mod tests;
