//! Quorate's server: everything that touches a disk, a socket or a clock on the server's side.

pub mod disk;
pub mod mesh;
