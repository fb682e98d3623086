//! `quorate kv`: keys and values in a room whose state machine is `kv`.

use clap::{Args, Subcommand, ValueEnum};
use cluster_client::Consistency;
use serde_json::json;
use voter_mesh::ids::LogIndex;
use voter_mesh::machine::kv::{KvCommand, KvExpected, KvReply, KvValue};

use crate::attach::{Attach, JournalArg, propose_failure};
use crate::output::{self, Code, Failure, hex, readable};

const EXAMPLES: &str = "\
Examples:
  quorate kv put greeting hello
  quorate kv get greeting
  quorate kv cas greeting 'good bye' --value hello     only if it still says hello
  quorate kv cas lock me --absent                      only if nobody has it
  quorate kv delete greeting

Each key has the log index of its last write as its version. Exits with 1 if there is no such key or the comparison
does not hold.";

/// Read and write keys (in a room of state kv): get, put, delete, compare-and-set
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Kv {
    #[command(subcommand)]
    operation: Operation,
}

#[derive(Subcommand)]
enum Operation {
    /// Print a key's value
    Get {
        /// Which
        key: String,
        /// How recent the answer must be
        #[arg(long, value_enum, default_value_t = Recency::Linearizable)]
        consistency: Recency,
        #[command(flatten)]
        common: Common,
    },
    /// Set a key
    Put {
        /// Which
        key: String,
        /// Its new value
        value: String,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a key
    Delete {
        /// Which
        key: String,
        #[command(flatten)]
        common: Common,
    },
    /// Set a key if it is as expected
    Cas {
        /// Which
        key: String,
        /// Its new value
        new: String,
        #[command(flatten)]
        expected: Expected,
        #[command(flatten)]
        common: Common,
    },
}

/// What `cas` expects; exactly one.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Expected {
    /// That the key does not exist
    #[arg(long)]
    absent: bool,
    /// That its version is this one
    #[arg(long, value_name = "INDEX")]
    version: Option<u64>,
    /// That its value is this one
    #[arg(long, value_name = "VALUE")]
    value: Option<String>,
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    attach: Attach,
    #[command(flatten)]
    journal: JournalArg,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Recency {
    /// As recent as any write that was acknowledged anywhere before
    Linearizable,
    /// What the server that answers has now
    Local,
}

impl Kv {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.operation {
            Operation::Get { key, consistency, common } => get(&key, consistency, &common).await,
            Operation::Put { key, value, common } => {
                write(KvCommand::Put { key: key.into_bytes(), value: value.into_bytes() }, &common).await
            }
            Operation::Delete { key, common } => write(KvCommand::Delete { key: key.into_bytes() }, &common).await,
            Operation::Cas { key, new, expected, common } => {
                let expected = match (expected.version, expected.value) {
                    (Some(version), _) => KvExpected::Version(LogIndex(version)),
                    (None, Some(value)) => KvExpected::Value(value.into_bytes()),
                    (None, None) => KvExpected::Absent,
                };
                write(KvCommand::CompareAndSet { key: key.into_bytes(), expected, value: new.into_bytes() }, &common).await
            }
        }
    }
}

/// Reads on a replica of our own: it follows the whole state, so a large one takes a moment.
async fn get(key: &str, consistency: Recency, common: &Common) -> Result<(), Failure> {
    let client = common.attach.replica(0).await?;
    let consistency = match consistency {
        Recency::Linearizable => Consistency::Linearizable,
        Recency::Local => Consistency::Local,
    };
    let read = client.read(consistency, |state| state.get(key.as_bytes()).cloned()).await;
    client.close().await;
    match read.map_err(|error| Failure::unreachable(error.to_string()))? {
        Some(KvValue { value, version }) if common.json => {
            let text = std::str::from_utf8(&value).map_or_else(|_| json!({"hex": hex(&value)}), |text| json!({"text": text}));
            output::json_line(&json!({"key": key, "value": text, "version": version}))
        }
        Some(KvValue { value, .. }) => output::line(readable(&value)),
        None => {
            if common.json {
                output::json_line(&json!({"key": key, "value": null}))?;
            }
            Err(Failure::failed(format!("no key {key:?}")))
        }
    }
}

async fn write(command: KvCommand, common: &Common) -> Result<(), Failure> {
    let client = common.attach.thin(common.journal.open()?, 0).await?;
    let payload = voter_mesh::machine::to_cbor(&command).map_err(Failure::failed)?;
    let applied = client.propose(&payload).await;
    client.close().await;
    let applied = applied.map_err(|error| propose_failure(&error))?;
    let reply = voter_mesh::machine::from_cbor::<KvReply>(&applied.reply)
        .map_err(|error| Failure::failed(format!("the reply is not kv's: {error}")))?;
    let (done, said) = match reply {
        KvReply::Written { version } => (true, format!("written, version {version}")),
        KvReply::Deleted { existed: true } => (true, "deleted".to_owned()),
        KvReply::Deleted { existed: false } => (false, "there was no such key".to_owned()),
        KvReply::Mismatch { version: Some(version) } => (false, format!("not as expected: the key is at version {version}")),
        KvReply::Mismatch { version: None } => (false, "not as expected: there is no such key".to_owned()),
        KvReply::KeyTooLong => (false, "the key is too long".to_owned()),
    };
    if common.json {
        output::json_line(&json!({
            "done": done, "index": applied.index, "term": applied.term, "repeat": applied.repeat, "reply": reply,
        }))?;
    } else if done {
        output::line(&said)?;
    }
    if done { Ok(()) } else { Err(Failure::new(Code::Failed, said)) }
}
