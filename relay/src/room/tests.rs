//! Stories of the room, in virtual time, over a real replica.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::wire::*;
use voter_mesh::ids::*;
use voter_mesh::outcome::Outcome;

mod admission;
mod cold;
mod following;
mod proposing;
mod world;

use world::*;
