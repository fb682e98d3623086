#![allow(clippy::unwrap_used)]
use super::*;
/// A source that repeats itself for the same seed.
pub(crate) fn randomness(seed: u64) -> Randomness {
    let mut state = seed;
    Randomness::new(move |bytes| {
        for byte in bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 33) as u8;
        }
    })
}
