//! ZooKeeper. Its watch events carry no data, so what is published is the 64 characters of a new node's name.

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zookeeper_client::{
    Acls, AddWatchMode, Client, CreateMode, CreateOptions, Error, EventType, MultiReadResult,
};

use super::{Each, Peer};

const NODE: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

/// Nodes below one parent: a list of children must fit into a message.
const CHILDREN: u64 = 10_000;

/// Created nodes for which there are parents.
const CREATED_MAX: u64 = 2_000_000;

/// Nodes read in one request, and requests at once.
const PAGE: usize = 500;
const PAGES: usize = 8;

pub struct ZooKeeper(Client);

impl ZooKeeper {
    pub async fn connect(endpoints: &[String]) -> Result<Self> {
        let connector = Client::connector();
        Ok(Self(connector.connect(&endpoints.join(",")).await.map_err(|error| anyhow!("{error}"))?))
    }

    async fn make(&self, path: &str, value: &[u8]) -> Result<()> {
        match self.0.create(path, value, &NODE).await {
            Ok(_) | Err(Error::NodeExists) => Ok(()),
            Err(error) => bail!("{path}: {error}"),
        }
    }

    async fn make_children(&self, parent: &str, count: u64) -> Result<()> {
        self.make(parent, b"").await?;
        let making = (0..count).map(|child| async move { self.make(&format!("{parent}/{child}"), b"").await });
        stream::iter(making).buffer_unordered(64).try_collect().await
    }

    async fn children(&self, parent: String) -> Result<Vec<Vec<u8>>> {
        let children = self.0.list_children(&parent).await.map_err(|error| anyhow!("{error}"))?;
        let mut values = Vec::new();
        for page in children.chunks(PAGE) {
            let mut reader = self.0.new_multi_reader();
            for child in page {
                reader.add_get_data(&format!("{parent}/{child}")).map_err(|error| anyhow!("{error}"))?;
            }
            for read in reader.commit().await.map_err(|error| anyhow!("{error}"))? {
                if let MultiReadResult::Data { data, .. } = read {
                    values.push(data);
                }
            }
        }
        Ok(values)
    }
}

fn created(number: u64) -> String {
    format!("/created/{}/{number}", number / CHILDREN)
}

#[async_trait]
impl Peer for ZooKeeper {
    async fn prepare(&self, _servers: usize) -> Result<()> {
        self.make("/published", b"").await?;
        self.make_children("/written", 1_000).await?;
        self.make_children("/created", CREATED_MAX / CHILDREN).await
    }

    async fn write(&self, number: u64, value: Vec<u8>) -> Result<()> {
        let path = format!("/written/{}", number % 1_000);
        self.0.set_data(&path, &value, None).await.map(drop).map_err(|error| anyhow!("{error}"))
    }

    async fn create(&self, number: u64, value: Vec<u8>) -> Result<()> {
        self.make(&created(number), &value).await
    }

    async fn publish(&self, value: Vec<u8>) -> Result<()> {
        let name: String = value.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        self.make(&format!("/published/{name}"), b"").await
    }

    async fn watch(&self, each: Each) -> Result<()> {
        let watching = self.0.watch("/published", AddWatchMode::PersistentRecursive).await;
        let mut watcher = watching.map_err(|error| anyhow!("{error}"))?;
        let client = self.0.clone();
        tokio::spawn(async move {
            loop {
                let event = watcher.changed().await;
                match event.event_type {
                    EventType::Session if event.session_state.is_terminated() => break,
                    EventType::NodeCreated => {
                        let name = event.path.rsplit('/').next().unwrap_or_default();
                        let byte = |at: usize| u8::from_str_radix(name.get(at..at + 2)?, 16).ok();
                        each(&(0..name.len()).step_by(2).map_while(byte).collect::<Vec<u8>>());
                    }
                    _ => {}
                }
            }
            drop(client);
        });
        Ok(())
    }

    async fn holds(&self, number: u64) -> Result<bool> {
        Ok(self.0.get_data(&created(number)).await.is_ok())
    }

    async fn state(&self) -> Result<Vec<Vec<u8>>> {
        let parents = self.0.list_children("/created").await.map_err(|error| anyhow!("{error}"))?;
        let reading = parents.into_iter().map(|parent| self.children(format!("/created/{parent}")));
        let values: Vec<Vec<Vec<u8>>> = stream::iter(reading).buffer_unordered(PAGES).try_collect().await?;
        Ok(values.into_iter().flatten().collect())
    }

    async fn replay(&self, _count: u64) -> Result<Option<u64>> {
        Ok(None)
    }
}

pub async fn leader(endpoints: &[String]) -> Result<Option<usize>> {
    for (position, endpoint) in endpoints.iter().enumerate() {
        let Ok(mut stream) = TcpStream::connect(endpoint.as_str()).await else { continue };
        let mut answer = String::new();
        stream.write_all(b"srvr").await?;
        stream.read_to_string(&mut answer).await?;
        if answer.contains("Mode: leader") || answer.contains("Mode: standalone") {
            return Ok(Some(position));
        }
    }
    Ok(None)
}
