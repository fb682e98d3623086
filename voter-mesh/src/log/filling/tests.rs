use super::*;
use crate::configuration::{Member, Role, SeatRecord};
use crate::ids::{DirectoryId, Seat};
use crate::log::FarSide;
use crate::testing::{Leader, open};

const LIMITS: FillLimits = FillLimits { fill_ms: 10_000, answer_ms: 5_000, again_ms: 50, bytes_max: 100_000 };

fn id(seat: u16) -> RaftId {
    RaftId::new(Seat(seat), 1)
}

fn at(ms: u64) -> Time {
    Time::default().plus_ms(ms)
}

fn members(seats: u16) -> Configuration {
    let member = |seat: u16| Member { id: id(seat), directory: DirectoryId::default(), role: Role::Voter };
    let record = |seat: u16| SeatRecord {
        address: String::new(),
        priority: 0,
        failure_domain: String::new(),
        highest_life: 1,
        member: Some(member(seat)),
        incoming: None,
    };
    Configuration { seats: (1..=seats).map(|seat| (Seat(seat), record(seat))).collect(), ..Configuration::default() }
}

/// Runs 2 to `count + 1` of one history.
fn runs(count: usize) -> Vec<Run> {
    let mut leader = Leader::new();
    (0..count).map(|n| leader.seal(&[open(n as u8)])).collect()
}

/// Another leader's runs after the first of `runs`.
fn branch(runs: &[Run], count: usize) -> Vec<Run> {
    let mut leader = Leader { tail: runs[0].header().tail(), term: crate::ids::Term(7), clock: crate::ids::TimeMs(5000) };
    (0..count).map(|n| leader.seal(&[open(100 + n as u8)])).collect()
}

/// The hole between the runs at `from` and at `to`.
fn hole(runs: &[Run], from: usize, to: usize) -> Hole {
    let bytes = runs[from + 1..to].iter().map(|run| run.bytes().len() as u64).sum();
    Hole { after: runs[from].header().tail(), far: FarSide::Run { header: *runs[to].header(), bytes } }
}

#[test]
fn a_hole_is_filled_by_exactly_its_runs() {
    let written = runs(8);
    let between = hole(&written, 1, 5);
    assert_eq!((between.first(), between.last()), (written[2].header().run, written[4].header().run));
    assert!(between.is_filled_by(&written[2..5]));
    for wrong in [&written[2..4], &written[1..5], &written[2..6], &written[3..5], &[]] {
        assert!(!between.is_filled_by(wrong));
    }
    assert!(!hole(&written, 0, 4).is_filled_by(&branch(&written, 3)), "its far side is another history");
    let FarSide::Run { header, bytes } = between.far else { unreachable!() };
    let short = Hole { far: FarSide::Run { header, bytes: bytes - 1 }, ..between };
    assert!(!short.is_filled_by(&written[2..5]));
    let to_segment = Hole { far: FarSide::Segment(written[4].header().tail()), ..between };
    assert!(to_segment.is_filled_by(&written[2..5]));
    assert!(!to_segment.is_filled_by(&written[2..4]) && !to_segment.is_filled_by(&written[3..5]));
}

#[test]
fn peers_that_each_have_a_part_fill_a_hole_together() {
    let written = runs(8);
    let mut filling = Filling::new(id(1), &members(3), &[hole(&written, 0, 6)], LIMITS, at(0));
    assert_eq!(filling.poll_transmit(), None, "nobody is linked");
    filling.handle_connected(id(2), at(1));
    filling.handle_connected(id(3), at(1));
    let question = filling.poll_transmit().unwrap();
    assert_eq!((question.to, question.first, question.last), (id(2), written[1].header().run, written[5].header().run));
    assert_eq!(filling.poll_transmit(), None, "one at a time");
    filling.handle_answer(id(2), question.first, Ok(written[1..3].to_vec()), at(2));
    let question = filling.poll_transmit().unwrap();
    assert_eq!((question.to, question.first), (id(2), written[3].header().run), "who had these may have more");
    filling.handle_answer(id(2), question.first, Err(NoRuns::Absent), at(3));
    let question = filling.poll_transmit().unwrap();
    assert_eq!((question.to, question.first), (id(3), written[3].header().run));
    filling.handle_answer(id(2), question.first, Ok(written[3..6].to_vec()), at(4));
    assert_eq!(filling.poll_filled(), None, "not from whom it was asked");
    filling.handle_answer(id(3), question.first, Ok(written[3..].to_vec()), at(4));
    let filled = filling.poll_filled().unwrap();
    assert_eq!(filled, Filled { holes: vec![(0, written[1..6].to_vec())], more: false });
}

#[test]
fn runs_of_another_history_lead_nowhere_and_the_next_peer_is_asked() {
    let written = runs(6);
    let mut filling = Filling::new(id(1), &members(3), &[hole(&written, 0, 4)], LIMITS, at(0));
    filling.handle_connected(id(2), at(1));
    let question = filling.poll_transmit().unwrap();
    filling.handle_answer(id(2), question.first, Ok(branch(&written, 3)), at(2));
    assert_eq!(filling.poll_transmit(), None, "not again from there");
    filling.handle_connected(id(3), at(3));
    let question = filling.poll_transmit().unwrap();
    assert_eq!((question.to, question.first), (id(3), written[1].header().run), "from the beginning");
    filling.handle_answer(id(3), question.first, Ok(written[1..4].to_vec()), at(4));
    assert_eq!(filling.poll_filled().unwrap().holes, [(0, written[1..4].to_vec())]);
}

