//! What goes wrong in the demo, one thing after the other, always under load. The next one waits until the last one is healed: three
//! servers tolerate one failure at a time.

use std::time::{Duration, Instant};

use cluster_server::status::{Phase, ServerStatus};
use voter_mesh::configuration::Role;
use voter_mesh::ids::{LogIndex, RaftId, Seat, Term};

use super::clients::Crowd;
use super::report::Story;
use super::work::Work;
use crate::fleet::Fleet;
use crate::output::Failure;

/// How long a leader may be missing.
const LEADER_MS: u64 = 20_000;

/// How long a server that comes back may take to be as far as the others.
const HEALED_MS: u64 = 45_000;

/// Faults, and so the parts that the commands are proposed in.
const FAULTS: u64 = 4;

/// Breaks things and sees them healed.
pub(super) struct Conductor<'a> {
    fleet: &'a mut Fleet,
    crowd: &'a Crowd,
    work: &'a Work,
    story: &'a Story,
    failovers: Vec<Duration>,
}

impl<'a> Conductor<'a> {
    pub(super) fn new(fleet: &'a mut Fleet, crowd: &'a Crowd, work: &'a Work, story: &'a Story) -> Self {
        Self { fleet, crowd, work, story, failovers: Vec::new() }
    }

    /// Kills the leader and an entry server, drops a client, wipes a disk. Gives how long each failover took.
    pub(super) async fn failover(mut self) -> Result<Vec<Duration>, Failure> {
        self.load(0).await;
        let (leader, term) = self.leader().await?;
        let killed = self.fleet.kill(leader.seat()).await?;
        self.work.allow(self.part_end(0));
        self.story.tell(format_args!("killed server {}, the leader", leader.seat()));
        let next = self.work.acknowledged_after(term).await;
        self.failed_over(killed, next, "under the next leader");
        self.bring_back(leader.seat(), None).await?;

        self.load(1).await;
        let (leader, _) = self.leader().await?;
        let entry = self.entry_server(leader).await?;
        let attached = self.crowd.attached_to(entry);
        let killed = self.fleet.kill(entry.seat()).await?;
        self.work.allow(self.part_end(1));
        self.story.tell(format_args!("killed server {}, the entry server of {} clients", entry.seat(), attached.len()));
        let next = self.work.acknowledged_elsewhere(&attached, killed, entry).await;
        self.failed_over(killed, next, "for one of them, on another server");
        self.bring_back(entry.seat(), None).await?;

        let half = self.load(2).await;
        self.work.crash_at(half);
        self.work.allow(self.part_end(2));
        self.story.tell(format_args!("client {} crashes in the middle of a request", half % self.work.clients()));
        self.work.acknowledged_number(half).await;
        self.story.tell("it is back from its journal, and the request is answered");

        self.load(3).await;
        let (leader, term) = self.leader().await?;
        let killed = self.fleet.kill(leader.seat()).await?;
        self.fleet.wipe(leader.seat())?;
        self.work.allow(self.part_end(3));
        self.story.tell(format_args!("killed server {}, the leader, and wiped its disk", leader.seat()));
        let next = self.work.acknowledged_after(term).await;
        self.failed_over(killed, next, "under the next leader");
        self.bring_back(leader.seat(), Some(leader)).await?;
        Ok(self.failovers)
    }

    /// Where a part of the commands ends.
    fn part_end(&self, part: u64) -> u64 {
        self.work.commands() * (part + 1) / FAULTS
    }

    /// Lets the first half of a part be proposed, and waits until some of it is acknowledged: the load is on. The other half is for
    /// after the fault. Gives the first command of that half.
    async fn load(&self, part: u64) -> u64 {
        let (start, end) = (self.work.commands() * part / FAULTS, self.part_end(part));
        let half = start + (end - start) / 2;
        self.work.allow(half);
        self.work.acknowledged_count(start + (half - start) / 2).await;
        half
    }

    async fn leader(&self) -> Result<(RaftId, Term), Failure> {
        self.fleet.leader(Duration::from_millis(LEADER_MS)).await
    }

    /// A server that does not lead; one with clients, if there is one.
    async fn entry_server(&self, leader: RaftId) -> Result<RaftId, Failure> {
        let mut candidates = Vec::new();
        for seat in self.fleet.seats() {
            candidates.extend(self.fleet.status(seat, false).await.and_then(|status| status.id).filter(|id| *id != leader));
        }
        let busiest = candidates.into_iter().max_by_key(|id| self.crowd.attached_to(*id).len());
        busiest.ok_or_else(|| Failure::failed("no server follows"))
    }

    fn failed_over(&mut self, killed: Instant, next: Option<Instant>, how: &str) {
        match next.map(|next| next.saturating_duration_since(killed)) {
            Some(took) => {
                self.story.tell(format_args!("the next write was acknowledged {how}, {:.1} ms after", took.as_secs_f64() * 1e3));
                self.failovers.push(took);
            }
            None => self.story.tell("no write was left to be acknowledged"),
        }
    }

    /// Restarts a server and waits until it votes again and has what the leader has now; under another id than `old`.
    async fn bring_back(&mut self, seat: Seat, old: Option<RaftId>) -> Result<(), Failure> {
        let started = Instant::now();
        self.fleet.restart(seat).await?;
        let leads = |status: &ServerStatus| (status.phase == Phase::Leading).then_some(status.applied);
        let target = self.fleet.wait(Duration::from_millis(LEADER_MS), "a leader", leads).await?;
        let what = format!("server {seat} to catch up");
        let healed = |status: &ServerStatus| healed(status, seat, old, target).then_some(status.id).flatten();
        let id = self.fleet.wait(Duration::from_millis(HEALED_MS), &what, healed).await?;
        let now = if old.is_some() { format!(", as {id}") } else { String::new() };
        self.story.tell(format_args!(
            "server {seat} is back{now}: caught up {:.0} ms after its start",
            started.elapsed().as_secs_f64() * 1e3
        ));
        Ok(())
    }
}

/// Whether this is the server at `seat`, with a vote again and at least as far as `target`.
fn healed(status: &ServerStatus, seat: Seat, old: Option<RaftId>, target: LogIndex) -> bool {
    let votes = |id| status.configuration.member(id).is_some_and(|member| member.role == Role::Voter);
    status.seat == seat
        && matches!(status.phase, Phase::Leading | Phase::Following)
        && status.applied >= target
        && status.id.is_some_and(|id| Some(id) != old && votes(id))
        && !status.configuration.is_joint()
}
