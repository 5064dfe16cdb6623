//! Outgoing gRPC channels: several addresses for one service, TLS as configured, Unix sockets.
//!
//! A channel connects when it is first used and again after a connection was lost. Each attempt goes through the addresses
//! in turn, beginning with the one that answered last, and shakes hands anew, so replaced certificates take effect.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::tls::{Security, TlsError};

/// One attempt to reach one address, handshake included.
const ATTEMPT: Duration = Duration::from_secs(3);
/// An idle connection is pinged this often…
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// … and given up if the answer takes this long.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a channel cannot be made. Addresses that do not answer are no such reason: that shows when the channel is used.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The list is empty.
    #[error("no address to connect to")]
    NoAddress,
    /// An address cannot be understood.
    #[error(
        "`{address}` is not an address: write host:port, http://host:port, https://host:port or unix:///path"
    )]
    Address {
        /// As given.
        address: String,
    },
    /// TLS is asked for by the address, but not configured.
    #[error("`{0}` asks for TLS: set ssl-ca")]
    NoTls(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Either kind of stream, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}", authority(host, *port))
            }
        }
    }
}

/// `host:port`, an IPv6 address in brackets.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A channel to whichever of `addresses` answers: `host:port` (TLS if and only if `security` is enabled), `http://…`
/// (never), `https://…` (always), `unix:///path`. Pings idle connections, so that a peer that vanished is noticed.
pub fn channel<A: AsRef<str>>(addresses: &[A], security: &Security) -> Result<Channel, DialError> {
    let targets =
        addresses.iter().map(|address| target(address.as_ref(), security)).collect::<Result<Vec<_>, _>>()?;
    let authority = match targets.first() {
        None => return Err(DialError::NoAddress),
        Some(Target::Tcp { host, port, .. }) => authority(host, *port),
        Some(Target::Unix(_)) => "localhost".to_owned(),
    };
    let dialer = Dialer {
        targets: targets.into(),
        tls: security.client_config(&[b"h2"])?,
        last_good: Arc::new(AtomicUsize::new(0)),
    };
    // The dialer sees to TLS itself, so for tonic it is plain HTTP either way.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| DialError::Address { address: authority })?
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20);
    Ok(endpoint.connect_with_connector_lazy(dialer))
}

fn target(address: &str, security: &Security) -> Result<Target, DialError> {
    let wrong = || DialError::Address { address: address.to_owned() };
    if let Some(path) = address.strip_prefix("unix://") {
        return Ok(Target::Unix(PathBuf::from(path)));
    }
    let (tls, rest) = if let Some(rest) = address.strip_prefix("https://") {
        if !security.enabled() {
            return Err(DialError::NoTls(address.to_owned()));
        }
        (true, rest)
    } else if let Some(rest) = address.strip_prefix("http://") {
        (false, rest)
    } else {
        (security.enabled(), address)
    };
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(['/', ' ', '@']) {
        return Err(wrong());
    }
    Ok(Target::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| wrong())?, tls })
}

/// Opens connections for one channel.
#[derive(Clone)]
struct Dialer {
    targets: Arc<[Target]>,
    tls: Option<Arc<ClientConfig>>,
    last_good: Arc<AtomicUsize>,
}

impl Dialer {
    async fn dial(self) -> io::Result<TokioIo<Box<dyn Stream>>> {
        let first = self.last_good.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for index in (0..self.targets.len()).map(|i| (first + i) % self.targets.len()) {
            let target = &self.targets[index];
            match tokio::time::timeout(ATTEMPT, self.reach(target)).await {
                Ok(Ok(stream)) => {
                    self.last_good.store(index, Ordering::Relaxed);
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => failures.push(format!("{target}: {error}")),
                Err(_) => failures.push(format!("{target}: no answer within {ATTEMPT:?}")),
            }
        }
        // The next attempt begins elsewhere even if none is known to be good.
        self.last_good.store((first + 1) % self.targets.len(), Ordering::Relaxed);
        Err(io::Error::other(format!("cannot connect: {}", failures.join("; "))))
    }

    async fn reach(&self, target: &Target) -> io::Result<Box<dyn Stream>> {
        match target {
            Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Target::Tcp { host, port, tls } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    Some(config) if *tls => {
                        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                        Ok(Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?))
                    }
                    _ => Ok(Box::new(stream)),
                }
            }
        }
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let plain = Security::default();
        let secure = Security { ssl_ca: Some("ca.pem".into()), ..Security::default() };
        let tcp = |host: &str, port, tls| Target::Tcp { host: host.to_owned(), port, tls };
        for (address, security, expected) in [
            ("a:1", &plain, tcp("a", 1, false)),
            ("a:1", &secure, tcp("a", 1, true)),
            ("http://a:1/", &secure, tcp("a", 1, false)),
            ("https://a.b:2379", &secure, tcp("a.b", 2379, true)),
            ("[::1]:80", &plain, tcp("::1", 80, false)),
            ("unix:///tmp/x.sock", &plain, Target::Unix("/tmp/x.sock".into())),
        ] {
            let parsed = target(address, security).unwrap();
            assert_eq!(target(&parsed.to_string(), security).unwrap(), parsed);
            assert_eq!(parsed, expected);
        }
        for address in ["", "a", "a:", "a:b", ":1", "a:70000", "ftp://a:1", "http://a/b:1"] {
            assert!(target(address, &plain).unwrap_err().to_string().contains(&format!("`{address}`")));
        }
        assert!(matches!(target("https://a:1", &plain), Err(DialError::NoTls(_))));
        assert!(matches!(channel::<&str>(&[], &plain), Err(DialError::NoAddress)));
    }
}
