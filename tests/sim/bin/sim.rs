//! Runs whole clusters, each in a world that one seed decides, on all cores.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::sim::fault::FaultKind;
use tests::sim::mutants::{self, Hunt, Kill};
use tests::sim::panics;
use tests::sim::record::Lines;
use tests::sim::run::{Keep, Outcome, run};
use tests::sim::scenario::Scenario;
use tests::sim::witness;

/// A run that takes longer than this hangs at one instant of its own time.
const HANGS: Duration = Duration::from_secs(600);

/// Whole clusters in simulated worlds; ends with 1 if one of them broke a promise.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first one; the others count up.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Go on with further seeds for so many seconds.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Say the result as JSON alone.
    #[arg(long)]
    json: bool,
    /// One seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Of this seed: print the hash of its trace, the same in every process.
    #[arg(long, requires = "seed")]
    trace_hash: bool,
    /// Of this seed: print all events.
    #[arg(long, requires = "seed")]
    replay: bool,
    /// Of this seed, which fails: find the smallest world that still does.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// These kinds of faults alone, by name, with commas.
    #[arg(long, value_delimiter = ',')]
    kinds: Option<Vec<String>>,
    /// Faults for so many seconds, simulated ones.
    #[arg(long)]
    fault_seconds: Option<u64>,
    /// So many hundredths of the usual number of clients.
    #[arg(long)]
    clients_percent: Option<u32>,
    /// Hunt the seeded bugs instead: each alone, on up to `--seeds` seeds. Needs a build with RUSTFLAGS='--cfg mutants'.
    #[arg(long, conflicts_with = "seed")]
    mutants: bool,
    /// Of the seeded bugs, only those whose names contain one of these.
    #[arg(long, value_delimiter = ',', requires = "mutants")]
    only: Vec<String>,
    /// Small worlds instead, of three voters, one of them driven by the bare raft crate.
    #[arg(long, conflicts_with_all = ["trace_hash", "shrink", "kinds", "fault_seconds", "clients_percent"])]
    witness: bool,
    /// Where logs of failing runs go.
    #[arg(long, default_value = "target/sim")]
    out: PathBuf,
}

impl Options {
    /// What this seed decides, but for what the options say.
    fn scenario(&self, seed: u64) -> Scenario {
        let mut scenario = Scenario::of_seed(seed);
        if let Some(kinds) = &self.kinds {
            scenario.kinds = FaultKind::ALL.into_iter().filter(|kind| kinds.iter().any(|name| name == kind.name())).collect();
        }
        if let Some(seconds) = self.fault_seconds {
            scenario.faults = Duration::from_secs(seconds);
        }
        if let Some(percent) = self.clients_percent {
            scenario.clients_percent = percent;
        }
        scenario
    }

    /// Runs this seed.
    fn run(&self, seed: u64, keep: Keep) -> Outcome {
        if !self.witness {
            return run(self.scenario(seed), keep);
        }
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, is_kept) = (Arc::clone(&log), matches!(keep, Keep::Log | Keep::Printed));
        let sink = Lines(move |line: std::fmt::Arguments<'_>| match keep {
            Keep::Printed => println!("{line}"),
            _ => drop(writeln!(lines.lock().expect("no thread panics with it"), "{line}")),
        });
        // What panicked is among what was wrong.
        panics::note();
        let outcome = witness::run(seed, if is_kept { vec![Box::new(sink)] } else { Vec::new() });
        drop(panics::take());
        let log = std::mem::take(&mut *log.lock().expect("no thread panics with it"));
        Outcome { log, ..outcome }
    }
}

