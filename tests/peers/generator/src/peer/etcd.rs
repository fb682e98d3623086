//! etcd: keys below three prefixes.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use etcd_client::{Client, GetOptions, WatchOptions};

use super::{Each, Peer};

/// Keys read at once.
const PAGE: i64 = 10_000;

pub struct Etcd(Client);

impl Etcd {
    pub async fn connect(endpoints: &[String]) -> Result<Self> {
        Ok(Self(Client::connect(endpoints, None).await?))
    }

    async fn put(&self, key: String, value: Vec<u8>) -> Result<()> {
        self.0.kv_client().put(key, value, None).await?;
        Ok(())
    }
}

fn created(number: u64) -> String {
    format!("/created/{number:012}")
}

#[async_trait]
impl Peer for Etcd {
    async fn prepare(&self, _servers: usize) -> Result<()> {
        self.put("/ready".into(), Vec::new()).await
    }

    async fn write(&self, number: u64, value: Vec<u8>) -> Result<()> {
        self.put(format!("/written/{:04}", number % 1_000), value).await
    }

    async fn create(&self, number: u64, value: Vec<u8>) -> Result<()> {
        self.put(created(number), value).await
    }

    async fn publish(&self, value: Vec<u8>) -> Result<()> {
        self.put("/published".into(), value).await
    }

    async fn watch(&self, each: Each) -> Result<()> {
        let mut stream = self.0.watch_client().watch("/published", None).await?;
        if !stream.message().await?.context("the watch ended")?.created() {
            bail!("the watch was not made");
        }
        let client = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                response.events().iter().filter_map(|event| event.kv()).for_each(|kv| each(kv.value()));
            }
            drop(client);
        });
        Ok(())
    }

    async fn holds(&self, number: u64) -> Result<bool> {
        Ok(!self.0.kv_client().get(created(number), None).await?.kvs().is_empty())
    }

    async fn state(&self) -> Result<Vec<Vec<u8>>> {
        let (mut from, mut values) = (b"/created/".to_vec(), Vec::new());
        loop {
            let options = GetOptions::new().with_range("/created0").with_limit(PAGE);
            let page = self.0.kv_client().get(from, Some(options)).await?;
            values.extend(page.kvs().iter().map(|kv| kv.value().to_vec()));
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                _ => return Ok(values),
            }
        }
    }

    async fn replay(&self, count: u64) -> Result<Option<u64>> {
        let header = self.0.kv_client().get("/ready", None).await?;
        let revision = header.header().context("no header")?.revision();
        let options = WatchOptions::new().with_prefix().with_start_revision((revision - count as i64 + 1).max(1));
        let mut stream = self.0.watch_client().watch("/created/", Some(options)).await?;
        let mut got = 0;
        while got < count {
            got += stream.message().await?.context("the watch ended")?.events().len() as u64;
        }
        Ok(Some(got))
    }
}

pub async fn leader(endpoints: &[String]) -> Result<Option<usize>> {
    for (position, endpoint) in endpoints.iter().enumerate() {
        let ask = async {
            let status = Client::connect([endpoint], None).await.ok()?.status().await.ok()?;
            Some(status.header()?.member_id() == status.leader())
        };
        if let Ok(Some(true)) = tokio::time::timeout(Duration::from_secs(2), ask).await {
            return Ok(Some(position));
        }
    }
    Ok(None)
}
