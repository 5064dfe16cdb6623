//! Joining and leaving, as TiDB, drainers and operators see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod site;

use std::sync::Arc;

use node::registry::{NodeKind, NodeRecord, NodeState, Side};
use node::shutdown::Shutdown;
use schemas::binlog::cistern_server::{Cistern, CisternServer};
use schemas::binlog::{NotifyReq, NotifyResp};
use site::{Drainer, Process, Site, SlowPd, Tidb, Txn, UnderLoad, light, registered, soon, until};
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
    assert!(!pump.is_ready().await);
    let txn = Txn::begin(cluster, "x");
    let refused = tidb.write(&txn.prewrite()).await.unwrap_err();
    assert_eq!(refused.message(), "no online: joining");
    assert!(tidb.clone().probe().await.is_err());
    // The drainer can pull meanwhile.
    Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap().reach(cluster.tso()).await;

    // One that went down before it was a member is none when it comes back.
    pump.stop().await.unwrap();
    let pump = site.launch(site.config("p1")).await;
    let tidb = pump.tidb();
    soon("the drainer is asked again", drainer.asked.acquire()).await.unwrap().forget();
    drainer.permits.add_permits(1);
    pump.online().await;
    until("TiDB is told", || async { state(&pump).await == NodeState::Online }).await;
    until("orchestrators are told", || pump.is_ready()).await;
    txn.run(cluster, &tidb).await;
    pump.stop().await.unwrap();

    // It is a member now: back without asking again.
    let pump = site.pump("p1").await;
    assert_eq!(drainer.asked.available_permits(), 0);
    pump.stop().await.unwrap();
    drainer.shutdown.cancel();
}

/// TiDB may send a prewrite the moment it reads `online`: so they are taken before that can be read.
#[tokio::test(flavor = "multi_thread")]
async fn prewrites_are_taken_before_the_entry_says_so() {
    let site = Site::start().await;
    let drainer = FakeDrainer::start(&site, "d1").await;
    let pump = site.launch(site.config("p1")).await;
    soon("the drainer is asked", drainer.asked.acquire()).await.unwrap().forget();
    site.etcd_hangs(true);
    drainer.permits.add_permits(1);
    pump.online().await;
    site.etcd_hangs(false);
    until("TiDB is told", || async { state(&pump).await == NodeState::Online }).await;
    pump.stop().await.unwrap();
    drainer.shutdown.cancel();
}

