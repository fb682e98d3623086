//! `quorate recover`: the way out when a server does not start because something is lost.

use std::path::PathBuf;

use clap::Args;
use cluster_server::disk::DiskError;
use cluster_server::tools::{self, RecoverError, Recovery, Restored};
use serde_json::json;

use crate::output::{self, Code, Failure};
use crate::serve::StateName;

const EXAMPLES: &str = "\
Examples:
  quorate recover ./voter-1                   what would be lost, and why; nothing is changed
  quorate recover ./voter-1 --accept-loss     ... and then it starts
  quorate recover ./voter-2 --sole-voter ./alone
      the others are gone for good: ./alone is a server of the next epoch, with what ./voter-2 has, and no peers

A member of a cluster rarely needs this. Start it: the others heal it. If it cannot start, remove its directory and start it empty: it
comes back as a newcomer. Only when no quorum is left and no backup is newer is a loss to be accepted.
Exits with 0 if the server starts (now), 1 if it would lose something, 2 if the directory cannot be read.";

/// Explain what a damaged server has lost, and accept it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Recover {
    /// The server's data directory
    directory: PathBuf,
    /// Go on without what is lost: leave damaged files beside, as *.damaged, and let the log end where it is whole
    #[arg(long, conflicts_with = "sole_voter")]
    accept_loss: bool,
    /// Make NEW, empty or missing, the directory of a cluster of this server alone, in the next epoch; DIRECTORY stays as it is
    #[arg(long, value_name = "NEW")]
    sole_voter: Option<PathBuf>,
    /// Print the last line as a JSON object
    #[arg(long)]
    json: bool,
}

fn failure(error: &RecoverError) -> Failure {
    let unreadable = matches!(error, RecoverError::Disk(DiskError::Io { .. } | DiskError::Locked { .. } | DiskError::Newer { .. }));
    Failure::new(if unreadable { Code::Usage } else { Code::Failed }, error.to_string())
}

impl Recover {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if let Some(new) = &self.sole_voter {
            return self.alone(new);
        }
        let Recovery { has_peers, losses, notes, last_index, aside } =
            tools::recover(&self.directory, self.accept_loss).map_err(|error| failure(&error))?;
        let starts = losses.is_empty() || self.accept_loss;
        if self.json {
            output::json_line(&json!({
                "ok": starts, "accepted": self.accept_loss, "has_peers": has_peers, "losses": losses, "notes": notes,
                "last_index": last_index, "aside": aside,
            }))?;
        } else {
            for (what, said) in [("lost", &losses), ("note", &notes)] {
                said.iter().try_for_each(|said| output::line(format_args!("{what}: {said}")))?;
            }
            aside.iter().try_for_each(|path| output::line(format_args!("left beside: {}", path.display())))?;
            output::line(match (losses.is_empty(), self.accept_loss) {
                (true, _) => format!("nothing is lost: the server starts from this directory, up to index {last_index}"),
                (false, true) => format!("the server starts from this directory, up to index {last_index}, without what is lost"),
                (false, false) => format!("up to index {last_index} is left; --accept-loss goes on without what is lost"),
            })?;
            if has_peers && !losses.is_empty() {
                eprintln!(
                    "Other servers vote with this one and may have what it lost: start it without accepting anything, and they heal it.\n\
                     If it accepts the loss and they elect it, what only it and servers that are down had acknowledged is lost for all."
                );
            }
        }
        // What would be lost is said already.
        if starts { Ok(()) } else { Err(Failure::failed("")) }
    }

    fn alone(&self, new: &std::path::Path) -> Result<(), Failure> {
        let machine = |name: &str| [StateName::Kv, StateName::Log].into_iter().find(|state| state.as_str() == name);
        let Restored { id, meta } =
            tools::recover_alone(&self.directory, new, |meta| machine(&meta.machine_name).map(StateName::machine))
                .map_err(|error| failure(&error))?;
        if self.json {
            return output::json_line(&json!({
                "ok": true, "cluster": meta.identity.cluster.to_string(), "epoch": meta.identity.epoch, "id": id.to_string(),
                "index": meta.tail.last, "data_dir": new,
            }));
        }
        output::line(format_args!(
            "cluster {}, epoch {}: {} is the directory of its only voter, on seat {}; the log goes on above index {}",
            meta.identity.cluster,
            meta.identity.epoch,
            new.display(),
            id.seat(),
            meta.tail.last
        ))
    }
}
