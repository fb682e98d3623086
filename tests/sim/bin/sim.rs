//! Runs whole clusters, each in a world that one seed decides.

use std::process::ExitCode;

use clap::Parser;
use tests::sim::run::{Keep, run};
use tests::sim::scenario::Scenario;

/// Whole clusters in simulated worlds; ends with 1 if one of them broke a promise.
#[derive(Parser)]
struct Options {
    /// One seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the hash of its trace: the same in every process.
    #[arg(long)]
    trace_hash: bool,
    /// Print its events.
    #[arg(long)]
    replay: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let keep = if options.replay { Keep::Log } else { Keep::Hash };
    let outcome = run(Scenario::of_seed(options.seed.unwrap_or(1)), keep);
    print!("{}", outcome.log);
    for v in &outcome.report.violations {
        println!("{v}");
    }
    println!("{:016x} {:?}", outcome.hash, outcome.simulated);
    ExitCode::from(u8::from(outcome.is_bad()))
}
