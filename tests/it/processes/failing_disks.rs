//! Stories of servers whose disks fail, are slow, full or read-only. What a machine cannot do, a story names: `SKIPPED: why`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_server::Phase;
use relay::wire::{ClientFrame, Code, FeedMode, ServerFrame, SessionSecret};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use voter_mesh::replica::ReplicaLimits;

use super::contents;
use super::fleet::{Fleet, FleetOptions, Load, exactly_once};
use crate::harness::{PATIENCE, eventually};
use crate::here::{raw, shutdown, started, url, voters};
use crate::peer::{Peer, hello};
use crate::small_disk::SmallDisk;

/// How long a process may live that cannot sync any more.
const END_MAX: Duration = Duration::from_secs(3);

/// Stands before the system's `fdatasync`: fails it, or delays it by so many milliseconds, while a file says so.
const SHIM: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int fd) {
    char path[4096];
    int ms = 0;
    snprintf(path, sizeof path, "%s.eio", getenv("QUORATE_TEST_DISK"));
    if (access(path, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    snprintf(path, sizeof path, "%s.slow", getenv("QUORATE_TEST_DISK"));
    FILE *slow = fopen(path, "r");
    if (slow) {
        if (fscanf(slow, "%d", &ms) == 1) usleep(ms * 1000);
        fclose(slow);
    }
    return syscall(SYS_fdatasync, fd);
}
"#;

/// Says aloud that a story was not told.
fn skipped(why: &str) {
    println!("SKIPPED: {why}");
}

/// The shim, compiled; or why not.
fn shim() -> Result<(TempDir, Vec<(String, String)>), String> {
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("shim.c"), directory.path().join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).output();
    let compiled = compiled.map_err(|error| format!("cc: {error}"))?;
    if !compiled.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&compiled.stderr)));
    }
    let text = |path: PathBuf| path.display().to_string();
    let environment =
        vec![("LD_PRELOAD".to_owned(), text(library)), ("QUORATE_TEST_DISK".to_owned(), text(directory.path().join("{seat}")))];
    Ok((directory, environment))
}

async fn fleet_with(environment: Vec<(String, String)>) -> Fleet {
    Fleet::start_with(FleetOptions { environment, ..FleetOptions::default() }).await
}

async fn all_exactly_once(fleet: &Fleet, load: Load) {
    let acks = load.finish().await;
    fleet.identical().await;
    for seat in 1..=3 {
        exactly_once(&acks, &fleet.history(seat).await);
    }
}

#[tokio::test]
async fn a_failed_sync_ends_the_process_at_once_with_a_last_line_that_says_what_and_where() {
    let (directory, environment) = match shim() {
        Ok(shim) => shim,
        Err(why) => return skipped(&why),
    };
    let mut fleet = fleet_with(environment).await;
    let load = Load::start(&fleet, 6).await;
    load.more(100).await;
    for victim in [fleet.leader().await, 1, 2] {
        let eio = directory.path().join(format!("{victim}.eio"));
        let before = Instant::now();
        std::fs::write(&eio, "").unwrap();
        let status = fleet.ended(victim).await;
        assert!(before.elapsed() < END_MAX, "{:?}", before.elapsed());
        assert_eq!(status.code(), Some(1));
        let text = std::fs::read_to_string(fleet.log(victim)).unwrap();
        let last = text.lines().last().unwrap();
        for word in ["sync", ".seg", "Input/output error (os error 5)", "start this server again"] {
            assert!(last.contains(word), "{last}");
        }
        load.more(100).await;
        // What is in the page cache and not on the disk is no excuse: it recovers, and is made whole by the others.
        std::fs::remove_file(&eio).unwrap();
        fleet.launch(victim).await;
        fleet.linked().await;
        load.more(100).await;
    }
    all_exactly_once(&fleet, load).await;
}

