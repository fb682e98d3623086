//! The little of CBOR (RFC 8949) that the protocol uses: unsigned integers, byte and text strings, arrays, booleans and null, all of
//! definite length. Reading borrows, so a payload is found without being copied; and it never recurses, so nesting costs nothing.

use bytes::{BufMut, BytesMut};

use super::WireError;

const UINT: u8 = 0 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;

/// Bytes that a head may take: major type and the widest argument.
pub(super) const HEAD_BYTES_MAX: usize = 9;

fn put_head(to: &mut BytesMut, major: u8, argument: u64) {
    match argument {
        0..=23 => to.put_u8(major | argument as u8),
        24..=0xff => to.put_slice(&[major | 24, argument as u8]),
        0x100..=0xffff => {
            to.put_u8(major | 25);
            to.put_u16(argument as u16);
        }
        0x1_0000..=0xffff_ffff => {
            to.put_u8(major | 26);
            to.put_u32(argument as u32);
        }
        _ => {
            to.put_u8(major | 27);
            to.put_u64(argument);
        }
    }
}

pub(super) fn put_uint(to: &mut BytesMut, value: u64) {
    put_head(to, UINT, value);
}

pub(super) fn put_bytes(to: &mut BytesMut, value: &[u8]) {
    put_head(to, BYTES, value.len() as u64);
    to.put_slice(value);
}

pub(super) fn put_text(to: &mut BytesMut, value: &str) {
    put_head(to, TEXT, value.len() as u64);
    to.put_slice(value.as_bytes());
}

pub(super) fn put_array(to: &mut BytesMut, items: usize) {
    put_head(to, ARRAY, items as u64);
}

pub(super) fn put_bool(to: &mut BytesMut, value: bool) {
    to.put_u8(if value { TRUE } else { FALSE });
}

pub(super) fn put_null(to: &mut BytesMut) {
    to.put_u8(NULL);
}

/// Writes a value, or null for none.
pub(super) fn put_option<T>(to: &mut BytesMut, value: Option<T>, put: impl FnOnce(&mut BytesMut, T)) {
    match value {
        Some(value) => put(to, value),
        None => put_null(to),
    }
}

/// Reads a frame's body from front to back.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Refuses bytes behind the body.
    pub(super) const fn finish(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn head(&mut self, major: u8) -> Result<u64, WireError> {
        let (&first, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
        if first & 0xe0 != major {
            return Err(WireError::Type);
        }
        self.rest = rest;
        let width = match first & 0x1f {
            short @ 0..=23 => return Ok(u64::from(short)),
            width @ 24..=27 => 1 << (width - 24),
            _ => return Err(WireError::Type),
        };
        Ok(self.take(width)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    pub(super) fn uint(&mut self) -> Result<u64, WireError> {
        self.head(UINT)
    }

    /// An integer of a narrower type.
    pub(super) fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, WireError> {
        T::try_from(self.uint()?).map_err(|_| WireError::Range)
    }

    fn string(&mut self, major: u8, bytes_max: usize) -> Result<&'a [u8], WireError> {
        let count = self.head(major)?;
        // Compared as u64, before any conversion: a claim of 2^63 bytes is over every limit.
        if count > bytes_max as u64 {
            return Err(WireError::TooLarge);
        }
        self.take(count as usize)
    }

    pub(super) fn bytes(&mut self, bytes_max: usize) -> Result<&'a [u8], WireError> {
        self.string(BYTES, bytes_max)
    }

    /// A byte string of exactly `N` bytes.
    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.bytes(N)?.try_into().map_err(|_| WireError::Range)
    }

    pub(super) fn text(&mut self, bytes_max: usize) -> Result<String, WireError> {
        let bytes = self.string(TEXT, bytes_max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::Type)
    }

    pub(super) fn bool(&mut self) -> Result<bool, WireError> {
        match self.take(1)? {
            [FALSE] => Ok(false),
            [TRUE] => Ok(true),
            _ => Err(WireError::Type),
        }
    }

    /// An array; how many items follow.
    pub(super) fn array(&mut self) -> Result<u64, WireError> {
        self.head(ARRAY)
    }

    /// An array of exactly `items` items.
    pub(super) fn tuple(&mut self, items: u64) -> Result<(), WireError> {
        if self.array()? == items { Ok(()) } else { Err(WireError::Range) }
    }

    /// An array of at most `items_max` items, each of which takes at least one byte: nothing is allocated for items that cannot be there.
    pub(super) fn list<T>(
        &mut self,
        items_max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let items = self.array()?;
        if items > items_max as u64 {
            return Err(WireError::TooLarge);
        }
        if items > self.rest.len() as u64 {
            return Err(WireError::Truncated);
        }
        let mut list = Vec::with_capacity(items as usize);
        for _ in 0..items {
            list.push(item(self)?);
        }
        Ok(list)
    }

    /// A value, or none for null.
    pub(super) fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T, WireError>) -> Result<Option<T>, WireError> {
        if let Some((&NULL, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(None);
        }
        value(self).map(Some)
    }

    /// Refuses anything but null.
    pub(super) fn null(&mut self) -> Result<(), WireError> {
        if self.take(1)? == [NULL] { Ok(()) } else { Err(WireError::Type) }
    }
}
