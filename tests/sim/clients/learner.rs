//! A client that follows the committed commands, as fast or as slowly as its seed says, and writes down each.

use std::rc::Rc;
use std::time::Duration;

use cluster_client::{ClusterClient, CommittedStream, LogIndex, Raw, Status, StreamError};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};

use super::machine::Machine;
use crate::sim::record::{LearnerId, Phase, What};

/// Commands that come after this much silence are taken for the last ones, once nobody calls any more.
const SILENCE: Duration = Duration::from_secs(3);

/// Between two streams that begin anew somewhere in the past.
const AGAIN_MS: (u64, u64) = (2_000, 30_000);

struct Following {
    stream: CommittedStream,
    name: LearnerId,
    next: LogIndex,
}

impl Following {
    fn begin(machine: &Machine, client: &ClusterClient<Raw>, from: LogIndex) -> Self {
        let name = machine.learner();
        machine.shared.world.recorder.record(What::StreamBegan { stream: name, from });
        Self { stream: client.committed_from(from), name, next: from }
    }
}

pub(super) async fn main(machine: Rc<Machine>) {
    let shared = &machine.shared;
    let endpoints: Vec<_> = (0..shared.servers.len()).map(|server| shared.endpoint(server)).collect();
    let builder = ClusterClient::builder().host(machine.client_host()).endpoints(endpoints).links(1 + machine.below(2) as usize);
    let client = match builder.history_bytes_max(machine.one_of(&[0, 2_000, 8 << 20])).raw().start() {
        Ok(client) => client,
        Err(error) => return shared.complain(machine.id, error),
    };
    let pause_ms = machine.one_of(&[0, 0, 1, 20, 300]);
    let mut following = Following::begin(&machine, &client, LogIndex(1 + machine.below(2) * machine.below(200)));
    let mut again_at = Instant::now() + Duration::from_millis(machine.between(AGAIN_MS));
    loop {
        let item = timeout(SILENCE, following.stream.next()).await;
        match item {
            Ok(Some(Ok(entry))) => {
                following.next = entry.index.next();
                shared.saw(entry.index);
                let voter_mesh::learner::Committed { index, term, session, payload, .. } = entry;
                shared.world.recorder.record(What::Streamed { stream: following.name, index, term, session, payload });
                if pause_ms > 0 && !shared.is(Phase::Quiet) {
                    machine.sleep_ms((0, 2 * pause_ms)).await;
                }
                if Instant::now() >= again_at {
                    again_at += Duration::from_millis(machine.between(AGAIN_MS));
                    following = Following::begin(&machine, &client, LogIndex(1 + machine.below(following.next.0)));
                }
            }
            Ok(Some(Err(StreamError::Trimmed { first }))) => following = Following::begin(&machine, &client, first),
            Ok(Some(Err(error))) => return shared.complain(machine.id, error),
            Ok(None) => return shared.complain(machine.id, "a stream that ended without a word"),
            Err(_) => {
                let standing = client.status().borrow().clone();
                let live = matches!(standing, Status::Live { applied, .. } if applied >= shared.highest.get());
                if shared.is(Phase::Quiet) && shared.writing.borrow().is_empty() && live {
                    shared.settle(machine.id);
                    shared.reaches(Phase::Over).await;
                    return client.close().await;
                }
            }
        }
    }
}
