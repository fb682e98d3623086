//! The relay port: accepts clients over WebSocket (`GET /rooms/{room}`) and answers operators over HTTP (`/status`, `/admin`,
//! `/backup`).
//! It moves bytes between sockets and the room; what they mean is decided in `relay`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use relay::room::LinkId;
use relay::wire::{Code, ServerFrame};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;
use voter_mesh::ids::Time;
use voter_mesh::mesh::message::{AdminFailure, AdminRequest};
use voter_mesh::replica::ReplicaImage;

use crate::host::{Listener, Stream, accept};
use crate::limits::ServerLimits;
use crate::node::Node;
use crate::status::ServerStatus;

mod backup;
mod conversation;
mod socket;

pub(crate) use conversation::Conversation;
pub(crate) use socket::ReadAhead;

use socket::Socket;

/// Milliseconds after which whoever was told that the server recovers may ask again.
const RETRY_AFTER_MS: u32 = 200;

/// An operator's question, on its way from the HTTP handler to the server's own thread.
pub(crate) enum Ask {
    /// `GET /status`.
    Status { hashes: bool, answer: oneshot::Sender<ServerStatus> },
    /// `POST /admin`.
    Admin { request: AdminRequest, answer: oneshot::Sender<Result<(), AdminFailure>> },
    /// `GET /backup`: an image that holds all that was acknowledged before. Not answered by a server that is no member.
    Image { answer: oneshot::Sender<ReplicaImage> },
}

/// A client's socket, upgraded.
pub(crate) struct Arrival {
    stream: Stream,
    /// What was read behind the request.
    unread: Bytes,
    caller: Caller,
    room: String,
}

/// Who connected, and when: the time for its handshake runs from there.
#[derive(Clone, Copy)]
struct Caller {
    address: SocketAddr,
    accepted: Time,
}

/// Where the port hands things over to the server's own thread.
#[derive(Clone)]
struct Door {
    arrivals: mpsc::Sender<Arrival>,
    asks: mpsc::Sender<Ask>,
    /// One permit: whoever has it takes a backup.
    backups: Arc<Semaphore>,
    limits: Arc<ServerLimits>,
}

/// One listener and its accept loop. Dropping it stops both; sockets that were accepted live on.
pub(crate) struct RelayPort {
    /// The address that it really has.
    pub(crate) address: SocketAddr,
    accept: JoinHandle<()>,
    port: Rc<Port>,
}

/// What the links of one listener share.
#[derive(Default)]
struct Port {
    /// The listener was stopped: its links end too.
    closing: Cell<bool>,
    links: RefCell<BTreeMap<LinkId, Rc<Conversation>>>,
}

impl Drop for RelayPort {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl RelayPort {
    /// Serves `listener` on the current `LocalSet`; clients go to `node`.
    pub(crate) fn open(listener: Box<dyn Listener>, node: &Rc<Node>, asks: mpsc::Sender<Ask>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let limits = Arc::clone(node.limits());
        let (arrivals, mut arrived) = mpsc::channel::<Arrival>(limits.accept_backlog_max);
        let port = Rc::new(Port::default());
        tokio::task::spawn_local({
            let (node, port) = (Rc::clone(node), Rc::clone(&port));
            async move {
                while let Some(arrival) = arrived.recv().await {
                    take_in(&node, &port, arrival);
                }
            }
        });
        let router = Router::new()
            .route("/rooms/{room}", get(upgrade))
            .route("/status", get(status))
            .route("/admin", post(admin))
            .route("/backup", get(backup::backup))
            .with_state(Door { arrivals, asks, backups: Arc::clone(node.backups()), limits });
        let accept = tokio::task::spawn_local(accept_loop(listener, router, Rc::clone(node)));
        Ok(Self { address, accept, port })
    }