#[tokio::test]
async fn a_leader_with_a_slow_disk_hands_over_and_a_follower_with_one_slows_nobody() {
    let (directory, environment) = match shim() {
        Ok(shim) => shim,
        Err(why) => return skipped(&why),
    };
    let fleet = fleet_with(environment).await;
    let load = Load::start(&fleet, 6).await;
    load.more(100).await;
    let slow = fleet.leader().await;
    std::fs::write(directory.path().join(format!("{slow}.slow")), "1000").unwrap();
    eventually("another one leads", || async {
        let status = fleet.status(slow).await?;
        (status.phase == Phase::Following && status.counters.contains_key("hand_overs_slow_disk")).then_some(())
    })
    .await;
    // Six writers that waited a second for each command would need much longer than patience.
    load.more(12 * PATIENCE.as_secs()).await;
    assert_ne!(fleet.leader().await, slow);
    std::fs::remove_file(directory.path().join(format!("{slow}.slow"))).unwrap();
    all_exactly_once(&fleet, load).await;
}

/// Three servers, each with a small disk of its own.
struct Disks {
    // Before the disks: nobody may use them when they are unmounted.
    fleet: Fleet,
    disks: Vec<SmallDisk>,
    _names: TempDir,
}

async fn on_small_disks(bytes: u64) -> Result<Disks, String> {
    let names = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    for seat in 1..=3 {
        let disk = SmallDisk::in_memory(bytes)?;
        std::os::unix::fs::symlink(disk.path(), names.path().join(seat.to_string())).unwrap();
        disks.push(disk);
    }
    let arguments = ["--segment-bytes", "262144"].map(str::to_owned).to_vec();
    let data = Some(names.path().to_owned());
    let fleet = Fleet::start_with(FleetOptions { arguments, data, ..FleetOptions::default() }).await;
    Ok(Disks { fleet, disks, _names: names })
}

