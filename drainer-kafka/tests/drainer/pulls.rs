//! Pulls and merge over real gRPC, with pumps that follow a script: our own protocol, the original's, broken ones.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use drainer_kafka::feed::{MergeTask, Merged, SourceChange};
use drainer_kafka::merge::SourceId;
use drainer_kafka::pull::{Pull, PullOptions, PumpBatch};
use drainer_kafka::status::Status;
use futures::Stream;
use node::tls::Security;
use prost::Message as _;
use schemas::binlog::pump_server::{Pump, PumpServer};
use schemas::binlog::{
    Binlog, BinlogType, Entity, PullBinlogReq, PullBinlogResp, WriteBinlogReq, WriteBinlogResp,
};
use schemas::sluice::pump::v1::drain_server::{Drain, DrainServer};
use schemas::sluice::pump::v1::pull_request::Body as Request;
use schemas::sluice::pump::v1::pull_response::Body;
use schemas::sluice::pump::v1::{Batch, Chunk, Gap, OutOfRange, PullRequest, PullResponse, Transaction};
use tidb::ts::Tso;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Response, Status as Code, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Code>> + Send>>;

/// A pump that plays its next script at each call; when the last one is over it keeps the stream open.
#[derive(Clone, Default)]
struct Scripted {
    scripts: Arc<Mutex<VecDeque<Vec<Body>>>>,
    /// The position of each call.
    asked: Arc<Mutex<Vec<u64>>>,
    wanted: Arc<Mutex<Vec<u64>>>,
}

#[tonic::async_trait]
impl Drain for Scripted {
    type PullStream = Answers<PullResponse>;

    async fn pull(
        &self,
        request: tonic::Request<Streaming<PullRequest>>,
    ) -> Result<Response<Self::PullStream>, Code> {
        let mut requests = request.into_inner();
        let Some(Ok(PullRequest { body: Some(Request::Open(open)) })) = requests.next().await else {
            return Err(Code::invalid_argument("Open comes first"));
        };
        self.asked.lock().unwrap().push(open.after);
        let (script, last) = {
            let mut scripts = self.scripts.lock().unwrap();
            (scripts.pop_front().unwrap_or_default(), scripts.is_empty())
        };
        let (answers, out) = mpsc::channel(64);
        for body in script {
            answers.try_send(Ok(PullResponse { body: Some(body) })).unwrap();
        }
        let wanted = self.wanted.clone();
        tokio::spawn(async move {
            while let Some(Ok(PullRequest { body: Some(Request::Want(want)) })) = requests.next().await {
                wanted.lock().unwrap().push(want.commit_ts);
                let watermark = Batch { transactions: Vec::new(), watermark: want.commit_ts };
                let _ = answers.send(Ok(PullResponse { body: Some(Body::Batch(watermark)) })).await;
            }
            if last {
                answers.closed().await;
            }
        });
        // Without another script the stream stays open; else it ends with what was sent.
        if last {
            return Ok(Response::new(Box::pin(ReceiverStream::new(out))));
        }
        let mut out = out;
        let mut all = Vec::new();
        while let Ok(answer) = out.try_recv() {
            all.push(answer);
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(all))))
    }
}

/// An original pump: it knows nothing of our pull.
#[derive(Clone)]
struct Original {
    binlogs: Vec<Binlog>,
    asked: Arc<Mutex<Vec<i64>>>,
}

#[tonic::async_trait]
impl Pump for Original {
    async fn write_binlog(
        &self,
        _: tonic::Request<WriteBinlogReq>,
    ) -> Result<Response<WriteBinlogResp>, Code> {
        Err(Code::unimplemented("not here"))
    }

    type PullBinlogsStream = Answers<PullBinlogResp>;

    async fn pull_binlogs(
        &self,
        request: tonic::Request<PullBinlogReq>,
    ) -> Result<Response<Self::PullBinlogsStream>, Code> {
        let after = request.into_inner().start_from.unwrap().offset;
        self.asked.lock().unwrap().push(after);
        let answers: Vec<_> = self
            .binlogs
            .iter()
            .filter(|binlog| binlog.commit_ts() > after)
            .map(|binlog| {
                let entity = Entity { payload: binlog.encode_to_vec().into(), ..Entity::default() };
                Ok(PullBinlogResp { entity: Some(entity) })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(answers).chain(tokio_stream::pending()))))
    }
}

