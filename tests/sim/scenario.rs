//! What kind of world a seed makes: how many servers, how large, how fast, and which kinds of misfortune it knows.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster_server::{ServerCluster, ServerClusterBuilder, ServerLimits};
use relay::room::RoomLimits;
use voter_mesh::ids::Seat;
use voter_mesh::mesh::handshake::MeshSecret;
use voter_mesh::raft::{Timing, VoterLimits};
use voter_mesh::replica::ReplicaLimits;
use voter_mesh::session::SessionLimits;

use super::fault::FaultKind;
use super::host::DiskPace;
use super::net::Rules;
use super::random::Random;
use super::server::mesh_address;

/// Everything that is decided before a run begins.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What decides the rest, and the run.
    pub seed: u64,
    /// Servers that form the cluster.
    pub voters: u16,
    /// Clients of each kind, in hundredths of the usual number.
    pub clients_percent: u32,
    /// Clients that ask for what must be refused; where there are any, the session table is small.
    pub trespassers: u32,
    /// How long faults happen.
    pub faults: Duration,
    /// Which.
    pub kinds: BTreeSet<FaultKind>,
    /// The mean time from one to the next.
    pub fault_every: Duration,
    /// Every link, when nothing is wrong.
    pub rules: Rules,
    /// Bytes in one direction of a stream.
    pub buffer_bytes: usize,
    /// Every disk, when nothing is wrong.
    pub pace: DiskPace,
    limits: ServerLimits,
    voter_limits: VoterLimits,
    replica_limits: ReplicaLimits,
    session_ttl: Duration,
}

/// The longest time between two heartbeats that a follower bears. The default timing is what runs.
#[must_use]
pub fn election_timeout() -> Duration {
    let Timing { tick_ms, election_ticks_max, .. } = Timing::default();
    Duration::from_millis(tick_ms * election_ticks_max as u64)
}

impl Scenario {
    /// What the seed decides.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5CE7_A210);
        let voters = [1, 3, 3, 3, 3, 3, 3, 5, 5, 5][random.below(10) as usize];
        let mut kinds: BTreeSet<_> = FaultKind::ALL.into_iter().filter(|_| random.below(5) < 2).collect();
        if kinds.is_empty() {
            kinds.insert(FaultKind::Kill);
        }
        let delay_us = [(0, 500), (100, 1_000), (500, 2_000), (1_000, 20_000)][random.below(4) as usize];
        let rules = Rules { delay_us, ..Rules::default() };
        let segment_bytes = 64 << 10 << random.below(3);
        // Drawn apart, so that the worlds without them stay what they were.
        let trespassers = u32::from(Random::apart(seed, "trespassers").below(6) == 0);
        let mut scenario = Self {
            seed,
            voters,
            trespassers,
            clients_percent: [10, 25, 25, 50][random.below(4) as usize],
            faults: Duration::from_secs(120 + random.below(80)),
            kinds,
            fault_every: Duration::from_millis(500 + random.below(2_500)),
            rules,
            buffer_bytes: 16 << 10 << random.below(5),
            pace: DiskPace { us: [(0, 0), (0, 1_000), (500, 3_000)][random.below(3) as usize], slower: 1 },
            limits: ServerLimits {
                ring_bytes_max: 32 << 10 << random.below(4),
                // What a lone server trims while nobody can follow it, nobody ever sees.
                log_retain_bytes: if voters == 1 { 1 << 30 } else { segment_bytes << random.below(3) },
                segment_bytes,
                // What it takes is not measured here.
                snapshot_cpu_percent: 100,
                ..ServerLimits::default()
            },
            voter_limits: VoterLimits::default(),
            replica_limits: ReplicaLimits {
                snapshot_entries: 100 << random.below(5),
                snapshot_log_bytes: 128 << 10,
                ..ReplicaLimits::default()
            },
            session_ttl: Duration::from_secs([10, 30, 3600][random.below(3) as usize]),
        };
        if trespassers > 0 {
            // More than all others need, once what was left has expired.
            scenario.replica_limits.sessions.sessions_max = 16;
            scenario.session_ttl = Duration::from_secs(10);
        }
        scenario
    }

    /// Limits of the session table.
    #[must_use]
    pub const fn sessions(&self) -> SessionLimits {
        self.replica_limits.sessions
    }

    /// A server of this cluster at `seat`; all but its directory.
    #[must_use]
    pub fn server(&self, seat: Seat) -> ServerClusterBuilder {
        let forming = (1..=self.voters).map(Seat).chain([seat]);
        let peers = forming.map(|seat| (seat, mesh_address(seat).to_string())).collect();
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&self.seed.to_le_bytes());
        ServerCluster::builder()
            .seat(seat, peers)
            .mesh_secret(MeshSecret::from(secret))
            .limits(self.limits.clone())
            .voter_limits(self.voter_limits.clone())
            .replica_limits(self.replica_limits)
            .room_limits(RoomLimits::default())
            .session_ttl(self.session_ttl)
    }
}
