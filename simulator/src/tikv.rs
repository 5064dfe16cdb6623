//! TiKV's stand-in: `KvCheckTxnStatus`.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use schemas::kvrpcpb::{CheckTxnStatusRequest, CheckTxnStatusResponse};
use schemas::tikvpb::tikv_server::{Tikv, TikvServer};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::cluster::Cluster;
use crate::server::Server;

/// What a bad TiKV makes of a true answer: how long it takes, and what it says in the end.
pub type Distortion = dyn Fn(&CheckTxnStatusRequest, CheckTxnStatusResponse) -> (Duration, Result<CheckTxnStatusResponse, Status>)
    + Send
    + Sync;

/// A running TiKV stand-in; stops when dropped.
#[derive(Debug)]
pub struct MockTikv(Server);

impl MockTikv {
    /// Starts it on a `host:port` (port 0: any free one) and tells the cluster's PD where its one store is.
    pub async fn start(cluster: Cluster, listen: &str) -> anyhow::Result<Self> {
        Self::distorted(cluster, listen, truth()).await
    }

    /// As [`Self::start`], with TLS.
    pub async fn over_tls(cluster: Cluster, listen: &str, tls: Arc<ServerConfig>) -> anyhow::Result<Self> {
        Self::begin(cluster, listen, truth(), Some(tls)).await
    }

    /// As [`Self::start`], but slow, failing or lying.
    pub async fn distorted(
        cluster: Cluster,
        listen: &str,
        distortion: Arc<Distortion>,
    ) -> anyhow::Result<Self> {
        Self::begin(cluster, listen, distortion, None).await
    }

    async fn begin(
        cluster: Cluster,
        listen: &str,
        distortion: Arc<Distortion>,
        tls: Option<Arc<ServerConfig>>,
    ) -> anyhow::Result<Self> {
        let listener = Server::bind(listen).await?;
        cluster.set_store_address(listener.local_addr()?.to_string());
        let service = TikvServer::new(Service { cluster, distortion });
        Ok(Self(Server::serve(listener, Routes::new(service).into_axum_router(), tls)?))
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.0.address().to_string()
    }
}

fn truth() -> Arc<Distortion> {
    Arc::new(|_, answer| (Duration::ZERO, Ok(answer)))
}

struct Service {
    cluster: Cluster,
    distortion: Arc<Distortion>,
}

#[tonic::async_trait]
impl Tikv for Service {
    async fn kv_check_txn_status(
        &self,
        request: Request<CheckTxnStatusRequest>,
    ) -> Result<Response<CheckTxnStatusResponse>, Status> {
        let request = request.into_inner();
        let answer = self.cluster.check_txn_status(&request);
        let (delay, answer) = (self.distortion)(&request, answer);
        tokio::time::sleep(delay).await;
        answer.map(Response::new)
    }
}
