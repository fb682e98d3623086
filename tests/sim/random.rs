//! Numbers from a seed: the same ones in every run.

/// What [`fnv1a`] begins with.
pub const FNV1A_OF_NOTHING: u64 = 0xCBF2_9CE4_8422_2325;

/// FNV-1a (Fowler, Noll, Vo), 64 bits: the hash of what `hash` is the hash of, and these bytes behind it. Nothing hashed here is chosen by an
/// enemy.
#[must_use]
pub fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A small generator (splitmix64), good enough to choose test cases.
#[derive(Clone, Debug, Default)]
pub struct Random(u64);

impl Random {
    /// A generator that `seed` determines.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for one purpose among several that a seed decides: what it draws changes nothing of what others do.
    #[must_use]
    pub fn apart(seed: u64, purpose: &str) -> Self {
        Self::new(seed ^ fnv1a(FNV1A_OF_NOTHING, purpose.as_bytes()))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// One of 0 to `end` - 1; 0 if there is none.
    pub const fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }
}
