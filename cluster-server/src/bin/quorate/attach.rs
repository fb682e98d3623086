//! How client commands find servers: `--endpoint`, and what is common to them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use cluster_client::{ClusterClient, ConnectError, NotSent, ProposeError, RequestJournal};
use url::Url;
use voter_mesh::machine::kv::Kv;

use crate::output::{Code, Failure};

/// Where `quorate serve` listens when it is not told otherwise.
pub(crate) const DEFAULT_ENDPOINT: &str = "ws://127.0.0.1:7400/rooms/main";

/// A room on one server's relay port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    url: Url,
    host: String,
    port: u16,
}

impl Endpoint {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The room's name.
    pub(crate) fn room(&self) -> &str {
        self.url.path().trim_start_matches("/rooms/")
    }

    /// `host:port`, as an HTTP `host` header has it.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or_default(), self.port)
    }

    pub(crate) fn as_str(&self) -> &str {
        self.url.as_str()
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("{error}; an endpoint looks like {DEFAULT_ENDPOINT}"))?;
        if url.scheme() != "ws" {
            return Err(format!("an endpoint looks like {DEFAULT_ENDPOINT}"));
        }
        // A server without a path means its default room.
        if url.path() == "/" {
            url.set_path("/rooms/main");
        }
        // A name that resolves is written bare, an IPv6 address in brackets: connecting wants neither brackets nor guesses.
        let host = url.host_str().ok_or("an endpoint needs a host")?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or("an endpoint needs a port")?;
        Ok(Self { url, host, port })
    }
}

/// Which servers a command speaks to.
#[derive(Args, Clone, Debug)]
pub(crate) struct Servers {
    /// A server's room, ws://HOST:PORT/rooms/ROOM; give several and the command survives the loss of one
    #[arg(short, long = "endpoint", value_name = "URL", default_value = DEFAULT_ENDPOINT)]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Which servers a client speaks to, and how long it waits for them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// Seconds until a call gives up
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) deadline: Duration,
}

impl Attach {
    pub(crate) fn urls(&self) -> Vec<String> {
        self.servers.endpoints.iter().map(ToString::to_string).collect()
    }
}

/// A client without state that gets answers and no feed: for commands that only write.
pub(crate) type Thin = ClusterClient<cluster_client::Thin>;

/// A client without state that follows the log.
pub(crate) type Raw = ClusterClient<cluster_client::Raw>;

impl Attach {
    /// Attaches to the endpoint numbered `first`, or to the next one that lets it in.
    pub(crate) async fn thin(&self, journal: RequestJournal, first: usize) -> Result<Thin, Failure> {
        let builder = ClusterClient::builder().endpoints(self.urls()).start_with(first).deadline(self.deadline).journal(journal);
        builder.thin().connect().await.map_err(|error| connect_failure(&error))
    }

    pub(crate) async fn raw(&self, first: usize) -> Result<Raw, Failure> {
        let builder = ClusterClient::builder().endpoints(self.urls()).start_with(first).deadline(self.deadline);
        builder.raw().connect().await.map_err(|error| connect_failure(&error))
    }

    /// As `thin`, for a replica of a room of state kv.
    pub(crate) async fn replica(&self, first: usize) -> Result<ClusterClient<Kv>, Failure> {
        let builder = ClusterClient::builder().endpoints(self.urls()).start_with(first).deadline(self.deadline);
        builder.state(Kv::default()).connect().await.map_err(|error| connect_failure(&error))
    }
}

/// Why there is no client, and how a command ends for it.
pub(crate) fn connect_failure(error: &ConnectError) -> Failure {
    let code = match error {
        ConnectError::Deadline { .. } => Code::Unreachable,
        ConnectError::NoEndpoint | ConnectError::Endpoint { .. } | ConnectError::Rooms(..) => Code::Usage,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

/// Why a command has no reply, and how the process ends for it.
pub(crate) fn propose_failure(error: &ProposeError) -> Failure {
    let code = match error {
        ProposeError::NotSent { reason: NotSent::Deadline } => Code::Unreachable,
        ProposeError::Unknown { .. } => Code::Unknown,
        _ => Code::Failed,
    };
    let hint = match error {
        ProposeError::Undecodable => ": is the room of state kv? `quorate kv` speaks its language",
        _ => "",
    };
    Failure::new(code, format!("{error}{hint}"))
}

/// A number of seconds, fractions allowed.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, such as 10 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Where a command's requests are remembered.
#[derive(Args, Clone, Debug)]
pub(crate) struct JournalArg {
    /// Remember requests in this file, so that a command that was cut off can be finished exactly once later
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

impl JournalArg {
    pub(crate) fn open(&self) -> Result<RequestJournal, Failure> {
        let Some(path) = &self.journal else { return Ok(RequestJournal::memory()) };
        RequestJournal::file(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_names_host_port_and_room() {
        let endpoint: Endpoint = "ws://127.0.0.1:7401/rooms/blue".parse().unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("127.0.0.1", 7401));
        assert_eq!(endpoint.room(), "blue");
        assert_eq!(endpoint.as_str(), "ws://127.0.0.1:7401/rooms/blue");
        let short: Endpoint = "ws://[::1]:7401".parse().unwrap();
        assert_eq!((short.host(), short.as_str()), ("::1", "ws://[::1]:7401/rooms/main"));
        assert_eq!(short.authority(), "[::1]:7401");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_an_example() {
        for text in ["127.0.0.1:7400", "http://127.0.0.1:7400/", "ws://", ""] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err() && seconds("1e30").is_err());
    }
}
