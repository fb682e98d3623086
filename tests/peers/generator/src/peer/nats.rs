//! NATS JetStream: one file stream, replicated on all servers. Watchers get what the stream republishes, the cheapest way that it has
//! to reach many; every write is acknowledged by the stream.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use async_nats::Client;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::{Config, Info, Republish, StorageType};
use async_nats::jetstream::{self, Context};
use async_trait::async_trait;
use futures::StreamExt;

use super::{Each, Peer};

const STREAM: &str = "bench";

pub struct Nats {
    client: Client,
    context: Context,
}

impl Nats {
    pub async fn connect(endpoints: &[String]) -> Result<Self> {
        let options = async_nats::ConnectOptions::new().connection_timeout(Duration::from_secs(20));
        let client = options.connect(endpoints).await?;
        Ok(Self { context: jetstream::new(client.clone()), client })
    }

    async fn send(&self, subject: String, value: Vec<u8>) -> Result<()> {
        self.context.publish(subject, value.into()).await?.await?;
        Ok(())
    }

    async fn info(&self) -> Result<Info> {
        let mut stream = self.context.get_stream(STREAM).await.map_err(|error| anyhow!("{error}"))?;
        Ok(stream.info().await.map_err(|error| anyhow!("{error}"))?.clone())
    }

    /// Reads `count` messages of the stream, and gives their values.
    async fn read(&self, deliver_policy: DeliverPolicy, filter_subject: &str, count: u64) -> Result<Vec<Vec<u8>>> {
        let stream = self.context.get_stream_no_info(STREAM).await.map_err(|error| anyhow!("{error}"))?;
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: filter_subject.to_owned(),
            deliver_policy,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| anyhow!("{error}"))?;
        let mut messages = consumer.messages().await.map_err(|error| anyhow!("{error}"))?;
        let mut values = Vec::with_capacity(count as usize);
        while (values.len() as u64) < count {
            let message = messages.next().await.context("the stream ended")?.map_err(|error| anyhow!("{error}"))?;
            values.push(message.payload.to_vec());
        }
        Ok(values)
    }
}

#[async_trait]
impl Peer for Nats {
    async fn prepare(&self, servers: usize) -> Result<()> {
        let republish = Republish { source: "bench.published".into(), destination: "republished".into(), headers_only: false };
        let config = Config {
            name: STREAM.into(),
            subjects: vec!["bench.>".into()],
            num_replicas: servers,
            storage: StorageType::File,
            republish: Some(republish),
            ..Default::default()
        };
        self.context.create_stream(config).await.map_err(|error| anyhow!("{error}"))?;
        Ok(())
    }

    async fn write(&self, _number: u64, value: Vec<u8>) -> Result<()> {
        self.send("bench.written".into(), value).await
    }

    async fn create(&self, number: u64, value: Vec<u8>) -> Result<()> {
        self.send(format!("bench.created.{number}"), value).await
    }

    async fn publish(&self, value: Vec<u8>) -> Result<()> {
        self.send("bench.published".into(), value).await
    }

    async fn watch(&self, each: Each) -> Result<()> {
        let mut messages = self.client.subscribe("republished").await?;
        self.client.flush().await?;
        let client = self.client.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                each(&message.payload);
            }
            drop(client);
        });
        Ok(())
    }

    async fn holds(&self, number: u64) -> Result<bool> {
        let stream = self.context.get_stream(STREAM).await.map_err(|error| anyhow!("{error}"))?;
        Ok(stream.get_last_raw_message_by_subject(&format!("bench.created.{number}")).await.is_ok())
    }

    async fn state(&self) -> Result<Vec<Vec<u8>>> {
        let count = self.info().await?.state.messages;
        self.read(DeliverPolicy::LastPerSubject, "bench.created.>", count).await
    }

    async fn replay(&self, count: u64) -> Result<Option<u64>> {
        let start_sequence = self.info().await?.state.last_sequence - count + 1;
        let got = self.read(DeliverPolicy::ByStartSequence { start_sequence }, "", count).await?;
        Ok(Some(got.len() as u64))
    }
}

pub async fn leader(endpoints: &[String]) -> Result<Option<usize>> {
    let info = Nats::connect(endpoints).await?.info().await?;
    // The servers are named n0, n1, …; a stream on one server names nobody.
    let leader = info.cluster.and_then(|cluster| cluster.leader);
    Ok(leader.map_or(Some(0), |name| name.trim_start_matches('n').parse().ok()))
}
