//! `quorate watch`: the committed commands, as they come.

use clap::Args;
use cluster_client::StreamError;
use futures_util::StreamExt;
use serde_json::json;
use voter_mesh::ids::LogIndex;
use voter_mesh::learner::Committed;
use voter_mesh::machine::from_cbor;
use voter_mesh::machine::kv::{KvCommand, KvExpected};

use crate::attach::Attach;
use crate::output::{self, Failure, hex, readable};

const EXAMPLES: &str = "\
Examples:
  quorate watch
  quorate watch --from 1000 --json | jq .text
  quorate watch --endpoint ws://127.0.0.1:7401 --endpoint ws://127.0.0.1:7402      survives the loss of either

Every command that took effect is shown once and in order. Indices have gaps where the log holds something else: a
leader's first entry, a session that opened, a retry that was recognised. Runs until it is interrupted.";

/// Follow the committed log
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    #[command(flatten)]
    attach: Attach,
    /// The first index to show; default: the first one that is still kept
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// End after this many commands
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object per command
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.attach.raw(0).await?;
        let followed = tokio::select! {
            followed = self.follow(&client) => followed,
            interrupted = output::interrupted() => Ok(interrupted?),
        };
        client.close().await;
        followed
    }

    async fn follow(&self, client: &crate::attach::Raw) -> Result<(), Failure> {
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut committed = client.committed_from(self.from.map_or(LogIndex::FIRST, LogIndex));
        while left > 0 {
            match committed.next().await {
                Some(Ok(entry)) => {
                    self.show(&entry)?;
                    left -= 1;
                }
                Some(Err(StreamError::Trimmed { first })) if self.from.is_none() => {
                    tracing::info!(%first, "what came before is not kept any more");
                    committed = client.committed_from(first);
                }
                Some(Err(error)) => return Err(Failure::failed(error.to_string())),
                None => return Err(Failure::failed("the stream of committed commands ended")),
            }
        }
        Ok(())
    }

    fn show(&self, entry: &Committed) -> Result<(), Failure> {
        if !self.json {
            return output::line(format_args!("{}  term {}  {}", entry.index, entry.term, text(&entry.payload)));
        }
        let mut object = json!({
            "index": entry.index, "term": entry.term, "time_ms": entry.time, "session": entry.session, "hex": hex(&entry.payload),
            "text": text(&entry.payload),
        });
        if let (Ok(text), Some(object)) = (std::str::from_utf8(&entry.payload), object.as_object_mut()) {
            // Bytes that are text need no second form.
            object.remove("hex");
            object.insert("text".into(), text.into());
        }
        output::json_line(&object)
    }
}

/// A command as a reader would like it: kv's in words, text as text, anything else as hex.
fn text(payload: &[u8]) -> String {
    match from_cbor::<KvCommand>(payload) {
        Ok(KvCommand::Put { key, value }) => format!("put {} = {}", readable(&key), readable(&value)),
        Ok(KvCommand::Delete { key }) => format!("delete {}", readable(&key)),
        Ok(KvCommand::CompareAndSet { key, expected, value }) => {
            let expected = match expected {
                KvExpected::Absent => "absent".to_owned(),
                KvExpected::Version(version) => format!("at version {version}"),
                KvExpected::Value(value) => readable(&value),
            };
            format!("cas {} = {} if it is {expected}", readable(&key), readable(&value))
        }
        Err(_) => readable(payload),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use voter_mesh::machine::to_cbor;

    #[test]
    fn commands_of_kv_are_shown_in_words() {
        let put = to_cbor(&KvCommand::Put { key: b"a".to_vec(), value: vec![0, 1] }).unwrap();
        assert_eq!(text(&put), "put a = 0x0001");
        let cas = KvCommand::CompareAndSet { key: b"a".to_vec(), expected: KvExpected::Absent, value: b"b".to_vec() };
        assert_eq!(text(&to_cbor(&cas).unwrap()), "cas a = b if it is absent");
        assert_eq!(text(b"plain words"), "plain words");
    }
}
