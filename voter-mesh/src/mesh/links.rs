//! Which link to a seat is the live one, and how a link ended.
//!
//! One live `consensus` link per seat. A newer incarnation replaces an older one; of one incarnation and one dialling side the newer dial
//! wins, of two dialling sides the live link. Frames of a link that is not live are dropped ([`Links::is_live`]). The owner of a server
//! sees a strict alternation for each seat: up, down, up, down.
//!
//! An old incarnation is refused while a newer one is linked, and for [`MEMORY_MS`] after. Not for ever: incarnations come from a
//! clock, and a server whose clock was set back must be able to come home. Nothing depends on it for safety, as nobody can speak
//! for a process that is gone (the handshake's nonces are fresh).

use std::collections::BTreeMap;

use super::handshake::Refusal;
use crate::ids::{Incarnation, Seat, Time};

/// Milliseconds for which an incarnation is remembered after its link has ended.
pub const MEMORY_MS: u64 = 10_000;

/// Seats that links are kept with at once; far above any cluster that works, it only bounds the map.
pub const SEATS_MAX: usize = 256;

/// How a live link came to its end, as far as consensus cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disconnect {
    /// The other end is gone: the connection ended or was reset, unasked. If that was the leader, it is worth a pre-vote at once.
    Torn,
    /// On purpose, or for a reason that says nothing about the peer's process.
    Closed,
}

/// Names one link: the dialler's counter tells two links between the same two processes apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkName {
    /// The peer's seat.
    pub seat: Seat,
    /// The peer's incarnation.
    pub incarnation: Incarnation,
    /// The dial, as the dialling side counts.
    pub dial: u64,
    /// Whether this side dialled.
    pub dialled: bool,
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// End of stream, unannounced.
    Eof,
    /// Reset, or any other error of the socket.
    Reset,
    /// The peer said goodbye first.
    Bye,
    /// Nothing came for too long.
    Silent,
    /// This side closed it.
    Ours,
    /// The peer sent what does not decode.
    Malformed,
}

