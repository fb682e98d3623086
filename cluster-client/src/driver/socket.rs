//! One link's WebSocket, polled by the driver: dialled, written without ever blocking, read in batches.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Sink, Stream};
use relay::wire::ServerFrame;
use tokio::io::BufReader;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use url::Url;

use crate::host::{Host, Stream as Connection};
use crate::status::LinkError;

/// Frames read before the core is asked what to do about them.
const READ_MAX: usize = 64;

/// Bytes of a server's message: the largest run with its verdicts, and room.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Bytes read from the connection at once.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// Bytes that tungstenite takes from there at once; it clears them every time, so for a short message it should not be many.
const READ_BYTES: usize = 2 << 10;

type WebSocket = WebSocketStream<BufReader<Connection>>;
type Dialing = BoxFuture<'static, Result<WebSocket, String>>;

/// What became of a link.
pub(crate) enum Happened {
    Up,
    Frame(ServerFrame),
    Down(LinkError),
}

/// What a look at a socket came to.
pub(crate) struct Moved {
    /// Something has come, be it the end.
    pub(crate) came: bool,
    /// All that it had was written.
    pub(crate) wrote: bool,
}

enum State {
    Dialing(Dialing),
    Open(WebSocket),
    Gone,
}

pub(crate) struct Socket {
    state: State,
    out: VecDeque<Message>,
    unflushed: bool,
    /// The close frame is on its way.
    closing: bool,
}

async fn dial(host: Arc<dyn Host>, endpoint: String) -> Result<WebSocket, String> {
    let url = Url::parse(&endpoint).map_err(|error| error.to_string())?;
    let address = format!("{}:{}", url.host().ok_or("no host")?, url.port_or_known_default().ok_or("no port")?);
    let stream = host.connect(&address).await.map_err(|error| error.to_string())?;
    let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(32 << 10)
        .max_write_buffer_size(8 << 20)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let upgraded = tokio_tungstenite::client_async_with_config(url.as_str(), stream, Some(config)).await;
    upgraded.map(|(stream, _)| stream).map_err(|error| error.to_string())
}

impl Socket {
    pub(crate) fn dial(host: Arc<dyn Host>, endpoint: String) -> Self {
        Self { state: State::Dialing(Box::pin(dial(host, endpoint))), out: VecDeque::new(), unflushed: false, closing: false }
    }

    /// Whether everything was written that it was given.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Open(_)) && self.out.is_empty() && !self.unflushed
    }

    pub(crate) fn send(&mut self, message: Bytes) {
        self.out.push_back(Message::Binary(message));
    }

    /// Moves what can move.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, happened: &mut dyn FnMut(Happened)) -> Moved {
        if let State::Dialing(dialing) = &mut self.state {
            match dialing.as_mut().poll(cx) {
                Poll::Pending => return Moved { came: false, wrote: false },
                Poll::Ready(Ok(stream)) => {
                    self.state = State::Open(stream);
                    happened(Happened::Up);
                }
                Poll::Ready(Err(error)) => {
                    self.state = State::Gone;
                    happened(Happened::Down(LinkError::Unreachable(error)));
                }
            }
            return Moved { came: true, wrote: false };
        }
        let wrote = match self.poll_write(cx) {
            Poll::Ready(Ok(wrote)) => wrote,
            Poll::Ready(Err(error)) => {
                self.state = State::Gone;
                happened(Happened::Down(LinkError::Torn(error)));
                return Moved { came: true, wrote: false };
            }
            Poll::Pending => false,
        };
        Moved { came: self.poll_read(cx, happened), wrote }
    }

    /// Ready when all is written: `true` if there was anything to write.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, String>> {
        let State::Open(stream) = &mut self.state else { return Poll::Ready(Ok(false)) };
        let mut stream = Pin::new(stream);
        while !self.out.is_empty() {
            ready!(stream.as_mut().poll_ready(cx)).map_err(|error| error.to_string())?;
            if let Some(message) = self.out.pop_front() {
                stream.as_mut().start_send(message).map_err(|error| error.to_string())?;
                self.unflushed = true;
            }
        }
        if !self.unflushed {
            return Poll::Ready(Ok(false));
        }
        ready!(stream.poll_flush(cx)).map_err(|error| error.to_string())?;
        self.unflushed = false;
        Poll::Ready(Ok(true))
    }

    /// Takes what has come, up to a limit.
    fn poll_read(&mut self, cx: &mut Context<'_>, happened: &mut dyn FnMut(Happened)) -> bool {
        for count in 0..READ_MAX {
            let State::Open(stream) = &mut self.state else { return false };
            let down = match Pin::new(stream).poll_next(cx) {
                Poll::Pending => return count > 0,
                Poll::Ready(Some(Ok(Message::Binary(message)))) => match ServerFrame::decode(&message) {
                    Ok(frame) => {
                        happened(Happened::Frame(frame));
                        continue;
                    }
                    Err(_) => LinkError::Malformed("a frame that does not decode"),
                },
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
                    // The answer to a ping lies in the socket's own buffer.
                    self.unflushed = true;
                    continue;
                }
                Poll::Ready(Some(Ok(Message::Text(_)))) => LinkError::Malformed("a text message"),
                Poll::Ready(Some(Ok(Message::Close(_))) | None) => LinkError::Torn("the connection ended".to_owned()),
                Poll::Ready(Some(Err(error))) => LinkError::Torn(error.to_string()),
            };
            self.state = State::Gone;
            happened(Happened::Down(down));
            return true;
        }
        true
    }

    /// Ready when the last words and the close frame are written, or there is nobody to write to.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.closing {
            self.closing = true;
            self.out.push_back(Message::Close(None));
        }
        self.poll_write(cx).map(drop)
    }
}
