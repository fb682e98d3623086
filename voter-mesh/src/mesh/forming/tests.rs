#![allow(clippy::unwrap_used)]

use super::*;
use crate::ids::{Incarnation, RunIndex, Term};

const ROOM: RoomId = RoomId(0);

/// One server: what is durable, and the process above it.
struct Server {
    disk: FormRecord,
    directory: DirectoryId,
    forming: Forming,
    events: Vec<FormEvent>,
}

/// Some servers, with links between them that carry messages one by one.
struct World {
    seats: BTreeMap<Seat, String>,
    servers: BTreeMap<Seat, Server>,
    /// What is on its way, for each direction of each link that is up.
    wires: BTreeMap<(Seat, Seat), VecDeque<FormMessage>>,
    minted: u8,
    /// Whose next store does not happen: it crashes instead.
    crashing: Option<Seat>,
}

impl World {
    fn new(count: u16) -> Self {
        let seats: BTreeMap<Seat, String> = (1..=count).map(|seat| (Seat(seat), format!("host{seat}:7500"))).collect();
        let mut world = Self { seats: seats.clone(), servers: BTreeMap::new(), wires: BTreeMap::new(), minted: 0, crashing: None };
        seats.keys().for_each(|seat| world.wipe(*seat));
        world
    }

    fn start(&mut self, seat: Seat, disk: FormRecord, directory: DirectoryId) {
        self.cut_all(seat);
        self.minted += 1;
        let options = FormOptions {
            seat,
            directory,
            machine: ("kv".into(), 1),
            seats: self.seats.clone(),
            room: ROOM,
            mint: ClusterId([self.minted; 16]),
        };
        let forming = Forming::new(options, disk.clone());
        self.servers.insert(seat, Server { disk, directory, forming, events: Vec::new() });
        self.drain(seat);
    }

    /// Starts a seat with an empty directory.
    fn wipe(&mut self, seat: Seat) {
        self.minted += 1;
        self.start(seat, FormRecord::default(), DirectoryId([self.minted; 16]));
    }

    /// Kills a seat's process and starts it again on what is durable.
    fn restart(&mut self, seat: Seat) {
        let Server { disk, directory, .. } = self.servers.remove(&seat).unwrap();
        self.start(seat, disk, directory);
    }

    fn cut_all(&mut self, seat: Seat) {
        let others: Vec<Seat> = self.servers.keys().copied().filter(|other| *other != seat).collect();
        others.into_iter().for_each(|other| self.cut(seat, other));
    }

    fn cut(&mut self, one: Seat, other: Seat) {
        if self.wires.remove(&(one, other)).is_some() {
            self.wires.remove(&(other, one));
            for (seat, peer) in [(one, other), (other, one)] {
                if let Some(server) = self.servers.get_mut(&seat) {
                    server.forming.handle_disconnected(peer);
                    self.drain(seat);
                }
            }
        }
    }

    fn hello(&self, seat: Seat) -> PeerHello {
        let server = &self.servers[&seat];
        let formed = matches!(server.disk.state, FormState::Formed | FormState::Newcomer);
        PeerHello {
            seat,
            id: server.disk.id.filter(|_| formed),
            directory: server.directory,
            incarnation: Incarnation(1),
            identity: server.disk.identity.filter(|_| formed),
            machine: ("kv".into(), 1),
            first: RunIndex(1),
            last: (Term(0), RunIndex(0)),
            suspect: false,
            endpoints: Vec::new(),
        }
    }

    fn link(&mut self, one: Seat, other: Seat) {
        if one == other || self.wires.contains_key(&(one, other)) {
            return;
        }
        let hellos = [(one, self.hello(other)), (other, self.hello(one))];
        self.wires.insert((one, other), VecDeque::new());
        self.wires.insert((other, one), VecDeque::new());
        for (seat, hello) in hellos {
            // Unless the first of them crashed over it.
            if self.wires.contains_key(&(one, other)) {
                self.servers.get_mut(&seat).unwrap().forming.handle_connected(&hello);
                self.drain(seat);
            }
        }
    }

