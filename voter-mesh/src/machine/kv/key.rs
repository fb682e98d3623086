//! A key as it lies in the map's nodes: a short one in place, so that a search follows no pointer to compare, and so that it compares
//! numbers.

use std::cmp::Ordering;

/// Bytes of a key that lie in place.
const SHORT_MAX: usize = 24;

/// So many, eight at a time.
type Front = [[u8; 8]; SHORT_MAX / 8];

/// A key.
#[derive(Clone)]
pub(super) enum Key {
    /// Behind its end zeros.
    Short {
        len: u8,
        front: Front,
    },
    Long(Box<[u8]>),
}

impl Key {
    pub(super) fn new(key: &[u8]) -> Self {
        match front(key) {
            front if key.len() <= SHORT_MAX => Self::Short { len: key.len() as u8, front },
            _ => Self::Long(key.into()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, front } => &front.as_flattened()[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// A key that is compared with many.
pub(super) struct Sought<'a> {
    numbers: (u64, u64, u64),
    key: &'a [u8],
}

impl<'a> Sought<'a> {
    pub(super) fn new(key: &'a [u8]) -> Self {
        Self { numbers: numbers(&front(key)), key }
    }

    pub(super) const fn bytes(&self) -> &'a [u8] {
        self.key
    }

    /// How `other` lies to it.
    #[inline]
    pub(super) fn order(&self, other: &Key) -> Ordering {
        match other {
            // Equal up to the shorter one's end, and zeros behind it: the shorter one is the lower.
            Key::Short { len, front } => numbers(front).cmp(&self.numbers).then_with(|| usize::from(*len).cmp(&self.key.len())),
            Key::Long(bytes) => bytes[..].cmp(self.key),
        }
    }
}

/// As much of a key as lies in place.
fn front(key: &[u8]) -> Front {
    let (mut front, bytes) = (Front::default(), key.len().min(SHORT_MAX));
    front.as_flattened_mut()[..bytes].copy_from_slice(&key[..bytes]);
    front
}

/// Numbers that are ordered as the bytes are.
#[inline]
const fn numbers(front: &Front) -> (u64, u64, u64) {
    let [first, second, third] = *front;
    (u64::from_be_bytes(first), u64::from_be_bytes(second), u64::from_be_bytes(third))
}
