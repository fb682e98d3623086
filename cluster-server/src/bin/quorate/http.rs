//! One HTTP request to a server's relay port: what `status` and the administrator's commands need, and no more.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
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
}

/// Sends one request and reads its whole answer.
pub(crate) async fn request(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Vec<u8>,
    deadline: Duration,
) -> Result<(StatusCode, Bytes), HttpError> {
    let connect = timeout(deadline, TcpStream::connect((endpoint.host(), endpoint.port()))).await;
    let stream = connect.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(HttpError::Connect)?;
    timeout(deadline, exchange(stream, endpoint, method, path, body)).await.unwrap_or(Err(HttpError::Deadline))
}

async fn exchange(
    stream: TcpStream,
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), HttpError> {
    let broken = |error: &dyn std::fmt::Display| HttpError::Broken(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", endpoint.authority())
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| broken(&error))?;
        Ok((status, body.to_bytes()))
    };
    // The connection must be polled for the answer to come; its own end says nothing that the answer does not.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = answer => answer,
        () = driven => Err(HttpError::Broken("connection closed".into())),
    }
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
