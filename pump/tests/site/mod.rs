//! A small site for the pump: a real etcd, PD's and TiKV's stand-ins, pumps in this process, and a TiDB that writes to them.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part")]

mod load;
mod process;
mod slow_pd;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use node::config::HumanDuration;
use node::pd::Pd;
use node::registry::{NodeKind, NodeRecord, NodeState, Registry};
use node::shutdown::Shutdown;
use node::telemetry::Telemetry;
use node::tls::Security;
use prost::Message as _;
use pump::Started;
use pump::config::Config;
use schemas::binlog::pump_client::PumpClient;
use schemas::binlog::{Binlog, BinlogType, Pos, PullBinlogReq, WriteBinlogReq};
use schemas::sluice::pump::v1::drain_client::DrainClient;
use schemas::sluice::pump::v1::pull_request::Body as Ask;
use schemas::sluice::pump::v1::pull_response::Body;
use schemas::sluice::pump::v1::{Gap, Open, OutOfRange, PullRequest, PullResponse, Transaction, Want};
use simulator::cluster::Cluster;
use simulator::pd::MockPd;
use simulator::tikv::{Distortion, MockTikv};
use tempfile::TempDir;
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub use load::{UnderLoad, assert_complete, light};
pub use process::Process;
pub use slow_pd::SlowPd;

pub const CLUSTER: u64 = 7_000_001;

