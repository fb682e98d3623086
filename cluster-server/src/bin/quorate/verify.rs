//! `quorate verify`: what is right and wrong in a data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use cluster_server::disk::DiskError;
use cluster_server::tools::{self, Verified};
use serde_json::json;

use crate::output::{self, Code, Failure};
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  quorate verify ./voter-1
  quorate verify ./quorate-data --json      all voters of 'quorate serve' without --node

It reads everything and changes nothing, and refuses while a server uses the directory.
Exits with 0 if all is well, 1 if something is damaged or missing, 2 if the directory cannot be read.";

/// How often the bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Check a data directory: log, marks, snapshots
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Verify {
    /// The data directory
    directory: PathBuf,
    /// Print the last line as a JSON object
    #[arg(long)]
    json: bool,
}

/// The directories of the servers in a data directory: itself, or those of all voters in one process.
pub(crate) fn servers(directory: &Path) -> Vec<PathBuf> {
    let is_server = |path: &Path| path.join("node").exists() || path.join("log").exists();
    if is_server(directory) {
        return vec![directory.into()];
    }
    let below = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("voter-"));
    let mut voters: Vec<PathBuf> = below.filter(|path| named(path) && is_server(path)).collect();
    voters.sort();
    if voters.is_empty() { vec![directory.into()] } else { voters }
}

impl Verify {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut all: Option<Verified> = None;
        for directory in servers(&self.directory) {
            let found = look(&directory, self.json).await.map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
            if !self.json {
                tell(&directory, &found)?;
            }
            all = Some(match all {
                None => found,
                Some(all) => together(all, found),
            });
        }
        let all = all.unwrap_or_default();
        if self.json {
            output::json_line(&json!({
                "ok": all.ok(), "records": all.records, "first_index": all.first_index, "last_index": all.last_index,
                "term": all.term, "snapshots": all.snapshots, "suspect": all.suspect, "errors": all.errors,
            }))?;
        }
        // What is wrong is said already.
        if all.ok() { Ok(()) } else { Err(Failure::failed("")) }
    }
}

async fn look(directory: &Path, json: bool) -> Result<Verified, DiskError> {
    let bar = progress::bytes("checking", Some(tools::verify_bytes(directory)), json);
    let read = Arc::new(AtomicU64::new(0));
    let mut checking = tokio::task::spawn_blocking({
        let (directory, read) = (directory.to_path_buf(), Arc::clone(&read));
        move || tools::verify(&directory, &read)
    });
    let checked = loop {
        match tokio::time::timeout(LOOK_EVERY, &mut checking).await {
            Ok(checked) => break checked,
            Err(_) => bar.set_position(read.load(Ordering::Relaxed)),
        }
    };
    bar.finish_and_clear();
    checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn tell(directory: &Path, found: &Verified) -> Result<(), Failure> {
    output::line(format_args!(
        "{}: {} records, entries {} to {}, term {}, {} snapshots: {}",
        directory.display(),
        found.records,
        found.first_index,
        found.last_index,
        found.term,
        found.snapshots,
        if found.ok() { "ok" } else { "NOT ok" }
    ))?;
    found.errors.iter().try_for_each(|error| output::line(format_args!("  {error}")))?;
    found.notes.iter().try_for_each(|note| output::line(format_args!("  note: {note}")))
}

fn together(all: Verified, one: Verified) -> Verified {
    Verified {
        records: all.records + one.records,
        first_index: all.first_index.min(one.first_index),
        last_index: all.last_index.max(one.last_index),
        term: all.term.max(one.term),
        snapshots: all.snapshots + one.snapshots,
        suspect: all.suspect || one.suspect,
        errors: [all.errors, one.errors].concat(),
        notes: [all.notes, one.notes].concat(),
    }
}
