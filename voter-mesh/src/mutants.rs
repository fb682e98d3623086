//! Seeded bugs, for the simulator to find: each is a mistake that a system of this kind has made, at the place where this one does it
//! right. They exist only in a build with `--cfg mutants`, and there only the one that was chosen is on; in every other build
//! [`mutant!`](crate::mutant) is `false`, and nothing of them is left, not even their names.

/// Whether the seeded bug of this name is on: `false` in every build without `--cfg mutants`.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {{
        #[cfg(mutants)]
        let on = $crate::mutants::is_on(concat!("mutant:", $name));
        #[cfg(not(mutants))]
        let on = false;
        on
    }};
}

#[cfg(mutants)]
std::thread_local! {
    static CHOSEN: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
    static LOCAL_MS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Turns on one mutant for this thread, by its whole name (`mutant:` and what the macro was given), or none.
#[cfg(mutants)]
pub fn choose(name: Option<&'static str>) {
    CHOSEN.set(name);
}

/// Whether this mutant was chosen.
#[cfg(mutants)]
#[must_use]
pub fn is_on(name: &str) -> bool {
    CHOSEN.get() == Some(name)
}

/// The wall clock of the server that runs now: what no replica of ours may read.
#[cfg(mutants)]
#[must_use]
pub fn local_ms() -> u64 {
    LOCAL_MS.get()
}

/// Sets [`local_ms`].
#[cfg(mutants)]
pub fn set_local_ms(ms: u64) {
    LOCAL_MS.set(ms);
}
