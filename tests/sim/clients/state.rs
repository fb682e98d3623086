//! The `kv` state of a simulated client: the product's, and where it stands.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};
use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::{Kv, KvCommand, KvReply};
use voter_mesh::machine::{Position, RestoreError, StateMachine};

/// A `kv` that remembers which command it has seen last.
#[derive(Debug, Default)]
pub struct Watched {
    /// The state.
    pub kv: Kv,
    /// The last command's index. None before the first one, and behind a snapshot.
    pub last: Option<LogIndex>,
}

impl Watched {
    /// SHA-256 of what the machine writes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut bytes = Vec::new();
        Kv::write(self.kv.clone(), &mut bytes).expect("memory takes all");
        Sha256::digest(bytes).into()
    }
}

impl StateMachine for Watched {
    const NAME: &'static str = Kv::NAME;
    const VERSION: u32 = Kv::VERSION;
    type Command = KvCommand;
    type Reply = KvReply;
    type Image = Kv;

    fn apply(&mut self, command: KvCommand, at: &Position) -> KvReply {
        self.last = Some(at.index);
        self.kv.apply(command, at)
    }

    fn image(&self) -> Kv {
        self.kv.image()
    }

    fn write(image: Kv, to: &mut impl Write) -> io::Result<()> {
        Kv::write(image, to)
    }

    fn restore(from: &mut impl Read) -> Result<Self, RestoreError> {
        Ok(Self { kv: Kv::restore(from)?, last: None })
    }
}
