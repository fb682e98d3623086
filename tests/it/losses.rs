//! Directories that have lost more than runs: what `recover` says of them, and what a server does.

use std::path::{Path, PathBuf};

use cluster_server::cluster::voter_dir;
use cluster_server::tools::{self, RecoverError};
use tokio::time::timeout;
use voter_mesh::ids::{LogIndex, Seat};
use voter_mesh::replica::ReplicaLimits;

use crate::harness::{PATIENCE, eventually};
use crate::here::{client_of, shutdown, started, voters};

/// A directory of `count` voters that have a snapshot and something behind it; that of the first one.
async fn grown(count: u16, data: &Path) -> PathBuf {
    let limits = ReplicaLimits { snapshot_entries: 10, ..ReplicaLimits::default() };
    let cluster = started(voters(count, data).replica_limits(limits)).await;
    let client = client_of(&cluster.urls()).raw().connect().await.unwrap();
    for number in 0..16 {
        client.propose(&format!("command {number}").into()).await.unwrap();
    }
    let first = voter_dir(data, Seat(1));
    // Besides the one that forming wrote.
    eventually("a snapshot", || async { (files(&first, "snapshots", "snap").len() > 1).then_some(()) }).await;
    shutdown(cluster).await;
    first
}

fn files(directory: &Path, below: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join(below)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect()
}

#[tokio::test]
async fn a_lone_voter_without_its_log_does_not_start_as_if_it_had_never_had_one() {
    let directory = tempfile::tempdir().unwrap();
    let first = grown(1, directory.path()).await;
    for segment in files(&first, "log", "seg") {
        std::fs::remove_file(segment).unwrap();
    }
    // It may end before it is said to have started.
    let why = match voters(1, directory.path()).start().await {
        Ok(cluster) => timeout(PATIENCE, cluster.stopped()).await.unwrap().1,
        Err(error) => error.to_string(),
    };
    assert!(why.contains("holds no log"), "{why}");
    let told = eventually("the directory free", || async { tools::recover(&first, false).ok() }).await;
    assert!(told.losses.len() == 1 && told.losses[0].contains("holds no log") && !told.has_peers, "{told:?}");
    assert!(told.last_index >= LogIndex(10), "up to its snapshot");
    assert_eq!(tools::recover(&first, true).unwrap().losses, told.losses);
    assert!(tools::recover(&first, false).unwrap().losses.is_empty());
    let cluster = started(voters(1, directory.path())).await;
    let client = client_of(&cluster.urls()).raw().connect().await.unwrap();
    assert!(client.propose(&"after".into()).await.unwrap().index > told.last_index);
    shutdown(cluster).await;
}

#[tokio::test]
async fn a_server_that_lost_its_log_before_its_first_snapshot_does_not_vote_as_if_it_were_new() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = started(voters(1, directory.path())).await;
    let client = client_of(&cluster.urls()).raw().connect().await.unwrap();
    client.propose(&"acknowledged".into()).await.unwrap();
    client.close().await;
    shutdown(cluster).await;
    for segment in files(&voter_dir(directory.path(), Seat(1)), "log", "seg") {
        std::fs::remove_file(segment).unwrap();
    }
    let why = match voters(1, directory.path()).start().await {
        Ok(cluster) => timeout(PATIENCE, cluster.stopped()).await.unwrap().1,
        Err(error) => error.to_string(),
    };
    assert!(why.contains("holds no log"), "{why}");
}

#[tokio::test]
async fn a_segment_that_cannot_be_believed_is_set_aside_by_a_lone_voter_and_refused_to_a_voter_among_others() {
    for count in [1, 3] {
        let directory = tempfile::tempdir().unwrap();
        let first = grown(count, directory.path()).await;
        let segment = files(&first, "log", "seg").pop().unwrap();
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&segment, &bytes).unwrap();
        let told = tools::recover(&first, false);
        if count == 3 {
            assert!(matches!(&told, Err(RecoverError::Voter { why }) if why.contains("seg")), "{told:?}");
            assert!(tools::recover(&first, true).is_err() && segment.exists());
            continue;
        }
        assert!(told.unwrap().losses.iter().any(|loss| loss.contains("damaged")) && segment.exists());
        let accepted = tools::recover(&first, true).unwrap();
        assert_eq!(std::fs::read(&accepted.aside[0]).unwrap(), bytes, "left beside");
        let cluster = started(voters(1, directory.path())).await;
        assert!(cluster.status(Seat(1)).await.unwrap().applied >= accepted.last_index);
        shutdown(cluster).await;
    }
}
