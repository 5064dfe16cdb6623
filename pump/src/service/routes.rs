//! What the pump's port answers: gRPC, and the original's few HTTP routes.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::sync::Arc;

use axum::extract::{self, Path, State as Shared};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::body::Incoming;
use node::config::Secret;
use node::registry::{Entry, NodeKind, NodeRecord, Registry};
use node::serve::{Handler, Peer};
use node::telemetry::Telemetry;
use prost::Message as _;
use schemas::binlog::pump_server::PumpServer;
use schemas::binlog::{WriteBinlogReq, WriteBinlogResp};
use schemas::sluice::pump::v1::drain_server::DrainServer;
use serde::Serialize;
use serde_json::{Value, json};
use tidb::ts::Tso;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::Status;
use tonic::codec::CompressionEncoding;

use super::admit;
use super::framing::{self, Received};
use super::{DrainService, Inspector, Intake, PullService};
use crate::clock::Clock;
use crate::membership::Action;
use crate::state::{State, StateCell};

const WRITE_BINLOG: &str = "/binlog.Pump/WriteBinlog";

/// Requests to pull are tiny; nothing larger is even reserved.
const PULL_REQUEST: usize = 64 << 10;

/// What the HTTP routes need.
#[derive(Clone)]
pub struct Http {
    /// This pump's name.
    pub node_id: String,
    /// The pump's state.
    pub state: Arc<StateCell>,
    /// Who is there.
    pub registry: Registry,
    /// For `CommitTS`.
    pub clock: Arc<Clock>,
    /// To whoever carries actions out.
    pub actions: mpsc::Sender<Action>,
    /// For `/metrics`.
    pub telemetry: Telemetry,
    /// Starts a run of retention.
    pub retention: Arc<Notify>,
    /// What requests that change something must carry, if configured.
    pub token: Option<Secret>,
    /// For `/debug/binlog`.
    pub inspector: Inspector,
    /// Pages of `/debug/binlog` that may be made at a time.
    pub inspecting: Arc<Semaphore>,
}

/// Everything on the pump's port. Nearly all that comes is `WriteBinlog`, so that is answered before a router looks at it.
#[derive(Clone)]
pub struct Port {
    intake: Arc<Intake>,
    router: Router,
}

impl Port {
    /// Takes binlogs in with `intake`; everything else is answered by the others.
    /// At most `streams` of drainers' pulls are open at a time, by either protocol.
    pub fn new(
        intake: Arc<Intake>,
        pull: PullService,
        drain: DrainService,
        streams: usize,
        http: Http,
    ) -> Self {
        Self { intake, router: router(pull, drain, streams, http) }
    }
}

impl Handler for Port {
    async fn handle(self, request: Request<Incoming>, peer: Peer) -> Response {
        if request.method() == Method::POST && request.uri().path() == WRITE_BINLOG {
            return match take(&self.intake, request).await {
                Ok(()) => framing::reply(&WriteBinlogResp::default()),
                Err(status) => status.into_http(),
            };
        }
        // On the heap: the call above should not carry the room for all this.
        Box::pin(self.router.handle(request, peer)).await
    }
}

