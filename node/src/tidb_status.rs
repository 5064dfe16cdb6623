//! The status ports of the cluster's TiDB servers: found in etcd, or configured; asked one after the other.
//!
//! Every tidb-server registers itself under `/tidb/server/info/<uuid>` (leased, so a dead one disappears) as JSON with `ip`
//! and `status_port`. All of them answer alike; whichever answered last is asked first.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use etcd_client::{Client, GetOptions};
use reqwest::StatusCode;
use serde::Deserialize;
use tracing::debug;

use crate::tls::{Security, TlsError};

/// Where TiDB servers register.
pub const SERVER_INFO_PREFIX: &str = "/tidb/server/info/";

/// One request to one server, body included.
const REQUEST: Duration = Duration::from_secs(30);
/// A look into etcd.
const DISCOVERY: Duration = Duration::from_secs(5);
/// Of an error's body, this much is kept.
const ERROR_BODY: usize = 4096;

/// What TiDB registers; the fields that are used.
#[derive(Debug, Deserialize)]
struct ServerInfo {
    ip: String,
    status_port: u16,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No server is registered and none is configured.
    #[error("no TiDB server is registered in etcd under {SERVER_INFO_PREFIX}, and none is configured")]
    NoServer,
    /// etcd does not answer.
    #[error("cannot look up TiDB servers in etcd: {0}")]
    Etcd(String),
    /// What is registered is not what TiDB writes.
    #[error("etcd key {key} is not a TiDB server's registration: {reason}")]
    Registration {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// No server answered, or all answered with a server error.
    #[error("no TiDB status port answered {path}: {}", failures.join("; "))]
    Unreachable {
        /// What was asked.
        path: String,
        /// Address and failure of each.
        failures: Vec<String>,
    },
    /// A server answered that it will not or cannot.
    #[error("TiDB at {address} answered {path} with {status}: {body}")]
    Refused {
        /// Who.
        address: String,
        /// What was asked.
        path: String,
        /// HTTP status, 300 to 499.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The answer is larger than the caller takes.
    #[error("TiDB at {address} answered {path} with more than {limit} bytes")]
    TooLarge {
        /// Who.
        address: String,
        /// What was asked.
        path: String,
        /// The caller's limit.
        limit: usize,
    },
    /// TLS or the HTTP client cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl StatusError {
    /// True if the same question may be answered later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoServer | Self::Etcd(_) | Self::Unreachable { .. } => true,
            Self::Registration { .. } | Self::Refused { .. } | Self::TooLarge { .. } | Self::Tls(_) => false,
        }
    }
}

/// A client of the status ports.
#[derive(Debug)]
pub struct TidbStatus {
    source: Source,
    http: reqwest::Client,
    scheme: &'static str,
    /// Base URLs, the one to ask first in front.
    known: Mutex<Vec<String>>,
}

enum Source {
    Etcd(Box<Client>),
    Configured,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Etcd(_) => "Etcd",
            Self::Configured => "Configured",
        })
    }
}

impl TidbStatus {
    /// Asks the servers `configured` (`host:port`, or with a scheme); if there are none, those that etcd names.
    pub fn new(etcd: Client, configured: &[String], security: &Security) -> Result<Self, StatusError> {
        let scheme = if security.enabled() { "https" } else { "http" };
        let known = configured.iter().map(|address| base_url(scheme, address)).collect::<Vec<_>>();
        Ok(Self {
            source: if known.is_empty() { Source::Etcd(Box::new(etcd)) } else { Source::Configured },
            http: security.http_client(REQUEST)?,
            scheme,
            known: Mutex::new(known),
        })
    }

    /// The body that a server answers to GET `path` (with its query, already percent-encoded), at most `limit` bytes.
    pub async fn get(&self, path: &str, limit: usize) -> Result<Bytes, StatusError> {
        let mut failures = Vec::new();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(body) = self.ask(&known, path, limit, &mut failures).await? {
            return Ok(body);
        }
        if let Source::Etcd(client) = &self.source {
            let found = self.discover(client).await?;
            let new: Vec<_> = found.iter().filter(|url| !known.contains(url)).cloned().collect();
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = found;
            if let Some(body) = self.ask(&new, path, limit, &mut failures).await? {
                return Ok(body);
            }
        }
        if failures.is_empty() {
            return Err(StatusError::NoServer);
        }
        Err(StatusError::Unreachable { path: path.to_owned(), failures })
    }

    /// Tries `urls` in turn; `None` if no one answered, the reasons then in `failures`.
    async fn ask(
        &self,
        urls: &[String],
        path: &str,
        limit: usize,
        failures: &mut Vec<String>,
    ) -> Result<Option<Bytes>, StatusError> {
        for url in urls {
            match self.ask_one(url, path, limit).await? {
                Ok(body) => {
                    let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(index) = known.iter().position(|other| other == url) {
                        known[..=index].rotate_right(1);
                    }
                    return Ok(Some(body));
                }
                Err(failure) => {
                    debug!(url, path, failure, "a TiDB status port did not answer");
                    failures.push(format!("{url}: {failure}"));
                }
            }
        }
        Ok(None)
    }

    /// The outer error ends the search, the inner one is this server's alone.
    async fn ask_one(
        &self,
        url: &str,
        path: &str,
        limit: usize,
    ) -> Result<Result<Bytes, String>, StatusError> {
        let mut response = match self.http.get(format!("{url}{path}")).send().await {
            Ok(response) => response,
            Err(error) => return Ok(Err(chain(&error))),
        };
        let status = response.status();
        let wanted = status == StatusCode::OK;
        let most = if wanted { limit } else { ERROR_BODY };
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) if body.len() + chunk.len() > most => {
                    if wanted {
                        return Err(StatusError::TooLarge {
                            address: url.to_owned(),
                            path: path.to_owned(),
                            limit,
                        });
                    }
                    body.extend_from_slice(&chunk[..most - body.len()]);
                    break;
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Err(error) => return Ok(Err(chain(&error))),
            }
        }
        let body = body.freeze();
        if wanted {
            return Ok(Ok(body));
        }
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        if status.is_server_error() {
            return Ok(Err(format!("{status}: {text}")));
        }
        Err(StatusError::Refused {
            address: url.to_owned(),
            path: path.to_owned(),
            status: status.as_u16(),
            body: text,
        })
    }

    async fn discover(&self, client: &Client) -> Result<Vec<String>, StatusError> {
        let mut client = client.kv_client();
        let get = client.get(SERVER_INFO_PREFIX, Some(GetOptions::new().with_prefix()));
        let response = tokio::time::timeout(DISCOVERY, get)
            .await
            .map_err(|_| StatusError::Etcd(format!("no answer within {DISCOVERY:?}")))?
            .map_err(|error| StatusError::Etcd(error.to_string()))?;
        response
            .kvs()
            .iter()
            .map(|kv| {
                let info: ServerInfo =
                    serde_json::from_slice(kv.value()).map_err(|error| StatusError::Registration {
                        key: String::from_utf8_lossy(kv.key()).into_owned(),
                        reason: error.to_string(),
                    })?;
                let host = if info.ip.contains(':') { format!("[{}]", info.ip) } else { info.ip };
                Ok(format!("{}://{host}:{}", self.scheme, info.status_port))
            })
            .collect()
    }
}

fn base_url(scheme: &str, address: &str) -> String {
    let address = address.trim_end_matches('/');
    if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") }
}

/// An error with its causes, which reqwest's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