    /// Does what a core asks for, in the order of the driving contract.
    fn drain(&mut self, seat: Seat) {
        let Some(server) = self.servers.get_mut(&seat) else { return };
        while let Some(Store { number, record }) = server.forming.poll_store() {
            if self.crashing.take_if(|crashing| *crashing == seat).is_some() {
                return self.restart(seat);
            }
            server.disk = record;
            server.forming.handle_stored(number);
        }
        while let Some((to, message)) = server.forming.poll_transmit() {
            if let Some(wire) = self.wires.get_mut(&(seat, to)) {
                wire.push_back(message);
            }
        }
        while let Some(event) = server.forming.poll_event() {
            server.events.push(event);
        }
    }

    /// Delivers one message. Whether there was one.
    fn deliver(&mut self, from: Seat, to: Seat) -> bool {
        let Some(message) = self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return false };
        self.servers.get_mut(&to).unwrap().forming.handle_message(from, message);
        self.drain(to);
        true
    }

    fn pairs(&self) -> Vec<(Seat, Seat)> {
        let seats = || self.servers.keys().copied();
        seats().flat_map(|one| seats().map(move |other| (one, other))).filter(|(one, other)| one != other).collect()
    }

    /// Links all and delivers up to `messages`, one after the other, in the order of the seats.
    fn run(&mut self, messages: usize) {
        self.pairs().into_iter().for_each(|(one, other)| self.link(one, other));
        for _ in 0..messages {
            if !self.pairs().into_iter().any(|(from, to)| self.deliver(from, to)) {
                return;
            }
        }
    }

    /// Lets everything happen that can.
    fn settle(&mut self) {
        self.run(1000);
    }

    fn state(&self, seat: u16) -> FormState {
        self.servers[&Seat(seat)].disk.state
    }

    fn cluster(&self, seat: u16) -> Option<ClusterId> {
        self.servers[&Seat(seat)].disk.identity.map(|identity| identity.cluster)
    }

    fn formed(&self) -> Vec<u16> {
        self.servers.keys().map(|seat| seat.0).filter(|seat| self.state(*seat) == FormState::Formed).collect()
    }

    fn joins(&self, seat: u16) -> bool {
        self.servers[&Seat(seat)].forming.joining().is_some()
    }

    fn assert_formed_as_one(&self) {
        let mut records: Vec<&FormRecord> = self.servers.values().map(|server| &server.disk).collect();
        for (seat, server) in &self.servers {
            assert_eq!(server.disk.state, FormState::Formed, "seat {seat}");
            assert_eq!(server.disk.id, Some(RaftId::new(*seat, 1)));
            let announced = server.events.iter().filter(|event| matches!(event, FormEvent::Formed { may_campaign: true, .. }));
            assert_eq!(announced.count(), 1, "seat {seat}");
        }
        records.dedup_by(|one, other| one.identity == other.identity && one.configuration == other.configuration);
        assert_eq!(records.len(), 1, "all hold the same");
    }
}

#[test]
fn a_single_seat_forms_alone() {
    let mut world = World::new(1);
    world.settle();
    world.assert_formed_as_one();
}

#[test]
fn three_seats_form_once_all_are_linked_and_not_before() {
    let mut world = World::new(3);
    world.link(Seat(1), Seat(2));
    assert!(!world.deliver(Seat(1), Seat(2)));
    assert_eq!((world.state(1), world.state(2)), (FormState::Empty, FormState::Empty));
    world.settle();
    world.assert_formed_as_one();
    let configuration = &world.servers[&Seat(2)].disk.configuration;
    assert_eq!(configuration.voters(), [RaftId::new(Seat(1), 1), RaftId::new(Seat(2), 1), RaftId::new(Seat(3), 1)]);
    assert_eq!(configuration.seats[&Seat(3)].address, "host3:7500");
}

