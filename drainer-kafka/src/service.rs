//! What pumps and operators call on the drainer's port: `Cistern/Notify`, and the original's HTTP routes.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use schemas::binlog::cistern_server::{Cistern, CisternServer};
use schemas::binlog::{NotifyReq, NotifyResp};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response};
use tracing::info;

use crate::membership::Refresh;
use crate::status::Status;

/// How the process is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Come back later: pumps keep what was not read.
    Paused,
    /// For good: pumps need not wait for this drainer.
    Offline,
}

/// Where refreshes go while this process leads.
pub type RefreshSlot = watch::Sender<Option<mpsc::Sender<Refresh>>>;

#[derive(Debug)]
struct Notified {
    leading: watch::Receiver<Option<mpsc::Sender<Refresh>>>,
}

#[tonic::async_trait]
impl Cistern for Notified {
    /// Answers when the list of pumps was read again and the merge waits for every pump in it.
    async fn notify(&self, _: Request<NotifyReq>) -> Result<Response<NotifyResp>, tonic::Status> {
        // A standby merges nothing: when it leads, it lists the pumps first.
        let Some(refreshes) = self.leading.borrow().clone() else { return Ok(Response::new(NotifyResp {})) };
        let (reply, answer) = oneshot::channel();
        let gone = || tonic::Status::unavailable("the drainer is between two epochs; ask again");
        refreshes.send(reply).await.map_err(|_| gone())?;
        match answer.await {
            Ok(Ok(())) => Ok(Response::new(NotifyResp {})),
            Ok(Err(error)) => Err(tonic::Status::unavailable(error)),
            Err(_) => Err(gone()),
        }
    }
}

#[derive(Clone)]
struct Operator {
    node_id: String,
    status: Status,
    leave: watch::Sender<Option<Leave>>,
    guarded: bool,
}

/// The routes of the port.
pub fn router(
    node_id: String,
    status: Status,
    leading: watch::Receiver<Option<mpsc::Sender<Refresh>>>,
    leave: watch::Sender<Option<Leave>>,
    guarded: bool,
) -> Router {
    let operator = Operator { node_id, status, leave, guarded };
    let http = Router::new()
        .route("/status", get(original_status))
        .route("/commit_ts", get(commit_ts))
        .route("/state/{node}/{action}", put(state))
        .with_state(operator);
    tonic::service::Routes::new(CisternServer::new(Notified { leading })).into_axum_router().merge(http)
}

/// The original's status: position and whether it keeps up.
async fn original_status(State(operator): State<Operator>) -> axum::Json<Value> {
    let status = operator.status.to_json();
    let pumps: serde_json::Map<String, Value> = status["pumps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pump| Some((pump["node_id"].as_str()?.to_owned(), pump["watermark"].clone())))
        .collect();
    let behind = status["lag_seconds"]["position"].as_f64();
    axum::Json(json!({
        "PumpPos": pumps, "Synced": behind.is_some_and(|lag| lag < 5.0), "LastTS": status["position"], "TsMap": "",
    }))
}

async fn commit_ts(State(operator): State<Operator>) -> axum::Json<Value> {
    axum::Json(
        json!({ "code": 200, "message": "success", "data": { "ts": operator.status.position().get().to_string() } }),
    )
}

/// `PUT /state/{node}/{pause|close}`, as binlogctl calls it. The status code is always 200; the body has the real one.
async fn state(
    State(operator): State<Operator>,
    Path((node, action)): Path<(String, String)>,
) -> axum::Json<Value> {
    let answer =
        |code: u16, message: String| axum::Json(json!({ "code": code, "message": message, "data": null }));
    if operator.guarded {
        return answer(403, "state changes need the admin listener while it has a token".to_owned());
    }
    if node != operator.node_id {
        return answer(404, format!("this drainer is {}, not {node}", operator.node_id));
    }
    let leave = match action.as_str() {
        "pause" => Leave::Paused,
        "close" => Leave::Offline,
        other => return answer(400, format!("unknown action {other}: pause or close")),
    };
    info!(action, "asked to leave");
    operator.leave.send_replace(Some(leave));
    answer(200, format!("apply action {action} success"))
}
