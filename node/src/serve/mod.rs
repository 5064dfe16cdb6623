//! gRPC and HTTP/1.1 on one port, with or without TLS, on TCP and Unix sockets.
//!
//! Which of the two a connection speaks is told by its first bytes (HTTP/2 by prior knowledge), so clients with and without
//! ALPN are taken. A peer that does not get to the point (handshake, preface, request header) within the time limit is cut
//! off. At shutdown nothing new is accepted, running requests get `drain` to finish, then connections are dropped.

mod first_bytes;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use futures::future::FutureExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::dial::Stream;
use crate::shutdown::Shutdown;
use crate::tls::common_names;
use first_bytes::FirstBytes;
use streams::Streams;

/// What a listener that speaks both offers by ALPN.
pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Bounds on what peers may do.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// For the TLS handshake, then for the first bytes, then for each HTTP/1.1 request's header.
    pub header_timeout: Duration,
    /// Streams that one HTTP/2 connection may have open; `None`: as many as it likes (TiDB makes one call per transaction
    /// over one connection).
    pub max_concurrent_streams: Option<u32>,
    /// Connections at a time over all listeners; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Bytes in flight towards us per HTTP/2 stream.
    pub stream_window: u32,
    /// Bytes in flight towards us per HTTP/2 connection.
    pub connection_window: u32,
    /// How long running requests may take to finish at shutdown.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            max_concurrent_streams: None,
            max_connections: 10_000,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            drain: Duration::from_secs(10),
        }
    }
}

/// Who sent a request; in its extensions. Made once for a connection, and cheap to clone for each of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Absent on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Common names of the client's own certificate; empty without TLS or without a client certificate.
    pub common_names: Arc<[String]>,
}

/// What answers the requests of a listener: a [`Router`], or what stands before one where a router's own cost counts.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn handle(self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Response<Body>> + Send;
}

/// Requests carry their [`Peer`] as an extension.
impl Handler for Router {
    async fn handle(self, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if let Some(address) = peer.address {
            request.extensions_mut().insert(axum::extract::ConnectInfo(address));
        }
        request.extensions_mut().insert(peer);
        let Ok(response) = self.oneshot(request).await;
        response
    }
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    /// Binds `host:port`; port 0 picks a free one.
    pub async fn tcp(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
        Ok(Self(Socket::Tcp(listener)))
    }

    /// Binds a Unix socket. A socket that nobody listens on any more is replaced; any other file is not.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        let wrap = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                // Connecting to a file that is no socket is refused in the same way, and it may be precious.
                let is_socket =
                    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
                let is_refused = UnixStream::connect(path)
                    .await
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if !(is_socket && is_refused) {
                    return Err(wrap(error));
                }
                std::fs::remove_file(path).map_err(wrap)?;
                UnixListener::bind(path)
            }
            other => other,
        };
        Ok(Self(Socket::Unix { listener: listener.map_err(wrap)?, path: path.to_path_buf() }))
    }

    /// Where a TCP listener is bound; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.0 {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, address))
            }
            Socket::Unix { listener, .. } => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path, .. } = &self.0 {
            // Left behind, it is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Serves `handler` on all `listeners` until `shutdown`, then drains. TLS applies to TCP listeners only. A gRPC service
/// becomes a router by `tonic::service::Routes::new(service).into_axum_router()`; streams without an end have to watch the
/// shutdown themselves.
pub async fn serve<H: Handler>(
    listeners: Vec<Listener>,
    handler: H,
    tls: Option<Arc<ServerConfig>>,
    limits: ServeLimits,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let server = Arc::new(Server {
        handler,
        tls: tls.map(TlsAcceptor::from),
        limits,
        permits: Arc::new(Semaphore::new(limits.max_connections)),
        drain: GracefulShutdown::new(),
        cut: CancellationToken::new(),
        shutdown: shutdown.clone(),
    });
    // Whichever way this function ends, even by being dropped, no connection outlives it.
    let cut = server.cut.clone().drop_guard();
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        acceptors.spawn(Arc::clone(&server).accept_all(listener));
    }
    while let Some(ended) = acceptors.join_next().await {
        ended.context("a listener's task failed")??;
    }
    drop(acceptors);
    let drain = Arc::into_inner(server).context("a listener's task is still there")?.drain;
    if tokio::time::timeout(limits.drain, drain.shutdown()).await.is_err() {
        warn!(seconds = limits.drain.as_secs_f64(), "dropped connections that did not drain in time");
    }
    drop(cut);
    Ok(())
}

