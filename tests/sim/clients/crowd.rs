//! Clients that are many, and clients that are slow.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use relay::wire::FeedMode;
use tokio::time::{Instant, sleep_until};

use super::auditor::{Follower, ack};
use super::machine::Machine;
use super::peer::{Peer, hello};
use crate::sim::random::Random;
use crate::sim::record::Phase;

/// When all of a crowd let go at once. The next time is the same for all of them.
pub(super) struct Stampede {
    began: Instant,
    period: Duration,
    counted: Cell<u64>,
}

impl Stampede {
    pub(super) fn new(random: &mut Random) -> Rc<Self> {
        let period = Duration::from_millis(5_000 + random.below(25_000));
        Rc::new(Self { began: Instant::now(), period, counted: Cell::new(0) })
    }

    /// The next time, and its number.
    fn next(&self) -> (Instant, u64) {
        let number = (self.began.elapsed().as_micros() / self.period.as_micros()) as u64 + 1;
        (self.began + self.period * number as u32, number)
    }
}

/// One of a crowd: comes, stays until all go, and is back at once.
pub(super) async fn main(machine: Rc<Machine>, stampede: Rc<Stampede>) {
    let shared = &machine.shared;
    // There is nothing that it waits for.
    shared.settle(machine.id);
    while !shared.is(Phase::Quiet) {
        let (at, number) = stampede.next();
        let server = shared.server(&machine);
        let feed = machine.one_of(&[FeedMode::Thin, FeedMode::Thin, FeedMode::Standby, FeedMode::Full]);
        if let Ok(mut peer) = Peer::attach(&machine, server, hello(feed)).await {
            tokio::select! {
                biased;
                () = sleep_until(at) => {}
                () = shared.reaches(Phase::Quiet) => {}
                () = async { while peer.hear().await.is_some() {} } => {}
            }
        }
        sleep_until(at).await;
        if stampede.counted.replace(number) != number {
            shared.fault("stampede", machine.id);
        }
    }
}

/// Follows the whole feed, and most of the time does not read.
pub(super) async fn slow(machine: Rc<Machine>) {
    let shared = &machine.shared;
    shared.settle(machine.id);
    let (mut follower, learner) = (Follower::default(), machine.learner());
    while !shared.is(Phase::Quiet) {
        let server = shared.server(&machine);
        let Ok(mut peer) = Peer::attach(&machine, server, follower.hello()).await else {
            machine.sleep_ms((50, 1_000)).await;
            continue;
        };
        follower.begin(peer.admit.start);
        while !shared.is(Phase::Quiet) {
            let Some(frame) = peer.hear().await else { break };
            if follower.take(&machine, learner, peer.server, frame).is_err() {
                shared.complain(machine.id, "a feed that is none");
                return;
            }
            if machine.below(20) == 0 {
                shared.fault("slow_reader", machine.id);
                machine.sleep_ms((100, 30_000)).await;
                if let Some(ack) = ack(&follower)
                    && !peer.say(&ack).await
                {
                    break;
                }
            }
        }
    }
}