/// A data directory that is gone, or not mounted, must not look like a pump that never had anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_store_does_not_start() {
    let site = Site::start().await;
    // Killed as soon as it is a member, before anybody wrote to it, it is one when it comes back.
    let process = Process::start(&site, "p1").await;
    until("registered", || async { registered(&site.registry, "p1").await == Some(NodeState::Online) }).await;
    let process = process.again(&site).await;
    let commit_ts = Txn::begin(&site.cluster, "x").run(&site.cluster, &process.tidb()).await;
    process.kill();
    let (place, kept) = (site.dir.path().join("p1"), site.dir.path().join("kept"));
    std::fs::rename(&place, &kept).unwrap();
    // The empty store that a refused start leaves behind is no excuse.
    for _ in 0..2 {
        let error = site.fails(site.config("p1")).await;
        for part in [
            place.to_str().unwrap(),
            "pump p1 as online",
            "binlogctl -cmd update-pump -node-id p1 -state offline",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
    // Declared lost, with another one in its place.
    let arguments =
        ["binlogctl", "-pd-urls", &site.pd_url, "-cmd", "update-pump", "-node-id", "p1", "-state", "offline"];
    let done = node::ctl::run(arguments.map(std::ffi::OsString::from)).await;
    assert_eq!(done, std::process::ExitCode::SUCCESS);
    site.pump("p2").await.stop().await.unwrap();
    // Or restored.
    site.registry.set_state(NodeKind::Pump, "p1", NodeState::Online).await.unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::rename(&kept, &place).unwrap();
    let pump = site.pump("p1").await;
    Drainer::open(pump.at.addr, Tso::ZERO).await.unwrap().reach(commit_ts.0).await;
    pump.stop().await.unwrap();
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
    until("the safe point is held", || async { cluster.safe_points().contains_key("sluice-pump-p1") }).await;
    let open = Txn::begin(cluster, "under way");
    cluster.prewrite(open.start_ts, open.key.clone());
    tidb.write(&open.prewrite()).await.unwrap();
    assert_eq!(put_state(pump.at.addr, "p1", "close").await["code"], 200);
    until("TiDB is told", || async { state(&pump).await == NodeState::Closing }).await;
    // Between telling TiDB and refusing, the pump takes what is on its way; TiDB then settles it as ever.
    until("prewrites are refused", || async {
        let late = Txn::begin(cluster, "too late");
        match tidb.write(&late.prewrite()).await {
            Err(status) => status.message() == "no online: closing",
            Ok(()) => {
                tidb.write(&late.rollback()).await.unwrap();
                false
            }
        }
    })
    .await;
    assert_eq!(put_state(pump.at.addr, "p1", "pause").await["code"], 3);
    // Commits are taken, pulls are served.
    let open_at = cluster.commit_now(open.start_ts).unwrap();
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
    // TiKV need not remember anything for it.
    assert!(!cluster.safe_points().contains_key("sluice-pump-p1"));
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

/// Reads a pump's stream to its end while telling the registry how far it is, as a drainer does.
async fn drain_to_the_end(site: &Site, id: &str, mut drainer: Drainer) -> Drainer {
    let mut told = Tso::ZERO;
    while drainer.step().await.is_ok() {
        if drainer.watermark > told {
            told = drainer.watermark;
            position(site, id, told).await;
        }
    }
    drainer
}

/// A pump joins while transactions run: whatever the drainer has given out when it learns of the new pump lies below the
/// first commit there, nothing is lost, and no writer notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_pump_joining_under_load_loses_no_first_binlog() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let before = cluster.tso();
    let old = site.pump("p1").await;
    let drainer = FakeDrainer::start(&site, "d1").await;
    let load = UnderLoad::begin(&site, 1, light()).await;
    load.goes_on(50).await;
    let new = site.launch(site.config("p2")).await;
    soon("the drainer is asked", drainer.asked.acquire()).await.unwrap().forget();
    load.goes_on(50).await;
    // The drainer's merge cannot be past this when it answers that it lists the new pump.
    let given_out = cluster.tso();
    drainer.permits.add_permits(1);
    new.online().await;
    let mut first = Drainer::open(old.at.addr, before).await.unwrap();
    let mut second = Drainer::open(new.at.addr, before).await.unwrap();
    soon("the new pump is written to", async {
        while second.received.len() < 20 {
            load.goes_on(20).await;
            second.reach(cluster.tso()).await;
        }
    })
    .await;
    load.end().await;
    let end = cluster.tso();
    first.reach(end).await;
    second.reach(end).await;
    assert!(second.received[0].commit_ts > given_out.get());
    site::assert_complete(&site, [&first, &second]);
    old.stop().await.unwrap();
    new.stop().await.unwrap();
    drainer.shutdown.cancel();
}

/// `binlogctl offline-pump` under load: writers move on, what the pump has is drained, then it is offline for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_pump_leaves_under_load_by_binlogctl() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let before = cluster.tso();
    let drainer = FakeDrainer::start(&site, "d1").await;
    drainer.permits.add_permits(2);
    let (staying, leaving) = (site.pump("p1").await, site.pump("p2").await);
    let load = UnderLoad::begin(&site, 2, light()).await;
    load.goes_on(100).await;
    let arguments = ["binlogctl", "-pd-urls", &site.pd_url, "-cmd", "offline-pump", "-node-id", "p2"];
    let asked = node::ctl::run(arguments.map(std::ffi::OsString::from)).await;
    assert_eq!(asked, std::process::ExitCode::SUCCESS);
    // The drainer has not moved, so the pump stays, and says why.
    until("it says what it waits for", || async {
        let status = leaving.status().await;
        status["state"] == "closing"
            && status["waiting_for"].as_str().is_some_and(|why| why.contains("drainer d1"))
    })
    .await;
    load.goes_on(100).await;
    assert_eq!(registered(&site.registry, "p2").await, Some(NodeState::Closing));
    let stream = Drainer::open(leaving.at.addr, before).await.unwrap();
    let second = soon("the stream ends", drain_to_the_end(&site, "d1", stream)).await;
    soon("the pump ends", leaving.task).await.unwrap().unwrap();
    let record = site.registry.get(NodeKind::Pump, "p2").await.unwrap().unwrap().record.unwrap();
    assert_eq!(record.state, NodeState::Offline);
    assert_eq!(record.max_commit_ts.get(), second.received.last().unwrap().commit_ts);
    load.goes_on(100).await;
    load.end().await;
    let mut first = Drainer::open(staying.at.addr, before).await.unwrap();
    first.reach(cluster.tso()).await;
    site::assert_complete(&site, [&first, &second]);
    staying.stop().await.unwrap();
    drainer.shutdown.cancel();
}

