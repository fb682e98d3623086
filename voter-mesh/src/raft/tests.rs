//! The facade's acceptance suite: stories in virtual time. Whatever stands behind the facade must pass it.

mod chaos;
mod cluster;
mod disks;
mod elections;
mod membership;
mod messages;
mod reads;
mod replication;
mod suspects;