async fn listen() -> (TcpListenerStream, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (TcpListenerStream::new(listener), address)
}

async fn scripted(scripts: Vec<Vec<Body>>) -> (Scripted, String) {
    let pump = Scripted { scripts: Arc::new(Mutex::new(scripts.into())), ..Scripted::default() };
    let (incoming, address) = listen().await;
    tokio::spawn(Server::builder().add_service(DrainServer::new(pump.clone())).serve_with_incoming(incoming));
    (pump, address)
}

fn transaction(commit_ts: u64, content: &'static str) -> Transaction {
    Transaction {
        start_ts: commit_ts - 1,
        commit_ts,
        prewrite_value: Bytes::from_static(content.as_bytes()),
        ..Transaction::default()
    }
}

fn batch(transactions: Vec<Transaction>, watermark: u64) -> Body {
    Body::Batch(Batch { transactions, watermark })
}

fn lost(start_ts: u64, after: u64, upto: u64) -> Body {
    Body::Gap(Gap { start_ts, after, upto, cause: "TiKV has collected it".to_owned() })
}

fn options(budget: u64) -> PullOptions {
    PullOptions {
        source: SourceId::new("p"),
        generation: 1,
        cluster_id: 7,
        node_id: "d".to_owned(),
        budget,
        max_message: 1 << 20,
        security: Security::default(),
    }
}

struct Pulling {
    batches: mpsc::Receiver<PumpBatch>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _address: watch::Sender<String>,
    _want: watch::Sender<Tso>,
}

fn pull(address: &str, after: u64, budget: u64) -> Pulling {
    let (out, batches) = mpsc::channel(4);
    let (address, address_out) = watch::channel(address.to_owned());
    let (want, want_out) = watch::channel(Tso::ZERO);
    let status = Status::default();
    let pump_status = status.pump(&SourceId::new("p"), "", "online");
    let pull = Pull::new(options(budget), Tso::new(after), out, address_out, want_out, pump_status);
    Pulling { batches, task: tokio::spawn(pull.run()), _address: address, _want: want }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("it hangs")
}

#[tokio::test]
async fn goes_on_from_the_last_watermark_and_joins_chunks() {
    let large = Transaction { prewrite_value: Bytes::new(), ..transaction(30, "") };
    let piece = |transaction, data: &'static str, last| {
        Body::Chunk(Chunk { transaction, data: Bytes::from_static(data.as_bytes()), last, total_bytes: 9 })
    };
    let (pump, address) = scripted(vec![
        vec![batch(vec![transaction(11, "a"), transaction(15, "b")], 20)],
        // The connection is lost in the middle of a large transaction.
        vec![batch(Vec::new(), 25), piece(Some(large.clone()), "one ", false)],
        vec![piece(Some(large), "one ", false), piece(None, "piece", true), batch(Vec::new(), 40)],
    ])
    .await;
    let mut pulling = pull(&address, 10, 1 << 20);
    let mut transactions = Vec::new();
    let mut watermark = Tso::ZERO;
    while watermark < Tso::new(40) {
        let batch = soon(pulling.batches.recv()).await.unwrap();
        assert!(batch.watermark >= watermark);
        watermark = batch.watermark;
        transactions.extend(batch.transactions.into_iter().map(|t| (t.commit_ts.get(), t.payload)));
    }
    let expected = [(11, "a"), (15, "b"), (30, "one piece")].map(|(ts, text)| (ts, Bytes::from(text)));
    assert_eq!(transactions, expected);
    assert_eq!(*pump.asked.lock().unwrap(), [10, 20, 25]);
}

