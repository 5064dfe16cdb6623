//! A stand-in for PD: scripted answers, and etcd's services forwarded to a real etcd, as PD is one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use node::serve::{Listener, ServeLimits, serve};
use node::shutdown::Shutdown;
use schemas::metapb::{Peer, Region, Store};
use schemas::pdpb::pd_server::{Pd, PdServer};
use schemas::pdpb::{
    GetMembersRequest, GetMembersResponse, GetRegionRequest, GetRegionResponse, GetStoreRequest,
    GetStoreResponse, Member, ResponseHeader, Timestamp, TsoRequest, TsoResponse,
    UpdateServiceGcSafePointRequest, UpdateServiceGcSafePointResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use tower::ServiceExt as _;

pub(crate) const CLUSTER: u64 = 6_789_012_345;

/// What all members of one mock cluster share.
pub(crate) struct Cluster {
    /// The next timestamp; every request takes one.
    pub(crate) clock: AtomicU64,
    /// Requests for timestamps that a timestamp was taken for.
    pub(crate) requests: AtomicUsize,
    /// While true, timestamps are taken but not sent.
    pub(crate) hold: watch::Sender<bool>,
    /// URL of the leader; empty while there is none.
    pub(crate) leader: Mutex<String>,
    /// Region keys as they were asked for.
    pub(crate) region_keys: Mutex<Vec<Vec<u8>>>,
    pub(crate) safe_points: Mutex<BTreeMap<String, (i64, u64)>>,
}

pub(crate) struct MockPd {
    pub(crate) url: String,
    shutdown: Shutdown,
}

#[derive(Clone)]
struct Server {
    cluster: Arc<Cluster>,
    url: String,
    gone: Arc<AtomicBool>,
}

impl Cluster {
    pub(crate) fn new(clock: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: AtomicU64::new(clock),
            requests: AtomicUsize::new(0),
            hold: watch::channel(false).0,
            leader: Mutex::default(),
            region_keys: Mutex::default(),
            safe_points: Mutex::default(),
        })
    }
}

impl MockPd {
    /// One member, which leads.
    pub(crate) async fn start(etcd: &str) -> (Self, Arc<Cluster>) {
        let cluster = Cluster::new(1000 << 18);
        let pd = Self::member(&cluster, etcd).await;
        *cluster.leader.lock().unwrap() = pd.url.clone();
        (pd, cluster)
    }

    pub(crate) async fn member(cluster: &Arc<Cluster>, etcd: &str) -> Self {
        let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            Server { cluster: Arc::clone(cluster), url: url.clone(), gone: Arc::new(AtomicBool::new(false)) };
        let channel = tonic::transport::Endpoint::from_shared(etcd.to_owned()).unwrap().connect_lazy();
        let forward = move |request: Request| {
            let channel = channel.clone();
            async move {
                match channel.oneshot(request.map(tonic::body::Body::new)).await {
                    Ok(response) => response.map(Body::new),
                    Err(error) => Status::unavailable(error.to_string()).into_http::<Body>().into_response(),
                }
            }
        };
        let router =
            axum::Router::new().route_service("/pdpb.PD/{*rest}", PdServer::new(server)).fallback(forward);
        let shutdown = Shutdown::new();
        let limits = ServeLimits { drain: std::time::Duration::ZERO, ..ServeLimits::default() };
        tokio::spawn(serve(vec![listener], router, None, limits, shutdown.clone()));
        Self { url, shutdown }
    }

    /// Drops every connection and accepts no more.
    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }
}

impl Drop for MockPd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: CLUSTER, error: None })
}

impl Server {
    fn leads(&self) -> Result<(), Status> {
        if *self.cluster.leader.lock().unwrap() == self.url && !self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Status::unavailable("not leader"))
    }
}

#[tonic::async_trait]
impl Pd for Server {
    type TsoStream = ReceiverStream<Result<TsoResponse, Status>>;

    async fn get_members(
        &self,
        _: tonic::Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let url = self.cluster.leader.lock().unwrap().clone();
        let leader = (!url.is_empty()).then(|| Member { client_urls: vec![url], ..Member::default() });
        Ok(Response::new(GetMembersResponse { header: header(), leader, ..GetMembersResponse::default() }))
    }

    async fn tso(
        &self,
        request: tonic::Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        self.leads()?;
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(1);
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Err(status) = server.leads() {
                    let _ = answers.send(Err(status)).await;
                    return;
                }
                assert_eq!(request.header.unwrap().cluster_id, CLUSTER);
                let ts = server.cluster.clock.fetch_add(1, Ordering::SeqCst);
                server.cluster.requests.fetch_add(1, Ordering::SeqCst);
                // The timestamp is taken, and on its way for as long as a test likes.
                let mut hold = server.cluster.hold.subscribe();
                let _ = hold.wait_for(|hold| !hold).await;
                let timestamp =
                    Timestamp { physical: (ts >> 18) as i64, logical: (ts & 0x3ffff) as i64, suffix_bits: 0 };
                let answer =
                    TsoResponse { header: header(), count: request.count, timestamp: Some(timestamp) };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_region(
        &self,
        request: tonic::Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        self.leads()?;
        self.cluster.region_keys.lock().unwrap().push(request.into_inner().region_key.to_vec());
        let peer = Peer { id: 3, store_id: 4 };
        let region = Region { id: 2, peers: vec![peer], ..Region::default() };
        Ok(Response::new(GetRegionResponse { header: header(), region: Some(region), leader: Some(peer) }))
    }

    async fn get_store(
        &self,
        request: tonic::Request<GetStoreRequest>,
    ) -> Result<Response<GetStoreResponse>, Status> {
        self.leads()?;
        let id = request.into_inner().store_id;
        let store = Store { id, address: format!("tikv-{id}:20160") };
        Ok(Response::new(GetStoreResponse { header: header(), store: Some(store) }))
    }

    async fn update_service_gc_safe_point(
        &self,
        request: tonic::Request<UpdateServiceGcSafePointRequest>,
    ) -> Result<Response<UpdateServiceGcSafePointResponse>, Status> {
        self.leads()?;
        let request = request.into_inner();
        let service = String::from_utf8(request.service_id.to_vec()).unwrap();
        let mut points = self.cluster.safe_points.lock().unwrap();
        if request.ttl > 0 {
            points.insert(service, (request.ttl, request.safe_point));
        } else {
            points.remove(&service);
        }
        let min_safe_point = points.values().map(|(_, point)| *point).min().unwrap_or(0);
        Ok(Response::new(UpdateServiceGcSafePointResponse {
            header: header(),
            service_id: request.service_id,
            ttl: request.ttl,
            min_safe_point,
        }))
    }
}
