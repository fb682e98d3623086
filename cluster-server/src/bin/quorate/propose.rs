//! `quorate propose`: commands as bytes, each applied exactly once.

use bytes::Bytes;
use clap::Args;
use cluster_client::ProposeError;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use voter_mesh::ids::RequestId;

use crate::attach::{Attach, JournalArg, Thin, propose_failure};
use crate::output::{self, Code, Failure};

/// Proposals from stdin that wait for their answers at once; half of a session's window, so that it never stands still.
const OUTSTANDING_MAX: usize = 128;

const EXAMPLES: &str = "\
Examples:
  quorate propose 'the quick brown fox'
  quorate propose --journal jobs.journal --request-id 7777 'charge order 7777'
      applied once, however often you run it: later runs say `repeat`, until a higher id was used
  seq 1000 | quorate propose -

The room's state machine must take these bytes: `log` takes any; for `kv`, use `quorate kv`.
Prints the index, the term, and whether it is a repeat. With --request-id, the lines of stdin take N, N+1, and so on.
Stdin is read no further once a command has failed; those under way by then are still reported, in order.";

/// Propose a command, or one per line of stdin
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Propose {
    #[command(flatten)]
    attach: Attach,
    #[command(flatten)]
    journal: JournalArg,
    /// The request id to propose under, chosen by you; ids must rise
    #[arg(long, alias = "id", value_name = "N", requires = "journal")]
    request_id: Option<u64>,
    /// One JSON object per command
    #[arg(long)]
    json: bool,
    /// The command, or - for one command per line of stdin
    text: String,
}

impl Propose {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.attach.thin(self.journal.open()?, 0).await?;
        let told = self.propose(&client).await;
        client.close().await;
        told
    }

    async fn propose(&self, client: &Thin) -> Result<(), Failure> {
        if self.text != "-" {
            return self.tell(one(client, self.text.clone().into(), self.request_id.map(RequestId)).await);
        }
        let mut lines = BufReader::new(tokio::io::stdin()).split(b'\n');
        let mut ids = self.request_id.map(|first| (first..).map(RequestId));
        let mut waiting = FuturesOrdered::new();
        let mut failed = None;
        let mut more = true;
        while more || !waiting.is_empty() {
            tokio::select! {
                line = lines.next_segment(), if more && waiting.len() < OUTSTANDING_MAX => match line? {
                    Some(line) => waiting.push_back(one(client, line.into(), ids.as_mut().and_then(Iterator::next))),
                    None => more = false,
                },
                Some(done) = waiting.next() => if let Err(failure) = self.tell(done) {
                    if failure.code == Code::Quiet {
                        return Err(failure);
                    }
                    // What is under way is still told, in order; nothing new begins behind a failure.
                    more = false;
                    failure.report();
                    failed.get_or_insert(failure.code);
                }
            }
        }
        failed.map_or(Ok(()), |code| Err(Failure::new(code, "")))
    }

    fn tell(&self, result: Result<Proposed, ProposeError>) -> Result<(), Failure> {
        match result {
            Ok(applied) if self.json => output::json_line(&json!({
                "index": applied.index, "term": applied.term, "repeat": applied.repeat, "reply": reply(&applied.reply),
            })),
            Ok(applied) => {
                let repeat = if applied.repeat { "  repeat" } else { "" };
                output::line(format_args!("index {}  term {}{repeat}", applied.index, applied.term))
            }
            Err(error) => {
                let failure = propose_failure(&error);
                if self.json {
                    output::json_line(&json!({"error": failure.message, "code": failure.code as u8}))?;
                }
                Err(failure)
            }
        }
    }
}

type Proposed = cluster_client::Applied<Bytes>;

async fn one(client: &Thin, payload: Bytes, id: Option<RequestId>) -> Result<Proposed, ProposeError> {
    match id {
        None => client.propose(&payload).await,
        Some(id) => {
            let ticket = client.ticket(id).await?;
            client.propose_as(&ticket, &payload).await
        }
    }
}

/// A reply as JSON: what CBOR says, else hex.
fn reply(bytes: &[u8]) -> Value {
    voter_mesh::machine::from_cbor::<Value>(bytes).unwrap_or_else(|_| Value::String(format!("0x{}", output::hex(bytes))))
}
