//! Three voters, one of them a witness: two are the product's consensus facade, one is the bare `raft` crate in the loop that its own
//! documentation shows. They speak the same messages, so what the facade adds (sealing, forwarding, reads, answers that wait for the
//! disk or do not, links that tear, progress that is forgotten) is held against an implementation that has none of it, leading and led.
//!
//! One seed decides all: elections, links with delay, loss, one-way cuts and tears, appends that come twice, disks that lose what was
//! not synced and one that loses what was, crashes, hand-overs, proposals and reads. Then everything is mended, and the three must come to rest with all that was promised.
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
use super::record::{Phase, Recorder, Report, Sink, Violation};
use super::run::Outcome;

/// Things that are done to a world before it is mended.
const DEEDS: u64 = 200;

/// What may be done.
#[derive(Clone, Copy)]
enum Deed {
    Crash,
    Start,
    Tear,
    Sever,
    Isolate,
    Depose,
    Deafen,
    Mend,
    HandOver,
    Campaign,
    Read,
    Propose,
}

/// How often each is done in most worlds; in some three times as often, in some, but for those without which nothing would go on, never.
const OFTEN: [(Deed, u64); 12] = [
    (Deed::Crash, 2),
    (Deed::Start, 4),
    (Deed::Tear, 1),
    (Deed::Sever, 1),
    (Deed::Isolate, 1),
    (Deed::Depose, 2),
    (Deed::Deafen, 1),
    (Deed::Mend, 3),
    (Deed::HandOver, 1),
    (Deed::Campaign, 2),
    (Deed::Read, 2),
    (Deed::Propose, 6),
];

/// What one of them may be followed by, in milliseconds: seldom, sometimes or mostly as long as an election.
const PAUSES_MS: [[u64; 6]; 3] = [[0, 1, 5, 40, 400, 1_500], [0, 5, 20, 100, 200, 2_500], [1, 20, 400, 1_500, 2_500, 4_000]];

/// Ten of the longest election timeouts.
const LEADER_MS: u64 = 20_000;

/// One world, on the calling thread. Its counts: `led_by_witness`, commands that the witness sealed and one of ours told as committed; `led_by_ours`, the
/// converse; `leaders`, terms that had one; `reads`, read indices that were given.
#[must_use]
pub fn run(seed: u64, mut sinks: Vec<Box<dyn Sink>>) -> Outcome {
    sinks.push(Box::new(Checkers::of_consensus()));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O asks nothing of the system");
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::new(seed, Recorder::new(sinks));
            live(&mut world).await;
            world.finish(seed)
        })
    }));
    lived.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let text = said.unwrap_or_default().to_owned();
        let violations = vec![Violation { checker: "panic", sequence: 0, at_us: 0, text }];
        Outcome { seed, report: Report { violations, ..Report::default() }, ..Outcome::default() }
    })
}

async fn live(world: &mut World) {
    world.enter(Phase::Faults);
    let random = &mut world.random;
    let often = OFTEN.map(|(deed, weight)| {
        let factor = if matches!(deed, Deed::Start | Deed::Mend | Deed::Propose) { [1, 1, 3] } else { [0, 1, 3] };
        (deed, weight * factor[random.below(3) as usize])
    });
    let pauses_ms = PAUSES_MS[random.below(3) as usize];
    for _ in 0..DEEDS {
        let deed = draw(&often, world.random.below(often.iter().map(|(_, weight)| weight).sum()));
        let (at, other) = world.two();
        match deed {
            Deed::Crash => world.crash(at),
            Deed::Start => world.start(at),
            Deed::Tear => world.tear(at, other),
            Deed::Sever => world.sever(at, other),
            Deed::Isolate => world.isolate(at),
            Deed::Depose => world.depose(),
            Deed::Deafen => world.deafen(at, other),
            Deed::Mend => world.mend_links(),
            Deed::HandOver => world.hand_over(at),
            Deed::Campaign => world.campaign(),
            Deed::Read => world.read(at),
            Deed::Propose => world.propose_some(at),
        }
        world.bait();
        let ms = pauses_ms[world.random.below(6) as usize];
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
    // Nobody has anything to say now that would make a leader look for it.
    if world.forget_at_rest() && !world.run_until(LEADER_MS, World::is_at_rest).await {
        let missing = world.missing();
        return world.wrong("liveness", format!("what was lost at rest does not come back: {missing}"));
    }
    world.look_at_disks();
    world.enter(Phase::Over);
}

/// The deed on which a number below the sum of all weights falls.
fn draw(often: &[(Deed, u64)], mut number: u64) -> Deed {
    for (deed, weight) in often {
        match number.checked_sub(*weight) {
            Some(rest) => number = rest,
            None => return *deed,
        }
    }
    Deed::Propose
}
