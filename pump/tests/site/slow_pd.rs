//! A PD that knows its members and gives no timestamp.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use schemas::pdpb::pd_server::{Pd, PdServer};
use schemas::pdpb::{
    GetMembersRequest, GetMembersResponse, GetRegionRequest, GetRegionResponse, GetStoreRequest,
    GetStoreResponse, Member, ResponseHeader, TsoRequest, TsoResponse, UpdateServiceGcSafePointRequest,
    UpdateServiceGcSafePointResponse,
};
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::CLUSTER;

pub struct SlowPd {
    pub url: String,
    /// A permit for each stream of timestamps that was opened.
    pub asked: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl SlowPd {
    pub async fn start() -> Self {
        let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, shutdown) = (Arc::new(Semaphore::new(0)), Shutdown::new());
        let service = PdServer::new(Service { url: url.clone(), asked: asked.clone() });
        let router = Routes::new(service).into_axum_router();
        tokio::spawn(serve(vec![listener], router, None, ServeLimits::default(), shutdown.clone()));
        Self { url, asked, shutdown }
    }
}

impl Drop for SlowPd {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct Service {
    url: String,
    asked: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Pd for Service {
    async fn get_members(
        &self,
        _: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let urls = vec![self.url.clone()];
        let member = Member { name: "pd".into(), member_id: 1, peer_urls: urls.clone(), client_urls: urls };
        Ok(Response::new(GetMembersResponse {
            header: Some(ResponseHeader { cluster_id: CLUSTER, error: None }),
            members: vec![member.clone()],
            leader: Some(member.clone()),
            etcd_leader: Some(member),
        }))
    }

    type TsoStream = Pin<Box<dyn Stream<Item = Result<TsoResponse, Status>> + Send>>;

    async fn tso(&self, _: Request<Streaming<TsoRequest>>) -> Result<Response<Self::TsoStream>, Status> {
        self.asked.add_permits(1);
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn get_region(&self, _: Request<GetRegionRequest>) -> Result<Response<GetRegionResponse>, Status> {
        Err(Status::unavailable("slow"))
    }

    async fn get_store(&self, _: Request<GetStoreRequest>) -> Result<Response<GetStoreResponse>, Status> {
        Err(Status::unavailable("slow"))
    }

    async fn update_service_gc_safe_point(
        &self,
        _: Request<UpdateServiceGcSafePointRequest>,
    ) -> Result<Response<UpdateServiceGcSafePointResponse>, Status> {
        Err(Status::unavailable("slow"))
    }
}
