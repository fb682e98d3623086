//! The room of Quorate, pure: the client protocol, admission, the feed with its cursors, and limits. It never reads an
//! application's payload, and touches no socket, clock, thread or random source.
#![forbid(unsafe_code)]

pub mod wire;
