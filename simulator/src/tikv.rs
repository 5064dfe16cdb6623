//! TiKV's stand-in: `KvCheckTxnStatus`.

use schemas::kvrpcpb::{CheckTxnStatusRequest, CheckTxnStatusResponse};
use schemas::tikvpb::tikv_server::{Tikv, TikvServer};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::cluster::Cluster;
use crate::server::Server;

/// A running TiKV stand-in; stops when dropped.
#[derive(Debug)]
pub struct MockTikv(Server);

impl MockTikv {
    /// Starts it on a `host:port` (port 0: any free one) and tells the cluster's PD where its one store is.
    pub async fn start(cluster: Cluster, listen: &str) -> anyhow::Result<Self> {
        let listener = Server::bind(listen).await?;
        cluster.set_store_address(listener.local_addr()?.to_string());
        let router = Routes::new(TikvServer::new(Service(cluster))).into_axum_router();
        Ok(Self(Server::serve(listener, router)?))
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.0.address().to_string()
    }
}

struct Service(Cluster);

#[tonic::async_trait]
impl Tikv for Service {
    async fn kv_check_txn_status(
        &self,
        request: Request<CheckTxnStatusRequest>,
    ) -> Result<Response<CheckTxnStatusResponse>, Status> {
        Ok(Response::new(self.0.check_txn_status(request.get_ref())))
    }
}
