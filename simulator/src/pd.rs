//! PD's stand-in: its few calls, and etcd's services on the same port.
//!
//! A real PD *is* an etcd. Ours hands etcd's calls on to a real one, so that processes are given `pd-urls` only.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use rustls::ServerConfig;
use schemas::metapb::Peer;
use schemas::pdpb::pd_server::{Pd, PdServer};
use schemas::pdpb::{
    Error, ErrorType, GetMembersRequest, GetMembersResponse, GetRegionRequest, GetRegionResponse,
    GetStoreRequest, GetStoreResponse, Member, RequestHeader, ResponseHeader, Timestamp, TsoRequest,
    TsoResponse, UpdateServiceGcSafePointRequest, UpdateServiceGcSafePointResponse,
};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::Cluster;
use crate::etcd_proxy;
use crate::server::Server;

/// A running PD stand-in; stops when dropped.
#[derive(Debug)]
pub struct MockPd {
    url: String,
    _server: Server,
}

impl MockPd {
    /// Starts it on a `host:port` (port 0: any free one). etcd's calls go on to the etcd at `etcd`, a URL; without
    /// one they are refused as unavailable.
    pub async fn start(cluster: Cluster, listen: &str, etcd: Option<&str>) -> anyhow::Result<Self> {
        Self::begin(cluster, listen, etcd, None).await
    }

    /// As [`Self::start`], with TLS towards its callers.
    pub async fn over_tls(
        cluster: Cluster,
        listen: &str,
        etcd: Option<&str>,
        tls: Arc<ServerConfig>,
    ) -> anyhow::Result<Self> {
        Self::begin(cluster, listen, etcd, Some(tls)).await
    }

    async fn begin(
        cluster: Cluster,
        listen: &str,
        etcd: Option<&str>,
        tls: Option<Arc<ServerConfig>>,
    ) -> anyhow::Result<Self> {
        let listener = Server::bind(listen).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let routes = Routes::new(PdServer::new(Service { cluster, url: url.clone() }));
        let router = etcd_proxy::mount(routes.into_axum_router(), etcd)?;
        Ok(Self { url, _server: Server::serve(listener, router, tls)? })
    }

    /// What `pd-urls` takes.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

#[derive(Clone)]
struct Service {
    cluster: Cluster,
    url: String,
}

impl Service {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.cluster.id(), error: None })
    }

    /// PD answers members to everybody, the rest to its own cluster only.
    fn admit(&self, header: Option<&RequestHeader>) -> Result<(), Status> {
        let asked = header.map_or(0, |header| header.cluster_id);
        if asked == self.cluster.id() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "mismatch cluster id, need {} but got {asked}",
            self.cluster.id()
        )))
    }
}

#[tonic::async_trait]
impl Pd for Service {
    async fn get_members(
        &self,
        _: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let member = Member {
            name: "pd".into(),
            member_id: 1,
            peer_urls: vec![self.url.clone()],
            client_urls: vec![self.url.clone()],
        };
        Ok(Response::new(GetMembersResponse {
            header: self.header(),
            members: vec![member.clone()],
            leader: Some(member.clone()),
            etcd_leader: Some(member),
        }))
    }

    type TsoStream = Pin<Box<dyn Stream<Item = Result<TsoResponse, Status>> + Send>>;

    async fn tso(
        &self,
        request: Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            service.admit(request.header.as_ref())?;
            if request.count == 0 {
                return Err(Status::invalid_argument("tso count should be positive"));
            }
            let ts = service.cluster.tso_batch(request.count).ok_or_else(|| {
                Status::unavailable(format!(
                    "the playback has no room for {} timestamps in a row; ask again, or for one",
                    request.count
                ))
            })?;
            Ok(TsoResponse {
                header: service.header(),
                count: request.count,
                timestamp: Some(Timestamp {
                    physical: ts.physical_ms() as i64,
                    logical: ts.logical() as i64,
                    suffix_bits: 0,
                }),
            })
        });
        // As a real PD: the stream ends with the first request it refuses.
        let ended = stream::unfold((Box::pin(answers), false), |(mut answers, failed)| async move {
            if failed {
                return None;
            }
            let answer = answers.next().await?;
            let failed = answer.is_err();
            Some((answer, (answers, failed)))
        });
        Ok(Response::new(Box::pin(ended)))
    }

    async fn get_region(
        &self,
        request: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.header.as_ref())?;
        let region = self.cluster.region(&request.region_key);
        let leader: Option<Peer> = region.peers.first().copied();
        Ok(Response::new(GetRegionResponse { header: self.header(), region: Some(region), leader }))
    }

    async fn get_store(
        &self,
        request: Request<GetStoreRequest>,
    ) -> Result<Response<GetStoreResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.header.as_ref())?;
        let store = self.cluster.store(request.store_id);
        let error = store.is_none().then(|| Error {
            r#type: ErrorType::Unknown.into(),
            message: format!("invalid store ID {}, not found", request.store_id),
        });
        let header = ResponseHeader { cluster_id: self.cluster.id(), error };
        Ok(Response::new(GetStoreResponse { header: Some(header), store }))
    }

    async fn update_service_gc_safe_point(
        &self,
        request: Request<UpdateServiceGcSafePointRequest>,
    ) -> Result<Response<UpdateServiceGcSafePointResponse>, Status> {
        let request = request.into_inner();
        self.admit(request.header.as_ref())?;
        let min = self.cluster.update_safe_point(request.service_id.clone(), request.ttl, request.safe_point);
        Ok(Response::new(UpdateServiceGcSafePointResponse {
            header: self.header(),
            service_id: request.service_id,
            ttl: request.ttl,
            min_safe_point: min,
        }))
    }
}
