//! Between servers: typed messages, their frames, the handshake of a link, and forming.

pub mod message;
