//! The kinds of misfortune, and how each is done to a world. Each lasts for a while that is drawn, and then undoes itself; what is left of it when
//! faults end is undone by healing ([`World::heal`]).
//!
//! What the promises do not cover is not done. Damage (a wiped directory, rot, a write in the wrong place) takes copies of what was
//! acknowledged; it stays below a majority of the voters, counted until the damaged ones are whole again, and never hits a lone voter. After
//! a power cut in the midst of a write a server may doubt its last batch, which only the others can settle: where some of them are damaged, it
//! counts as damage too. All else may happen to everybody at once.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use voter_mesh::ids::Seat;
use voter_mesh::mesh::message::AdminRequest;

use super::disk::{Deed, Faults as DiskFaults, SECTOR_BYTES};
use super::net::Death;
use super::random::Random;
use super::server::{DATA, Machine, mesh_address};
use super::world::World;

/// The least and the most of a time, in milliseconds.
type Range = (u64, u64);

/// How long a server stays down.
const DOWN: Range = (10, 12_000);

/// How long other misfortunes last.
const LASTS: Range = (200, 12_000);

/// How long a disk waits for the deed that it is to fail.
const FAILS_WITHIN: Duration = Duration::from_secs(20);

/// How long a change of the membership may take.
const ADMIN_WAIT: Duration = Duration::from_secs(20);

/// Where a segment of the log has its header and its marks.
const SEGMENT_HEADER_BYTES: usize = 12 << 10;

/// What can be done to the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// A server's process is killed; its disk keeps its cache.
    Kill,
    /// A machine loses power: what was not synced is lost, torn, reordered, or there.
    PowerCut,
    /// All machines do, at once.
    Blackout,
    /// A process is killed, or its machine loses power, at some deed of its disk.
    CrashAtDeed,
    /// A server is killed again and again, soon after each start.
    RestartStorm,
    /// A process stands still, for up to ten election timeouts.
    Pause,
    /// A server is asked to shut down.
    Shutdown,
    /// A directory is lost. A new life of the seat takes over.
    Wipe,
    /// A sync fails, and loses a part of what it should have written.
    FailedSync,
    /// A write fails.
    FailedWrite,
    /// A disk has no room.
    DiskFull,
    /// A disk takes a hundred times as long.
    SlowDisk,
    /// Bits of what was written change.
    BitRot,
    /// A sector is overwritten by another one's content.
    MisdirectedWrite,
    /// Two hosts do not hear each other.
    Cut,
    /// One host does not hear the other.
    OneWayCut,
    /// A server hears none of the others; its clients still reach it.
    Isolate,
    /// Servers are split into two groups.
    Split,
    /// A link comes and goes.
    Flap,
    /// Connections between two hosts are reset, maybe in the middle of a frame.
    Reset,
    /// One side loses a connection, the other does not hear of it.
    HalfOpen,
    /// What is under way between two hosts comes much later, on old connections behind newer ones.
    Stall,
    /// Links are slow from time to time.
    DelaySpikes,
    /// Links lose segments.
    SegmentLoss,
    /// A link has little bandwidth.
    ThinLink,
    /// Frames between servers are lost.
    FrameLoss,
    /// Frames between servers come twice, soon or late.
    FrameDuplicates,
    /// Frames between servers overtake each other.
    FrameReorder,
    /// Clients do not hear a server, nor it them.
    SplitRoom,
    /// Clients' connections to a server are reset.
    ResetRoom,
    /// A clock runs fast or slow.
    ClockDrift,
    /// A wall clock is set by up to a day.
    ClockJump,
    /// Clocks stand still.
    ClockFreeze,
    /// Leadership is handed over.
    Transfer,
    /// A seat is added, and removed later.
    Membership,
}

