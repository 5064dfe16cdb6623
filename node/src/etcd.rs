//! Connecting to etcd (PD's embedded one, in a TiDB cluster) with our own dialling: every address in turn, TLS as
//! configured, certificates re-read.

use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::{BalancedChannelBuilder, Channel, Client};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;
use tonic::transport::channel::Change;

use crate::dial::{self, DialError};
use crate::tls::Security;

/// Why a client cannot be made. Servers that do not answer are no such reason: that shows at the first request.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// Addresses or TLS.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The client library refuses.
    #[error("etcd: {0}")]
    Client(#[from] etcd_client::Error),
}

/// A client of the etcd behind `urls`, which connects when it is first used.
pub async fn connect(urls: &[String], security: &Security) -> Result<Client, EtcdError> {
    let channel = dial::channel(urls, security)?;
    // The library wants endpoints for its own balancer, which is not used here: it is given one that is never dialled.
    let unused = Arc::new(Mutex::new(None));
    let builder = Ready { channel, unused: Arc::clone(&unused) };
    let client = Client::connect_with_balanced_channel(["http://etcd"], None, builder).await?;
    drop(unused);
    Ok(client)
}

type Changes = mpsc::Receiver<Change<axum::http::Uri, Endpoint>>;

/// Hands the library a channel that is made already.
struct Ready {
    channel: tonic::transport::Channel,
    /// Keeps the library's sender of endpoint changes from failing while it connects.
    unused: Arc<Mutex<Option<Changes>>>,
}

impl BalancedChannelBuilder for Ready {
    type Error = etcd_client::Error;

    fn balanced_channel(
        self,
        buffer: usize,
    ) -> Result<(Channel, mpsc::Sender<Change<axum::http::Uri, Endpoint>>), etcd_client::Error> {
        let (changes, unused) = mpsc::channel(buffer.max(1));
        *self.unused.lock().unwrap_or_else(PoisonError::into_inner) = Some(unused);
        Ok((Channel::Tonic(self.channel), changes))
    }
}
