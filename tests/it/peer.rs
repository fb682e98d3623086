//! A client that is nothing but a WebSocket and the protocol's frames, for what a well-behaved client never does.

use futures_util::{SinkExt, StreamExt};
use relay::wire::{Admit, ClientFrame, FeedMode, Hello, PROTOCOL_VERSION, ServerFrame};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::harness::PATIENCE;

pub struct Peer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A hello that any server lets in.
pub fn hello(feed: FeedMode) -> Hello {
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

impl Peer {
    pub async fn connect(url: &str) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        Self { socket }
    }

    /// Connects and is let in.
    pub async fn admitted(url: &str, hello: Hello) -> (Self, Admit) {
        let mut peer = Self::connect(url).await;
        peer.say(ClientFrame::Hello(hello)).await;
        match peer.hear().await {
            Some(ServerFrame::Admit(admit)) => (peer, admit),
            other => panic!("not let in: {other:?}"),
        }
    }

    pub async fn say(&mut self, frame: ClientFrame) {
        self.send(Message::Binary(frame.encode())).await;
    }

    /// Sends what need not be a frame; the server may close before it has taken all.
    pub async fn send(&mut self, message: Message) {
        let _ = self.socket.send(message).await;
    }

    /// The TCP connection, to write on past every rule.
    pub fn stream(&mut self) -> &mut TcpStream {
        match self.socket.get_mut() {
            MaybeTlsStream::Plain(stream) => stream,
            _ => unreachable!("there is no TLS here"),
        }
    }

    /// The next frame; `None` when the server has closed.
    pub async fn hear(&mut self) -> Option<ServerFrame> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a frame in time");
            match message? {
                Ok(Message::Binary(bytes)) => return Some(ServerFrame::decode(&bytes).unwrap()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame for which `wanted` gives something; others are dropped.
    pub async fn hear_for<T>(&mut self, what: &str, mut wanted: impl FnMut(ServerFrame) -> Option<T>) -> T {
        loop {
            let frame = self.hear().await.unwrap_or_else(|| panic!("closed before: {what}"));
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }
}
