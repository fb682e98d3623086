//! What the workloads ask of a system, and one adapter for each.

mod etcd;
mod nats;
mod zookeeper;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use futures::StreamExt;

/// Called with each value that a watcher gets.
pub type Each = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Connections that are made at once.
const CONNECTING_MAX: usize = 32;

/// Tries of one connection: thousands at once are not all taken at once.
const TRIES: u32 = 5;

/// One connection to a system.
#[async_trait]
pub trait Peer: Send + Sync {
    /// Makes what the workloads need, once for fresh servers.
    async fn prepare(&self, servers: usize) -> Result<()>;
    /// One committed write; where the system has keys, of one key of a thousand.
    async fn write(&self, number: u64, value: Vec<u8>) -> Result<()>;
    /// One committed write of a key of its own.
    async fn create(&self, number: u64, value: Vec<u8>) -> Result<()>;
    /// One committed write that watchers get, with all its bytes.
    async fn publish(&self, value: Vec<u8>) -> Result<()>;
    /// Calls `each` for all that is published from now on.
    async fn watch(&self, each: Each) -> Result<()>;
    /// Whether the key that was created under this number can be read.
    async fn holds(&self, number: u64) -> Result<bool>;
    /// The values of all created keys.
    async fn state(&self) -> Result<Vec<Vec<u8>>>;
    /// Reads the last `count` writes again; `None` where the system has no log to read.
    async fn replay(&self, count: u64) -> Result<Option<u64>>;
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kind {
    Etcd,
    Nats,
    Zookeeper,
}

impl Kind {
    pub async fn connect(self, endpoints: &[String]) -> Result<Arc<dyn Peer>> {
        Ok(match self {
            Self::Etcd => Arc::new(etcd::Etcd::connect(endpoints).await?),
            Self::Nats => Arc::new(nats::Nats::connect(endpoints).await?),
            Self::Zookeeper => Arc::new(zookeeper::ZooKeeper::connect(endpoints).await?),
        })
    }

    /// As many connections, the i-th to the i-th endpoint (in turn) alone.
    pub async fn connections(self, endpoints: &[String], count: usize) -> Result<Vec<Arc<dyn Peer>>> {
        let connecting = (0..count).map(|number| async move {
            let endpoint = std::slice::from_ref(&endpoints[number % endpoints.len()]);
            let mut result = self.connect(endpoint).await;
            for _ in 1..TRIES {
                if result.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
                result = self.connect(endpoint).await;
            }
            result
        });
        let connections: Vec<Result<_>> = futures::stream::iter(connecting).buffered(CONNECTING_MAX).collect().await;
        connections.into_iter().collect()
    }

    /// The position of the leader among the endpoints.
    pub async fn leader(self, endpoints: &[String]) -> Result<usize> {
        let found = match self {
            Self::Etcd => etcd::leader(endpoints).await?,
            Self::Nats => nats::leader(endpoints).await?,
            Self::Zookeeper => zookeeper::leader(endpoints).await?,
        };
        found.ok_or_else(|| anyhow!("no leader"))
    }
}