impl Disks {
    async fn until_full(&self, seat: usize, full: bool) {
        eventually("the disk is known to be full, or not to be", || async {
            (self.fleet.status(seat).await?.disk_full == full).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_full_disk_costs_leadership_and_waiting_and_everything_resumes_when_there_is_room() {
    let story = match on_small_disks(16 << 20).await {
        Ok(disks) => disks,
        Err(why) => return skipped(&why),
    };
    let (fleet, disks) = (&story.fleet, &story.disks);
    let load = Load::start_with(fleet, 6, 1_000).await;
    load.more(50).await;
    let first = fleet.leader().await;
    let ballast = disks[first - 1].fill_up_to(100_000);
    story.until_full(first, true).await;
    eventually("another one leads", || async {
        let status = fleet.status(first).await?;
        (status.phase == Phase::Following && status.counters.contains_key("hand_overs_disk_full")).then_some(())
    })
    .await;
    load.more(600).await;
    // It falls behind now, and has said what is wrong.
    assert!(std::fs::read_to_string(fleet.log(first)).unwrap().contains("No space left on device"));
    std::fs::remove_file(ballast).unwrap();
    story.until_full(first, false).await;
    // All of them: the cluster waits.
    let ballasts: Vec<PathBuf> = disks.iter().map(|disk| disk.fill_up_to(100_000)).collect();
    for seat in 1..=3 {
        story.until_full(seat, true).await;
    }
    let leads = fleet.leader().await;
    assert!(fleet.status(leads).await.unwrap().disk_full, "nobody else could");
    // A read needs no room. What does is kept for later while the leader tries to hand over, and else told to come again.
    let (mut peer, _) = Peer::admitted(&fleet.url(leads), hello(FeedMode::Thin)).await;
    let mut refused = false;
    for id in 0..100 {
        peer.say(ClientFrame::SessionOpen { secret: SessionSecret([id; 32]) }).await;
        peer.say(ClientFrame::ReadIndex { id: id.into() }).await;
        loop {
            match peer.hear().await.expect("the link stands") {
                ServerFrame::Read { id: answered, .. } if answered == u64::from(id) => break,
                ServerFrame::ProposeRefused { code: Code::Overloaded, retry_after_ms: Some(_), .. } => refused = true,
                other => panic!("{other:?}"),
            }
        }
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(refused);
    for ballast in ballasts {
        std::fs::remove_file(ballast).unwrap();
    }
    load.more(300).await;
    all_exactly_once(fleet, load).await;
}

#[tokio::test]
async fn a_server_on_a_read_only_file_system_says_so_changes_nothing_and_comes_back() {
    let mut story = match on_small_disks(16 << 20).await {
        Ok(disks) => disks,
        Err(why) => return skipped(&why),
    };
    let load = Load::start(&story.fleet, 6).await;
    load.more(50).await;
    let seat = story.fleet.leader().await;
    story.fleet.kill(seat).await;
    story.disks[seat - 1].set_read_only(true).unwrap();
    let before = contents(&story.disks[seat - 1].path());
    let status = story.fleet.refuses_to_launch(seat).await;
    assert_eq!(status.code(), Some(1));
    let text = std::fs::read_to_string(story.fleet.log(seat)).unwrap();
    assert!(text.lines().last().unwrap().contains("Read-only file system"), "{text}");
    assert!(contents(&story.disks[seat - 1].path()) == before);
    load.more(50).await;
    story.disks[seat - 1].set_read_only(false).unwrap();
    story.fleet.launch(seat).await;
    load.more(50).await;
    all_exactly_once(&story.fleet, load).await;
}

/// A process all of whose log writes fail, until this goes.
struct Failing {
    strace: Child,
}

impl Failing {
    fn attach(pid: u32, error: &str) -> Result<Self, String> {
        let (pid, inject) = (pid.to_string(), format!("inject=pwritev:error={error}"));
        let command = ["-f", "-q", "-p", &pid, "-e", "trace=pwritev", "-e", &inject, "-o", "/dev/null"];
        let mut strace = Command::new("strace");
        let mut strace = strace.args(command).stderr(Stdio::piped()).spawn().map_err(|error| format!("strace: {error}"))?;
        // One that may not attach ends at once.
        std::thread::sleep(Duration::from_millis(300));
        match strace.try_wait().unwrap() {
            Some(status) => Err(format!("strace: {status}")),
            None => Ok(Self { strace }),
        }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // Not SIGKILL: it must let go of its threads first.
        let _ = kill_process(Pid::from_raw(self.strace.id() as i32).unwrap(), Signal::TERM);
        let _ = self.strace.wait();
    }
}

#[tokio::test]
async fn a_running_server_whose_file_system_turns_read_only_waits_and_goes_on_when_it_may_write_again() {
    let fleet = Fleet::start("log").await;
    let load = Load::start(&fleet, 6).await;
    load.more(50).await;
    let leader = fleet.leader().await;
    let failing = match Failing::attach(fleet.process(leader).child.id().unwrap(), "EROFS") {
        Ok(failing) => failing,
        Err(why) => return skipped(&why),
    };
    eventually("another one leads", || async {
        let status = fleet.status(leader).await?;
        (status.disk_full && status.phase != Phase::Leading).then_some(())
    })
    .await;
    load.more(200).await;
    drop(failing);
    eventually("it may write again", || async { (!fleet.status(leader).await?.disk_full).then_some(()) }).await;
    let text = std::fs::read_to_string(fleet.log(leader)).unwrap();
    assert!(text.contains("Read-only file system") && text.contains("there is room for the log again"), "{text}");
    all_exactly_once(&fleet, load).await;
}

#[tokio::test]
async fn a_snapshot_that_found_no_place_is_written_again_before_the_next_one_is_due() {
    let directory = tempfile::tempdir().unwrap();
    let due = ReplicaLimits { snapshot_entries: 40, ..ReplicaLimits::default() };
    let cluster = started(voters(1, directory.path()).replica_limits(due)).await;
    let seat = cluster.seats()[0];
    let snapshots = directory.path().join("voter-1").join("snapshots");
    let away = snapshots.with_extension("away");
    let count = || {
        let names = contents(&snapshots).into_keys().filter(|path| path.extension().is_some_and(|extension| extension == "snap"));
        names.count()
    };
    assert_eq!(count(), 1);
    std::fs::rename(&snapshots, &away).unwrap();
    let client = raw(&[url(&cluster, seat)]).await;
    for number in 0..50 {
        client.propose(&number.to_string().into()).await.unwrap();
    }
    eventually("a snapshot fails", || async {
        cluster.status(seat).await.unwrap().counters.contains_key("snapshots_failed").then_some(())
    })
    .await;
    std::fs::rename(&away, &snapshots).unwrap();
    eventually("another one is written", || async { (count() == 2).then_some(()) }).await;
    shutdown(cluster).await;
}
