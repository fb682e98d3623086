//! `quorate status`: what servers say of themselves.

use std::fmt::Write as _;

use clap::Args;
use cluster_server::status::{Phase, RecoveryStatus, ServerStatus};
use hyper::Method;
use serde_json::json;
use voter_mesh::ids::RaftId;

use crate::attach::{Attach, Endpoint};
use crate::http::{self, HttpError};
use crate::output::{self, Failure};

const EXAMPLES: &str = "\
Examples:
  quorate status
  quorate status --endpoint ws://127.0.0.1:7401 --endpoint ws://127.0.0.1:7402 --json
  quorate status --hashes      replicas that have applied equally far have equal hashes

A node is written SEAT.LIFE: a seat whose disk was lost comes back under its next life.
Exits with 3 if one of the servers does not answer.";

/// Show node, role, term, leader, commit, applied, voters, standbys and clients of each server
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    #[command(flatten)]
    attach: Attach,
    /// Also hash the state and the session table: costs the server a pass over both
    #[arg(long)]
    hashes: bool,
    /// One JSON object per server, a line each
    #[arg(long)]
    json: bool,
}

/// Asks one server for its status.
pub(crate) async fn fetch(endpoint: &Endpoint, hashes: bool, deadline: std::time::Duration) -> Result<ServerStatus, HttpError> {
    let path = if hashes { "/status?hashes" } else { "/status" };
    let (status, body) = http::request(endpoint, Method::GET, path, Vec::new(), deadline).await?;
    if !status.is_success() {
        return Err(HttpError::Broken(http::refusal(status, &body)));
    }
    serde_json::from_slice(&body).map_err(|error| HttpError::Broken(format!("not a status: {error}")))
}

impl Status {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut silent = Vec::new();
        for endpoint in &self.attach.servers.endpoints {
            match fetch(endpoint, self.hashes, self.attach.deadline).await {
                Ok(status) if self.json => output::json_line(&with_endpoint(endpoint, &status)?)?,
                Ok(status) => output::line(table(endpoint, &status).trim_end())?,
                Err(error) => {
                    silent.push(format!("{endpoint}: {error}"));
                    if self.json {
                        output::json_line(&json!({"endpoint": endpoint.as_str(), "error": error.to_string()}))?;
                    }
                }
            }
        }
        if silent.is_empty() { Ok(()) } else { Err(Failure::unreachable(silent.join("\n"))) }
    }
}

fn with_endpoint(endpoint: &Endpoint, status: &ServerStatus) -> Result<serde_json::Value, Failure> {
    let mut value = serde_json::to_value(status).map_err(|error| Failure::failed(error.to_string()))?;
    if let Some(object) = value.as_object_mut() {
        object.insert("endpoint".into(), endpoint.as_str().into());
    }
    Ok(value)
}

fn role(status: &ServerStatus) -> &'static str {
    match status.phase {
        Phase::Forming => "forming",
        Phase::Joining => "joining",
        Phase::Recovering => "recovering",
        Phase::Leading => "leader",
        Phase::Leaderless | Phase::Following => match status.id {
            Some(id) if status.configuration.standbys().contains(&id) => "standby",
            Some(id) if !status.configuration.contains(id) => "removed",
            _ => "follower",
        },
    }
}

fn ids(ids: &[RaftId]) -> String {
    if ids.is_empty() { "-".into() } else { ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ") }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn table(endpoint: &Endpoint, status: &ServerStatus) -> String {
    let configuration = &status.configuration;
    let mut rows = vec![
        ("node", status.id.map_or_else(|| format!("seat {}", status.seat), |id| id.to_string())),
        ("role", role(status).to_owned()),
        ("term", status.term.to_string()),
        ("leader", or_dash(status.leader)),
        ("commit", format!("run {}", status.commit)),
        ("applied", format!("index {}", status.applied)),
        ("voters", ids(&configuration.voters()) + if configuration.is_joint() { " (changing)" } else { "" }),
        ("standbys", ids(&configuration.standbys())),
        ("clients", status.clients.to_string()),
        ("sessions", status.sessions.to_string()),
        ("room", format!("{}, state {} v{}", status.room, status.state_machine, status.state_machine_version)),
        ("cluster", or_dash(status.cluster)),
    ];
    if let Some(recovery) = &status.recovery {
        let RecoveryStatus { runs_read, holes_open, holes_filled, .. } = recovery;
        rows.push(("recovery", format!("{runs_read} runs read, {holes_open} holes open, {holes_filled} filled")));
    }
    if status.suspect {
        rows.push(("suspect", "the log lost what it had acknowledged, and the leader is giving it back".into()));
    }
    rows.extend(status.damage.iter().map(|damage| ("damage", damage.clone())));
    if status.disk_full {
        rows.push(("disk", "full: waiting for room".to_owned()));
    }
    rows.extend(status.state_hash.clone().map(|hash| ("state hash", hash)));
    rows.extend(status.sessions_hash.clone().map(|hash| ("sessions hash", hash)));
    let mut text = format!("{endpoint}\n");
    for (name, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<14}{value}");
    }
    text
}
