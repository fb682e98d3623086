//! What goes to stdout, and how a command ends.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

/// Why a command ends otherwise than with 0. The codes are told in `quorate --help`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    /// Stdout is gone (`quorate watch | head`): nothing to complain about.
    Quiet = 0,
    /// It failed, or the answer is no.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No server, or none in time; nothing was applied.
    Unreachable = 3,
    /// It may or may not have been applied.
    Unknown = 4,
    /// Ctrl-C before it was done.
    Interrupted = 130,
}

/// How a command ends otherwise than with 0.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// Said on stderr unless empty.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Code::Unreachable, message)
    }

    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let _ = writeln!(io::stderr(), "quorate: {}", self.message);
        }
        ExitCode::from(self.code as u8)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::new(Code::Quiet, "") } else { Self::failed(error.to_string()) }
    }
}

/// Prints one line and makes sure that a reader at the other end of a pipe has it.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints one JSON object as a line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string()))?)
}

/// Bytes as a reader would like them: text where it is text, hex behind `0x` otherwise.
pub(crate) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Resolves at the first SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_text_and_everything_else_as_hex() {
        assert_eq!(readable("grüß dich".as_bytes()), "grüß dich");
        assert_eq!(readable(b"a\nb"), "0x610a62");
        assert_eq!(readable(&[0xff, 0]), "0xff00");
        assert_eq!(readable(b""), "");
    }

    #[test]
    fn a_closed_stdout_is_not_an_error() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).code, Code::Quiet);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::NotFound)).code, Code::Failed);
    }
}