#[test]
fn no_seat_is_formed_before_every_seat_has_confirmed() {
    let mut world = World::new(3);
    world.run(0);
    assert!(world.deliver(Seat(1), Seat(2)) && world.deliver(Seat(2), Seat(1)));
    assert!(world.deliver(Seat(1), Seat(3)));
    assert_eq!([world.state(1), world.state(2), world.state(3)], [FormState::Offered; 3]);
    assert!(!world.deliver(Seat(1), Seat(2)), "nobody is released");
    assert!(world.deliver(Seat(3), Seat(1)));
    assert_eq!([world.state(1), world.state(2), world.state(3)], [FormState::Formed, FormState::Offered, FormState::Offered]);
    world.settle();
    world.assert_formed_as_one();
}

#[test]
fn a_crash_of_any_seat_at_any_step_only_delays_forming() {
    for crashed in 1..=3 {
        for step in 0..12 {
            // What was sent is lost with the links; then the same with a store that did not happen.
            let mut world = World::new(3);
            world.run(step);
            let offered = world.cluster(crashed);
            world.restart(Seat(crashed));
            world.settle();
            world.assert_formed_as_one();
            assert!(offered.is_none() || world.cluster(crashed) == offered, "the durable offer is taken up again, step {step}");

            let mut world = World::new(3);
            world.run(step);
            world.crashing = Some(Seat(crashed));
            world.settle();
            world.settle();
            world.assert_formed_as_one();
        }
    }
}

#[test]
fn a_crash_of_all_seats_at_any_step_only_delays_forming() {
    for step in 0..12 {
        let mut world = World::new(3);
        world.run(step);
        (1..=3).for_each(|seat| world.restart(Seat(seat)));
        world.settle();
        world.assert_formed_as_one();
    }
}

#[test]
fn a_seat_wiped_before_the_others_form_is_offered_anew_and_one_wiped_after_it_joins() {
    for wiped in 1..=3 {
        for step in 0..12 {
            let mut world = World::new(3);
            world.run(step);
            let others = || (1..=3).filter(|seat| *seat != wiped);
            let begun = others().any(|seat| world.state(seat) == FormState::Formed);
            world.wipe(Seat(wiped));
            world.settle();
            if begun {
                assert!(world.joins(wiped), "seat {wiped} wiped at step {step}");
                assert!(others().map(|seat| world.state(seat)).all(|state| state == FormState::Formed));
            } else {
                world.assert_formed_as_one();
            }
        }
    }
}

#[test]
fn a_lost_release_is_made_up_for_by_the_next_hello_of_any_formed_peer() {
    let mut world = World::new(3);
    while world.state(1) != FormState::Formed {
        world.run(1);
    }
    assert!(world.deliver(Seat(1), Seat(2)));
    world.cut_all(Seat(3));
    assert_eq!([world.state(2), world.state(3)], [FormState::Formed, FormState::Offered]);
    world.link(Seat(2), Seat(3));
    assert_eq!(world.state(3), FormState::Formed);
    world.assert_formed_as_one();
}