    /// Stops accepting and ends the links that came through here, as the loss of a relay would.
    pub(crate) fn close(&self) {
        self.accept.abort();
        self.port.closing.set(true);
        self.port.links.borrow().values().for_each(|conversation| conversation.abort());
    }
}

async fn accept_loop(mut listener: Box<dyn Listener>, router: Router, node: Rc<Node>) {
    let handshakes = Rc::new(Cell::new(0));
    loop {
        let (stream, address) = match accept(&mut *listener).await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that was reset before it was taken: neither is a reason to stop.
                debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if handshakes.get() >= node.limits().handshakes_max {
            node.count("http_over_limit");
            continue;
        }
        handshakes.set(handshakes.get() + 1);
        let caller = Caller { address, accepted: node.now() };
        tokio::task::spawn_local(http(stream, caller, router.clone(), Rc::clone(&node), Rc::clone(&handshakes)));
    }
}

/// One HTTP connection until it is answered or upgraded. A client that does not finish its request in time is dropped.
async fn http(stream: Stream, caller: Caller, router: Router, node: Rc<Node>, handshakes: Rc<Cell<usize>>) {
    let (limits, address) = (node.limits(), caller.address);
    // The slowest answer is an administrator's.
    let patience = Patience::new(Duration::from_millis(limits.handshake_ms + limits.admin_ms));
    let service = TowerToHyperService::new(router.layer(axum::Extension(caller)).layer(axum::Extension(patience.clone())));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.handshake_ms))
        .max_buf_size(limits.http_bytes_max)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    match patience.last(served).await {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            node.count(if error.is_timeout() { "http_timeout" } else { "http_failed" });
            debug!(%address, %error, "request failed");
        }
        None => {
            node.count("http_timeout");
            debug!(%address, "request took too long");
        }
    }
    handshakes.set(handshakes.get() - 1);
}

/// Until when a request must be answered. For an answer that streams, each piece that the other side takes sets it anew.
#[derive(Clone)]
struct Patience(Arc<watch::Sender<Instant>>);

impl Patience {
    fn new(patience: Duration) -> Self {
        Self(Arc::new(watch::Sender::new(Instant::now() + patience)))
    }

    fn set(&self, patience: Duration) {
        self.0.send_replace(Instant::now() + patience);
    }

    /// What `future` comes to, unless patience ends first.
    async fn last<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let (mut future, mut until) = (std::pin::pin!(future), self.0.subscribe());
        loop {
            let at = *until.borrow_and_update();
            tokio::select! {
                biased;
                result = &mut future => return Some(result),
                // The sender is ours: it does not go.
                _ = until.changed() => {}
                () = tokio::time::sleep_until(at) => return None,
            }
        }
    }
}

async fn upgrade(
    State(door): State<Door>,
    Path(room): Path<String>,
    axum::Extension(caller): axum::Extension<Caller>,
    on_upgrade: Option<axum::Extension<OnUpgrade>>,
    headers: HeaderMap,
    // Whoever asks for anything but a WebSocket is refused by it.
    _asked: WebSocketUpgrade,
) -> Response {
    let (Some(axum::Extension(upgraded)), Some(key)) = (on_upgrade, headers.get(header::SEC_WEBSOCKET_KEY)) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        // A client that left before its answer is nobody's any more.
        let Ok(upgraded) = upgraded.await else { return };
        let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<Stream>>() else { return };
        // The room's own thread takes it from here; when that is gone, so is the socket.
        let _ = door.arrivals.send(Arrival { stream: io.into_inner(), unread: read_buf, caller, room }).await;
    });
    let switch = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket"), (header::SEC_WEBSOCKET_ACCEPT, accept.as_str())];
    (StatusCode::SWITCHING_PROTOCOLS, switch).into_response()
}

