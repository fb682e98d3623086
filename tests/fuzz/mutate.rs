//! Changes to inputs: those that decoders are wont to overlook.

use crate::sim::random::Random;

/// Numbers at which things turn.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    63,
    64,
    255,
    256,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX / 2,
    u64::MAX - 1,
    u64::MAX,
];

fn at(random: &mut Random, bytes: &[u8]) -> usize {
    random.below(bytes.len() as u64 + 1) as usize
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (byte, new) in bytes[at..].iter_mut().zip(with) {
        *byte = *new;
    }
}

/// Changes `bytes` a few times; `other` is another input, of which parts may be taken. No more than `bytes_max` come of it.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8], bytes_max: usize) {
    for _ in 0..=random.below(5) {
        let place = at(random, bytes);
        match random.below(11) {
            0 | 1 if place < bytes.len() => bytes[place] ^= 1 << random.below(8),
            2 if place < bytes.len() => bytes[place] = random.next() as u8,
            3 => bytes.insert(place, random.next() as u8),
            4 => drop(bytes.drain(place..(place + random.below(9) as usize).min(bytes.len()))),
            5 => bytes.truncate(place),
            6 | 7 => {
                // A number of any width, in either order, or what CBOR has before one.
                let edge = EDGES[random.below(EDGES.len() as u64) as usize].wrapping_add(random.below(3)).wrapping_sub(1);
                let width = 1 << random.below(4);
                let mut number = edge.to_le_bytes()[..width].to_vec();
                if random.below(2) == 0 {
                    number.reverse();
                }
                overwrite(bytes, place, &number);
            }
            8 => {
                let end = (place + random.below(33) as usize).min(bytes.len());
                let part = bytes[place..end].to_vec();
                let to = at(random, bytes);
                bytes.splice(to..to, part);
            }
            9 => {
                let from = at(random, other);
                let part = &other[from..(from + random.below(65) as usize).min(other.len())];
                if random.below(2) == 0 {
                    overwrite(bytes, place, part)
                } else {
                    drop(bytes.splice(place..place, part.iter().copied()))
                }
            }
            _ => {
                let byte = [0x00, 0xff, 0x1b, 0x3b, 0x5b, 0x7b, 0x9b, 0xbb, 0x9f, 0xbf, 0xf6, 0x80][random.below(12) as usize];
                overwrite(bytes, place, &[byte]);
            }
        }
    }
    bytes.truncate(bytes_max);
}