/// What all runs came to.
#[derive(Debug, Default)]
struct Total {
    seeds: u64,
    simulated: Duration,
    faults: BTreeMap<&'static str, u64>,
    operations: u64,
    histories: u64,
    crash_states: u64,
    violations: usize,
    stuck: u64,
    failed: BTreeSet<u64>,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated += outcome.simulated;
        outcome.faults.iter().for_each(|(kind, times)| *self.faults.entry(kind).or_default() += times);
        self.operations += outcome.report.operations;
        self.histories += outcome.report.histories;
        self.crash_states += outcome.crash_states;
        self.violations += outcome.report.violations.len();
        self.stuck += u64::from(outcome.stuck);
        if outcome.is_bad() {
            self.failed.insert(outcome.seed);
        }
    }

    fn print(&self, began: Instant, json: bool) {
        if !json {
            for (kind, times) in &self.faults {
                println!("{times:>10}  {kind}");
            }
            if !self.failed.is_empty() {
                println!("failed: {:?}", self.failed);
            }
        }
        let result = serde_json::json!({
            "seeds": self.seeds,
            "simulated_hours": self.simulated.as_secs_f64() / 3600.0,
            "wall_seconds": began.elapsed().as_secs_f64(),
            "faults": self.faults.values().sum::<u64>(),
            "fault_kinds": self.faults.values().filter(|times| **times > 0).count(),
            "operations": self.operations,
            "histories": self.histories,
            "crash_states": self.crash_states,
            "violations": self.violations,
            "stuck": self.stuck,
        });
        println!("{result}");
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.seed {
        None if options.mutants => hunt_all(&options),
        Some(seed) if options.shrink => shrink(&options, seed),
        Some(seed) => one(&options, seed),
        None => many(&options),
    }
}

fn one(options: &Options, seed: u64) -> ExitCode {
    let keep = if options.replay { Keep::Printed } else { Keep::Hash };
    if !options.trace_hash && !options.witness {
        eprintln!("{:#?}", options.scenario(seed));
    }
    let outcome = options.run(seed, keep);
    if options.trace_hash {
        println!("{:016x}", outcome.hash);
    } else {
        say(&outcome);
    }
    ExitCode::from(u8::from(outcome.is_bad()))
}

/// Prints what is wrong with a run.
fn say(outcome: &Outcome) {
    for violation in &outcome.report.violations {
        println!("seed {}: {violation}", outcome.seed);
    }
}

fn many(options: &Options) -> ExitCode {
    let began = Instant::now();
    let (next, total) = (AtomicU64::new(0), Mutex::new(Total::default()));
    let more = || {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let wanted = number < options.seeds || began.elapsed() < Duration::from_secs(options.seconds);
        wanted.then(|| options.start + number)
    };
    // What each thread runs, and since when.
    let running: Vec<Mutex<Option<(u64, Instant)>>> =
        (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| Mutex::default()).collect();
    let lock = |slot: &Mutex<Option<(u64, Instant)>>, now| *slot.lock().expect("no thread panics with it") = now;
    thread::scope(|scope| {
        let workers: Vec<_> = running
            .iter()
            .map(|slot| {
                let (total, more) = (&total, &more);
                scope.spawn(move || {
                    while let Some(seed) = more() {
                        lock(slot, Some((seed, Instant::now())));
                        let outcome = options.run(seed, Keep::Nothing);
                        total.lock().expect("no thread panics with it").add(&outcome);
                        if outcome.is_bad() {
                            if !options.json {
                                say(&outcome);
                            }
                            save(options, seed);
                        }
                        lock(slot, None);
                    }
                })
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(20));
            for slot in &running {
                if let Some((seed, since)) = *slot.lock().expect("no thread panics with it")
                    && since.elapsed() > HANGS
                {
                    println!("seed {seed}: hangs");
                    std::process::exit(2);
                }
            }
        }
    });
    let total = total.into_inner().expect("no thread panics with it");
    total.print(began, options.json);
    ExitCode::from(u8::from(!total.failed.is_empty()))
}

