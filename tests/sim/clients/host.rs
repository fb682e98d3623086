//! The world of one client process.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster_client::host::{Host, Stream};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::sim::net::{Life, SimNet};
use crate::sim::random::Random;

/// How long a write of the journal takes at most, in microseconds.
const WRITE_US_MAX: u64 = 8_000;

pub(super) struct ClientHost {
    net: SimNet,
    life: Arc<Life>,
    random: Mutex<Random>,
}

impl ClientHost {
    pub(super) fn new(net: SimNet, life: Arc<Life>, random: Random) -> Arc<Self> {
        Arc::new(Self { net, life, random: Mutex::new(random) })
    }

    fn draw(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

impl Host for ClientHost {
    fn fill_random(&self, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let (net, life, address) = (self.net.clone(), Arc::clone(&self.life), address.parse::<SocketAddr>());
        async move {
            let address = address.map_err(|_| io::ErrorKind::InvalidInput)?;
            Ok(Box::new(net.connect(life, address).await?) as Stream)
        }
        .boxed()
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        let pause = Duration::from_micros(self.draw() % WRITE_US_MAX);
        // It goes with the process's other tasks.
        spawn_local(async move {
            sleep(pause).await;
            work();
        });
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        spawn_local(task);
    }
}
