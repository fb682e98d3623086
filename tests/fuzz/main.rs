//! Mutates the corpus of every decoder for as long as it is given, and keeps what comes to another end than all inputs before.
//! Blind, and therefore quick to build; the same seed mutates the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use sha2::{Digest, Sha256};
use tests::fuzz::targets::{ALL, Target};
use tests::fuzz::{corpus, corpus_path, judge, memory, mutate};
use tests::sim::random::Random;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Bytes of an input: far less than limits allow, and enough for every field.
const INPUT_BYTES_MAX: usize = 4 << 10;

/// Bytes of an input that is kept, and inputs that are kept of one run: a corpus is replayed by every test.
const KEPT_BYTES_MAX: usize = 2 << 10;
const KEPT_MAX: usize = 40;

#[derive(Parser)]
struct Arguments {
    /// Seconds for each decoder.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Only this decoder.
    #[arg(long)]
    target: Option<String>,
    /// Where the mutations begin; the clock decides if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes inputs that come to another end into the corpus, and those that show a fault too.
    #[arg(long)]
    keep: bool,
    /// Writes the golden inputs into the corpus, and ends.
    #[arg(long)]
    golden: bool,
}

fn name(input: &[u8]) -> String {
    Sha256::digest(input)[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(target: &Target, name: &str, input: &[u8]) {
    let path = corpus_path(target);
    std::fs::create_dir_all(&path).expect("the corpus can be written");
    std::fs::write(path.join(name), input).expect("the corpus can be written");
}

/// Mutates for so long; how many inputs that were, and the faults found.
fn fuzz(target: &Target, arguments: &Arguments, seed: u64) -> (u64, BTreeMap<String, Vec<u8>>) {
    let mut random = Random::new(seed);
    let mut inputs: Vec<Vec<u8>> = corpus(target).into_values().collect();
    let (mut ends, mut faults, mut runs, mut kept) = (BTreeSet::new(), BTreeMap::new(), 0, 0);
    for input in &inputs {
        match judge(target, input) {
            Ok(end) => drop(ends.insert(end)),
            Err(fault) => drop(faults.insert(fault, input.clone())),
        }
    }
    let until = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    while Instant::now() < until && faults.len() < 5 {
        let pick = |random: &mut Random| random.below(inputs.len() as u64) as usize;
        let (one, other) = (pick(&mut random), pick(&mut random));
        let mut input = inputs[one].clone();
        let bytes_max = INPUT_BYTES_MAX.max(input.len());
        mutate::mutate(&mut random, &mut input, &inputs[other], bytes_max);
        if let Some(repair) = target.repair.filter(|_| random.below(4) > 0) {
            repair(&mut input);
        }
        runs += 1;
        match judge(target, &input) {
            Ok(end) => {
                if ends.insert(end) {
                    if arguments.keep && input.len() <= KEPT_BYTES_MAX && kept < KEPT_MAX {
                        write(target, &name(&input), &input);
                        kept += 1;
                    }
                    inputs.push(input);
                }
            }
            Err(fault) => {
                if arguments.keep {
                    write(target, &name(&input), &input);
                }
                faults.entry(fault).or_insert(input);
            }
        }
    }
    (runs, faults)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = |target: &&Target| arguments.target.as_ref().is_none_or(|name| name == target.name);
    if arguments.golden {
        for target in ALL.iter().filter(chosen) {
            (target.golden)().iter().for_each(|(name, input)| write(target, name, input));
        }
        return ExitCode::SUCCESS;
    }
    // What a decoder's panic says is told below.
    std::panic::set_hook(Box::new(|_| {}));
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    let seed = arguments.seed.unwrap_or(clock);
    println!("seed {seed}");
    let mut failed = false;
    for target in ALL.iter().filter(chosen) {
        let (runs, faults) = fuzz(target, &arguments, seed);
        println!("{:>16} {runs:>10} inputs, {} faults", target.name, faults.len());
        for (fault, input) in &faults {
            failed = true;
            let hex: String = input.iter().take(256).map(|byte| format!("{byte:02x}")).collect();
            println!("{:>16} {fault}\n{:>16} {} bytes: {hex}", "", "", input.len());
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
