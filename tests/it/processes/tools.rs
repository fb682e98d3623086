//! `quorate verify` and `quorate recover`, on the directories of servers that were killed.

use std::path::{Path, PathBuf};

use cluster_client::{ClusterClient, LogIndex, Raw, Status};
use futures_util::StreamExt;
use rustix::process::Signal;
use tokio::time::timeout;
use voter_mesh::ids::Epoch;

use super::command_line::run;
use super::contents;
use super::fleet::{Fleet, Process};
use crate::harness::PATIENCE;

/// A lone voter's process; its data is below `root`.
async fn lone(root: &Path) -> Process {
    let log = std::fs::File::options().create(true).append(true).open(root.join("log")).unwrap();
    let data = root.join("data").display().to_string();
    let arguments = ["serve", "--voters", "1", "--state", "log", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    match Process::serve(&arguments, root, log).await {
        Ok(process) => process,
        Err(status) => panic!("{status}: {}", std::fs::read_to_string(root.join("log")).unwrap()),
    }
}

async fn client(server: &Process) -> ClusterClient<Raw> {
    let url = server.ready["urls"][0].as_str().unwrap();
    ClusterClient::builder().endpoints([url]).deadline(PATIENCE).raw().connect().await.unwrap()
}

async fn kill(mut server: Process) {
    server.signal(Signal::KILL);
    server.child.wait().await.unwrap();
}

/// The first file below `directory` with this ending that holds `text`, and where.
fn find(directory: &Path, ending: &str, text: &[u8]) -> (PathBuf, usize) {
    let mut files = contents(directory).into_iter().filter(|(path, _)| path.to_string_lossy().ends_with(ending));
    let place = |bytes: &[u8]| bytes.windows(text.len()).position(|window| window == text);
    files.find_map(|(path, (_, bytes))| Some((path, place(&bytes)?))).expect("the text stands somewhere")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn what_a_lone_voter_lost_is_found_and_named_and_given_up_only_when_that_is_accepted() {
    let root = tempfile::tempdir().unwrap();
    let server = lone(root.path()).await;
    let writer = client(&server).await;
    let mut indices = Vec::new();
    for number in 0..20 {
        indices.push(writer.propose(&format!("command {number:02}").into()).await.unwrap().index);
    }
    let data = root.path().join("data").display().to_string();
    let busy = run(&["verify", &data, "--json"]).await;
    assert!(busy.code == 2 && busy.stderr.contains("in use"), "{busy:?}");
    kill(server).await;
    drop(writer);

    let before = contents(root.path());
    let whole = run(&["verify", &data, "--json"]).await.json();
    let mut keys: Vec<&str> = whole.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["errors", "first_index", "last_index", "ok", "records", "snapshots", "suspect", "term"]);
    assert_eq!((&whole["ok"], &whole["suspect"], &whole["first_index"]), (&true.into(), &false.into(), &1.into()), "{whole}");
    assert!(whole["last_index"].as_u64().unwrap() >= indices[19].0 && whole["records"].as_u64().unwrap() >= 20, "{whole}");
    assert!(whole["snapshots"] == 1 && whole["term"].as_u64().unwrap() >= 1 && whole["errors"] == serde_json::json!([]), "{whole}");

    let (segment, at) = find(root.path(), ".seg", b"command 07");
    flip(&segment, at);
    let damaged = contents(root.path());
    let verified = run(&["verify", &data, "--json"]).await;
    assert_eq!(verified.code, 1);
    let told: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((&told["ok"], &told["suspect"]), (&false.into(), &true.into()), "{told}");
    let errors = told["errors"].to_string();
    assert!(errors.contains(&*segment.to_string_lossy()) && errors.contains("at byte") && errors.contains("run"), "{errors}");

    let directory = root.path().join("data/voter-1").display().to_string();
    let explained = run(&["recover", &directory]).await;
    assert!(explained.code == 1 && explained.stdout.contains("lost: runs"), "{explained:?}");
    assert!(contents(root.path()) == damaged, "looking changes nothing");
    let data_dir = ["serve", "--voters", "1", "--state", "log", "--listen", "127.0.0.1:0", "--data-dir", &data];
    let refused = run(&data_dir).await;
    assert!(refused.code == 1 && refused.stderr.contains("--accept-loss"), "{refused:?}");

    let accepted = run(&["recover", &directory, "--accept-loss", "--json"]).await.json();
    assert_eq!(accepted["last_index"], indices[6].0, "{accepted}");
    let aside = PathBuf::from(accepted["aside"][0].as_str().unwrap());
    assert_eq!(std::fs::read(&aside).unwrap(), damaged[&segment].1, "left beside as it was");
    assert_eq!(run(&["recover", &directory, "--json"]).await.json()["losses"], serde_json::json!([]));
    let server = lone(root.path()).await;
    let reader = client(&server).await;
    let next = reader.propose(&"after the loss".into()).await.unwrap().index;
    let mut stream = reader.committed_from(LogIndex::FIRST);
    for expected in (0..7).map(|number| format!("command {number:02}")).chain(["after the loss".into()]) {
        let entry = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(entry.payload, expected);
    }
    kill(server).await;
    let whole = run(&["verify", &data, "--json"]).await.json();
    assert!(whole["ok"] == true && whole["last_index"].as_u64().unwrap() >= next.0, "{whole}");
    assert!(before != contents(root.path()) && aside.exists());
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_is_named_and_what_is_no_data_directory_is_not_mistaken_for_one() {
    let root = tempfile::tempdir().unwrap();
    let server = lone(root.path()).await;
    client(&server).await.propose(&"something".into()).await.unwrap();
    kill(server).await;
    let directory = root.path().join("data/voter-1").display().to_string();
    let (snapshot, at) = find(root.path(), ".snap", b"QUOREND\n");
    flip(&snapshot, at);
    let verified = run(&["verify", &directory, "--json"]).await;
    let told: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((verified.code, &told["ok"], &told["snapshots"]), (1, &false.into(), &0.into()), "{told}");
    assert!(told["errors"].to_string().contains(&*snapshot.to_string_lossy()), "{told}");

    let node = Path::new(&directory).join("node");
    flip(&node, 30);
    for command in ["verify", "recover"] {
        let ended = run(&[command, &directory]).await;
        assert!(ended.code == 1 && format!("{ended:?}").contains("node"), "{ended:?}");
    }
    let nowhere = root.path().join("nowhere").display().to_string();
    for command in ["verify", "recover"] {
        assert_eq!(run(&[command, &nowhere]).await.code, 2, "{command}");
    }
    assert!(!Path::new(&nowhere).exists());
}

#[tokio::test]
async fn the_last_survivor_goes_on_alone_in_the_next_epoch_with_all_that_it_has() {
    let mut fleet = Fleet::start("log").await;
    let client = ClusterClient::builder().endpoints(fleet.urls()).deadline(PATIENCE).raw().connect().await.unwrap();
    let index = client.propose(&"kept".into()).await.unwrap().index;
    fleet.identical().await;
    let state = fleet.status(2).await.unwrap().state_hash;
    for seat in 1..=3 {
        fleet.kill(seat).await;
    }
    fleet.wipe(1);
    fleet.wipe(3);
    let (survivor, new) = (fleet.data_dir(2), fleet.root.path().join("new"));
    let before = contents(&survivor);
    let alone =
        run(&["recover", &survivor.display().to_string(), "--sole-voter", &new.display().to_string(), "--json"]).await.json();
    assert_eq!((&alone["epoch"], &alone["id"]), (&2.into(), &"2.2".into()), "{alone}");
    assert!(contents(&survivor) == before, "the survivor is read and not changed");
    std::fs::rename(&survivor, fleet.root.path().join("old")).unwrap();
    std::fs::rename(&new, &survivor).unwrap();
    fleet.launch(2).await;
    let mut status = client.status();
    let live = status.wait_for(|status| matches!(status, Status::Live { epoch: Epoch(2), .. }));
    drop(timeout(PATIENCE, live).await.expect("live in the new epoch").unwrap());
    assert_eq!(fleet.status(2).await.unwrap().state_hash, state, "the state is the one that all had");
    assert!(client.propose(&"alone".into()).await.unwrap().index > index);
}