/// One pump of three is killed under load: writers go on, the registry shows it dead once its lease has run out although
/// its entry still says online, and when it is back everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn one_pump_of_three_dies_and_comes_back() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let before = cluster.tso();
    let (a, b) = (site.pump("p1").await, site.pump("p2").await);
    let victim = Process::start(&site, "p3").await;
    let load = UnderLoad::begin(&site, 3, light()).await;
    load.goes_on(200).await;
    let (addr, admin) = (victim.addr.port(), victim.admin.port());
    victim.kill();
    load.goes_on(200).await;
    until("its lease runs out", || async {
        let entry = site.registry.get(NodeKind::Pump, "p3").await.unwrap().unwrap();
        entry.side.is_none()
    })
    .await;
    let entry = site.registry.get(NodeKind::Pump, "p3").await.unwrap().unwrap();
    assert_eq!(entry.state(), Some(NodeState::Online));
    let later = Tso::from_parts(entry.record.as_ref().unwrap().update_ts.physical_ms() + 11_000, 0);
    assert!(!entry.is_alive(later));
    let others = site.registry.get(NodeKind::Pump, "p1").await.unwrap().unwrap();
    assert!(others.is_alive(later));

    let back = Process::launch(&site, "p3", addr, admin);
    let mut probe = back.tidb();
    until("the pump is back", || {
        let probe = probe.probe();
        async { probe.await.is_ok() }
    })
    .await;
    load.goes_on(200).await;
    load.end().await;
    let end = cluster.tso();
    let mut streams = Vec::new();
    for addr in [a.at.addr, b.at.addr, back.addr] {
        let mut stream = Drainer::open(addr, before).await.unwrap();
        stream.reach(end).await;
        streams.push(stream);
    }
    site::assert_complete(&site, &streams);
    a.stop().await.unwrap();
    b.stop().await.unwrap();
    back.kill();
}

/// Whoever connects to a pump that is still starting is refused at once, and does not wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_port_opens_when_the_pump_can_answer() {
    let site = Site::start().await;
    let pd = SlowPd::start().await;
    let addr = format!("127.0.0.1:{}", site::free_port());
    let config = pump::config::Config { addr: addr.clone(), pd_urls: pd.url.clone(), ..site.config("p1") };
    let shutdown = Shutdown::new();
    let running = tokio::spawn(pump::run(config, node::telemetry::Telemetry::detached(), shutdown.clone()));
    // The store is open, and the first tick is waited for.
    soon("PD is asked for a timestamp", pd.asked.acquire()).await.unwrap().forget();
    let refused = tokio::net::TcpStream::connect(&addr).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    shutdown.cancel();
    soon("the pump ends", running).await.unwrap().unwrap();
}

