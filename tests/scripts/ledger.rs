//! A state machine whose effects can be counted: it remembers every payload that took effect and every session that ended, and
//! replies with how many effects there were. `bad…` does not decode; `big N` gets a reply of N bytes.

use std::io::{Read, Write};

use bytes::Bytes;
use voter_mesh::ids::SessionId;
use voter_mesh::machine::{Image, Machine, MachineFactory, Position, RestoreError, Undecodable};

#[derive(Clone, Default)]
pub(crate) struct Ledger(Vec<String>);

pub(crate) fn factory() -> MachineFactory {
    MachineFactory::raw("ledger", 1, || Box::new(Ledger::default()), |from| Ok(Box::new(read(from)?)))
}

fn read(from: &mut dyn Read) -> Result<Ledger, RestoreError> {
    let mut text = String::new();
    from.read_to_string(&mut text)?;
    Ok(Ledger(text.lines().map(str::to_owned).collect()))
}

/// What a written ledger holds.
pub(crate) fn effects(state: &[u8]) -> String {
    if state.is_empty() { "none".to_owned() } else { String::from_utf8_lossy(state).trim_end().replace('\n', ", ") }
}

impl Machine for Ledger {
    fn apply(&mut self, command: &[u8], _at: &Position) -> Result<Bytes, Undecodable> {
        let text = String::from_utf8(command.to_vec()).map_err(|_| Undecodable)?;
        if text.starts_with("bad") {
            return Err(Undecodable);
        }
        let bytes = text.strip_prefix("big").and_then(|bytes| bytes.parse().ok());
        self.0.push(text);
        Ok(bytes.map_or_else(|| self.0.len().to_string().into(), |bytes| vec![b'.'; bytes].into()))
    }

    fn session_ended(&mut self, session: SessionId, _at: &Position) {
        self.0.push(format!("session {session} ended"));
    }

    fn image(&self) -> Box<dyn Image> {
        Box::new(self.clone())
    }
}

impl Image for Ledger {
    fn write(self: Box<Self>, to: &mut dyn Write) -> std::io::Result<()> {
        self.0.iter().try_for_each(|effect| writeln!(to, "{effect}"))
    }
}
