//! The replica of Quorate, pure: no socket, file, clock, thread or random source. Time and randomness are arguments.
//!
//! * [`ids`] — newtypes; [`entry`], [`run`] — the one encoding; [`outcome`] — what became of a command.
//! * [`machine`] — state machines and the built-in `log` and `kv`; [`session`] — exactly once; [`replica`] — the two together, as
//!   every server applies them; [`learner`] — the client's half.
//! * [`verdicts`] — which entries of kept runs took effect, for feeds that begin below the ring.
//! * [`configuration`] — seats, lives, roles; [`epoch`] — how a restored history begins; [`mesh`] — what servers say to each other.
//! * [`log`] — what the log on disk looks like and how it recovers.
//! * [`mutants`] — seeded bugs, in test builds only.
//! * `raft` (feature `voter`) — the consensus facade.
#![forbid(unsafe_code)]

pub mod configuration;
pub mod entry;
pub mod epoch;
pub mod ids;
mod layout;
pub mod learner;
pub mod log;
pub mod machine;
pub mod mesh;
pub mod mutants;
pub mod outcome;
#[cfg(feature = "voter")]
pub mod raft;
pub mod replica;
pub mod run;
pub mod session;
pub mod snapshot;
#[cfg(test)]
mod testing;
pub mod verdicts;
