//! A listener of a stand-in: gRPC (HTTP/2 without upgrade) and HTTP/1.1 on one port.
//!
//! Its own accept loop rather than a ready-made one, so that stopping a server cuts its connections at once, as the
//! death of a process would.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A running server. Dropping it closes the port and every connection.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Takes a port; port 0 means any free one. Connections wait until [`Self::serve`].
    pub(crate) async fn bind(address: &str) -> anyhow::Result<TcpListener> {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
    }

    /// Serves `router` on a listener, over TLS if told how.
    pub(crate) fn serve(
        listener: TcpListener,
        router: Router,
        tls: Option<Arc<ServerConfig>>,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let tls = tls.map(TlsAcceptor::from);
        Ok(Self { address, task: tokio::spawn(accept(listener, router, tls)) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, router: Router, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let (router, tls) = (router.clone(), tls.clone());
                    connections.spawn(async move {
                        let ended = match tls {
                            None => serve_connection(stream, router).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => serve_connection(stream, router).await,
                                Err(error) => Err(error.into()),
                            },
                        };
                        if let Err(error) = ended {
                            tracing::debug!(%error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely; it passes when a connection closes.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(None);
    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await
}