use FaultKind as K;

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 35] = [
        K::Kill,
        K::PowerCut,
        K::Blackout,
        K::CrashAtDeed,
        K::RestartStorm,
        K::Pause,
        K::Shutdown,
        K::Wipe,
        K::FailedSync,
        K::FailedWrite,
        K::DiskFull,
        K::SlowDisk,
        K::BitRot,
        K::MisdirectedWrite,
        K::Cut,
        K::OneWayCut,
        K::Isolate,
        K::Split,
        K::Flap,
        K::Reset,
        K::HalfOpen,
        K::Stall,
        K::DelaySpikes,
        K::SegmentLoss,
        K::ThinLink,
        K::FrameLoss,
        K::FrameDuplicates,
        K::FrameReorder,
        K::SplitRoom,
        K::ResetRoom,
        K::ClockDrift,
        K::ClockJump,
        K::ClockFreeze,
        K::Transfer,
        K::Membership,
    ];

    /// Its name in tables and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            K::Kill => "kill",
            K::PowerCut => "power_cut",
            K::Blackout => "blackout",
            K::CrashAtDeed => "crash_at_deed",
            K::RestartStorm => "restart_storm",
            K::Pause => "pause",
            K::Shutdown => "shutdown",
            K::Wipe => "wipe",
            K::FailedSync => "failed_sync",
            K::FailedWrite => "failed_write",
            K::DiskFull => "disk_full",
            K::SlowDisk => "slow_disk",
            K::BitRot => "bit_rot",
            K::MisdirectedWrite => "misdirected_write",
            K::Cut => "cut",
            K::OneWayCut => "one_way_cut",
            K::Isolate => "isolate",
            K::Split => "split",
            K::Flap => "flap",
            K::Reset => "reset_mesh",
            K::HalfOpen => "half_open_mesh",
            K::Stall => "stall_mesh",
            K::DelaySpikes => "delay_spikes",
            K::SegmentLoss => "segment_loss",
            K::ThinLink => "thin_link",
            K::FrameLoss => "frame_loss",
            K::FrameDuplicates => "frame_duplicates",
            K::FrameReorder => "frame_reorder",
            K::SplitRoom => "split_room",
            K::ResetRoom => "reset_room",
            K::ClockDrift => "clock_drift",
            K::ClockJump => "clock_jump",
            K::ClockFreeze => "clock_freeze",
            K::Transfer => "transfer",
            K::Membership => "membership",
        }
    }
}

/// One misfortune under way: draws what it needs from a generator of its own.
pub(super) struct Doing {
    world: Rc<World>,
    kind: FaultKind,
    random: Random,
}

impl Doing {
    pub(super) fn new(world: Rc<World>, kind: FaultKind) -> Self {
        let random = world.random();
        Self { world, kind, random }
    }

    async fn wait(&mut self, (least, most): Range) {
        sleep(Duration::from_millis(least + self.random.below(most - least + 1))).await;
    }

    /// It happens now, to this.
    fn happens(&self, to: impl std::fmt::Display) {
        self.world.fault(self.kind.name(), to.to_string());
    }

    /// Any machine whose server runs.
    fn any(&mut self) -> Option<Rc<Machine>> {
        let mut running = self.world.machines();
        running.retain(|machine| machine.running().is_some());
        if running.is_empty() { None } else { Some(running.swap_remove(self.random.below(running.len() as u64) as usize)) }
    }

    /// One way to die suddenly or the other.
    async fn death(&mut self, seat: Seat) -> Death {
        if self.random.below(2) == 0 { Death::Killed } else { self.world.power_cut(seat).await }
    }

    /// Any two machines, in any order.
    fn pair(&mut self) -> Option<(Rc<Machine>, Rc<Machine>)> {
        let mut machines = self.world.machines();
        if machines.len() < 2 {
            return None;
        }
        let one = machines.swap_remove(self.random.below(machines.len() as u64) as usize);
        let other = machines.swap_remove(self.random.below(machines.len() as u64) as usize);
        Some((one, other))
    }