/// However slow the machine: longer than this is a hang, not a delay.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Awaits with a limit.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Awaits a condition that only polling can see.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A real etcd; killed when dropped.
pub struct Etcd {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let (url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new("etcd")
            .args(["--name", "test", "--unsafe-no-fsync", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed");
        Self { child, url, _dir: dir }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Site {
    pub cluster: Cluster,
    /// Gone while PD is down; its URL stays.
    pub pd: Option<MockPd>,
    pub pd_url: String,
    /// Gone while TiKV is down.
    pub tikv: Option<MockTikv>,
    pub registry: Registry,
    etcd: Etcd,
    pub dir: TempDir,
}

impl Site {
    pub async fn start() -> Self {
        Self::with_tikv(Arc::new(|_, answer| (Duration::ZERO, Ok(answer)))).await
    }

    /// With a TiKV that may be slow, fail or lie.
    pub async fn with_tikv(distortion: Arc<Distortion>) -> Self {
        let etcd = Etcd::start();
        let cluster = Cluster::live(CLUSTER);
        let tikv = MockTikv::distorted(cluster.clone(), "127.0.0.1:0", distortion).await.unwrap();
        let pd = MockPd::start(cluster.clone(), "127.0.0.1:0", Some(&etcd.url)).await.unwrap();
        let pd_url = pd.url();
        let client = Pd::connect(std::slice::from_ref(&pd_url), &Security::default()).await.unwrap();
        let registry = Registry::new(client.etcd());
        until("etcd answers", || async { registry.list(NodeKind::Pump).await.is_ok() }).await;
        let dir = tempfile::tempdir().unwrap();
        Self { cluster, pd: Some(pd), pd_url, tikv: Some(tikv), registry, etcd, dir }
    }

    /// PD (and etcd behind it) goes away, or comes back where it was.
    pub async fn pd_is(&mut self, up: bool) {
        self.pd = None;
        if up {
            let address = self.pd_url.trim_start_matches("http://");
            self.pd = Some(MockPd::start(self.cluster.clone(), address, Some(&self.etcd.url)).await.unwrap());
        }
    }

    /// TiKV goes away, or comes back somewhere else.
    pub async fn tikv_is(&mut self, up: bool) {
        self.tikv = None;
        if up {
            self.tikv = Some(MockTikv::start(self.cluster.clone(), "127.0.0.1:0").await.unwrap());
        }
    }

    /// etcd stands still, or goes on.
    pub fn etcd_hangs(&self, hangs: bool) {
        let signal = if hangs { "STOP" } else { "CONT" };
        let sent =
            Command::new("kill").args(["-s", signal, &self.etcd.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn etcd_url(&self) -> &str {
        &self.etcd.url
    }

    pub fn config(&self, name: &str) -> Config {
        let mut config = Config {
            addr: "127.0.0.1:0".into(),
            pd_urls: self.pd_url.clone(),
            data_dir: self.dir.path().join(name),
            node_id: name.into(),
            tick_interval: HumanDuration::from_millis(20),
            heartbeat_interval: HumanDuration::from_millis(100),
            ..Config::default()
        };
        config.storage.stop_write_at_available_space = Some(bytesize::ByteSize(0));
        config.admin.addr = "127.0.0.1:0".into();
        config
    }

    pub async fn pump(&self, name: &str) -> Running {
        let running = self.launch(self.config(name)).await;
        running.online().await;
        running
    }

    /// Starts a pump without waiting for it to be online.
    pub async fn launch(&self, config: Config) -> Running {
        let shutdown = Shutdown::new();
        let (started, ready) = oneshot::channel();
        let task = tokio::spawn(pump::run_with(config, Telemetry::detached(), shutdown.clone(), started));
        match soon("the pump listens", ready).await {
            Ok(started) => Running { at: started, shutdown, task, registry: self.registry.clone() },
            Err(_) => panic!("the pump did not start: {:?}", task.await),
        }
    }

    /// A pump that does not come up; why.
    pub async fn fails(&self, config: Config) -> String {
        let run = pump::run(config, Telemetry::detached(), Shutdown::new());
        format!("{:#}", soon("the pump gives up", run).await.unwrap_err())
    }
}

pub struct Running {
    pub at: Started,
    pub shutdown: Shutdown,
    pub task: JoinHandle<anyhow::Result<()>>,
    registry: Registry,
}

impl Running {
    pub async fn record(&self) -> Option<NodeRecord> {
        self.registry.get(NodeKind::Pump, &self.at.node_id).await.unwrap().and_then(|entry| entry.record)
    }

    pub async fn online(&self) {
        let mut client = Tidb::new(self.at.addr);
        until("the pump is online", || {
            let probe = client.probe();
            async { probe.await.is_ok() }
        })
        .await;
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        soon("the pump ends", self.task).await.unwrap()
    }

    pub fn tidb(&self) -> Tidb {
        Tidb::new(self.at.addr)
    }

    /// What an orchestrator sees.
    pub async fn is_ready(&self) -> bool {
        let http = Security::default().http_client(PATIENCE).unwrap();
        let answer = http.get(format!("http://{}/readyz", self.at.admin_addr)).send().await.unwrap();
        answer.status() == 200
    }

    /// The admin listener's status page.
    pub async fn status(&self) -> serde_json::Value {
        status(self.at.admin_addr).await
    }
}

/// The status page of an admin listener.
pub async fn status(admin: SocketAddr) -> serde_json::Value {
    let http = Security::default().http_client(PATIENCE).unwrap();
    http.get(format!("http://{admin}/status")).send().await.unwrap().json().await.unwrap()
}

/// A pump's state as TiDB sees it.
pub async fn registered(registry: &Registry, node_id: &str) -> Option<NodeState> {
    registry.get(NodeKind::Pump, node_id).await.unwrap().and_then(|entry| entry.state())
}

pub fn channel(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
}

/// What TiDB does to a pump.
#[derive(Clone)]
pub struct Tidb {
    pub client: PumpClient<Channel>,
}

impl Tidb {
    pub fn new(addr: SocketAddr) -> Self {
        Self { client: PumpClient::new(channel(addr)).max_encoding_message_size(usize::MAX) }
    }

    pub fn send(&self, cluster_id: u64, payload: Bytes) -> impl Future<Output = Result<(), Status>> + use<> {
        let mut client = self.client.clone();
        async move {
            let reply = client.write_binlog(WriteBinlogReq { cluster_id, payload }).await?.into_inner();
            assert_eq!(reply.errmsg, "");
            Ok(())
        }
    }

    pub fn probe(&mut self) -> impl Future<Output = Result<(), Status>> + use<> {
        self.send(CLUSTER, Bytes::new())
    }

    pub async fn write(&self, binlog: &Binlog) -> Result<(), Status> {
        self.send(CLUSTER, binlog.encode_to_vec().into()).await
    }
}

/// A transaction as TiDB runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Txn {
    pub start_ts: StartTs,
    pub key: Bytes,
    pub value: Bytes,
}

impl Txn {
    pub fn begin(cluster: &Cluster, value: impl Into<Bytes>) -> Self {
        let start_ts = StartTs(cluster.tso());
        let key = Bytes::from(format!("t_{start_ts}"));
        Self { start_ts, key, value: value.into() }
    }

    pub fn prewrite(&self) -> Binlog {
        Binlog {
            tp: Some(BinlogType::Prewrite.into()),
            start_ts: Some(self.start_ts.0.to_i64()),
            commit_ts: Some(0),
            prewrite_key: Some(self.key.clone()),
            prewrite_value: Some(self.value.clone()),
            ddl_query: None,
            ddl_job_id: Some(0),
            ddl_schema_state: Some(0),
        }
    }

    pub fn commit(&self, commit_ts: CommitTs) -> Binlog {
        let commit_ts = Some(commit_ts.0.to_i64());
        Binlog { tp: Some(BinlogType::Commit.into()), commit_ts, prewrite_value: None, ..self.prewrite() }
    }

    pub fn rollback(&self) -> Binlog {
        Binlog { tp: Some(BinlogType::Rollback.into()), prewrite_value: None, ..self.prewrite() }
    }

    /// The whole two-phase commit, without trouble.
    pub async fn run(&self, cluster: &Cluster, tidb: &Tidb) -> CommitTs {
        cluster.prewrite(self.start_ts, self.key.clone());
        tidb.write(&self.prewrite()).await.unwrap();
        let commit_ts = cluster.commit_now(self.start_ts).unwrap();
        tidb.write(&self.commit(commit_ts)).await.unwrap();
        commit_ts
    }
}

/// A drainer on our own protocol.
pub struct Drainer {
    asks: mpsc::Sender<PullRequest>,
    stream: Streaming<PullResponse>,
    pub watermark: Tso,
    pub received: Vec<Transaction>,
    pub gaps: Vec<Gap>,
    pub chunks: usize,
    open: Option<(Transaction, Vec<u8>)>,
}

impl Drainer {
    pub async fn open(addr: SocketAddr, after: Tso) -> Result<Self, Status> {
        Self::open_with(addr, after, 0).await
    }

    pub async fn open_with(addr: SocketAddr, after: Tso, max_batch_bytes: u32) -> Result<Self, Status> {
        let (asks, outgoing) = mpsc::channel(16);
        let open =
            Open { cluster_id: CLUSTER, after: after.get(), max_batch_bytes, node_id: "drainer".into() };
        asks.send(PullRequest { body: Some(Ask::Open(open)) }).await.unwrap();
        let outgoing =
            futures::stream::unfold(outgoing, |mut asks| async { Some((asks.recv().await?, asks)) });
        let mut client = DrainClient::new(channel(addr)).max_decoding_message_size(usize::MAX);
        let stream = client.pull(outgoing).await?.into_inner();
        Ok(Self {
            asks,
            stream,
            watermark: after,
            received: Vec::new(),
            gaps: Vec::new(),
            chunks: 0,
            open: None,
        })
    }

    pub async fn want(&self, commit_ts: Tso) {
        let want = Want { commit_ts: commit_ts.get() };
        self.asks.send(PullRequest { body: Some(Ask::Want(want)) }).await.unwrap();
    }

    /// One message, checked against what is promised; `None` at the end of the stream.
    pub async fn step(&mut self) -> Result<Option<OutOfRange>, Status> {
        let message = soon("the pump says something", self.stream.message()).await?;
        match message.and_then(|message| message.body) {
            Some(Body::Batch(batch)) => {
                assert!(self.open.is_none(), "a batch between chunks");
                for transaction in batch.transactions {
                    assert!(transaction.commit_ts <= batch.watermark);
                    self.take(transaction);
                }
                assert!(batch.watermark >= self.watermark.get(), "the watermark fell");
                self.watermark = Tso::new(batch.watermark);
            }
            Some(Body::Chunk(chunk)) => {
                self.chunks += 1;
                if let Some(head) = chunk.transaction {
                    assert!(self.open.replace((head, Vec::new())).is_none());
                }
                let (head, data) = self.open.as_mut().expect("a chunk has a head");
                data.extend_from_slice(&chunk.data);
                if chunk.last {
                    assert_eq!(data.len() as u64, chunk.total_bytes);
                    let transaction = Transaction { prewrite_value: data.clone().into(), ..head.clone() };
                    self.open = None;
                    self.take(transaction);
                }
            }
            Some(Body::Gap(gap)) => {
                assert!(self.open.is_none(), "a gap between chunks");
                assert!(gap.after < gap.upto);
                let last = self.received.last().map_or(0, |last| last.commit_ts).max(self.watermark.get());
                assert!(gap.upto > last, "a gap up to {} after {last}", gap.upto);
                self.gaps.push(gap);
            }
            Some(Body::OutOfRange(refusal)) => return Ok(Some(refusal)),
            None => return Err(Status::cancelled("the stream ended")),
        }
        Ok(None)
    }

    fn take(&mut self, transaction: Transaction) {
        let last = self.received.last().map_or(0, |last| last.commit_ts).max(self.watermark.get());
        assert!(transaction.commit_ts > last, "{} after {last}", transaction.commit_ts);
        self.received.push(transaction);
    }

    /// Reads until everything at or below `ts` is there.
    pub async fn reach(&mut self, ts: Tso) {
        soon("the watermark gets there", async {
            while self.watermark < ts {
                assert_eq!(self.step().await.unwrap(), None);
            }
        })
        .await;
    }

    pub fn commits(&self) -> Vec<(u64, u64)> {
        self.received.iter().map(|t| (t.start_ts, t.commit_ts)).collect()
    }
}

/// What the original drainer gets: (start_ts, commit_ts, binlog), fakes included, until `upto` is passed.
pub async fn pull_original(
    client: &mut PumpClient<Channel>,
    after: Tso,
    upto: Tso,
) -> Result<Vec<(u64, u64, Binlog)>, Status> {
    let start_from = Some(Pos { suffix: 3, offset: after.to_i64() });
    let request = Request::new(PullBinlogReq { cluster_id: CLUSTER, start_from });
    let mut stream = client.pull_binlogs(request).await?.into_inner();
    let mut pulled: Vec<(u64, u64, Binlog)> = Vec::new();
    loop {
        let message = soon("the stream goes on", stream.message()).await?;
        let entity = message.ok_or_else(|| Status::cancelled("the stream ended"))?.entity.unwrap();
        let meta = entity.meta.unwrap();
        let binlog = Binlog::decode(entity.payload).unwrap();
        assert_eq!((binlog.start_ts, binlog.commit_ts), (Some(meta.start_ts), Some(meta.commit_ts)));
        let last = pulled.last().map_or(after.get(), |last| last.1);
        assert!(meta.commit_ts as u64 > last, "{} after {last}", meta.commit_ts);
        pulled.push((meta.start_ts as u64, meta.commit_ts as u64, binlog));
        if meta.commit_ts as u64 >= upto.get() {
            return Ok(pulled);
        }
    }
}

pub fn is_fake(binlog: &Binlog) -> bool {
    binlog.tp == Some(BinlogType::Rollback.into()) && binlog.start_ts == binlog.commit_ts
}
