//! Pumps that store nothing and watch closely: every record must keep TiDB's promises, every timestamp PD's, every
//! answer TiKV's.

#![allow(unreachable_pub, missing_docs, dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use schemas::binlog::pump_server::{Pump, PumpServer};
use schemas::binlog::{PullBinlogReq, PullBinlogResp, WriteBinlogReq, WriteBinlogResp};
use schemas::kvrpcpb::{CheckTxnStatusRequest, CheckTxnStatusResponse, Context};
use schemas::tikvpb::tikv_client::TikvClient;
use simulator::cluster::Cluster;
use simulator::schedule::Kind;
use simulator::script::{Record, Script};
use simulator::transactions;
use simulator::tso::Recorded;
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// What the pumps of one test have seen together.
pub struct Witness {
    cluster: Cluster,
    script: Arc<Script>,
    recorded: Recorded,
    seen: Mutex<Seen>,
    tikv: Option<TikvClient<Channel>>,
}

#[derive(Default)]
pub struct Seen {
    /// Prewrites not yet acknowledged, by commit_ts.
    open: BTreeMap<Tso, StartTs>,
    /// Which pump acknowledged a prewrite.
    prewrites: HashMap<StartTs, usize>,
    /// Payloads in order of arrival, with the pump.
    pub arrived: Vec<(usize, Record)>,
    last_tso: Tso,
    /// How far each transaction is in TiKV: 0 not found, 1 locked, 2 ended.
    stages: HashMap<StartTs, u8>,
    /// Answers to give instead of storing: by pump, in order.
    pub refusals: HashMap<usize, Vec<Status>>,
    /// Records that a pump never takes.
    pub poison: HashSet<StartTs>,
    pub complaints: Vec<String>,
}

impl Witness {
    pub fn new(cluster: Cluster, script: Arc<Script>, tikv: &str) -> Arc<Self> {
        let tikv = Channel::from_shared(format!("http://{tikv}")).unwrap().connect_lazy();
        Self::of(cluster, script, Some(TikvClient::new(tikv)))
    }

    /// Takes what comes and asks nobody.
    pub fn silent(cluster: Cluster, script: Arc<Script>) -> Arc<Self> {
        Self::of(cluster, script, None)
    }

    fn of(cluster: Cluster, script: Arc<Script>, tikv: Option<TikvClient<Channel>>) -> Arc<Self> {
        let prewrites = script.records().iter().filter(|record| record.kind == Kind::Prewrite);
        let open =
            prewrites.filter_map(|record| Some((script.commit_ts(record.start_ts)?.0, record.start_ts)));
        let seen = Seen { open: open.collect(), ..Seen::default() };
        Arc::new(Self { recorded: script.recorded(), cluster, script, seen: Mutex::new(seen), tikv })
    }

    /// When a transaction commits: as the script says, or without one (a live cluster) as TiKV's stand-in holds it now.
    fn truth(&self, start_ts: StartTs) -> Option<CommitTs> {
        if !self.script.records().is_empty() {
            return self.script.commit_ts(start_ts);
        }
        match self.cluster.status(start_ts) {
            transactions::Status::Committed(commit_ts) => Some(commit_ts),
            _ => None,
        }
    }

    pub fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Starts pump `index` and registers it online.
    pub async fn pump(self: &Arc<Self>, etcd: &str, index: usize) -> JoinHandle<()> {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_nodelay(Some(true));
        let host = incoming.local_addr().unwrap();
        let service = PumpServer::new(WitnessPump { witness: Arc::clone(self), index });
        let server = Server::builder().add_service(service.max_decoding_message_size(usize::MAX));
        let task = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        register(etcd, index, &host.to_string(), "online").await;
        task
    }

    /// Takes a timestamp and checks it against everything known at that moment.
    fn take_tso(&self) -> Tso {
        let mut seen = self.seen();
        let tso = self.cluster.tso();
        let mut complain = |what: String| seen.complaints.push(format!("tso {tso} {what}"));
        if self.recorded.contains(tso) {
            complain("belongs to a recorded transaction".into());
        }
        let (last, bound) = (seen.last_tso, seen.open.first_key_value().map(|(ts, _)| *ts));
        let mut complain = |what: String| seen.complaints.push(format!("tso {tso} {what}"));
        if tso < last {
            complain(format!("after {last}"));
        }
        if bound.is_some_and(|bound| tso >= bound) {
            complain(format!("passes {bound:?}, whose prewrite is not acknowledged"));
        }
        seen.last_tso = tso;
        tso
    }

    /// An honest question to TiKV, and what it says about the transaction's course.
    pub async fn ask(&self, record: &Record) {
        let tso = self.take_tso();
        let before = *self.seen().stages.get(&record.start_ts).unwrap_or(&0);
        let answer = self.check(record, tso, false).await;
        let truth = self.truth(record.start_ts);
        let (stage, fault) = match (&answer.error, answer.lock_ttl, answer.commit_version) {
            (Some(error), 0, 0) => (0, error.txn_not_found.is_none()),
            (None, 1.., 0) => {
                let lock = answer.lock_info.clone().unwrap();
                // A live lock moves above the question and stays below what will be taken.
                let low = lock.min_commit_ts <= tso.get();
                (1, low || truth.is_some_and(|commit_ts| lock.min_commit_ts > commit_ts.get()))
            }
            (None, 0, version) => (2, version != truth.map_or(0, |commit_ts| commit_ts.get())),
            _ => (9, true),
        };
        let mut seen = self.seen();
        // "Not found" and "locked" mean that a commit_ts will be greater than the timestamp taken before the question.
        let early = stage < 2 && truth.is_some_and(|commit_ts| commit_ts.0 <= tso);
        let vanished = truth.is_none() && before == 1 && stage == 0;
        if fault || early || (stage < before && !vanished) {
            seen.complaints.push(format!("at {tso}, {before}, truth {truth:?}: {answer:?}"));
        }
        seen.stages.insert(record.start_ts, stage);
    }

