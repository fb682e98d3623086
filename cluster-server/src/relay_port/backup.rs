//! `GET /backup`: a snapshot of now, written straight into the answer. It holds at least everything that was acknowledged before it
//! was asked for, is never a file of this server's, and costs its thread no more than taking an image does.
//!
//! The answer is as long as the snapshot turns out to be: only the trailer proves that it came whole.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tracing::info;
use voter_mesh::replica::ReplicaImage;
use voter_mesh::run::Tail;

use super::{Ask, Caller, Door, Patience, json};
use crate::disk::write_snapshot;

/// Bytes of one piece of the answer, about.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces that wait for the one who asked.
const PIECES_MAX: usize = 4;

pub(super) async fn backup(
    State(door): State<Door>,
    axum::Extension(caller): axum::Extension<Caller>,
    axum::Extension(patience): axum::Extension<Patience>,
) -> Response {
    let refuse = |status, why: &str| json(status, &json!({"error": why}));
    // It holds everybody's data.
    if !caller.address.ip().is_loopback() {
        return refuse(StatusCode::FORBIDDEN, "backups are given to loopback only");
    }
    let Ok(permit) = Arc::clone(&door.backups).try_acquire_owned() else {
        return refuse(StatusCode::CONFLICT, "another backup of this server is under way");
    };
    let (answer, answered) = oneshot::channel();
    if door.asks.send(Ask::Image { answer }).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let image = match tokio::time::timeout(Duration::from_millis(door.limits.admin_ms), answered).await {
        Ok(Ok(image)) => image,
        Ok(Err(_)) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "Recovering: this server has nothing to give yet, or too much to do");
        }
        Err(_) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "no leader confirmed in time what was committed"),
    };
    let (pieces, mut taken) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut to = Pieces { pieces, piece: BytesMut::new() };
        match write(image, &mut to) {
            Ok(tail) => info!(run = %tail.run, index = %tail.last, "backup given"),
            Err(error) => {
                info!(%error, "backup broken off");
                // The connection breaks: a cut-off answer must not look like a short one.
                let _ = to.pieces.blocking_send(Err(error));
            }
        }
        drop(permit);
    });
    let stall = Duration::from_millis(door.limits.backup_stall_ms);
    let body = futures_util::stream::poll_fn(move |cx| {
        patience.set(stall);
        taken.poll_recv(cx)
    });
    Response::builder()
        .header("content-type", "application/octet-stream")
        .body(Body::from_stream(body))
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Writes the image out; says where it stands.
fn write(image: ReplicaImage, to: &mut Pieces) -> io::Result<Tail> {
    let ReplicaImage { meta, machine, sessions } = image;
    let meta = write_snapshot(to, meta, |to| machine.write(to), |to| sessions.write(to))?;
    to.flush()?;
    Ok(meta.tail)
}

/// Cuts what is written into pieces, and waits while too many of them wait.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.piece.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "whoever took it has gone"))
    }
}