impl Ending {
    /// What it means to consensus. Silence is no tear: a stopped peer may come back, and elections have their own timeout.
    #[must_use]
    pub const fn disconnect(self) -> Disconnect {
        match self {
            Self::Eof | Self::Reset => Disconnect::Torn,
            Self::Bye | Self::Silent | Self::Ours | Self::Malformed => Disconnect::Closed,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct SeatLinks {
    /// The newest link; live, or remembered since the time of its end.
    name: LinkName,
    ended: Option<Time>,
}

/// The links of one server.
#[derive(Clone, Debug, Default)]
pub struct Links(BTreeMap<Seat, SeatLinks>);

impl Links {
    /// Makes `new` the live link of its seat. Returns the live one that it replaces, already ended, and how: a newer incarnation
    /// proves that the older process is gone, a newer dial proves nothing.
    ///
    /// # Errors
    /// [`Refusal::OldIncarnation`], [`Refusal::Duplicate`] or [`Refusal::Full`]; nothing has changed.
    pub fn admit(&mut self, new: LinkName, now: Time) -> Result<Option<(LinkName, Disconnect)>, Refusal> {
        self.0.retain(|_, seat| seat.ended.is_none_or(|ended| now.since_us(ended) < MEMORY_MS * 1000));
        let mut replaced = None;
        if let Some(SeatLinks { name, ended }) = self.0.get(&new.seat) {
            if new.incarnation < name.incarnation {
                return Err(Refusal::OldIncarnation);
            }
            // What the two sides count tells nothing of each other.
            let is_newer = if new.dialled == name.dialled { new.dial > name.dial } else { ended.is_some() };
            if new.incarnation == name.incarnation && !is_newer {
                return Err(Refusal::Duplicate);
            }
            let how = if new.incarnation > name.incarnation { Disconnect::Torn } else { Disconnect::Closed };
            replaced = ended.is_none().then_some((*name, how));
        } else if self.0.len() >= SEATS_MAX {
            return Err(Refusal::Full);
        }
        self.0.insert(new.seat, SeatLinks { name: new, ended: None });
        Ok(replaced)
    }

    /// Whether frames of this link count.
    #[must_use]
    pub fn is_live(&self, name: LinkName) -> bool {
        self.live(name.seat) == Some(name)
    }

    /// The live link of a seat.
    #[must_use]
    pub fn live(&self, seat: Seat) -> Option<LinkName> {
        self.0.get(&seat).filter(|link| link.ended.is_none()).map(|link| link.name)
    }

    /// A connection has ended, after all that it brought was handled. `None`: it was not live any more, and nobody need know.
    pub fn ended(&mut self, name: LinkName, ending: Ending, now: Time) -> Option<Disconnect> {
        let link = self.0.get_mut(&name.seat).filter(|link| link.name == name && link.ended.is_none())?;
        link.ended = Some(now);
        Some(ending.disconnect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Time = Time { monotonic_us: 1_000_000, unix_ms: crate::ids::TimeMs(0) };

    fn name(incarnation: u64, dial: u64) -> LinkName {
        LinkName { seat: Seat(1), incarnation: Incarnation(incarnation), dial, dialled: false }
    }

    #[test]
    fn a_newer_incarnation_replaces_and_the_older_is_neither_live_nor_reported_again() {
        let mut links = Links::default();
        assert_eq!(links.admit(name(5, 1), NOW), Ok(None));
        assert_eq!(links.admit(name(6, 1), NOW), Ok(Some((name(5, 1), Disconnect::Torn))));
        assert!(links.is_live(name(6, 1)) && !links.is_live(name(5, 1)));
        assert_eq!(links.ended(name(5, 1), Ending::Eof, NOW), None);
        assert_eq!(links.admit(name(5, 2), NOW), Err(Refusal::OldIncarnation));
        assert_eq!(links.ended(name(6, 1), Ending::Eof, NOW), Some(Disconnect::Torn));
        assert_eq!(links.ended(name(6, 1), Ending::Eof, NOW), None);
    }

    #[test]
    fn of_one_incarnation_the_newer_dial_wins_without_a_tear() {
        let mut links = Links::default();
        links.admit(name(5, 2), NOW).unwrap();
        assert_eq!(links.admit(name(5, 1), NOW), Err(Refusal::Duplicate));
        assert_eq!(links.admit(name(5, 2), NOW), Err(Refusal::Duplicate));
        assert_eq!(links.admit(name(5, 3), NOW), Ok(Some((name(5, 2), Disconnect::Closed))));
    }

    #[test]
    fn of_two_dialling_sides_the_live_link_stays_and_an_ended_one_stands_in_nobodys_way() {
        let mut links = Links::default();
        links.admit(name(5, 9), NOW).unwrap();
        let ours = LinkName { dialled: true, ..name(5, 1) };
        assert_eq!(links.admit(ours, NOW), Err(Refusal::Duplicate));
        links.ended(name(5, 9), Ending::Bye, NOW).unwrap();
        assert_eq!(links.admit(ours, NOW), Ok(None));
        assert!(links.is_live(ours));
    }

    #[test]
    fn an_old_incarnation_is_remembered_for_a_while_and_not_for_ever() {
        let mut links = Links::default();
        links.admit(name(9, 1), NOW).unwrap();
        links.ended(name(9, 1), Ending::Bye, NOW).unwrap();
        assert_eq!(links.admit(name(3, 1), NOW.plus_ms(MEMORY_MS - 1)), Err(Refusal::OldIncarnation));
        assert_eq!(links.admit(name(3, 1), NOW.plus_ms(MEMORY_MS)), Ok(None));
    }

    #[test]
    fn only_an_unannounced_end_is_a_tear() {
        for (ending, how) in [
            (Ending::Eof, Disconnect::Torn),
            (Ending::Reset, Disconnect::Torn),
            (Ending::Bye, Disconnect::Closed),
            (Ending::Silent, Disconnect::Closed),
            (Ending::Ours, Disconnect::Closed),
            (Ending::Malformed, Disconnect::Closed),
        ] {
            assert_eq!(ending.disconnect(), how);
        }
    }
}
