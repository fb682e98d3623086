//! Newtypes for everything that is counted or named. Two of them are easily confused and must not be:
//! [`RunIndex`] counts runs (raft's index), [`LogIndex`] counts entries (what users see).

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number, for layouts and arithmetic inside this workspace.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

macro_rules! position {
    ($name:ident) => {
        impl $name {
            /// Before everything.
            pub const ZERO: Self = Self(0);
            /// The first position that can hold something.
            pub const FIRST: Self = Self(1);

            /// The position after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The position before this one; zero stays zero.
            #[must_use]
            pub const fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }

            /// This position moved forward by `count`.
            #[must_use]
            pub const fn plus(self, count: u64) -> Self {
                Self(self.0.saturating_add(count))
            }
        }
    };
}

number! {
    /// Position of an entry in the log, as clients and state machines see it. The first entry is 1; 0 stands before all.
    LogIndex(u64)
}
position!(LogIndex);
number! {
    /// Position of a run in the log: raft's index. Run 1 is snapshot zero (the formed configuration); the log begins at 2.
    RunIndex(u64)
}
position!(RunIndex);
number! {
    /// A leader's term (Raft §5.1).
    Term(u64)
}
position!(Term);
number! {
    /// Which history of a cluster this is: starts at 1 and rises with every restore from a backup.
    Epoch(u32)
}
number! {
    /// A configured place for a voter: `--node 1`. A seat outlives the disk under it.
    Seat(u16)
}
number! {
    /// Minted at each start of a process, so that a peer's memory of an earlier process is never taken for this one's.
    Incarnation(u64)
}
number! {
    /// A session: the [`LogIndex`] of the entry that opened it.
    SessionId(u64)
}
number! {
    /// Which life of a request journal speaks: the [`LogIndex`] of a `SessionOpen` or `SessionAttach` entry.
    Opening(u64)
}
number! {
    /// A request within its session; increasing in the order issued, gaps allowed.
    RequestId(u64)
}
number! {
    /// The number of a room in entries and runs. A server has exactly one room today: 0.
    RoomId(u16)
}
number! {
    /// The running checksum of the history up to an entry.
    Chain(u32)
}
number! {
    /// Milliseconds since 1970 by a leader's clock, never falling along the log. The only time that `apply` sees.
    TimeMs(u64)
}

number! {
    /// A linearizable read that waits for its index; chosen by whoever asks, unique within a server's process.
    ReadId(u64)
}

/// Which history a replica belongs to: everything that must be equal before two of them may speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The room.
    pub room: RoomId,
}

impl Epoch {
    /// The history that forming begins.
    pub const FIRST: Self = Self(1);
}

/// Raft's id of one life of one seat: `seat << 16 | life`. A wiped seat comes back under a new life, so its empty log never
/// votes for what its old life had acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftId(pub u64);

impl RaftId {
    /// Nobody: raft's "no leader" and "no vote".
    pub const NONE: Self = Self(0);

    /// The id of a seat's given life; lives start at 1.
    #[must_use]
    pub const fn new(seat: Seat, life: u16) -> Self {
        Self((seat.0 as u64) << 16 | life as u64)
    }

    /// The seat that this life sits on.
    #[must_use]
    pub const fn seat(self) -> Seat {
        Seat((self.0 >> 16) as u16)
    }

    /// Which life of the seat this is.
    #[must_use]
    pub const fn life(self) -> u16 {
        self.0 as u16
    }

    /// The id, unless it is [`RaftId::NONE`].
    #[must_use]
    pub fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seat(), self.life())
    }
}

impl fmt::Debug for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RaftId({self})")
    }
}

macro_rules! random_128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

random_128! {
    /// A cluster's identity: 128 random bits, minted when it forms.
    ClusterId
}
random_128! {
    /// A data directory's identity: 128 random bits, minted when it is first used.
    DirectoryId
}

/// The present, as the driver passes it in: cores never read a clock. Compared by its monotonic clock alone: a wall clock that is set
/// back makes nothing earlier, or what is due would not be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    /// Microseconds of a monotonic clock since an arbitrary origin. Every timeout is measured with it.
    pub monotonic_us: u64,
    /// Milliseconds since 1970 by the wall clock, which may jump. Only a leader uses it, to stamp runs.
    pub unix_ms: TimeMs,
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.monotonic_us == other.monotonic_us
    }
}

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> Ordering {
        self.monotonic_us.cmp(&other.monotonic_us)
    }
}

impl Time {
    /// This time moved forward, on both clocks.
    #[must_use]
    pub const fn plus_us(self, us: u64) -> Self {
        Self { monotonic_us: self.monotonic_us.saturating_add(us), unix_ms: TimeMs(self.unix_ms.0.saturating_add(us / 1000)) }
    }

    /// This time moved forward by milliseconds, on both clocks.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        self.plus_us(ms.saturating_mul(1000))
    }

    /// Microseconds from `earlier` to this time; 0 if it lies ahead.
    #[must_use]
    pub const fn since_us(self, earlier: Self) -> u64 {
        self.monotonic_us.saturating_sub(earlier.monotonic_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_back_makes_nothing_earlier() {
        let due = Time { monotonic_us: 5, unix_ms: TimeMs(1_000) };
        let now = Time { monotonic_us: 5, unix_ms: TimeMs(0) };
        assert!(now >= due && now == due);
        assert!(now < due.plus_us(1));
    }
}