async fn status(State(door): State<Door>, query: axum::extract::RawQuery) -> Response {
    let hashes = query.0.is_some_and(|query| query.split('&').any(|part| part == "hashes"));
    let (answer, answered) = oneshot::channel();
    if door.asks.send(Ask::Status { hashes, answer }).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answered.await {
        Ok(status) => json(StatusCode::OK, &status),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn admin(State(door): State<Door>, axum::Extension(caller): axum::Extension<Caller>, body: Body) -> Response {
    // The port is for clients; only whoever sits on the machine may reshape the cluster through it.
    if !caller.address.ip().is_loopback() {
        return json(StatusCode::FORBIDDEN, &serde_json::json!({"error": "admin requests are taken from loopback only"}));
    }
    let body = axum::body::to_bytes(body, door.limits.http_bytes_max);
    let body = match tokio::time::timeout(Duration::from_millis(door.limits.handshake_ms), body).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return json(StatusCode::BAD_REQUEST, &serde_json::json!({"error": error.to_string()})),
        Err(_) => return json(StatusCode::REQUEST_TIMEOUT, &serde_json::json!({"error": "the request took too long"})),
    };
    let request = match serde_json::from_slice::<AdminRequest>(&body) {
        Ok(AdminRequest::Join { .. }) => {
            return json(StatusCode::BAD_REQUEST, &serde_json::json!({"error": "join comes over the mesh"}));
        }
        Ok(request) => request,
        Err(error) => return json(StatusCode::BAD_REQUEST, &serde_json::json!({"error": error.to_string()})),
    };
    let (answer, answered) = oneshot::channel();
    if door.asks.send(Ask::Admin { request, answer }).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match tokio::time::timeout(Duration::from_millis(door.limits.admin_ms), answered).await {
        Ok(Ok(Ok(()))) => json(StatusCode::OK, &serde_json::json!({"ok": true})),
        Ok(Ok(Err(AdminFailure::Recovering))) => {
            json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({"error": "Recovering", "retry_after_ms": RETRY_AFTER_MS}))
        }
        Ok(Ok(Err(AdminFailure::Refused(why)))) => json(StatusCode::CONFLICT, &serde_json::json!({"error": why})),
        Ok(Err(_)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(_) => json(StatusCode::GATEWAY_TIMEOUT, &serde_json::json!({"error": "not done in time; it may still happen"})),
    }
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_default();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Takes a client in: the task that serves it from here on, to its last frame.
fn take_in(node: &Rc<Node>, port: &Rc<Port>, arrival: Arrival) {
    let Arrival { stream, unread, caller, room } = arrival;
    let conversation = Rc::new(Conversation::new(Socket::new(stream, &unread, node.limits())));
    let opened = if room == node.room_name() {
        node.link_opened(caller.address.ip(), caller.accepted, &conversation)
    } else {
        Err(Code::UnknownRoom)
    };
    match opened {
        Ok(link) => {
            port.links.borrow_mut().insert(link, Rc::clone(&conversation));
            tokio::task::spawn_local(serve_link(Rc::clone(node), Rc::clone(port), link, conversation));
        }
        Err(code) => {
            match code {
                Code::UnknownRoom => node.count("refused_UnknownRoom"),
                Code::Recovering => node.count("refused_Recovering"),
                // The room has counted it.
                _ => {}
            }
            let retry_after_ms = (code == Code::Recovering).then_some(RETRY_AFTER_MS);
            conversation.refuse(ServerFrame::Refuse { code, retry_after_ms }.encode());
            tokio::task::spawn_local(goodbye(Rc::clone(node), conversation));
        }
    }
}

async fn serve_link(node: Rc<Node>, port: Rc<Port>, link: LinkId, conversation: Rc<Conversation>) {
    std::future::poll_fn(|cx| if port.closing.get() { Poll::Ready(()) } else { conversation.poll(&node, link, cx) }).await;
    port.links.borrow_mut().remove(&link);
    node.link_closed(link);
    if conversation.is_closing() {
        // Apart, because the task of a client that stays is no larger than what comes before.
        Box::pin(goodbye(node, conversation)).await;
    }
}

/// Brings a client's last frames to it, if it takes them in time.
async fn goodbye(node: Rc<Node>, conversation: Rc<Conversation>) {
    let closed = std::future::poll_fn(|cx| conversation.poll_close(cx));
    let _ = tokio::time::timeout(Duration::from_millis(node.limits().goodbye_ms), closed).await;
}
