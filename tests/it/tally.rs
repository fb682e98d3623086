//! A state machine that only counts: how often each command took effect. "Once" is then something that any replica can be asked.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use voter_mesh::machine::{Position, RestoreError, StateMachine};

#[derive(Clone, Default, Debug)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// How often this command took effect.
    pub fn of(&self, command: &str) -> u64 {
        self.0.get(command).copied().unwrap_or(0)
    }

    /// How many commands took effect.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl StateMachine for Tally {
    const NAME: &'static str = "tally";
    const VERSION: u32 = 1;
    type Command = String;
    /// How often the command has taken effect now.
    type Reply = u64;
    type Image = Self;

    fn apply(&mut self, command: String, _at: &Position) -> u64 {
        let count = self.0.entry(command).or_default();
        *count += 1;
        *count
    }

    fn image(&self) -> Self {
        self.clone()
    }

    fn write(image: Self, to: &mut impl Write) -> io::Result<()> {
        for (command, count) in &image.0 {
            writeln!(to, "{count} {command}")?;
        }
        Ok(())
    }

    fn restore(from: &mut impl Read) -> Result<Self, RestoreError> {
        let mut text = String::new();
        from.read_to_string(&mut text)?;
        let line = |line: &str| {
            let (count, command) = line.split_once(' ')?;
            Some((command.to_owned(), count.parse().ok()?))
        };
        let lines = text.lines().map(|text| line(text).ok_or_else(|| RestoreError::Malformed(text.to_owned())));
        Ok(Self(lines.collect::<Result<_, _>>()?))
    }
}
