//! The decoders, and how each is given bytes.
#![allow(clippy::unwrap_used, reason = "a panic is what is looked for")]

mod frames;
mod log;
mod stored;
mod values;

/// A decoder.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name; its corpus lies in a directory of that name.
    pub name: &'static str,
    /// Decodes bytes, and if they decode, encodes and decodes again: what it came to. Panics where that is not the same.
    pub run: fn(&[u8]) -> String,
    /// Makes checksums right again after bytes were changed, so that what lies behind them is reached.
    pub repair: Option<fn(&mut [u8])>,
    /// Inputs that are right, by name: what a corpus begins with.
    pub golden: fn() -> Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All of them.
pub const ALL: &[Target] = &[
    frames::CLIENT,
    frames::SERVER,
    frames::BLOCKS,
    frames::MESH,
    frames::BULK,
    frames::HANDSHAKE,
    log::ENTRIES,
    log::RUN,
    log::RECORDS,
    log::HEADER,
    log::MARK,
    log::SEGMENT,
    stored::NODE,
    stored::VERDICTS,
    stored::SNAPSHOT,
    stored::JOURNAL,
    values::JOURNAL_RECORD,
    values::SESSIONS,
    values::KV,
    values::KV_COMMAND,
    values::CONFIGURATION,
    values::SESSION_PAYLOADS,
];

/// Puts the CRC32C of what lies before `at` there, if it is there.
fn seal(bytes: &mut [u8], at: usize) {
    if bytes.len() >= at + 4 {
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A file of a server that wrote the first version of the format.
fn fixture(path: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
