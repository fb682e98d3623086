//! `quorate bench`: every workload measures something, finds nothing missing, and leaves nothing behind.

use super::command_line::run;

/// Runs a workload where its directories can be looked for, and gives a figure of its report.
async fn figure(workload: &[&str], figure: &str) -> f64 {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().to_str().unwrap();
    let report = run(&[&["bench"], workload, &["--json", "--dir", dir]].concat()).await.json();
    assert_eq!(report["workload"], workload[0]);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "{workload:?} left something behind");
    report[figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {report}"))
}

#[tokio::test]
async fn writes_and_reads_are_measured_wherever_they_enter() {
    for workload in ["commit", "forward", "mixed"] {
        let operations = figure(&[workload, "--seconds", "0.3", "--connections", "3", "--outstanding", "6"], "operations").await;
        assert!(operations > 0.0, "{workload}");
    }
}

#[tokio::test]
async fn every_watcher_gets_every_command_whatever_the_writers_wait_for() {
    for rate in ["50", "gated", "free"] {
        let workload = ["fanout", "--watchers", "7", "--seconds", "0.2", "--rate", rate, "--deliveries-max", "700"];
        let deliveries = figure(&workload, "deliveries").await;
        assert!(deliveries > 0.0 && deliveries % 7.0 == 0.0 && deliveries <= 700.0, "{rate}: {deliveries}");
    }
}

#[tokio::test]
async fn idle_servers_and_new_clients_are_measured() {
    assert!(figure(&["idle", "--watchers", "7", "--seconds", "0.2"], "server_memory_mib").await > 0.0);
    assert!(figure(&["catchup", "--entries", "500", "--trials", "1"], "state_us").await > 0.0);
}

#[tokio::test]
async fn killed_servers_come_back_and_nothing_is_lost() {
    assert_eq!(figure(&["failover", "--trials", "1"], "lost").await, 0.0);
    for servers in ["1", "3"] {
        let workload = ["recovery", "--entries", "500", "--trials", "1", "--servers", servers];
        assert!(figure(&workload, "write_us").await > 0.0);
    }
}
