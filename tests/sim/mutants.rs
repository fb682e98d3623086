//! The seeded bugs of the product (`voter_mesh::mutants`), and the hunt for them: each is turned on alone, and seeds are run until a
//! checker finds it. What the simulator cannot find here, it would not find in the product either.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A seeded bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its whole name, as the build with `--cfg mutants` knows it.
    pub name: &'static str,
    /// Which part of the product does it wrong.
    pub part: &'static str,
    /// What it does wrong.
    pub story: &'static str,
}

const fn mutant(name: &'static str, part: &'static str, story: &'static str) -> Mutant {
    Mutant { name, part, story }
}

/// All of them.
pub const MUTANTS: [Mutant; 38] = [
    mutant("mutant:vote_before_sync", "consensus", "a vote leaves before it is durable"),
    mutant("mutant:ack_before_sync", "consensus", "a follower acknowledges runs before they are durable"),
    mutant(
        "mutant:commit_before_sync",
        "consensus",
        "a leader counts its own copy before it is durable: the reply comes before the sync",
    ),
    mutant("mutant:commit_old_term", "consensus", "a leader commits an old term's entries by counting copies (figure 8)"),
    mutant("mutant:commit_unclamped", "consensus", "a heartbeat's commit index is believed beyond the own log"),
    mutant("mutant:truncate_on_overlap", "consensus", "an old append that agrees with the log cuts what is behind it"),
    mutant("mutant:progress_not_reset", "consensus", "a follower that lost its tail is still believed to have it"),
    mutant("mutant:read_before_noop", "consensus", "a new leader answers reads before an entry of its term is committed"),
    mutant("mutant:stale_leader_reads", "consensus", "a leader answers reads without asking whether it still is one"),
    mutant("mutant:suspect_votes", "consensus", "a server that lost what it had acknowledged elects whoever lacks it too"),
    mutant("mutant:forwarded_once", "consensus", "what was given to a leader that is gone is not given to the next one"),
    mutant("mutant:wiped_server_votes", "forming", "a server with an empty directory takes its old place"),
    mutant("mutant:suspect_cut_as_torn", "marks", "what is missing at the log's end is taken for a write that nobody was told of"),
    mutant("mutant:mark_without_vote", "marks", "the mark forgets the vote"),
    mutant("mutant:log_without_sync", "log", "writes are confirmed without a sync"),
    mutant("mutant:rename_without_directory_sync", "log", "a file's new name is not made durable"),
    mutant("mutant:snapshot_without_sync", "log", "a snapshot gets its name before its contents are durable"),
    mutant("mutant:uncommitted_applied_at_start", "server", "a start applies what may still be overwritten"),
    mutant("mutant:read_before_applied", "server", "a read is answered before its index is applied"),
    mutant("mutant:sessions_not_in_snapshot", "sessions", "a snapshot has no session table"),
    mutant("mutant:evict_live_sessions", "sessions", "a full table drops the session that was idle for longest"),
    mutant("mutant:expiry_by_local_clock", "sessions", "each server's own clock says whether a session has expired"),
    mutant("mutant:one_high_water_mark", "sessions", "only a session's highest request is remembered"),
    mutant("mutant:floor_ignored", "sessions", "a request below the floor takes effect again"),
    mutant("mutant:conflict_ignored", "sessions", "another command under a used id gets the first one's outcome"),
    mutant("mutant:forgotten_in_a_new_term", "sessions", "outcomes of an earlier term are forgotten"),
    mutant("mutant:attach_unchecked", "sessions", "a copied journal takes its session over"),
    mutant("mutant:old_opening_accepted", "sessions", "a journal that was overtaken goes on proposing"),
    mutant("mutant:verdict_for_a_repeat", "feed", "learners are told to apply a repeated command"),
    mutant("mutant:feed_skips_on_wrap", "feed", "a cursor that the ring has passed goes on at the ring's beginning"),
    mutant("mutant:frame_of_another_place", "feed", "a cursor gets a frame that was built for another"),
    mutant("mutant:resume_without_chain", "relay", "a learner of another history is let in"),
    mutant("mutant:admit_evicts_another", "relay", "a second client ends the first one's feed"),
    mutant("mutant:verdicts_ignored", "client", "a learner applies what took no effect"),
    mutant("mutant:answered_before_applied", "client", "a proposal returns before the own replica has it"),
    mutant("mutant:ids_not_journaled", "client", "request ids are used before the journal holds their block"),
    mutant("mutant:retry_under_a_new_id", "client", "what is not answered in time is proposed again as something new"),
    mutant("mutant:linearizable_read_is_local", "client", "a linearizable read asks nobody"),
];

/// How a mutant ended.
#[derive(Clone, Debug)]
pub struct Kill {
    /// The seed.
    pub seed: u64,
    /// Which checker found it.
    pub checker: String,
    /// In its words.
    pub text: String,
}

/// What a hunt came to.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Whom it was after.
    pub mutant: Mutant,
    /// How it ended; `None`: it lives.
    pub kill: Option<Kill>,
    /// Seeds that were run.
    pub seeds: u64,
    /// How long it took.
    pub wall: Duration,
}

/// Whether this build has the mutants.
pub const HERE: bool = cfg!(mutants);

#[cfg(mutants)]
fn choose(mutant: Option<Mutant>) {
    voter_mesh::mutants::choose(mutant.map(|mutant| mutant.name));
}

#[cfg(not(mutants))]
fn choose(_: Option<Mutant>) {}

/// Whether a seed is good without the mutant: only then is what is wrong with it the mutant's doing.
fn innocent(mutant: Mutant, is_good: impl Fn() -> bool) -> bool {
    choose(None);
    let good = is_good();
    choose(Some(mutant));
    good
}

/// Turns a mutant on and runs these seeds, ascending, on so many threads, until `run` says that one of them is bad. The lowest bad seed
/// that was found counts.
pub fn hunt(mutant: Mutant, seeds: Range<u64>, threads: usize, run: impl Fn(u64) -> Option<(String, String)> + Sync) -> Hunt {
    let began = Instant::now();
    let (next, end, ran) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end), AtomicU64::new(0));
    let kill = Mutex::new(None::<Kill>);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                choose(Some(mutant));
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= end.load(Ordering::SeqCst) {
                        break;
                    }
                    let bad = run(seed);
                    ran.fetch_add(1, Ordering::SeqCst);
                    if let Some((checker, text)) = bad
                        && innocent(mutant, || run(seed).is_none())
                    {
                        end.fetch_min(seed, Ordering::SeqCst);
                        let mut kill = kill.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        if kill.as_ref().is_none_or(|known| known.seed > seed) {
                            *kill = Some(Kill { seed, checker, text });
                        }
                    }
                }
                choose(None);
            });
        }
    });
    let kill = kill.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Hunt { mutant, kill, seeds: ran.into_inner(), wall: began.elapsed() }
}