/// Hunts the seeded bugs, one after the other.
fn hunt_all(options: &Options) -> ExitCode {
    if !mutants::HERE {
        eprintln!(
            "this build has no mutants: RUSTFLAGS='--cfg mutants' cargo run --release --target-dir target/mutants -p tests --bin sim -- --mutants"
        );
        return ExitCode::from(2);
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
    let (mut hunted, mut survivors) = (0, Vec::new());
    for mutant in mutants::MUTANTS.into_iter().filter(|mutant| wanted(mutant.name)) {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let seeds = options.start..options.start + options.seeds;
        let hunt = |options: &Options| {
            mutants::hunt(mutant, seeds.clone(), threads, |seed| {
                let outcome = options.run(seed, Keep::Nothing);
                let first =
                    outcome.report.violations.first().map(|violation| (violation.checker.to_owned(), violation.text.clone()));
                first.or_else(|| outcome.stuck.then(|| ("world".to_owned(), "it does not come to rest".to_owned())))
            })
        };
        // The smaller world first, where it has the part: it costs a hundredth.
        let small = matches!(mutant.part, "consensus" | "marks").then(|| hunt(&Options { witness: true, ..options.clone() }));
        let found_small = small.filter(|hunt| hunt.kill.is_some());
        let (place, found) = found_small.map_or_else(|| ("", hunt(options)), |found| (" of the witness's world", found));
        let Hunt { kill, seeds, wall, .. } = found;
        hunted += 1;
        match kill {
            Some(Kill { seed, checker, text }) => {
                let text: String = text.chars().take(160).collect();
                say_of(
                    options,
                    &format!(
                        "killed    {} by {checker} at seed {seed}{place}, {seeds} seeds, {:.1} s: {text}",
                        mutant.name,
                        wall.as_secs_f64()
                    ),
                );
            }
            None => {
                say_of(
                    options,
                    &format!("SURVIVES  {} ({}), {seeds} seeds, {:.1} s", mutant.name, mutant.story, wall.as_secs_f64()),
                );
                survivors.push(mutant.name);
            }
        }
    }
    println!("{}", serde_json::json!({"mutants": hunted, "killed": hunted - survivors.len(), "survivors": survivors}));
    ExitCode::from(u8::from(!survivors.is_empty()))
}

/// A line for people: on standard output, or beside it where that is for programs.
fn say_of(options: &Options, line: &str) {
    if options.json { eprintln!("{line}") } else { println!("{line}") }
}

/// Runs a failing seed again, and saves its events.
fn save(options: &Options, seed: u64) {
    let outcome = options.run(seed, Keep::Log);
    let path = options.out.join(format!("seed-{seed}.log"));
    let violations: String = outcome.report.violations.iter().map(|violation| format!("{violation}\n")).collect();
    let saved = fs::create_dir_all(&options.out).and_then(|()| fs::write(&path, outcome.log + &violations));
    match saved {
        Ok(()) if options.json => {}
        Ok(()) => println!("seed {seed}: its events are in {}", path.display()),
        Err(error) => println!("seed {seed}: its events cannot be saved in {}: {error}", path.display()),
    }
}

/// Leaves out what can be left out of a failing world.
fn shrink(options: &Options, seed: u64) -> ExitCode {
    let mut smallest = options.scenario(seed);
    let checkers = |outcome: &Outcome| outcome.report.violations.iter().map(|violation| violation.checker).collect::<BTreeSet<_>>();
    let wanted = checkers(&run(smallest.clone(), Keep::Nothing));
    if wanted.is_empty() {
        println!("seed {seed} does not fail");
        return ExitCode::SUCCESS;
    }
    let fails = |scenario: &Scenario| !checkers(&run(scenario.clone(), Keep::Nothing)).is_disjoint(&wanted);
    for kind in smallest.kinds.clone() {
        let mut without = smallest.clone();
        without.kinds.remove(&kind);
        if !without.kinds.is_empty() && fails(&without) {
            smallest = without;
        }
    }
    while smallest.faults > Duration::from_secs(1) {
        let mut shorter = smallest.clone();
        shorter.faults = Duration::from_secs(shorter.faults.as_secs() * 3 / 4);
        if !fails(&shorter) {
            break;
        }
        smallest = shorter;
    }
    for percent in [0, 10, 25, 50] {
        let mut fewer = smallest.clone();
        fewer.clients_percent = percent;
        if percent < smallest.clients_percent && fails(&fewer) {
            smallest = fewer;
            break;
        }
    }
    say(&run(smallest.clone(), Keep::Nothing));
    let kinds: Vec<_> = smallest.kinds.iter().map(|kind| kind.name()).collect();
    println!(
        "sim --seed {seed} --kinds {} --fault-seconds {} --clients-percent {}",
        kinds.join(","),
        smallest.faults.as_secs(),
        smallest.clients_percent
    );
    ExitCode::FAILURE
}