#[tokio::test]
async fn an_original_pumps_fakes_are_ticks() {
    let binlog = |start_ts: i64, commit_ts: i64, value: &'static [u8]| Binlog {
        tp: Some(BinlogType::Prewrite.into()),
        start_ts: Some(start_ts),
        commit_ts: Some(commit_ts),
        prewrite_value: (!value.is_empty()).then(|| Bytes::from_static(value)),
        ..Binlog::default()
    };
    let ddl =
        Binlog { ddl_job_id: Some(9), ddl_query: Some(Bytes::from_static(b"DROP")), ..binlog(30, 31, b"") };
    let original =
        Original { binlogs: vec![binlog(5, 12, b"v"), binlog(20, 20, b""), ddl], asked: Arc::default() };
    let (incoming, address) = listen().await;
    tokio::spawn(
        Server::builder().add_service(PumpServer::new(original.clone())).serve_with_incoming(incoming),
    );
    let mut pulling = pull(&address, 10, 1 << 20);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let batch = soon(pulling.batches.recv()).await.unwrap();
        let first =
            batch.transactions.first().map(|t| (t.start_ts.get(), t.ddl.as_ref().map(|ddl| ddl.job_id)));
        seen.push((batch.watermark.get(), first));
    }
    assert_eq!(seen, [(12, Some((5, None))), (20, None), (31, Some((30, Some(9))))]);
    assert_eq!(*original.asked.lock().unwrap(), [10]);
}

