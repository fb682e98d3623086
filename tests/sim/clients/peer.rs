//! A raw client's link: a WebSocket and the protocol's frames.

use std::rc::Rc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use relay::wire::{Admit, ClientFrame, Code, FeedMode, Hello, PROTOCOL_VERSION, ServerFrame};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use voter_mesh::ids::Seat;

use super::machine::Machine;
use crate::sim::net::SimStream;

/// How long a link may take from the dial to its admission, and a message until its socket takes it.
const PATIENCE: Duration = Duration::from_secs(8);

pub(super) struct Peer {
    pub(super) server: Seat,
    pub(super) admit: Admit,
    socket: WebSocketStream<SimStream>,
    ping: Duration,
    ping_at: Instant,
    heard: Instant,
}

/// Why there is no link.
pub(super) enum NoLink {
    Refused(Code),
    Torn,
}

/// A hello that any server lets in.
pub(super) fn hello(feed: FeedMode) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster: None,
        epoch: None,
        room: "main".into(),
        auth: Vec::new(),
        state_machine: None,
        session: None,
        resume: None,
        feed,
        unanswered: Vec::new(),
        partial: None,
    }
}

/// A WebSocket to a server.
pub(super) async fn connect(machine: &Machine, server: usize) -> Option<(Seat, WebSocketStream<SimStream>)> {
    let shared = &machine.shared;
    let (seat, address) = shared.servers[server % shared.servers.len()];
    let dial = async {
        let stream = shared.world.net.connect(machine.life(), address).await.ok()?;
        tokio_tungstenite::client_async(shared.endpoint(server), stream).await.ok()
    };
    let (socket, _) = timeout(PATIENCE, dial).await.ok()??;
    Some((seat, socket))
}

impl Peer {
    /// Connects to a server and is let in.
    pub(super) async fn attach(machine: &Rc<Machine>, server: usize, hello: Hello) -> Result<Self, NoLink> {
        let (seat, mut socket) = connect(machine, server).await.ok_or(NoLink::Torn)?;
        let admission = async {
            socket.send(Message::Binary(ClientFrame::Hello(hello).encode())).await.ok()?;
            loop {
                match socket.next().await?.ok()? {
                    Message::Binary(bytes) => return ServerFrame::decode(&bytes).ok(),
                    Message::Close(_) => return None,
                    _ => {}
                }
            }
        };
        match timeout(PATIENCE, admission).await.ok().flatten() {
            Some(ServerFrame::Admit(admit)) => {
                let ping = Duration::from_millis(u64::from(admit.limits.ping_ms));
                let now = Instant::now();
                Ok(Self { server: seat, admit, socket, ping, ping_at: now + ping, heard: now })
            }
            Some(ServerFrame::Refuse { code, .. }) => Err(NoLink::Refused(code)),
            _ => Err(NoLink::Torn),
        }
    }

    /// Says something; whether the socket took it.
    pub(super) async fn say(&mut self, frame: &ClientFrame) -> bool {
        self.send(Message::Binary(frame.encode())).await
    }

    pub(super) async fn send(&mut self, message: Message) -> bool {
        self.ping_at = Instant::now() + self.ping;
        timeout(PATIENCE, self.socket.send(message)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// The next frame; `None` when the link has ended. Pings on its own. Dropping the future loses nothing.
    pub(super) async fn hear(&mut self) -> Option<ServerFrame> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.socket.next() => Some(message?.ok()?),
                () = sleep_until(self.ping_at) => None,
            };
            match message {
                Some(Message::Binary(bytes)) => {
                    self.heard = Instant::now();
                    return ServerFrame::decode(&bytes).ok();
                }
                Some(Message::Close(_)) => return None,
                Some(_) => {}
                None if self.heard + self.ping * 3 < Instant::now() => return None,
                None => {
                    self.ping_at = Instant::now() + self.ping;
                    if !self.say(&ClientFrame::Ping { nonce: 1 }).await {
                        return None;
                    }
                }
            }
        }
    }
}
