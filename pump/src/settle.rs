//! An operator's word on a prewrite that nobody else can settle: TiKV does not answer for its region any more, its primary
//! key is not its transaction's, its lock cannot be pushed and is kept alive.
//!
//! On the admin listener, for whoever may change state there. The word is written like TiKV's, before it counts, and only
//! about a prewrite that is open here; what it says is not checked against TiKV, since it is for where TiKV cannot be asked.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::put;
use tidb::ts::{CommitTs, StartTs, Tso};
use tracing::warn;

use crate::progress::Progress;
use crate::writer::{Outcome, Verdict, Write, WriteHandle};

/// Takes the word. Refuses until it is filled. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Settlement(Arc<OnceLock<Parts>>);

struct Parts {
    writer: WriteHandle,
    progress: Arc<Progress>,
}

impl Settlement {
    pub(crate) fn fill(&self, writer: WriteHandle, progress: Arc<Progress>) {
        // Filled once, by the one start of this pump.
        let _ = self.0.set(Parts { writer, progress });
    }

    /// `PUT /settle/{start_ts}/committed/{commit_ts}`, `…/rolled-back`, `…/lost`.
    pub(crate) fn routes(self) -> Router {
        Router::new()
            .route("/settle/{start_ts}/committed/{commit_ts}", put(committed))
            .route("/settle/{start_ts}/rolled-back", put(rolled_back))
            .route("/settle/{start_ts}/lost", put(lost))
            .with_state(self)
    }

    async fn settle(&self, start_ts: u64, verdict: Verdict) -> Response {
        let Some(parts) = self.0.get() else {
            return (StatusCode::SERVICE_UNAVAILABLE, "the pump is starting\n").into_response();
        };
        let start_ts = StartTs::new(start_ts);
        if !parts.progress.is_pending(start_ts) {
            let text = format!("no prewrite of start_ts {start_ts} is open here\n");
            return (StatusCode::NOT_FOUND, text).into_response();
        }
        let now = parts.progress.newest();
        if let Verdict::Committed(commit_ts) = verdict
            && (commit_ts.0 <= start_ts.0 || commit_ts.0 > now)
        {
            let text =
                format!("commit_ts {commit_ts} is not above start_ts {start_ts} and at most PD's {now}\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
        warn!(%start_ts, ?verdict, "open prewrite settled by an operator");
        match parts.writer.write(Write::Verdict { start_ts, verdict }, None).await {
            Ok(Outcome::Stored) => format!("start_ts {start_ts} is settled\n").into_response(),
            Ok(outcome @ (Outcome::Repeated | Outcome::LateCopy | Outcome::Lost | Outcome::NoPrewrite)) => {
                let text = format!("start_ts {start_ts} is settled, but not emitted: {outcome:?}\n");
                (StatusCode::CONFLICT, text).into_response()
            }
            Err(refusal) => (StatusCode::CONFLICT, format!("{refusal}\n")).into_response(),
        }
    }
}

async fn committed(
    State(settlement): State<Settlement>,
    Path((start_ts, commit_ts)): Path<(u64, u64)>,
) -> Response {
    settlement.settle(start_ts, Verdict::Committed(CommitTs(Tso::new(commit_ts)))).await
}

async fn rolled_back(State(settlement): State<Settlement>, Path(start_ts): Path<u64>) -> Response {
    settlement.settle(start_ts, Verdict::RolledBack).await
}

async fn lost(State(settlement): State<Settlement>, Path(start_ts): Path<u64>) -> Response {
    let cause = "an operator declared it lost".to_owned();
    settlement.settle(start_ts, Verdict::Unknown { cause }).await
}