    /// Does it, waits, and undoes it. Nothing happens where there is nobody that it could happen to.
    pub(super) async fn run(mut self) -> Option<()> {
        let world = Rc::clone(&self.world);
        match self.kind {
            K::Kill | K::PowerCut => {
                let seat = self.any()?.seat;
                self.happens(seat);
                let death = if self.kind == K::Kill { Death::Killed } else { world.power_cut(seat).await };
                world.kill(seat, death).await;
                self.wait(DOWN).await;
                world.start(seat);
            }
            K::Blackout => {
                let machines = world.machines();
                self.happens("all");
                let mut deaths = Vec::new();
                for machine in &machines {
                    deaths.push((machine.seat, world.power_cut(machine.seat).await));
                }
                for (seat, death) in deaths {
                    world.kill(seat, death).await;
                }
                for machine in machines {
                    self.wait((0, 2_000)).await;
                    world.start(machine.seat);
                }
            }
            K::CrashAtDeed => {
                let machine = self.any()?;
                let running = machine.running()?;
                machine.die_at_deed(self.random.below(200));
                if timeout(Duration::from_secs(20), running.process.gone()).await.is_err() {
                    machine.live_on();
                }
                if machine.running().is_none() && running.process.exit().is_none() {
                    let death = self.death(machine.seat).await;
                    self.happens(format_args!("{} {death:?}", machine.seat));
                    world.kill(machine.seat, death).await;
                    self.wait(DOWN).await;
                    world.start(machine.seat);
                }
            }
            K::RestartStorm => {
                let seat = self.any()?.seat;
                for _ in 0..3 + self.random.below(8) {
                    self.happens(seat);
                    let death = self.death(seat).await;
                    world.kill(seat, death).await;
                    self.wait((0, 200)).await;
                    world.start(seat);
                    self.wait((0, 600)).await;
                }
            }
            K::Pause => {
                let running = self.any()?.running()?;
                self.happens(running.process.life.host);
                running.process.stop(true);
                self.wait((200, 20_000)).await;
                running.process.stop(false);
            }
            K::Shutdown => {
                let machine = self.any()?;
                let hand_over = self.random.below(4) > 0;
                self.happens(machine.seat);
                world.shut_down(machine.seat, Duration::from_secs(5), hand_over).await;
                self.wait(DOWN).await;
                world.start(machine.seat);
            }
            K::Wipe => {
                let machine = self.any()?;
                world.may_damage(machine.seat).await.then_some(())?;
                self.happens(machine.seat);
                world.kill(machine.seat, Death::Killed).await;
                world.wipe(machine.seat);
                self.wait(DOWN).await;
                world.start(machine.seat);
            }
            K::FailedSync | K::FailedWrite => {
                let machine = self.any()?;
                // What was not synced may be gone, and whether it had been acknowledged is doubtful then.
                world.may_damage(machine.seat).await.then_some(())?;
                let deed = if self.kind == K::FailedWrite { Deed::Write } else { Deed::Sync };
                let deed = if deed == Deed::Sync && self.random.below(8) == 0 { Deed::SyncDirectory } else { deed };
                self.happens(format_args!("{} {deed:?}", machine.seat));
                let (after, seed) = (self.random.below(30), self.random.next());
                world.fail_once(&machine, deed, after, seed, FAILS_WITHIN).await;
            }
            K::DiskFull => {
                let machine = self.any()?;
                self.happens(machine.seat);
                world.excuse(machine.seat);
                let disk = machine.disk();
                let capacity = disk.used_bytes() + self.random.below(64 << 10);
                disk.set_faults(DiskFaults { capacity_bytes: Some(capacity), ..DiskFaults::default() }, 0);
                self.wait((500, 20_000)).await;
                // There may be another server by now, on another state of the same disk.
                machine.disk().set_faults(DiskFaults::default(), 0);
            }
            K::SlowDisk => {
                let machine = self.any()?;
                self.happens(machine.seat);
                let mut pace = world.scenario.pace;
                (pace.us.1, pace.slower) = (pace.us.1.max(1_000), 100);
                machine.pace.set(pace);
                self.wait(LASTS).await;
                machine.pace.set(world.scenario.pace);
            }
            K::BitRot | K::MisdirectedWrite => {
                let machine = self.any()?;
                world.may_damage(machine.seat).await.then_some(())?;
                let running = self.random.below(3) == 0;
                if !running {
                    world.kill(machine.seat, Death::Killed).await;
                }
                let damaged = damage(&machine, self.kind, &mut self.random);
                // What holds no second copy of itself, or is read at a start alone: the damage shows whenever the server starts again.
                if damaged.as_ref().is_some_and(|(path, at)| *at < SEGMENT_HEADER_BYTES || path.contains("/snapshots/")) {
                    world.mark_lost(machine.seat);
                }
                self.happens(format_args!("{} {damaged:?}", machine.seat));
                if running {
                    world.rots_unseen(machine.seat);
                } else {
                    self.wait(DOWN).await;
                    world.start(machine.seat);
                }
            }
            K::Cut | K::OneWayCut => {
                let (one, other) = self.pair()?;
                self.happens(format_args!("{} {}", one.seat, other.seat));
                self.cut(&[(&one, &other)], self.kind == K::Cut).await;
            }
            K::Isolate => {
                let machines = world.machines();
                let alone = machines.get(self.random.below(machines.len() as u64) as usize)?;
                let others: Vec<_> =
                    machines.iter().filter(|machine| machine.seat != alone.seat).map(|other| (alone, other)).collect();
                self.happens(alone.seat);
                self.cut(&others, true).await;
            }
            K::Split => {
                let machines = world.machines();
                let (one, other): (Vec<_>, Vec<_>) = machines.iter().partition(|_| self.random.below(2) == 0);
                let between: Vec<_> = one.iter().flat_map(|one| other.iter().map(|other| (*one, *other))).collect();
                self.happens(format_args!("{} of {}", one.len(), machines.len()));
                self.cut(&between, true).await;
            }
            K::Flap => {
                let (one, other) = self.pair()?;
                for _ in 0..2 + self.random.below(10) {
                    self.happens(format_args!("{} {}", one.seat, other.seat));
                    set_cut(&world, &[(&one, &other)], true, true);
                    self.wait((10, 1_500)).await;
                    set_cut(&world, &[(&one, &other)], true, false);
                    self.wait((10, 1_500)).await;
                }
            }
            K::Reset | K::HalfOpen | K::Stall => {
                let (one, other) = self.pair()?;
                self.happens(format_args!("{} {}", one.seat, other.seat));
                match self.kind {
                    K::Reset => world.net.reset(one.host, other.host),
                    K::HalfOpen => world.net.half_open(one.host, other.host),
                    _ => world.net.stall(one.host, other.host, 1_000 * (200 + self.random.below(8_000))),
                };
            }
            K::DelaySpikes | K::SegmentLoss | K::ThinLink | K::FrameLoss | K::FrameDuplicates | K::FrameReorder => {
                let (permille, spike_us) = (1 + self.random.below(200), 1_000 * (1 + self.random.below(1_000)));
                self.happens(permille);
                let kind = self.kind;
                self.everywhere(|rules| match kind {
                    K::DelaySpikes => (rules.spike_permille, rules.spike_us) = (permille, spike_us),
                    K::SegmentLoss => rules.loss_permille = permille / 2,
                    K::ThinLink => rules.bytes_per_s = 20_000 * permille,
                    K::FrameLoss => rules.frames.lost_permille = permille,
                    K::FrameDuplicates => (rules.frames.doubled_permille, rules.frames.late_permille) = (permille, permille),
                    _ => rules.frames.swapped_permille = permille,
                });
                self.wait(LASTS).await;
                let usual = world.scenario.rules;
                self.everywhere(|rules| match kind {
                    K::DelaySpikes => rules.spike_permille = usual.spike_permille,
                    K::SegmentLoss => rules.loss_permille = usual.loss_permille,
                    K::ThinLink => rules.bytes_per_s = usual.bytes_per_s,
                    K::FrameLoss => rules.frames.lost_permille = 0,
                    K::FrameDuplicates => (rules.frames.doubled_permille, rules.frames.late_permille) = (0, 0),
                    _ => rules.frames.swapped_permille = 0,
                });
            }
            K::SplitRoom => {
                let machine = self.any()?;
                let one_way = self.random.below(2) == 0;
                let mut clients = world.clients();
                clients.retain(|_| self.random.below(2) == 0);
                self.happens(format_args!("{} from {}", machine.seat, clients.len()));
                let set = |cut| {
                    for client in &clients {
                        world.net.change_rules(machine.host, *client, |rules| rules.cut = cut);
                        world.net.change_rules(*client, machine.host, |rules| rules.cut = cut && !one_way);
                    }
                };
                set(true);
                self.wait(LASTS).await;
                set(false);
            }
            K::ResetRoom => {
                let machine = self.any()?;
                self.happens(machine.seat);
                for client in world.clients() {
                    match self.random.below(3) {
                        0 => world.net.reset(client, machine.host),
                        1 => world.net.half_open(client, machine.host),
                        _ => world.net.half_open(machine.host, client),
                    };
                }
            }
            K::ClockDrift => {
                let machine = self.any()?;
                self.happens(machine.seat);
                machine.clock.borrow_mut().set_rate_ppm(900_000 + self.random.below(200_001));
            }
            K::ClockJump => {
                const DAY_MS: u64 = 86_400_000;
                let machine = self.any()?;
                let ms = self.random.below(2 * DAY_MS) as i64 - DAY_MS as i64;
                self.happens(format_args!("{} {ms}", machine.seat));
                machine.clock.borrow_mut().jump_ms(ms);
            }
            K::ClockFreeze => {
                let machine = self.any()?;
                self.happens(machine.seat);
                machine.clock.borrow_mut().set_rate_ppm(0);
                self.wait((100, 5_000)).await;
                machine.clock.borrow_mut().set_rate_ppm(1_000_000);
            }
            K::Transfer => {
                let to = self.any()?.seat;
                self.happens(to);
                let _ = self.ask(AdminRequest::Transfer { seat: to }).await;
            }
            K::Membership => self.change_membership().await?,
        }
        Some(())
    }