#[test]
fn what_no_other_member_has_is_given_up_at_once_and_the_next_hole_is_tried() {
    let written = runs(9);
    let holes = [hole(&written, 0, 2), hole(&written, 4, 6)];
    let mut filling = Filling::new(id(1), &members(3), &holes, LIMITS, at(0));
    filling.handle_connected(id(2), at(1));
    filling.handle_connected(id(3), at(1));
    for answer in [NoRuns::Absent, NoRuns::Trimmed { first: written[3].header().run }] {
        let question = filling.poll_transmit().unwrap();
        filling.handle_answer(question.to, question.first, Err(answer), at(2));
    }
    let question = filling.poll_transmit().unwrap();
    assert_eq!(question.first, written[5].header().run);
    filling.handle_answer(question.to, question.first, Ok(written[5..6].to_vec()), at(3));
    assert_eq!(filling.poll_filled().unwrap(), Filled { holes: vec![(1, written[5..6].to_vec())], more: false });
}

#[test]
fn the_time_to_give_up_runs_from_a_quorum_on_and_anew_with_progress() {
    let written = runs(6);
    let mut filling = Filling::new(id(1), &members(5), &[hole(&written, 0, 4)], LIMITS, at(0));
    filling.handle_connected(id(2), at(0));
    assert_eq!(filling.poll_timeout(), None, "two of five are no quorum");
    filling.handle_connected(id(3), at(1_000));
    assert_eq!(filling.poll_timeout().unwrap().0, at(11_000));
    let question = filling.poll_transmit().unwrap();
    filling.handle_answer(question.to, question.first, Ok(written[1..2].to_vec()), at(4_000));
    for _ in [2, 3] {
        let question = filling.poll_transmit().unwrap();
        filling.handle_answer(question.to, question.first, Err(NoRuns::Absent), at(4_000));
    }
    assert_eq!((filling.poll_transmit(), filling.open()), (None, 1), "4 and 5 may come");
    filling.handle_timeout(at(13_999));
    assert_eq!(filling.poll_filled(), None);
    filling.handle_timeout(at(14_000));
    assert_eq!(filling.poll_filled(), Some(Filled::default()));
}

#[test]
fn the_only_voter_does_not_wait_for_ever_for_its_standby() {
    let written = runs(4);
    let mut configuration = members(2);
    configuration.seats.get_mut(&Seat(2)).unwrap().member.as_mut().unwrap().role = Role::Standby;
    let mut filling = Filling::new(id(1), &configuration, &[hole(&written, 0, 2)], LIMITS, at(0));
    assert_eq!((filling.poll_filled(), filling.poll_timeout().unwrap().0), (None, at(10_000)));
    filling.handle_timeout(at(10_000));
    assert_eq!(filling.poll_filled(), Some(Filled::default()));
}

#[test]
fn who_is_still_reading_or_does_not_answer_is_asked_again() {
    let written = runs(4);
    let mut filling = Filling::new(id(1), &members(2), &[hole(&written, 0, 2)], LIMITS, at(0));
    filling.handle_connected(id(2), at(0));
    let first = filling.poll_transmit().unwrap();
    filling.handle_answer(id(2), first.first, Err(NoRuns::NotYet), at(10));
    assert_eq!(filling.poll_transmit(), None);
    assert_eq!(filling.poll_timeout().unwrap().0, at(60));
    filling.handle_timeout(at(60));
    assert_eq!(filling.poll_transmit(), Some(first));
    assert_eq!(filling.poll_timeout().unwrap().0, at(5_060));
    filling.handle_timeout(at(5_060));
    filling.handle_timeout(at(5_110));
    assert_eq!(filling.poll_transmit(), Some(first));
    // What was under way ends with the link.
    filling.handle_disconnected(id(2), at(5_200));
    assert_eq!(filling.poll_transmit(), None);
    filling.handle_connected(id(2), at(5_300));
    assert_eq!(filling.poll_transmit(), Some(first));
    filling.handle_answer(id(2), first.first, Ok(written[1..2].to_vec()), at(5_400));
    assert_eq!(filling.poll_filled().unwrap().holes.len(), 1);
}

#[test]
fn a_round_holds_no_more_than_its_bytes_and_a_lone_server_asks_nobody() {
    let written = runs(9);
    let holes = [hole(&written, 0, 2), hole(&written, 2, 6), hole(&written, 6, 8)];
    let bytes = |runs: &[Run]| runs.iter().map(|run| run.bytes().len()).sum();
    let limits = FillLimits { bytes_max: bytes(&written[1..3]), ..LIMITS };
    let mut filling = Filling::new(id(1), &members(2), &holes, limits, at(0));
    filling.handle_connected(id(2), at(0));
    for part in [1..2, 3..5] {
        let question = filling.poll_transmit().unwrap();
        filling.handle_answer(id(2), question.first, Ok(written[part].to_vec()), at(1));
    }
    assert_eq!(filling.poll_filled().unwrap(), Filled { holes: vec![(0, written[1..2].to_vec())], more: true });

    // Too large even for a round of its own.
    let mut filling = Filling::new(id(1), &members(2), &holes[1..], limits, at(0));
    filling.handle_connected(id(2), at(0));
    let question = filling.poll_transmit().unwrap();
    filling.handle_answer(id(2), question.first, Ok(written[3..6].to_vec()), at(1));
    let question = filling.poll_transmit().unwrap();
    assert_eq!(question.first, written[7].header().run);
    filling.handle_answer(id(2), question.first, Ok(written[7..8].to_vec()), at(1));
    assert_eq!(filling.poll_filled().unwrap(), Filled { holes: vec![(1, written[7..8].to_vec())], more: false });

    let mut alone = Filling::new(id(1), &members(1), &holes, LIMITS, at(0));
    assert_eq!(alone.poll_filled(), Some(Filled::default()));
}
