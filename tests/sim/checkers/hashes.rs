//! Same index, same state: whoever stands at an index, server or learner, in any life, holds the same state and session table.
//!
//! From the hashes that servers give in their status and clients take of their learners' states. That the state is the right one is for
//! the index oracle.

use std::collections::BTreeMap;

use voter_mesh::ids::LogIndex;

use super::{Checker, History, Wrong};
use crate::sim::record::{Event, What};

#[derive(Debug, Default)]
pub(super) struct Hashes {
    states: BTreeMap<LogIndex, (String, String)>,
    sessions: BTreeMap<LogIndex, (String, String)>,
}

fn compare(known: &mut BTreeMap<LogIndex, (String, String)>, index: LogIndex, hash: &str, who: String, wrong: &mut Wrong<'_>) {
    let (first, first_hash) = known.entry(index).or_insert_with(|| (who.clone(), hash.to_owned()));
    if first_hash != hash {
        wrong.say(|| format!("at {index} {first} holds {first_hash} and {who} {hash}"));
    }
}

impl Checker for Hashes {
    fn name(&self) -> &'static str {
        "same index, same state"
    }

    fn observe(&mut self, event: &Event, _history: &History, wrong: &mut Wrong<'_>) {
        match &event.what {
            What::Status { server, status } => {
                let who = || format!("server {server} ({:?})", status.id);
                if let Some(hash) = &status.state_hash {
                    compare(&mut self.states, status.applied, hash, who(), wrong);
                }
                if let Some(hash) = &status.sessions_hash {
                    compare(&mut self.sessions, status.applied, hash, who(), wrong);
                }
            }
            What::Learnt { learner, index, state_hash: Some(hash), .. } => {
                let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                compare(&mut self.states, *index, &hash, format!("{learner:?}"), wrong);
            }
            _ => {}
        }
    }
}
