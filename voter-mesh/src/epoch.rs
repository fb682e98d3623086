//! A new epoch: the history that begins where a backup is restored, or where one survivor goes on alone.
//!
//! What the old epoch committed beyond that point is gone, and may have been acknowledged. So the new one must be taken for a
//! continuation by nobody: it has another identity and another chain, servers and clients of the old one are refused by it, and
//! nothing that the lost part has named is ever named again: entries, terms and lives all go on from far above it.
//!
//! It never decides that an epoch is to begin: only an operator does.

use thiserror::Error;

use crate::configuration::{Configuration, Member, Role, SeatRecord};
use crate::ids::{Chain, DirectoryId, Epoch, Identity, LogIndex, RaftId, Seat, Term};
use crate::run::{Tail, chain_zero};
use crate::snapshot::SnapshotMeta;

/// Entries by which a new epoch goes on above its beginning. More than the lost part can have had: the sessions, tickets and fencing
/// tokens of one epoch, which are named by entries, are never those of another.
pub const LOG_STEP: u64 = 1 << 40;

/// Terms likewise, because a fencing token is (term, index).
pub const TERM_STEP: u64 = 1 << 20;

/// Why no epoch can begin here. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EpochRefused {
    /// The old configuration does not know the seat, so it must be told where its server listens.
    #[error("seat {0} is not in the old configuration: say at which address its server listens")]
    UnknownSeat(Seat),
    /// An id is never used twice, and this seat has none left.
    #[error("seat {0} has had as many lives as a seat can have: choose another one")]
    LivesUsedUp(Seat),
    /// No number is left above the old ones. Only a made-up history comes so far.
    #[error("entries, terms or epochs are used up")]
    Exhausted,
}

/// Where a new epoch begins, and with whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextEpoch {
    /// The only voter: a new life of its seat.
    pub id: RaftId,
    /// The snapshot that the new history begins with. Its state and session table are the old one's.
    pub meta: SnapshotMeta,
}

impl NextEpoch {
    /// Begins the epoch after that of `old`, with a server at `seat` in `directory` as the only voter. The other seats stay in the
    /// configuration, vacant: whoever starts there with an empty directory is let in as a standby.
    ///
    /// # Errors
    /// [`EpochRefused`].
    pub fn after(old: &SnapshotMeta, seat: Seat, address: Option<String>, directory: DirectoryId) -> Result<Self, EpochRefused> {
        let identity = Identity { epoch: next_epoch(old.identity.epoch)?, ..old.identity };
        let (id, configuration) = alone(&old.configuration, seat, address, directory)?;
        let tail = Tail {
            term: Term(step(old.tail.term.0, TERM_STEP)?),
            last: LogIndex(step(old.tail.last.0, LOG_STEP)?),
            // Neither the old chain, so that nobody of the old epoch resumes, nor the same for two restores of different backups.
            chain: Chain(crc32c::crc32c_append(chain_zero(&identity).0, &old.tail.chain.0.to_le_bytes())),
            ..old.tail
        };
        let meta = SnapshotMeta { tail, identity, configuration, configuration_run: tail.run, ..old.clone() };
        Ok(Self { id, meta })
    }
}

fn next_epoch(old: Epoch) -> Result<Epoch, EpochRefused> {
    old.0.checked_add(1).map(Epoch).ok_or(EpochRefused::Exhausted)
}

fn step(old: u64, by: u64) -> Result<u64, EpochRefused> {
    // Far from the end there must be room for the epoch itself.
    old.checked_add(by).filter(|new| *new < u64::MAX / 2).ok_or(EpochRefused::Exhausted)
}

