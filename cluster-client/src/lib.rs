//! The client.
pub mod core;
pub mod error;
pub mod journal;
pub mod status;
pub mod ticket;
pub use ticket::Ticket;
