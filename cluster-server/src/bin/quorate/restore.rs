//! `quorate restore`: a data directory from a backup, the first of a new epoch.

use std::path::PathBuf;

use clap::Args;
use cluster_server::cluster::voter_dir;
use cluster_server::tools::{self, Restored};
use serde_json::json;
use voter_mesh::ids::Seat;

use crate::backup;
use crate::output::{self, Failure};
use crate::serve::host_port;

const EXAMPLES: &str = "\
Examples:
  quorate restore monday.quorate --data-dir ./voter-1 --node 1
      for 'quorate serve --node 1 --data-dir ./voter-1'
  quorate restore monday.quorate --data-dir ./quorate-data
      for 'quorate serve --data-dir ./quorate-data', all voters in one process

Stop every server of the old epoch first: they and the restored ones would be two clusters of one name. Restore one directory only;
the other seats come back by starting with empty directories, and get their votes back by 'quorate member promote'.
Clients of the old epoch are told: they drop their state and session, and report what was in flight as unknown.";

/// Make a data directory from a backup: the same cluster in its next epoch, with one voter
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Restore {
    /// The backup
    file: PathBuf,
    /// Where the server's data goes, as 'quorate serve' is told it; nothing may be there yet
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The server's seat, as for 'quorate serve'; without it, the lowest one, among voters in one process
    #[arg(long, value_name = "SEAT", value_parser = clap::value_parser!(u16).range(1..))]
    node: Option<u16>,
    /// Where this seat's mesh listener will be, if not where the backup says
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port, requires = "node")]
    address: Option<String>,
    /// Print the last line as a JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let backup = backup::check(&self.file, self.json).map_err(|error| Failure::failed(error.to_string()))?;
        let lowest = backup.meta().configuration.seats.keys().next().copied().unwrap_or(Seat(1));
        let seat = self.node.map_or(lowest, Seat);
        let directory = if self.node.is_some() { self.data_dir.clone() } else { voter_dir(&self.data_dir, seat) };
        let Restored { id, meta } =
            tools::restore(&backup, &directory, seat, self.address.clone()).map_err(|error| Failure::failed(error.to_string()))?;
        let others: Vec<Seat> = meta.configuration.seats.keys().copied().filter(|other| *other != seat).collect();
        if self.json {
            return output::json_line(&json!({
                "cluster": meta.identity.cluster.to_string(), "epoch": meta.identity.epoch, "node": seat, "id": id.to_string(),
                "data_dir": directory, "backup_index": backup.meta().tail.last, "index": meta.tail.last,
                "state": meta.machine_name, "vacant": others,
            }));
        }
        output::line(format_args!(
            "cluster {}, epoch {}: everything up to index {} of epoch {}; the log goes on above index {}",
            meta.identity.cluster,
            meta.identity.epoch,
            backup.meta().tail.last,
            backup.meta().identity.epoch,
            meta.tail.last
        ))?;
        let (data, state) = (self.data_dir.display(), &meta.machine_name);
        if self.node.is_none() {
            eprintln!("next:\n  quorate serve --data-dir {data} --state {state} --voters {}", others.len() + 1);
        } else {
            let seats = meta.configuration.seats.iter();
            let peers: Vec<String> = seats.map(|(seat, record)| format!("{seat}={}", record.address)).collect();
            let peers = peers.join(",");
            eprintln!("next:\n  quorate serve --node {seat} --peers {peers} --state {state} --data-dir {data} --listen HOST:PORT");
            for other in &others {
                eprintln!("  quorate serve --node {other} --peers {peers} --state {state} --data-dir EMPTY --listen HOST:PORT");
            }
        }
        for other in &others {
            eprintln!("  quorate member promote {other}");
        }
        Ok(())
    }
}
