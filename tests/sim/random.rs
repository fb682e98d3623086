//! Numbers from a seed: the same ones in every run.

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
    pub const fn apart(seed: u64, purpose: &str) -> Self {
        let (mut hash, mut at) = (0xCBF2_9CE4_8422_2325_u64, 0);
        while at < purpose.len() {
            hash = (hash ^ purpose.as_bytes()[at] as u64).wrapping_mul(0x0100_0000_01B3);
            at += 1;
        }
        Self::new(seed ^ hash)
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
