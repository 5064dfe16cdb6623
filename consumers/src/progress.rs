//! How far a consumer is, for `/status` and metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tidb::ts::CommitTs;

use crate::metrics;
use crate::position::Position;

/// Shared between the follower, the target and the admin listener.
#[derive(Debug, Default)]
pub struct FollowProgress {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    newest: CommitTs,
    handed_over: Option<Position>,
    applied: Option<Position>,
    waiting: Option<String>,
}

impl FollowProgress {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's watermark was seen at `watermark`, by whoever.
    pub fn saw(&self, watermark: CommitTs) {
        let mut state = self.state();
        if watermark > state.newest {
            state.newest = watermark;
            metrics::log_watermark(watermark);
        }
    }

    /// Everything before the position is in the queue.
    pub fn handed_over(&self, position: &Position) {
        self.state().handed_over = Some(position.clone());
    }

    /// Everything before the position is durable in the target.
    pub fn applied(&self, position: &Position) {
        let mut state = self.state();
        state.newest = state.newest.max(position.commit_ts);
        let lag = state.newest.0.seconds_since(position.commit_ts.0);
        metrics::applied(position.commit_ts, position.seq, lag);
        state.applied = Some(position.clone());
    }

    /// What is waited for, if anything.
    pub fn waiting(&self, what: Option<String>) {
        self.state().waiting = what;
    }

    /// Where the target stands.
    pub fn position(&self) -> Option<Position> {
        self.state().applied.clone()
    }

    /// For `/status`: `commit_ts` where the target stands, `newest_commit_ts` of the log, `lag_seconds` between them.
    pub fn to_json(&self) -> Value {
        let state = self.state();
        let lag = state.applied.as_ref().map(|applied| state.newest.0.seconds_since(applied.commit_ts.0));
        json!({
            "position": state.applied,
            "commit_ts": state.applied.as_ref().map(|applied| applied.commit_ts.get()),
            "handed_over_commit_ts": state.handed_over.as_ref().map(|position| position.commit_ts.get()),
            "newest_commit_ts": state.newest.get(),
            "lag_seconds": lag,
            "waiting_for": state.waiting,
        })
    }
}