#[test]
fn a_newcomer_is_welcomed_once_the_configuration_names_it() {
    let mut world = World::new(3);
    world.settle();
    world.wipe(Seat(2));
    world.settle();
    assert!(world.joins(2));
    assert_eq!(world.state(2), FormState::Empty);

    let formed = world.servers[&Seat(1)].disk.clone();
    let identity = formed.identity.unwrap();
    let mut configuration = formed.configuration;
    let welcome = |configuration: &Configuration, id| FormMessage::Welcome { id, identity, configuration: configuration.clone() };
    let old = welcome(&configuration, RaftId::new(Seat(2), 1));
    let directory = world.servers[&Seat(2)].directory;
    let id = RaftId::new(Seat(2), 2);
    configuration.seats.get_mut(&Seat(2)).unwrap().incoming = Some(Member { id, directory, role: Role::Standby });
    let good = welcome(&configuration, id);
    world.wires.get_mut(&(Seat(1), Seat(2))).unwrap().extend([old, good.clone(), good]);
    world.settle();

    let server = &world.servers[&Seat(2)];
    assert_eq!((server.disk.state, server.disk.id), (FormState::Newcomer, Some(id)));
    let announced = FormEvent::Formed { id, identity, configuration, may_campaign: false };
    let refused = FormEvent::Refused { from: Seat(1), why: FormRefusal::Welcome };
    assert_eq!(server.events[1..], [refused, announced.clone()], "the old life's id is not for this directory");
    world.restart(Seat(2));
    assert_eq!(world.servers[&Seat(2)].events, [announced], "it stays what it is");
}

#[test]
fn a_server_outside_the_forming_list_only_ever_joins() {
    let mut world = World::new(3);
    world.settle();
    world.wipe(Seat(4));
    world.settle();
    assert!(world.joins(4));
}

#[test]
fn offers_that_do_not_fit_are_named() {
    let offer = |world: &World| match world.wires[&(Seat(1), Seat(2))].front().unwrap() {
        FormMessage::Offer(offer) => offer.clone(),
        other => panic!("an offer, not {other:?}"),
    };
    let mut world = World::new(2);
    world.link(Seat(1), Seat(2));
    let good = offer(&world);
    let mut machine = good.clone();
    machine.machine.1 = 2;
    let mut seats = good.clone();
    seats.configuration.seats.remove(&Seat(1));
    let mut directory = good.clone();
    directory.configuration.seats.get_mut(&Seat(2)).unwrap().member.as_mut().unwrap().directory = DirectoryId([0; 16]);
    let mut life = good.clone();
    life.configuration.seats.get_mut(&Seat(1)).unwrap().highest_life = 2;
    for (from, bad, why) in [
        (1, machine, FormRefusal::Machine),
        (1, seats, FormRefusal::Seats),
        (1, directory, FormRefusal::Offer),
        (1, life, FormRefusal::Offer),
        (2, good, FormRefusal::Offer),
    ] {
        let forming = &mut world.servers.get_mut(&Seat(2)).unwrap().forming;
        forming.handle_message(Seat(from), FormMessage::Offer(bad));
        assert_eq!(forming.poll_event(), Some(FormEvent::Refused { from: Seat(from), why }));
        assert_eq!(forming.poll_store(), None);
    }
}

/// Steele's splitmix: enough randomness for schedules, the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 29) as usize % end
    }
}

#[test]
fn whatever_is_cut_crashed_or_wiped_there_is_only_ever_one_cluster() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let mut world = World::new(3 + 2 * (seed % 2) as u16);
        // One disk is lost, as often as it likes; more is no fault to survive.
        let victim = Seat(1 + random.below(world.servers.len()) as u16);
        for _ in 0..150 {
            let pairs = world.pairs();
            let (one, other) = pairs[random.below(pairs.len())];
            match random.below(40) {
                0..=14 => world.link(one, other),
                15..=34 => drop(world.deliver(one, other)),
                35 => world.cut(one, other),
                36 => world.restart(one),
                37 | 38 => world.crashing = Some(one),
                _ => world.wipe(victim),
            }
            let clusters: BTreeSet<_> = world.formed().into_iter().map(|seat| world.cluster(seat)).collect();
            assert!(clusters.len() <= 1, "seed {seed}: {clusters:?}");
        }
        world.crashing = None;
        world.settle();
        world.settle();
        let joining = (1..=world.servers.len() as u16).filter(|seat| world.joins(*seat)).count();
        assert_eq!(world.formed().len() + joining, world.servers.len(), "seed {seed}: nobody is left behind");
        assert!(joining <= 1, "seed {seed}: only the wiped seat is a newcomer");
    }
}
