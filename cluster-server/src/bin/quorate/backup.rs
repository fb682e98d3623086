//! `quorate backup`: a snapshot of now, from a running server into a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use cluster_server::disk::SnapshotFile;
use hyper::StatusCode;
use indicatif::ProgressBar;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::attach::{Attach, Endpoint};
use crate::http::{self, HttpError};
use crate::output::{self, Failure, hex};
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  quorate backup monday.quorate
  quorate backup --endpoint ws://127.0.0.1:7402/rooms/main --json /backups/monday.quorate

It holds everything that was acknowledged before it was asked for, and sessions with their outcomes. The file gets its name when it is
whole, checked and on the disk; a file that has the name is replaced then. Servers give backups to their own machine only.
Put it back with 'quorate restore'.";

/// Take a consistent, checked backup of a running cluster into a file
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Backup {
    #[command(flatten)]
    attach: Attach,
    /// Where the backup goes
    file: PathBuf,
    /// Print the last line as a JSON object
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut silent = Vec::new();
        for endpoint in &self.attach.servers.endpoints {
            match self.from(endpoint).await? {
                Ok(()) => return Ok(()),
                Err(why) => silent.push(format!("{endpoint}: {why}")),
            }
        }
        Err(Failure::unreachable(silent.join("\n")))
    }

    /// Takes the backup from one server; why it cannot give one, if another one might.
    async fn from(&self, endpoint: &Endpoint) -> Result<Result<(), String>, Failure> {
        let named = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", self.file.display()));
        // Beside its last place, so that it gets there by a rename; readable by its owner only, and gone if this ends early.
        let directory = self.file.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(directory).map_err(|error| named(&error))?;
        let bar = progress::bytes("receiving", None, self.json);
        let taken = http::download(endpoint, "/backup", self.attach.deadline, |piece| {
            bar.inc(piece.len() as u64);
            file.write_all(piece)
        })
        .await;
        bar.finish_and_clear();
        match taken {
            Ok(Ok(())) => {}
            Ok(Err((StatusCode::SERVICE_UNAVAILABLE, why))) => return Ok(Err(why)),
            Ok(Err((_, why))) => return Err(Failure::failed(format!("{endpoint}: {why}"))),
            Err(error @ HttpError::Keep(_)) => return Err(named(&error)),
            Err(error) => return Ok(Err(error.to_string())),
        }
        file.as_file().sync_all().map_err(|error| named(&error))?;
        let backup = check(file.path(), self.json).map_err(|error| named(&format!("it did not come whole: {error}")))?;
        let bytes = file.as_file().metadata()?.len();
        file.persist(&self.file).map_err(|error| named(&error.error))?;
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| named(&error))?;
        let meta = backup.meta();
        if self.json {
            output::json_line(&json!({
                "bytes": bytes, "index": meta.tail.last, "run": meta.tail.run, "term": meta.tail.term,
                "cluster": meta.identity.cluster.to_string(), "epoch": meta.identity.epoch, "state_hash": hex(&meta.state_hash),
            }))?;
        } else {
            output::line(format_args!(
                "{}: {bytes} bytes, everything up to index {} of cluster {}, epoch {}",
                self.file.display(),
                meta.tail.last,
                meta.identity.cluster,
                meta.identity.epoch
            ))?;
        }
        Ok(Ok(()))
    }
}

/// Reads a backup through and checks every hash in it.
pub(crate) fn check(path: &Path, json: bool) -> Result<SnapshotFile, cluster_server::disk::DiskError> {
    let backup = SnapshotFile::open(path)?;
    let bar: ProgressBar = progress::bytes("checking", Some(backup.check_bytes()), json);
    let checked = backup.check(&mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    checked.map(|()| backup)
}
