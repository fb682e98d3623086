//! Bytes from anyone, for every decoder of the product: whatever they are, decoding them does not panic, takes no more memory than
//! they are worth, and ends; and what decodes, encodes to bytes that decode to the same.
//!
//! [`targets::ALL`] are the decoders; `fuzz/corpus/TARGET` holds inputs for each: golden ones, and mutated ones that came to another end
//! than all before. The test `corpus` replays them; the binary `fuzz` mutates them for as long as it is given.

pub mod memory;
pub mod mutate;
pub mod targets;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use targets::Target;

/// Bytes of memory that any input may take: zstd's, a disk's and a replica's own.
const MEMORY_BYTES: usize = 4 << 20;

/// Bytes of memory that a byte of input may take on top: a number of one byte may become an id in a list and in a set.
const MEMORY_BYTES_PER_BYTE: usize = 256;

/// How long an input may take.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Gives an input to a decoder: what it came to, in a few words, by which inputs are told apart.
///
/// # Errors
/// Why the decoder is wrong.
pub fn judge(target: &Target, input: &[u8]) -> Result<String, String> {
    let begin = Instant::now();
    let (outcome, bytes) = memory::peak(|| std::panic::catch_unwind(|| (target.run)(input)));
    let outcome = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it panics: {}", text.unwrap_or("without a word").chars().take(200).collect::<String>())
    })?;
    if bytes > MEMORY_BYTES + input.len() * MEMORY_BYTES_PER_BYTE {
        return Err(format!("{} bytes of input take {bytes} bytes of memory", input.len()));
    }
    if begin.elapsed() > TIME_MAX {
        return Err(format!("it takes {:?}", begin.elapsed()));
    }
    Ok(outcome)
}

/// Where the inputs of a target lie.
#[must_use]
pub fn corpus_path(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// The inputs of a target, by name.
///
/// # Panics
/// If they cannot be read.
#[must_use]
pub fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let path = corpus_path(target);
    let files = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    files
        .map(|file| {
            let path = file.expect("a directory can be read to its end").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect()
}

/// The names of the variants and types that a value begins with, without anything that it holds: enough to tell kinds apart, and
/// few enough to keep an input for each.
pub(crate) fn kind(value: &impl fmt::Debug) -> String {
    #[derive(Default)]
    struct Names {
        all: Vec<String>,
        word: String,
        quoted: bool,
        escaped: bool,
    }
    impl fmt::Write for Names {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for letter in text.chars() {
                if self.quoted {
                    self.quoted = letter != '"' || self.escaped;
                    self.escaped = letter == '\\' && !self.escaped;
                } else if letter.is_ascii_alphanumeric() {
                    self.word.push(letter);
                } else {
                    self.quoted = letter == '"';
                    let word = std::mem::take(&mut self.word);
                    if word.len() > 1
                        && word.starts_with(|first: char| first.is_ascii_uppercase())
                        && word.chars().all(char::is_alphabetic)
                    {
                        self.all.push(word);
                    }
                }
            }
            if self.all.len() < 6 { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut names = Names::default();
    // It stops when there are enough.
    let _ = write!(names, "{value:?} ");
    names.all.truncate(6);
    names.all.join(" ")
}
