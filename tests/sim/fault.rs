//! The kinds of misfortune.

/// What can be done to the world, by whom it concerns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// A server's process is killed; its disk keeps its cache.
    Kill,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Kill];

    /// Its name in tables and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
        }
    }
}
