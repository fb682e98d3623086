//! Real power cuts: servers under load on a file system of their own, whose power goes; then everything that was acknowledged must be
//! there, once.
//!
//! `cargo run -p tests --bin power-cut -- [--fs ext4|xfs|all] [--cycles N | --seconds N] [--json]`
//!
//! One cycle: clients write through three server processes and note every acknowledgement; the file system is shut down under them
//! without a flush (`FS_IOC_SHUTDOWN`), the processes are killed, it is mounted again, they start from what is there and go on. Every
//! few cycles, and at the end, the whole history of each server is held against the notes. The same with a lone voter, which must never
//! refuse to start. It needs root, loop devices and the file system's tools; what it lacks, it names: `SKIPPED: why`.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

// Shared with the stories, which use more of them.
#[allow(dead_code)]
#[path = "../it/processes/fleet.rs"]
mod fleet;
#[allow(dead_code)]
#[path = "../it/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../it/small_disk.rs"]
mod small_disk;

use fleet::{Ack, Fleet, FleetOptions, Load, exactly_once};
use small_disk::SmallDisk;

/// Room for the logs and snapshots of three servers.
const DISK_BYTES: u64 = 1 << 30;

/// Small, so that the cuts also fall between two files of the log.
const SEGMENT_BYTES: &str = "262144";

/// Acknowledgements before each cut.
const ACKS_PER_CYCLE: u64 = 60;

/// Cycles after which the histories are compared.
const CYCLES_PER_CHECK: u64 = 10;

const USAGE: &str = "usage: power-cut [--fs ext4|xfs|all] [--cycles N | --seconds N] [--json]";

struct Options {
    kinds: Vec<String>,
    cycles: u64,
    /// For each kind and each number of voters.
    time: Option<Duration>,
    json: bool,
}

fn options() -> Option<Options> {
    let mut options = Options { kinds: vec!["ext4".into(), "xfs".into()], cycles: 100, time: None, json: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => options.json = true,
            "--fs" => match arguments.next()?.as_str() {
                "all" => {}
                kind @ ("ext4" | "xfs") => options.kinds = vec![kind.to_owned()],
                _ => return None,
            },
            "--cycles" => options.cycles = arguments.next()?.parse().ok()?,
            "--seconds" => {
                (options.cycles, options.time) = (u64::MAX, Some(Duration::from_secs(arguments.next()?.parse().ok()?)));
            }
            _ => return None,
        }
    }
    Some(options)
}

/// What a round of cuts has shown.
struct Round {
    cycles: u64,
    acknowledged: usize,
    /// Starts at which a server found that the cut had left its last batch incomplete.
    doubtful: usize,
    slowest_start: Duration,
}

async fn round(disk: &SmallDisk, voters: usize, options: &Options) -> Result<Round, String> {
    let arguments = vec!["--segment-bytes".to_owned(), SEGMENT_BYTES.to_owned()];
    let mut fleet =
        Fleet::start_with(FleetOptions { seats: voters, arguments, data: Some(disk.path()), ..FleetOptions::default() }).await;
    let (begin, mut acks) = (Instant::now(), Vec::<Ack>::new());
    let mut round = Round { cycles: 0, acknowledged: 0, doubtful: 0, slowest_start: Duration::ZERO };
    let may_go_on = |cycles| cycles < options.cycles && options.time.is_none_or(|time| begin.elapsed() < time);
    while may_go_on(round.cycles) {
        let load = Load::start(&fleet, 6).await;
        while may_go_on(round.cycles) {
            load.more(ACKS_PER_CYCLE).await;
            disk.cut()?;
            for seat in 1..=voters {
                fleet.kill(seat).await;
            }
            disk.power_on()?;
            let started = Instant::now();
            for seat in 1..=voters {
                fleet.launch(seat).await;
            }
            fleet.leader().await;
            round.slowest_start = round.slowest_start.max(started.elapsed());
            round.cycles += 1;
            if round.cycles.is_multiple_of(CYCLES_PER_CHECK) {
                break;
            }
        }
        acks.extend(load.finish().await);
        fleet.identical().await;
        for seat in 1..=voters {
            exactly_once(&acks, &fleet.history(seat).await);
        }
    }
    round.acknowledged = acks.len();
    for seat in 1..=voters {
        round.doubtful += doubts(&fleet.log(seat));
        fleet.terminate(seat).await;
    }
    Ok(round)
}

/// How often a server's log says that the end of what it had written was missing.
fn doubts(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().filter(|line| line.contains("lost its end") || line.contains("last batch was incomplete")).count()
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    tokio::select! {
        code = run(&options) => code,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> ExitCode {
    for kind in &options.kinds {
        let probe = SmallDisk::on_a_loop_file(kind, DISK_BYTES).and_then(|disk| disk.cut().and_then(|()| disk.power_on()));
        if let Err(why) = probe {
            say(options, kind, 0, Err(why));
            continue;
        }
        for voters in [3, 1] {
            let result = match SmallDisk::on_a_loop_file(kind, DISK_BYTES) {
                Ok(disk) => round(&disk, voters, options).await,
                Err(why) => Err(why),
            };
            if let Err(why) = &result {
                eprintln!("FAILED: {kind}, {voters} voters: {why}");
                return ExitCode::FAILURE;
            }
            say(options, kind, voters, result);
        }
    }
    ExitCode::SUCCESS
}

fn say(options: &Options, kind: &str, voters: usize, result: Result<Round, String>) {
    match result {
        Err(why) if options.json => println!("{}", json!({ "fs": kind, "skipped": why })),
        Err(why) => println!("SKIPPED: power cuts on {kind}: {why}"),
        Ok(Round { cycles, acknowledged, doubtful, slowest_start }) if options.json => println!(
            "{}",
            json!({ "fs": kind, "voters": voters, "cycles": cycles, "acknowledged": acknowledged, "lost": 0, "doubled": 0,
                "doubtful": doubtful, "slowest_start_ms": slowest_start.as_millis() as u64 })
        ),
        Ok(Round { cycles, acknowledged, doubtful, slowest_start }) => println!(
            "{kind}, {voters} voters: {cycles} power cuts, {acknowledged} acknowledged commands, none lost, none doubled; \
             {doubtful} incomplete last batches; slowest start {slowest_start:?}"
        ),
    }
}
