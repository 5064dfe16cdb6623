//! Joining and leaving, as TiDB, drainers and operators see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::sync::Arc;

use node::registry::{NodeKind, NodeRecord, NodeState, Side};
use node::shutdown::Shutdown;
use schemas::binlog::cistern_server::{Cistern, CisternServer};
use schemas::binlog::{NotifyReq, NotifyResp};
use site::{Drainer, Site, Tidb, Txn, soon, until};
use tidb::ts::{CommitTs, Tso};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// A drainer as far as a pump knows it: it answers a Notify once it is let.
struct FakeDrainer {
    permits: Arc<Semaphore>,
    asked: Arc<Semaphore>,
    shutdown: Shutdown,
}

struct Answer(Arc<Semaphore>, Arc<Semaphore>);

#[tonic::async_trait]
impl Cistern for Answer {
    async fn notify(&self, _: Request<NotifyReq>) -> Result<Response<NotifyResp>, Status> {
        self.0.add_permits(1);
        let permit = self.1.acquire().await.map_err(|_| Status::unavailable("ends"))?;
        permit.forget();
        Ok(Response::new(NotifyResp {}))
    }
}

impl FakeDrainer {
    async fn start(site: &Site, id: &str) -> Self {
        let (asked, permits, shutdown) =
            (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Shutdown::new());
        let listener = node::serve::Listener::tcp("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let service = CisternServer::new(Answer(asked.clone(), permits.clone()));
        let router = tonic::service::Routes::new(service).into_axum_router();
        let limits = node::serve::ServeLimits::default();
        tokio::spawn(node::serve::serve(vec![listener], router, None, limits, shutdown.clone()));
        site.registry.put(NodeKind::Drainer, &NodeRecord::new(id, &host, NodeState::Online)).await.unwrap();
        let presence = site.registry.announce(NodeKind::Drainer, Side::new(id, &host)).await.unwrap();
        tokio::spawn(presence.run(shutdown.clone()));
        Self { permits, asked, shutdown }
    }
}

async fn position(site: &Site, id: &str, position: Tso) {
    let mut record = site.registry.get(NodeKind::Drainer, id).await.unwrap().unwrap().record.unwrap();
    record.max_commit_ts = CommitTs(position);
    site.registry.put(NodeKind::Drainer, &record).await.unwrap();
}

async fn state(pump: &site::Running) -> NodeState {
    pump.record().await.unwrap().state
}

async fn put_state(addr: std::net::SocketAddr, node: &str, action: &str) -> serde_json::Value {
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    let response = http.put(format!("http://{addr}/state/{node}/{action}")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pump_takes_prewrites_only_when_every_live_drainer_lists_it() {
    let site = Site::start().await;
    let drainer = FakeDrainer::start(&site, "d1").await;
    // Registered as online, but long dead.
    let dead = NodeRecord::new("d2", "127.0.0.1:1", NodeState::Online);
    site.registry.put(NodeKind::Drainer, &dead).await.unwrap();

    let pump = site.launch(site.config("p1")).await;
    soon("the drainer is asked", drainer.asked.acquire()).await.unwrap().forget();
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    // Listed already, so that the drainer finds it; and not for TiDB.
    assert_eq!(state(&pump).await, NodeState::Paused);
    let txn = Txn::begin(cluster, "x");
    let refused = tidb.write(&txn.prewrite()).await.unwrap_err();
    assert_eq!(refused.message(), "no online: joining");
    assert!(tidb.clone().probe().await.is_err());
    // The drainer can pull meanwhile.
    Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap().reach(cluster.tso()).await;

    drainer.permits.add_permits(1);
    pump.online().await;
    until("TiDB is told", || async { state(&pump).await == NodeState::Online }).await;
    txn.run(cluster, &tidb).await;
    pump.stop().await.unwrap();

    // It is a member now: back without asking again.
    let pump = site.pump("p1").await;
    assert_eq!(drainer.asked.available_permits(), 0);
    pump.stop().await.unwrap();
    drainer.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_pause_leave_the_pump_paused() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    until("registered", || async { state(&pump).await == NodeState::Online }).await;
    let record = pump.record().await.unwrap();
    assert_eq!((record.node_id.as_str(), record.host.clone()), ("p1", pump.at.addr.to_string()));
    until("heartbeats tell progress", || async {
        pump.record().await.unwrap().max_commit_ts > record.max_commit_ts
    })
    .await;
    let registry = site.registry.clone();
    pump.stop().await.unwrap();
    let entry = registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap();
    assert_eq!((entry.state(), entry.side), (Some(NodeState::Paused), None));

    let pump = site.pump("p1").await;
    let addr = pump.at.addr;
    assert_eq!(put_state(addr, "other", "pause").await["code"], 3);
    assert_eq!(put_state(addr, "p1", "explode").await["code"], 3);
    let accepted = put_state(addr, "p1", "pause").await;
    assert_eq!(
        accepted,
        serde_json::json!({"message": "apply action pause success!", "code": 200, "data": null})
    );
    soon("the pump ends", pump.task).await.unwrap().unwrap();
    let entry = registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap();
    assert_eq!(entry.state(), Some(NodeState::Paused));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_pump_goes_when_drainers_have_everything() {
    let site = Site::start().await;
    let drainer = FakeDrainer::start(&site, "d1").await;
    drainer.permits.add_permits(1);
    let pump = site.pump("p1").await;
    let (cluster, tidb) = (&site.cluster, pump.tidb());
    let open = Txn::begin(cluster, "under way");
    cluster.prewrite(open.start_ts, open.key.clone());
    tidb.write(&open.prewrite()).await.unwrap();
    assert_eq!(put_state(pump.at.addr, "p1", "close").await["code"], 200);
    until("TiDB is told", || async { state(&pump).await == NodeState::Closing }).await;
    let late = Txn::begin(cluster, "too late");
    until("prewrites are refused", || async {
        tidb.write(&late.prewrite()).await.is_err_and(|status| status.message() == "no online: closing")
    })
    .await;
    assert_eq!(put_state(pump.at.addr, "p1", "pause").await["code"], 3);
    // Commits are taken, pulls are served.
    let open_at = CommitTs(cluster.tso());
    assert!(cluster.commit(open.start_ts, open_at));
    tidb.write(&open.commit(open_at)).await.unwrap();
    let mut pull = Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap();
    pull.reach(open_at.0).await;
    assert!(pull.commits().contains(&(open.start_ts.get(), open_at.get())));
    // The drainer has not said so yet.
    position(&site, "d1", open_at.0.prev()).await;
    assert_eq!(state(&pump).await, NodeState::Closing);
    assert!(!pump.task.is_finished());
    position(&site, "d1", open_at.0).await;
    let registry = site.registry.clone();
    soon("the pump ends", pump.task).await.unwrap().unwrap();
    let record = registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap().record.unwrap();
    assert_eq!(record.state, NodeState::Offline);
    assert!(record.max_commit_ts >= open_at);
    drainer.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_originals_pages() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    until("registered", || async { state(&pump).await == NodeState::Online }).await;
    let http = node::tls::Security::default().http_client(site::PATIENCE).unwrap();
    let get = async |path: &str| {
        let url = format!("http://{}{path}", pump.at.addr);
        http.get(url).send().await.unwrap()
    };
    let page: serde_json::Value = get("/status").await.json().await.unwrap();
    assert_eq!(page["status"]["p1"]["state"], "online");
    assert!(page["CommitTS"].as_u64().unwrap() > 0);
    assert_eq!((&page["Checkpoint"], &page["ErrMsg"]), (&serde_json::json!({}), &serde_json::json!("")));
    assert_eq!(get("/drainers").await.text().await.unwrap(), "null");
    let drainer = FakeDrainer::start(&site, "d1").await;
    let page: serde_json::Value = get("/drainers").await.json().await.unwrap();
    assert_eq!(page[0]["nodeId"], "d1");
    assert_eq!(get("/metrics").await.status(), 200);
    assert_eq!(get("/nothing").await.status(), 404);
    drainer.shutdown.cancel();
    pump.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pumps_cannot_share_a_directory() {
    let site = Site::start().await;
    let pump = site.pump("p1").await;
    let error = site.fails(site.config("p1")).await;
    assert!(error.contains("p1"), "{error}");
    Tidb::new(pump.at.addr).probe().await.unwrap();
    pump.stop().await.unwrap();
}