    async fn cut(&mut self, pairs: &[(&Rc<Machine>, &Rc<Machine>)], both_ways: bool) {
        let world = Rc::clone(&self.world);
        set_cut(&world, pairs, both_ways, true);
        self.wait(LASTS).await;
        set_cut(&world, pairs, both_ways, false);
    }

    /// Changes the rules between all servers, and of some links to clients.
    fn everywhere(&self, change: impl Fn(&mut super::net::Rules)) {
        let (servers, clients) = (self.world.hosts(), self.world.clients());
        for one in &servers {
            for other in servers.iter().chain(&clients).filter(|other| *other != one) {
                self.world.net.change_rules(*one, *other, &change);
                self.world.net.change_rules(*other, *one, &change);
            }
        }
    }

    async fn ask(&mut self, request: AdminRequest) -> bool {
        let Some(running) = self.any().and_then(|machine| machine.running()) else { return false };
        matches!(timeout(ADMIN_WAIT, running.handle.admin(request)).await, Ok(Ok(())))
    }

    /// One seat more than those that formed, and away again.
    async fn change_membership(&mut self) -> Option<()> {
        let world = Rc::clone(&self.world);
        let seat = Seat(world.scenario.voters + 1);
        if world.machine(seat).is_some() {
            return None;
        }
        let machine = world.add_machine(seat);
        let address = mesh_address(seat).to_string();
        let add = AdminRequest::AddSeat { seat, address, priority: 0, failure_domain: String::new() };
        let added = self.ask(add).await;
        self.happens(format_args!("{seat} added: {added}"));
        world.start(seat);
        self.wait(LASTS).await;
        let promoted = self.ask(AdminRequest::Promote { seat }).await;
        self.happens(format_args!("{seat} promoted: {promoted}"));
        self.wait(LASTS).await;
        // As long as it takes: what is half done is nobody's wish.
        while !self.ask(AdminRequest::RemoveSeat { seat }).await {
            self.wait(LASTS).await;
        }
        self.happens(format_args!("{seat} removed"));
        self.wait(DOWN).await;
        world.kill(machine.seat, Death::Killed).await;
        world.remove_machine(seat);
        Some(())
    }
}

