//! Every bound of a server, by name.

/// What a server allows. The defaults suit a machine with a few gigabytes; every one can be changed through the builder.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Milliseconds that a client's HTTP request, and then its first frame, may take. Default 5,000.
    /// Longer: slow networks get in; more half-open sockets are held.
    pub handshake_ms: u64,
    /// HTTP requests being read at once on one listener. Default 4,096: over that, connections are closed unanswered.
    pub handshakes_max: usize,
    /// Bytes of one HTTP request. Default 16 KiB (hyper's least is 8 KiB).
    pub http_bytes_max: usize,
    /// Upgraded sockets waiting for the room's thread. Default 256.
    pub accept_backlog_max: usize,
    /// Bytes of one WebSocket message. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Bytes read from a client's socket at once. Default 64 KiB, once per server: an idle client costs none of them.
    pub socket_read_bytes: usize,
    /// Bytes that one link is given in one turn. Default 128 KiB.
    pub turn_bytes_max: usize,
    /// Frames that are taken from one link in one turn. Default 64.
    pub frames_per_turn_max: usize,
    /// Milliseconds that a closing link gets to take its last frames. Default 1,000.
    pub goodbye_ms: u64,
    /// Milliseconds that an administrator's request may take. Default 30,000: a newcomer's first snapshot counts in.
    pub admin_ms: u64,
    /// Milliseconds for which whoever takes a backup may take nothing of it. Default 30,000: then it is broken off, and the image goes.
    pub backup_stall_ms: u64,
    /// Bytes of entries applied in one turn before sockets are served again. Default 1 MiB.
    pub apply_bytes_max: usize,
    /// Bytes of log kept in memory for followers that lag a little and for the feed. Default 64 MiB. A start begins with at
    /// most 16 MiB of what it reads; who is further behind then is served from the disk.
    pub ring_bytes_max: usize,
    /// Bytes of log kept on disk below the newest snapshot. Default 256 MiB: a client's move between servers rarely needs a snapshot.
    pub log_retain_bytes: u64,
    /// Milliseconds without progress, once a quorum is linked, after which holes in a damaged log are not filled from peers any more.
    /// Default 10,000: then the server starts as a suspect, and the leader gives back what is missing.
    pub fill_ms: u64,
    /// Bytes of verdicts kept in memory, one bit for each entry of the log. Default 64 MiB, enough for 500 million; beyond it the
    /// oldest runs are not served to clients any more.
    pub verdict_bytes_max: usize,
    /// Percent of one core that writing a snapshot may take; 0, or 100 and above: all of it. Default 30: commands are answered as
    /// quickly as before while a large state is written. Full speed where a follower waits for the snapshot, and where the next one
    /// is due before it is written: the log would grow faster than it can be trimmed.
    pub snapshot_cpu_percent: u32,
    /// Bytes of one segment of the log. Default 64 MiB.
    pub segment_bytes: u64,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshake_ms: 5_000,
            handshakes_max: 4_096,
            http_bytes_max: 16 << 10,
            accept_backlog_max: 256,
            message_bytes_max: 1 << 20,
            socket_read_bytes: 64 << 10,
            turn_bytes_max: 128 << 10,
            frames_per_turn_max: 64,
            goodbye_ms: 1_000,
            admin_ms: 30_000,
            backup_stall_ms: 30_000,
            apply_bytes_max: 1 << 20,
            ring_bytes_max: 64 << 20,
            log_retain_bytes: 256 << 20,
            fill_ms: 10_000,
            verdict_bytes_max: 64 << 20,
            snapshot_cpu_percent: 30,
            segment_bytes: 64 << 20,
        }
    }
}