struct Server<H> {
    handler: H,
    tls: Option<TlsAcceptor>,
    limits: ServeLimits,
    permits: Arc<Semaphore>,
    drain: GracefulShutdown,
    /// Ends every connection at once.
    cut: CancellationToken,
    shutdown: Shutdown,
}

impl<H: Handler> Server<H> {
    /// Accepts until shutdown. Connections are tasks of their own, which a bug in one handler ends alone.
    async fn accept_all(self: Arc<Self>, listener: Listener) -> anyhow::Result<()> {
        loop {
            let next = async {
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let Some((permit, accepted)) = self.shutdown.unless(next).await else {
                return Ok(());
            };
            let permit = permit.context("the connection limit was closed")?;
            match accepted {
                Ok(accepted) => {
                    let connection = Connection {
                        accepted,
                        handler: self.handler.clone(),
                        tls: self.tls.clone(),
                        limits: self.limits,
                        watcher: self.drain.watcher(),
                        _permit: permit,
                    };
                    let cut = self.cut.clone();
                    tokio::spawn(async move { cut.run_until_cancelled(connection.run()).await });
                }
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection broke while it was accepted")
                }
                Err(error) => {
                    // Out of file descriptors, most likely: closing connections frees them.
                    warn!(%error, "cannot accept connections, trying again");
                    let _ = self.shutdown.unless(tokio::time::sleep(Duration::from_millis(100))).await;
                }
            }
        }
    }
}

/// One connection, from the handshake to its end. Does not hold the server, which ends before it does.
struct Connection<H> {
    accepted: Accepted,
    handler: H,
    tls: Option<TlsAcceptor>,
    limits: ServeLimits,
    watcher: Watcher,
    _permit: OwnedSemaphorePermit,
}

impl<H: Handler> Connection<H> {
    async fn run(self) {
        let Self { accepted, handler, tls, limits, watcher, _permit } = self;
        let (stream, peer) = match establish(accepted, tls, limits).await {
            Ok(established) => established,
            Err(error) => {
                debug!(%error, "a connection was not established");
                return;
            }
        };
        let address = peer.address;
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            handler.clone().handle(request, peer.clone()).map(Ok::<_, std::convert::Infallible>)
        });
        let streams = Streams::default();
        let mut builder = auto::Builder::new(streams.clone());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_concurrent_streams)
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        let stream = TokioIo::new(FirstBytes::new(stream, limits.header_timeout));
        let connection = builder.serve_connection(stream, service).into_owned();
        if let Err(error) = streams.run(watcher.watch(connection)).await {
            debug!(?address, %error, "a connection broke");
        }
    }
}

async fn establish(
    accepted: Accepted,
    tls: Option<TlsAcceptor>,
    limits: ServeLimits,
) -> io::Result<(Box<dyn Stream>, Peer)> {
    let (stream, address) = match accepted {
        Accepted::Unix(stream) => return Ok((Box::new(stream), Peer::default())),
        Accepted::Tcp(stream, address) => (stream, Some(address)),
    };
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok((Box::new(stream), Peer { address, ..Peer::default() }));
    };
    let stream = tokio::time::timeout(limits.header_timeout, tls.accept(stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))??;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let common_names = leaf.map(common_names).unwrap_or_default().into();
    Ok((Box::new(stream), Peer { address, common_names }))
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