fn router(pull: PullService, drain: DrainService, streams: usize, http: Http) -> Router {
    let pull = PumpServer::new(pull)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(PULL_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let drain = DrainServer::new(drain)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(PULL_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let pulls = Router::new()
        .route_service("/binlog.Pump/PullBinlogs", pull)
        .route_service("/sluice.pump.v1.Drain/Pull", drain)
        .layer(middleware::from_fn_with_state(Arc::new(Semaphore::new(streams)), admit::pull));
    let changing = Router::new()
        .route("/state/{node}/{action}", put(change_state))
        .route("/debug/gc/trigger", post(trigger_gc))
        .with_state(http.clone());
    let changing = node::admin::guarded(changing, http.token.as_ref());
    Router::new()
        .route("/status", get(status))
        .route("/drainers", get(drainers))
        .route("/debug/binlog/{ts}", get(binlog))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .with_state(http)
        .merge(pulls)
        .merge(changing)
}

async fn take(intake: &Intake, request: Request<Incoming>) -> Result<(), Status> {
    // The call counts until it is answered: waiting for the writer costs memory, too.
    let Received { message, share, _call } = framing::receive(intake, request).await?;
    let length = message.len();
    let WriteBinlogReq { cluster_id, payload } = WriteBinlogReq::decode(message).map_err(|error| {
        Status::internal(format!("WriteBinlogReq of {length} bytes does not decode: {error}"))
    })?;
    intake.write(cluster_id, payload, Some(share)).await
}

fn unknown(request: extract::Request) -> Ready<Response> {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    ready(if grpc {
        Status::unimplemented(format!("no such method: {}", request.uri().path())).into_http()
    } else {
        (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
    })
}

/// As the original spells it.
#[derive(Serialize)]
struct StatusPage {
    status: BTreeMap<String, NodeRecord>,
    #[serde(rename = "CommitTS")]
    commit_ts: u64,
    #[serde(rename = "Checkpoint")]
    checkpoint: Value,
    #[serde(rename = "ErrMsg")]
    error: String,
}

async fn status(Shared(http): Shared<Http>) -> Json<StatusPage> {
    let mut error = String::new();
    let status = match http.registry.list(NodeKind::Pump).await {
        Ok(entries) => records(entries).map(|record| (record.node_id.clone(), record)).collect(),
        Err(failed) => {
            error = failed.to_string();
            BTreeMap::new()
        }
    };
    let commit_ts = match http.clock.fresh().await {
        Ok(now) => now.get(),
        Err(failed) => {
            error = failed.to_string();
            0
        }
    };
    Json(StatusPage { status, commit_ts, checkpoint: json!({}), error })
}

async fn drainers(Shared(http): Shared<Http>) -> Response {
    match http.registry.list(NodeKind::Drainer).await {
        Ok(entries) => {
            let records: Vec<_> = records(entries).collect();
            // The original's empty list is null.
            Json((!records.is_empty()).then_some(records)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(answer(1, error.to_string()))).into_response(),
    }
}

fn records(entries: Vec<Entry>) -> impl Iterator<Item = NodeRecord> {
    entries.into_iter().filter_map(|entry| entry.record)
}

/// Always HTTP 200: the original's tools look at the code inside only.
fn change_state(
    Shared(http): Shared<Http>,
    Path((node, action)): Path<(String, String)>,
) -> Ready<Json<Value>> {
    ready(Json(act(&http, &node, &action)))
}

fn act(http: &Http, node: &str, action: &str) -> Value {
    if node != http.node_id {
        return answer(3, format!("invalid nodeID {node}, this pump's nodeID is {}", http.node_id));
    }
    let state = http.state.get();
    if state != State::Online {
        return answer(3, format!("this pump's state is {}, apply {action} failed!", state.name()));
    }
    let wanted = match action {
        "pause" => Action::Pause,
        "close" => Action::Close,
        _ => return answer(3, format!("invalid action {action}")),
    };
    match http.actions.try_send(wanted) {
        Ok(()) => answer(200, format!("apply action {action} success!")),
        Err(_) => answer(3, format!("another action is under way, apply {action} failed!")),
    }
}

fn answer(code: u32, message: String) -> Value {
    json!({ "message": message, "code": code, "data": null })
}

async fn binlog(Shared(http): Shared<Http>, Path(ts): Path<String>) -> Response {
    let Ok(ts) = ts.parse() else {
        return (StatusCode::BAD_REQUEST, format!("`{ts}` is not a timestamp\n")).into_response();
    };
    // A page reads a whole binlog.
    let Ok(_alone) = http.inspecting.try_acquire() else {
        let text = "another page is being made, try again\n";
        return (StatusCode::TOO_MANY_REQUESTS, text).into_response();
    };
    match http.inspector.page(Tso::new(ts)).await {
        Ok(Some(page)) => page.into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, format!("nothing is stored under {ts}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

fn trigger_gc(Shared(http): Shared<Http>) -> Ready<&'static str> {
    http.retention.notify_one();
    ready("trigger gc success")
}

fn metrics(Shared(http): Shared<Http>) -> Ready<Response> {
    let mut response = Response::new(Bytes::from(http.telemetry.render_metrics()).into());
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    ready(response)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use node::pd::Pd;
    use node::serve::{Listener, ServeLimits};
    use node::shutdown::Shutdown;
    use node::tls::Security;
    use schemas::binlog::pump_client::PumpClient;
    use schemas::binlog::{Binlog, BinlogType};
    use simulator::cluster::Cluster;
    use simulator::pd::MockPd;
    use tonic::Code;
    use tonic::transport::Channel;

    use super::*;
    use crate::budget::ReceiveBudget;
    use crate::disk::Disk;
    use crate::metrics::Calls;
    use crate::progress::Progress;
    use crate::resolver::Hints;
    use crate::sorter::Sorter;
    use crate::store::{self, Options};
    use crate::writer::Writer;

    const CLUSTER: u64 = 7;

    /// `WriteBinlog` and nothing else.
    #[derive(Clone)]
    struct Writes(Arc<Intake>);

    impl Handler for Writes {
        async fn handle(self, request: Request<Incoming>, _: Peer) -> Response {
            match take(&self.0, request).await {
                Ok(()) => framing::reply(&WriteBinlogResp::default()),
                Err(status) => status.into_http(),
            }
        }
    }

    /// Calls that wait for the writer are calls under way: beyond the limit others are refused.
    #[tokio::test]
    async fn a_call_counts_until_it_is_answered() {
        const CALLS: usize = 4;
        const LONG: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        let pd = MockPd::start(Cluster::live(CLUSTER), "127.0.0.1:0", None).await.unwrap();
        let pd = Pd::connect(&[pd.url()], &Security::default()).await.unwrap();
        let (appender, reader, recovered) =
            store::open(&dir.path().join("store"), Options::default()).unwrap();
        let progress = Arc::new(Progress::new(Sorter::default()));
        let slow = Duration::from_secs(1);
        // It is never run, so nobody is answered.
        let (writer, handle) = Writer::new(appender, reader, progress.clone(), &recovered, 1 << 20, slow);
        let intake = Intake {
            cluster_id: CLUSTER,
            max_message: 1 << 20,
            calls: Arc::new(Semaphore::new(CALLS)),
            budget: ReceiveBudget::new(1 << 20),
            state: Arc::new(StateCell::default()),
            disk: Arc::new(Disk::examine(dir.path(), Some(bytesize::ByteSize(0))).unwrap()),
            clock: Arc::new(Clock::new(pd, progress)),
            writer: handle,
            hints: Arc::new(Hints::default()),
            metrics: Calls::default(),
        };
        let intake = Arc::new(intake);
        let listener = Listener::tcp("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (served, shutdown) = (Writes(intake.clone()), Shutdown::new());
        tokio::spawn(node::serve::serve(
            vec![listener],
            served,
            None,
            ServeLimits::default(),
            shutdown.clone(),
        ));
        let client = PumpClient::new(Channel::from_shared(url).unwrap().connect_lazy());
        let call = |start_ts| {
            let rollback = Binlog {
                tp: Some(BinlogType::Rollback.into()),
                start_ts: Some(start_ts),
                ..Binlog::default()
            };
            let request = WriteBinlogReq { cluster_id: CLUSTER, payload: rollback.encode_to_vec().into() };
            let mut client = client.clone();
            async move { client.write_binlog(request).await.map(drop) }
        };
        let waiting: Vec<_> = (1..=CALLS as i64).map(|start_ts| tokio::spawn(call(start_ts))).collect();
        let all_wait = async {
            while intake.calls.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, all_wait).await.expect("calls that wait for the writer hold their places");
        let refused = tokio::time::timeout(LONG, call(9)).await.expect("an answer").unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        assert!(refused.message().contains("too many calls"), "{}", refused.message());
        drop(writer);
        for call in waiting {
            assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
        }
        shutdown.cancel();
    }
}
