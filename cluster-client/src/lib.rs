//! Quorate's client: a live replica of a cluster's committed log over WebSocket, and proposals that apply exactly once.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use cluster_client::{ClusterClient, Consistency, RequestJournal};
//! # use voter_mesh::machine::kv::Kv;
//! # async fn example(command: voter_mesh::machine::kv::KvCommand) -> Result<(), Box<dyn std::error::Error>> {
//! let client = ClusterClient::builder()
//!     .endpoints(["ws://10.0.0.1:7400/rooms/main", "ws://10.0.0.2:7400/rooms/main"])
//!     .links(2)
//!     .journal(RequestJournal::file("requests.journal")?)
//!     .deadline(Duration::from_secs(10))
//!     .state(Kv::default())
//!     .connect()
//!     .await?;
//! let applied = client.propose(&command).await?;
//! println!("applied at {}", applied.index);
//! let _state = client.read(Consistency::Linearizable, |kv| format!("{kv:?}")).await?;
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! * [`ClusterClient`], [`Builder`] — the API; [`error`], [`status`], [`ticket`], [`stream`] — what it speaks of.
//! * [`journal`] — what must survive a crash; [`host`] — the world that the client lives in.
//! * [`core`] — the client as a pure state machine: everything but sockets, files and clocks. The task that moves bytes between them
//!   is the only one, whatever the number of calls.
#![forbid(unsafe_code)]

mod builder;
mod call;
mod client;
pub mod core;
mod driver;
pub mod error;
mod follower;
mod history;
pub mod host;
pub mod journal;
pub mod status;
pub mod stream;
pub mod ticket;

pub use builder::Builder;
pub use client::{Applied, ClusterClient, Consistency, Form, Propose, Proposing, Raw, Thin};
pub use error::{ConnectError, GiveUpError, NotSent, ProposeError, ReadError, ReserveError, StreamError, Unresolved};
pub use host::Host;
pub use journal::{JournalError, JournalStore, RequestJournal};
pub use status::{CloseReason, LinkError, Status};
pub use stream::CommittedStream;
pub use ticket::Ticket;
pub use voter_mesh::ids::{Epoch, LogIndex, RequestId};
pub use voter_mesh::learner::Committed;
