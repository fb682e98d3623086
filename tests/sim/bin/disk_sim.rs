//! Tries random scripts on the simulated disk until the time is over, and cuts the power at each of their operations in every way.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::sim::power_cuts::{Bounds, Report, explore};
use tests::sim::random::Random;
use tests::sim::script::Script;

/// Scripts of a server's disk, cut off at every operation; ends with 1 if a start ever found too little.
#[derive(Parser)]
struct Options {
    /// How long to try.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
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
    let (mut total, mut scripts) = (Report::default(), 0);
    while Instant::now() < end || scripts == 0 {
        let seed = options.seed + scripts;
        let mut random = Random::new(seed);
        let script = Script::random(&mut random, 12);
        let report = explore(&script, Bounds::default(), &mut random);
        if !options.json {
            for violation in &report.violations {
                println!("seed {seed}: {violation}");
            }
        }
        total.add(report);
        scripts += 1;
    }
    let violations = total.violations.len();
    let result = serde_json::json!({
        "crash_states": total.crash_states,
        "scripts": scripts,
        "kills": total.kills,
        "doubtful": total.doubtful,
        "sampled": total.sampled,
        "violations": violations,
    });
    println!("{result}");
    ExitCode::from(u8::from(violations > 0))
}
