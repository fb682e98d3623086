//! What the stories share: clusters in this process, clusters of real processes, clients, and ways to wait for a fact.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// How long any story waits for anything before it fails. Generous: it only bounds a hang, it never decides a race.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `fact` gives something, looking again every few milliseconds; panics with `what` after [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut fact: impl FnMut() -> F) -> T {
    let look = async {
        loop {
            if let Some(found) = fact().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// The `quorate` binary of this very build profile, built once.
pub fn quorate() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // target/PROFILE/deps/it-HASH, or target/PROFILE/power-cut
        let own = std::env::current_exe().unwrap();
        let directory = own.parent().unwrap();
        let profile_dir = if directory.ends_with("deps") { directory.parent().unwrap() } else { directory }.to_path_buf();
        let mut build = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--locked", "-p", "cluster-server", "--bin", "quorate", "--target-dir"]);
        build.arg(profile_dir.parent().unwrap());
        if profile_dir.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the binary does not build");
        profile_dir.join("quorate")
    })
}
