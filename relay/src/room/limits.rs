//! Every bound of the room, with its reason.

use voter_mesh::entry::PAYLOAD_BYTES_MAX;

use crate::feed::FeedLimits;
use crate::wire::{WINDOW_MAX, WireLimits};

/// What a room lets its clients use. The defaults are valid and safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoomLimits {
    /// The ring of recent runs and its frames.
    pub feed: FeedLimits,
    /// Links at once. Default 20,000; more are refused with `Overloaded`.
    pub links_max: usize,
    /// Links from one address. Default 4,096: many clients may sit behind one gateway, yet one host cannot take all places.
    pub links_per_address_max: usize,
    /// Bytes of one message from a client. Default 1 MiB. A larger one closes the link.
    pub message_bytes_max: usize,
    /// From the connection to the hello. Default 5 s.
    pub handshake_ms: u64,
    /// How long a client whose position lies ahead of this server waits for it to come up. Default 500 ms; then `Behind`.
    pub behind_ms: u64,
    /// How long a client whose place is below the ring waits for the runs behind it to be read. Default 3 s, within what clients
    /// give a handshake; then `Overloaded`.
    pub runs_ms: u64,
    /// Chunks of old runs that are kept for the clients that come to the same place next. Default 16 of about 1 MiB.
    pub runs_kept_max: usize,
    /// Reads of old runs, and of states, under way at once: of each so many. Default 2, so that clients that are behind leave the disk
    /// and the threads to what is new.
    pub reading_max: usize,
    /// How long a client waits for a snapshot's state to be written out. Default 10 s; then `Overloaded`.
    pub state_ms: u64,
    /// States in transfer at once: each holds its bytes on the disk until the slowest of its readers has it. Default 4; a client for
    /// which none of them will do waits as for a state.
    pub states_max: usize,
    /// How long a state is kept, after it was last begun, for the next client that needs one. Default 10 s.
    pub state_keep_ms: u64,
    /// Pieces of states that are kept in memory for the clients that come to the same place next. Default 32 of
    /// [`STATE_PIECE_BYTES`](super::STATE_PIECE_BYTES).
    pub pieces_kept_max: usize,
    /// A snapshot of which a client takes nothing for this long is given up, with its link. Default 60 s.
    pub snapshot_stall_ms: u64,
    /// Silence after which a client pings; after twice as much its link is closed. Default 20 s. Shorter: a dead link is
    /// noticed sooner, and a client to whom nothing happens costs its server more.
    pub ping_ms: u64,
    /// How long the socket of a closed link may take to accept its last frame. Default 2 s; then the owner is told to drop it.
    pub goodbye_ms: u64,
    /// Bytes of control frames and replies that may wait for a client that does not read. Default 4 MiB; beyond, its link is closed
    /// with `Overloaded`. The feed never waits: it is a cursor.
    pub outbox_bytes_max: usize,
    /// Bytes of proposals laid out and not yet taken by the server. Default 4 MiB; beyond, proposals are refused with `Overloaded`.
    pub proposals_bytes_max: usize,
    /// What an overloaded server tells clients to wait before they come again. Default 100 ms.
    pub retry_after_ms: u32,
    /// How long clients wait for an answer of a server that knows of no leader. Default 3 s, some elections; then they are sent to the
    /// other servers with `Leaderless`, and again after as long. Who waits for nothing is sent after four times as long.
    pub leaderless_ms: u64,
    /// Reads of one link that wait. Default 1,024; more are refused with `Overloaded`.
    pub reads_per_link_max: u32,
    /// How long a read waits for its index. Default 5 s; then it is refused with `Timeout`.
    pub read_ms: u64,
    /// `Fetch` requests of one link that wait. Default 8; more close the link.
    pub fetches_per_link_max: usize,
    /// `SessionOpen`, `SessionAttach`, `SessionClose` and `Resume` frames of one link per activity period: each may cost a log entry.
    /// Default 32; more are refused with `Overloaded`.
    pub session_frames_max: u32,
    /// Between two reports of which sessions came and went. Default 10 s.
    pub activity_ms: u64,
    /// From the end of one pass over all links that follow the feed to the beginning of the next. Default 2 ms: a longer gap makes
    /// longer, fewer writes. A command that comes alone waits for nothing, and nobody waits for the answer to his own.
    pub feed_gap_ms: u64,
    /// A pass that took longer than that is followed by as long a gap as it took itself, so that passes take half of the time at most;
    /// and by no longer one than this. Default 20 ms.
    pub feed_gap_max_ms: u64,
    /// From one `Commit` on a standby link to the next. Default 100 ms.
    pub commit_gap_ms: u64,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self {
            feed: FeedLimits::default(),
            links_max: 20_000,
            links_per_address_max: 4_096,
            message_bytes_max: 1 << 20,
            handshake_ms: 5_000,
            behind_ms: 500,
            runs_ms: 3_000,
            runs_kept_max: 16,
            reading_max: 2,
            state_ms: 10_000,
            states_max: 4,
            state_keep_ms: 10_000,
            pieces_kept_max: 32,
            snapshot_stall_ms: 60_000,
            ping_ms: 20_000,
            goodbye_ms: 2_000,
            outbox_bytes_max: 4 << 20,
            proposals_bytes_max: 4 << 20,
            retry_after_ms: 100,
            leaderless_ms: 3_000,
            reads_per_link_max: 1_024,
            read_ms: 5_000,
            fetches_per_link_max: 8,
            session_frames_max: 32,
            activity_ms: 10_000,
            feed_gap_ms: 2,
            feed_gap_max_ms: 20,
            commit_gap_ms: 100,
        }
    }
}

impl RoomLimits {
    /// What clients are told.
    pub(crate) fn wire(&self) -> WireLimits {
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        WireLimits {
            message_bytes_max: narrow(self.message_bytes_max),
            payload_bytes_max: narrow(PAYLOAD_BYTES_MAX),
            window_max: narrow(WINDOW_MAX),
            ping_ms: u32::try_from(self.ping_ms).unwrap_or(u32::MAX),
        }
    }
}
