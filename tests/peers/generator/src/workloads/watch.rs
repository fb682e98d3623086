//! Many readers, and nothing else.

use std::sync::Arc;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::io::AsyncReadExt;

use crate::peer::{Each, Kind, Peer};

/// Watches that are made at once.
const ATTACHING_MAX: usize = 32;

#[derive(clap::Args)]
pub struct Watch {
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
}

impl Watch {
    pub async fn run(self, kind: Kind, endpoints: &[String]) -> Result<()> {
        let each: Each = Arc::new(|_| {});
        let _watchers = attach(kind, endpoints, self.watchers, &each).await?;
        println!("{}", serde_json::json!({"attached": self.watchers}));
        tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
        Ok(())
    }
}

/// As many watchers, each with a connection of its own.
pub async fn attach(kind: Kind, endpoints: &[String], count: usize, each: &Each) -> Result<Vec<Arc<dyn Peer>>> {
    let connections = kind.connections(endpoints, count).await?;
    let watching = connections.iter().map(|connection| connection.watch(Arc::clone(each)));
    stream::iter(watching).buffer_unordered(ATTACHING_MAX).try_collect::<()>().await?;
    Ok(connections)
}