fn set_cut(world: &World, pairs: &[(&Rc<Machine>, &Rc<Machine>)], both_ways: bool, cut: bool) {
    for (one, other) in pairs {
        world.net.change_rules(one.host, other.host, |rules| rules.cut = cut);
        if both_ways {
            world.net.change_rules(other.host, one.host, |rules| rules.cut = cut);
        }
    }
}

/// Changes what a file of the log, of the verdicts, or a snapshot holds. The node record is left alone: it has no second copy, and who loses it
/// has lost the directory, which [`FaultKind::Wipe`] does. Returns which file and where, if it hit something.
fn damage(machine: &Machine, kind: FaultKind, random: &mut Random) -> Option<(String, usize)> {
    let disk = machine.disk();
    let mut paths = disk.paths();
    paths.retain(|path| path.starts_with(DATA) && path.parent().is_some_and(|parent| !parent.ends_with("data")));
    if paths.is_empty() {
        return None;
    }
    let path = paths.swap_remove(random.below(paths.len() as u64) as usize);
    let mut hit = None;
    disk.corrupt(&path, |content| {
        // Where something was written.
        let sectors: Vec<usize> = (0..content.len() / SECTOR_BYTES)
            .filter(|at| content[at * SECTOR_BYTES..][..SECTOR_BYTES].iter().any(|byte| *byte != 0))
            .collect();
        let mut sector = || sectors.get(random.below(sectors.len() as u64) as usize).map(|at| at * SECTOR_BYTES);
        let (Some(from), Some(to)) = (sector(), sector()) else { return };
        hit = Some(to);
        if kind == FaultKind::MisdirectedWrite {
            content.copy_within(from..from + SECTOR_BYTES, to);
        } else {
            for _ in 0..=random.below(3) {
                let bit = random.below(SECTOR_BYTES as u64 * 8) as usize;
                content[to + bit / 8] ^= 1 << (bit % 8);
            }
        }
    });
    hit.map(|at| (path.display().to_string(), at))
}
