//! `quorate member` and `quorate transfer`: what an administrator asks of the leader. Any server passes it on.

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};
use serde_json::json;
use voter_mesh::ids::Seat;
use voter_mesh::mesh::message::AdminRequest;

use crate::attach::{Servers, seconds};
use crate::http::{self, HttpError};
use crate::output::{self, Code, Failure};
use crate::serve::seat_address;

const MEMBER_EXAMPLES: &str = "\
Examples:
  quorate member add 4=127.0.0.1:7504      from now on the others dial it; it is a standby once it has caught up
  quorate serve --node 4 --peers 1=127.0.0.1:7501,…,4=127.0.0.1:7504 --listen 127.0.0.1:7404 --data-dir ./voter-4
  quorate member promote 4                 give it a vote
  quorate member remove 2                  the leader hands over first if it is the one to go

One change at a time: a second one is refused while one is under way.";

const TRANSFER_EXAMPLES: &str = "\
Example:
  quorate transfer 2       succeeds once seat 2 leads; proposals wait meanwhile and none is lost";

/// Change who the servers are: add a seat, give it a vote, remove it
#[derive(Args)]
#[command(after_help = MEMBER_EXAMPLES)]
pub(crate) struct Member {
    #[command(subcommand)]
    change: Change,
}

#[derive(Subcommand)]
enum Change {
    /// Add a seat: whoever starts there becomes a standby, fully replicated, without a vote
    Add {
        /// The seat and its mesh address
        #[arg(value_name = "SEAT=HOST:PORT", value_parser = seat_address)]
        seat: (Seat, String),
        /// Elections prefer higher priorities
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        priority: i32,
        /// Servers of one failure domain fail together (a rack, a zone)
        #[arg(long, default_value = "")]
        failure_domain: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Remove a seat, and its vote if it has one
    Remove {
        /// Which
        seat: u16,
        #[command(flatten)]
        ask: Ask,
    },
    /// Give a standby that has caught up a vote
    Promote {
        /// Which
        seat: u16,
        #[command(flatten)]
        ask: Ask,
    },
}

/// Hand leadership to the server at a seat
#[derive(Args)]
#[command(after_help = TRANSFER_EXAMPLES)]
pub(crate) struct Transfer {
    /// Who is to lead
    seat: u16,
    #[command(flatten)]
    ask: Ask,
}

#[derive(Args)]
struct Ask {
    #[command(flatten)]
    servers: Servers,
    /// Seconds until it is given up; a change that has begun may still happen
    #[arg(long, value_name = "SECONDS", default_value = "40", value_parser = seconds)]
    deadline: Duration,
    /// Print the answer as a JSON object
    #[arg(long)]
    json: bool,
}

impl Member {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.change {
            Change::Add { seat: (seat, address), priority, failure_domain, ask } => {
                ask.leader(&AdminRequest::AddSeat { seat, address, priority, failure_domain }).await
            }
            Change::Remove { seat, ask } => ask.leader(&AdminRequest::RemoveSeat { seat: Seat(seat) }).await,
            Change::Promote { seat, ask } => ask.leader(&AdminRequest::Promote { seat: Seat(seat) }).await,
        }
    }
}

impl Transfer {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        self.ask.leader(&AdminRequest::Transfer { seat: Seat(self.seat) }).await
    }
}

impl Ask {
    /// Asks one server after the other until one takes the request. Only a server that was not reached is passed over: one that
    /// was may have acted.
    async fn leader(&self, request: &AdminRequest) -> Result<(), Failure> {
        let body = serde_json::to_vec(request).map_err(|error| Failure::failed(error.to_string()))?;
        let mut unreached = Vec::new();
        for endpoint in &self.servers.endpoints {
            match http::request(endpoint, Method::POST, "/admin", body.clone(), self.deadline).await {
                Ok((StatusCode::OK, _)) if self.json => return output::json_line(&json!({"ok": true})),
                Ok((StatusCode::OK, _)) => return output::line("done"),
                Ok((status, answer)) => {
                    let why = http::refusal(status, &answer);
                    if self.json {
                        output::json_line(&json!({"ok": false, "error": why}))?;
                    }
                    let code = if status == StatusCode::GATEWAY_TIMEOUT { Code::Unknown } else { Code::Failed };
                    return Err(Failure::new(code, why));
                }
                Err(HttpError::Connect(error)) => unreached.push(format!("{endpoint}: cannot connect: {error}")),
                Err(error) => return Err(Failure::new(Code::Unknown, format!("{endpoint}: {error}; it may still happen"))),
            }
        }
        Err(Failure::unreachable(unreached.join("\n")))
    }
}
