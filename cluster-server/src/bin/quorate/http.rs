//! One HTTP request to a server's relay port: what `status`, `backup` and the administrator's commands need, and no more.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attach::Endpoint;

/// Bytes of an answer that are read: a status with thousands of seats.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    /// The request was never sent.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The request may have been read.
    #[error("no answer: {0}")]
    Broken(String),
    /// The request may have been read.
    #[error("no answer in time")]
    Deadline,
    /// The answer comes, and cannot be kept.
    #[error("cannot keep the answer: {0}")]
    Keep(std::io::Error),
}

/// Sends one request and reads its whole answer.
pub(crate) async fn request(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Vec<u8>,
    deadline: Duration,
) -> Result<(StatusCode, Bytes), HttpError> {
    let stream = connect(endpoint, deadline).await?;
    let exchange = async {
        let (status, body) = send(stream, endpoint, method, path, body).await?;
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| HttpError::Broken(error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    timeout(deadline, exchange).await.unwrap_or(Err(HttpError::Deadline))
}

/// Asks for something large and hands it over piece by piece, `deadline` being the longest wait for each. A refusal is returned with
/// its text; then nothing was handed over.
pub(crate) async fn download(
    endpoint: &Endpoint,
    path: &str,
    deadline: Duration,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<Result<(), (StatusCode, String)>, HttpError> {
    let stream = connect(endpoint, deadline).await?;
    let asked = timeout(deadline, send(stream, endpoint, Method::GET, path, Vec::new())).await;
    let (status, mut body) = asked.unwrap_or(Err(HttpError::Deadline))?;
    if status != StatusCode::OK {
        let text = timeout(deadline, Limited::new(body, ANSWER_BYTES_MAX).collect()).await.map_err(|_| HttpError::Deadline)?;
        let text = text.map_err(|error| HttpError::Broken(error.to_string()))?.to_bytes();
        return Ok(Err((status, refusal(status, &text))));
    }
    while let Some(frame) = timeout(deadline, body.frame()).await.map_err(|_| HttpError::Deadline)? {
        let frame = frame.map_err(|error| HttpError::Broken(error.to_string()))?;
        if let Some(piece) = frame.data_ref() {
            take(piece).map_err(HttpError::Keep)?;
        }
    }
    Ok(Ok(()))
}

async fn connect(endpoint: &Endpoint, deadline: Duration) -> Result<TcpStream, HttpError> {
    let connected = timeout(deadline, TcpStream::connect((endpoint.host(), endpoint.port()))).await;
    connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(HttpError::Connect)
}

/// Sends a request; the answer's head, and its body as it comes.
async fn send(
    stream: TcpStream,
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Incoming), HttpError> {
    let broken = |error: &dyn std::fmt::Display| HttpError::Broken(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // It must be driven for the answer to come, and ends with it; its own end says nothing that the answer does not.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", endpoint.authority())
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    Ok((response.status(), response.into_body()))
}

/// What a server says where it does not say yes: `{"error": …}`, or whatever it sent.
pub(crate) fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refused {
        error: String,
    }
    match serde_json::from_slice::<Refused>(body) {
        Ok(refused) => refused.error,
        Err(_) if body.is_empty() => status.to_string(),
        Err(_) => format!("{status}: {}", crate::output::readable(body)),
    }
}