#[tokio::test]
async fn stops_where_going_on_would_lose_data() {
    let whole = |total_bytes| {
        Body::Chunk(Chunk {
            transaction: Some(transaction(30, "")),
            data: Bytes::new(),
            last: true,
            total_bytes,
        })
    };
    let cases = [
        (Body::OutOfRange(OutOfRange { requested: 10, oldest: 500 }), "(10, 500]"),
        (lost(20, 30, 30), "a gap that ends before it"),
        (lost(40, 20, 30), "or its transaction, begins"),
        (batch(vec![transaction(30, "")], 20), "above its batch's watermark"),
        (whole(9), "shorter than announced"),
        (whole(2 << 20), "max-message-size"),
        (batch(vec![Transaction { start_ts: 40, ..transaction(30, "") }], 50), "not above its start_ts"),
    ];
    for (answer, expected) in cases {
        let (_, address) = scripted(vec![vec![answer]]).await;
        let error = soon(pull(&address, 10, 1 << 20).task).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("pump p") && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_budget_holds_the_pump_back() {
    const PAYLOAD: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";
    let batches = (0..50).map(|i| batch(vec![transaction(100 + i, PAYLOAD)], 100 + i)).collect();
    let (_, address) = scripted(vec![batches]).await;
    // Room for two units: two transactions at a time.
    let mut pulling = pull(&address, 10, 512);
    let mut held = Vec::new();
    for expected in 100..150 {
        let batch = soon(pulling.batches.recv()).await.unwrap();
        assert_eq!(batch.watermark, Tso::new(expected));
        held.extend(batch.transactions);
        if held.len() == 2 {
            // Nothing more arrives while both are held.
            assert!(tokio::time::timeout(Duration::from_millis(30), pulling.batches.recv()).await.is_err());
            held.clear();
        }
    }
}

async fn add(
    changes: &mpsc::Sender<SourceChange>,
    name: &str,
    generation: u64,
) -> (Tso, watch::Receiver<Tso>) {
    let (want, wanted) = watch::channel(Tso::ZERO);
    let (reply, after) = oneshot::channel();
    changes.send(SourceChange::Add { id: SourceId::new(name), generation, want, reply }).await.unwrap();
    (soon(after).await.unwrap(), wanted)
}

fn pumped(name: &str, generation: u64, commit_ts: &[u64], watermark: u64) -> PumpBatch {
    let transactions = commit_ts.iter().map(|ts| drainer_kafka::transaction::Transaction {
        start_ts: tidb::ts::StartTs::new(ts - 1),
        commit_ts: tidb::ts::CommitTs::new(*ts),
        payload: Bytes::new(),
        ddl: None,
        budget: None,
    });
    PumpBatch {
        source: SourceId::new(name),
        generation,
        transactions: transactions.collect(),
        lost: Vec::new(),
        watermark: Tso::new(watermark),
    }
}

/// While nothing is taken from the merge (a DDL may wait for hours), pumps still join and leave.
#[tokio::test]
async fn pumps_join_and_leave_while_the_merge_is_stuck() {
    let (batches, batches_out) = mpsc::channel(64);
    let (changes, changes_out) = mpsc::channel(4);
    let (out, mut merged) = mpsc::channel(1);
    let merge = MergeTask::new(Tso::new(10), Tso::ZERO, Status::default());
    let task = tokio::spawn(merge.run(batches_out, changes_out, out));
    let (after, mut wanted) = add(&changes, "a", 1).await;
    assert_eq!(after, Tso::new(10));
    let (_, mut want_b) = add(&changes, "b", 2).await;
    batches.send(pumped("a", 1, &[20, 22], 30)).await.unwrap();
    // b is asked to come up to what a has ready.
    soon(want_b.wait_for(|ts| *ts == Tso::new(20))).await.unwrap();
    assert!(!wanted.has_changed().unwrap() || wanted.borrow_and_update().is_zero());
    batches.send(pumped("b", 2, &[21], 21)).await.unwrap();
    // What an aborted pull of b still delivers is not believed.
    batches.send(pumped("b", 1, &[15], 15)).await.unwrap();
    soon(async {
        while batches.capacity() < batches.max_capacity() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Nothing has been taken out; a third pump joins all the same.
    let (after, _) = add(&changes, "c", 3).await;
    assert!(after >= Tso::new(20) && after <= Tso::new(21));
    let (reply, arrived) = oneshot::channel();
    changes.send(SourceChange::End { id: SourceId::new("b"), reply }).await.unwrap();
    assert_eq!(soon(arrived).await.unwrap(), Tso::new(21));
    changes.send(SourceChange::Gap { to: Tso::new(99), cause: "b".into() }).await.unwrap();
    batches.send(pumped("c", 3, &[], 40)).await.unwrap();
    let (mut order, mut gaps, mut resolved) = (Vec::new(), 0, Tso::ZERO);
    while resolved < Tso::new(30) {
        match soon(merged.recv()).await.unwrap() {
            Merged::Transactions(transactions) => {
                order.extend(transactions.iter().map(|t| t.commit_ts.get()))
            }
            Merged::Resolved(watermark) => resolved = watermark,
            Merged::Gap(gap) => {
                assert_eq!(gap.to, Tso::new(99));
                gaps += 1;
            }
        }
    }
    assert_eq!((order, gaps), (vec![20, 21, 22], 1));
    drop(changes);
    soon(task).await.unwrap().unwrap();
}

/// A pump names a lost transaction again at every pull from below the end of its range; the log gets one gap, in its place
/// among the transactions.
#[tokio::test]
async fn a_lost_transaction_becomes_one_gap_in_its_place() {
    let (_, address) = scripted(vec![
        vec![batch(vec![transaction(11, "a")], 12), lost(8, 14, 25)],
        // The stream broke; what follows comes from the last watermark on.
        vec![lost(8, 14, 25), batch(vec![transaction(20, "b")], 22)],
        vec![lost(8, 14, 25), batch(vec![transaction(30, "c")], 40)],
    ])
    .await;
    let (batches, batches_out) = mpsc::channel(64);
    let (changes, changes_out) = mpsc::channel(4);
    let (out, mut merged) = mpsc::channel(64);
    let merge = MergeTask::new(Tso::new(10), Tso::ZERO, Status::default());
    tokio::spawn(merge.run(batches_out, changes_out, out));
    let (after, want) = add(&changes, "p", 1).await;
    let (_address, address_out) = watch::channel(address);
    let status = Status::default().pump(&SourceId::new("p"), "", "online");
    tokio::spawn(Pull::new(options(1 << 20), after, batches, address_out, want, status).run());
    let (mut came, mut resolved) = (Vec::new(), Tso::ZERO);
    while resolved < Tso::new(40) {
        match soon(merged.recv()).await.unwrap() {
            Merged::Transactions(transactions) => {
                came.extend(transactions.iter().map(|t| t.commit_ts.to_string()));
            }
            Merged::Resolved(watermark) => {
                assert!(watermark >= resolved);
                resolved = watermark;
            }
            Merged::Gap(gap) => {
                assert!(
                    gap.cause.contains("pump p lost transaction 8: TiKV has collected it"),
                    "{}",
                    gap.cause
                );
                came.push(format!("({}, {}]", gap.from, gap.to));
            }
        }
    }
    assert_eq!(came, ["11", "(14, 25]", "20", "30"]);
}