/// The old configuration with one seat's new life as the only member.
fn alone(
    old: &Configuration,
    seat: Seat,
    address: Option<String>,
    directory: DirectoryId,
) -> Result<(RaftId, Configuration), EpochRefused> {
    let mut next = Configuration { outgoing: Vec::new(), ..old.clone() };
    for record in next.seats.values_mut() {
        (record.member, record.incoming) = (None, None);
    }
    if let (Some(address), false) = (&address, next.seats.contains_key(&seat)) {
        let highest_life = next.retired.remove(&seat).unwrap_or(0);
        let (address, failure_domain) = (address.clone(), String::new());
        next.seats.insert(seat, SeatRecord { address, priority: 0, failure_domain, highest_life, member: None, incoming: None });
    }
    let record = next.seats.get_mut(&seat).ok_or(EpochRefused::UnknownSeat(seat))?;
    record.highest_life = record.highest_life.checked_add(1).ok_or(EpochRefused::LivesUsedUp(seat))?;
    let id = RaftId::new(seat, record.highest_life);
    record.member = Some(Member { id, directory, role: Role::Voter });
    record.address = address.unwrap_or_else(|| record.address.clone());
    Ok((id, next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::{ClusterId, RoomId, RunIndex, TimeMs};

    const DIRECTORY: DirectoryId = DirectoryId([9; 16]);

    fn old() -> SnapshotMeta {
        let seat = |seat: u16, life: u16, role| {
            let member = Member { id: RaftId::new(Seat(seat), life), directory: DirectoryId([seat as u8; 16]), role };
            let record = SeatRecord {
                address: format!("10.0.0.{seat}:7500"),
                priority: i32::from(seat),
                failure_domain: "a".into(),
                highest_life: life,
                member: Some(member),
                incoming: None,
            };
            (Seat(seat), record)
        };
        let mut configuration = Configuration {
            seats: [seat(1, 1, Role::Voter), seat(2, 4, Role::Voter), seat(3, 1, Role::Standby)].into(),
            outgoing: vec![RaftId::new(Seat(1), 1), RaftId::new(Seat(5), 2)],
            retired: [(Seat(5), 2)].into(),
        };
        let second = configuration.seats.get_mut(&Seat(2)).unwrap();
        second.incoming = Some(Member { id: RaftId::new(Seat(2), 5), directory: DirectoryId([25; 16]), role: Role::Standby });
        second.highest_life = 5;
        SnapshotMeta {
            tail: Tail { run: RunIndex(70), term: Term(3), last: LogIndex(200), chain: Chain(77), time: TimeMs(1234) },
            identity: Identity { cluster: ClusterId([7; 16]), epoch: Epoch(1), room: RoomId(0) },
            configuration,
            configuration_run: RunIndex(12),
            machine_name: "kv".into(),
            machine_version: 1,
            state_hash: [1; 32],
            sessions_hash: [2; 32],
        }
    }

    #[test]
    fn a_new_epoch_keeps_what_was_and_names_nothing_twice() {
        let old = old();
        let NextEpoch { id, meta } = NextEpoch::after(&old, Seat(2), None, DIRECTORY).unwrap();
        assert_eq!(id, RaftId::new(Seat(2), 6), "above a life that was still on its way in");
        assert_eq!((meta.identity.cluster, meta.identity.epoch), (old.identity.cluster, Epoch(2)));
        assert_eq!((meta.state_hash, meta.sessions_hash), (old.state_hash, old.sessions_hash));
        assert!(meta.tail.last >= LogIndex(200 + LOG_STEP) && meta.tail.term >= Term(3 + TERM_STEP));
        assert_eq!((meta.tail.run, meta.tail.time), (old.tail.run, old.tail.time));
        assert!(meta.tail.chain != old.tail.chain && meta.tail.chain != chain_zero(&meta.identity));
        let Configuration { seats, outgoing, retired } = meta.configuration;
        assert_eq!((outgoing, retired), (vec![], old.configuration.retired.clone()));
        assert_eq!(seats.keys().collect::<Vec<_>>(), old.configuration.seats.keys().collect::<Vec<_>>());
        for (seat, record) in &seats {
            let before = &old.configuration.seats[seat];
            assert!(record.highest_life >= before.highest_life, "lives rise");
            assert_eq!((&record.address, record.priority), (&before.address, before.priority));
            let expected = (*seat == Seat(2)).then_some(Member { id, directory: DIRECTORY, role: Role::Voter });
            assert_eq!((&record.member, &record.incoming), (&expected, &None));
        }
    }

    #[test]
    fn different_backups_begin_different_histories_even_in_the_same_epoch() {
        let one = old();
        let other = SnapshotMeta { tail: Tail { chain: Chain(78), ..one.tail }, ..one.clone() };
        let chain = |meta| NextEpoch::after(meta, Seat(1), None, DIRECTORY).unwrap().meta.tail.chain;
        assert_ne!(chain(&one), chain(&other));
    }

    #[test]
    fn a_seat_that_the_backup_does_not_know_needs_an_address_and_keeps_its_retired_lives() {
        assert_eq!(NextEpoch::after(&old(), Seat(5), None, DIRECTORY), Err(EpochRefused::UnknownSeat(Seat(5))));
        let NextEpoch { id, meta } = NextEpoch::after(&old(), Seat(5), Some("here:1".into()), DIRECTORY).unwrap();
        assert_eq!(id, RaftId::new(Seat(5), 3));
        assert_eq!(meta.configuration.seats[&Seat(5)].address, "here:1");
        assert!(meta.configuration.retired.is_empty());
    }

    #[test]
    fn numbers_that_are_used_up_are_refused() {
        let mut meta = old();
        meta.tail.last = LogIndex(u64::MAX - 5);
        assert_eq!(NextEpoch::after(&meta, Seat(1), None, DIRECTORY), Err(EpochRefused::Exhausted));
        let mut meta = old();
        meta.identity.epoch = Epoch(u32::MAX);
        assert_eq!(NextEpoch::after(&meta, Seat(1), None, DIRECTORY), Err(EpochRefused::Exhausted));
        let mut meta = old();
        meta.configuration.seats.get_mut(&Seat(1)).unwrap().highest_life = u16::MAX;
        assert_eq!(NextEpoch::after(&meta, Seat(1), None, DIRECTORY), Err(EpochRefused::LivesUsedUp(Seat(1))));
    }
}
