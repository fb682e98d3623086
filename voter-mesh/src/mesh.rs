//! Between servers: typed messages, their frames, the handshake of a link, the rules of links, and forming.
//!
//! * [`message`] — what servers say; [`codec`] — the bytes of it; [`bulk`] — snapshots in flight.
//! * [`handshake`] — how two servers prove themselves to each other; [`links`] — which link is the live one, and how one ended.
//! * [`forming`] — how an empty set of seats becomes a cluster, and a wiped seat a newcomer.
//!
//! Nothing here opens a socket: the driver of `cluster-server` does.

pub mod bulk;
pub mod codec;
pub mod forming;
pub mod handshake;
pub mod links;
pub mod message;
