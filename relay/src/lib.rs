//! The room of Quorate, pure: the client protocol, admission, the feed with its cursors, and limits. It never reads an
//! application's payload, and touches no socket, clock, thread or random source.
//!
//! * [`wire`] — the protocol's frames, and their bytes; written down for other languages in `docs/protocol.md`.
//! * [`feed`] — recent runs with their verdicts, kept once, read by any number of cursors.
//! * [`room`] — the links of one server: who is let in, what they may ask for, what each of them is sent and when.
#![forbid(unsafe_code)]

pub mod feed;
pub mod room;
pub mod wire;