/// SIGTERM ends the process in good order within its deadline, whatever is open: a prewrite that nobody settles, a stream
/// that nobody reads, a call that never says anything.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_busy_pump() {
    let site = Site::start().await;
    let cluster = &site.cluster;
    let mut process = Process::start(&site, "p1").await;
    let tidb = process.tidb();
    let open = Txn::begin(cluster, "open");
    cluster.prewrite(open.start_ts, open.key.clone());
    tidb.write(&open.prewrite()).await.unwrap();
    let _unread = Drainer::open(process.addr, Tso::ZERO).await.unwrap();
    let _silent = tokio::net::TcpStream::connect(process.addr).await.unwrap();
    let began = std::time::Instant::now();
    process.signal("TERM");
    assert!(process.ended().await.success());
    // What docs/pump.md promises.
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(registered(&site.registry, "p1").await, Some(NodeState::Paused));
    // Nothing of it is lost.
    let process = process.again(&site).await;
    let commit_ts = cluster.commit_now(open.start_ts).unwrap();
    Drainer::open(process.addr, Tso::ZERO).await.unwrap().reach(commit_ts.0).await;
    process.kill();
}

/// A pump that has not got any further than PD has nothing to finish: asked to end it ends well, and another one may have its
/// directory at once.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_pump_that_waits_for_pd() {
    let site = Site::start().await;
    let launch = |pd_url: &str| Process::launch_at(&site, pd_url, "p1", site::free_port(), site::free_port());
    let ends_well = async |mut process: Process| {
        process.signal("TERM");
        let status = process.ended().await;
        assert_eq!(status.code(), Some(0), "{status}");
    };
    // Nobody is there. Its own listener opens before it asks.
    let process = launch(&format!("http://127.0.0.1:{}", site::free_port()));
    until("its listener answers", || async { tokio::net::TcpStream::connect(process.admin).await.is_ok() })
        .await;
    ends_well(process).await;
    // Somebody listens and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let process = launch(&format!("http://{}", silent.local_addr().unwrap()));
    let _open = soon("it connects", silent.accept()).await.unwrap();
    ends_well(process).await;
    // PD gives no timestamp. The store is open by then.
    let pd = SlowPd::start().await;
    let process = launch(&pd.url);
    soon("PD is asked for a timestamp", pd.asked.acquire()).await.unwrap().forget();
    ends_well(process).await;
    Process::start(&site, "p1").await.kill();
}

/// Nor does a registry that hangs keep it longer.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_pump_whose_registry_hangs() {
    let site = Site::start().await;
    let mut process = Process::start(&site, "p1").await;
    site.etcd_hangs(true);
    let began = std::time::Instant::now();
    process.signal("TERM");
    process.ended().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
}

/// What stands in etcd is believed only if it is what it should be: a value that does not decode stops a joining pump with
/// the key's name, since leaving a drainer out could lose its first binlogs.
#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_registry_is_named() {
    let site = Site::start().await;
    let mut etcd =
        node::etcd::connect(&[site.etcd_url().to_owned()], &node::tls::Security::default()).await.unwrap();
    for poison in ["{}", "not json", r#"{"nodeId":"d9","host":"h:1","state":"drunk"}"#] {
        etcd.put("/tidb-binlog/v1/drainers/d9", poison, None).await.unwrap();
        let error = site.fails(site.config("p1")).await;
        assert!(error.contains("/tidb-binlog/v1/drainers/d9"), "{error}");
    }
    etcd.delete("/tidb-binlog/v1/drainers/d9", None).await.unwrap();
    // And its own entry.
    etcd.put("/tidb-binlog/v1/pumps/p1", "{\"nodeId\":1}", None).await.unwrap();
    let error = site.fails(site.config("p1")).await;
    assert!(error.contains("/tidb-binlog/v1/pumps/p1"), "{error}");
    etcd.delete("/tidb-binlog/v1/pumps/p1", None).await.unwrap();
    site.pump("p1").await.stop().await.unwrap();
}
