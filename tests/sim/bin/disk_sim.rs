//! Tries random scripts on the simulated disk, and cuts the power at each of their operations in every way.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::sim::power_cuts::{Bounds, Report, explore};
use tests::sim::random::Random;
use tests::sim::script::Script;

/// Steps of one script.
const STEPS: usize = 12;

/// Scripts of a server's disk, cut off at every operation; ends with 1 if a start ever found too little.
#[derive(Parser)]
struct Options {
    /// How long to try, at least.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many crash states to try, at least.
    #[arg(long, default_value_t = 0)]
    states: u64,
    /// The first script's seed; the next ones count up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Say the result as JSON alone.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (scripts, total) = (AtomicU64::new(0), Mutex::new(Report::default()));
    let total_of = |change: &mut dyn FnMut(&mut Report)| change(&mut total.lock().expect("no thread panics with it"));
    let tried = || {
        let mut states = 0;
        total_of(&mut |total| states = total.crash_states);
        states
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while Instant::now() < end || tried() < options.states {
                    let seed = options.seed + scripts.fetch_add(1, Ordering::Relaxed);
                    let mut random = Random::new(seed);
                    let report = explore(&Script::random(&mut random, STEPS), Bounds::default(), &mut random);
                    for violation in report.violations.iter().filter(|_| !options.json) {
                        println!("seed {seed}: {violation}");
                    }
                    total_of(&mut |total| total.add(report.clone()));
                }
            });
        }
    });
    let total = total.into_inner().expect("no thread panics with it");
    let result = serde_json::json!({
        "crash_states": total.crash_states,
        "scripts": scripts.into_inner(),
        "kills": total.kills,
        "doubtful": total.doubtful,
        "sampled": total.sampled,
        "violations": total.violations.len(),
    });
    println!("{result}");
    ExitCode::from(u8::from(!total.violations.is_empty()))
}
