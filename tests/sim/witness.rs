//! Three voters, one of them a witness: two are the product's consensus facade, one is the bare `raft` crate in the loop that its own
//! documentation shows. They speak the same messages, so what the facade adds (sealing, forwarding, reads, answers that wait for the
//! disk or do not, links that tear, progress that is forgotten) is held against an implementation that has none of it, leading and led.
//!
//! One seed decides all: elections, links with delay, loss, one-way cuts and tears, disks that lose what was not synced, crashes,
//! hand-overs, proposals and reads. Then everything is mended, and the three must come to rest with all that was promised.
//!
//! No membership, no snapshots: those are the facade's alone, and the whole system's simulator has them.

mod bare;
mod node;
mod ours;
mod translate;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::runtime::Builder;

use self::world::World;
use super::checkers::Checkers;
use super::panics;
use super::record::{Phase, Recorder, Report, Sink, Violation};

/// Things that are done to a world before it is mended.
const STEPS: u64 = 100;

/// What one of them may be followed by, in milliseconds: from nothing to an election.
const PAUSES_MS: [u64; 6] = [0, 1, 5, 40, 400, 1_500];

/// Ten of the longest election timeouts.
const LEADER_MS: u64 = 20_000;

/// One world. Its counts: `led_by_witness`, commands that the witness sealed and one of ours told as committed; `led_by_ours`, the
/// converse; `leaders`, terms that had one; `reads`, read indices that were given.
#[must_use]
pub fn run(seed: u64, mut sinks: Vec<Box<dyn Sink>>) -> Report {
    sinks.push(Box::new(Checkers::of_consensus()));
    panics::note();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O asks nothing of the system");
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::new(seed, Recorder::new(sinks));
            live(&mut world).await;
            world.finish()
        })
    }));
    let mut report = lived.unwrap_or_default();
    let panics = panics::take().into_iter();
    report.violations.extend(panics.map(|text| Violation { checker: "panic", sequence: 0, at_us: 0, text }));
    report
}

async fn live(world: &mut World) {
    world.enter(Phase::Faults);
    for _ in 0..STEPS {
        let (at, other) = world.two();
        match world.random.below(24) {
            0 | 1 => world.crash(at),
            2..=4 => world.start(at),
            5 => world.tear(at, other),
            6 => world.sever(at, other),
            7 => world.deafen(at, other),
            8..=10 => world.mend_links(),
            11 | 12 => world.hand_over(other),
            13 | 14 => world.campaign(),
            15..=17 => world.read(at),
            _ => world.propose_some(at),
        }
        let ms = PAUSES_MS[world.random.below(PAUSES_MS.len() as u64) as usize];
        world.run_ms(ms).await;
    }
    world.heal();
    world.enter(Phase::Healed);
    if !world.run_until(LEADER_MS, World::is_led).await {
        return world.wrong("liveness", "nobody leads after ten election timeouts".to_owned());
    }
    for at in world.ids() {
        world.propose_some(at);
        world.read(at);
    }
    world.enter(Phase::Quiet);
    if !world.run_until(LEADER_MS, World::is_at_rest).await {
        let missing = world.missing();
        return world.wrong("liveness", format!("no rest after ten more: {missing}"));
    }
    world.look_at_disks();
    world.enter(Phase::Over);
}
