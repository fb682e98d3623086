//! The binary as a shell sees it: what it prints and how it ends.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::fleet::{Fleet, Process, free_ports};
use crate::harness::{PATIENCE, eventually, quorate};

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// What it printed last, if it did not fail.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(self.stdout.lines().last().unwrap()).unwrap()
    }
}

/// Runs a command to its end.
pub(crate) async fn run(arguments: &[&str]) -> Ended {
    let mut command = Command::new(quorate());
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE * 4, output).await.expect("the command ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A command that is spoken with.
pub(crate) struct Interactive {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Interactive {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(quorate());
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    pub(crate) async fn say(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next line, which is JSON.
    pub(crate) async fn hear(&mut self) -> Value {
        let mut line = String::new();
        timeout(PATIENCE, self.stdout.read_line(&mut line)).await.expect("it answers").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Closes its stdin; how it ended.
    pub(crate) async fn finish(mut self) -> i32 {
        drop(self.stdin);
        timeout(PATIENCE, self.child.wait()).await.expect("it ends with its input").unwrap().code().unwrap()
    }
}

#[tokio::test]
async fn the_demo_survives_its_faults_and_says_so_in_one_object() {
    let demo = run(&["demo", "--faults", "failover", "--json"]).await;
    let report = demo.json();
    let fields = [
        "acknowledged",
        "applied",
        "clients",
        "duplicated",
        "elapsed_s",
        "failover_max_ms",
        "failover_p50_ms",
        "failovers",
        "leader_changes",
        "lost",
        "proposed",
        "replicas_identical",
        "servers",
    ];
    let found: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, fields);
    let expected = [("servers", 3), ("clients", 20), ("proposed", 2_000), ("acknowledged", 2_000), ("lost", 0), ("duplicated", 0)];
    for (field, value) in expected {
        assert_eq!(report[field], value, "{field}: {report}\n{}", demo.stderr);
    }
    assert_eq!(report["replicas_identical"], true);
    assert!(report["failovers"].as_u64().unwrap() >= 2 && report["leader_changes"].as_u64().unwrap() >= 1, "{report}");
    println!("demo: {report}");
}

#[tokio::test]
async fn exit_codes_tell_a_script_what_happened() {
    let [nobody] = free_ports(1)[..] else { unreachable!() };
    let nobody = format!("ws://127.0.0.1:{nobody}");
    let code = async |arguments: &[&str], expected: i32| {
        let ended = run(arguments).await;
        assert_eq!(ended.code, expected, "{arguments:?}: {ended:?}");
    };
    code(&["--help"], 0).await;
    code(&["serve", "--node", "1"], 2).await;
    code(&["kv", "cas", "key", "value"], 2).await;
    let directory = tempfile::tempdir().unwrap();
    code(&["serve", "--listen", "0.0.0.0:0", "--data-dir", &directory.path().display().to_string()], 1).await;
    code(&["status", "--endpoint", &nobody], 3).await;
    code(&["kv", "put", "--endpoint", &nobody, "--deadline", "0.3", "key", "value"], 3).await;

    let fleet = Fleet::start("kv").await;
    let entry = fleet.url(1);
    let at = ["--endpoint", &entry, "--deadline"];
    code(&[&["kv", "get", "key"], &at[..], &["10"]].concat(), 1).await;
    code(&[&["kv", "put", "key", "value"], &at[..], &["10"]].concat(), 0).await;
    code(&[&["kv", "cas", "key", "new", "--absent"], &at[..], &["10"]].concat(), 1).await;
    code(&[&["kv", "cas", "key", "new", "--value", "value"], &at[..], &["10"]].concat(), 0).await;
    let got = run(&[&["kv", "get", "key"], &at[..], &["10"]].concat()).await;
    assert_eq!((got.code, got.stdout.as_str()), (0, "new\n"));
    // Bytes that are no command of `kv` are judged, and told.
    code(&[&["propose", "nonsense"], &at[..], &["10"]].concat(), 1).await;

    fleet.freeze(2);
    fleet.freeze(3);
    // No session can be opened without a quorum: certainly nothing happened.
    code(&[&["kv", "put", "key", "lost"], &at[..], &["0.5"]].concat(), 3).await;
    fleet.thaw(2);
    fleet.thaw(3);
}

#[tokio::test]
async fn a_command_that_may_or_may_not_have_happened_has_an_exit_code_of_its_own() {
    let fleet = Fleet::start("log").await;
    let entry = fleet.url(1);
    let mut writer = Interactive::start(&["propose", "-", "--json", "--endpoint", &entry, "--deadline", "1"]);
    writer.say("first").await;
    assert!(writer.hear().await["index"].is_u64());
    fleet.freeze(2);
    fleet.freeze(3);
    // The session is open: without a quorum nobody knows what becomes of the next one.
    writer.say("second").await;
    assert_eq!(writer.hear().await["code"], 4);
    assert_eq!(writer.finish().await, 4);
    fleet.thaw(2);
    fleet.thaw(3);
}

#[tokio::test]
async fn serve_without_arguments_serves_keys_and_values() {
    let directory = tempfile::tempdir().unwrap();
    // The one port that is not free to choose: somebody else's server may be there for a while.
    let mut server = eventually("port 7400 is free", || async {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        Process::serve(&["serve".to_owned()], directory.path(), log).await.ok()
    })
    .await;
    assert_eq!(server.ready["urls"], serde_json::json!(["ws://127.0.0.1:7400/rooms/main"]));
    assert_eq!(run(&["kv", "put", "greeting", "hello"]).await.code, 0);
    let got = run(&["kv", "get", "greeting"]).await;
    assert_eq!((got.code, got.stdout.as_str()), (0, "hello\n"));
    let status = run(&["status", "--json"]).await.json();
    assert_eq!(status["state_machine"], "kv");
    assert!(directory.path().join("quorate-data").is_dir());
    server.signal(Signal::TERM);
    let ended = timeout(PATIENCE, server.child.wait()).await.expect("SIGTERM ends it").unwrap();
    assert_eq!(ended.code(), Some(0));
}