    /// A question to TiKV with all that belongs to it.
    pub async fn check(
        &self,
        record: &Record,
        tso: Tso,
        rollback_if_not_exist: bool,
    ) -> CheckTxnStatusResponse {
        let context = Context {
            region_id: 2,
            region_epoch: Some(schemas::metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peer: Some(schemas::metapb::Peer { id: 3, store_id: 1 }),
        };
        let request = CheckTxnStatusRequest {
            context: Some(context),
            primary_key: record.primary.clone(),
            lock_ts: record.start_ts.get(),
            caller_start_ts: tso.get(),
            current_ts: tso.get(),
            rollback_if_not_exist,
            ..CheckTxnStatusRequest::default()
        };
        self.tikv.clone().unwrap().kv_check_txn_status(request).await.unwrap().into_inner()
    }

    fn receive(&self, index: usize, record: &Record) -> Result<(), Status> {
        let mut seen = self.seen();
        let seen = &mut *seen;
        if seen.poison.contains(&record.start_ts) {
            return Err(Status::resource_exhausted("message larger than max (9 vs. 8)"));
        }
        if let Some(refusal) = seen.refusals.get_mut(&index).and_then(Vec::pop) {
            return Err(refusal);
        }
        seen.arrived.push((index, record.clone()));
        let newest = record.commit_ts.map_or(record.start_ts.0, |commit_ts| commit_ts.0);
        let late = seen.open.range(..newest).next();
        if let Some((commit_ts, start_ts)) = late {
            let what =
                format!("{record:?} came before the prewrite of {start_ts}, which commits at {commit_ts}");
            seen.complaints.push(what);
        }
        if record.kind != Kind::Prewrite && seen.prewrites.get(&record.start_ts) != Some(&index) {
            seen.complaints.push(format!("{record:?} came to pump {index}, its prewrite to another or none"));
        }
        Ok(())
    }

    fn acknowledge(&self, index: usize, record: &Record) {
        let mut seen = self.seen();
        if record.kind == Kind::Prewrite {
            seen.prewrites.insert(record.start_ts, index);
            if let Some(commit_ts) = self.script.commit_ts(record.start_ts) {
                seen.open.remove(&commit_ts.0);
            }
        }
    }
}

struct WitnessPump {
    witness: Arc<Witness>,
    index: usize,
}

#[tonic::async_trait]
impl Pump for WitnessPump {
    async fn write_binlog(
        &self,
        request: Request<WriteBinlogReq>,
    ) -> Result<Response<WriteBinlogResp>, Status> {
        let witness = &self.witness;
        let request = request.into_inner();
        assert_eq!(request.cluster_id, witness.cluster.id());
        if request.payload.is_empty() {
            return Ok(Response::new(WriteBinlogResp::default()));
        }
        let record = match Record::new(Duration::ZERO, 0, request.payload) {
            Ok(record) => record,
            Err(error) => {
                witness.seen().complaints.push(error.to_string());
                return Err(Status::resource_exhausted(error.to_string()));
            }
        };
        witness.receive(self.index, &record)?;
        if witness.tikv.is_some() {
            let tso = witness.take_tso();
            if let Some(commit_ts) = record.commit_ts.filter(|commit_ts| commit_ts.0 >= tso) {
                witness.seen().complaints.push(format!("commit {commit_ts} came while PD was at {tso}"));
            }
            witness.ask(&record).await;
        }
        // Acknowledgements overtake each other.
        for _ in 0..record.start_ts.get() % 7 {
            tokio::task::yield_now().await;
        }
        witness.acknowledge(self.index, &record);
        Ok(Response::new(WriteBinlogResp::default()))
    }

    type PullBinlogsStream = Pin<Box<dyn Stream<Item = Result<PullBinlogResp, Status>> + Send>>;

    async fn pull_binlogs(
        &self,
        _: Request<PullBinlogReq>,
    ) -> Result<Response<Self::PullBinlogsStream>, Status> {
        Err(Status::unimplemented("a witness tells nothing"))
    }
}

/// Puts a pump's registration as the pump itself would.
pub async fn register(etcd: &str, index: usize, host: &str, state: &str) {
    let mut client = etcd_client::Client::connect([etcd], None).await.unwrap();
    let value = serde_json::json!({
        "nodeId": format!("pump-{index}"), "host": host, "state": state, "isAlive": false, "score": 0,
        "label": null, "maxCommitTS": 0, "updateTS": 0,
    });
    client.put(format!("/tidb-binlog/v1/pumps/pump-{index}"), value.to_string(), None).await.unwrap();
}
