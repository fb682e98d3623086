//! What an idle client costs its server: attaches learners to a running server and prints how much its resident memory grew.
//!
//! `cargo run --release -p tests --example idle_clients -- ENDPOINT SERVER_PID [CLIENTS]`
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cluster_client::ClusterClient;

fn resident_kib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (endpoint, pid) = (&arguments[0], &arguments[1]);
    let count: u64 = arguments.get(2).map_or(1_000, |count| count.parse().unwrap());
    let before = resident_kib(pid);
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(ClusterClient::builder().endpoints([endpoint.as_str()]).raw().connect().await.unwrap());
    }
    // Long enough for the server to settle: handshakes are over, buffers that can shrink have shrunk.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = resident_kib(pid);
    println!(
        "{count} idle clients: {before} KiB before, {after} KiB after, {:.1} KiB each",
        (after - before) as f64 / count as f64
    );
}
