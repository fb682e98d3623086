//! How this program's memory is handed out: by the system's allocator, set up for a server. The libraries choose nothing.

/// Memory that is free at the heap's end and stays with the process. Less is given back and asked for again with every burst.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 64 << 20;
/// What the heap grows by at least: one system call for so much.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const STEP_BYTES: i32 = 1 << 20;
/// Larger pieces are mapped by themselves, and cost page faults each time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: i32 = 32 << 20;

/// To be called before any thread starts. All of it is advice: where the system refuses one, memory is handed out as before.
///
/// One heap for all threads: a voter does nearly everything on one thread, and an arena of its own grows and shrinks by a system call for
/// each few pages. `docs/performance.md` has the figures, and those of other allocators.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn set_up() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_TOP_PAD, STEP_BYTES),
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
    ] {
        #[expect(unsafe_code, reason = "there is no safe form of it")]
        // SAFETY: `mallopt` takes two numbers, refuses those that it does not know, and locks what it changes.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

/// Other systems' allocators are as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn set_up() {}
